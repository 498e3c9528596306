"""Runs failure drills: injects faults into a running deployment under load, and judges it by its clients' journal.

A drill (`drill.py`) is a file with a method and expectations. Clients (`clients.py`) record the requests they sent and
the answers they received in a journal (`journal.py`). The runner executes the method on a deployment and always rolls
back (`runner.py`, `target.py`). The judges (`judges.py`) are pure functions of the journal and of what the ledger and
the views contain afterwards. `report.py` writes the result as HTML and JSON.
"""
