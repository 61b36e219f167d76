"""What a decoder's trained exits say: ramps, DeeCap's imagining ones, how their words come out of the model, and their training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.methods.slow import exits_for

from exitwise import Engine, methods
from exitwise.errors import FamilyError, KnobError
from exitwise.heads import Exits, Ramps, Shape
from exitwise.methods import deecap
from exitwise.train.exits import Labelled, Learner, Written

CASES = ("bart", "ofa", "t5")


def prompt(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    rows = len(next(iter(inputs.values())))
    return {**inputs, "decoder_input_ids": torch.tensor([[2, 7, 9]] * rows), "use_cache": False}


def test_the_fused_state_by_hand() -> None:
    """past (3, 1) over 2 layers, gate 0 -> g = 1/2: 2 g past + 2 (1 - g) future = past + the sum of what is imagined."""
    gate = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.zeros_(gate.bias)
    past, future = torch.tensor([[3.0, 1.0]]), [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    assert deecap.fused(past, future, 2, gate).tolist() == [[4.0, 3.0]]
    torch.nn.init.constant_(gate.bias, 100.0)  # g = 1: the past alone, twice
    assert deecap.fused(past, future, 2, gate).tolist() == [[6.0, 2.0]]


def test_a_perfect_imitation_loses_nothing_and_an_opposite_one_two() -> None:
    """Nets that are the identity, tanh(p) in the direction of one-axis states: cos 1; with states turned round: cos -1."""
    ramps = deecap.Imagining(Shape(2, 0, 3))
    with torch.no_grad():
        for layer in (ramps.pool, *ramps.nets):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    same = [torch.tensor([[2.0, 0.0]])] * 3
    assert deecap.imitation(ramps, same).item() == pytest.approx(0.0, abs=1e-6)
    assert deecap.imitation(ramps, [same[0], -same[0], -same[0]]).item() == pytest.approx((2 + 2 + 0) / 3, abs=1e-6)
    deecap.imitation(ramps, [torch.randn(1, 2, requires_grad=True) for _ in range(3)]).backward()  # the deep states are no target to move


def test_layers_imagine_those_after_them() -> None:
    ramps = deecap.Imagining(Shape(4, 0, 5))
    assert [len(ramps.imagined(layer, torch.randn(2, 4))) for layer in (1, 2, 4)] == [4, 3, 1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["deebert", "deecap"])
def test_untrained_ramps_are_the_models_own_reading(name: str, method: str) -> None:
    model, inputs = made(name)
    engine = Engine(model, method)
    ramped = Engine(model, method, exits=engine.fresh_exits(), decoder=0.05)
    out = ramped.run(**prompt(name, inputs))
    own = Engine(model, "deebert", decoder=0.05).run(**prompt(name, inputs))
    assert out.trace.depth["decoder"].tolist() == own.trace.depth["decoder"].tolist()
    # the same states through the same head, once as a row of words and once in its place
    torch.testing.assert_close(out.logits[:, -1], own.logits[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["deebert", "deecap"])
def test_rows_that_leave_say_what_their_ramp_says(name: str, method: str) -> None:
    """By hand: states of the untouched decoder, the ramp and the head at each layer; the first that is ready speaks."""
    model, inputs = made(name)
    exits = exits_for(model, method)
    given = prompt(name, inputs)
    engine = Engine(model, method, exits=exits)
    learner = Learner(model, engine.family, exits, frozen=True)
    states = [state[:, -1] for state in learner.walk(given).states]
    memory: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        said = [learner.read(exits.ramps(layer, s, memory)[:, None])[:, 0] for layer, s in enumerate(states[:-1], 1)]  # type: ignore[misc]
        whole = model(**given).logits
    sure = engine.run(record=True, **given).trace.sureness["decoder"][:, 0]
    threshold = float(sure[:, :-1].nan_to_num(2).flatten().sort().values[:2].mean())
    out = Engine(model, method, exits=exits, decoder=min(threshold, 0.999)).run(**given)
    depths = out.trace.depth["decoder"][:, 0].tolist()
    assert min(depths) < len(states)
    for row, depth in enumerate(depths):
        wanted = whole[row, -1] if depth == len(states) else said[depth - 1][row]
        torch.testing.assert_close(out.logits[row, -1], wanted, atol=2e-4, rtol=1e-4)  # float32 sums in batches of other sizes
    assert not torch.allclose(out.logits[depths.index(min(depths)), -1], whole[depths.index(min(depths)), -1], atol=1e-2)
    model.requires_grad_(True)


@pytest.mark.parametrize("name", CASES)
def test_a_threshold_that_is_never_reached_is_the_model_itself(name: str) -> None:
    model, inputs = made(name)
    engine = Engine(model, "deecap", exits=exits_for(model, "deecap"))
    with torch.no_grad():
        assert torch.equal(engine.run(**prompt(name, inputs)).logits, model(**prompt(name, inputs)).logits)
    mine, own = engine.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4)
    assert torch.equal(mine.sequences, own)


def test_what_is_written_is_what_the_ramps_say() -> None:
    """One ramp turns every state into one word: that word is written at every step that leaves."""
    model, inputs = made("bart")
    exits = Engine(model, "deebert").fresh_exits()
    engine = Engine(model, "deebert", exits=exits, decoder=0.0)
    plain = engine.generate(**inputs, max_new_tokens=4, num_beams=1).sequences
    with torch.no_grad():
        exits.ramps.maps[0].bias.copy_(100 * torch.randn(exits.shape.width, generator=torch.Generator().manual_seed(1)))  # type: ignore
    out = engine.generate(**inputs, max_new_tokens=4, num_beams=1)
    assert out.depth.max() == 1 and not torch.equal(out.sequences, plain)
    beams = engine.generate(**inputs, max_new_tokens=4, num_beams=2)
    assert beams.depth.max() == 1


def test_kept_and_loaded(tmp_path: Any) -> None:
    model, inputs = made("ofa")
    engine = Engine(model, "deecap", exits=exits_for(model, "deecap"), decoder=0.0)
    again = Engine.load(engine.save(tmp_path).parent, model)
    one, other = (e.run(**prompt("ofa", inputs)) for e in (engine, again))
    assert torch.equal(one.logits, other.logits) and one.trace.depth["decoder"].min() < 4


@pytest.mark.parametrize("method", ["deebert", "pabee", "deecap"])
def test_training_moves_the_ramps_alone_and_reads_only_what_is_asked(method: str) -> None:
    model, inputs = made("ofa")
    engine = Engine(model, method)
    exits = engine.fresh_exits()
    learner = Written(model, engine.family, exits, frozen=True)
    given = {**inputs, "decoder_input_ids": torch.tensor([[2, 7, 9]] * 2), "use_cache": False}
    labels = torch.tensor([[-100, 11, 12], [-100, -100, 13]])
    batch = learner.asked(Labelled(given, labels))
    assert batch.labels.tolist() == [11, 12, 13] and [s.shape for s in learner.walk(batch.inputs).states[:1]] == [(3, 1, 32)]
    objective: Any = methods.load(method).objective
    best = torch.optim.Adam(exits.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = objective(learner, batch)["loss"]
        best.zero_grad()
        loss.backward()
        best.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is None for p in model.parameters())
    model.requires_grad_(True)


def test_without_what_it_needs_it_is_refused() -> None:
    model, _ = made("bart")
    with pytest.raises(KnobError, match="needs trained exits with ramps"):
        Engine(model, "deecap", decoder=0.5)
    classifier, _ = made("bert")
    with pytest.raises(KnobError, match="needs a decoder"):
        Engine(classifier, "deecap", decoder=0.5)
    engine = Engine(model, "deebert", exits=Engine(model, "deebert").fresh_exits(), decoder=0.5)
    with pytest.raises(KnobError, match="scores all"):
        engine.choose([[5], [6]], **made("bart")[1])
    shape = Engine(classifier, "deebert").shape()
    ramps = Exits(shape, heads=False, ramps=Ramps(shape))
    with pytest.raises(FamilyError, match="decoder with a head"):
        Engine(classifier, "deebert", exits=ramps).run(**made("bert")[1])
