"""What clients of plain HTTP give httpx instead of its certificates.

httpx reads all certificate authorities for each client, 20 ms of a processor, also for one that never speaks TLS; a
start asks some hundred times whether a process is ready.
"""

import ssl

TRUST_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""No authority is in it: an address with https would be refused."""
