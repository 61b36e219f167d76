"""MuE on the unified model: streams that do not see each other, leave by themselves, and mean the same alone and in a batch."""

import pytest
import torch

from exitwise import Engine
from exitwise.families import ofa


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return ofa.tiny()


@pytest.fixture(scope="module")
def crowd(pair):
    """Sixteen rows of unlike images and texts, padded."""
    torch.manual_seed(1)
    ids = torch.randint(5, 95, (16, 7))
    mask = torch.ones_like(ids)
    for row in range(16):
        mask[row, 7 - row % 4 :] = 0
    scale = torch.linspace(0.2, 4, 16)[:, None, None, None]
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask, "image_features": torch.randn(16, 2, 3, 320) * scale}


def thresholds(model, inputs, share=0.5):
    """Quantiles of what was measured, so that rows leave at different depths."""
    ledger = Engine(model, "mue").run(record=True, **inputs, decoder_input_ids=inputs["input_ids"][:, :1]).trace.sureness
    return {s: float(v[..., :-1].flatten().quantile(share)) for s, v in ledger.items()}


def encoder_states(model, inputs):
    with torch.no_grad(), Engine(model, "mue").attached():
        return model.get_encoder()(**inputs, output_hidden_states=False).last_hidden_state


def test_a_stream_is_blind_to_the_other(pair):
    """Check 2: bit-identical. The negative control is the same model with fused attention."""
    model, inputs = pair
    other = {**inputs, "image_features": inputs["image_features"].flip(0) * 2}
    cells = 6
    first, second = encoder_states(model, inputs), encoder_states(model, other)
    assert torch.equal(first[:, cells:], second[:, cells:])
    assert not torch.equal(first[:, :cells], second[:, :cells])
    words = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
    assert torch.equal(first[:, :cells], encoder_states(model, words)[:, :cells])


def test_fused_attention_fails_the_same_test(pair):
    model, inputs = pair
    model.config.decomposed = False
    try:
        other = {**inputs, "image_features": inputs["image_features"].flip(0) * 2}
        with torch.no_grad():
            first = model.get_encoder()(**inputs).last_hidden_state
            second = model.get_encoder()(**other).last_hidden_state
        assert not torch.equal(first[:, 6:], second[:, 6:])
    finally:
        model.config.decomposed = True


def test_decomposing_adds_no_parameter_and_equals_the_masked_model(pair):
    """1e-5: the same sums over fewer, unmasked terms, in another order."""
    model, inputs = pair
    count = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        masked = model.get_encoder()(**inputs).last_hidden_state
    real = torch.cat([torch.ones(2, 6, dtype=torch.long), inputs["attention_mask"]], 1).bool()
    assert (masked - encoder_states(model, inputs))[real].abs().max() < 1e-5
    assert count == sum(p.numel() for p in model.parameters())


def test_streams_leave_by_themselves(pair, crowd):
    model, _ = pair
    chosen = thresholds(model, crowd)
    free = {**crowd, "decoder_input_ids": crowd["input_ids"][:, :1]}
    both = Engine(model, "mue", **{k: chosen[k] for k in ("image", "text")}).run(**free).trace
    image = Engine(model, "mue", image=chosen["image"]).run(**free).trace
    assert torch.equal(both.depth["image"], image.depth["image"])
    assert set(image.depth["text"].tolist()) == {4}
    assert len(set(zip(both.depth["image"].tolist(), both.depth["text"].tolist(), strict=True))) >= 3


def test_without_decomposition_both_leave_at_the_same_layer(pair, crowd):
    model, _ = pair
    trace = Engine(model, "mue", image=0.75, text=0.75, decompose=False).run(**crowd, decoder_input_ids=crowd["input_ids"][:, :1]).trace
    assert torch.equal(trace.depth["image"], trace.depth["text"])


@pytest.mark.parametrize("policy", ["propagate", "run late", "recompute"])
def test_a_row_alone_is_the_row_in_a_padded_batch(pair, crowd, policy):
    """Check 4. Token ids and depths equal; a guard holds that rows leave at three depths or more."""
    model, _ = pair
    engine = Engine(model, "mue", **thresholds(model, crowd), keys_values=policy)
    together = engine.generate(**crowd, max_new_tokens=6, min_new_tokens=6)
    depths = set(together.trace.depth["image"].tolist()) | set(together.depth.flatten().tolist())
    assert len(depths) >= 3
    for row in range(16):
        length = int(crowd["attention_mask"][row].sum())
        one = {k: v[row : row + 1] for k, v in crowd.items()}
        one = {**one, "input_ids": one["input_ids"][:, :length], "attention_mask": one["attention_mask"][:, :length]}
        alone = engine.generate(**one, max_new_tokens=6, min_new_tokens=6)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert torch.equal(alone.depth[0], together.depth[row])
        for stream in ("image", "text"):
            assert alone.trace.depth[stream][0] == together.trace.depth[stream][row]


def test_batch_min_leaves_with_its_last_row(pair, crowd):
    model, _ = pair
    knobs = thresholds(model, crowd)
    given = {**crowd, "decoder_input_ids": crowd["input_ids"][:, :1]}
    single = Engine(model, "mue", **knobs).run(**given).trace.depth
    together = Engine(model, "mue", **knobs, batch="min").run(**given).trace.depth
    for stream in ("image", "text"):
        assert len(set(single[stream].tolist())) > 1
        assert set(together[stream].tolist()) == {int(single[stream].max())}


def test_a_higher_threshold_never_leaves_sooner(pair, crowd):
    model, _ = pair
    given = {**crowd, "decoder_input_ids": crowd["input_ids"][:, :1]}
    before = torch.zeros(16, dtype=torch.long)
    for share in (0.1, 0.4, 0.7, 0.95):
        depth = Engine(model, "mue", image=thresholds(model, crowd, share)["image"]).run(**given).trace.depth["image"]
        assert (depth >= before).all()
        before = depth


def test_no_host_waits_that_can_be_avoided(pair):
    """Check 15: a plan that knows its depths never asks the device; a criterion asks once per layer in doubt."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
                self.count += 1
            return func(*args, **(kwargs or {}))

    model, inputs = pair
    given = {k: v[:1, ...] for k, v in inputs.items() if k != "attention_mask"}
    given["decoder_input_ids"] = given["input_ids"][:, :1]
    counts = {}
    for name, engine in {
        "plain": None,
        "never": Engine(model, "mue"),
        "static": Engine(model, "static", image=2, text=1, decoder=3),
    }.items():
        with Waits() as waits, torch.no_grad():
            model(**given) if engine is None else engine.run(**given)
        counts[name] = waits.count
    assert counts["never"] <= counts["plain"]
    assert counts["static"] <= counts["plain"]
