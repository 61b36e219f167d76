"""A watch on a running engine: where its rows leave, how its states settle, and whether what was promised still seems to hold.

On a sampled share of the requests the model runs again at full depth, in the shadow of the answer that was given, and the two are compared.
The flag is raised when the evidence that the mean loss is above the risk reaches 1/alpha: if the promise holds, that happens with
probability alpha at most, however often one looks (`calibrate.evidence`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibrate.budget import NEVER
from .calibrate.evidence import Evidence
from .calibrate.guarantee import Promise
from .calibrate.promised_runs import DISAGREEMENT
from .engine import Engine
from .errors import CheckpointError, FingerprintError, InputError, KnobError
from .kept import fingerprint

Loss = Callable[[Any, Any, Mapping[str, Any]], Sequence[float | None]]
FORMAT = 1
UNSHARED = (
    "past_key_values",
    "logits_processor",
    "stopping_criteria",
    "assistant_model",
)  # a second run would change them, or is not alike
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What was seen so far.

    requests: calls served. compared: rows that were also run at full depth; skipped: sampled calls that could not be; failed: shadows that
    ended in an exception, and what the last one said. mean_loss: of the rows compared. capital: evidence against the promise, 1 at the
    beginning; flagged: whether it ever reached 1/alpha, and flagged_at: after how many compared rows. exits: stream -> how many rows
    (decoder: tokens) left at each depth 1..n. sureness: stream -> mean similarity after each layer at full depth, on what was compared.
    """

    requests: int = 0
    compared: int = 0
    skipped: int = 0
    failed: int = 0
    failure: str = ""
    risk: float = 0.0
    alpha: float = 0.01
    mean_loss: float | None = None
    capital: float = 1.0
    flagged: bool = False
    flagged_at: int | None = None
    exits: dict[str, list[int]] = field(default_factory=dict)
    sureness: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        seen = "nothing compared yet" if self.mean_loss is None else f"mean loss {self.mean_loss:.4g} on {self.compared} rows compared"
        state = f"FLAG raised after {self.flagged_at} rows: the risk of {self.risk:g} is exceeded" if self.flagged else "no flag"
        failed = f", {self.failed} shadows failed ({self.failure})" if self.failed else ""
        return f"{state}; {seen}, evidence {self.capital:.3g} of {1 / self.alpha:.3g}; {self.requests} requests{failed}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Monitor:
    """An engine under watch: `generate` and `run` are the engine's own, and return exactly what it returns.

    promise: `guarantee.Promise`, the dict in `Engine.calibration.promise`, or a risk in (0, 1). share: of the requests that run again, at
    full depth. alpha: probability of a false alarm, ever. loss: (output at full depth, output given, the call's arguments) -> for each row
    a number in [0, 1], or None where the row does not count; by default 1.0 where the row's sequence, or the likeliest class of its (last)
    logits, is not full depth's. seed: of the sampling. An exception in the shadow is counted and logged, and reaches nobody.
    Raises KnobError for numbers outside their range, and for a promise about a loss that disagreement is not.
    """

    def __init__(
        self,
        engine: Engine,
        promise: Promise | Mapping[str, Any] | float,
        share: float = 0.02,
        alpha: float = 0.01,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < share <= 1:
            raise KnobError(f"share={share} is not a share of requests. Allowed: above 0, at most 1; 0.02 is one of fifty.")
        if not 0 < alpha < 1:
            raise KnobError(f"alpha={alpha} is not a probability of a false alarm. Allowed: above 0, below 1, such as 0.01.")
        self.engine, self.share, self.alpha, self.seed, self.loss = engine, share, alpha, seed, loss
        self.full = engine.with_settings(**{s: NEVER for s in engine.layers if s in engine.method.calibrated})
        if not engine.method.calibrated:
            self.full = Engine(engine.model, "never", engine.family)
        self._evidence = Evidence(_risk(promise, loss))
        self._lock = threading.Lock()
        self._count = {"requests": 0, "skipped": 0, "failed": 0}
        self._lost, self._failure = 0.0, ""
        self._flagged_at: int | None = None
        self._exits: dict[str, list[int]] = {}
        self._sure: dict[str, list[list[float]]] = {}  # stream -> (sum, count) by layer

    # -- serving ----------------------------------------------------------------------------------------------------------------

    def generate(self, **inputs: Any) -> Any:
        """`Engine.generate`, watched."""
        return self._served("generate", inputs)

    def run(self, **inputs: Any) -> Any:
        """`Engine.run`, watched."""
        return self._served("run", inputs)

    def _served(self, verb: str, inputs: dict[str, Any]) -> Any:
        out = getattr(self.engine, verb)(**inputs)
        try:
            with self._lock:
                number = self._count["requests"]
                self._count["requests"] += 1
                self._exited(out.trace)
                sampled = np.random.default_rng([self.seed, number]).random() < self.share
                if sampled and not self._comparable(inputs):
                    self._count["skipped"] += 1
                    sampled = False
            if sampled:
                self._compare(verb, inputs, out)
        except Exception as problem:  # the answer stands, whatever happens to the watch
            self._count["failed"] += 1
            self._failure = f"{type(problem).__name__}: {problem}"
            log.warning("a shadow run failed: %s", self._failure)
        return out

    def _comparable(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a second run would give the same at the same depths, and leave the caller's objects alone."""
        config = inputs.get("generation_config") or getattr(self.engine.model, "generation_config", None)
        drawn = inputs.get("do_sample", getattr(config, "do_sample", False))
        return not drawn and all(inputs.get(name) is None for name in UNSHARED)

    def _compare(self, verb: str, inputs: Mapping[str, Any], out: Any) -> None:
        """The shadow: the same call at full depth, with the random numbers of the caller untouched."""
        given = {name: value for name, value in inputs.items() if name not in ("streamer", "record")}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            shadow = getattr(self.full, verb)(record=True, **given)
        losses = (self.loss or self._disagreement)(shadow, out, inputs)
        counted = [float(each) for each in losses if each is not None]
        if not all(0 <= each <= 1 for each in counted):
            raise InputError(f"The loss function gave {counted}. Give a number in 0..1 for each row, or None where it does not count.")
        with self._lock:
            for each in counted:
                self._evidence.add(each)
                self._lost += each
                if self._flagged_at is None and float(self._evidence.capital) >= 1 / self.alpha:
                    self._flagged_at = self._evidence.rows
                    log.warning("%s", self.report())
            self._settled(shadow.trace.sureness)

    def _disagreement(self, full: Any, early: Any, inputs: Mapping[str, Any]) -> list[float]:
        """1.0 for each row whose output is not full depth's."""
        config = getattr(self.engine.model, "generation_config", None)
        known = [getattr(config, name, None) for name in ("pad_token_id", "eos_token_id")]
        ends = {token for each in known for token in (each if isinstance(each, list) else [each])}
        return [float(a != b) for a, b in zip(_said(full, ends), _said(early, ends), strict=True)]

    def _exited(self, trace: Any) -> None:
        for stream, depth in trace.depth.items():
            counts = torch.bincount(depth.flatten(), minlength=trace.layers[stream] + 1)[1:].tolist()
            before = self._exits.get(stream, [0] * len(counts))
            self._exits[stream] = [a + b for a, b in zip(before, counts, strict=True)]

    def _settled(self, sureness: Mapping[str, Tensor]) -> None:
        for stream, sure in sureness.items():
            flat = sure.flatten(0, -2).double()
            sums, counts = flat.nansum(0).tolist(), (~flat.isnan()).sum(0).tolist()
            before = self._sure.get(stream, [[0.0, 0.0]] * len(sums))
            self._sure[stream] = [[a + s, n + c] for (a, n), s, c in zip(before, sums, counts, strict=True)]

    # -- what was seen ----------------------------------------------------------------------------------------------------------

    @property
    def flagged(self) -> bool:
        """Whether the flag was ever raised; it stays."""
        return self._flagged_at is not None

    def report(self) -> Report:
        """All that was seen so far."""
        rows = self._evidence.rows
        return Report(
            **self._count, compared=rows, failure=self._failure, risk=self._evidence.risk, alpha=self.alpha, flagged=self.flagged,
            mean_loss=self._lost / rows if rows else None, capital=float(self._evidence.capital), flagged_at=self._flagged_at,
            exits={s: list(counts) for s, counts in self._exits.items()},
            sureness={s: [total / count if count else float("nan") for total, count in each] for s, each in self._sure.items()},
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the state as JSON, so that the watch goes on after a restart."""
        body = {
            "format": FORMAT, "base": fingerprint(self.engine.model), "settings": _plain(self.engine.settings_dict()), "share": self.share,
            "alpha": self.alpha, "seed": self.seed, "evidence": self._evidence.to_dict(), "count": self._count, "lost": self._lost,
            "failure": self._failure, "flagged_at": self._flagged_at, "exits": self._exits, "sure": self._sure,
        }  # fmt: skip
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        with self._lock:
            part.write_text(json.dumps(body, indent=1))
        part.replace(file)
        return file

    @classmethod
    def load(cls, path: str | Path, engine: Engine, loss: Loss | None = None) -> Monitor:
        """A watch as it was saved; the loss function is given again. Raises CheckpointError (no or damaged file), FingerprintError (it
        watched another model, or other thresholds)."""
        try:
            body = json.loads(Path(path).read_text())
            if body["format"] != FORMAT:
                raise CheckpointError(f"{path} has format {body['format']}; this version reads format {FORMAT}. Begin a new watch.")
            known = body["base"] == fingerprint(engine.model) and body["settings"] == _plain(engine.settings_dict())
            out = cls(engine, body["evidence"]["risk"], body["share"], body["alpha"], loss, body["seed"])
            out._evidence = Evidence.from_dict(body["evidence"])
            out._count, out._lost, out._failure = body["count"], body["lost"], body["failure"]
            out._flagged_at, out._exits, out._sure = body["flagged_at"], body["exits"], body["sure"]
        except FileNotFoundError:
            raise CheckpointError(f"{path} is not there. Give the file that `Monitor.save` wrote.") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as problem:
            raise CheckpointError(f"{path} is damaged ({problem!r}). Begin a new watch.") from None
        if not known:
            raise FingerprintError("This watch was kept over another model or other thresholds. Begin a new one, with the new promise.")
        return out


def _risk(promise: Promise | Mapping[str, Any] | float, loss: Loss | None) -> float:
    if isinstance(promise, Mapping):
        promise = Promise.from_dict(promise)
    if not isinstance(promise, Promise):
        return promise
    if promise.setting is None:
        raise KnobError("Nothing but full depth was promised: there is nothing to watch. Give a risk, such as 0.05, for other exits.")
    if loss is None and promise.loss not in ("", DISAGREEMENT):
        raise KnobError(
            f"The promise is about {promise.loss}. Give the monitor that loss, or a risk of disagreement of its own: Monitor(engine, 0.05)."
        )
    return promise.risk


def _said(out: Any, ends: set[Any]) -> list[Any]:
    """What an output says for each row: its tokens without what fills it up, or the likeliest class of its (last) logits."""
    if getattr(out, "sequences", None) is not None:
        rows: list[list[int]] = out.sequences.tolist()
        for row in rows:
            while row and row[-1] in ends:
                row.pop()
        return rows
    logits = getattr(out, "logits", None)
    if logits is None:
        raise InputError(f"{type(out).__name__} has no sequences and no logits to compare. Give the monitor a loss.")
    return list((logits if logits.dim() == 2 else logits[:, -1]).argmax(-1).tolist())


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
