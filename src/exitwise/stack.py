"""A model seen as stacks of layers: what a family file must say, and how a stack is found in a model that no file describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from .errors import FamilyError

Spans = dict[str, tuple[int, int]]
CACHES = ("past_key_values", "layer_past")


@dataclass(frozen=True)
class Stack:
    """One stack of layers.

    path: dotted path of the ModuleList. kind: 'encoder' (rows leave once) or 'decoder' (rows leave at every step; keys and values
    are kept).
    streams: names of the tokens that walk here; more than one name means that they walk together, in this order on the token axis.
    spans: for several streams, (model, state's number of tokens, listened arguments) -> stream -> (first, past the last) token.
    owner: dotted path of the module whose forward loops over the layers; the ModuleList's parent unless said otherwise.
    token_mask: name of the owner's argument that holds the (rows, tokens) mask of real tokens.
    cross: names of a layer's arguments that hold the other side (never cut by tokens).
    fresh_bias: the first layer makes a bias for the deeper ones (T5), so late runs start at the first layer.
    listen: dotted paths of modules whose last call `spans` needs: it finds the positional arguments of that call under the path.
    shared: names of a layer's arguments that have no dimension of rows, such as a causal mask (tokens, tokens); they are passed on whole.
    cache: name of a layer's argument that holds the cache of keys and values.
    order: for an encoder that calls a layer more than once (ALBERT): model -> number of the layer that runs at each depth, from 0.
    """

    path: str
    kind: Literal["encoder", "decoder"]
    streams: tuple[str, ...]
    spans: Callable[[nn.Module, int, Mapping[str, Any]], Spans] | None = None
    owner: str | None = None
    token_mask: str = "attention_mask"
    cross: tuple[str, ...] = ("encoder_hidden_states", "encoder_attention_mask")
    fresh_bias: bool = False
    listen: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    cache: str = CACHES[0]
    order: Callable[[Any], Sequence[int]] | None = None

    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """The layers in the order in which they run, one for each depth: the ModuleList itself, if `order` does not say otherwise."""
        found = reach(model, self.path)
        if not isinstance(found, nn.ModuleList):
            raise FamilyError(f"{self.path} of {type(model).__name__} is a {type(found).__name__}, not a list of layers.")
        if len({id(layer) for layer in found}) < len(found):
            raise FamilyError(
                f"Layers of {self.path} in {type(model).__name__} are one and the same module: their depth cannot be told apart."
            )
        return cast(Sequence[nn.Module], found) if self.order is None else [found[i] for i in self.order(model)]

    def owner_module(self, model: nn.Module) -> nn.Module:
        """The module whose forward loops over the layers."""
        found = reach(model, self.owner if self.owner is not None else self.path.rpartition(".")[0])
        if not isinstance(found, nn.Module):
            raise FamilyError(f"The owner of {self.path} in {type(model).__name__} is a {type(found).__name__}, not a module.")
        return found


@dataclass(frozen=True)
class Cross:
    """How the layers of an encoder-decoder's decoder look at what its encoder gave.

    keys: (model, number of a layer, encoder's states (rows, tokens, width)) -> keys and values (rows, heads, tokens, width of a head).
    aids: (model, `lm.source.Source`, positions (rows or 1, tokens), rows or None for all) -> (number of a layer -> further arguments of
    its call that hang on the encoder's output); None: its states and its mask, under the names that `transformers` has for them. masked:
    whether the encoder's padding is hidden from it.
    """

    keys: Callable[[Any, int, Tensor], tuple[Tensor, Tensor]]
    aids: Callable[[Any, Any, Tensor, Tensor | None], Callable[[int], dict[str, Any]]] | None = None
    masked: bool = True


@dataclass(frozen=True)
class Language:
    """A decoder that writes, as the decode loop of `exitwise.lm` enters it: what happens before, between and after the layers.

    embed: (model, ids (rows, tokens), positions (rows, tokens)) -> states (rows, tokens, width), scaled and with positions added where the
    model does that. aids: (model, states, positions) -> (number of a layer -> further arguments of its call, such as rotary tables), made
    once for all layers of a pass. window: (model, number of a layer) -> how many tokens back it looks, the own one included; None: all.
    norm: dotted path of the norm before the head; None where there is none, or where more than a norm stands there. cross: of an
    encoder-decoder, how its decoder looks at the encoder's output; None: there is no encoder.
    """

    embed: Callable[[Any, Tensor, Tensor], Tensor]
    aids: Callable[[Any, Tensor, Tensor], Callable[[int], dict[str, Any]]]
    window: Callable[[Any, int], int | None] | None = None
    norm: str | None = None
    cross: Cross | None = None


@dataclass(frozen=True)
class Family:
    """A kind of model, as data: which `config.model_type`s (or class names) it covers, its stacks, and how a state is read out.

    readout: (model, state (rows, tokens, width)) -> logits, exact for the last layer's state; None where there is no head to share.
    head: dotted path of the output head, to count its calls; None: the classifier, or what the model's `get_output_embeddings` gives.
    classifier: dotted path of the module whose output is the logits (rows, classes) of a classifier: there the heads of exits answer for
    rows that left early. A model that does not have it takes no exits with heads.
    ends: model -> ids of the tokens after which its own `generate` stops a row; None takes the generation config's.
    language: how the decoder is entered by the decode loop of `exitwise.lm`; None: it decodes by the walk.
    about: the classes it covers, for `exitwise families`. tiny: () -> (a random tiny model, one batch of two rows), for tests.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...] | Callable[[nn.Module], tuple[Stack, ...]]
    readout: Callable[[Any, Tensor], Tensor] | None = None
    classes: tuple[str, ...] = ()
    about: str = ""
    tiny: Callable[[], tuple[nn.Module, dict[str, Any]]] | None = None
    head: str | None = None
    ends: Callable[[Any], frozenset[int]] | None = None
    classifier: str | None = None
    language: Language | None = None

    def stacks_of(self, model: nn.Module) -> tuple[Stack, ...]:
        """The stacks of this very model."""
        found = self.stacks(model) if callable(self.stacks) else self.stacks
        return tuple(s for s in found if _holds(model, s.path))

    def classifier_of(self, model: nn.Module) -> nn.Module | None:
        """The classifier's module, if this very model has it."""
        found = _found(model, self.classifier) if self.classifier is not None else None
        return found if isinstance(found, nn.Module) else None

    def fits(self, model: nn.Module) -> bool:
        """Whether this file describes the model."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        name = type(model).__name__
        return (kind in self.model_types and (not self.classes or name in self.classes)) or (kind is None and name in self.classes)


def reach(model: Any, path: str) -> Any:
    """The attribute at a dotted path; '' is the model itself. Raises FamilyError that names the first part that is missing."""
    found = model
    for part in path.split(".") if path else ():
        try:
            found = found[int(part)] if part.isdigit() and isinstance(found, nn.ModuleList) else getattr(found, part)
        except (AttributeError, IndexError):
            raise FamilyError(f"{type(model).__name__} has no {path!r}: {part!r} is missing in {type(found).__name__}.") from None
    return found


def _found(model: nn.Module, path: str) -> Any:
    try:
        return reach(model, path)
    except FamilyError:
        return None


def _holds(model: nn.Module, path: str) -> bool:
    found = _found(model, path)
    return found is not None and len(found) > 0


def towers(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every ModuleList of two or more layers of one class that are not nested in another such list: candidates for a stack."""
    taken: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or any(name.startswith(t + ".") for t in taken):
            continue
        if len({type(m) for m in module}) == 1 and any(True for _ in module[0].children()):
            taken.append(name)
            yield name, module


def _arguments(layer: nn.Module) -> set[str]:
    return set(inspect.signature(inspect.unwrap(type(layer).forward)).parameters)


def _owner(model: nn.Module, path: str) -> str:
    """The nearest module above a stack that is called with inputs, so that it knows which tokens are real; else the ModuleList's parent."""
    parent = path.rpartition(".")[0]
    above = parent
    while True:
        if _arguments(reach(model, above)) & {"input_ids", "inputs_embeds", "pixel_values", "input_features"}:
            return above
        if not above:
            return parent
        above = above.rpartition(".")[0]


def discover(model: nn.Module) -> Family:
    """A family guessed from the structure; `inspect.require` (`exitwise inspect --check`) holds it to the self-test.

    A stack whose layers hold a cross attention, or that lies below a module called '*decoder*', is a decoder; so is one of a model that
    generates, if its layers take a cache and do not lie below an '*encoder*'. Raises FamilyError if nothing
    that looks like a stack is there.
    """
    stacks: list[Stack] = []
    writes = bool(getattr(model, "can_generate", lambda: False)())
    for path, layers in towers(model):
        names = {n.rpartition(".")[2].lower() for n, _ in layers[0].named_modules()}
        crossed = any("cross" in n or n in ("encoder_attn", "encdecattention") for n in names)
        held = next((name for name in CACHES if name in _arguments(layers[0])), None)
        crossed = crossed or (writes and "encoder" not in path.lower() and held is not None)
        kind: Literal["encoder", "decoder"] = "decoder" if crossed or "decoder" in path.lower() else "encoder"
        taken = {s.streams[0] for s in stacks}
        base = "decoder" if kind == "decoder" else "image" if any(w in path.lower() for w in ("vis", "image", "patch")) else "text"
        stream = base if base not in taken else path.replace(".", "_")
        stacks.append(Stack(path, kind, (stream,), owner=_owner(model, path), cache=held or CACHES[0]))
    if not stacks:
        raise FamilyError(
            f"No stack of layers was found in {type(model).__name__}: no ModuleList holds two or more layers of one class. "
            "Write a family in code (docs/adding-a-family.md) and pass it as Engine(model, family=...)."
        )
    return Family((), tuple(stacks), about=f"discovered in {type(model).__name__}")
