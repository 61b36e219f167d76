"""Our arithmetic for a layer is the layer's own, and steps aside wherever it could not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import CLOSE, LANGUAGE, LEAN, backbone_of, setting, walked, words
from torch import nn
from transformers.activations import ACT2FN

from exitwise import families
from exitwise.families.llama import small
from exitwise.lm.backbone import Backbone
from exitwise.lm.lean import attend, filled_up, lean_of, norm_of, tangent_of
from exitwise.lm.stair import Stair

TOKENS = [words(90, 1), words(90, 2)]
DEPTHS = [[4, 1, 2, 4, 3] * 4, [1, 3, 4, 4, 2] * 4]


def test_the_cases_with_the_known_form_are_lean_and_no_others() -> None:
    found = {case: [lean is not None for lean in backbone_of(case).leans] for case in LANGUAGE}
    assert {case for case, which in found.items() if all(which)} == set(LEAN)
    assert all(not any(which) for case, which in found.items() if case not in LEAN)
    assert backbone_of("llama", lean=False).leans == [None] * 4


@pytest.mark.parametrize("policy", ["run late", "propagate"])
@pytest.mark.parametrize("case", LEAN)
def test_lean_layers_say_what_the_layers_say(case: str, policy: str) -> None:
    said = []
    with torch.no_grad():
        for lean in (True, False):
            backbone = backbone_of(case, lean)
            said.append(walked(Stair(backbone, 2, policy), TOKENS, DEPTHS, 70))
            assert backbone.trace.calls and (policy == "run late" or backbone.trace.fills)
    torch.testing.assert_close(said[0], said[1], **CLOSE)
    assert said[0].std() > 0.1


@torch.no_grad()
def test_few_rows_are_filled_up_and_say_what_each_says_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of 16 for 8 to 15 rows, in layers and in the head, where there is no kernel; what was filled in is never seen."""
    setting(monkeypatch, EXITWISE_KERNEL="0")
    assert [len(filled_up(torch.ones(n, 3))) for n in (1, 7, 8, 15, 16, 17)] == [1, 7, 16, 16, 16, 17]
    assert filled_up(torch.ones(9, 3)).sum() == 27
    for case in ("llama", "gemma", "gpt2"):
        backbone, rows = backbone_of(case), [words(12, seed) for seed in range(9)]
        widths: list[int] = []
        backbone.model.get_output_embeddings().register_forward_hook(lambda m, a, out, w=widths: w.append(out.shape[:-1].numel()))
        said = walked(Stair(backbone, 9), rows, [[4, 2]] * 9, 10)
        for row in range(9):
            torch.testing.assert_close(walked(Stair(backbone, 1), rows[row : row + 1], [[4, 2]], 10)[0], said[row], **CLOSE)
        assert set(widths) == {16, 1} and said.shape[:2] == (9, 2)
        states = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
        want = torch.stack([torch.cat([backbone.readout(states[r : r + 1, t : t + 1]) for t in range(4)], 1)[0] for r in range(3)])
        torch.testing.assert_close(backbone.readout(states), want, **CLOSE)


def hooked(layer: Any) -> None:
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)


def pre_hooked(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda *_: None)


def patched(layer: Any) -> None:
    own = layer.self_attn.forward
    layer.self_attn.forward = lambda *a, **k: own(*a, **k)


def trains(layer: Any) -> None:
    layer.train()


def half(layer: Any) -> None:
    layer.bfloat16()


def subclass(layer: Any) -> None:
    layer.mlp.up_proj.__class__ = type("Adapted", (nn.Linear,), {})


def capped(layer: Any) -> None:
    layer.self_attn.attn_logit_softcapping = 50.0


def other_norm(layer: Any) -> None:
    layer.input_layernorm = nn.LayerNorm(32)


def one_norm(layer: Any) -> None:
    layer.self_attn.q_norm = nn.RMSNorm(8, 1e-6)


@pytest.mark.parametrize("change", [hooked, pre_hooked, patched, trains, half, subclass, capped, other_norm, one_norm])
def test_a_layer_that_is_not_plain_runs_as_it_is(change: Callable[[Any], None]) -> None:
    model, _ = made("llama")
    layer = model.model.layers[1]
    assert lean_of(layer) is not None
    change(layer)
    assert lean_of(layer) is None
    if change in (hooked, pre_hooked, patched):
        assert [lean is not None for lean in Backbone(model, families.of(model)[1]).leans] == [True, False, True, True]


def test_a_layer_of_the_form_that_computes_otherwise_is_found_out() -> None:
    model, _ = made("llama")
    own: Any = type(model.model.layers[2].mlp)

    class Doubled(own):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    model.model.layers[2].mlp.__class__ = Doubled
    assert lean_of(model.model.layers[2]) is not None  # nothing to be seen from outside
    assert [lean is not None for lean in Backbone(model, families.of(model)[1]).leans] == [True, True, False, True]


def test_weights_are_the_models_own() -> None:
    backbone = backbone_of()
    lean, layer = backbone.leans[0], backbone.layers[0]
    assert lean is not None
    assert lean.q.turned.data_ptr() == layer.self_attn.q_proj.weight.data_ptr()  # type: ignore[union-attr]
    assert lean.down.turned.data_ptr() == layer.mlp.down_proj.weight.data_ptr()  # type: ignore[union-attr]


def test_norms_are_told_by_what_they_do() -> None:
    plain = nn.RMSNorm(16, 1e-5)
    nn.init.uniform_(plain.weight, 0.5, 2.0)
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(0)) * 3
    ours = norm_of(plain)
    assert ours is not None
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-6)  # float32 in another order
    assert norm_of(None) is None and norm_of(nn.LayerNorm(16)) is None and norm_of(nn.LayerNorm(16, bias=False)) is None


def test_heads_that_share_keys_are_asked_together() -> None:
    dice = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, heads, tokens, 8, generator=dice) for heads, tokens in ((6, 3), (2, 9), (2, 9)))
    seen = torch.rand(2, 1, 3, 9, generator=dice) > 0.3
    want = torch.softmax(
        (query @ keys.repeat_interleave(3, 1).transpose(-1, -2) * 0.4).masked_fill(~seen, -torch.inf), -1
    ) @ values.repeat_interleave(3, 1)
    torch.testing.assert_close(attend(query, keys, values, seen, 0.4), want, rtol=1e-5, atol=1e-6)  # float32 in another order


def test_an_activation_is_known_by_what_it_does() -> None:
    """Whatever it is called: only SiLU and the tangent's GELU are the kernel's; the exact GELU is up to 5e-4 away, and is not."""
    found = {name: tangent_of(ACT2FN[name]) for name in ("silu", "gelu_pytorch_tanh", "gelu_new", "gelu", "quick_gelu", "relu")}
    assert found == {"silu": False, "gelu_pytorch_tanh": True, "gelu_new": True, "gelu": None, "quick_gelu": None, "relu": None}
    own = {case: {lean.tangent for lean in backbone_of(case).leans if lean is not None} for case in ("llama", "gemma")}
    assert own == {"llama": {False}, "gemma": {True}}


@torch.no_grad()
def test_maps_with_a_bias_are_multiplied_one_by_one() -> None:
    """The kernel's gate knows no bias: such a layer is run in few operations all the same, and says what its own code says."""
    model, _ = small("Llama", mlp_bias=True)
    for name, value in model.named_parameters():
        if name.endswith("proj.bias"):
            value.normal_(generator=torch.Generator().manual_seed(len(name)))
    said = []
    for lean in (True, False):
        backbone = Backbone(model, families.of(model)[1], lean)
        assert [each is not None and each.tangent is None for each in backbone.leans] == [lean] * 4
        said.append(walked(Stair(backbone, 2), TOKENS, DEPTHS, 70))
    torch.testing.assert_close(said[0], said[1], **CLOSE)
