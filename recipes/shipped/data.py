"""The training batches of the shipped model: captions, NLVR sentences (human and made), easy-VQA questions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from features import CACHE, DATA, open_rgb, read_rows
from questions import question, sentence
from recolour import recolour_text, swaps_of
from scenes import Scene, cells_of, parse, swapped
from streams import Batch
from torch import Tensor

Encode = Callable[[str], list[int]]
BOS, PAD, EOS = 0, 1, 2
CAPTION_PROMPT = "what does the image describe?"
TRUTH_PROMPT = " true or false?"
LONGEST = 16  # tokens of a made sentence; longer ones are drawn again, and a human one (22 %) is replaced by a made one
LONGEST_CAPTION = 18  # tokens learnt of a caption; of longer ones (8 %) the rest is cut and no end is asked
HERE = Path(__file__).parent


def splits() -> dict[str, dict[str, list[object]]]:
    """The names held out of training."""
    loaded: dict[str, dict[str, list[object]]] = json.loads((HERE / "splits.json").read_text(encoding="utf-8"))
    return loaded


def plain_caption(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    kept = "".join(letter if letter.isalnum() or letter in "'- " else " " for letter in text.lower())
    return " ".join(kept.replace("-", " ").replace("'", "").split())


def plain_sentence(text: str) -> str:
    """An NLVR sentence as the model reads it: lower case, without its final dot."""
    return text.lower().strip().rstrip(".").strip()


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(rows, longest), filled on the right."""
    out = torch.full((len(rows), max(map(len, rows))), value)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row)
    return out


class FeatureSet:
    """A set of stem maps on disk, read by the image's name."""

    def __init__(self, name: str) -> None:
        self.maps = np.load(CACHE / f"{name}.npy", mmap_mode="r")
        self.place = {image: index for index, image in enumerate(json.loads((CACHE / f"{name}.json").read_text(encoding="utf-8")))}

    def __getitem__(self, image: str) -> np.ndarray:
        out: np.ndarray = self.maps[self.place[image]]
        return out


def stack(maps: list[np.ndarray]) -> Tensor:
    """(images, rows, columns, channels) float32."""
    return torch.from_numpy(np.stack(maps)).float()


@dataclass
class Captions:
    """Flickr8k photos with all their captions; those of training as they are, mirrored, or in one of `crops` random crops."""

    encode: Encode
    split: str = "train"
    names: list[str] = field(default_factory=list)
    crops: int = 0

    def __post_init__(self) -> None:
        rows = read_rows(DATA / "flickr8k" / f"{self.split}.jsonl")
        self.texts = {str(row["image"]): [plain_caption(text) for text in row["captions"]] for row in rows}  # type: ignore[attr-defined]
        self.ids = {name: [self.encode(text)[:40] for text in texts] for name, texts in self.texts.items()}
        self.names = self.names or sorted(self.ids)
        others = ["-flip", *(f"-crop{number}" for number in range(self.crops))] if self.split == "train" else []
        self.sets = [FeatureSet(f"flickr-{self.split}{other}") for other in ("", *others)]
        self.prompt = torch.tensor([[BOS, *self.encode(CAPTION_PROMPT), EOS]])

    def batch(self, draw: Random, images: int, each: int = 5) -> Batch:
        """Random photos with `each` of their captions."""
        names = draw.sample(self.names, images)
        return self.of(names, [draw.choice(self.sets) for _ in names], [draw.sample(self.ids[name], each) for name in names])

    def of(self, names: list[str], sets: list[FeatureSet], captions: list[list[list[int]]]) -> Batch:
        """The batch of these photos and these encoded captions."""
        flat = [ids for group in captions for ids in group]
        return Batch(
            "caption",
            stack([features[name] for name, features in zip(names, sets, strict=True)]),
            self.prompt,
            padded([[BOS, *ids][: LONGEST_CAPTION + 1] for ids in flat], PAD),
            padded([[*ids, EOS][: LONGEST_CAPTION + 1] for ids in flat], -100),
        )


def answer_batch(maps: list[np.ndarray], pairs: list[tuple[list[int], int]]) -> Batch:
    """Texts with one-token answers: source bos text eos; decoder bos text answer, asked for the answer and the end only."""
    return Batch(
        "answer",
        stack(maps),
        padded([[BOS, *text, EOS] for text, _ in pairs], PAD),
        padded([[BOS, *text, answer] for text, answer in pairs], PAD),
        padded([[-100] * len(text) + [answer, EOS] for text, answer in pairs], -100),
    )


@dataclass
class Sentences:
    """NLVR pictures in three colourings, with their human sentence and made ones; the held ones as they are, for validation."""

    encode: Encode
    held: bool = False
    copies: int = 2

    def __post_init__(self) -> None:
        held = {str(name).split("-")[0] for name in splits()["nlvr"]["calibration_examples"]}
        rows = [row for row in read_rows(DATA / "nlvr" / "dev.jsonl") if row["permutation"] == 0 or not self.held]
        self.rows = [row for row in rows if (str(row["example"]).split("-")[0] in held) == self.held]
        self.copies = 0 if self.held else self.copies
        self.sets = [FeatureSet("nlvr-dev"), *(FeatureSet(f"nlvr-dev-swap{copy}") for copy in range(self.copies))]
        self.scenes = self._scenes()
        self.known: dict[str, list[int]] = {}

    def _scenes(self) -> dict[str, Scene]:
        """Parsed scenes; the six permutations of an example differ only in the order of their boxes, but each is read."""
        return {str(row["image"]): parse(open_rgb(DATA / "nlvr" / "images" / str(row["image"]))) for row in self.rows}

    def ids(self, text: str) -> list[int]:
        """Encoded text, remembered."""
        if text not in self.known:
            self.known[text] = self.encode(text)
        return self.known[text]

    def human(self, row: dict[str, object], swap: tuple[int, ...] | None) -> tuple[list[int], int]:
        """The row's own sentence and its label."""
        text = plain_sentence(str(row["sentence"]))
        text = recolour_text(text, swap) if swap else text
        return self.ids(text + TRUTH_PROMPT), self.ids(str(row["label"]))[0]

    def artificial(self, draw: Random, scene: Scene, ask: bool) -> tuple[list[int], int]:
        """A made sentence or question that is not too long."""
        while True:
            text, answer = question(draw, scene) if ask else sentence(draw, scene)
            ids = self.ids(text if ask else text + TRUTH_PROMPT)
            if len(ids) <= LONGEST:
                return ids, self.ids(answer)[0]

    def batch(self, draw: Random, images: int, each: int = 8, questions: int = 3) -> Batch:
        """Random pictures, each with its human sentence, `questions` open questions and made sentences."""
        maps, pairs, cells = [], [], []
        for row in draw.sample(self.rows, images):
            name, copy = str(row["image"]), draw.randrange(1 + self.copies)
            swap = swaps_of(name)[copy - 1] if copy else None
            maps.append(self.sets[copy][name])
            scene = swapped(self.scenes[name], swap) if swap else self.scenes[name]
            cells.append(cells_of(scene))
            human = self.human(row, swap)
            mine = [human] if len(human[0]) <= LONGEST else []
            pairs += mine + [self.artificial(draw, scene, ask=index < questions) for index in range(each - len(mine))]
        return replace(answer_batch(maps, pairs), cells=torch.from_numpy(np.stack(cells)))

    def human_batches(self, size: int = 64) -> list[Batch]:
        """The human sentences in order, for validation."""
        chunks = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        source = self.sets[0]
        return [answer_batch([source[str(row["image"])] for row in chunk], [self.human(row, None) for row in chunk]) for chunk in chunks]


@dataclass
class Questions:
    """easy-VQA's training pictures with their questions."""

    encode: Encode
    held: bool = False

    def __post_init__(self) -> None:
        from easy_vqa import get_train_questions

        held = {int(str(number)) for number in splits()["easy_vqa"]["calibration_images"]}
        self.features = FeatureSet("easy-vqa-train")
        known: dict[str, list[int]] = {}
        self.pairs: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for text, answer, image in zip(*get_train_questions(), strict=True):
            if (image in held) == self.held:
                for item in (text, answer):
                    known.setdefault(item, self.encode(item))
                self.pairs[image].append((known[text], known[answer][0]))

    def batch(self, draw: Random, images: int, each: int = 8) -> Batch:
        """Random pictures with `each` questions of theirs."""
        numbers = draw.sample(sorted(number for number, pairs in self.pairs.items() if len(pairs) >= each), images)
        pairs = [pair for number in numbers for pair in draw.sample(self.pairs[number], each)]
        return answer_batch([self.features[str(number)] for number in numbers], pairs)
