"""Trains the shipped model: captions and answers in turn, layer-wise loss, within a fixed time; run from the project's folder."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import tomllib  # Python 3.11
import torch
from accelerate import PartialState
from data import Captions, Questions, Sentences, splits
from features import load_stem
from quick import install
from sharpen import sharpen
from streams import Batch, decoder_states
from torch import Tensor, nn
from vocabulary import SIZE, encoder, texts

from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer
from exitwise.train import Settings, layerwise, sampled_weights, train

HERE = Path(__file__).parent


def build_processor(folder: Path, sizes: Mapping[str, Any]) -> OFAProcessor:
    """The processor, made at the first call and kept in the folder."""
    if not (folder / "tokenizer.json").exists():
        OFAProcessor.for_config(train_tokenizer(texts(), SIZE), OFAConfig(**sizes)).save_pretrained(folder)
    processor: OFAProcessor = OFAProcessor.from_pretrained(folder)
    return processor


def build_model(sizes: Mapping[str, Any], seed: int) -> OFAForConditionalGeneration:
    """The untrained model with its pretrained stem, sharpened."""
    torch.manual_seed(seed)
    model = OFAForConditionalGeneration(OFAConfig(**sizes))
    model.model.stem.trunk.load_state_dict(load_stem().state_dict())
    sharpen(model)
    return model


class Course:
    """Which batch comes at which step, and how it is judged."""

    def __init__(self, encode: Any, plan: Mapping[str, Any], seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.captions, self.sentences, self.questions = Captions(encode), Sentences(encode), Questions(encode)
        self.heldout = Captions(encode, "dev", [str(name) for name in splits()["flickr8k"]["validation"]])
        self.held_sentences = Sentences(encode, made=False)
        self.cycle: list[str] = list(plan["cycle"])

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same step."""
        state = PartialState()
        draw = Random(f"{self.seed}-{step}-{state.process_index}")
        kind, images = self.cycle[step % len(self.cycle)], int(self.plan["images"]) // state.num_processes
        if kind == "caption":
            return self.captions.batch(draw, images)
        if kind == "questions":
            return self.questions.batch(draw, images, int(self.plan["sentences"]))
        return self.sentences.batch(draw, images, int(self.plan["sentences"]))

    def objective(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The layer-wise loss; captions read out the last layer and two others, drawn anew, weighted to the same expectation."""
        assert isinstance(model, OFAForConditionalGeneration)
        caption = batch.kind == "caption"
        states = decoder_states(model, batch)
        layers, others = len(states), int(self.plan["caption_layers"]) - 1
        generator = torch.Generator().manual_seed(random.Random(int(batch.decoder_input.sum())).getrandbits(40))
        weights = sampled_weights(layers, others, generator) if caption and others < layers - 1 else [1.0] * layers
        smoothing = 0.1 if caption else 0.0
        loss = layerwise(states, model.readout, batch.labels, smoothing=smoothing, weights=weights, reduction="mean")
        return {"loss": loss, ("caption" if caption else "answer"): loss}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Cross-entropy of held captions and accuracy on held human sentences, at full depth."""
        assert isinstance(model, OFAForConditionalGeneration)
        names = self.heldout.names
        losses = []
        for start in range(0, len(names), 50):
            part = names[start : start + 50]
            batch = self.heldout.of(part, self.heldout.sets * len(part), [self.heldout.ids[name][:2] for name in part])
            losses.append(float(layerwise(decoder_states(model, batch)[-1:], model.readout, batch.labels)))
        right = total = 0
        for batch in self.held_sentences.human_batches():
            asked = batch.labels.ne(-100).float().argmax(-1)  # the place of the answer
            rows = torch.arange(len(asked))
            said = model.readout(decoder_states(model, batch)[-1][rows, asked]).argmax(-1)
            right += int((said == batch.labels[rows, asked]).sum())
            total += len(asked)
        caption = sum(losses) / len(losses)
        return {"loss": caption, "nlvr": right / total}


def export(model: nn.Module, processor: OFAProcessor, folder: Path) -> None:
    """A folder that from_pretrained reads: half-precision weights, configuration, processor."""
    assert isinstance(model, OFAForConditionalGeneration)
    copy = OFAForConditionalGeneration(model.config).half()
    copy.load_state_dict(model.state_dict())
    copy.eval().save_pretrained(folder)
    config = folder / "config.json"  # half precision on disk, single precision in use: a CPU is slow and coarse in half
    config.write_text(config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8")
    processor.save_pretrained(folder)


def main() -> None:
    """Reads train.toml and trains, or goes on where an earlier run stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "train.toml")
    parser.add_argument("--seconds", type=float, help="the time budget, instead of the configuration's")
    given = parser.parse_args()
    config = tomllib.loads(given.config.read_text(encoding="utf-8"))
    torch.set_num_threads(int(config["threads"]))
    install()
    chosen = dict(config["train"])
    chosen["seconds"] = given.seconds or chosen["seconds"]
    settings = Settings(**{**chosen, "folder": Path(chosen["folder"])})
    processor = build_processor(settings.folder / "export", config["model"])
    encode = encoder(processor.tokenizer)
    model = build_model({**config["model"], "vocab_size": len(processor.tokenizer)}, settings.seed)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    course = Course(encode, config["course"], settings.seed)
    folder = settings.folder / "export"
    train(model, course.batch, course.objective, settings, course.validate, lambda kept: export(kept, processor, folder))


if __name__ == "__main__":
    main()
