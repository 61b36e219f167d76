"""A recipe: every choice of a fine-tuning as one value, read from a small file in recipes/ or of one's own, any field changed by name.

A file is flat TOML: `name = value` lines, with comments that say where a value was read. The folder is the register.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from exitwise.errors import KnobError, unknown

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """How a unified model is fine-tuned. None leaves the model, or the task, as it is. A batch is the items of one update, all devices
    together; rows are those that one device takes at a time."""

    about: str = ""
    task: str | None = None  # the only task that it is for
    # what is asked and learnt
    add_caption: bool = False  # entailment is asked with the image's caption
    constrained: bool = False  # only the candidates' tokens compete
    punctuation: bool = True  # captions are learnt with it
    target_words: int | None = None  # most words learnt of a caption
    weights: str = "uniform"  # of the layers' losses
    reduction: str = "mean"  # of the layers' losses; the paper sums
    smoothing: float | None = None  # of labels; None: 0.1 for captions, 0 for answers
    drop_worst: float = 0.0  # share of the labels that each layer leaves out, those with the highest loss ...
    drop_worst_after: int = 0  # ... from this update on
    # the updates
    rows: int = 16
    batch: int | None = None  # None: the rows of all devices
    epochs: float | None = None
    lr: float = 1e-4
    schedule: str = "cosine"
    warmup_share: float | None = None  # of the updates; None: a tenth, at most 500
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    # the model
    decomposed: bool | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    drop_path: float | None = None  # share of rows that skip a layer's branch; grows from 0 at the first layer to this at the last
    freeze_embeddings: bool = False
    train_stem: bool | None = None
    lean: bool = True  # one layer's logits in memory at a time; those of all but the last are computed again
    checkpoint_layers: bool = False  # layers are computed again in the backward pass
    # captions learnt from their CIDEr (stage two)
    reward: bool = False
    reward_weights: str = "last"  # of the layers' policy gradients
    ce_weight: float = 0.0  # of the layer-wise loss beside it
    samples: int = 5  # captions of each image, each judged against the mean of the others
    search: str = "sample"  # how they are made: "sample", or "beam", the candidates of a beam search
    temperature: float = 1.0
    longest: int = 16  # tokens of a caption that is written

    def changed(self, values: Mapping[str, Any], source: str = "") -> Recipe:
        """The same with these fields, checked. source: what the values were read from. Raises KnobError and UnknownName."""
        hints = get_type_hints(Recipe)
        for name in values:
            if name not in hints:
                raise unknown("value of a recipe", name, hints)
        before = f"{source}: " if source else ""
        return replace(self, **{name: _checked(f"{before}{name}", name, hints[name], value) for name, value in values.items()})

    def accumulate(self, processes: int = 1) -> int:
        """Batches of `rows` that one device takes for an update. Raises KnobError where the batch cannot be made of them."""
        if self.batch is None:
            return 1
        times, rest = divmod(self.batch, self.rows * processes)
        if rest or not times:
            raise KnobError(
                f"A batch of {self.batch} items cannot be made of {self.rows} rows on each of {processes} devices. Give rows (--rows) so "
                f"that rows x devices divides it, or another batch (--set batch={self.rows * processes})."
            )
        return times

    def updates(self, items: int, processes: int = 1) -> int | None:
        """Steps of all epochs over so many items (texts, for captions); None where the recipe does not say."""
        per_update = self.rows * processes * self.accumulate(processes)
        return None if self.epochs is None else max(1, math.ceil(self.epochs * items / per_update))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values but `about`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items() if name != "about"}


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("smoothing", "drop_worst", "warmup_share", "dropout", "attention_dropout", "drop_path"), (0, 0.99)),
    **dict.fromkeys(("rows", "batch", "target_words"), (1, math.inf)),
    **dict.fromkeys(("drop_worst_after", "ce_weight"), (0, math.inf)),
    "lr": (1e-12, 1), "betas": (0, 0.999999), "weight_decay": (0, 1), "clip": (1e-9, math.inf), "epochs": (1e-9, math.inf),
    "samples": (2, 1000), "temperature": (1e-3, 100), "longest": (2, 1000),
}  # fmt: skip
CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("caption", "answer"), "weights": ("uniform", "linear", "avg+last", "last"), "reduction": ("sum", "mean"),
    "reward_weights": ("uniform", "linear", "avg+last", "last"), "schedule": ("cosine", "linear"), "search": ("sample", "beam"),
}  # fmt: skip


def names() -> list[str]:
    """The recipes that come with the package, by name."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """The recipe of this name, or in this file (*.toml). Raises UnknownName and KnobError, with file and line."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not file.is_file():
        if name.endswith(".toml"):
            raise KnobError(f"There is no recipe {file}. Give a file, or one of {', '.join(names())}.")
        raise unknown("recipe", name, names())
    return Recipe().changed(parse(file), file.name)


def parse(file: Path) -> dict[str, Any]:
    """The values of a flat TOML file (Python 3.10 reads none itself). Raises KnobError for what is not flat, with file and line."""
    found: dict[str, Any] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        name, equals, rest = (part.strip() for part in line.partition("="))
        if not line.strip() or name.startswith("#"):
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError:
            end, value = 0, None
        if not equals or not end or rest[end:].strip()[:1] not in ("", "#"):
            raise KnobError(f'{file.name}:{number}: {line.strip()!r} is not `name = value` with a number, true, false, "text" or [list].')
        if name in found:
            raise KnobError(f"{file.name}:{number}: {name} is given twice. Leave one of them out.")
        found[name] = value
    return found


def _checked(said: str, name: str, hint: Any, value: Any) -> Any:
    """The value as the field's type has it. Raises KnobError that begins with `said`."""
    allowed = [kind for kind in (get_args(hint) if get_origin(hint) is not tuple else (hint,)) if kind is not NoneType] or [hint]
    if value is None and NoneType in get_args(hint):
        return None
    kind = allowed[0]
    if get_origin(kind) is tuple:
        whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(_number(each) for each in value)
        value = tuple(map(float, value)) if whole else value
    elif kind is float:
        whole = _number(value)
        value = float(value) if whole else value
    else:
        whole = type(value) is kind
    if not whole:
        raise KnobError(f"{said} is {value!r}. It must be {'two numbers' if get_origin(kind) is tuple else kind.__name__}.")
    if name in CHOICES and value not in CHOICES[name]:
        raise KnobError(f"{said} is {value!r}. Allowed: {', '.join(CHOICES[name])}.")
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if name in RANGES and not all(low <= each <= high for each in (value if isinstance(value, tuple) else (value,))):
        raise KnobError(f"{said} is {value!r}. Allowed: {low:g} to {high:g}.")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


assert {*RANGES, *CHOICES} <= {each.name for each in fields(Recipe)}
