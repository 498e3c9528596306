"""Drills: faults on a running deployment under load, each a file, judged by what its clients were told.

A drill says what is done and what must hold (`drill`); clients keep a journal of what they sent and heard (`journal`,
`clients`); the runner carries the drill out on a deployment and always cleans up (`runner`, `target`); the judges are
pure functions of the journal and of what the ledger and the views hold afterwards (`judges`); a report is for people
and for machines (`report`).
"""
