"""Checkpoints of others: every tensor finds its place, the numbers are those of the formulas, and what is converted is the same model."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.ofa_files import LAYOUTS, SIZES, SMALL, as_fork, shapes, weights, write_fairseq, write_fork, write_vocabulary
from tests.models.ofa_reader import Reader
from torch import Tensor
from typer.testing import CliRunner

from exitwise.cli import app
from exitwise.errors import CheckpointError
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, convert_checkpoint, is_checkpoint, load_checkpoint
from exitwise.models.ofa.layouts import layout_of, places, recognise, size_of

WORDS = SMALL.vocabulary - 8192 - 1000
SOURCE, TARGET = [0, 40, 41, 52, 9, 40, 2], [0, 77, 8, 1234, 9]
STATE = weights(SMALL)
HALF = {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}


def outputs(model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    ids = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TARGET])}
    with torch.no_grad():
        return model(**ids, pixel_values=pixels()[None].to(dtype)).logits[0]


def pixels() -> Tensor:
    """2 x 3 cells."""
    return torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights three times over."""
    root = tmp_path_factory.mktemp("files")
    fork = as_fork(STATE, SMALL)
    return {
        "fairseq": write_fairseq(root / "small.pt", STATE),
        "fork": write_fork(root / "fork", fork, SMALL),
        "safetensors": write_fork(root / "safe", fork, SMALL, safetensors=True),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_official_size_is_recognised_and_each_tensor_has_its_place(size: str, layout: str) -> None:
    listed = shapes(SIZES[size], layout)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in listed.items()}
        config = recognise(tensors)
        model = OFAForConditionalGeneration(config)
    official = OFAConfig.size(size).to_dict()
    assert size_of(config) == size and config.to_dict() == official and layout_of(tensors) == layout
    ours = model.state_dict()
    known = places(config, ours, layout)
    assert set(known) == set(listed) | {"encoder.version", "decoder.version"}
    assert {name: known[name].shape for name in listed if known[name].shape is not None} == {
        name: shape for name, shape in listed.items() if name != "decoder.image_position_idx"
    }
    taken = Counter(place.ours for place in known.values() if place.ours is not None)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert set(taken) == set(ours) - tied and taken.pop("model.shared.weight") == 3 and set(taken.values()) == {1}


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_loaded_model_computes_what_the_formulas_say(files: dict[str, Path], decomposed: bool) -> None:
    """In float64: swapped norms, a turned table or a row too many would show in the first digits."""
    model, report = load_checkpoint(files["fairseq"], dtype=torch.float64, decomposed=decomposed)
    expected = Reader(STATE, SMALL).logits(pixels(), SOURCE, TARGET, decomposed)
    assert report.dtype == "float64" and report.decomposed == decomposed and model.config.decomposed == decomposed
    assert torch.allclose(outputs(model, torch.float64), expected, atol=1e-9, rtol=1e-9)
    assert expected.std() > 0.5 and expected.argmax(-1).unique().numel() > 1


def test_all_layouts_give_the_same_model(files: dict[str, Path]) -> None:
    models = {kind: load_checkpoint(file)[0] for kind, file in files.items()}
    for kind in ("fork", "safetensors"):
        assert models[kind].state_dict().keys() == models["fairseq"].state_dict().keys()
        assert all(torch.equal(weight, models["fairseq"].state_dict()[name]) for name, weight in models[kind].state_dict().items())
        assert torch.equal(outputs(models[kind]), outputs(models["fairseq"]))
    one = models["fairseq"]
    assert one.lm_head.weight is one.model.shared.weight is one.model.encoder.embed_tokens.weight is one.model.decoder.embed_tokens.weight
    assert not one.training and not any(weight.requires_grad for weight in one.model.stem.parameters())


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    return weights(SIZES["tiny"], dtype=torch.float16)


def expected_here(name: str, value: Tensor) -> Tensor:
    """A tensor of a file as it must be here: positions that are read, and tables from the query to the key."""
    if name.endswith("embed_positions.weight"):
        return value[:1024]
    if name.endswith("embed_image_positions.weight"):
        return value[1:]
    if "rel_pos_table_list" in name:
        return value[: value.shape[0] - 3 * ("image" in name)].flip(0)
    return value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiny_goes_round_key_by_key(tmp_path: Path, tiny: dict[str, Tensor], layout: str) -> None:
    """The official size with real numbers, in half precision as fairseq trains: file -> model -> folder -> model."""
    size, state = SIZES["tiny"], tiny if layout == "fairseq" else as_fork(tiny, SIZES["tiny"])
    file = write_fairseq(tmp_path / "tiny.pt", state) if layout == "fairseq" else write_fork(tmp_path / "tiny", state, size)
    report = convert_checkpoint(file, tmp_path / "out", processor=False)
    assert (report.size, report.layout, report.dtype, round(report.parameters / 1e6)) == ("tiny", layout, "float16", 33)
    model = OFAForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16 and model.config.image_grids == [[30, 30]]
    ours = model.state_dict()
    assert set(report.used) | set(report.left_over) == set(state) and not set(report.used) & set(report.left_over)
    assert set(report.used.values()) | {n for n in ours if n.endswith(("embed_tokens.weight", "lm_head.weight"))} == set(ours)
    for theirs, here in report.used.items():
        assert torch.equal(ours[here], expected_here(theirs, state[theirs])), theirs
    assert {name.rsplit(".", 2)[-2] for name in report.left_over if name.endswith(("weight", "bias")) and "table" not in name} == {
        "embed_image_positions", "image_pos_ln", "code_layernorm_embedding",
    }  # fmt: skip
    indexes = ("version", "token_rp_bucket", "image_rp_bucket")
    assert all(name.startswith("decoder.") or name.split(".")[-1] in indexes for name in report.left_over)
    assert ("decoder.layers.3.encoder_attn.q_proj.bias" in report.renamed) == (layout == "fairseq")
    assert report.missing == {} and sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["fairseq", "fork"])
def test_weights_lie_in_the_file_and_are_not_copied(files: dict[str, Path], kind: str) -> None:
    model, report = load_checkpoint(files[kind])
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(report.file)]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    copied = [
        name
        for name, weight in model.state_dict().items()
        if not any(start <= weight.data_ptr() < stop for start, stop in spans) and "rel_pos" not in name
    ]
    assert copied == []


def test_weights_may_be_trained_and_the_file_stays_as_it_is(files: dict[str, Path]) -> None:
    before = files["fairseq"].read_bytes()
    model, _ = load_checkpoint(files["fairseq"])
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert files["fairseq"].read_bytes() == before and not model.model.shared.weight.any()


def test_what_a_file_says_of_its_training_is_taken_over(tmp_path: Path) -> None:
    """MuE's own code notes train_mue. A frozen stem has no counts of batches; an older container keeps its settings under 'args'."""
    state = {name: value for name, value in HALF.items() if not name.endswith("num_batches_tracked")}
    file = write_fairseq(tmp_path / "mue.pt", state, train_mue=True, patch_image_size=96)
    container = torch.load(file, weights_only=False)
    container["args"] = container.pop("cfg")["model"]
    container["extra_state"]["ema"] = {}
    torch.save(container, file)
    model, report = load_checkpoint(file)
    assert report.decomposed and model.config.decomposed and report.image_grids == [[6, 6]] and report.size == "custom"
    assert len(report.missing) == 43 and all(name.endswith("num_batches_tracked") for name in report.missing)
    assert report.sections[-1].startswith("extra_state.ema") and {"optimizer_history", "last_optimizer_state"} < set(report.sections)
    assert not load_checkpoint(file, decomposed=False, image_grids=[[2, 3]])[0].config.decomposed


def test_numbers_of_numpy_and_files_that_are_no_archive_can_be_read(tmp_path: Path) -> None:
    file = write_fairseq(tmp_path / "old.pt", HALF, zipped=False)
    data = file.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in data
    file.write_bytes(data.replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"))
    assert load_checkpoint(file)[1].used == load_checkpoint(write_fairseq(tmp_path / "new.pt", HALF))[1].used


def command(*args: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["convert", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("kind", ["fairseq", "fork"])
def test_a_converted_folder_is_a_model_and_a_processor(tmp_path: Path, files: dict[str, Path], kind: str) -> None:
    words = write_vocabulary(tmp_path / "BPE" if kind == "fairseq" else files["fork"], WORDS, fairseq=kind == "fairseq")
    place, out = ("--bpe", words) if kind == "fairseq" else (), tmp_path / "new" / "out"  # the fork's lie beside its weights
    if kind == "fork":
        out.mkdir(parents=True)
    found = json.loads(command(files[kind], out, *place, "--decomposed", "--json").stdout)
    assert found["layout"] == kind and found["decomposed"] and found["used"]["encoder.image_proj.bias"] == "model.encoder.image_proj.bias"
    model, processor = OFAForConditionalGeneration.from_pretrained(out).eval(), OFAProcessor.from_pretrained(out)
    assert torch.equal(outputs(model), outputs(load_checkpoint(files[kind], decomposed=True)[0]))
    assert len(processor.tokenizer) == SMALL.vocabulary and model.config.decomposed
    space, letter, merged, spaced = 4 + 188 + ord(" "), 4 + ord("o") - ord("!"), 4 + 256, 4 + 257  # the same ids from the files of either
    assert processor.tokens(["Ho oho"]) == [[spaced, space, letter, merged]]
    assert processor.tokens(["<code_0> <bin_999>"]) == [[WORDS, space, SMALL.vocabulary - 1]]
    assert processor.encode_texts(["ho"])["input_ids"].tolist() == [[0, spaced, 2]]
    image = Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8))
    assert processor(images=image, text="ho")["pixel_values"].shape == (1, 3, 96, 96)
    before = {file: file.read_bytes() for file in out.iterdir()}
    said = command(files[kind], out, *place, code=2)
    assert "is not empty" in said.stderr and {file: file.read_bytes() for file in out.iterdir()} == before
    assert [each.name for each in out.parent.iterdir()] == ["out"]


def test_an_official_file_is_run_as_it_is(tmp_path: Path, files: dict[str, Path]) -> None:
    """`exitwise run` on the file says what it says on the converted folder, and names the vocabulary that it lacks."""
    words = write_vocabulary(tmp_path / "BPE", WORDS, fairseq=True)
    convert_checkpoint(files["fairseq"], tmp_path / "out", vocabulary=words)
    Image.fromarray(np.full((40, 40, 3), 90, dtype=np.uint8)).save(tmp_path / "a.png")
    asked = ("--image", str(tmp_path / "a.png"), "--json", "--set", "decoder=0.5")
    direct = CliRunner().invoke(app, ["run", str(files["fairseq"]), "--bpe", str(words), *asked])
    converted = CliRunner().invoke(app, ["run", str(tmp_path / "out"), *asked])
    assert direct.exit_code == converted.exit_code == 0, direct.output
    one, other = json.loads(direct.stdout), json.loads(converted.stdout)
    assert {**one, "model": ""} == {**other, "model": ""} and one["model"] != other["model"]
    refused = CliRunner().invoke(app, ["run", str(files["fairseq"]), *asked])
    assert refused.exit_code == 2 and "vocab.bpe" in " ".join(refused.stderr.split())
    surplus = CliRunner().invoke(app, ["run", str(tmp_path / "out"), "--bpe", str(words), *asked])
    assert surplus.exit_code == 2 and "own processor" in surplus.stderr


def test_a_vocabulary_is_asked_for_by_its_files_and_must_fit(tmp_path: Path, files: dict[str, Path]) -> None:
    said = " ".join(command(files["fairseq"], tmp_path / "out", code=2).stderr.split())
    assert "vocab.json, merges.txt or encoder.json, vocab.bpe, dict.txt" in said and "--bpe FOLDER" in said and "--no-processor" in said
    write_vocabulary(tmp_path / "BPE", WORDS + 1, fairseq=True)
    said = command(files["fairseq"], tmp_path / "out", "--bpe", tmp_path / "BPE", code=2).stderr
    assert f"with 8192 codes and 1000 bins {SMALL.vocabulary + 1}" in said
    (tmp_path / "BPE" / "vocab.bpe").write_text("ho ho ho\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_checkpoint(files["fairseq"], tmp_path / "out", vocabulary=tmp_path / "BPE")
    assert [each.name for each in tmp_path.iterdir()] == ["BPE"]
    shown = command(files["fairseq"], tmp_path / "out", "--no-processor")
    assert "OFA-custom" in shown.stdout and "left over" in shown.stdout and "last_optimizer_state" in shown.stderr
    with pytest.raises(CheckpointError, match="from_pretrained loads their folder"):
        load_checkpoint(tmp_path / "out")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert_checkpoint(files["fairseq"], tmp_path / "out" / "config.json" / "inside", processor=False)


def test_what_is_a_checkpoint_and_what_a_model_can_be_told(tmp_path: Path, files: dict[str, Path]) -> None:
    assert all(is_checkpoint(file) for file in files.values()) and is_checkpoint(files["fairseq"].parent)
    OFAConfig.size("tiny").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not is_checkpoint(tmp_path) and not is_checkpoint(tmp_path / "config.json") and not is_checkpoint("shipped")


def test_the_python_on_the_page_runs(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small model in OFA-Base's place; and its commands and options exist."""
    page = (Path(__file__).parents[2] / "docs" / "ofa.md").read_text()
    write_vocabulary(tmp_path / "utils" / "BPE", WORDS, fairseq=True)
    (tmp_path / "ofa_base.pt").symlink_to(files["fairseq"])
    Image.new("RGB", (40, 30), "brown").save(tmp_path / "dog.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M):
        exec(compile(block, "docs/ofa.md", "exec"), names)
    assert set(names["out"].trace.depth) == {"image", "text", "decoder"}
    lines = re.findall(r"^exitwise (\S+)(.*)$", page, flags=re.M)
    assert len(lines) > 5
    for name, rest in lines:
        known = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
        assert all(option in known for option in re.findall(r"--[\w-]+", rest)), rest


def test_sizes_that_nobody_published_are_told_apart() -> None:
    assert size_of(OFAConfig.size("base", vocab_size=60000)) == "base"
    assert size_of(OFAConfig.size("base", encoder_layers=5)) == "custom"
