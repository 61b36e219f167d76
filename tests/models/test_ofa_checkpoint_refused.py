"""What is not exactly an OFA is refused with words that help: foreign classes, damaged files, keys, shapes, settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.ofa_files import SMALL, as_fork, weights, write_fairseq, write_fork
from torch import Tensor

from exitwise.errors import CheckpointError
from exitwise.models.ofa import convert_checkpoint, load_checkpoint

HALF = weights(SMALL, dtype=torch.float16)


class Foreign:
    """Makes a file when it is unpickled carelessly."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


class Stranger:
    """A harmless class, but none of a checkpoint's."""


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_classes_are_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    file, trace = tmp_path / "foreign.pt", tmp_path / "it ran"
    for guest, named in ((Foreign(trace), "system"), (Stranger(), "Stranger")):
        torch.save({"model": {"weight": torch.zeros(2)}, "cfg": guest}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=rf"names [\w.]*{named}, .*left closed"):
            load_checkpoint(file)
        with pytest.raises(CheckpointError):
            convert_checkpoint(file, tmp_path / "out")
    assert not trace.exists() and not (tmp_path / "out").exists()


def test_damaged_files_and_other_things_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    fork = as_fork(HALF, SMALL)
    whole = {
        "pt": write_fairseq(tmp_path / "whole" / "small.pt", HALF),
        "bin": write_fork(tmp_path / "whole" / "fork", fork, SMALL) / "pytorch_model.bin",
        "safetensors": write_fork(tmp_path / "whole" / "safe", fork, SMALL, safetensors=True) / "model.safetensors",
    }
    for ending, file in whole.items():
        for share in (2, 50):
            cut = tmp_path / f"cut.{ending}"
            cut.write_bytes(file.read_bytes()[: file.stat().st_size // share])
            with pytest.raises(CheckpointError, match=rf"cut\.{ending} \([\d,]+ bytes\) cannot be read to its end.*Fetch it again"):
                load_checkpoint(cut)
    for content, said in (
        (b"<html>not found</html>", "is no checkpoint: it begins with b'<html>not fo'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"", "is no checkpoint"),
        (b"\x80\x02garbage", "cannot be read to its end"),
    ):
        (tmp_path / "thing.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / "thing.pt")
    for thing, said in (
        ([1, 2], "holds a list"),
        ({}, "holds no tensors"),
        ({"epoch": 3, "w": torch.zeros(1)}, r"besides tensors, epoch \(int\)"),
        ({"embeddings.word.weight": torch.zeros(3, 2)}, "not the weights of an OFA: 1 tensors, such as 'embeddings.word.weight'"),
    ):
        torch.save(thing, tmp_path / "thing.pt")
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / "thing.pt")
    (tmp_path / "empty").mkdir()
    for path, said in (("none.pt", "does not exist"), ("empty", "holds no weights"), (".", "holds several files")):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / path)


def without(*endings: str) -> dict[str, Tensor]:
    return {name: value for name, value in HALF.items() if not name.endswith(endings)}


def lacking(part: str) -> dict[str, Tensor]:
    return {name: value for name, value in HALF.items() if part not in name}


NORM = "encoder.layers.1.attn_ln.weight"
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "a key less": (without(NORM), r"1 missing \(encoder\.layers\.1\.attn_ln\.weight\)"),
    "the last layer less": (lacking("encoder.layers.2."), r"2 unknown \(encoder\.token_rel_pos_table_list\.2\.weight, "),
    "the first layer less": (lacking("decoder.layers.0."), r"missing or empty are decoder\.layers\.0\.fc1\.weight"),
    "no NormFormer": (without("attn_ln.weight", "attn_ln.bias"), r"14 missing .*plain model"),
    "no head scale": (without("c_attn"), "7 missing .*c_attn"),
    "residual scales": (HALF | {"encoder.layers.0.w_resid": torch.ones(32)}, r"1 unknown \(encoder\.layers\.0\.w_resid\)"),
    "an adapter": (HALF | {"decoder.layers.0.adapter.up_proj.weight": torch.ones(32, 8)}, r"1 unknown .*no adapters"),
    "another shape": (HALF | {NORM: torch.ones(33)}, r"1 of another shape \(encoder\.layers\.1\.attn_ln\.weight \(33,\) for \(32,\)\)"),
    "other positions": (HALF | {"encoder.embed_positions.weight": torch.ones(514, 32)}, r"\(514, 32\) for \(1026, 32\)"),
    "a shorter stem": (lacking(".layer3.5."), r"\[3, 4, 5\] blocks"),
    "a head of its own": (HALF | {"decoder.output_projection.weight": HALF["encoder.embed_tokens.weight"] * 2}, "differ.*one table"),
    "no vocabulary": (without("embed_tokens.weight", "output_projection.weight"), "the vocabulary's names"),
    "another text index": (HALF | {"encoder.token_rp_bucket": HALF["encoder.token_rp_bucket"].T.contiguous()}, "the text's distances"),
    "another image index": (HALF | {"decoder.image_rp_bucket": HALF["decoder.image_rp_bucket"].T.contiguous()}, "the image's cells"),
    "an empty table": (HALF | {"encoder.token_rel_pos_table_list.0.weight": torch.ones(0, 4)}, "missing or empty are encoder.token_rel"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_exactly_an_ofa_is_refused(tmp_path: Path, what: str) -> None:
    state, said = REFUSED[what]
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(write_fairseq(tmp_path / "bad.pt", state))
    (tmp_path / "bad.pt").unlink()


def test_settings_that_this_model_does_not_have_are_refused(tmp_path: Path) -> None:
    fork = as_fork(HALF, SMALL)
    for setting, value in (("attn_scale_factor", 1), ("disable_entangle", False), ("sync_bn", True), ("activation_fn", "relu")):
        with pytest.raises(CheckpointError, match=f"made with {setting} = "):
            load_checkpoint(write_fairseq(tmp_path / "bad.pt", HALF, **{setting: value}))
    for setting, value in (("normformer", False), ("scale_embedding", True), ("activation_function", "relu")):
        with pytest.raises(CheckpointError, match=f"made with {setting} = "):
            load_checkpoint(write_fork(tmp_path / "bad", fork, SMALL, **{setting: value}))
    with pytest.raises(CheckpointError, match="encoder_layers = 6, the weights 3"):
        load_checkpoint(write_fork(tmp_path / "bad", fork, SMALL, encoder_layers=6))
    (tmp_path / "bad" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        load_checkpoint(tmp_path / "bad")
