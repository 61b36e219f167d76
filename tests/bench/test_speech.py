"""Recordings are read and cut, and every way to transcribe them is held to the model's own text and to what is known of it."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.speakers import tokenizer

from exitwise import Engine
from exitwise.bench import decoding, metrics
from exitwise.bench.decode import clips, hearing, speech
from exitwise.errors import CheckpointError, InputError

TOKENS = 6


def written(file: Path, samples: Any, channels: int = 1, rate: int = clips.RATE) -> None:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that hears one second, with a tokenizer and a feature extractor."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    place = tmp_path_factory.mktemp("speech") / "model"
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=50, max_target_positions=64, dropout=0.0, init_std=0.3,
        decoder_start_token_id=3, pad_token_id=1, bos_token_id=0, eos_token_id=2, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.no_timestamps_token_id = 7
    model.save_pretrained(place)
    tokenizer().save_pretrained(place)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of noise, one of them named as one whose text is known."""
    place, noise = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    np.save(place / "jfk.npy", noise.normal(0, 0.1, clips.RATE).astype(np.float32))
    written(place / "other.wav", noise.normal(0, 0.1, clips.RATE).clip(-1, 1))
    (place / "notes.txt").write_text("no sound")
    return place


def test_recordings_are_read_whatever_they_are_kept_in(sounds: Path, tmp_path: Path) -> None:
    found = clips.recordings(sounds)
    assert [(clip.recording, clip.seconds, clip.samples.dtype) for clip in found] == [("jfk", 1.0, np.float32), ("other", 1.0, np.float32)]
    written(tmp_path / "ramp.wav", [0.0, 0.5, -1.0])
    assert clips.read(tmp_path / "ramp.wav").samples == pytest.approx([0.0, 0.5, -1.0], abs=1e-4)  # 16 bits
    written(tmp_path / "two.wav", [0.0] * 8, channels=2)
    np.save(tmp_path / "whole.npy", np.zeros(4, np.int64))
    for name in ("two.wav", "whole.npy"):
        with pytest.raises(InputError, match=r"Give one (channel )?of"):
            clips.read(tmp_path / name)
    with pytest.raises(InputError, match="holds no recording"):
        clips.recordings(tmp_path / "nowhere")


def test_pieces_cover_a_recording_and_say_where_they_begin() -> None:
    whole = clips.Clip("a", 0.0, np.arange(11 * clips.RATE, dtype=np.float32))
    found = clips.pieces(whole, 5.0, 5.0)
    assert [piece.start for piece in found] == [0.0, 5.0, 6.0] and {piece.seconds for piece in found} == {5.0}
    assert all(piece.samples[0] == piece.start * clips.RATE for piece in found)
    short = clips.Clip("b", 0.0, np.zeros(100, np.float32))
    assert [len(piece.samples) for piece in clips.pieces(short, 5.0, 1.0)] == [100]


def test_every_way_is_held_to_the_models_own_text(folder: Path, sounds: Path, tmp_path: Path) -> None:
    heard = speech.load(folder)
    weights = {name: value.clone() for name, value in heard.model.state_dict().items()}
    made = hearing.measure(heard, sounds, tmp_path / "out", "try", tmp_path / "exits", lambda _: None, steps=2, tokens=TOKENS)
    rows = {row["key"]: row for row in made["speech"]}
    items = made["task"]["items"]
    assert items == 3  # one piece of each, and the whole of the one that is known
    for row in rows.values():
        if row["lossless"]:
            assert row["equal"] == items and row["wer"] == 0.0, row["key"]
    assert {row["key"] for row in rows.values() if row["lossless"]} >= {"generate", "never", "layerskip, depth 3", "ngram"}
    assert rows["never"]["depth"]["decoder"] == 4 and [rows[f"static, depth {d}"]["depth"]["decoder"] for d in (1, 2, 3)] == [1, 2, 3]
    macs = [rows[f"static, depth {d}"]["macs"] for d in (1, 2, 3)]
    assert macs == sorted(macs) and macs[0] < rows["never"]["macs"] == pytest.approx(
        1.0, abs=0.05
    )  # masks and cross keys are made otherwise
    assert {row["key"] for row in rows.values() if row["trained"]} >= {"static, depth 1, ramps", "softmax 0.9, ramps", "classifier 0.8"}
    assert any(row["sound"] and "audio" in row["depth"] for row in rows.values()) and all(
        row["wer_text"] is not None for row in rows.values()
    )
    assert "too few" in made["config"]["training"] and hearing.render(made).count("\n") == len(rows) + 1
    written = (tmp_path / "out" / made["file"]).read_text()
    assert json.loads(written)["status"] == "done" and str(tmp_path) not in written
    assert all(torch.equal(value, weights[name]) for name, value in heard.model.state_dict().items())  # the base is frozen


def test_wrong_words_are_counted_against_full_depth_and_against_the_known_text() -> None:
    clip = clips.Clip("jfk", 0.0, np.zeros(clips.RATE, np.float32))

    def told(text: str, macs: int) -> dict[str, Any]:
        return {"text": text, "tokens": 4, "depth": {"decoder": 2.0}, "macs": macs, "wall": macs / 2, "processor": macs / 4}

    lines = [{"ways": {"generate": told("ask not what", 8), "x": told("ask not that", 4)}}]
    row = speech._row(speech.Way("x", "x", lambda _: Engine), [clip], lines)  # type: ignore[arg-type,return-value]
    assert row["wer"] == pytest.approx(100 / 3) and row["macs"] == 0.5 and row["wall"]["median"] == 0.5 and row["equal"] == 0
    wanted = len(metrics.words(speech.KNOWN["jfk"]))
    assert row["wer_text"] == pytest.approx(100 * (wanted - 2) / wanted)


def test_the_step_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    found, missing = decoding.transcribing(decoding.Wish(speech=str(folder), sounds=tmp_path / "none"), tmp_path, {}, lambda _: None)
    assert not found and "none is not there" in missing[0]
    found, missing = decoding.transcribing(decoding.Wish(speech=str(folder), sounds=tmp_path), tmp_path, {}, lambda _: None)
    assert list(found) == ["decode-whisper"] and not missing
    with pytest.raises(CheckpointError, match="does not hold a speech model"):
        speech.load(tmp_path)
    with pytest.raises(InputError, match="only recording"):
        hearing.ways(speech.load(folder), [clips.Clip("a", 0.0, np.zeros(clips.RATE, np.float32))], tmp_path, None, 3, lambda _: None)  # type: ignore[arg-type]
