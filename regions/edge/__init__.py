"""Generates the xDS configuration of a region's Envoy from topology and leadership, and checks that Envoy applied it.

``listener``, ``resources`` and ``replies`` are pure functions; ``configurator`` writes the files and reads Envoy's
statistics.
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
