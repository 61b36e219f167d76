"""The waist of the library: a model and a method, and the few verbs that everything above uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from . import __version__, families, kept, methods
from .calibrate.budget import Calibration, Outcome, Quality, one_wish, search
from .calibrate.front import spend
from .calibrate.profile import ITEMS, prices_of
from .calibrate.promised_runs import Asked, Loss, promised_runs
from .criteria import Fixed, Step
from .errors import CheckpointError, FamilyError, FingerprintError, InputError, KnobError, UnknownName
from .heads import READS, Exits, Shape
from .lm import generate as language
from .lm import sequence
from .lm.plan import Watch
from .method import STREAMS, Method, answering
from .reading import Reading
from .run.walk import Plan, Session, attached
from .stack import Family
from .trace import Trace

Predict = Callable[["Engine", Sequence[Any]], tuple[Sequence[Any], Trace]]


@dataclass
class GenerateOutput(ModelOutput):
    """What `Engine.generate` returns.

    sequences: (rows, length) as `model.generate` gives them. depth: (rows, new tokens) layers that the decoder ran for each token of
    `sequences` after the prompt; 0 for pads after the end. trace: everything that ran, all beams included. scores: as asked for. drafts:
    of a run by the loop of `exitwise.lm`, what it wrote and what became of drafts (`lm.loop.Written`); its `stopped` is the interrupt that
    ended it early.
    """

    sequences: Tensor | None = None
    depth: Tensor | None = None
    trace: Any = None
    scores: Any = None
    drafts: Any = None


@dataclass
class ChooseOutput(ModelOutput):
    """What `Engine.choose` returns. best: (rows,) index of the likeliest candidate; scores: (rows, candidates) log-probabilities."""

    best: Tensor | None = None
    scores: Tensor | None = None
    trace: Any = None


class Engine:
    """A model that stops computing when its answer is ready.

    model: any torch module whose layers a family describes (found by `config.model_type`, by structure, or passed as `family`). method: a
    name from `exitwise.methods.names()` or a Method; preset: one of its `presets`, such as what its paper says; knobs: its options, which
    go before those of the preset. exits: trained heads and parts (see `fresh_exits`), which are put into evaluation mode. The model is not
    changed: it carries the exits only inside a verb or an `attached()` block. Raises UnknownName, KnobError, FamilyError, and
    FingerprintError for exits that do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "mue",
        family: Family | None = None,
        preset: str | None = None,
        exits: Exits | None = None,
        **knobs: Any,
    ) -> None:
        self.model = model
        self.method_name = method if isinstance(method, str) else "custom"
        self.method = methods.load(method) if isinstance(method, str) else method
        self.family_name, self.family = ("given", family) if family is not None else families.of(model)
        self._settings = self.method.settings({**self.method.preset(preset), **knobs})
        self.exits = None if exits is None else self._fitting(exits)
        self.calibration: Calibration | None = None
        self._watch: Watch | None = None  # what this engine's runs have shown, for a method that learns from them
        self._turn, self._record, self._proven = 0, False, self.family_name != families.DISCOVERED
        self.plan()  # a knob that does not fit the model is refused now, not in mid-run

    def __repr__(self) -> str:
        return f"Engine({type(self.model).__name__}, method={self.method_name!r}, family={self.family_name!r})"

    # -- what it is -------------------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> dict[str, int]:
        """stream -> layers of its stack."""
        return {s: len(stack.layers(self.model)) for stack in self.family.stacks_of(self.model) for s in stack.streams}

    @property
    def streams(self) -> dict[str, str]:
        """stream -> 'encoder' or 'decoder'."""
        return {s: stack.kind for stack in self.family.stacks_of(self.model) for s in stack.streams}

    def shape(self) -> Shape:
        """What exits of this model must fit, from its configuration. Raises FamilyError where no single stream gives the answer."""
        stream, config = answering(self.layers), getattr(self.model, "config", None)
        width = getattr(config, "hidden_size", None)
        if stream is None or width is None:
            raise FamilyError(
                f"Exits for {type(self.model).__name__} cannot be shaped: give `heads.Shape` to the method's `exits` yourself."
            )
        classes = int(getattr(config, "num_labels", 0)) if self.family.classifier_of(self.model) is not None else 0
        return Shape(int(width), classes, self.layers[stream])

    def fresh_exits(self, seed: int = 0, reads: str = READS[0]) -> Exits:
        """Untrained exits of the kind that the method wants, to be trained by its objective; reads: see `Exits`.

        Raises KnobError if it has none of its own, or for a decoder that is to read the mean of its tokens.
        """
        if reads not in READS or (reads != READS[0] and answering(self.layers) == STREAMS[-1]):
            raise KnobError(f"reads={reads!r} is not allowed here. Allowed: {', '.join(READS)}; of a decoder only {READS[0]}.")
        if self.method.exits is None:
            raise KnobError(f"{self.method_name} trains no exits of its own: its rule reads the model's states, or its own head's answers.")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            exits = self.method.exits(self.shape())
        exits.made_by, exits.reads = self.method_name, reads
        return exits.to(next(self.model.parameters()).device)

    def _fitting(self, exits: Exits) -> Exits:
        shape = self.shape() if getattr(self.model, "config", None) is not None else exits.shape
        if exits.shape != shape or (len(exits.heads) and self.family.classifier_of(self.model) is None):
            raise FingerprintError(
                f"These exits are of {exits.shape}; {type(self.model).__name__} needs {shape}. Train exits for this model."
            )
        return exits.eval()

    def settings_dict(self) -> dict[str, Any]:
        """The method's knobs as they stand."""
        return dict(self._settings)

    def with_settings(self, **changes: Any) -> Engine:
        """Another engine on the same model (nothing is copied), with some knobs changed."""
        other = self._copy()
        other._settings = self.method.settings({**self._settings, **changes})
        other.plan()
        return other

    def recording(self) -> Engine:
        """The same engine, noting the similarity after every layer in the trace of each run."""
        other = self._copy()
        other._record = True
        return other

    def _copy(self) -> Engine:
        other = Engine.__new__(Engine)
        other.__dict__.update(self.__dict__)
        other._turn, other._watch = 0, None
        return other

    def plan(self) -> Plan:
        """What a run will do. Raises KnobError where it needs trained parts that the engine was not given."""
        plan = self.method.plan(self._settings, self.layers)
        self._equipped(plan)
        if plan.decoding is not None and plan.decoding.watch is not None:
            self._watch = self._watch or plan.decoding.watch
            plan = replace(plan, decoding=replace(plan.decoding, watch=self._watch))
        return plan

    def _equipped(self, plan: Plan) -> None:
        have = set() if self.exits is None else set(self.exits.parts)
        needs = [rule.needs for rule in plan.rules.values() if isinstance(rule, Reading) and (rule.threshold < 1 or plan.record)]
        if plan.decoding is not None and plan.decoding.draft is not None:
            needs.append(plan.decoding.draft.needs)
        for names in needs:
            if not have.issuperset(names):
                raise KnobError(
                    f"{self.method_name} needs trained exits with {', '.join(names)}. Train them, by `exitwise train MODEL --method "
                    f"{self.method_name}` where it fits the model, and give --exits FOLDER or Engine(..., exits=...)."
                )
        self._spoken(plan)

    def _spoken(self, plan: Plan) -> None:
        """Raises KnobError where tokens may leave at a depth at which the trained exits have nothing to say."""
        rule, depths = plan.rules.get(STREAMS[-1]), None if self.exits is None else self.exits.depths
        if depths is None or not isinstance(rule, Reading) or rule.threshold >= 1:
            return
        layers = self.layers[STREAMS[-1]]
        mute = [d for d in range(1, layers) if d not in depths and rule.may_leave(Step(d, layers, step=1))]
        if mute:
            raise KnobError(
                f"With these settings tokens may leave at the depths {mute}, but the trained exits are at {list(depths)}. "
                f"Let {self.method_name} leave at those alone, or train exits at the others."
            )

    # -- running ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def attached(self, steps: int | None = None, record: bool = False, drop_ended: bool = False) -> Iterator[Session]:
        """The model itself carries the exits inside this block, whoever calls it; afterwards it is exactly what it was.

        steps: most decoding steps there can be, for a threshold that moves with the step (default: the generation config's).
        record: note the
        similarity after every layer. drop_ended: do not compute rows of a greedy batch whose sequence has ended.
        """
        config: Any = getattr(self.model, "generation_config", None)
        if steps is None:
            steps = (getattr(config, "max_new_tokens", None) or getattr(config, "max_length", None) or 20) if config is not None else 20
        plan = replace(self.plan(), steps=steps, record=record or self._record)
        self._equipped(plan)
        plan = replace(plan, seed=plan.seed * 1_000_003 + self._turn)  # draws differ from run to run, and repeat with a new engine
        self._turn += 1
        if drop_ended and config is not None and config.eos_token_id is not None:
            ids = self.family.ends(self.model) if self.family.ends is not None else config.eos_token_id
            plan = replace(plan, ends=frozenset([ids] if isinstance(ids, int) else ids), pad=config.pad_token_id)
        with attached(self.model, self.family, plan, self.exits) as session:
            yield session

    def _prove(self, call: Callable[[], Any]) -> None:
        """A family that was only discovered must give the untouched model's output at full depth: on the first inputs it meets, both run.

        `exitwise inspect --check` tests more. Raises FamilyError where the walk is not the model.
        """
        if self._proven:
            return
        whole = Plan({s: Fixed(n) for s, n in self.layers.items()}, decompose=False)
        with torch.no_grad():
            want = _tensors(call())
            with attached(self.model, self.family, whole) as session:
                got = _tensors(call())
        still = [stack.path for stack in self.family.stacks_of(self.model) if not session.trace.calls.get(stack.path)]
        same = len(want) == len(got) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()) if a.numel() else 0.0)
            for a, b in zip((w.double() for w in want), (g.double() for g in got), strict=True)
        )
        if still or not same:
            what = f"no layer of {', '.join(still)} was walked" if still else "at full depth its output is another"
            raise FamilyError(
                f"The structure that was discovered in {type(self.model).__name__} is not how it runs: {what}. "
                "Write a family in code (docs/adding-a-family.md) and pass it as Engine(model, family=...)."
            )
        self._proven = True

    def run(self, record: bool = False, **inputs: Any) -> Any:
        """The model's own output for these inputs, with `.trace` added. Gradients are off."""
        if inputs.get("past_key_values") is None:  # a cache is filled by each call: the proof waits for inputs without one
            self._prove(lambda: self.model(**inputs))
        with torch.no_grad(), self.attached(record=record) as session:
            out = self.model(**inputs)
        if isinstance(out, tuple):
            raise KnobError("A tuple cannot carry the trace. Leave out return_dict=False, or use `attached()` and its session's trace.")
        out.trace = session.trace
        return out

    def choose(self, candidates: Sequence[Sequence[int]], prompt: Tensor | None = None, **inputs: Any) -> ChooseOutput:
        """Which of the candidates the model finds likeliest, for every row: one teacher-forced pass of the decoder over all of them.

        candidates: token ids of each answer, its end token included. prompt: (rows, length) decoder ids before the answer, with its start
        token (default: the start token alone). The score of a candidate is the sum of its tokens' log-probabilities given the prompt. The
        candidates of a row share its exits: they leave when the last is ready. Tang et al. 2023 judge visual entailment so.
        """
        if not candidates or any(len(c) == 0 for c in candidates):
            raise InputError("There is nothing to choose from: give one or more candidates of one or more tokens each.")
        model: Any = self.model
        if self.exits is not None and self.exits.ramps is not None:
            raise KnobError("Trained ramps speak for one token, and `choose` scores all of an answer. Use `run` on the prompt.")
        rows = next(v.shape[0] for v in inputs.values() if isinstance(v, Tensor))
        if prompt is None:
            prompt = torch.full((rows, 1), model.generation_config.decoder_start_token_id)
        count, longest = len(candidates), max(len(c) for c in candidates)
        pad = model.generation_config.pad_token_id or 0
        answers = torch.tensor([[*c, *[pad] * (longest - len(c))] for c in candidates], device=prompt.device)
        counts = torch.tensor([[i < len(c) for i in range(longest)] for c in candidates], device=prompt.device)
        tokens = torch.cat([prompt.repeat_interleave(count, 0), answers.repeat(rows, 1)], 1)
        first = {int(c[0]) for c in candidates}  # what can follow the prompt: reading rules judge these answers, where they differ at once
        plan = replace(self.plan(), group=count, place=prompt.shape[1] - 1, candidates=tuple(sorted(first)) if len(first) > 1 else None)
        with torch.no_grad(), attached(self.model, self.family, plan, self.exits) as session:
            encoded = model.get_encoder()(**{k: v for k, v in inputs.items() if not k.startswith("decoder_")})
            expanded = type(encoded)(**{k: _repeat(v, rows, count) for k, v in encoded.items()})
            mask = inputs.get("attention_mask")
            mask = None if mask is None else mask.repeat_interleave(count, 0)
            out = model(encoder_outputs=expanded, attention_mask=mask, decoder_input_ids=tokens[:, :-1], use_cache=False)
        logp = out.logits[:, prompt.shape[1] - 1 :].float().log_softmax(-1)
        each = logp.gather(-1, answers.repeat(rows, 1)[..., None])[..., 0] * counts.repeat(rows, 1)
        scores = each.sum(-1).view(rows, count)
        return ChooseOutput(best=scores.argmax(-1), scores=scores, trace=session.trace)

    def generate(self, record: bool = False, **inputs: Any) -> GenerateOutput:
        """`model.generate` through the exits: the same arguments, and the depths beside the sequences."""
        model: Any = self.model
        if not hasattr(model, "generate"):
            raise KnobError(f"{type(self.model).__name__} has no `generate`. Use `run`, or `attached()` around your own loop.")
        if (loop := self._loop(record, inputs)) is not None:
            made = loop.generate(model, self.family, self._loop_plan(inputs), self.exits, inputs)
            return GenerateOutput(sequences=made.sequences, depth=made.depth, trace=made.trace, drafts=made.written)
        asked = dict(inputs)
        wants_scores = asked.pop("output_scores", False)
        asked["return_dict_in_generate"] = True
        config = asked.get("generation_config") or model.generation_config
        beams = asked.get("num_beams") or getattr(config, "num_beams", None) or 1
        steps = self._steps(inputs)
        if asked.get("past_key_values") is None:
            plain = {
                name: value for name, value in asked.items() if isinstance(value, Tensor | ModelOutput)
            }  # no streamers, no constraints
            self._prove(lambda: model.generate(**plain, max_new_tokens=2, do_sample=False))
        drop = beams == 1 and not asked.keys() & {"eos_token_id", "pad_token_id", "generation_config"}  # then the ends are the caller's own
        with torch.no_grad(), self.attached(steps=steps, record=record, drop_ended=drop) as session:
            out = model.generate(**asked, output_scores=wants_scores or beams > 1)
        trace = session.trace
        depth = _token_depth(trace, out.sequences, getattr(out, "beam_indices", None))
        return GenerateOutput(sequences=out.sequences, depth=depth, trace=trace, scores=out.scores if wants_scores else None)

    def _loop(self, record: bool, inputs: Mapping[str, Any]) -> Any:
        """What decodes in a loop of `exitwise.lm`, for a language model or for the decoder of an encoder-decoder; None to record, for an
        oracle's shadow, and for wishes that only the model's own `generate` knows."""
        plan, spoken = self.plan(), self.family.language
        if spoken is None or record or self._record or plan.shadow:
            return None
        loop: Any = language if spoken.cross is None else sequence
        return loop if loop.able(self.model, plan, inputs) else None

    def _loop_plan(self, inputs: Mapping[str, Any]) -> Plan:
        """The plan for a loop: as many steps as tokens are asked for, and draws that differ from run to run."""
        plan = self.plan()
        self._turn += 1
        return replace(plan, steps=self._steps(inputs), record=False, seed=plan.seed * 1_000_003 + self._turn - 1)

    def _steps(self, inputs: Mapping[str, Any]) -> int:
        """Most decoding steps there can be, for a threshold that moves with the step."""
        model: Any = self.model
        config = inputs.get("generation_config") or model.generation_config
        said = inputs.get("max_new_tokens") or inputs.get("max_length") or getattr(config, "max_new_tokens", None) or config.max_length
        return int(said or 20)

    # -- calibration ------------------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        rows: Sequence[Any],
        keep: float = 0.99,
        quality: Quality | None = None,
        predict: Predict | None = None,
        trials: int = 24,
        margin: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
        confidence: float | None = None,
        loss: Loss | None = None,
        scale: float | None = None,
        budget: float | None = None,
        cost: str = "etr",
        seed: int = 0,
        **generate: Any,
    ) -> Calibration:
        """Choose the cheapest thresholds that keep `keep` of the full depth's quality on these rows; the engine takes them.

        rows: any sequence; by default each is a dict of the inputs for one item. predict: (engine, rows) -> (outputs, trace), by default
        `generate` (or `run`, where the model does not generate) row by row with `generate`'s arguments. quality: (outputs, rows) -> one
        figure, or one per row; higher is better, by default 1.0 where the output equals the full-depth model's. margin: standard errors by
        which the share must be kept (0: the mean alone; see `calibrate.budget.Bar`), which needs a figure per row. trials: most settings
        that are run. Cost is one minus ETR.
        confidence: promise it for new rows (`calibrate.promised_runs`; loss, scale and seed: see `Asked` there). budget: instead, the best
        quality at a mean cost of at most this share of full depth's; cost: 'etr', 'macs' or 'ms', measured on some of the rows.
        Raises CalibrationError for an empty or hopeless request.
        """
        plan = self.plan()
        foretell: Predict = predict or (lambda engine, items: _predict(engine, items, generate))

        # a method may have a knob for a stream that it cannot judge in this model
        streams = {s: n for s, n in self.layers.items() if s in self.method.calibrated and s in plan.rules}
        together = [s for s in streams if self.streams[s] != "decoder" and not plan.decompose]  # they leave as one: one threshold for all

        def spread(settings: dict[str, Any]) -> dict[str, Any]:
            return {**settings, **{s: settings[together[0]] for s in together[1:] if together[0] in settings}}

        def run(changes: dict[str, Any], record: bool, items: Sequence[Any] = rows) -> Outcome:
            engine = self.with_settings(**spread(changes))
            if record:
                engine = engine.recording()
            outputs, trace = foretell(engine, items)
            return Outcome(outputs, trace)

        streams = {s: n for s, n in streams.items() if s not in together[1:]}
        minimum = self._settings.get("minimum", 1)
        one_wish(confidence, budget, margin)
        if confidence is not None:
            asked = Asked(keep, confidence, loss=loss, quality=quality, scale=scale, trials=trials, minimum=minimum, seed=seed)
            found = promised_runs(run, rows, streams, asked, progress)
        elif budget is not None:
            prices = prices_of(self, cost, [partial(_traced, foretell, row) for row in rows[:ITEMS]])
            found = spend(run, rows, streams, budget, prices, quality, trials, minimum, progress, together)
        else:
            found = search(run, rows, streams, keep, quality, trials, minimum, margin, progress)
        found = replace(found, settings=spread(found.settings))
        self._settings = self.method.settings({**self._settings, **found.settings})
        self.calibration = found
        return found

    # -- keeping ----------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write what was chosen and calibrated (never the base model) and the base's fingerprint to `folder`/exitwise.json.

        Trained exits go beside it, into exits.safetensors.
        """
        return kept.write(folder, self.model, kept.Kept(self.method_name, self._settings, self.exits, self.calibration))

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, family: Family | None = None) -> Engine:
        """An engine as it was saved, on the same base model. Raises CheckpointError (no or damaged file), FingerprintError
        (another model)."""
        found = kept.read(folder, model)
        try:
            engine = cls(model, found.method, family, exits=found.exits, **found.settings)
        except (UnknownName, KnobError) as problem:
            raise CheckpointError(
                f"{folder} does not fit this version, {__version__} (saved by {found.version}): {problem} Calibrate anew."
            ) from None
        engine.calibration = found.calibration
        return engine


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of an output that are not caches, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _repeat(value: Any, rows: int, count: int) -> Any:
    return value.repeat_interleave(count, 0) if isinstance(value, Tensor) and value.shape[0] == rows and rows * count > 1 else value


def _traced(predict: Predict, row: Any, engine: Engine) -> Trace:
    return predict(engine, [row])[1]


def _predict(engine: Engine, rows: Sequence[Any], generate: dict[str, Any]) -> tuple[list[Any], Trace]:
    """What the model writes; where it does not write, the class that it gives."""
    if not getattr(engine.model, "can_generate", lambda: hasattr(engine.model, "generate"))():
        runs = [engine.run(**row, **generate) for row in rows]
        said = [(out.logits.argmax(-1) if out.logits.shape[-1] > 1 else out.logits).flatten().tolist() for out in runs]
        return said, Trace.cat([out.trace for out in runs])
    outs = [engine.generate(**row, **generate) for row in rows]
    return [out.sequences[0].tolist() for out in outs if out.sequences is not None], Trace.cat([out.trace for out in outs])


def _token_depth(trace: Trace, sequences: Tensor, beams: Tensor | None) -> Tensor | None:
    """Depth of each generated token of the returned sequences, (rows, steps); beams are followed back, pads are 0."""
    raw = trace.depth.get("decoder")
    if raw is None:
        return None
    if beams is None:
        return raw
    picked = beams.cpu()[:, : raw.shape[1]]
    steps = torch.arange(picked.shape[1])
    return torch.where(picked >= 0, raw[picked.clamp(min=0), steps], 0)
