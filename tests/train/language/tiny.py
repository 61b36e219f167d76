"""A random tiny Llama and a learner of it, for the tests of this folder."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from exitwise.heads import Exits, Shape
from exitwise.stack import Family, Stack
from exitwise.train import Settings, train
from exitwise.train.exits import Labelled, Learner
from exitwise.train.language.reading import readout_of
from exitwise.train.language.texts import Sample, padded

LAYERS, WIDTH, WORDS = 4, 16, 50
STACK = Stack("model.layers", "decoder", ("decoder",), owner="model")


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    nn.init.normal_(model.model.norm.weight, 1.0, 0.2)  # a norm of ones would hide a second application
    return model


def learner(model: Any, frozen: bool = False, **parts: nn.Module) -> Learner:
    family = Family(model_types=("llama",), stacks=(STACK,), readout=readout_of(model, STACK))
    return Learner(model, family, Exits(Shape(WIDTH, 0, LAYERS), heads=False, **parts), frozen)


def batch(step: int = 0) -> Labelled:
    """Two rows of unlike length: a prompt of 3 tokens with an answer of 5, and 6 tokens that are all asked."""
    ids = torch.arange(14) * 7 % 47 + 3
    first = Sample(ids[:8], torch.arange(8) >= 3)
    return padded([first, Sample(ids[8:], torch.ones(6, dtype=torch.bool))], step)


def train_until(owner: nn.Module, objective: Callable[..., Any], folder: Path, stop: int | None, steps: int, lr: float) -> None:
    """Trains on these batches with a checkpoint at every step; at step `stop`, unless that is None, someone presses Ctrl-C."""

    def told(model: Any, made: Labelled) -> Any:
        if made.step == stop:
            raise KeyboardInterrupt
        return objective(model, made)

    settings = Settings(folder, steps=steps, lr=lr, warmup=0, schedule="linear", save_every_s=0.0)
    with pytest.raises(KeyboardInterrupt) if stop is not None else nullcontext():
        train(owner, batch, told, settings)


def by_hand(model: Any, made: Labelled, depth: int) -> torch.Tensor:
    """The cross-entropy of one depth, from a cut model of that many layers run row by row without pads."""
    cut = llama()
    cut.load_state_dict(model.state_dict())
    cut.model.layers = cut.model.layers[:depth]
    losses = []
    for ids, real, labels in zip(made.inputs["input_ids"], made.inputs["attention_mask"], made.labels, strict=True):
        logits = cut(ids[real.bool()][None]).logits[0].log_softmax(-1)
        losses += [-logits[at, label] for at, label in enumerate(labels.tolist()) if label != -100]
    return torch.stack(losses).mean()
