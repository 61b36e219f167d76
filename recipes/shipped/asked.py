"""Rows of the answer task, in the form that `exitwise bench` reads: made sentences and questions about an NLVR picture, and easy-VQA's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from questions import NUMBERS, question, sentence
from recolour import COLOURS
from scenes import parse

Row = dict[str, Any]
HUMAN, MADE, COUNT, EASY = "NLVR, human sentence", "NLVR, made sentence", "NLVR, made question", "easy-VQA"
LONGEST = 13  # words: about the 16 tokens that the model was trained on, the prompt included


def made(picture: Path, draw: Random) -> list[Row]:
    """A sentence and a question about the picture whose truth is known from its pixels; `image` is its file name."""
    with Image.open(picture) as opened:
        scene = parse(opened.convert("RGB"))
    while True:
        text, label = sentence(draw, scene)
        if len(text.split()) <= LONGEST:
            break
    while True:
        asked, answer = question(draw, scene)
        if len(asked.split()) <= LONGEST + 2:
            break
    candidates = [*NUMBERS, *COLOURS]
    return [
        {"image": picture.name, "sentence": text, "label": label, "group": MADE},
        {"image": picture.name, "question": asked, "answer": answer, "candidates": candidates, "group": COUNT},
    ]


def easy(split: str, images: Iterable[int], each: int, draw: Random) -> list[tuple[Row, Path]]:
    """`each` questions about every one of these images (or all that there are), among all thirteen answers, with the images' files."""
    import easy_vqa

    get = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    by_image: dict[int, list[tuple[str, str]]] = {}
    for text, answer, image in zip(*get(), strict=True):
        by_image.setdefault(image, []).append((text, answer))
    candidates, out = sorted(easy_vqa.get_answers()), []
    for image in images:
        for text, answer in draw.sample(by_image[image], min(each, len(by_image[image]))):
            row = {"image": f"easy-vqa-{split}-{image}.png", "question": text, "answer": answer, "candidates": candidates, "group": EASY}
            out.append((row, Path(paths[image])))
    return out
