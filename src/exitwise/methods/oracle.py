"""The oracle: each row (and generated token) answers at the first depth that says what full depth says. The control above all rules.

No rule that keeps every answer can leave sooner. All layers run, so nothing is saved: the trace's depths are those that would have been
enough (ETR is made of them), its calls and work are what ran. In a decoder every layer has its own keys and values of every token, as with
the exact policies; CALM's oracle in a cache of propagated states is another one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import KnobError
from ..method import Method, Settings, answering
from ..reading import Hindsight
from ..run.walk import Plan


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """Hindsight for the stream that answers; the others run at full depth."""
    stream = answering(layers)
    if stream is None:
        raise KnobError(f"No single stream of {', '.join(layers)} gives the answer, so that there is nothing to look back on.")
    return Plan({stream: Hindsight()}, decompose=False)


METHOD = Method(paper="none: a control", about="in hindsight, the first depth that answers as full depth does", plan=plan, control=True)
