"""What can leave where in a model, how soon its states settle, whether walking it is the model itself: what `exitwise inspect` prints."""

from __future__ import annotations

import inspect as signatures
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import families
from .criteria import Drawn, Fixed
from .engine import Engine
from .errors import FamilyError, InputError
from .method import Method
from .run.cache import lengths
from .run.walk import Plan
from .stack import Family, Stack

STEPS = 4
GUIDE = "docs/adding-a-family.md"


@dataclass(frozen=True)
class StackReport:
    """One stack: where it is, who walks it, how big it is. leaves: in words, what can leave where."""

    path: str
    kind: str
    streams: tuple[str, ...]
    layers: int
    parameters: int
    layer: str
    leaves: str


@dataclass(frozen=True)
class Report:
    """What was found in a model. source: the file's name, 'discovered' or 'given'. readout: whether any layer's state can be read out."""

    model: str
    family: str
    parameters: int
    stacks: tuple[StackReport, ...]
    readout: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One part of the self-test. figure: what was measured, in words with its number."""

    name: str
    passed: bool
    figure: str


def inspect(model: nn.Module, family: Family | None = None) -> Report:
    """The stacks and streams of a model. Raises FamilyError where nothing looks like a stack."""
    name, found = ("given", family) if family is not None else families.of(model)
    stacks = []
    for stack in found.stacks_of(model):
        layers = stack.layers(model)
        size = sum(p.numel() for p in layers.parameters())
        report = StackReport(
            stack.path, stack.kind, stack.streams, len(layers), size, type(layers[0]).__name__, _leaves(stack, len(layers))
        )
        stacks.append(report)
    return Report(type(model).__name__, name, sum(p.numel() for p in model.parameters()), tuple(stacks), found.readout is not None)


def _leaves(stack: Stack, layers: int) -> str:
    where = f"after any of layers 1..{layers}"
    if stack.kind == "decoder":
        return f"each token of each row, {where}"
    if len(stack.streams) > 1 and stack.spans is not None:
        return f"{' and '.join(stack.streams)} of each row, apart from each other, {where}"
    return f"each row, {where}"


# -- inputs -----------------------------------------------------------------------------------------------------------------------


def example_inputs(model: nn.Module, rows: int = 2) -> dict[str, Tensor]:
    """A padded batch of noise and random words, made from the model's configuration. Raises InputError if that does not say enough."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise InputError(
            f"{type(model).__name__} has no `config` to make inputs from. Pass `inputs`, a dict of what the model is called with."
        )
    wanted = _wanted(model)
    dice = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    if "pixel_values" in wanted:
        made["pixel_values"] = torch.randn(rows, *_picture(config), generator=dice)
    if "input_features" in wanted:
        made["input_features"] = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=dice)
    if "input_ids" in wanted:
        made |= _words(model, config, rows, made.get("pixel_values"), dice)
    if not made:
        raise InputError(f"{type(model).__name__} wants {', '.join(sorted(wanted))}, which cannot be guessed. Pass `inputs`.")
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {n: v.to(device, kind) if v.is_floating_point() else v.to(device) for n, v in made.items()}


def _wanted(model: Any) -> set[str]:
    """Names of the inputs that must be given: the main one, those without a default, and pixels wherever the model takes them."""
    wanted = {getattr(model, "main_input_name", "input_ids")}
    for function in (model.generate, model.forward) if _writes(model) else (model.forward,):
        parameters = signatures.signature(function).parameters.values()
        wanted |= {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        wanted |= {p.name for p in parameters if p.name == "pixel_values"}
    return wanted


def _picture(config: Any) -> tuple[int, int, int]:
    """(channels, height, width)."""
    grids, stride = getattr(config, "image_grids", None), getattr(config, "stem_stride", None)
    if grids and stride:
        return 3, grids[0][0] * stride, grids[0][1] * stride
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    if hasattr(vision, "patch_stride"):  # any size will do: four cells a side
        size = 4 * math.prod(vision.patch_stride)
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(vision, "num_channels", None) or 3, height, width


def _words(model: Any, config: Any, rows: int, pixels: Tensor | None, dice: torch.Generator) -> dict[str, Tensor]:
    """Twelve random words a row, the last row padded on the right; where the model wants them, placeholders for the image come first."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    pad = next((p for p in (getattr(text, "pad_token_id", None), getattr(config, "pad_token_id", None)) if p is not None), 0)
    ids = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (rows, 12), generator=dice)
    image = getattr(config, "image_token_id", None)
    if image is not None:
        ids = torch.where(ids == image, ids - 1, ids)
        if pixels is not None:
            with torch.no_grad():
                features = model.get_image_features(pixels.to(next(model.parameters())))
            count = features.pooler_output.shape[1] if hasattr(features, "pooler_output") else features.shape[1]
            ids = torch.cat([ids.new_full((rows, count), image), ids], 1)
    mask = torch.ones_like(ids)
    ids[-1, -4:], mask[-1, -4:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


# -- running ----------------------------------------------------------------------------------------------------------------------


def _writes(model: Any) -> bool:
    return bool(getattr(model, "can_generate", lambda: False)())


def answer(model: Any, inputs: Mapping[str, Any], tokens: Tensor | None = None) -> Tensor:
    """What a model says, without gradients: logits of a few greedy steps (rows, steps, vocabulary), or those of its forward.

    tokens: (rows, steps) ids that it is made to write instead of its own, so that two runs can be compared.
    """
    with torch.no_grad():
        if not _writes(model):
            out = model(**inputs)
            found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
            return found if isinstance(found, Tensor) else next(v for v in _parts(out) if isinstance(v, Tensor))
        more: dict[str, Any] = {"num_beams": 1, "do_sample": False, "max_new_tokens": STEPS, "return_dict_in_generate": True}
        if tokens is not None:
            ahead: list[int] = []

            def allowed(row: int, ids: Tensor) -> list[int]:
                ahead.append(ids.shape[0])
                return [int(tokens[row % len(tokens), min(ids.shape[0] - ahead[0], tokens.shape[1] - 1)])]

            more |= {"prefix_allowed_tokens_fn": allowed, "min_new_tokens": STEPS}
        return torch.stack(model.generate(**inputs, output_logits=True, **more).logits, 1)


def _parts(out: Any) -> list[Any]:
    return list(out.values()) if hasattr(out, "values") else list(out)


def saturation(model: nn.Module, inputs: Mapping[str, Any] | None = None, family: Family | None = None) -> dict[str, list[float]]:
    """stream -> mean cosine of the states before and after each layer, 1 where nothing moves; streams that share a stack walk apart."""
    engine = Engine(model, "mue", family)
    given = example_inputs(model) if inputs is None else inputs
    with engine.attached(record=True) as session:
        answer(model, given)
    found = session.trace.sureness
    return {s: [float(v) for v in found[s].reshape(-1, n).nanmean(0)] for s, n in engine.layers.items() if s in found}


# -- the self-test ----------------------------------------------------------------------------------------------------------------


class _Bench:
    """One model under test, with its inputs and what it says untouched."""

    def __init__(self, model: nn.Module, family: Family, inputs: Mapping[str, Any]) -> None:
        self.model, self.family, self.inputs = model, family, inputs
        self.rows = next(len(v) for v in inputs.values() if isinstance(v, Tensor))
        self.stacks = family.stacks_of(model)
        config: Any = getattr(model, "config", None)
        self.tokens: Tensor | None = None
        if _writes(model):
            text = config.get_text_config()
            self.tokens = torch.randint(
                min(5, text.vocab_size - 1), text.vocab_size, (self.rows, STEPS), generator=torch.Generator().manual_seed(1)
            )

    def engine(self, shallow: bool, policy: str = "propagate") -> Engine:
        """Exits at drawn depths in every decoder, after the first layer in encoders; or, not `shallow`, at full depth."""
        rules: dict[str, Any] = {}
        for stack in self.stacks if shallow else ():
            depth = len(stack.layers(self.model))
            rules |= {s: Drawn((1.0,) * depth) if stack.kind == "decoder" else Fixed(max(1, depth // 2)) for s in stack.streams}
        plan = Plan(rules, decompose=False, policy=policy)
        return Engine(self.model, Method("none: a self-test", "drawn depths", lambda settings, layers: plan), self.family)

    def watch(self, see: Callable[[Stack, int, Any], None]) -> Callable[[], None]:
        """Have `see` told (stack, layer from 0, state) at each real call; returns what ends it."""
        hooks = []
        for stack in self.stacks:
            for index, layer in enumerate(stack.layers(self.model)):

                def tell(_: Any, __: Any, out: Any, stack: Stack = stack, index: int = index) -> None:
                    see(stack, index, out[0] if isinstance(out, tuple) else out)

                hooks.append(layer.register_forward_hook(tell))

        def done() -> None:
            for hook in hooks:
                hook.remove()

        return done


def _identity(bench: _Bench) -> tuple[bool, str]:
    want = answer(bench.model, bench.inputs)
    with bench.engine(shallow=False).attached() as session:
        got = answer(bench.model, bench.inputs)
    still = [s.path for s in bench.stacks if not session.trace.calls.get(s.path)]
    if still:
        return False, f"no layer of {', '.join(still)} was walked"
    if got.shape != want.shape:
        return False, f"outputs of shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    return torch.equal(got, want), f"largest difference {float((got - want).abs().max()):g} over {want.numel()} outputs"


def _calls(bench: _Bench) -> tuple[bool, str]:
    seen: dict[str, int] = {}

    def see(stack: Stack, index: int, state: Any) -> None:
        seen[stack.path] = seen.get(stack.path, 0) + 1

    done = bench.watch(see)
    try:
        with bench.engine(shallow=True, policy="run late").attached() as session:
            answer(bench.model, bench.inputs)
    finally:
        done()
    traced = session.trace.calls
    return seen == traced, f"{sum(seen.values())} counted by hooks, {sum(traced.values())} in the trace, exits at drawn depths"


def _keys_values(bench: _Bench) -> tuple[bool, str] | None:
    stack = next((s for s in bench.stacks if s.kind == "decoder"), None)
    if stack is None or bench.tokens is None:
        return None
    caches: list[Any] = []
    hook = stack.owner_module(bench.model).register_forward_hook(lambda _m, _a, out: caches.append(getattr(out, "past_key_values", None)))
    try:
        with bench.engine(shallow=True).attached() as session:
            answer(bench.model, bench.inputs, bench.tokens)
    finally:
        hook.remove()
    held = lengths(caches[-1]) if caches else []
    if not held:
        return True, "no cache: every step runs all its tokens"
    depth = session.trace.depth[stack.streams[0]]
    columns = (
        torch.arange(depth.shape[1]) + max(held[0]) - depth.shape[1] + 1
    )  # tokens so far at each step; the first may be a whole prompt
    want = [[int(torch.where(d > layer, columns, 0).max()) for d in depth] for layer in range(len(held))]
    return held == want, f"lengths {held[0][0]}..{held[-1][0]} over the layers of the first row, wanted {want[0][0]}..{want[-1][0]}"


def _exact(bench: _Bench) -> tuple[bool, str] | None:
    if bench.tokens is None or all(s.kind != "decoder" for s in bench.stacks):
        return None
    said = []
    for policy in ("run late", "recompute"):
        with bench.engine(shallow=True, policy=policy).attached():
            said.append(answer(bench.model, bench.inputs, bench.tokens))
    apart = float((said[0] - said[1]).abs().max() / said[0].abs().max().clamp(min=1e-6))
    return apart < 1e-3, f"'run late' and 'recompute' differ by {apart:.1e} of the largest logit at the same drawn depths"


def _readout(bench: _Bench) -> tuple[bool, str] | None:
    if bench.family.readout is None:
        return None
    chosen = next((s for s in bench.stacks if s.kind == "decoder"), bench.stacks[-1])
    last: list[Tensor] = []

    def see(stack: Stack, index: int, state: Any) -> None:
        if stack is chosen and index == len(stack.layers(bench.model)) - 1:
            last.append(state)

    done = bench.watch(see)
    try:
        want = answer(bench.model, bench.inputs, bench.tokens)
    finally:
        done()
    with torch.no_grad():
        got = bench.family.readout(bench.model, last[-1])
    if bench.tokens is not None:
        got, want = got[:, -1], want[:, -1]
    return torch.equal(got, want.to(got)), f"largest difference {float((got - want).abs().max()):g} from the model's own logits"


def _restored(bench: _Bench) -> tuple[bool, str]:
    def makeup() -> list[tuple[Any, ...]]:
        return [(n, type(m), tuple(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in bench.model.named_modules()]

    before = makeup()
    with bench.engine(shallow=True, policy="run late").attached():
        answer(bench.model, bench.inputs)
    return makeup() == before, f"types, attributes and hooks of {len(before)} modules afterwards"


CHECKS: dict[str, Callable[[_Bench], tuple[bool, str] | None]] = {
    "identity at full depth": _identity,
    "layer calls": _calls,
    "keys and values": _keys_values,
    "exact states": _exact,
    "read-out": _readout,
    "restored": _restored,
}


def check(model: nn.Module, inputs: Mapping[str, Any] | None = None, family: Family | None = None) -> list[Check]:
    """The self-test of this model with this version of its library; a part that raises has failed. Parts that do not apply are left out.

    inputs: what the model is called with; by default noise and random words (`example_inputs`). The model is used in evaluation mode.
    """
    found = family if family is not None else families.of(model)[1]
    given = example_inputs(model) if inputs is None else inputs
    training = model.training
    model.eval()
    results = []
    try:
        bench = _Bench(model, found, given)
        for name, part in CHECKS.items():
            try:
                outcome = part(bench)
            except Exception as problem:  # whatever a foreign model raises is the result of the test
                outcome = False, f"{type(problem).__name__}: {problem}"
            if outcome is not None:
                results.append(Check(name, *outcome))
    finally:
        model.train(training)
    return results


def require(model: nn.Module, inputs: Mapping[str, Any] | None = None, family: Family | None = None) -> list[Check]:
    """`check`, but raises FamilyError if any part failed, with what to do about it."""
    results = check(model, inputs, family)
    failed = [c for c in results if not c.passed]
    if failed:
        name = "given" if family is not None else families.of(model)[0]
        found = "; ".join(f"{c.name}: {c.figure}" for c in failed)
        raise FamilyError(
            f"The stacks of {type(model).__name__} ({name}) fail the self-test ({found}). "
            f"Write a family that says where its layers are, who loops over them and how a state is read out ({GUIDE}), "
            "and pass it as Engine(model, family=...)."
        )
    return results
