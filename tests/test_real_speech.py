"""One look at a real speech model, where one lies in the cache: what it hears through the loop is what it hears by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from exitwise import Engine
from exitwise.bench import metrics
from exitwise.bench.decode import clips, speech

CACHE = Path(os.environ.get("REAL_MODELS_CACHE", Path.home() / ".cache" / "real-models"))
FOLDER = Path(os.environ.get("EXITWISE_SPEECH_MODEL", CACHE / "whisper-tiny-en"))
CLIP = Path(".data/models-small/audio/jfk.npy")


def test_a_sentence_that_everybody_knows() -> None:
    if not (FOLDER / "model.safetensors").is_file() or not CLIP.is_file():
        pytest.skip(f"Whisper tiny.en is not in {FOLDER} (EXITWISE_SPEECH_MODEL names another folder), or {CLIP} is not there")
    heard, clip = speech.load(FOLDER), clips.read(CLIP)
    states = heard.states(clip)
    want = heard.model.generate(encoder_outputs=states, max_new_tokens=64, return_dict_in_generate=True).sequences
    assert metrics.wer([heard.text(want[0].tolist())], [speech.KNOWN["jfk"]]) == 0.0
    for engine in (Engine(heard.model, "never"), Engine(heard.model, "layerskip", depth=3, drafts=3)):
        out = engine.generate(encoder_outputs=states, max_new_tokens=64)
        assert torch.equal(out.sequences, want) and out.drafts is not None
    assert out.drafts.accepted > 0
