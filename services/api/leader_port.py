"""Where the processes of a cell ask each other about the leader: paths and the fields that are more than one's own.

The first two are on the internal port of the agent, for the write API of its region; the third on the port of the
write APIs that the edges use, for the read APIs of all regions. The edges send no read there.
"""

from typing import Final

CUT_SHORT_PATH: Final = "/cut-short"
CURRENT_PATH: Final = "/current"
STRONG_POSITION_PATH: Final = "/strong-position"
