"""The drafter's recipe: answers equal to `generate`, states to the library's, targets by hand, and no prompt of the test is learnt."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.train.language.tiny import LAYERS, WIDTH, WORDS, llama

from exitwise.lm.adapter import AdapterConfig
from exitwise.train.language import accepted_at_once, soft_cross_entropy

HERE = Path(__file__).parents[2] / "recipes" / "language"
DATA = Path(__file__).parents[2] / ".data"


@pytest.fixture(scope="module", autouse=True)
def recipe():
    """The recipe's folder on the path, as when its script runs; its modules are forgotten afterwards."""
    names = ["answers", "drafter", "written", "prompts", "templates"]
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))
    for name in names:
        sys.modules.pop(name, None)


def part(name):
    return importlib.import_module(name)


PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], *([11 + row, 20, 3 + row] for row in range(12))]
END = 33


@pytest.fixture(scope="module")
def rows():
    """Greedy answers of a tiny model, of which many end early, with the depths 1 to 3."""
    model = llama()
    answers = part("answers")
    answers.DEPTHS, answers.FEWEST = (1, 2, 3), 2
    return model, answers.answer(answers.Answerer(model, 40, len(PROMPTS)), PROMPTS, 20, END)


def test_answers_and_states_are_the_models_own(rows) -> None:
    """Tokens as `generate` gives them, until the rest of a batch is cut. States in half precision: 2^-11 of sizes up to 16."""
    model, made = rows
    for prompt, row in zip(PROMPTS, made, strict=True):
        count = len(row["ids"]) - len(prompt)
        want = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=count, eos_token_id=END,
            pad_token_id=0,
        )  # fmt: skip
        assert row["ids"].tolist() == want[0].tolist() and int(row["prompt"]) == len(prompt) and len(row["last"]) == count
        with torch.no_grad():
            states = model(row["ids"][None, :-1], output_hidden_states=True).hidden_states
        for depth in (1, 2, 3):
            torch.testing.assert_close(row[f"depth{depth}"].float(), states[depth][0], rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(row["last"].float(), states[LAYERS][0, len(prompt) - 1 :], rtol=1e-3, atol=1e-2)
    assert len({len(row["last"]) for row in made}) > 1, "some rows must leave the batch before others"


def test_written_rows_come_back_parted_and_held_out(rows, tmp_path) -> None:
    _, made = rows
    part("answers").write(made, tmp_path / "0000.safetensors")
    (tmp_path / "0000.json").write_text(json.dumps([f"kind {number}" for number in range(len(made))]))
    learn, held = part("written").read(tmp_path, 2)
    assert [row.kind for row in held] == ["kind 7"] and len(learn) == len(made) - 1
    for row in (*learn, *held):
        want = made[int(row.kind.split()[1])]
        assert torch.equal(row.ids, want["ids"]) and torch.equal(row.states, want["depth2"]) and torch.equal(row.last, want["last"])


def test_targets_are_the_models_law_on_the_short_list(rows, tmp_path) -> None:
    """All words listed: the softmax over everything, by word; and the own word is the answer."""
    model, made = rows
    written = part("written")
    written.KEPT = WORDS
    listed = [written.Row("any", row["ids"], int(row["prompt"]), row["depth2"], row["last"]) for row in made[:3]]
    everything = torch.arange(WORDS)
    written.aim(listed, everything, model.lm_head.weight.detach())
    batch = written.batch(listed, everything)
    law = (torch.cat([row["last"] for row in made[:3]]).float() @ model.lm_head.weight.detach().T).softmax(-1)
    found = torch.zeros_like(law).scatter(1, batch.numbers, batch.shares)
    torch.testing.assert_close(found, law, rtol=0, atol=1e-3)  # kept in half precision
    assert batch.own.tolist() == [int(word) for row in made[:3] for word in row["ids"][int(row["prompt"]) :]]
    few = written.batch(listed, torch.tensor([0, 1, 2]))
    assert set(few.own.tolist()) <= {-1, 0, 1, 2}


def test_the_short_list_holds_what_is_said_most() -> None:
    written = part("written")
    row = written.Row("any", torch.tensor([1, 9, 9, 4, 4, 4, 2]), 3, torch.zeros(6, 2), torch.zeros(4, 2))
    assert written.shortlist([row], 2, 10).tolist() == [2, 4] and written.shortlist([row], 3, 10).tolist() == [2, 4, 9]


def test_a_drafter_that_says_the_answer_is_judged_to_do_so(rows) -> None:
    """A stand-in whose logits are one-hot of the right words but for the first of each answer: all hits but one an answer."""
    written, drafter = part("written"), part("drafter")
    written.KEPT = 8
    model, made = rows
    listed = [written.Row("any", row["ids"], int(row["prompt"]), row["depth2"], row["last"]) for row in made[:4]]
    everything = torch.arange(WORDS)
    written.aim(listed, everything, model.lm_head.weight.detach())

    class Right:
        def logits(self, given):
            first = torch.cat((torch.tensor([True]), given.at[0][1:] != given.at[0][:-1]))
            return torch.nn.functional.one_hot(torch.where(first, (given.own + 1) % WORDS, given.own), WORDS).float()

    told = drafter.judge(Right(), listed, everything, drafted=3)
    tokens = sum(len(row.last) for row in listed)
    assert told["hit"] == pytest.approx((tokens - 4) / tokens) and told["covered"] == 1.0
    rounds = sum(1 + -(-(len(row.last) - 1) // 4) for row in listed)  # one that misses at once, then three drafted and one more each
    assert told["a_round_of_3"] == pytest.approx(tokens / rounds)


def test_an_adapter_that_begins_as_a_layer_answers_like_one_more_layer() -> None:
    model = llama()
    config = AdapterConfig(WIDTH, 4, 2, eps=model.config.rms_norm_eps, ffn=32, depth=2)
    adapter = part("drafter").begin(model, config, True)
    ids = torch.arange(9)[None] + 3
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        want = model.model.norm(states[3])
        torch.testing.assert_close(adapter(states[2], torch.arange(9)[None])[0], want, rtol=0, atol=1e-4)


def test_soft_cross_entropy_by_hand() -> None:
    """Target (1/4, 3/4) on words 2 and 0 of logits (ln 2, 0, 0): q = (1/2, 1/4, 1/4), so -(1/4 ln 1/4 + 3/4 ln 1/2) = (5/4) ln 2."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    found = soft_cross_entropy(logits, torch.tensor([[2, 0]]), torch.tensor([[0.25, 0.75]]))
    assert found.item() == pytest.approx(1.25 * 0.6931472)
    assert accepted_at_once([False, False], 4) == 1.0 and accepted_at_once([True] * 10, 4) == 5.0


def test_epochs_repeat_by_number() -> None:
    written, drafter = part("written"), part("drafter")
    made = [written.Row("any", torch.arange(n + 3), 2, torch.full((n + 2, 2), float(n)), torch.zeros(n + 1, 2)) for n in range(10)]
    for row in made:
        row.numbers, row.shares = torch.zeros(len(row.last), 1, dtype=torch.short), torch.ones(len(row.last), 1)
    epochs = drafter.Epochs(made, torch.arange(20), 4)
    assert epochs.each == 3
    first = [epochs(number).states.flatten(1).amax(1).tolist() for number in range(6)]
    assert sorted(sum(first[:3], [])) == sorted(sum(first[3:], [])) == [float(n) for n in range(10)]
    again = drafter.Epochs(made, torch.arange(20), 4)
    assert again(4).states.tolist() == epochs(4).states.tolist()


def test_what_the_test_asks_is_dropped() -> None:
    prompts = part("prompts")
    asked = "Jen decides to travel to 3 different countries, and has to pay $400 for the supplies."
    test = prompts.runs(asked)
    assert prompts.runs("Solve: " + asked.lower() + " How much?") & test
    assert not prompts.runs("Jen decides to travel by train to the sea with her two brothers and a dog.") & test
    assert prompts.runs("Who played Anna?") == {("who", "played", "anna")}
    assert prompts.plain("It weighs 0 @.@ 7 kg ( 2 lb ) , he said .") == "It weighs 0.7 kg (2 lb), he said."


@pytest.mark.skipif(not (DATA / "llm-eval").is_dir() or not (DATA / "glue").is_dir(), reason="the texts are not there")
def test_prompts_mix_all_kinds_and_share_nothing_with_the_test() -> None:
    prompts = part("prompts")
    made = prompts.build(DATA, scale=0.1)
    assert {kind for kind, _ in made} == set(prompts.PER_KIND) and len({text for _, text in made}) == len(made) == 360
    asked = prompts.seen_in_test(DATA / "llm-eval/spec-bench/question.jsonl")
    assert not any(prompts.runs(text) & asked for _, text in made)
    assert made == prompts.build(DATA, scale=0.1)
