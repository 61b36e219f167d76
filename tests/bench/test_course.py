"""A folder as a course: labels by hand, and a few steps that learn on every layer."""

import json

import pytest
import torch
from PIL import Image

from exitwise.bench.course import Course
from exitwise.bench.tasks import load
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer
from exitwise.train import Settings, train
from exitwise.train.recipe import Recipe

TEXTS = ["what does the image describe?", "a red picture", "a blue picture", "it is red true or false?", "true", "false"]


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """(folder of captions, folder of statements, model, processor): pictures of one colour on a one-cell grid."""
    root = tmp_path_factory.mktemp("school")
    rows = {"caption": [], "answer": []}
    for kind in rows:
        (root / kind / "images").mkdir(parents=True)
        for colour in ("red", "blue"):
            Image.new("RGB", (32, 32), colour).save(root / kind / "images" / f"{colour}.png")
    for colour in ("red", "blue"):
        rows["caption"].append({"image": f"{colour}.png", "captions": [f"a {colour} picture"]})
        rows["answer"].append({"image": f"{colour}.png", "sentence": "It is red.", "label": str(colour == "red").lower()})
    for kind, lines in rows.items():
        (root / kind / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS * 5, 300)
    config = OFAConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0",
        decomposed=True, dropout=0.0,
    )  # fmt: skip
    return root, OFAForConditionalGeneration(config), OFAProcessor.for_config(tokenizer, config)


def test_the_loss_is_asked_for_the_answer_and_the_end_only(school):
    root, _, processor = school
    task = load("answer", root / "answer")
    lesson = Course(task, processor).lesson([0, 1])
    prompt, true = processor.tokens(["it is red true or false?"])[0], processor.tokens(["true"])[0]
    start, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    wanted = [-100] * len(prompt) + [*true, end]
    assert lesson.labels[0, : len(wanted)].tolist() == wanted
    assert lesson.inputs["decoder_input_ids"][0, : len(wanted)].tolist() == [start, *prompt, *true]


def test_a_few_steps_teach_every_layer(school, tmp_path):
    root, model, processor = school
    course = Course(load("caption", root / "caption"), processor, Recipe(rows=4, smoothing=0.0))
    with torch.no_grad():
        before = float(course.objective(model.eval(), course.batch(0))["loss"])
    train(model, course.batch, course.objective, Settings(folder=tmp_path, steps=160, lr=4e-3, warmup=10), course.validate)
    with torch.no_grad():
        lesson = course.batch(0)
        after = float(course.objective(model.eval(), lesson)["loss"])
        states = model(**lesson.inputs, output_hidden_states=True, use_cache=False).decoder_hidden_states[1:]
        right = [(model.readout(h).argmax(-1) == lesson.labels)[lesson.labels != -100].float().mean() for h in states]
    assert after < 0.3 * before
    assert len(right) == 3 and min(right) > 0.8


def test_the_same_step_is_the_same_batch(school):
    root, _, processor = school
    task = load("caption", root / "caption")
    one, two = Course(task, processor, seed=1).batch(3), Course(task, processor, seed=1).batch(3)
    assert torch.equal(one.labels, two.labels) and torch.equal(one.inputs["pixel_values"], two.inputs["pixel_values"])


def test_an_epoch_visits_every_text_once_and_processes_share_it(school, tmp_path):
    _, _, processor = school
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "a.png")
    said = [{"image": "a.png", "captions": [f"a red {a}{b}" for b in "xyz"]} for a in "uvw"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, said)))
    task = load("caption", tmp_path)
    course = Course(task, processor, Recipe(rows=3), seed=5)
    order = [course._order(0), course._order(1)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(9)) and order[0] != order[1]
    learnt = [row for number in range(6) for row in course.batch(number).labels.tolist()]
    spoken = [processor.tokenizer.decode([t for t in row if t >= 0], skip_special_tokens=True).strip() for row in learnt]
    texts = [text for item in task.items for text in item.references]
    assert sorted(spoken[:9]) == sorted(spoken[9:]) == sorted(texts)
    parts = [Course(task, processor, Recipe(rows=3), seed=5, share=(process, 3)).batch(0) for process in range(3)]
    assert torch.equal(torch.cat([part.labels for part in parts]), torch.cat([course.batch(number).labels for number in range(3)]))


def test_captions_are_learnt_as_the_recipe_says(school):
    root, _, processor = school
    course = Course(load("caption", root / "caption"), processor, Recipe(punctuation=False, target_words=3))
    assert course.learnt('A "red" picture, of a dog.') == "A red picture"
    assert Course(load("caption", root / "caption"), processor).learnt("A red, dog. ") == "A red, dog."
    assert Course(load("answer", root / "answer"), processor, Recipe(punctuation=False)).learnt("t.") == "t."


def test_only_the_candidates_compete_where_the_recipe_says(school):
    root, model, processor = school
    course = Course(load("answer", root / "answer"), processor, Recipe(constrained=True, smoothing=0.0))
    lesson = course.lesson([0, 1])
    true, false = (processor.tokens([answer])[0] for answer in ("true", "false"))
    end = processor.tokenizer.eos_token_id
    assert [sorted(tokens) for tokens in lesson.allowed] == [sorted({true[0], false[0]}), [end]] * 2
    with torch.no_grad():
        loss = course.objective(model.eval(), lesson)["loss"]
        states = model(**lesson.inputs, output_hidden_states=True, use_cache=False).decoder_hidden_states[1:]
        expected = []
        for state in states:  # the end is certain; the answer is one of two
            at = (lesson.labels != -100).float().argmax(-1)
            logits = model.readout(state[torch.arange(2), at])[:, [true[0], false[0]]]
            expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])) / 2)
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-5)


def test_the_worst_are_left_out_after_so_many_updates_and_not_in_an_exam(school):
    root, model, processor = school
    recipe = Recipe(rows=2, batch=4, drop_worst=0.5, drop_worst_after=3, smoothing=0.0)
    course = Course(load("caption", root / "caption"), processor, recipe)
    whole = Course(load("caption", root / "caption"), processor, Recipe(rows=2, smoothing=0.0))
    losses = [[float(each.objective(model.train(), each.batch(number))["loss"].detach()) for number in (5, 6)] for each in (course, whole)]
    assert losses[0][0] == losses[1][0] and losses[0][1] < losses[1][1]  # two batches to an update: the sixth is of the third
    assert float(course.objective(model.eval(), course.batch(6))["loss"].detach()) == losses[1][1]
