"""Sets how often the garbage collector of a long-running process searches for reference cycles.

Decides the thresholds for processes that serve many short requests. A request creates few cycles, so Python's
default (a collection for every 700 new containers, a full one for every 70,000) mostly traverses modules and
caches that live as long as the process. Measured on two cores with all processes of three regions at 200 writes/s:
the median freshness improves from 22 to 18 ms.
"""

import gc
from typing import Final

YOUNG_MAX: Final = 20_000
"""New containers before the youngest generation is collected: about 2 MB of small objects."""
MIDDLE_MAX: Final = 50
OLD_MAX: Final = 100
"""Collections of one generation before the next older one is collected.

Before a full collection Python also waits until the oldest generation has grown by a quarter.
"""


def configure_garbage_collector() -> None:
    """Exclude all existing objects from later collections, and set the thresholds. Call it once, after all imports."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, MIDDLE_MAX, OLD_MAX)
