"""One look at a real language model, where one lies in the cache: what it writes through the exits is what it writes by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from exitwise import Engine
from exitwise.pretrained import Speaker, language_model

FOLDER = Path(os.environ.get("REAL_MODELS_CACHE", Path.home() / ".cache" / "real-models")) / "smollm2-135m"


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    if not (FOLDER / "model.safetensors").is_file():
        pytest.skip(f"SmolLM2-135M-Instruct is not in {FOLDER}; REAL_MODELS_CACHE names another cache")
    return language_model(FOLDER)


def test_a_chat_of_two_rows_is_the_models_own(speaker: Speaker) -> None:
    batch = speaker.prompts(["Name a fruit.", "What is the capital of France? Answer in one word."])
    assert speaker.chats and not batch["attention_mask"].all()
    want = speaker.model.generate(**batch, max_new_tokens=6, do_sample=False)
    out = Engine(speaker.model, "never").generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(out.sequences, want) and "Paris" in speaker.text(want[1, -6:])
    early = Engine(speaker.model, "static", decoder=20).generate(**batch, max_new_tokens=6, do_sample=False)
    assert (early.depth[:, 0] == 30).all()  # the prompt, and with it the first token, runs through all layers
    assert (early.depth[:, 1:] == 20).sum() >= 5 and early.trace.calls["model.layers"] == 30 + 20 * (early.depth.shape[1] - 1)
