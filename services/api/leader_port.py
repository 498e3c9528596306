"""Paths of the HTTP requests that the processes of a cell send to each other about leadership.

The write API of a region sends the first two to the internal port of its agent. The read APIs of all regions send the
third to the write APIs, on the port that the edges use as well. The edges do not route clients' requests to it.
"""

from typing import Final

CANCELLED_WAIT_PATH: Final = "/cut-short"
CURRENT_PATH: Final = "/current"
STRONG_POSITION_PATH: Final = "/strong-position"
