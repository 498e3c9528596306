"""The write API: takes writes for the ledger of its cell while its region leads.

Decides which requests become a CALL and what its outcome means to the client. Refuses to know who should lead
(the watch on etcd says it, the fence row proves it) and everything about views.
"""
