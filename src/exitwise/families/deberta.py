"""DeBERTa v2 and v3: a text encoder, post-LN, whose attention has relative positions, under a classifier on its pooled first token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import FamilyError
from ..stack import Family, Stack


def _stacks(model: nn.Module) -> tuple[Stack, ...]:
    """The tables of relative positions have no dimension of rows. Raises FamilyError for the kind with a convolution after layer 1."""
    encoder: Any = getattr(getattr(model, "deberta", None), "encoder", None)
    if getattr(encoder, "conv", None) is not None:
        raise FamilyError(
            f"This {type(model).__name__} puts a convolution between its layers 1 and 2 (conv_kernel_size > 0), outside any layer. "
            "It cannot be walked; DeBERTa v3 has none."
        )
    return (Stack("deberta.encoder.layer", "encoder", ("text",), owner="deberta", shared=("relative_pos", "rel_embeddings")),)


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.pooler(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 6-layer DeBERTa of width 32 with 5 classes, and one batch with padding."""
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pooler_dropout=0.0, initializer_range=0.3, num_labels=5,
        type_vocab_size=0, relative_attention=True, position_buckets=3, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, pooler_hidden_size=32,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return DebertaV2ForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("deberta-v2",),
    classes=("DebertaV2ForSequenceClassification",),
    stacks=_stacks,
    readout=_readout,
    classifier="classifier",
    about="DebertaV2ForSequenceClassification (v2 without a convolution, v3)",
    tiny=tiny,
)
