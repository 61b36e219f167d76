"""Judges an exported model at full depth on the held-out splits: captions, NLVR and easy-VQA, each with its interval, as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from data import EOS, PAD, TRUTH_PROMPT, Captions, Encode, FeatureSet, Questions, answer_batch, plain_sentence, splits
from features import DATA, load_stem, open_rgb, pixels, read_rows
from streams import Batch, decoder_states
from torch import Tensor
from vocabulary import EASY_ANSWERS, encoder

from exitwise.bench.metrics import bleu, bootstrap, cider
from exitwise.models.ofa import OFAForConditionalGeneration, OFAProcessor

STRIP, PHOTO = (5, 20), (8, 8)


@torch.no_grad()
def describe(model: OFAForConditionalGeneration, processor: OFAProcessor, encode: Encode, beams: int) -> dict[str, Any]:
    """CIDEr-D and BLEU-4 of the 600 held-out Flickr8k photos."""
    held = Captions(encode, "dev", [str(name) for name in splits()["flickr8k"]["test"]])
    references = {str(row["image"]): row["captions"] for row in read_rows(DATA / "flickr8k" / "dev.jsonl")}
    said: list[str] = []
    for start in range(0, len(held.names), 50):
        batch = held.of(held.names[start : start + 50], held.sets * 50, [held.ids[name][:1] for name in held.names[start : start + 50]])  # type: ignore[arg-type]
        source = batch.source.expand(len(batch.features), -1)
        ids = model.generate(
            input_ids=source, image_features=batch.features, num_beams=beams, max_new_tokens=20, eos_token_id=EOS, pad_token_id=PAD
        )
        said += processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    wanted = [references[name] for name in held.names]
    judged = cider(said, wanted)  # type: ignore[arg-type]
    interval = bootstrap(judged.items)
    return {
        "items": len(said),
        "cider": judged.score,
        "low": interval.low,
        "high": interval.high,
        "bleu4": bleu(said, wanted)[3],  # type: ignore[arg-type]
        "different": len(set(said)),
    }


@torch.no_grad()
def answers(model: OFAForConditionalGeneration, batches: Iterator[Batch], allowed: list[int]) -> dict[str, Any]:
    """Accuracy among the allowed tokens at each decoder depth, and the interval of the deepest."""
    marks: list[list[float]] = []
    for batch in batches:
        at = batch.labels.ne(-100).float().argmax(-1)
        rows = torch.arange(len(at))
        gold = batch.labels[rows, at]
        said = [torch.tensor(allowed)[model.readout(state[rows, at])[:, allowed].argmax(-1)] for state in decoder_states(model, batch)]
        marks += [[100.0 * float(value == right) for value in answer] for answer, right in zip(torch.stack(said, 1), gold, strict=True)]
    interval = bootstrap([row[-1] for row in marks])
    by_depth = [round(sum(column) / len(marks), 2) for column in zip(*marks, strict=True)]
    return {"items": len(marks), "accuracy": interval.mean, "low": interval.low, "high": interval.high, "by_decoder_depth": by_depth}


def stemmed(stem: torch.nn.Module, paths: list[Path], grid: tuple[int, int]) -> list[Any]:
    """The stem's maps of pictures that were never cached."""
    with torch.no_grad():
        stacked: Tensor = torch.stack([torch.from_numpy(pixels(open_rgb(path), grid)) for path in paths])
        return list(stem(stacked).permute(0, 2, 3, 1).numpy())


def nlvr_test(encode: Encode, stem: torch.nn.Module, count: int) -> Iterator[Batch]:
    """The official test split, first permutation of each example."""
    rows = [row for row in read_rows(DATA / "nlvr" / "test.jsonl") if row["permutation"] == 0][:count]
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        pairs = [(encode(plain_sentence(str(row["sentence"])) + TRUTH_PROMPT), encode(str(row["label"]))[0]) for row in part]
        yield answer_batch(stemmed(stem, [DATA / "nlvr" / "images" / str(row["image"]) for row in part], STRIP), pairs)


def easy_test(encode: Encode, stem: torch.nn.Module, count: int) -> Iterator[Batch]:
    """The official test split, one question of each image."""
    from easy_vqa import get_test_image_paths, get_test_questions

    paths = get_test_image_paths()
    first = {image: (text, answer) for text, answer, image in zip(*get_test_questions(), strict=True)}
    numbers = sorted(first)[:count]
    for start in range(0, len(numbers), 32):
        part = numbers[start : start + 32]
        pairs = [(encode(first[number][0]), encode(first[number][1])[0]) for number in part]
        yield answer_batch(stemmed(stem, [Path(paths[number]) for number in part], PHOTO), pairs)


def held_questions(encode: Encode) -> Iterator[Batch]:
    """The calibration images of easy-VQA, from the cache."""
    held, source = Questions(encode, held=True), FeatureSet("easy-vqa-train")
    numbers = sorted(held.pairs)
    for start in range(0, len(numbers), 50):
        part = numbers[start : start + 50]
        yield answer_batch([source[str(number)] for number in part], [held.pairs[number][0] for number in part])


def main() -> None:
    """Loads a folder and judges it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="at most so many items of each answer task")
    given = parser.parse_args()
    processor = OFAProcessor.from_pretrained(given.folder)
    model = OFAForConditionalGeneration.from_pretrained(given.folder).float().eval()
    encode, stem = encoder(processor.tokenizer), load_stem()
    truth = [encode(word)[0] for word in ("true", "false")]
    every = [encode(word)[0] for word in EASY_ANSWERS]
    result = {
        "nlvr_test": answers(model, nlvr_test(encode, stem, given.count), truth),
        "easy_vqa_test": answers(model, easy_test(encode, stem, given.count), every),
        "easy_vqa_calibration": answers(model, held_questions(encode), every),
        "flickr8k_test": describe(model, processor, encode, given.beams),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
