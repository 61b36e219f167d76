"""OFA as a whole: caches, beams, streams that must not see each other, sizes, saving, gradients."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache

from exitwise.errors import CheckpointError, InputError, UnknownName
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, load_lite0
from exitwise.models.ofa.stem import Lite0, pad_same


def prompt(rows: int, length: int, seed: int = 4) -> torch.Tensor:
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, torch.Tensor], ids: torch.Tensor, steps: int) -> torch.Tensor:
    """By hand and without a cache; no row may end."""
    for _ in range(steps):
        logits = model(**inputs, decoder_input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(1,) * 40, (7, 1, 1, 30, 1)])
def test_cached_decoding_equals_uncached(tiny_ofa: Any, ofa_inputs: Any, chunks: tuple[int, ...]) -> None:
    """40 positions: the tables on the cache start at 32 and must grow on the way."""
    model, inputs, ids = tiny_ofa(), ofa_inputs(), prompt(2, 40)
    full = model(**inputs, decoder_input_ids=ids, use_cache=False)
    assert full.past_key_values is None
    encoded, past, logits, start = model.get_encoder()(**inputs), None, [], 0
    for size in chunks:
        out = model(
            encoder_outputs=encoded,
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=ids[:, start : start + size],
            past_key_values=past,
            use_cache=True,
        )
        past, start = out.past_key_values, start + size
        logits.append(out.logits)
    assert torch.allclose(torch.cat(logits, 1), full.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_used_cache_can_be_copied_and_a_new_one_starts_anew(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, ids = tiny_ofa(), prompt(2, 4)
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    out = model(**ofa_inputs(), decoder_input_ids=ids, past_key_values=past, use_cache=True)
    twin = copy.deepcopy(out.past_key_values)
    step = {"decoder_input_ids": prompt(2, 1), "encoder_outputs": model.get_encoder()(**ofa_inputs()), "use_cache": True}
    assert torch.equal(model(past_key_values=twin, **step).logits, model(past_key_values=past, **step).logits)


@torch.no_grad()
def test_generate_is_greedy_by_hand(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs = tiny_ofa(), ofa_inputs()
    by_hand = greedy(model, inputs, prompt(2, 1), 12)
    assert len(set(by_hand[0, 1:].tolist())) > 3 and 2 not in by_hand  # not one token again and again
    for cache in (True, False):
        said = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=12, min_new_tokens=12, use_cache=cache)
        assert torch.equal(said, by_hand)


@torch.no_grad()
@pytest.mark.parametrize("cache", [True, False])
def test_wide_beam_search_finds_the_best_of_all_sequences(tiny_ofa: Any, ofa_inputs: Any, cache: bool) -> None:
    """3 letters in 3 places: 9 beams keep every beginning, so the winner is the best of 27 by teacher forcing."""
    model, inputs, letters = tiny_ofa(), ofa_inputs(), [11, 12, 13]
    everything = torch.tensor([[0, *said, 2] for said in itertools.product(letters, repeat=3)])
    best = []
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        chances = model(**one, decoder_input_ids=everything[:, :-1], use_cache=False).logits.log_softmax(-1)
        scores = chances.gather(-1, everything[:, 1:, None]).sum((1, 2))
        best.append(everything[scores.argmax()])
    assert not torch.equal(best[0], best[1])

    def allowed(row: int, tokens: torch.Tensor) -> list[int]:
        return letters if len(tokens) < 4 else [2]

    said = model.generate(**inputs, num_beams=9, do_sample=False, max_new_tokens=4, prefix_allowed_tokens_fn=allowed, use_cache=cache)
    assert torch.equal(said[:, :5], torch.stack(best))


@torch.no_grad()
def test_several_decoder_rows_for_one_image_equal_explicit_repeats(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs, ids = tiny_ofa(), ofa_inputs(), prompt(6, 5)
    repeated = {name: value.repeat_interleave(3, 0) for name, value in inputs.items()}
    expected = model(**repeated, decoder_input_ids=ids, use_cache=False).logits
    assert not torch.allclose(expected[:3], expected[3:], atol=1e-2)
    for cache in (True, False):
        assert torch.allclose(model(**inputs, decoder_input_ids=ids, use_cache=cache).logits, expected, atol=1e-5)


@torch.no_grad()
def test_pads_change_nothing(tiny_ofa: Any, ofa_inputs: Any) -> None:
    """The short row alone, unpadded, says what it says in the batch; so does a decoder prompt padded on the left."""
    model, inputs = tiny_ofa(), ofa_inputs()
    ids = prompt(2, 6)
    ids[1] = torch.tensor([1, 1, 0, 9, 8, 7])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    together = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    alone = model(input_ids=inputs["input_ids"][1:, :4], image_features=inputs["image_features"][1:], decoder_input_ids=ids[1:, 2:]).logits
    assert torch.allclose(together[1:, 2:], alone, atol=1e-5)
    without = model(**inputs, decoder_input_ids=ids).logits
    assert not torch.allclose(without[1:, 2:], alone, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("decomposed", [True, False])
@pytest.mark.parametrize("changed", ["image_features", "input_ids"])
def test_streams_are_apart_if_and_only_if_decomposed(tiny_ofa: Any, ofa_inputs: Any, decomposed: bool, changed: str) -> None:
    encoder, inputs = tiny_ofa(decomposed=decomposed).get_encoder(), ofa_inputs()
    other = {**inputs, changed: inputs[changed].flip(0)}
    before = encoder(**inputs, output_hidden_states=True).hidden_states
    after = encoder(**other, output_hidden_states=True).hidden_states
    kept, moved = (slice(6, None), slice(0, 6)) if changed == "image_features" else (slice(0, 6), slice(6, None))
    assert len(before) == 4
    for depth in range(1, 4):
        assert torch.equal(before[depth][:, kept], after[depth][:, kept]) == decomposed
        assert not torch.equal(before[depth][:, moved], after[depth][:, moved])


def test_decomposition_adds_no_parameter(tiny_ofa: Any) -> None:
    assert set(tiny_ofa(decomposed=True).state_dict()) == set(tiny_ofa(decomposed=False).state_dict())


@torch.no_grad()
def test_raw_states_are_what_the_head_reads(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model = tiny_ofa()
    out = model(**ofa_inputs(), decoder_input_ids=prompt(2, 5), output_hidden_states=True)
    assert torch.equal(model.readout(out.decoder_hidden_states[-1]), out.logits)
    assert not torch.allclose(model.readout(out.decoder_hidden_states[1]), out.logits, atol=1e-2)


@torch.no_grad()
def test_one_stream_may_be_missing(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs = tiny_ofa(), ofa_inputs()
    text = model(input_ids=inputs["input_ids"], decoder_input_ids=prompt(2, 3)).logits
    image = model(image_features=inputs["image_features"], decoder_input_ids=prompt(2, 3)).logits
    assert torch.isfinite(text).all() and torch.isfinite(image).all() and not torch.allclose(text, image, atol=1e-2)
    with pytest.raises(InputError, match="neither text nor image"):
        model(decoder_input_ids=prompt(2, 3))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 33), ("medium", 93), ("base", 180), ("large", 470), ("huge", 930)])
def test_official_sizes_have_the_published_number_of_parameters(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = OFAForConditionalGeneration(OFAConfig.size(size))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)  # published rounded


@torch.no_grad()
@pytest.mark.parametrize("auto", [AutoModelForSeq2SeqLM, AutoModelForImageTextToText])
def test_saved_and_loaded_it_is_the_same_model(tiny_ofa: Any, ofa_inputs: Any, tmp_path: Path, auto: Any) -> None:
    model, ids = tiny_ofa(decomposed=True), prompt(2, 5)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is OFAForConditionalGeneration and loaded.config.decomposed
    assert AutoConfig.from_pretrained(tmp_path).image_grids == [[2, 3], [3, 2]]
    assert loaded.lm_head.weight is loaded.model.encoder.embed_tokens.weight is loaded.model.decoder.embed_tokens.weight
    pixels = torch.randn(2, 3, 64, 96)
    inputs = {"input_ids": ofa_inputs()["input_ids"], "pixel_values": pixels, "decoder_input_ids": ids}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_gradients_reach_every_part_with_and_without_checkpointing(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model = tiny_ofa(dropout=0.0).train()
    labels = torch.randint(5, 60, (6, 5), generator=torch.Generator().manual_seed(2))
    labels[0, 3:] = -100
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.model.encoder.layers[0].gradient_checkpointing = False
            model.gradient_checkpointing_enable() if not hasattr(model, "activation_checkpointing_enable") else (
                model.activation_checkpointing_enable()
            )
        model.zero_grad()
        model(**ofa_inputs(), labels=labels).loss.backward()
        silent = [name for name, weight in model.named_parameters() if weight.requires_grad and not weight.grad.abs().sum() > 0]
        # a key's bias moves all scores of a query alike, so softmax cannot feel it
        assert all("k_linear.bias" in name or "k_proj.bias" in name for name in silent), silent
        grads.append(model.model.encoder.image_rel_pos[0].weight.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=1e-6)
    assert not any(weight.requires_grad for weight in model.model.stem.parameters())


def test_labels_shift_right_and_holes_are_not_counted(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs = tiny_ofa(), ofa_inputs()
    labels = torch.tensor([[9, 8, 2, -100], [7, 6, 5, 2]])
    read = torch.tensor([[0, 9, 8, 2], [0, 7, 6, 5]])
    out = model(**inputs, labels=labels)
    chances = model(**inputs, decoder_input_ids=read).logits.log_softmax(-1)
    counted = labels != -100
    by_hand = -chances[counted].gather(1, labels[counted][:, None]).mean()
    assert torch.allclose(out.loss, by_hand, atol=1e-5)


@torch.no_grad()
def test_no_query_is_left_without_a_key(tiny_ofa: Any) -> None:
    """Not every attention kernel forgives a row in which everything is masked."""
    mask = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    bias = tiny_ofa().model.decoder.biases(0, 5, torch.zeros(3, 32), mask).self_bias(0)
    assert (bias.amax(-1) > -1e4).all() and (bias[1, :, 3:, :3] < -1e4).all() and (bias[1, :, 3, 4] < -1e4).all()


def test_lower_precision_and_autocast_stay_finite(tiny_ofa: Any, ofa_inputs: Any) -> None:
    """Masks, too, must survive the cast: the least float32 is minus infinity in half precision."""
    ids, mask = prompt(2, 5), torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    half, brain, whole = torch.float16, torch.bfloat16, torch.float32
    for own, inside in ((whole, half), (whole, brain), (brain, brain)):
        model = tiny_ofa(decomposed=True).to(own)
        with torch.autocast("cpu", dtype=inside, enabled=own is whole):
            out = model(**ofa_inputs(), decoder_input_ids=ids, decoder_attention_mask=mask, labels=ids)
        out.loss.backward()
        assert torch.isfinite(out.logits).all()
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_drop_path_works_in_training_only_and_grows_with_depth(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model = tiny_ofa(drop_path=0.9, dropout=0.0)
    assert [layer.drop_path for layer in model.model.encoder.layers] == pytest.approx([0.0, 0.45, 0.9])
    ids = prompt(2, 3)
    runs = [model(**ofa_inputs(), decoder_input_ids=ids, use_cache=False).logits for _ in range(2)]
    assert torch.equal(runs[0], runs[1])
    model.train()
    runs = [model(**ofa_inputs(), decoder_input_ids=ids).logits for _ in range(2)]
    assert not torch.equal(runs[0], runs[1])


def test_the_stem_never_trains_its_statistics(tiny_ofa: Any) -> None:
    model = tiny_ofa(train_stem=True).train()
    assert not any(part.training for part in model.model.stem.modules())
    before = model.model.stem.trunk.bn0.running_mean.clone()
    model.model.stem(torch.randn(1, 3, 33, 65)).sum().backward()
    assert torch.equal(model.model.stem.trunk.bn0.running_mean, before)
    assert model.model.stem.trunk.conv_stem.weight.grad.abs().sum() > 0


def test_stems_give_the_grid_they_promise(tiny_ofa: Any) -> None:
    with torch.no_grad():
        assert tiny_ofa().model.stem(torch.zeros(1, 3, 65, 96)).shape == (1, 3, 3, 320)
        small = tiny_ofa(stem="resnet", resnet_blocks=[1, 1, 1])
        assert small.model.stem(torch.zeros(2, 3, 64, 48)).shape == (2, 4, 3, 1024)


def test_same_padding_puts_the_odd_one_right_and_below() -> None:
    padded = pad_same(torch.ones(1, 1, 4, 6), kernel=3, stride=2)  # 2 cells need 5 pixels, 3 cells need 7
    assert padded.shape == (1, 1, 5, 7)
    assert padded[0, 0, :, 3].tolist() == [1, 1, 1, 1, 0] and padded[0, 0, 0].tolist() == [1, 1, 1, 1, 1, 1, 0]
    both = pad_same(torch.ones(1, 1, 5, 5), kernel=3, stride=2)  # 3 cells need 7: one on each side
    assert both[0, 0, 3].tolist() == [0, 1, 1, 1, 1, 1, 0] == both[0, 0, :, 3].tolist()


def test_lite0_weights_are_taken_by_their_published_names() -> None:
    ours = Lite0().state_dict()
    theirs = {"_fc.weight": torch.zeros(1), "_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1)}
    for name, weight in ours.items():
        parts = name.split(".")
        parts[0] = "_" + parts[0]
        if parts[0] == "_blocks":
            parts[2] = "_" + parts[2]
        theirs[".".join(parts)] = weight
    found = load_lite0(theirs)
    assert set(found) == set(ours) and all(found[name] is ours[name] for name in ours)
    del theirs["_blocks.15._bn2.running_var"]
    with pytest.raises(CheckpointError, match=r"1 are missing, such as 'blocks\.15\.bn2\.running_var'"):
        load_lite0(theirs)


def test_bad_shapes_and_names_are_told(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs = tiny_ofa(), ofa_inputs()
    with pytest.raises(InputError, match="at most 6 x 6"):
        model.get_encoder()(inputs["input_ids"], image_features=torch.zeros(2, 7, 2, 320))
    with pytest.raises(InputError, match="81 tokens.*at most 80"):
        model.get_encoder()(torch.zeros(1, 81, dtype=torch.long))
    with pytest.raises(InputError, match="81 positions"):
        model(**inputs, decoder_input_ids=prompt(2, 81))
    with pytest.raises(InputError, match="decoder_input_ids or labels"):
        model(**inputs)
    with pytest.raises(InputError, match="position_embeddings"):
        model(encoder_outputs=(torch.zeros(2, 3, 32),), decoder_input_ids=prompt(2, 2))
    with pytest.raises(UnknownName, match="'base'"):
        OFAConfig.size("bass")
    with pytest.raises(CheckpointError, match="does not divide"):
        OFAConfig(d_model=30, encoder_attention_heads=4)
    with pytest.raises(CheckpointError, match="efficientnet-lite0"):
        OFAConfig(stem="vgg")
    with pytest.raises(CheckpointError, match=r"each 1\.\.42"):
        OFAConfig(image_grids=[[43, 3]])
