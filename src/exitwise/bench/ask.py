"""Asking an engine the items of a task: inputs are prepared once, then run in batches or one by one; out come answers, depths and
the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Engine
from ..models.ofa.images import nearest_grid
from ..models.ofa.trie import Trie
from ..trace import Trace
from .metrics import Interval, bootstrap, cider
from .pictures import Source
from .tasks import Item

LONGEST = 20


@dataclass(frozen=True)
class Asked:
    """An item with its tensors: the pixels, the stem's features of them (so that repeated runs skip the stem), and the grid."""

    item: Item
    pixels: Tensor
    features: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Said:
    """What was said of some items, in their order. tokens: per item (word, depth) pairs."""

    texts: list[str]
    trace: Trace
    tokens: list[list[tuple[str, int]]]


class Asker:
    """A model and its processor, ready to be asked. beams: for captions."""

    def __init__(self, model: Any, processor: Any, beams: int = 1) -> None:
        self.model, self.processor, self.beams = model, processor, beams
        self._tries: dict[tuple[str, ...], Trie] = {}

    def prepare(self, items: Sequence[Item], tick: Callable[[], None] = lambda: None, rows: int = 8) -> list[Asked]:
        """Decode each image and run the stem on it once, `rows` of one shape together. Raises InputError that names the item."""
        found: dict[Source, tuple[Tensor, Tensor, tuple[int, int]]] = {}
        waiting: dict[tuple[int, int], list[tuple[Source, Tensor]]] = {}

        def flush(grid: tuple[int, int]) -> None:
            files, pixels = zip(*waiting.pop(grid), strict=True)
            with torch.no_grad():
                features = self.model.model.stem(torch.cat(pixels))
            for row, file in enumerate(files):
                found[file] = pixels[row], features[row : row + 1], grid

        seen: set[Source] = set()
        for item in items:
            tick()
            if item.image in seen:  # several questions about one picture
                continue
            seen.add(item.image)
            picture = item.picture()
            grid = nearest_grid(*picture.size, self.processor.image_grids)
            alike = waiting.setdefault(grid, [])
            alike.append((item.image, self.processor(images=picture, grid=grid)["pixel_values"]))
            if len(alike) == rows:
                flush(grid)
        for grid in list(waiting):
            flush(grid)
        return [Asked(item, *found[item.image]) for item in items]

    def inputs(self, asked: Sequence[Asked], pixels: bool = False) -> dict[str, Any]:
        """One batch: image, prompt and, for answers, the decoder's prompt."""
        given = dict(self.processor.encode_texts([a.item.prompt for a in asked]))
        if len(asked) == 1 or bool(given["attention_mask"].all()):
            given.pop("attention_mask")
        given["pixel_values" if pixels else "image_features"] = torch.cat([a.pixels if pixels else a.features for a in asked])
        if asked[0].item.candidates:
            given.update(self.processor.decoder_prompts([a.item.prompt for a in asked]))
        return given

    def trie(self, item: Item) -> Trie:
        """The trie of an item's candidates."""
        if item.candidates not in self._tries:
            self._tries[item.candidates] = Trie(item.candidates, self.processor.tokenizer)
        return self._tries[item.candidates]

    def groups(self, asked: Sequence[Asked], rows: int) -> Iterator[list[int]]:
        """Places of items that can share a batch: the same grid and the same candidates."""
        kinds: dict[Any, list[int]] = {}
        for place, one in enumerate(asked):
            kinds.setdefault((one.grid, one.item.candidates), []).append(place)
        for places in kinds.values():
            for start in range(0, len(places), rows):
                yield places[start : start + rows]

    def ask(
        self,
        engine: Engine,
        asked: Sequence[Asked],
        rows: int = 16,
        pixels: bool = False,
        through: Callable[[list[int], Callable[[], Said]], Said] = lambda places, run: run(),
    ) -> Said:
        """All items through the engine, in batches; one by one where a batch would be measured as a single row, lest one item decide for
        another. through: (places, run) is called for every batch, and may know what run() would say."""
        if engine.plan().pooled:
            rows = 1
        texts: list[str] = [""] * len(asked)
        tokens: list[list[tuple[str, int]]] = [[] for _ in asked]
        traces, order = [], []
        for places in self.groups(asked, rows):
            said = through(places, partial(self._batch, engine, [asked[p] for p in places], pixels))
            for place, text, words in zip(places, said.texts, said.tokens, strict=True):
                texts[place], tokens[place] = text, words
            traces.append(said.trace)
            order += places
        return Said(texts, _in_order(Trace.cat(traces), order), tokens)

    def _batch(self, engine: Engine, part: Sequence[Asked], pixels: bool) -> Said:
        return self._answer(engine, part, pixels) if part[0].item.candidates else self._caption(engine, part, pixels)

    def _answer(self, engine: Engine, part: Sequence[Asked], pixels: bool) -> Said:
        trie = self.trie(part[0].item)
        given, first = self.inputs(part, pixels), trie.first_tokens()
        if first is None:
            prompt = given.pop("decoder_input_ids")
            given.pop("decoder_attention_mask", None)
            if len(part) > 1:  # prompts of unlike lengths are padded on the left, and candidates follow on the right: one by one
                return _joined([self._answer(engine, [one], pixels) for one in part])
            out = engine.choose(list(trie.paths.values()), prompt, **given)
            names, best, trace = list(trie.paths), out.best, out.trace
        else:
            names, ids = first
            ran = engine.run(**given, use_cache=False)
            best, trace = ran.logits[:, -1, ids].argmax(-1), ran.trace
        assert best is not None
        depth = trace.depth["decoder"][:, 0].view(len(part), -1).amax(1).tolist()
        texts = [names[i] for i in best.tolist()]
        return Said(texts, trace, [[(text, d)] for text, d in zip(texts, depth, strict=True)])

    def _caption(self, engine: Engine, part: Sequence[Asked], pixels: bool) -> Said:
        out = engine.generate(**self.inputs(part, pixels), max_new_tokens=LONGEST, num_beams=self.beams, do_sample=False)
        assert out.sequences is not None and out.depth is not None
        tokenizer = self.processor.tokenizer
        texts = [text.strip() for text in tokenizer.batch_decode(out.sequences, skip_special_tokens=True)]
        tokens = []
        for row, depth in zip(out.sequences[:, 1:].tolist(), out.depth.tolist(), strict=True):
            words = [(tokenizer.decode([t]), d) for t, d in zip(row, depth, strict=False) if d > 0 and t not in tokenizer.all_special_ids]
            tokens.append(words)
        return Said(texts, out.trace, tokens)

    def plain(self, asked: Asked) -> None:
        """The untouched model on one item, pixels and all: what the clock compares with."""
        given = self.inputs([asked], pixels=True)
        with torch.no_grad():
            if asked.item.candidates:
                self.model(**given, use_cache=False)
            else:
                self.model.generate(**given, max_new_tokens=LONGEST, num_beams=self.beams, do_sample=False)


def scores(kind: str, texts: Sequence[str], items: Sequence[Item]) -> list[float]:
    """One figure per item: CIDEr-D (100 times the usual scale) for captions, 100 or 0 for answers."""
    if kind == "caption":
        return list(cider(texts, [item.references for item in items]).items)
    return [100.0 * (text == item.references[0]) for text, item in zip(texts, items, strict=True)]


def quality(kind: str, texts: Sequence[str], items: Sequence[Item], seed: int = 0) -> Interval:
    """The mean over items with its 95 % bootstrap interval."""
    return bootstrap(scores(kind, texts, items), seed=seed)


def load_pair(model: str | None) -> tuple[nn.Module, Any]:
    """(model, processor) of a folder of the unified model; None: the shipped one. Raises InputError where there is none."""
    from ..errors import InputError
    from ..models import shipped_path
    from ..models.ofa import OFAForConditionalGeneration, OFAProcessor

    folder = str(shipped_path()) if model in (None, "shipped") else str(model)
    try:
        loaded = OFAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        return loaded, OFAProcessor.from_pretrained(folder)
    except (OSError, ValueError) as problem:
        raise InputError(f"No unified model could be loaded from {folder}: {problem}") from problem


def _joined(parts: Sequence[Said]) -> Said:
    return Said([t for p in parts for t in p.texts], Trace.cat([p.trace for p in parts]), [t for p in parts for t in p.tokens])


def _in_order(trace: Trace, order: Sequence[int]) -> Trace:
    """Rows of a trace in the items' order (several decoder rows of an item stay together)."""
    back = torch.tensor(sorted(range(len(order)), key=lambda i: order[i]))
    for name in ("depth", "tokens", "sureness"):
        values: dict[str, Tensor] = getattr(trace, name)
        for stream, value in values.items():
            times = value.shape[0] // len(order)
            values[stream] = value.view(len(order), times, *value.shape[1:])[back].flatten(0, 1)
    return trace
