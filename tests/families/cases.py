"""What the contract tests of families share: the tiny models, forced tokens, forced depths, and a look at what a model is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitwise import Method, families
from exitwise.families import bert, blip, gemma, opt, qwen
from exitwise.run.walk import Plan

STEPS = 8
CASES: dict[str, tuple[str, Callable[[], tuple[Any, dict[str, Any]]]]] = {
    **{name: (name, families.load(name).tiny) for name in families.names()},
    "blip-question": ("blip", blip.tiny_question),
    "bert-masked": ("bert", bert.tiny_masked),
    "gemma-1": ("gemma", gemma.tiny_one),
    "gemma-2": ("gemma", gemma.tiny_two),
    "opt-projected": ("opt", opt.tiny_projected),
    "qwen-3": ("qwen", qwen.tiny_three),
}  # type: ignore[dict-item]


def made(case: str) -> tuple[Any, dict[str, Any]]:
    """The tiny model of a case, the same every time."""
    torch.manual_seed(0)
    return CASES[case][1]()


def writes(case: str) -> bool:
    """Whether the case's model has a decoder."""
    return bool(getattr(made(case)[0], "can_generate", lambda: False)())


WRITERS = [case for case in CASES if writes(case)]
READERS = [case for case in CASES if case not in WRITERS]


def more_rows(inputs: Mapping[str, Tensor], copies: int = 3) -> dict[str, Tensor]:
    """`copies` times as many rows, all different: words are moved on by some places, pixels get noise, masks stay."""
    out = {}
    noise = torch.Generator().manual_seed(1)
    for name, value in inputs.items():
        parts = [value]
        for copy in range(1, copies):
            if value.is_floating_point():
                parts.append(value + torch.randn(value.shape, generator=noise))
            elif name == "input_ids":
                parts.append(torch.where((value >= 5) & (value < 95), (value - 5 + 17 * copy) % 90 + 5, value))
            else:
                parts.append(value)
        out[name] = torch.cat(parts)
    return out


def alone(inputs: Mapping[str, Tensor], row: int, strip: bool) -> dict[str, Tensor]:
    """One row of a batch; without its padding if `strip`."""
    out = {name: value[row : row + 1] for name, value in inputs.items()}
    if strip and "attention_mask" in out:
        real = out["attention_mask"][0].bool()
        out |= {name: out[name][:, real] for name in ("input_ids", "attention_mask")}
    return out


def forced_tokens(rows: int, steps: int = STEPS) -> Tensor:
    """(rows, steps) ids that a model is made to write."""
    return torch.randint(5, 90, (rows, steps), generator=torch.Generator().manual_seed(2))


def write(model: Any, inputs: Mapping[str, Any], forced: Tensor | None = None, **more: Any) -> Any:
    """`generate` with its logits; with `forced`, these tokens are written whatever the model would say."""
    if forced is not None:
        start = prompt(model, inputs)
        more["prefix_allowed_tokens_fn"] = lambda row, ids: [int(forced[row % len(forced), ids.shape[0] - start])]
    else:
        more = {"no_repeat_ngram_size": 1, **more}
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **more)


def prompt(model: Any, inputs: Mapping[str, Any]) -> int:
    """Tokens that the decoder begins with: the prompt's of a model that has nothing but a decoder, one in all others."""
    alone = all(stack.kind == "decoder" for stack in families.of(model)[1].stacks_of(model))
    return inputs["input_ids"].shape[1] if alone else 1


def logits(model: Any, inputs: Mapping[str, Any], forced: Tensor | None = None) -> Tensor:
    """(rows, steps, vocabulary) or (rows, classes): what the model says."""
    if model_writes(model):
        return torch.stack(write(model, inputs, forced).logits, 1)
    with torch.no_grad():
        return model(**inputs).logits


def model_writes(model: Any) -> bool:
    return bool(getattr(model, "can_generate", lambda: False)())


@dataclass(frozen=True)
class Table:
    """A rule for tests: the depth of each row at each step, written down."""

    depth: tuple[tuple[int, ...], ...]

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int]:
        return [self.depth[row % len(self.depth)][min(step, len(self.depth[0]) - 1)] for row in range(rows)]

    def may_leave(self, at: Any) -> bool:
        return True

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        raise AssertionError("nothing is measured where every depth is known")

    def leaves(self, sureness: Sequence[float], at: Any, rows: Sequence[int]) -> list[bool]:
        raise AssertionError("nothing is asked where every depth is known")


def forced(rules: Mapping[str, Any], policy: str = "propagate", decompose: bool = True, shadow: bool = False) -> Method:
    """A method that is nothing but these rules."""
    return Method("none: a test", "forced", lambda settings, layers: Plan(dict(rules), policy=policy, decompose=decompose, shadow=shadow))


def makeup(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What every module of a model is: its type, what it holds, how many hooks it has."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {n: (type(m), tuple(m.__dict__), *(len(getattr(m, h)) for h in hooks)) for n, m in model.named_modules()}


def middle(values: Tensor, share: float = 0.5) -> float:
    """A threshold between two neighbouring values, `share` of the way up: no value lies on it."""
    ordered = values.flatten().sort().values
    place = min(max(int(len(ordered) * share), 1), len(ordered) - 1)
    return float((ordered[place - 1].double() + ordered[place].double()) / 2)


def layer_outputs(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[list[Tensor]]:
    """[layer][call] the states that an untouched stack made while `run` ran."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out, at=at: seen[at].append(out[0] if isinstance(out, tuple) else out))
        for at, layer in enumerate(layers)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen
