"""Trains the shipped model: captions and answers in turn, layer-wise loss, within a fixed time; run from the project's folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomllib  # Python 3.11
import torch
from course import Course, Taught
from features import load_stem
from quick import install
from reward import Rewarded
from sharpen import sharpen
from torch import nn
from vocabulary import SIZE, encoder, texts

from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer
from exitwise.train import Settings, train

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


def export(taught: nn.Module, processor: OFAProcessor, folder: Path) -> None:
    """A folder that from_pretrained reads: half-precision weights, configuration, processor."""
    assert isinstance(taught, Taught)
    model = taught.model
    copy = OFAForConditionalGeneration(model.config).half()
    copy.load_state_dict(model.state_dict())
    copy.eval().save_pretrained(folder)
    config = folder / "config.json"  # half precision on disk, single precision in use: a CPU is slow and coarse in half
    config.write_text(config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8")
    processor.save_pretrained(folder)


def main() -> None:
    """Reads a configuration and trains, or goes on where an earlier run stopped."""
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
    folder = settings.folder / "export"
    if "start" in config:
        processor: OFAProcessor = OFAProcessor.from_pretrained(config["start"])
        model: OFAForConditionalGeneration = OFAForConditionalGeneration.from_pretrained(config["start"], dtype=torch.float32)
    else:
        processor = build_processor(folder, config["model"])
        model = build_model({**config["model"], "vocab_size": len(processor.tokenizer)}, settings.seed)
    encode = encoder(processor.tokenizer)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {len(processor.tokenizer)} tokens", flush=True)
    plan = config["course"]
    rewarded = bool({"reward", "imitate"} & {*plan["cycle"]})
    course = Rewarded(encode, plan, settings.seed, processor.tokenizer) if rewarded else Course(encode, plan, settings.seed)
    train(Taught(model), course.batch, course.objective, settings, course.validate, lambda kept: export(kept, processor, folder))


if __name__ == "__main__":
    main()
