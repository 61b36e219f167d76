"""One run, one JSON file under results/: what was measured, on what, from which commit; files are added and never changed."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from exitwise.errors import InputError
from exitwise.few import kernel
from exitwise.machine import machine

SCHEMA = 1
PACKAGES = ("exitwise", "torch", "transformers", "accelerate", "numpy", "safetensors", "tokenizers", "pillow")


def versions() -> dict[str, str]:
    """Package -> version, with Python; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str | None, bool | None]:
    """(hash, whether files of this package were changed since) of the work tree this code lies in; (None, None) outside git."""
    here = Path(__file__).parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "."], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head, bool(changed.strip())


def peak_gib() -> float:
    """The most memory that this process has held so far, GiB (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


@contextmanager
def run(folder: str | Path, name: str, config: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """A record to fill in; it is written when the block ends, with status `done`, or `failed` and the reason if the block raises."""
    began = datetime.now(timezone.utc)
    head, dirty = commit()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "status": "running",
        "started": began.isoformat(timespec="seconds"),
        "config": config,
        "seed": seed,
        "versions": versions(),
        "machine": {**machine(), "kernel": kernel() is not None},
        "commit": head,
        "dirty": dirty,
    }
    try:
        yield record
        record["status"] = "done"
    except BaseException as error:
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record["seconds"] = round((datetime.now(timezone.utc) - began).total_seconds(), 1)
        record["peak_gib"] = round(peak_gib(), 3)
        record["file"] = str(_write(Path(folder), name, began, record).name)


def read(file: str | Path) -> dict[str, Any]:
    """A record; InputError if the file is not one."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"{file} cannot be read as a run ({error}). Give a JSON file that `exitwise demo` or `exitwise bench` wrote."
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(
            f"{file} is not a run of this version (schema {SCHEMA}). Give a JSON file that `exitwise demo` or `exitwise bench` wrote."
        )
    return found


def latest(folder: str | Path, prefix: str = "") -> list[dict[str, Any]]:
    """The newest finished run of each name that begins with `prefix`, by name."""
    newest: dict[str, dict[str, Any]] = {}
    for file in sorted(Path(folder).glob("*.json"), key=lambda file: file.stem):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        usable = isinstance(found, dict) and found.get("schema") == SCHEMA and found.get("status") == "done"
        if usable and str(found["name"]).startswith(prefix):
            newest[found["name"]] = found
    return [newest[name] for name in sorted(newest)]


def summarise(folder: str | Path, figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Puts figures into FOLDER/summary.json, beside what is there, and gives the whole; runs that end at once wait for each other.

    Raises InputError for a file that is no flat object: it is left as it is.
    """
    file = Path(folder) / "summary.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except json.JSONDecodeError as error:
            raise InputError(f"{file} is not JSON ({error}). Mend or delete it; the runs beside it hold their figures.") from None
        if not isinstance(found, dict):
            raise InputError(f"{file} holds a {type(found).__name__}, not names with figures. Mend or delete it.")
        whole = dict(sorted({**found, **figures}.items()))
        part = file.with_suffix(".part")
        part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    return whole


def _write(folder: Path, name: str, began: datetime, record: dict[str, Any]) -> Path:
    """Writes under a name that no file has yet: <time>-<name>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{began:%Y%m%d-%H%M%S}-{name}"
    for number in range(1000):
        file = folder / (f"{stem}.json" if number == 0 else f"{stem}-{number}.json")
        try:
            with file.open("x", encoding="utf-8") as out:
                json.dump(record, out, ensure_ascii=False, indent=1, default=_plain)
            return file
        except FileExistsError:
            continue
    raise InputError(f"{folder} holds a thousand runs called {stem}. Clear it.")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
