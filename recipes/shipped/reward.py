"""Captions learnt from their reward: sampled texts are judged by CIDEr-D, and every exit learns from the judgement (stage two)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from accelerate import PartialState
from course import Course, Taught
from data import BOS, EOS, PAD, Captions, padded, stack
from features import DATA, read_rows
from streams import Batch, decoder_states
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from exitwise.bench.metrics import CiderScorer
from exitwise.models.ofa import OFAForConditionalGeneration
from exitwise.train import distilled, leave_one_out, self_critical

END = " endofcaption"  # judged as a word, or texts that stop in mid-phrase would cost nothing
LONGEST = 18


@dataclass(frozen=True)
class Photos:
    """Photos without texts: the model writes them itself."""

    names: list[str]
    features: Tensor
    kind: str
    depths: tuple[int, int] | None = None


class Judge:
    """CIDEr-D of texts for the photos of one split, with the document frequencies of that split."""

    def __init__(self, split: str, names: list[str]) -> None:
        rows = {str(row["image"]): row["captions"] for row in read_rows(DATA / "flickr8k" / f"{split}.jsonl")}
        self.place = {name: index for index, name in enumerate(names)}
        self.scorer = CiderScorer([[f"{text}{END}" for text in rows[name]] for name in names])  # type: ignore[attr-defined]

    def __call__(self, name: str, text: str) -> float:
        return self.scorer.score(f"{text}{END}", self.place[name])


class Rewarded(Course):
    """The course with photos in its cycle, whose captions are written on the spot; validated by CIDEr-D of greedy captions.

    "reward": the model writes, and learns from the judgement. "imitate": one of some frozen teachers writes at full depth, and every
    exit learns what the teachers say of its words in the mean. (A model that imitates itself, while it also learns to agree with itself,
    ends in one caption for all photos.)
    """

    def __init__(self, encode: Any, plan: Mapping[str, Any], seed: int, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(encode, plan, seed)
        self.tokenizer, self.samples = tokenizer, int(plan["samples"])
        self.how = {"num_return_sequences": self.samples, "temperature": plan["temperature"], "top_k": 0}
        self.judge, self.held_judge = Judge("train", self.captions.names), Judge("dev", self.heldout.names)
        self.teachers = [
            OFAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
            for folder in plan.get("teachers", ())
        ]

    def batch(self, step: int) -> Batch | Photos:  # type: ignore[override]
        """The batch of a step; the same for the same step."""
        kind = self.cycle[step % len(self.cycle)]
        if kind not in ("reward", "imitate"):
            return super().batch(step)
        state = PartialState()
        draw = Random(f"{self.seed}-{step}-{state.process_index}")
        names = draw.sample(self.captions.names, int(self.plan["photos"]) // state.num_processes)
        return Photos(names, stack([draw.choice(self.captions.sets)[name] for name in names]), kind, self.depths(step))

    def objective(self, taught: nn.Module, batch: Batch | Photos) -> Mapping[str, Tensor]:  # type: ignore[override]
        """The layer-wise loss of captions that were just written, by their reward or by the teacher; other batches as ever."""
        if isinstance(batch, Batch):
            return super().objective(taught, batch)
        assert isinstance(taught, Taught)
        model = taught.model
        imitated = batch.kind == "imitate"
        writer = Random("".join(batch.names)).choice(self.teachers) if imitated else model
        ids = write(writer, self.captions, batch.features, do_sample=True, **self.how)
        model.train()
        said = self.said(batch, ids)
        states = decoder_states(model, said)
        weights, sure = self.weights(batch.kind, len(states)), self.sure(taught, batch.kind, states, said.labels)
        if imitated:
            loss = distilled(states, model.readout, self.told(said), said.labels != -100, weights=weights)
            return {"loss": loss + sure, "imitate": loss, "sure": sure}
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        worth = torch.tensor([self.judge(batch.names[row // self.samples], text) for row, text in enumerate(texts)])
        advantage = leave_one_out(worth.view(-1, self.samples)).flatten() / 100
        loss = self_critical(states, model.readout, said.labels, advantage, weights=weights, reduction="mean")
        return {"loss": loss + sure, "reward": worth.mean(), "sure": sure}

    @torch.no_grad()
    def told(self, said: Batch) -> Tensor:
        """Logarithm of the teachers' mean probabilities at full depth, (rows, tokens, vocabulary)."""
        whole = replace(said, depths=None)
        each = [teacher.readout(decoder_states(teacher, whole)[-1]).float().log_softmax(-1) for teacher in self.teachers]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def said(self, batch: Photos, ids: Tensor) -> Batch:
        """Captions that were written, as a batch to learn from."""
        rows = [until_end(row) for row in ids.tolist()]
        given, labels = padded([[BOS, *row[:-1]] for row in rows], PAD), padded(rows, -100)
        return Batch(batch.kind, batch.features, self.captions.prompt, given, labels, batch.depths)

    def validate(self, taught: nn.Module) -> Mapping[str, float]:
        """CIDEr-D of greedy captions beside the rest; the loss is its negative, so that the best is kept."""
        assert isinstance(taught, Taught)
        model = taught.model
        names = self.heldout.names
        points = []
        for start in range(0, len(names), 50):
            part = names[start : start + 50]
            ids = write(model, self.captions, stack([self.heldout.sets[0][name] for name in part]), do_sample=False)
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            points += [self.held_judge(name, text) for name, text in zip(part, texts, strict=True)]
        cider = sum(points) / len(points)
        figures = super().validate(taught)
        return {**figures, "cross_entropy": figures["loss"], "cider": cider, "loss": -cider}


@torch.no_grad()
def write(model: OFAForConditionalGeneration, captions: Captions, features: Tensor, **how: Any) -> Tensor:
    """Captions of these photos as ids without the start token, (photos * samples, length); the model is left in eval mode."""
    model.eval()
    source = captions.prompt.expand(len(features), -1)
    out = model.generate(
        input_ids=source, image_features=features, max_new_tokens=LONGEST, eos_token_id=EOS, pad_token_id=PAD, num_beams=1, **how
    )
    ids: Tensor = out[:, 1:]
    return ids


def until_end(row: list[int]) -> list[int]:
    """The ids up to and with the end token; all of them where there is none."""
    return row[: row.index(EOS) + 1] if EOS in row else row
