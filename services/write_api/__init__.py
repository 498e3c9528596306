"""The write API: executes writes in the ledger of its cell while its region leads.

Decides which requests become a CALL, and which answer the client gets for each outcome. Does not decide which region
leads (it watches etcd, and the fence row proves it), and does not know the views.
"""
