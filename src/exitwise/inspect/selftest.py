"""The self-test: is walking this model, with this version of its library, the model itself?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import families
from ..criteria import Drawn, Fixed
from ..engine import Engine
from ..errors import FamilyError
from ..method import Method
from ..run.cache import lengths
from ..run.walk import Plan
from ..stack import Family, Stack
from .inputs import STEPS, answer, example_inputs, writes

GUIDE = "docs/adding-a-family.md"


@dataclass(frozen=True)
class Check:
    """One part of the self-test. figure: what was measured, in words with its number."""

    name: str
    passed: bool
    figure: str


class _Bench:
    """One model under test, with its inputs and what it says untouched."""

    def __init__(self, model: nn.Module, family: Family, inputs: Mapping[str, Any]) -> None:
        self.model, self.family, self.inputs = model, family, inputs
        self.rows = next(len(v) for v in inputs.values() if isinstance(v, Tensor))
        self.stacks = family.stacks_of(model)
        config: Any = getattr(model, "config", None)
        self.tokens: Tensor | None = None
        if writes(model):
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
            for layer, index in {
                layer: place for place, layer in enumerate(stack.layers(self.model))
            }.items():  # a shared layer: its last place

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
