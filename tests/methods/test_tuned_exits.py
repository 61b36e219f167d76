"""EE-Tuning's exits while decoding: what leaves is read by its exit's own parts, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import CLOSE, backbone_of, batch, one, walked
from torch import Tensor

from exitwise import Engine
from exitwise.errors import FingerprintError, KnobError
from exitwise.heads import Exits, Shape
from exitwise.lm import loop as loop_room
from exitwise.lm.stair import Stair
from exitwise.methods import eellm

MIXED = (9, 3, 6)
DEPTHS = (1, 3)


def tuned(model: Any, depths: tuple[int, ...] = DEPTHS, inner: int = 8) -> Exits:
    """Exits with weights that change what is said."""
    torch.manual_seed(6)
    exits = eellm.exits(Shape(model.config.hidden_size, 0, 4), depths, inner)
    with torch.no_grad():
        for value in exits.parameters():
            value.add_(torch.randn(value.shape) * 0.4)
    return exits


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of which the loop takes the likeliest, step by step."""
    out: list[Tensor] = []
    own = loop_room.likeliest
    monkeypatch.setattr(loop_room, "likeliest", lambda logits: (out.append(logits), own(logits))[1])
    return out


@pytest.mark.parametrize("case, threshold, rank", [("llama", 0.15, 0), ("gemma-2", 0.035, 0), ("gpt2", 0.15, 0), ("llama", 0.15, 24)])
def test_what_leaves_is_said_by_its_own_exit(case: str, threshold: float, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token's logits by hand: the state of its depth, of late runs over the same text, through the exit's parts, then the model's
    norm and head. With a head of low rank for asking, the word itself is still the whole head's."""
    model, _ = made(case)
    exits, said = tuned(model), noted(monkeypatch)
    engine = Engine(model, "eellm", exits=exits, depths=DEPTHS, decoder=threshold, pending=5, rank=rank)
    out = engine.generate(**batch(*MIXED), max_new_tokens=12)
    assert out.depth is not None and len(out.depth[:, 1:].unique()) == 3
    assert rank == 0 or out.trace.head_calls == 12  # the whole head reads what is said, and nothing else
    parts: Any = exits.ramps
    backbone = backbone_of(case)
    for row in range(len(MIXED)):
        prompt = one(batch(*MIXED), row)["input_ids"][0].tolist()
        depths = out.depth[row, 1:].tolist()
        stair, states = Stair(backbone, 1), list[Tensor]()
        text = [prompt + out.drafts.tokens[row][:-1]]
        with torch.no_grad():
            walked(stair, text, [depths], len(prompt), lambda: states.append(stair.newest([0]).clone()))  # noqa: B023
            for step, (depth, state) in enumerate(zip(depths, states, strict=True)):
                read = state
                if depth < 4:
                    own = parts.at[str(depth)]
                    normed = own.norm(state)
                    net = own.down(torch.nn.functional.silu(own.gate(normed)) * own.up(normed))
                    read = (state + net) * own.gain
                    assert not torch.allclose(backbone.readout(state)[0, 0], said[step][row], atol=0.1)  # not the model's own reading
                torch.testing.assert_close(said[step][row], backbone.readout(read)[0, 0], **CLOSE)
    assert all(int(logits[row].argmax()) == out.drafts.tokens[row][step + 1] for step, logits in enumerate(said) for row in range(3))


def test_the_rule_asks_the_trained_exit() -> None:
    """Depth 1's exit is made sure of one word, depth 3's unsure of all: nothing leaves at 3, all at 1."""
    model, _ = made("llama")
    for sure, unsure in ((1, 3), (3, 1)):
        exits = eellm.exits(Shape(32, 0, 4), DEPTHS)
        with torch.no_grad():
            exits.ramps.at[str(unsure)].gain.zero_()  # type: ignore[union-attr, index]
        out = Engine(model, "eellm", exits=exits, depths=DEPTHS, decoder=0.2).generate(**batch(*MIXED), max_new_tokens=8)
        assert set(out.depth[:, 1:].flatten().tolist()) == {sure, 4}


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_never_is_generate_and_untrained_exits_are_the_models_own_reading(case: str) -> None:
    model, _ = made(case)
    want = model.generate(**batch(*MIXED), max_new_tokens=10, do_sample=False)
    out = Engine(model, "eellm", exits=tuned(model), depths=DEPTHS).generate(**batch(*MIXED), max_new_tokens=10)
    assert torch.equal(out.sequences, want) and (out.depth == 4).all()
    knobs: dict[str, Any] = {"depths": DEPTHS, "decoder": 0.15}
    exits = eellm.exits(Shape(32, 0, 4), DEPTHS, 8)
    fresh = Engine(model, "eellm", exits=exits, **knobs).generate(**batch(*MIXED), max_new_tokens=10)
    tied = Engine(model, "eellm", **knobs).generate(**batch(*MIXED), max_new_tokens=10)
    assert torch.equal(fresh.sequences, tied.sequences) and torch.equal(fresh.depth, tied.depth) and (tied.depth < 4).any()


def test_recomputing_and_running_late_are_one_with_exits_of_their_own() -> None:
    """Keys and values go on from the state itself, not from what the exit made of it."""
    model, _ = made("llama")
    outs = [Engine(model, "eellm", exits=tuned(model), depths=DEPTHS, decoder=0.15, keys_values=policy).generate(
        **batch(*MIXED), max_new_tokens=25) for policy in ("run late", "recompute")]  # fmt: skip
    assert torch.equal(outs[0].sequences, outs[1].sequences) and torch.equal(outs[0].depth, outs[1].depth)
    assert len(outs[0].depth.unique()) == 3


def test_exits_are_kept_whole(tmp_path: Path) -> None:
    model, _ = made("llama")
    engine = Engine(model, "eellm", exits=tuned(model), depths=DEPTHS, decoder=0.15)
    engine.save(tmp_path)
    loaded = Engine.load(tmp_path, model)
    assert loaded.settings_dict() == engine.settings_dict() and loaded.exits is not None and engine.exits is not None
    assert loaded.exits.depths == DEPTHS and loaded.exits.about == engine.exits.about
    state = loaded.exits.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in engine.exits.state_dict().items()) and len(state) == 2 * 5
    runs = [e.generate(**batch(*MIXED), max_new_tokens=15) for e in (engine, loaded)]
    assert torch.equal(runs[0].sequences, runs[1].sequences) and torch.equal(runs[0].depth, runs[1].depth)
    with pytest.raises(FingerprintError):
        Engine.load(tmp_path, made("mistral")[0])


def test_exits_speak_through_the_walk_too() -> None:
    """Beams go by the walk: its first step at a depth is the loop's, word for word."""
    model, _ = made("llama")
    engine = Engine(model, "eellm", exits=tuned(model), depths=DEPTHS, decoder=0.15)
    prompt = one(batch(*MIXED), 0)
    with torch.no_grad(), engine.attached() as session:
        logits = model(**prompt).logits[0, -1]
    depth = int(session.trace.depth["decoder"][0, 0])
    assert depth in (1, 3, 4)
    states: list[Tensor] = []
    hook = model.model.layers[depth - 1].register_forward_hook(lambda m, a, out: states.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(**prompt)
        hook.remove()
        read = states[0][:, -1] if depth == 4 else engine.exits.ramps(depth, states[0][:, -1], {})  # type: ignore[union-attr, misc]
        torch.testing.assert_close(logits, model.lm_head(model.model.norm(read))[0], **CLOSE)


def test_depths_without_a_trained_exit_are_refused() -> None:
    model, _ = made("llama")
    exits = tuned(model, (1, 2))
    engine = Engine(model, "eellm", exits=exits, depths=DEPTHS)  # at never nothing leaves, and nothing is refused
    with pytest.raises(KnobError, match=r"may leave at the depths \[3\], but the trained exits are at \[1, 2\]"):
        engine.with_settings(decoder=0.5)
    assert Engine(model, "eellm", exits=exits, depths=(2,), decoder=0.5).exits is exits  # fewer than are trained
    with pytest.raises(KnobError, match=r"depths \[3\]"):
        Engine(model, "soft", exits=exits, every=1, minimum=1, decoder=0.5)
    usual = Engine(model, "eellm").fresh_exits()
    assert usual.depths == (1, 2) and Engine(model, "eellm", exits=usual, decoder=0.5).exits is usual  # the depths without a word
    with pytest.raises(KnobError, match="do not fit 4 layers"):
        eellm.exits(Shape(32, 0, 4), (4,))
