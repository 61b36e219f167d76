"""What MuE's released code does, knob by knob: each defect alone, against hand arithmetic or a slow reference; and the presets."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.models.conftest import make_inputs, make_tiny
from tests.models.test_ofa_layers import attend, feed_forward, norm, position_scores, weights
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from exitwise import Engine, Method, families, methods
from exitwise.criteria import Saturation
from exitwise.errors import FamilyError, KnobError, UnknownName
from exitwise.families import ofa
from exitwise.run.encode import Walker
from exitwise.run.walk import Plan, Session

HEADS, LAYERS = 4, 3


@pytest.fixture(scope="module")
def model():
    return make_tiny(decomposed=True, dropout=0.0)


def free(rows=2):
    """Inputs, and a start token for the decoder."""
    return {**make_inputs(rows), "decoder_input_ids": torch.zeros(rows, 1, dtype=torch.long)}


# -- D1: the image's relative positions are lost ------------------------------------------------------------------------------------


def silenced(model, name):
    """A copy whose tables of this name are zero."""
    other = copy.deepcopy(model)
    for table in getattr(other.model.encoder, name):
        torch.nn.init.zeros_(table.weight)
    return other


@pytest.mark.parametrize("decompose", [True, False])
def test_d1_is_the_model_whose_image_tables_are_zero(model, decompose):
    lost = Engine(model, "mue", image_rel_bias=False, decompose=decompose).run(**free()).logits
    assert torch.allclose(lost, Engine(silenced(model, "image_rel_pos"), "mue", decompose=decompose).run(**free()).logits, atol=1e-5)
    for other in (model, silenced(silenced(model, "image_rel_pos"), "token_rel_pos")):  # neither all tables nor none
        assert (lost - Engine(other, "mue", decompose=decompose).run(**free()).logits).abs().max() > 1e-2


def test_d1_ends_with_the_run_and_can_be_trained_with(model):
    before = Engine(model, "mue").run(**free()).logits
    with pytest.raises(RuntimeError, match="stop"), Engine(model, "mue", image_rel_bias=False).attached():
        assert model.config.image_rel_bias is False
        raise RuntimeError("stop")
    assert model.config.image_rel_bias is True
    assert torch.equal(before, Engine(model, "mue").run(**free()).logits)
    same = make_tiny(decomposed=True, dropout=0.0, image_rel_bias=False)
    assert torch.equal(Engine(same, "mue").run(**free()).logits, Engine(model, "mue", image_rel_bias=False).run(**free()).logits)


def test_d1_is_refused_where_the_model_has_no_such_tables():
    other, inputs = families.load("bart").tiny()
    with pytest.raises(KnobError, match="has no setting 'image_rel_bias'"):
        Engine(other, "mue", image_rel_bias=False).generate(**inputs, max_new_tokens=2)


# -- D2: skipped layers miss the token ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """Depths by step and row."""

    table: tuple

    def depths(self, rows, layers, step, dice):
        return list(self.table[step])


def told(model, table, policy):
    return Engine(model, Method("none", "a test", lambda settings, layers: Plan({"decoder": Told(table)}, policy=policy)))


def steps(engine, tokens, encoded, mask):
    """Logits of every step, (rows, steps, vocabulary), token by token through one cache."""
    model, cache = engine.model, EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad(), engine.attached():
        given = {"encoder_outputs": encoded, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        return torch.cat([model(decoder_input_ids=tokens[:, t : t + 1], **given).logits for t in range(tokens.shape[1])], 1)


def holed(model, tokens, depths, states, positions, mask):
    """One row in NumPy float64: each layer keeps the tokens that came to it; a query's bias is its row, from the right."""
    w = weights(model.model.decoder)
    own = norm(w, "pos_ln", w["embed_positions.weight"][: len(tokens)])
    table = position_scores(w, "self_position_scores", own, own, HEADS)
    cross = position_scores(w, "cross_position_scores", own, positions, HEADS) + np.where(mask, 0, -1e9)
    size = model.config.token_bucket_size
    kept, out = [[] for _ in range(LAYERS)], []
    for t, depth in enumerate(depths):
        x = norm(w, "layernorm_embedding", w["embed_tokens.weight"][tokens[t]][None])
        for index in range(depth):
            part = {k.removeprefix(f"layers.{index}."): v for k, v in w.items() if k.startswith(f"layers.{index}.")}
            near = w[f"token_rel_pos.{index}.weight"]
            bias = np.stack([table[:, t, s] + near[s - t + size - 1] for s in range(t + 1)], -1)  # (heads, positions 0..t)
            y = norm(part, "self_attn_layer_norm", x)
            kept[index].append(y[0])
            keys = np.stack(kept[index])
            mixed = attend(part, "self_attn", y, keys, bias[:, None, t + 1 - len(keys) :], HEADS)
            x = x + norm(part, "self_attn_mid_layer_norm", mixed)
            y = norm(part, "cross_attn_layer_norm", x)
            x = x + norm(part, "cross_attn_mid_layer_norm", attend(part, "cross_attn", y, states, cross[:, t : t + 1], HEADS))
            x = feed_forward(part, x)
        out.append(norm(w, "layer_norm", x)[0] @ w["embed_tokens.weight"].T)
    return np.stack(out)


def test_d2_leaves_holes_and_slices_the_bias_from_the_right(model):
    """Two rows with depths of their own, token by token, against the slow reference; 1e-4: logits of size 30 in float32."""
    inputs, tokens = make_inputs(2), torch.tensor([[0, 9, 33, 20, 51], [0, 14, 7, 40, 8]])
    table = ((3, 1), (1, 3), (2, 2), (3, 1), (3, 3))
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
    mask = torch.cat([torch.ones(2, 6, dtype=torch.long), inputs["attention_mask"]], 1)
    got = steps(told(model, table, "holes"), tokens, encoded, inputs["attention_mask"])
    for row in range(2):
        wanted = holed(
            model, tokens[row].tolist(), [depths[row] for depths in table], encoded.last_hidden_state[row].double().numpy(),
            encoded.position_embeddings[0].double().numpy(), mask[row].numpy(),
        )  # fmt: skip
        assert np.abs(got[row].double().numpy() - wanted).max() < 1e-4 * max(1, np.abs(wanted).max() / 10)
    filled = steps(told(model, table, "propagate"), tokens, encoded, inputs["attention_mask"])
    assert torch.allclose(got[0, :2], filled[0, :2], atol=1e-4)  # row 0 meets a hole first at its third token
    assert (got[0, 2:] - filled[0, 2:]).abs().amax(-1).gt(1e-2).all()


def test_d2_without_a_skipped_layer_is_the_model(model):
    inputs = make_inputs(2)
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(plain, Engine(model, "mue", keys_values="holes").generate(**inputs, max_new_tokens=6).sequences)


def test_d2_follows_its_beams(model):
    """Beams are reordered with what each layer holds of them: a row alone says what it says in a batch."""
    inputs = make_inputs(3)
    sure = Engine(model, "mue").generate(record=True, **inputs, max_new_tokens=5, num_beams=3).trace.sureness["decoder"]
    engine = Engine(model, "mue", keys_values="holes", decoder=float(sure[..., 1].nanquantile(0.5)))
    both = engine.generate(**inputs, max_new_tokens=5, num_beams=3)
    assert both.depth.unique().numel() > 1
    for row in range(3):
        alone = engine.generate(**{k: v[row : row + 1] for k, v in inputs.items()}, max_new_tokens=5, num_beams=3)
        assert torch.equal(alone.sequences[0], both.sequences[row][: alone.sequences.shape[1]])


# -- D3: one cosine for the whole batch ---------------------------------------------------------------------------------------------


def test_d3_by_hand(model):
    """(1, 0) stays, cosine 1; (0, 3) becomes (3, 0), cosine 0. As one vector: 1 / 10. The pad's mask changes nothing."""
    before, after = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]), torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    for threshold, left in ((0.09, [1, 1]), (0.11, [0, 0])):
        session = Session(model, ofa.FAMILY, Plan(pooled=True, record=True))
        rule = Saturation(threshold, scope="flat")
        walker = Walker(session, ofa.FAMILY.stacks_of(model)[0], rule, [0, 1], before, torch.tensor([[1], [0]]), 3, 2)
        walker.advance(1, after)
        assert walker.sure[:, 0].tolist() == pytest.approx([0.1, 0.1])
        assert walker.depth == left


def test_d3_is_the_cosine_of_all_rows_tokens_and_pads(model):
    """Against the untouched model's states; the decoder's too. A hair below the measured cosine all leave, a hair above none does."""
    given = free(3)
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    knobs = {"batch": "flat", "scope": "flat", "decoder_scope": "flat"}
    trace = Engine(model, "mue", **knobs).run(record=True, **given).trace
    for stream, states in (
        ("image", [s[:, :6] for s in out.encoder_hidden_states]),
        ("text", [s[:, 6:] for s in out.encoder_hidden_states]),
        ("decoder", out.decoder_hidden_states),
    ):
        flat = [s.double().flatten() for s in states]
        wanted = [float(a @ b / a.norm() / b.norm()) for a, b in zip(flat, flat[1:])]
        measured = trace.sureness[stream].view(3, LAYERS)
        assert measured.double().numpy() == pytest.approx(np.tile(wanted, (3, 1)), abs=1e-5)
        first = max(wanted[0], wanted[1])
        leave = wanted.index(first) + 1
        below = Engine(model, "mue", **knobs, **{stream: first - 1e-4, "minimum": leave}).run(**given).trace.depth[stream]
        above = Engine(model, "mue", **knobs, **{stream: first + 1e-4}).run(**given).trace.depth[stream]
        assert below.unique().tolist() == [leave] and above.unique().tolist() == [LAYERS]
    alone = Engine(model, "mue", scope="flat").run(record=True, **given).trace.sureness["text"]
    assert alone[:, 0].unique().numel() == 3  # rows by themselves differ


# -- D4: the head reads every layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minimum, calls", [(1, 1), (2, 2), (LAYERS, LAYERS + 1)])
def test_d4_reads_every_layer_that_is_not_the_exit_and_the_exit(model, minimum, calls):
    """Exit at i: i evaluations a step; full depth: all layers and once more. What is said does not change."""
    inputs = make_inputs(2)
    counts, asked = [], {"max_new_tokens": 4, "min_new_tokens": 4}
    handle = model.lm_head.register_forward_hook(lambda *_: counts.append(1))
    engine = Engine(model, "mue", decoder=-1.0, minimum=minimum)
    try:
        wasteful = engine.with_settings(head="every layer").generate(**inputs, **asked)
    finally:
        handle.remove()
    assert wasteful.trace.head_calls == len(counts) == 4 * calls
    once = engine.generate(**inputs, **asked)
    assert once.trace.head_calls == 4 and torch.equal(once.sequences, wasteful.sequences)


def test_d4_needs_a_read_out(model):
    blind = copy.copy(ofa.FAMILY)
    object.__setattr__(blind, "readout", None)
    with pytest.raises(FamilyError, match="no `readout`"):
        Engine(model, "mue", blind, head="every layer").run(**free())


# -- D5, and the presets ------------------------------------------------------------------------------------------------------------


def test_d5_a_forgotten_threshold_runs_full_depth(model):
    trace = Engine(model, "mue", preset="released", image=-1.0).run(**free()).trace
    assert [trace.mean_depth(s) for s in ("image", "text", "decoder")] == [1, LAYERS, LAYERS]


def test_presets_say_what_paper_and_code_say():
    """Appendix A of the paper; the code's schedule is for captions, its answers have a static threshold."""
    mue = methods.load("mue")
    paper = mue.settings(mue.preset("paper", "caption"))
    assert [paper[k] for k in ("image", "text", "decoder", "beta", "tau", "schedule")] == [0.9, 0.95, 0.99, 0.95, 1.0, "paper"]
    answers = mue.settings(mue.preset("paper", "answer"))
    assert [answers[k] for k in ("image", "text", "decoder", "schedule")] == [0.9, 0.95, 0.95, "static"]
    released = mue.settings(mue.preset("released"))
    assert [released[k] for k in ("image", "text", "decoder", "schedule")] == [1.0, 1.0, 1.0, "released"]
    assert mue.settings(mue.preset("released", "answer"))["schedule"] == "static"
    assert mue.settings(mue.preset("corrected")) == mue.settings({}) == mue.settings(mue.preset(None))


def test_a_knob_goes_before_its_preset(model):
    engine = Engine(model, "mue", preset="released", batch="compact", image=0.5)
    found = engine.settings_dict()
    assert (found["batch"], found["image"], found["keys_values"]) == ("compact", 0.5, "holes")
    with pytest.raises(UnknownName, match="Did you mean 'released'"):
        Engine(model, "mue", preset="release")
    with pytest.raises(UnknownName, match="none for this method"):
        Engine(model, "static", preset="paper")


def test_the_released_code_as_a_whole_is_its_parts(model):
    """All knobs together: token ids and depths are those of the knobs one by one set by hand."""
    inputs = make_inputs(2)
    thresholds = {"image": 0.6, "text": 0.6, "decoder": 0.6}
    whole = Engine(model, "mue", preset="released", **thresholds).generate(**inputs, max_new_tokens=6)
    parts = {"image_rel_bias": False, "keys_values": "holes", "batch": "flat", "head": "every layer", "schedule": "released"}
    by_hand = Engine(model, "mue", scope="flat", decoder_scope="flat", **parts, **thresholds).generate(**inputs, max_new_tokens=6)
    assert torch.equal(whole.sequences, by_hand.sequences) and torch.equal(whole.depth, by_hand.depth)
