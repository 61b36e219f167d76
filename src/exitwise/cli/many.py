"""Many images through one engine: a line of JSON for each, written as they are done, so that a stopped job goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..bench.journal import whole_lines
from ..engine import Engine
from ..errors import InputError
from ..kept import fingerprint
from .asking import Question, ask, asker_of, item_of


@dataclass
class Tally:
    """What became of the images: lines written now, lines that an earlier job had written, and those that cannot be read, by name."""

    written: int = 0
    known: int = 0
    skipped: list[str] = field(default_factory=list)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, by name. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist. Give one that holds images.")
    endings = Image.registered_extensions()
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in endings and file.is_file())
    if not found:
        raise InputError(f"{folder} holds no image. Files are known by their ending: .jpg, .png and whatever else Pillow reads.")
    return found


def many(
    engine: Engine,
    processor: Any,
    question: Question,
    folder: Path,
    out: Path,
    rows: int = 16,
    tick: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Asks the same about every image of the folder and appends to `out`; images that are in it already are not asked again.

    The file beside it, OUT.run.json, says with what it was written. Raises InputError where that was another model, question or setting.
    """
    files = images_in(folder)
    _same(out.with_name(f"{out.name}.run.json"), _config(engine, question))
    seen = {line["image"] for line in whole_lines(out)}
    waiting = [file for file in files if str(file.relative_to(folder)) not in seen]
    tally = Tally(known=len(files) - len(waiting))
    tick(tally.known)
    with out.open("a", encoding="utf-8") as lines:
        for start in range(0, len(waiting), rows):
            part = waiting[start : start + rows]
            good = [file for file in part if _readable(file, tally)]
            for file, line in zip(good, _asked(engine, processor, question, good), strict=True):
                lines.write(json.dumps({"image": str(file.relative_to(folder)), **line}, ensure_ascii=False) + "\n")
                tally.written += 1
            lines.flush()
            tick(len(part))
    return tally


def _asked(engine: Engine, processor: Any, question: Question, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The unified model takes them as a batch, any other one by one."""
    from ..models.ofa import OFAProcessor

    if not isinstance(processor, OFAProcessor):
        for file in files:
            reply = ask(engine, processor, replace(question, image=file))
            yield _line(reply.text, reply.tokens, {s: reply.trace.mean_depth(s) for s in reply.trace.depth})
        return
    if not files:
        return
    asker = asker_of(engine, processor, question)
    said = asker.ask(engine, asker.prepare([item_of(replace(question, image=file)) for file in files]), len(files))
    encoder = {s: depth.tolist() for s, depth in said.trace.depth.items() if depth.dim() == 1 and len(depth) == len(files)}
    for place, (text, tokens) in enumerate(zip(said.texts, said.tokens, strict=True)):
        written = [depth for _, depth in tokens]
        decoder = {"decoder": sum(written) / len(written)} if written else {}
        yield _line(text, tokens, {**{s: float(depths[place]) for s, depths in encoder.items()}, **decoder})


def _line(text: str, tokens: Sequence[tuple[str, int]], depth: Mapping[str, float]) -> dict[str, Any]:
    return {"text": text, "tokens": [list(token) for token in tokens], "depth": {s: round(d, 3) for s, d in depth.items()}}


def _readable(file: Path, tally: Tally) -> bool:
    from ..models.ofa.images import open_image

    try:
        open_image(file, "the image")
    except InputError as error:
        tally.skipped.append(str(error))
        return False
    return True


def _config(engine: Engine, question: Question) -> dict[str, Any]:
    """What the answers depend on besides the image, as JSON gives it back."""
    asked = {"kind": question.kind, "prompt": question.prompt, "candidates": question.candidates, "beams": question.beams}
    body = {**asked, "longest": question.longest, "method": engine.method_name, "settings": engine.settings_dict()}
    found: dict[str, Any] = json.loads(json.dumps({**body, "model": fingerprint(engine.model)}))
    return found


def _same(file: Path, config: Mapping[str, Any]) -> None:
    """Notes the configuration beside a new output; raises InputError if an old one was another."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        return
    known = json.loads(file.read_text(encoding="utf-8"))
    unlike = sorted(key for key in {*config, *known} if config.get(key) != known.get(key))
    if unlike:
        raise InputError(
            f"{file.name.removesuffix('.run.json')} was begun with another {', '.join(unlike)}. Give another --out, or the same settings."
        )
