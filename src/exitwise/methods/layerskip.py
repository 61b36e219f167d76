"""LayerSkip: the first layers draft with the model's own head, the others verify; what comes out is the model's own greedy text (Elhoushi
et al. 2024, arXiv:2404.16710).

A drafted token's states at the exit and its keys below it are kept, so that verification runs only the layers above, once for all drafted
tokens. The model should be trained with layer dropout and a loss at every exit (`exitwise.train.language`); an untrained one loses speed,
never exactness. Sampling accepts by Leviathan et al. 2023. Differs: drafting may stop early by the draft's certainty (`sure`), read a
short list of the vocabulary (`words`), and take what the text itself offers (`lookup`, Saxena 2023); all three are off unless they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import KnobError
from ..lm.drafting import Offers, SharedHead
from ..lm.heads import short
from ..lm.ngrams import Grams
from ..lm.plan import Decoding, Draft
from ..method import Knob, Method, Settings
from ..run.walk import Plan


def drafter(depth: int, words: int, backbone: Any, parts: Any, rows: int) -> SharedHead:
    """The first layers and the head, or the part of it that reads the first `words` of the vocabulary."""
    return SharedHead(depth, short(backbone, words) if words else backbone.readout)


def offers(lookup: int) -> Callable[..., Offers] | None:
    """Drafts from the text itself, where its last `lookup` tokens stood before; none for 0."""
    return partial(found_before, lookup) if lookup else None


def found_before(least: int, parts: Any, prompts: Sequence[Sequence[int]]) -> Grams:
    """N-grams of each row's own text, without a table."""
    return Grams(len(prompts), least=least)


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """Draft at `depth`, verify above it."""
    if "decoder" not in layers:
        raise KnobError(f"The streams are {', '.join(layers)}: this method needs a language model.")
    depth = settings["depth"]
    if depth >= layers["decoder"]:
        raise KnobError(
            f"depth={depth} leaves no layer to verify: this model has {layers['decoder']}. Allowed: 1..{layers['decoder'] - 1}."
        )
    draft = Draft(partial(drafter, depth, settings["words"]), settings["drafts"], settings["sure"], offers(settings["lookup"]))
    return Plan(decompose=False, policy="run late", decoding=Decoding(draft))


DRAFT_KNOBS = (
    Knob("sure", 0.0, "drafting stops once a drafted token's probability is below; 0: only after `drafts` tokens", 0.0, 1.0),
    Knob("words", 0, "the draft reads only the first so many words of the vocabulary; 0: all of them", 0, 10_000_000),
    Knob("lookup", 0, "tokens that must have stood in the text before for a draft to be taken from there; 0: never", 0, 5),
)

METHOD = Method(
    paper="arXiv:2404.16710",
    about="the first layers draft, the others verify: the model's own text, sooner",
    plan=plan,
    knobs=(
        Knob("depth", 4, "layers that draft", 1, 1000),
        Knob("drafts", 6, "tokens drafted in a round at most", 1, 64),
        *DRAFT_KNOBS,
    ),
)
