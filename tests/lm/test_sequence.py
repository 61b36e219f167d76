"""Encoder-decoders in the loop: the text of `generate`, the walk's words and depths under every rule, nothing made that is not needed."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.families.cases import CASES, Table, forced, layer_outputs, made, makeup, middle, more_rows
from tests.lm.parts import CLOSE, walked
from tests.lm.test_asked import Letters
from torch import Tensor

from exitwise import Engine, families
from exitwise.errors import KnobError
from exitwise.heads import Exits, Ramps
from exitwise.lm.backbone import Backbone
from exitwise.lm.source import Source
from exitwise.lm.stair import Stair

HEARING = [case for case, (family, _) in CASES.items() if (found := families.load(family).language) is not None and found.cross is not None]
POLICIES = ("propagate", "run late", "recompute")
STEPS = 8


def plain(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    out: Tensor = model.generate(**inputs, do_sample=False, return_dict_in_generate=True, **more).sequences
    return out


def both(engine: Engine, inputs: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """What the loop gives, and what the walk gives, to which scores are a wish that the loop does not fulfil."""
    loop, walk = engine.generate(**inputs, **more), engine.generate(**inputs, **more, output_scores=True)
    assert loop.drafts is not None and walk.drafts is None
    return loop, walk


def drawn(rows: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    luck = random.Random(seed)
    return tuple(tuple(luck.randint(1, 4) for _ in range(STEPS)) for _ in range(rows))


def test_the_families_that_hear() -> None:
    assert HEARING == ["bart", "florence2", "ofa", "t5", "whisper"]


@pytest.mark.parametrize("case", HEARING)
def test_full_depth_is_generate(case: str) -> None:
    """Rows that end at different steps, padded sources, forced and forbidden tokens."""
    model, inputs = made(case)
    inputs = more_rows(inputs, 2)
    end = int(plain(model, inputs, max_new_tokens=STEPS)[0, 4])
    before = makeup(model)
    for more in (
        {},
        {"no_repeat_ngram_size": 1},
        {"eos_token_id": end},
        {"eos_token_id": end, "min_new_tokens": STEPS - 1, "repetition_penalty": 1.4},
    ):
        if case == "ofa":
            more = {**more, "pad_token_id": 1}
        out = Engine(model, "never").generate(**inputs, max_new_tokens=STEPS, **more)
        assert torch.equal(out.sequences, plain(model, inputs, max_new_tokens=STEPS, **more)), more
        real = [len(row) for row in out.drafts.tokens]
        assert [(row > 0).sum().item() for row in out.depth] == real and set(out.depth.flatten().tolist()) <= {0, 4}
    assert makeup(model) == before


def test_whispers_own_prompt_and_forbidden_tokens_hold() -> None:
    """A prompt of several tokens, tokens that are never said and tokens that do not begin: all of them as its own `generate` has them."""
    model, inputs = made("whisper")
    first = plain(model, inputs, max_new_tokens=STEPS)
    config = model.generation_config
    config.suppress_tokens = sorted({int(first[0, 2]), int(first[1, 4])})
    config.begin_suppress_tokens = [int(first[1, 1])]
    config.no_timestamps_token_id = 7
    config.forced_decoder_ids = None
    for engine in (Engine(model, "never"), Engine(model, "layerskip", depth=2, drafts=3), Engine(model, "ngram")):
        want = plain(model, inputs, max_new_tokens=STEPS)
        out = engine.generate(**inputs, max_new_tokens=STEPS)
        assert out.drafts is not None and torch.equal(out.sequences, want)
        assert want[0, :2].tolist() == [3, 7] and not torch.equal(want[:, 2:], first[:, 1 : want.shape[1] - 1])


def sources(case: str, copies: int = 2) -> tuple[Backbone, Any, dict[str, Any]]:
    """A backbone over what the untouched encoder gave, the model, and the inputs."""
    model, inputs = made(case)
    inputs = more_rows(inputs, copies)
    family = families.of(model)[1]
    assert family.language is not None and family.language.cross is not None
    with torch.no_grad():
        given = {k: v for k, v in inputs.items() if case != "whisper" or k != "attention_mask"}
        encoded = model.get_encoder()(**given)
    mask = inputs.get("attention_mask") if family.language.cross.masked else None
    return Backbone(model, family, source=Source(encoded, mask, 4)), model, inputs


@pytest.mark.parametrize("policy", ["run late", "recompute"])
@pytest.mark.parametrize("case", ["bart", "ofa", "t5", "whisper"])
@torch.no_grad()
def test_late_runs_are_exact_for_rows_of_unlike_depth(case: str, policy: str) -> None:
    """Each token's logits are the untouched model's at that token's depth; so are those of the tokens that the decoder begins with."""
    backbone, model, inputs = sources(case)
    tokens = torch.randint(5, 90, (4, STEPS + 2), generator=torch.Generator().manual_seed(3))
    depths = drawn(4)
    calls = layer_outputs(list(backbone.layers), lambda: model(**inputs, decoder_input_ids=tokens, use_cache=False))
    want = torch.stack([backbone.family.readout(model, seen[0]) for seen in calls])  # type: ignore[misc]  # (layers, rows, tokens, words)
    got = walked(Stair(backbone, 4, policy), tokens.tolist(), depths, 2)
    for row, each in enumerate(depths):
        exact = torch.stack([want[depth - 1, row, 2 + step] for step, depth in enumerate(each)])
        torch.testing.assert_close(got[row], exact, **CLOSE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", HEARING)
def test_forced_depths_give_the_words_of_the_walk(case: str, policy: str) -> None:
    """Two ways through the same exits, from the decoder's first token on: equal tokens, depths and counts."""
    model, inputs = made(case)
    inputs = more_rows(inputs, 2)
    engine = Engine(model, forced({"decoder": Table(drawn(4))}, policy))
    loop, walk = both(engine, inputs, max_new_tokens=STEPS, min_new_tokens=STEPS)
    assert torch.equal(loop.sequences, walk.sequences) and torch.equal(loop.depth, walk.depth)
    assert loop.depth.tolist() == [list(row) for row in drawn(4)]
    assert loop.trace.crossed == walk.trace.crossed and loop.trace.fills == walk.trace.fills
    assert not torch.equal(loop.sequences, plain(model, inputs, max_new_tokens=STEPS, min_new_tokens=STEPS))


@pytest.mark.parametrize(("method", "knobs"), [("mue", {}), ("calm", {"measure": "softmax", "decay": "none"}), ("pabee", {})])
@pytest.mark.parametrize("case", ["ofa", "t5", "whisper"])
def test_the_methods_leave_where_the_walk_has_them_leave(case: str, method: str, knobs: dict[str, Any]) -> None:
    """Thresholds on the encoder's streams and the decoder's, each in the middle of what is measured."""
    model, inputs = made(case)
    inputs = more_rows(inputs, 2)
    engine = Engine(model, method, **knobs)
    encoder, asked = engine.family.stacks_of(model)[0].path, {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    sure = engine.generate(record=True, **inputs, **asked).trace.sureness
    streams = [s for s in engine.layers if s in engine.method.calibrated and s in sure] if method == "mue" else ["decoder"]
    varied = False
    for share in (0.6, 0.9):
        found = {s: middle(sure[s][..., :-1][sure[s][..., :-1].isfinite()], share) for s in streams}
        loop, walk = both(engine.with_settings(**(found if method != "pabee" else {"patience": 1})), inputs, **asked)
        assert torch.equal(loop.sequences, walk.sequences)
        assert {s: d.tolist() for s, d in loop.trace.depth.items()} == {s: d.tolist() for s, d in walk.trace.depth.items()}
        assert loop.trace.calls[encoder] == walk.trace.calls[encoder]
        varied |= len(set(loop.depth.flatten().tolist())) > 1
    assert varied


@pytest.mark.parametrize("case", ["bart", "ofa", "t5", "whisper"])
def test_a_layer_that_nobody_visits_sees_nothing_of_the_source(case: str) -> None:
    """Hooks count what is projected of the encoder's states: once a layer, at the layers that run, and never above them."""
    model, inputs = made(case)
    names = {"t5": "layer.1.EncDecAttention.k", "ofa": "cross_attn.k_proj"}
    seen = [0] * 4
    layers = Engine(model, "never").family.stacks_of(model)[-1].layers(model)
    for index, layer in enumerate(layers):
        projection = layer.get_submodule(names.get(case, "encoder_attn.k_proj"))
        projection.register_forward_hook(lambda *_, index=index: seen.__setitem__(index, seen[index] + 1))
    out = Engine(model, "static", decoder=2).generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert seen == [1, 1, 0, 0] and out.trace.calls[Engine(model).family.stacks_of(model)[-1].path] == 12


def test_a_row_comes_to_its_cross_attention_when_it_first_goes_deep() -> None:
    """The rows of a batch share a call of a layer although only some of them have keys of the source there."""
    model, inputs = made("whisper")
    depth = ((2, 2, 2, 4, 2), (2, 4, 2, 4, 2))
    engine = Engine(model, forced({"decoder": Table(depth)}, "run late"))
    out = engine.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
    calls = out.trace.calls["model.decoder.layers"]
    assert out.depth.tolist() == [list(row) for row in depth] and calls == 5 * 2 + 2 * 2  # steps 2 and 4, both rows in one call at step 4
    assert out.trace.crossed["model.decoder.layers"] == 4 * 2 * 12


DRAFTING: list[tuple[str, dict[str, Any]]] = [
    ("layerskip", {"depth": 1, "drafts": 3}),
    ("layerskip", {"depth": 2, "drafts": 5, "sure": 0.3, "lookup": 1}),
    ("layerskip", {"depth": 3, "drafts": 2}),
    ("ngram", {"drafts": 3}),
]


@pytest.mark.parametrize("case", HEARING)
def test_drafts_change_nothing(case: str) -> None:
    model, inputs = made(case)
    inputs = more_rows(inputs, 2)
    end = {"eos_token_id": int(plain(model, inputs, max_new_tokens=20)[0, 6])} | ({"pad_token_id": 1} if case == "ofa" else {})
    for more in (end, {**end, "no_repeat_ngram_size": 2, "min_new_tokens": 15}):
        want = plain(model, inputs, max_new_tokens=20, **more)
        for method, knobs in DRAFTING:
            out = Engine(model, method, **knobs).generate(**inputs, max_new_tokens=20, **more)
            assert torch.equal(out.sequences, want), (method, knobs)
            assert out.drafts.drafted > 0 or more is end  # a text that ends at once leaves nothing to draft


@pytest.mark.parametrize("case", ["llama", "t5", "whisper"])
def test_a_row_alone_is_the_row_in_a_batch(case: str) -> None:
    """Its similarities too, from the first layer on."""
    model, inputs = made(case)
    engine = Engine(model, "mue", decoder_scope="last")
    sure = engine.generate(record=True, **inputs, max_new_tokens=STEPS, min_new_tokens=STEPS).trace.sureness["decoder"][..., :-1]
    engine = engine.with_settings(decoder=middle(sure[sure.isfinite()], 0.5))
    together = engine.generate(**inputs, max_new_tokens=STEPS, min_new_tokens=STEPS)
    assert len(set(together.depth.flatten().tolist())) > 1
    for row in range(2):
        alone = engine.generate(**{k: v[row : row + 1] for k, v in inputs.items()}, max_new_tokens=STEPS, min_new_tokens=STEPS)
        assert torch.equal(alone.sequences[0], together.sequences[row]) and torch.equal(alone.depth[0], together.depth[row])


def test_samples_repeat_by_seed_and_by_torchs_own() -> None:
    model, inputs = made("whisper")
    asked = {"max_new_tokens": STEPS, "do_sample": True, "temperature": 2.0, "top_k": 0}
    for engine in (Engine(model, "never"), Engine(model, "layerskip", depth=2)):
        said = [engine.generate(**inputs, seed=seed, **asked).sequences for seed in (3, 3, 4)]
        assert torch.equal(said[0], said[1]) and said[0].tolist() != said[2].tolist()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(engine.generate(**inputs, **asked).sequences.tolist())
        assert drawn[0] == drawn[1] != drawn[2]
    sharp = Engine(model, "never").generate(**inputs, max_new_tokens=STEPS, do_sample=True, temperature=1.0, top_k=1).sequences
    assert torch.equal(sharp, plain(model, inputs, max_new_tokens=STEPS))


def test_long_recordings_are_written_window_by_window() -> None:
    """Whisper's own `generate` calls the loop for each window; the trace has the rows of all of them, and there is no depth beside."""
    model, inputs = made("whisper")
    model.generation_config.no_timestamps_token_id, model.generation_config.max_initial_timestamp_index = 89, 3
    sound = torch.randn(1, 8, 60, generator=torch.Generator().manual_seed(0))
    asked = {"input_features": sound, "attention_mask": torch.ones(1, 60), "return_timestamps": True, "max_new_tokens": STEPS}
    want = model.generate(**asked, return_dict_in_generate=True)["sequences"]
    for engine in (Engine(model, "never"), Engine(model, "layerskip", depth=2)):
        out = engine.generate(**asked)
        assert torch.equal(out.sequences, want) and out.depth is None
        assert len(out.trace.depth["decoder"]) == len(out.trace.depth["audio"]) == len(out.drafts.tokens) > 1


def test_a_streamer_gets_the_first_tokens_and_then_each_new_one() -> None:
    model, inputs = made("bart")
    got: list[list[int]] = []
    streamer = SimpleNamespace(put=lambda tokens: got.append(tokens.flatten().tolist()), end=lambda: got.append([]))
    one = {name: value[:1] for name, value in inputs.items()}
    out = Engine(model, "never").generate(**one, max_new_tokens=STEPS, streamer=streamer)
    assert got[0] == [2] and got[-1] == [] and [*got[0], *sum(got[1:], [])] == out.sequences[0].tolist()


def test_stop_strings_and_interrupts() -> None:
    model, inputs = made("bart")
    text = plain(model, inputs, max_new_tokens=STEPS)[0, 4:6].tolist()
    stop = {"stop_strings": ["".join(chr(97 + t) for t in text)], "tokenizer": Letters(), "max_new_tokens": STEPS}
    for engine in (Engine(model, "never"), Engine(model, "layerskip", depth=2)):
        out = engine.generate(**inputs, **stop)
        assert torch.equal(out.sequences, plain(model, inputs, **stop)) and len(out.drafts.tokens[0]) < STEPS

    def enough(row: int, tokens: list[int]) -> None:
        if row == 1:
            raise KeyboardInterrupt

    out = Engine(model, "never").generate(**inputs, max_new_tokens=STEPS, on_tokens=enough)
    assert isinstance(out.drafts.stopped, KeyboardInterrupt) and out.sequences.shape[1] == 2
    assert torch.equal(
        Engine(model, "never").generate(**inputs, max_new_tokens=STEPS).sequences, plain(model, inputs, max_new_tokens=STEPS)
    )


@pytest.mark.parametrize(
    "more", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}, {"use_cache": False}, {"output_scores": True},
             {"prefix_allowed_tokens_fn": lambda row, ids: [5 + row]}]
)  # fmt: skip
def test_what_the_loop_does_not_make_goes_by_the_walk(more: dict[str, Any]) -> None:
    model, inputs = made("t5")
    out = Engine(model, "static", decoder=2).generate(**inputs, max_new_tokens=4, **more)
    assert out.drafts is None and out.sequences is not None
    if "prefix_allowed_tokens_fn" in more:
        assert out.sequences[:, 1].tolist() == [5, 6]


def test_what_cannot_be_done_is_refused() -> None:
    model, inputs = made("whisper")
    with pytest.raises(KnobError, match="low rank is fitted to what a decoder-only"):
        Engine(model, "calm", decoder=0.5, rank=8).generate(**inputs, max_new_tokens=3)
    with pytest.raises(KnobError, match="leaves no layer to verify"):
        Engine(model, "layerskip", depth=4)


@pytest.mark.parametrize("case", ["whisper", "llama"])
def test_what_a_trained_ramp_says_is_written(case: str) -> None:
    """Of rows that leave early the ramp's words, of the others the model's own, and every reading of the head is counted."""
    model, inputs = made(case)
    engine = Engine(model, "never")
    exits = Exits(engine.shape(), heads=False, ramps=Ramps(engine.shape()))
    with torch.no_grad():
        for part in exits.parameters():
            part.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    depth = ((4, 2, 2, 3), (4, 2, 4, 3))
    engine = Engine(model, forced({"decoder": Table(depth)}, "run late"), exits=exits)
    loop, walk = (
        engine.generate(**inputs, max_new_tokens=4, min_new_tokens=4),
        engine.generate(**inputs, max_new_tokens=4, min_new_tokens=4, output_scores=True),
    )
    assert torch.equal(loop.sequences, walk.sequences) and torch.equal(loop.depth, walk.depth)
    bare = Engine(model, forced({"decoder": Table(depth)}, "run late")).generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert not torch.equal(bare.sequences, loop.sequences) and bare.trace.head_calls == 4
    assert loop.trace.head_calls == 5  # one for the rows that leave early and one for the others: 1, 1, 2, 1
