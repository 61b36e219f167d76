"""The adapter that drafts: its arithmetic against a Llama layer's, tokens one by one against all at once, and its files."""

import json

import pytest
import torch
from torch import Tensor

from exitwise.errors import CheckpointError, KnobError
from exitwise.lm.adapter import ABOUT, WEIGHTS, Adapter, AdapterConfig, load_adapter, save_adapter

PLAIN = AdapterConfig(16, 4, 4)
WIDE = AdapterConfig(16, 4, 2, head_width=6, rope_theta=500.0, eps=1e-5, ffn=20, depth=3)
POSITIONS = torch.arange(7)[None].expand(2, -1)


def made(config: AdapterConfig) -> tuple[Adapter, Tensor]:
    torch.manual_seed(1)
    adapter = Adapter(config).eval()
    for name, value in adapter.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(value, 1.0, 0.3)  # gains of one would hide a norm in the wrong place
    return adapter, torch.randn(2, 7, config.width)


def test_with_a_net_it_is_a_layer_of_a_llama_and_a_norm() -> None:
    """The same weights in transformers' own decoder layer. Attention in another kernel: 1e-5 on states of size 1."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    adapter, states = made(WIDE)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"}, attn_implementation="sdpa",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0).eval()
    names = {
        "input_layernorm": "norm_in", "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
        "post_attention_layernorm": "norm_ffn", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
    }  # fmt: skip
    layer.load_state_dict({f"{theirs}.weight": adapter.get_submodule(ours).weight for theirs, ours in names.items()})
    turn = LlamaRotaryEmbedding(config)(states, POSITIONS)
    with torch.no_grad():
        want = adapter.norm_out(layer(states, position_embeddings=turn, position_ids=POSITIONS))
        torch.testing.assert_close(adapter(states, POSITIONS)[0], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, WIDE], ids=["paper", "grouped, with a net"])
@pytest.mark.parametrize("parts", [(1,) * 7, (3, 4), (5, 1, 1)])
def test_parts_with_what_was_kept_equal_all_at_once(config: AdapterConfig, parts: tuple[int, ...]) -> None:
    """Sums in another order: 1e-5 on states of size 1."""
    adapter, states = made(config)
    with torch.no_grad():
        whole, keys, values = adapter(states, POSITIONS)
        past: tuple[Tensor | None, Tensor | None] = (None, None)
        found = []
        for piece, places in zip(states.split(parts, 1), POSITIONS.split(parts, 1), strict=True):
            out, *past = adapter(piece, places, *past)
            found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(past[0], keys, rtol=0, atol=1e-5)
    assert keys.shape == values.shape == (2, config.kv_heads, 7, config.size)


def test_nothing_later_is_seen_and_pads_can_be_hidden() -> None:
    adapter, states = made(PLAIN)
    changed = states.clone()
    changed[:, 5:] += 1
    with torch.no_grad():
        before, after = adapter(states, POSITIONS)[0], adapter(changed, POSITIONS)[0]
        assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before[:, 5:], after[:, 5:])
        shown = torch.ones(2, 1, 7, dtype=torch.bool)
        shown[:, :, :2] = False
        masked = adapter(states, POSITIONS, mask=shown)[0][:, 2:]
        alone = adapter(states[:, 2:], POSITIONS[:, 2:])[0]
    torch.testing.assert_close(masked, alone, rtol=0, atol=1e-5)


def test_shape_of_the_papers_adapter() -> None:
    """4 d^2 + 2 d parameters: 67.1 million at the width of Vicuna 7B."""
    assert sum(value.numel() for value in Adapter(PLAIN).parameters()) == 4 * 16**2 + 2 * 16
    with torch.device("meta"):
        assert sum(value.numel() for value in Adapter(AdapterConfig(4096, 32, 32)).parameters()) == 67_117_056


def test_it_takes_its_form_from_a_models_configuration() -> None:
    from transformers import LlamaConfig

    told = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=100_000.0)
    config = AdapterConfig.of(told, 2)
    assert (config.width, config.heads, config.kv_heads, config.size, config.depth, config.ffn) == (576, 9, 9, 64, 2, 0)
    assert (config.rope_theta, config.eps) == (100_000.0, 1e-5)


@pytest.mark.parametrize("config", [PLAIN, WIDE])
def test_saved_and_read_back(config: AdapterConfig, tmp_path) -> None:
    adapter, states = made(config)
    save_adapter(adapter, tmp_path, torch.tensor([1, 5, 9]), {"hit": 0.5})
    read = load_adapter(tmp_path)
    assert read.adapter.config == config and read.shortlist.tolist() == [1, 5, 9] and read.about == {"hit": 0.5}
    assert torch.equal(read.adapter(states, POSITIONS)[0], adapter(states, POSITIONS)[0]) and not read.adapter.training
    save_adapter(adapter, tmp_path)
    assert load_adapter(tmp_path).shortlist is None


@pytest.mark.parametrize("break_it", ["weights gone", "json gone", "cut short", "other shape", "strange setting"])
def test_files_that_do_not_fit_are_refused(break_it: str, tmp_path) -> None:
    save_adapter(Adapter(PLAIN), tmp_path)
    told = json.loads((tmp_path / ABOUT).read_text())
    if break_it == "weights gone":
        (tmp_path / WEIGHTS).unlink()
    elif break_it == "json gone":
        (tmp_path / ABOUT).unlink()
    elif break_it == "cut short":
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:100])
    else:
        told["config"]["width" if break_it == "other shape" else "colour"] = 32
        (tmp_path / ABOUT).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="not there|damaged|unknown settings"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"width": 0}, "width is 0"),
        ({"kv_heads": 3}, "does not divide heads=4"),
        ({"width": 18}, "not a multiple of heads=4"),
        ({"head_width": 5}, "even"),
        ({"ffn": -1}, "below 0"),
    ],
)
def test_forms_that_cannot_be(given: dict, says: str) -> None:
    with pytest.raises(KnobError, match=says):
        AdapterConfig(**{"width": 16, "heads": 4, "kv_heads": 4, **given})
