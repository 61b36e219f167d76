"""Heads for exits: small trained read-outs, one after each layer but the last, kept beside a model and never in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError, KnobError

EXITS_FILE = "exits.safetensors"


@dataclass(frozen=True)
class Shape:
    """What exits must fit. width: of a state. classes: of an answer; 0 where the model's own head reads it out. layers: of the stack."""

    width: int
    classes: int
    layers: int


class Said(NamedTuple):
    """What is read at an exit. feature: (rows, width) the state that an answer is made of. logits: (rows, classes)."""

    feature: Tensor
    logits: Tensor


READS = ("first", "mean")


@dataclass(frozen=True)
class Mean:
    """A place among tokens: the mean of all real ones of each row. mask: (rows, tokens), 0 at pads; None: no pads."""

    mask: Tensor | None


Place = int | Tensor | Mean


def state_at(state: Tensor, place: Place) -> Tensor:
    """(rows, width) of (rows, tokens, width): the token at this place, the same for all rows or one of each, or their mean.

    >>> state = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> float(state_at(state, 1)), float(state_at(state, Mean(torch.tensor([[1, 1, 0]]))))
    (3.0, 2.0)
    """
    if isinstance(place, int):
        return state[:, place]
    if isinstance(place, Mean):
        if place.mask is None:
            return state.mean(1)
        real = place.mask.to(state)[..., None]
        return (state * real).sum(1) / real.sum(1).clamp(min=1)
    return state[torch.arange(len(place), device=state.device), place]


class Head(nn.Module):
    """The off-ramp of one exit: tanh(W t + b) of the state t of one token, then a linear layer (Xin et al. 2020, arXiv:2004.12993)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.pool, self.out = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, shape.classes)

    def forward(self, token: Tensor) -> Said:
        feature = torch.tanh(self.pool(token.to(self.pool.weight.dtype)))
        return Said(feature, self.out(feature))


class Ramps(nn.Module):
    """Off-ramps of a decoder: what the model's own head is given instead of the state that leaves after each of the layers 1..n-1.

    An affine map of the state, added to it, for each layer; nothing at first, so that untrained ramps are the model's own reading. A kind
    of its own (of a method's file) has the same `forward`; memory: what it noted about these rows at earlier layers, each (rows, ...).
    depths: of a kind of its own that speaks at some depths only, those.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nothing(shape.width, shape.width) for _ in range(shape.layers - 1))

    def forward(self, layer: int, token: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """(rows, width) of (rows, width) after `layer` (1..n-1)."""
        moved: Tensor = self.maps[layer - 1](token.float())  # trained parts are float32
        return token + moved.to(token)


def nothing(given: int, out: int) -> nn.Linear:
    """A linear layer that says 0 until it is trained."""
    layer = nn.Linear(given, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


RAMPS = "ramps"


class Exits(nn.Module):
    """All that was trained for the exits of one stack.

    heads: one `Head` for each of the depths 1..n-1, or none (then the model's own read-out answers at every depth); depth n is always the
    model's own. parts: what a method needs besides, by name; one called 'ramps' speaks for a decoder (see `Ramps`). made_by: the name of
    the method whose file builds this kind. about: what its `exits` is given besides the shape to build them again, as JSON has it.
    reads: what an encoder's exits are made of: 'first', the first token's state, as the papers have it; or 'mean', that of all tokens, for
    encoders whose first token says little until late (those that were trained to be averaged).
    """

    def __init__(self, shape: Shape, heads: bool = True, **parts: nn.Module) -> None:
        super().__init__()
        if heads and (shape.classes < 1 or shape.layers < 2):
            raise KnobError(
                f"Heads answer in a classifier's classes after each layer but the last; this model has {shape.classes} classes and "
                f"{shape.layers} layers. They need one class and two layers at least: use a method that needs no heads."
            )
        self.shape, self.made_by = shape, ""
        self.about: dict[str, Any] = {}
        self.reads = READS[0]
        self.heads = nn.ModuleList(Head(shape) for _ in range(shape.layers - 1 if heads else 0))
        self.parts = nn.ModuleDict(parts)

    @property
    def ramps(self) -> nn.Module | None:
        """What speaks for a decoder's exits; None where the model's own head reads its states as they are."""
        return self.parts[RAMPS] if RAMPS in self.parts else None  # noqa: SIM401 - a ModuleDict's own `get` is not typed

    def place(self, mask: Tensor | None) -> Place:
        """Where an encoder's exits read. mask: (rows, tokens), 0 at pads."""
        return Mean(mask) if self.reads == READS[1] else 0

    @property
    def depths(self) -> tuple[int, ...] | None:
        """The depths at which ramps speak; None: at all, or there are none."""
        return getattr(self.ramps, "depths", None)


def heads_or_ramps(shape: Shape) -> Exits:
    """A head after each layer but the last of a classifier; ramps for a decoder."""
    return Exits(shape) if shape.classes else Exits(shape, heads=False, ramps=Ramps(shape))


def save(exits: Exits, folder: Path, base: dict[str, Any]) -> Path:
    """Write the exits (never the base) to `folder`/exits.safetensors, with their shape, their maker and the base's fingerprint.

    Raises CheckpointError for exits that do not name their maker, and so could not be built again.
    """
    if not exits.made_by:
        raise CheckpointError("These exits do not say which method builds their kind. Set `made_by` to its name (`fresh_exits` does).")
    path = folder / EXITS_FILE
    about = {
        "shape": json.dumps(asdict(exits.shape)), "made_by": exits.made_by, "base": json.dumps(base), "about": json.dumps(exits.about),
        "reads": exits.reads,
    }  # fmt: skip
    part = path.with_name(path.name + ".part")
    save_file({name: value.detach().contiguous() for name, value in exits.state_dict().items()}, part, metadata=about)
    part.replace(path)
    return path


@dataclass(frozen=True)
class Saved:
    """What a file of exits says: see `save`."""

    path: Path
    shape: Shape
    made_by: str
    base: dict[str, Any]
    weights: dict[str, Tensor]
    about: dict[str, Any]
    reads: str = READS[0]

    def into(self, exits: Exits) -> Exits:
        """Fill in exits of the same kind. Raises CheckpointError if these weights are not theirs."""
        try:
            exits.load_state_dict(self.weights)
        except RuntimeError as problem:
            raise CheckpointError(f"{self.path} does not fit exits of {self.made_by!r} ({problem}). Train and save them again.") from None
        exits.made_by, exits.reads = self.made_by, self.reads
        return exits


def _known(reads: str | None) -> str:
    """What a file says that its exits read. Raises KeyError for what nothing here reads."""
    return {each: each for each in READS}[reads or READS[0]]


def read(folder: Path) -> Saved:
    """The file of exits in a folder. Raises CheckpointError where there is none or it is damaged."""
    path = folder / EXITS_FILE
    try:
        with safe_open(path, "pt") as opened:
            about = opened.metadata()
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        more = json.loads(about.get("about", "{}"))
        return Saved(
            path,
            Shape(**json.loads(about["shape"])),
            about["made_by"],
            json.loads(about["base"]),
            weights,
            more,
            _known(about.get("reads")),
        )
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there, but the exits saved beside it need it. Copy both files, or train again.") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as problem:
        raise CheckpointError(f"{path} is damaged ({problem!r}). Train the exits and save them again.") from None
