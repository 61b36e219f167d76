"""Full depth, walked: no exits at all, the encoder as the model has it. What the machinery itself costs is measured with this."""

from __future__ import annotations

from collections.abc import Mapping

from ..method import Method, Settings
from ..run.walk import Plan


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """No rule for any stream."""
    return Plan({}, decompose=False)


METHOD = Method(paper="none: the model itself", about="no exits: every row runs every layer", plan=plan, control=True)
