"""What the region's Envoy is told: rendered from topology and leadership, written, and confirmed.

``listener``, ``resources`` and ``replies`` are pure; ``feed`` writes their files and asks Envoy whether it took them.
"""

from regions.edge.configurator import EdgeConfigurator, EdgeStatus
from regions.edge.listener import DEGRADED_HEADER, EPOCH_HEADER, REPEAT_HEADER
from regions.edge.resources import render
from regions.edge.settings import EdgeSettings

__all__ = [
    "DEGRADED_HEADER",
    "EPOCH_HEADER",
    "REPEAT_HEADER",
    "EdgeConfigurator",
    "EdgeSettings",
    "EdgeStatus",
    "render",
]
