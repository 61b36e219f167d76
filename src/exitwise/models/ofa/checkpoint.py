"""From a checkpoint of OFA, as its makers or the fork of transformers wrote it, to this model: load it, or convert it once and for all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from exitwise.errors import CheckpointError

from .layouts import OURS_TIED, VOCABULARY, Place, check_indexes, check_settings, layout_of, places, recognise, size_of
from .modeling import OFAForConditionalGeneration
from .processing import OFAProcessor
from .reading import Opened, open_weights
from .vocabulary import load_tokenizer

SHOWN = 4  # names of each kind in an error


@dataclass(frozen=True)
class CheckpointReport:
    """What became of every tensor of a file, by its name there.

    `used`: our name for it. `renamed`: those of them that other than a leading 'model.' changed. `changed`: what was done to their rows.
    `missing`: our names of what the file lacks and may lack, with what stands in. `left_over`: why nothing here needs it.
    `sections`: parts of the file that hold no weights of the model and were not looked at.
    """

    file: str
    layout: str
    size: str
    dtype: str
    parameters: int
    decomposed: bool
    image_grids: list[list[int]]
    used: dict[str, str]
    renamed: dict[str, str]
    changed: dict[str, str]
    missing: dict[str, str]
    left_over: dict[str, str]
    sections: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return asdict(self)


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | None = None,
    decomposed: bool | None = None,
    image_grids: Sequence[Sequence[int]] | None = None,
) -> tuple[OFAForConditionalGeneration, CheckpointReport]:
    """The model in evaluation mode, and what became of every tensor of the file.

    `path`: a fairseq `.pt`, the fork's `pytorch_model.bin` or `.safetensors`, or a folder that holds one. Without `dtype` the weights stay
    as the file has them and lie in it, mapped: the file must stay in place, and is never written to. `decomposed` and `image_grids` are
    those of OFAConfig; without them they are what the file says of its training (MuE's, and the size of its images), or OFA's.
    Raises CheckpointError for a file that cannot be read or is not exactly an OFA.
    """
    opened = open_weights(path)
    layout = layout_of(opened.tensors)
    config = recognise(opened.tensors, _decomposed(opened.settings, decomposed), _grids(opened.settings, image_grids))
    check_settings(opened.settings, config, opened.fairseq)
    with torch.device("meta"):
        model = OFAForConditionalGeneration(config).eval()
    ours = model.state_dict()
    known = places(config, ours, layout)
    _compare(opened, known)
    check_indexes(opened.tensors, config)
    weights = _weights(opened.tensors, known, dtype)
    missing = {name: "0: a count of batches, which nothing reads" for name in ours if name not in weights}
    weights |= {name: torch.zeros(ours[name].shape, dtype=ours[name].dtype) for name in missing}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model, _report(opened, layout, model, known, missing)


def convert_checkpoint(
    path: str | Path, out: str | Path, decomposed: bool | None = None, vocabulary: str | Path | None = None, processor: bool = True
) -> CheckpointReport:
    """Writes a folder that OFAForConditionalGeneration.from_pretrained loads, and OFAProcessor.from_pretrained unless `processor` is False.

    `vocabulary`: the folder of the BPE files (`vocabulary.FILES`); without it they are looked for beside the checkpoint. The folder appears
    when it is complete. Raises CheckpointError, also where `out` holds anything.
    """
    out, source = Path(out), Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty. Give a new folder: nothing is overwritten.")
    model, report = load_checkpoint(source, decomposed=decomposed)
    folder = vocabulary if vocabulary is not None else Path(report.file).parent
    made = OFAProcessor.for_config(load_tokenizer(folder, model.config.vocab_size), model.config) if processor else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
            written = Path(unfinished) / "model"
            model.save_pretrained(written)
            if made is not None:
                made.save_pretrained(written)
            if out.exists():
                out.rmdir()
            written.replace(out)
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(f"{out} cannot be written: {problem}. Give a folder on a disk with room.") from problem
    return report


def _decomposed(settings: Mapping[str, Any], given: bool | None) -> bool:
    """Shapes do not show it: MuE's own code notes it as train_mue."""
    return bool(settings.get("train_mue", False)) if given is None else given


def _grids(settings: Mapping[str, Any], given: Sequence[Sequence[int]] | None) -> list[list[int]] | None:
    """Shapes do not show it: fairseq notes the side of the images that the model was last trained on, in pixels of 16 to a cell."""
    if given is not None:
        return [list(grid) for grid in given]
    pixels = settings.get("patch_image_size")
    return [[pixels // 16] * 2] if isinstance(pixels, int) and pixels > 0 and pixels % 16 == 0 else None


def _compare(opened: Opened, known: Mapping[str, Place]) -> None:
    """Raises CheckpointError unless the file holds all that is needed, nothing unknown, and every shape is right."""
    tensors = opened.tensors
    missing = [name for name, place in known.items() if place.needed and name not in tensors]
    foreign = [name for name in tensors if name not in known]
    unlike = [
        f"{name} {tuple(tensors[name].shape)} for {place.shape}"
        for name, place in known.items()
        if name in tensors and place.shape is not None and tuple(tensors[name].shape) != place.shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("unknown", foreign), ("of another shape", unlike))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{opened.file} is not exactly an OFA: of {len(tensors)} tensors, {'; '.join(faults)}. Nothing is loaded in part: find a whole "
            "checkpoint, of the plain model (no adapters, no prompts, with its NormFormer norms)."
        )


def _weights(tensors: Mapping[str, Tensor], known: Mapping[str, Place], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Our names -> tensors, which lie in the file unless they had to be changed."""
    weights: dict[str, Tensor] = {}
    for name, place in known.items():
        if place.ours is None or name in VOCABULARY or name not in tensors:
            continue
        weights[place.ours] = _cast(place.change(tensors[name]) if place.change else tensors[name], dtype)
    vocabulary = _cast(_one_vocabulary(tensors), dtype)
    return weights | dict.fromkeys(OURS_TIED, vocabulary)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _one_vocabulary(tensors: Mapping[str, Tensor]) -> Tensor:
    """The table of tokens, which embedding, decoder and head share. Raises CheckpointError where they do not."""
    first, *others = (name for name in VOCABULARY if name in tensors)
    for other in others:
        shared = tensors[first].data_ptr() == tensors[other].data_ptr()
        if not shared and not torch.equal(tensors[first], tensors[other]):
            raise CheckpointError(f"{first} and {other} differ. This model has one table of tokens for input, decoder and head.")
    return tensors[first]


def _report(
    opened: Opened, layout: str, model: OFAForConditionalGeneration, known: Mapping[str, Place], missing: dict[str, str]
) -> CheckpointReport:
    held = {name: known[name] for name in opened.tensors}
    used = {name: place.ours for name, place in held.items() if place.ours is not None}
    return CheckpointReport(
        file=str(opened.file),
        layout=layout,
        size=size_of(model.config),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(weight.numel() for weight in model.parameters()),
        decomposed=model.config.decomposed,
        image_grids=model.config.image_grids,
        used=used,
        renamed={name: ours for name, ours in used.items() if ours != f"model.{name}"},
        changed={name: place.note for name, place in held.items() if place.ours is not None and place.note},
        missing=missing,
        left_over={name: place.note for name, place in held.items() if place.ours is None},
        sections=opened.sections,
    )
