"""Objectives on a tiny Llama: each equals losses that were worked out from cut models, rows without pads, one at a time."""

from collections.abc import Callable

import pytest
import torch
from tests.train.language.tiny import LAYERS, WIDTH, WORDS, batch, by_hand, learner, llama, train_until
from torch import Tensor, nn

from exitwise.errors import FamilyError, KnobError
from exitwise.lm.adapter import Adapter, AdapterConfig
from exitwise.train import Settings, train
from exitwise.train.language import losses, noise, objectives, reading, weights

TIGHT = {"rtol": 0, "atol": 2e-5}  # losses of about 5 in float32, summed in another order and with pads beside


@pytest.mark.parametrize(
    ("shares", "want"),
    [
        (weights.uniform((2, 4), LAYERS), {2: 0.5, 4: 0.5}),
        (weights.rising(LAYERS), {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
        (weights.scaled(LAYERS, 0.2, (2, 3)), {2: 0.2 / 4.4, 3: 0.6 / 4.4, 4: 3.6 / 4.4}),
    ],
)
def test_weighed_exits_are_the_losses_of_cut_models(shares: dict[int, float], want: dict[int, float]) -> None:
    model = llama()
    told = objectives.weighed(lambda step: shares)(learner(model), batch())
    with torch.no_grad():
        own = {depth: by_hand(model, batch(), depth) for depth in want}
    for depth, loss in own.items():
        torch.testing.assert_close(told[f"exit {depth}"], loss, **TIGHT)
    torch.testing.assert_close(told["loss"].detach(), sum(want[d] * own[d] for d in want), **TIGHT)


def test_the_loss_of_full_depth_is_the_models_own() -> None:
    """The library's loss, whose labels are the ids themselves: the same mean over the same tokens."""
    model, made = llama(), batch()
    ids, asked = made.inputs["input_ids"], torch.zeros(2, 8, dtype=torch.bool)
    asked[0, 3:], asked[1, :6] = True, True
    own = model(ids, attention_mask=made.inputs["attention_mask"], labels=torch.where(asked, ids, -100)).loss
    told = objectives.weighed(lambda step: {LAYERS: 1.0})(learner(model), made)
    torch.testing.assert_close(told["loss"].detach(), own.detach(), **TIGHT)


def test_logits_come_in_parts_and_the_gradient_is_the_same() -> None:
    """Never more rows than a chunk reach the head; loss and gradient equal those of all at once, up to the order of sums."""
    states, targets = torch.randn(37, WIDTH, requires_grad=True), torch.randint(0, WORDS, (37,))
    head, seen = nn.Linear(WIDTH, WORDS), []

    def read(state: Tensor) -> Tensor:
        seen.append(len(state))
        return head(state)

    whole = nn.functional.cross_entropy(head(states), targets)
    want = torch.autograd.grad(whole, [states, head.weight])
    parts = losses.token_loss(states, targets, read, chunk=8)
    found = torch.autograd.grad(parts, [states, head.weight])
    assert max(seen) == 8 and len(seen) == 10  # five parts, each computed again for the gradient
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(found, want)


def test_rows_that_drop_layers_change_the_loss_and_evaluation_does_not() -> None:
    model = llama()
    whole = learner(model)
    certain = objectives.layers_dropped(lambda step: {LAYERS: 1.0}, lambda step: [0.0, 1.0, 0.0, 1.0])
    with torch.no_grad():
        trained = certain(whole.train(), batch())["loss"]
        tested = certain(whole.eval(), batch())["loss"]
        full = by_hand(model, batch(), LAYERS)
        masks = [torch.full((2, 1), layer in (0, 2)) for layer in range(LAYERS)]
        with noise.left_out(model.model.layers, masks):
            want = objectives.weighed(lambda step: {LAYERS: 1.0})(whole, batch())["loss"]
    torch.testing.assert_close(tested, full, **TIGHT)
    assert torch.equal(trained, want) and abs(float(trained - full)) > 0.01


def test_distillation_draws_shallow_states_to_their_nearest_deep_one_and_only_them() -> None:
    near, far = torch.ones(3, 2), 5 * torch.ones(3, 2)
    shallow, deep = torch.zeros(3, 2, requires_grad=True), [far.clone().requires_grad_(), near.clone().requires_grad_()]
    loss = losses.layer_distillation([shallow], deep)
    loss.backward()
    assert loss.item() == 1.0 and bool(shallow.grad.lt(0).all()) and all(state.grad is None for state in deep)  # type: ignore[union-attr]


def test_two_exits_and_distillation_by_hand() -> None:
    model = llama()
    told = objectives.shallow_and_deep(2, LAYERS, 0.5)(learner(model), batch())
    with torch.no_grad():
        want = (2 * by_hand(model, batch(), 2) + 4 * by_hand(model, batch(), 4)) / 6
    torch.testing.assert_close(told["loss"].detach(), want + 0.5 * told["distilled"], **TIGHT)
    assert float(told["distilled"]) > 0
    assert "distilled" not in objectives.shallow_and_deep(2, LAYERS, 0.0)(learner(model), batch())


def test_a_schedule_with_all_layers_is_the_plain_loss_and_fewer_are_not() -> None:
    model = llama()
    with torch.no_grad():
        full = objectives.scheduled(LAYERS, 4, 4, 8)(learner(model), batch())["loss"]
        less = objectives.scheduled(LAYERS, 4, 2, 4)(learner(model), batch())["loss"]
        torch.testing.assert_close(full, by_hand(model, batch(), LAYERS), **TIGHT)
    assert abs(float(less - full)) > 0.01


def test_a_schedule_begins_where_the_first_generated_token_is_said() -> None:
    """Two layers of four from the second generated token on. Row 0 says its first at its state 2, row 1 at its state 0."""
    model, made = llama(), batch()
    owner = learner(model)
    early = torch.ones(2, 8, dtype=torch.bool)
    early[0, 3:], early[1, 1:] = False, False
    masks = [torch.ones(2, 8, dtype=torch.bool), early, early, torch.ones(2, 8, dtype=torch.bool)]
    with torch.no_grad():
        found = objectives.scheduled(LAYERS, 4, 2, 2)(owner, made)["loss"]
        with noise.left_out(model.model.layers, masks):
            want = objectives.weighed(lambda step: {LAYERS: 1.0})(owner, made)["loss"]
    assert torch.equal(found, want)


def test_the_law_that_is_learnt_gets_no_gradient() -> None:
    """The head gives both laws; its gradient is that of the drafter's alone, with the full model's law a constant."""
    states, taught, head = torch.randn(9, WIDTH), torch.randn(9, WIDTH), nn.Linear(WIDTH, WORDS)
    law = head(taught).softmax(-1).detach()
    want = torch.autograd.grad(-(law * head(states).log_softmax(-1)).sum(-1).mean(), head.weight)
    found = torch.autograd.grad(losses.law_loss(states, taught, head, head, chunk=4), head.weight)
    torch.testing.assert_close(found, want)


class Double(nn.Module):
    def forward(self, layer: int, state: Tensor, memory: dict[str, Tensor]) -> Tensor:
        assert layer == 2
        return 2 * state


def test_tuned_exits_read_through_their_own_part_with_warmed_weights() -> None:
    """A gain before a root-mean-square norm changes nothing, so that the exit's loss is the cut model's; the weight is 1/4 of 0.5 at step
    0."""
    model = llama()
    owner = learner(model, True, ramps=Double())
    told = objectives.tuned_exits({2: 0.5}, warmup=4)(owner, batch(0))
    with torch.no_grad():
        want = by_hand(model, batch(), 2)
    torch.testing.assert_close(told["exit 2"], want, rtol=0, atol=1e-4)  # the norm's epsilon weighs a quarter of what it did
    torch.testing.assert_close(told["loss"], 0.125 * told["exit 2"])


def test_a_drafter_is_trained_on_the_full_models_law_by_hand() -> None:
    """-sum p log q at every asked place, with p of the whole model and q of adapter and head: worked out without parts and without pads."""
    model, made = llama(), batch()
    adapter = Adapter(AdapterConfig.of(model.config, 2))
    told = objectives.drafted(2)(learner(model, True, adapter=adapter), made)["loss"].detach()
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, real, labels in zip(made.inputs["input_ids"], made.inputs["attention_mask"], made.labels, strict=True):
            row = ids[real.bool()][None]
            out = model(row, output_hidden_states=True)
            q = model.lm_head(adapter(out.hidden_states[2], torch.arange(row.shape[1])[None])[0])[0].log_softmax(-1)
            cross = -(out.logits[0].softmax(-1) * q).sum(-1)
            asked = labels[: row.shape[1]] != -100
            total, count = total + float(cross[asked].sum()), count + int(asked.sum())
    assert count == 10 and float(told) == pytest.approx(total / count, abs=2e-5)


def test_a_drafters_training_moves_the_adapter_alone(tmp_path) -> None:
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    owner = learner(model, True, adapter=Adapter(AdapterConfig.of(model.config, 2)))
    objective = objectives.drafted(2)
    first = objective(owner, batch())["loss"].item()
    train(owner, lambda number: batch(), objective, Settings(tmp_path, steps=40, lr=1e-2, warmup=0))
    assert objective(owner, batch())["loss"].item() < first - 0.2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(KnobError, match="frozen=True"):
        objective(learner(model, False, adapter=Adapter(AdapterConfig.of(model.config, 2))), batch())


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.weighed(lambda step: weights.uniform((1, 2, 4), LAYERS)),
        lambda: objectives.layers_dropped(
            lambda step: weights.scaled(LAYERS, 0.2, weights.rotating(step, LAYERS, 2)), lambda step: noise.dropout_rates(LAYERS, 0.2)
        ),
        lambda: objectives.shallow_and_deep(2, LAYERS, 0.1),
        lambda: objectives.scheduled(LAYERS, 4, 2, 4),
    ],
    ids=["nested", "dropped", "two", "scheduled"],
)
def test_every_objective_learns_on_the_plain_loop_and_goes_on_where_it_stopped(make: Callable, tmp_path) -> None:
    """Twelve steps in one go, and stopped at the seventh: the same weights, bit for bit, those of the dropped layers too."""

    def run(folder: str, stop: int | None = None):
        owner, objective = learner(llama()), make()
        train_until(owner, objective, tmp_path / folder, stop, steps=12, lr=5e-3)
        return owner.eval()

    with torch.no_grad():
        start = float(make()(learner(llama()).eval(), batch(1))["loss"])
    whole = run("whole")
    run("parts", stop=7)
    parts = run("parts")
    with torch.no_grad():
        assert float(make()(whole, batch(1))["loss"]) < start - 0.1
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_readout_is_found_and_is_exact_for_the_last_layer() -> None:
    from tests.train.language.tiny import STACK
    from transformers import GPT2Config, GPT2LMHeadModel

    from exitwise.stack import Stack

    model = llama()
    assert reading.final_norm(model, STACK) == "model.norm"
    made = batch()
    owner = learner(model)
    walked = owner.walk(made.inputs)
    assert torch.equal(owner.read(walked.states[-1])[:, -1:], walked.out.logits)
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    ).eval()
    stack = Stack("transformer.h", "decoder", ("decoder",), owner="transformer")
    assert reading.final_norm(other, stack) == "transformer.ln_f"
    model.lm_head.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    with pytest.raises(FamilyError, match="more than one module"):
        reading.final_norm(model, STACK)
