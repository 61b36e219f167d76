"""The reader of NLVR pictures and the maker of sentences agree with pictures drawn here, and with human labels."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from random import Random

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "shipped"))
questions = pytest.importorskip("questions")
recolour = pytest.importorskip("recolour")
scenes = pytest.importorskip("scenes")

PAINT = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
NLVR = ROOT / ".data" / "nlvr"


def picture(boxes: list[list[tuple[str, str, int, int, int]]]) -> Image.Image:
    """A picture with these items (colour, shape, size, x, y) in its three boxes."""
    image = Image.new("RGB", (400, 100), (211, 211, 211))
    draw = ImageDraw.Draw(image)
    draw.rectangle((100, 0, 149, 99), fill=(128, 128, 128))
    draw.rectangle((250, 0, 299, 99), fill=(128, 128, 128))
    for left, items in zip((0, 150, 300), boxes, strict=True):
        for colour, shape, size, x, y in items:
            corners = (left + x, y, left + x + size - 1, y + size - 1)
            if shape == "square":
                draw.rectangle(corners, fill=PAINT[colour])
            elif shape == "circle":
                draw.ellipse(corners, fill=PAINT[colour])
            else:
                draw.polygon([(corners[0], corners[3]), (corners[2], corners[3]), (left + x + size // 2, y)], fill=PAINT[colour])
    return image


SCATTER = [
    [("yellow", "square", 20, 0, 30), ("black", "circle", 30, 50, 20)],
    [("blue", "triangle", 30, 40, 70)],
    [("black", "square", 10, 90, 0), ("yellow", "circle", 20, 30, 40), ("yellow", "triangle", 20, 60, 60)],
]
TOWERS = [
    [("blue", "square", 20, 40, 80), ("black", "square", 20, 40, 59), ("black", "square", 20, 40, 38)],
    [("yellow", "square", 20, 40, 80)],
    [],
]


def test_items_are_read_as_they_were_drawn() -> None:
    scene = scenes.parse(picture(SCATTER))
    assert not scene.towers
    read = [sorted((item.colour, item.shape, item.size, item.x, item.y) for item in box) for box in scene.boxes]
    assert read == [sorted(box) for box in SCATTER]
    walls = {(item.colour, item.shape): item.walls for item in scene.items}
    assert walls["yellow", "square"] == {"left"} and walls["blue", "triangle"] == {"bottom"}
    assert walls["black", "square"] == {"top", "right"} and walls["black", "circle"] == frozenset()


def test_towers_are_seen_and_stand_from_base_to_top() -> None:
    scene = scenes.parse(picture(TOWERS))
    assert scene.towers
    assert [[item.colour for item in box] for box in scene.boxes] == [["blue", "black", "black"], ["yellow"], []]
    floating = [[("blue", "square", 20, 40, 40)], [], []]
    assert not scenes.parse(picture(floating)).towers


@pytest.mark.parametrize("swap", recolour.SWAPS)
def test_a_recoloured_picture_is_the_recoloured_scene(swap: tuple[int, ...]) -> None:
    image = picture(SCATTER)
    assert scenes.parse(recolour.recolour_image(image, swap)) == scenes.swapped(scenes.parse(image), swap)


def test_colour_words_are_swapped_at_once() -> None:
    assert recolour.recolour_text("a yellow block on a black one", (1, 0, 2)) == "a black block on a yellow one"


@pytest.mark.parametrize("boxes", [SCATTER, TOWERS], ids=["scatter", "towers"])
def test_counting_sentences_are_true_when_they_say_so(boxes: list[list[tuple[str, str, int, int, int]]]) -> None:
    """An independent count, from what was drawn, for the plainest kind of sentence."""
    scene, draw, seen = scenes.parse(picture(boxes)), Random(0), set()
    pattern = re.compile(r"there (?:is|are) exactly (\w+) (?:(yellow|black|blue) )?(item|object|block|square|circle|triangle)s?")
    digits = {name: value for value, name in enumerate(questions.NUMBERS)} | {str(value): value for value in range(11)}
    drawn = [item for box in boxes for item in box]
    for _ in range(3000):
        text, truth = questions.sentence(draw, scene)
        if found := pattern.fullmatch(text):
            count = sum(found[2] in (None, item[0]) and found[3] in ("item", "object", "block", item[1]) for item in drawn)
            assert (count == digits[found[1]]) == (truth == "true"), text
            seen.add((text, truth))
    assert len({truth for _, truth in seen}) == 2 and len(seen) > 10


def test_both_truths_are_about_equally_frequent() -> None:
    draw = Random(1)
    for boxes in (SCATTER, TOWERS):
        scene = scenes.parse(picture(boxes))
        true = sum(questions.sentence(draw, scene)[1] == "true" for _ in range(2000))
        assert 700 < true < 1300


def test_open_questions_have_known_answers() -> None:
    scene, draw = scenes.parse(picture(TOWERS)), Random(2)
    asked = dict(questions.question(draw, scene) for _ in range(500))
    assert asked["how many black blocks are there?"] == "two"
    assert asked["what color is the top of the highest tower?"] == "black"
    assert set(asked.values()) <= set(questions.ANSWERS)


def test_the_splits_do_not_meet() -> None:
    splits = json.loads((ROOT / "recipes" / "shipped" / "splits.json").read_text())
    flickr = splits["flickr8k"]
    assert len(flickr["calibration"]) == 400 and len(flickr["test"]) == 600 and len(splits["nlvr"]["calibration_examples"]) == 200
    assert not set(flickr["calibration"]) & set(flickr["test"])
    assert set(flickr["validation"]) <= set(flickr["calibration"])
    assert len(set(splits["easy_vqa"]["calibration_images"])) == 300


@pytest.mark.skipif(not NLVR.exists(), reason="NLVR is not unpacked in .data")
def test_the_reader_agrees_with_human_labels() -> None:
    """'there is a tower with four blocks' and its like: every human label must be what the scene says."""
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "1": 1, "2": 2, "3": 3, "4": 4}
    judged = 0
    for line in (NLVR / "dev.jsonl").read_text().splitlines():
        row = json.loads(line)
        found = re.fullmatch(r"there is a tower with (?:exactly )?(\w+) blocks?\.?", row["sentence"].lower().strip())
        if row["permutation"] == 0 and found and found[1] in numbers:
            scene = scenes.parse(Image.open(NLVR / "images" / row["image"]))
            assert any(len(box) == numbers[found[1]] for box in scene.boxes) == (row["label"] == "true"), row
            judged += 1
    assert judged >= 10
