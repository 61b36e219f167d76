"""Training exits: the losses by hand, what each objective lets learn, and labels that do not fit."""

from __future__ import annotations

import doctest
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import made, more_rows
from torch import nn

from exitwise import Engine, methods
from exitwise.errors import InputError
from exitwise.heads import Said
from exitwise.methods import berxit, calm, fastbert, palbert
from exitwise.train import Settings, train
from exitwise.train.exits import Labelled, Learner, answer_losses, each_loss, weighed_by_depth

TRAINED = {"deebert": True, "fastbert": True, "pabee": False, "berxit": False, "palbert": False}  # method -> the base is frozen


@pytest.mark.parametrize("name", ["reading", "methods.calm", "methods.fastbert", "methods.palbert"])
def test_worked_numbers(name: str) -> None:
    module = importlib.import_module(f"exitwise.{name}")
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted >= 1 and found.failed == 0


def test_losses_of_exits_by_hand() -> None:
    """-ln of (3/4, 1/2) at exit 1 and of (1/4, 1/2) at exit 2; squared errors 1 and 4 for a head with one class."""
    answers = [torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()]
    losses = each_loss(answers, torch.tensor([0, 1]))
    want = [[-math.log(0.75), -math.log(0.25)], [-math.log(0.5)] * 2]
    assert losses.tolist() == [pytest.approx(row) for row in want]
    assert answer_losses(answers, torch.tensor([0, 1])).tolist() == pytest.approx([(w[0] + w[1]) / 2 for w in zip(*want, strict=True)])
    assert each_loss([torch.tensor([[2.0], [1.0]])], torch.tensor([1.0, 3.0])).tolist() == [[1.0], [4.0]]
    assert weighed_by_depth(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(14 / 6)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([0, 2]), r"\[0.0, 2.0\] do not fit a head of 2 classes. Allowed: the whole numbers 0..1"),
        (torch.tensor([-1, 0]), "2 classes"),
        (torch.tensor([0.0, 1.0]), "2 classes"),
        (torch.tensor([0]), "one label for each row"),
        (torch.tensor([[0], [1]]), "one label for each row"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(labels: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        answer_losses([torch.zeros(2, 2)], labels)


def test_the_doubt_is_a_squared_error_by_hand() -> None:
    """A layer that says 1/2 everywhere is off by 1/2, right or wrong: 1/4 at each of two exits. Regression: tanh |3 - 1| = 0.9640."""
    part = nn.Linear(4, 1)
    nn.init.zeros_(part.weight), nn.init.zeros_(part.bias)
    said = [Said(torch.ones(2, 4), torch.eye(2)), Said(torch.ones(2, 4), torch.eye(2).flip(0))]
    assert berxit.doubt_loss(part, said, torch.tensor([0, 1])).item() == pytest.approx(0.5)
    said = [Said(torch.ones(1, 4), torch.tensor([[3.0]]))]
    assert berxit.doubt_loss(part, said, torch.tensor([1.0])).item() == pytest.approx((0.5 - math.tanh(2)) ** 2)
    nn.init.constant_(part.bias, 100.0)  # sure to be wrong: right about exit 2, wrong about exit 1
    said = [Said(torch.ones(2, 4), torch.eye(2)), Said(torch.ones(2, 4), torch.eye(2).flip(0))]
    assert berxit.doubt_loss(part, said, torch.tensor([0, 1])).item() == pytest.approx(1.0)


def test_both_classes_weigh_alike_by_hand() -> None:
    """Three are ready, one is not; logits 0 but one of ln 3 for the one that is not: (ln 2 + ln 4) / 2. One class alone: its mean."""
    logits = torch.tensor([0.0, 0.0, 0.0, math.log(3)])
    ready = torch.tensor([True, True, True, False])
    assert calm.balanced(logits, ready).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert calm.balanced(logits[:3], ready[:3]).item() == pytest.approx(math.log(2))


def test_chances_to_halt_by_hand() -> None:
    """lambda 1/4 then 1/2: p = 1/4, 3/8, 3/8, which sum to 1 also where one lambda is nearly 1."""
    logits = [torch.tensor([math.log(1 / 3), 40.0]), torch.tensor([0.0, 0.0])]
    chances = palbert.log_chances(logits).exp()
    assert chances[0].tolist() == pytest.approx([0.25, 0.375, 0.375]) and chances.sum(1).tolist() == pytest.approx([1, 1])
    assert palbert.prior(12)[-1].item() == pytest.approx(0.314, abs=5e-4)  # language.md, section 10 (b)


def learner(method: str, case: str = "bert") -> tuple[Learner, Labelled]:
    model, inputs = made(case)
    engine = Engine(model, method)
    inputs = more_rows(inputs)
    labels = torch.arange(len(inputs["input_ids"])) % 5
    return Learner(model, engine.family, engine.fresh_exits(), methods.load(method).frozen), Labelled(inputs, labels)


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_an_objective_teaches_what_its_paper_teaches(method: str) -> None:
    pupil, batch = learner(method)
    value = methods.load(method)
    assert value.objective is not None and value.frozen is TRAINED[method]
    batch = Labelled(batch.inputs, batch.labels, step=1)
    value.objective(pupil, batch)["loss"].backward()
    moved = {name.split(".")[0] for name, p in pupil.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == ({"exits"} if TRAINED[method] else {"exits", "model"})
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pupil.exits.heads.parameters())


def test_weights_of_objectives_by_hand() -> None:
    """Constant answers: the model's own and five heads whose last biases are given, so that every loss is known."""
    pupil, batch = learner("deebert")
    for place, head in enumerate(pupil.exits.heads):
        nn.init.zeros_(head.out.weight), nn.init.zeros_(head.out.bias)
        nn.init.constant_(head.out.bias[:1], float(place))
    own = nn.functional.cross_entropy(pupil.model(**batch.inputs).logits, batch.labels).item()

    def loss(place: int) -> float:
        """Label 0 comes in 2 of 6 rows (0 1 2 3 4 0): ln(4 + e^place) - place / 3."""
        return math.log(4 + math.exp(place)) - place / 3

    heads = [loss(place) for place in range(5)]
    said = {name: methods.load(name).objective(pupil, batch)["loss"].item() for name in ("deebert", "pabee")}  # type: ignore[misc]
    assert said["deebert"] == pytest.approx(sum(heads), rel=1e-5)
    assert said["pabee"] == pytest.approx((sum((i + 1) * h for i, h in enumerate(heads)) + 6 * own) / 21, rel=1e-5)
    teacher = pupil.model(**batch.inputs).logits
    want = sum(fastbert.imitation(head(torch.zeros(6, 32)).logits, teacher).item() for head in pupil.exits.heads)
    assert methods.load("fastbert").objective(pupil, batch)["loss"].item() == pytest.approx(want, rel=1e-5)  # type: ignore[misc]


def test_berxit_alternates() -> None:
    pupil, batch = learner("berxit")
    objective = berxit.METHOD.objective
    assert objective is not None
    own = nn.functional.cross_entropy(pupil.model(**batch.inputs).logits, batch.labels).item()
    even = objective(pupil, Labelled(batch.inputs, batch.labels, step=4))
    assert even["loss"].item() == pytest.approx(own, rel=1e-5)
    even["loss"].backward()
    assert all(p.grad is None for p in pupil.exits.parameters())
    odd = objective(pupil, Labelled(batch.inputs, batch.labels, step=5))
    losses = answer_losses(pupil.answers(pupil.walk(batch.inputs)), batch.labels)
    assert odd["loss"].item() == pytest.approx((losses.sum() + odd["doubt"]).item(), rel=1e-5)


def test_palbert_weighs_losses_by_the_chances() -> None:
    """A halting net that says lambda = 1/2 everywhere: p = 1/2, 1/4, 1/8, 1/16, 1/32, 1/32 of the six losses; KL to the prior by hand."""
    pupil, batch = learner("palbert")
    for value in pupil.exits.parameters():
        nn.init.zeros_(value)
    found = palbert.objective(pupil, batch)
    p = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32]
    losses = answer_losses(pupil.answers(pupil.walk(batch.inputs)), batch.labels).tolist()
    assert found["task"].item() == pytest.approx(sum(a * b for a, b in zip(p, losses, strict=True)), rel=1e-5)
    prior = [0.1, 0.09, 0.081, 0.0729, 0.06561, 0.59049]
    far = sum(a * math.log(a / b) for a, b in zip(prior, p, strict=True))
    assert found["far"].item() == pytest.approx(far, rel=1e-5)
    assert found["loss"].item() == pytest.approx(found["task"].item() + 0.5 * far, rel=1e-5)


def test_calm_teaches_its_classifier_alone() -> None:
    model, inputs = made("bart")
    labels = torch.tensor([[7, 8, -100], [9, 10, 11]])
    inputs = {**inputs, "decoder_input_ids": torch.tensor([[2, 7, 8], [2, 9, 10]])}
    pupil = Learner(model, Engine(model, "never").family, Engine(model, "calm").fresh_exits(), frozen=True)
    found = calm.objective(pupil, Labelled(inputs, labels))["loss"]
    with torch.no_grad():
        part: Any = pupil.exits.parts["ready"]
        states = pupil.walk(inputs).states
        said = [pupil.read(state).argmax(-1) for state in states]
        want = []
        for state, answer in zip(states[:-1], said[:-1], strict=True):
            terms: dict[bool, list[float]] = {True: [], False: []}
            for row, step in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
                ready = bool(answer[row, step] == said[-1][row, step])
                chance = torch.sigmoid(part(state[row, step])).item()
                terms[ready].append(-math.log(chance if ready else 1 - chance))
            halves = [sum(t) / len(t) for t in terms.values() if t]
            want.append(sum(halves) / len(halves))
    assert found.item() == pytest.approx(sum(want) / len(want), rel=1e-5)
    found.backward()
    assert {n for n, p in pupil.named_parameters() if p.grad is not None} == {"exits.parts.ready.weight", "exits.parts.ready.bias"}


def test_a_frozen_base_stays_as_it_is_and_its_exits_learn(tmp_path: Path) -> None:
    pupil, batch = learner("deebert")
    before = {name: value.clone() for name, value in pupil.model.state_dict().items()}
    objective = methods.load("deebert").objective
    assert objective is not None
    first = objective(pupil, batch)["loss"].item()
    train(pupil, lambda step: Labelled(batch.inputs, batch.labels, step), objective, Settings(tmp_path, steps=30, lr=1e-2, warmup=0))
    assert objective(pupil, batch)["loss"].item() < 0.5 * first
    assert all(torch.equal(value, before[name]) for name, value in pupil.model.state_dict().items())
    assert not pupil.model.training and pupil.exits.training


def test_the_states_are_those_of_each_depth_also_of_a_shared_layer() -> None:
    for case in ("bert", "albert", "deberta"):
        model, inputs = made(case)
        engine = Engine(model, "deebert")
        pupil = Learner(model, engine.family, engine.fresh_exits(), True)
        walked = pupil.walk(inputs)
        assert len(walked.states) == 6 and engine.family.readout is not None
        assert torch.equal(engine.family.readout(model, walked.states[-1]), walked.out.logits)
        for depth in (1, 4):
            want = Engine(model, "static", exits=pupil.exits.eval(), text=depth).run(**inputs).logits
            torch.testing.assert_close(pupil.answers(walked)[depth - 1], want, atol=1e-6, rtol=1e-6)
