"""N-grams draft, the model verifies: a control for the methods that draft by layers, since it costs none (Ou et al. 2024,
arXiv:2404.08698; prompt lookup, Saxena 2023).

What followed the same one to five tokens before is drafted: in the text itself, prompt included, or else in texts that the model wrote
earlier (`taught` makes exits of their table; a hundred answers help already). What comes out is the model's own greedy text; a sampled
one follows its law, an offer being a law that is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import KnobError
from ..heads import Exits, Shape
from ..lm.ngrams import Grams, Table
from ..lm.plan import Decoding, Draft
from ..method import Knob, Method, Settings
from ..run.walk import Plan

TABLE = "table"


def exits(shape: Shape, sizes: Sequence[int] = (1, 1, 1)) -> Exits:
    """An empty table with room for so many contexts of each order."""
    made = Exits(shape, heads=False, **{TABLE: Table(sizes)})
    made.about = {"sizes": list(sizes)}
    return made


def taught(shape: Shape, texts: Iterable[tuple[Sequence[int], int]]) -> Exits:
    """Exits of a table of these texts: (token ids, where the model's own words begin); shape: `Engine.shape()`."""
    table = Table.learn(texts)
    made = exits(shape, [len(table.get_buffer(f"grams{order}")) for order in range(1, table.orders + 1)])
    made.parts[TABLE].load_state_dict(table.state_dict())
    made.made_by = "ngram"
    return made


def offers(least: int, drafts: int, parts: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> Grams:
    """What each row's text offers."""
    return Grams(len(prompts), parts.get(TABLE), least, drafts)


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """Drafts at no depth at all."""
    if "decoder" not in layers:
        raise KnobError(f"The streams are {', '.join(layers)}: this method needs a language model.")
    drafts, most = settings["drafts"], max(settings["drafts"], settings["repeats"])
    draft = Draft(None, most, offers=partial(offers, settings["least"], drafts))
    return Plan(decompose=False, policy="run late", decoding=Decoding(draft))


METHOD = Method(
    paper="arXiv:2404.08698",
    about="what followed the same tokens before is drafted, the model verifies: its own text, sooner, without a shallow pass",
    plan=plan,
    knobs=(
        Knob("drafts", 4, "tokens drafted in a round at most", 1, 64),
        Knob("repeats", 0, "the same while the text repeats its last five tokens, if that is more", 0, 64),
        Knob("least", 1, "tokens of context that must be the same at least", 1, 5),
    ),
    exits=exits,
)
