"""BERT: a text encoder, post-LN, under a classifier on its pooled first token or under a masked-word head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.cls(hidden) if hasattr(model, "cls") else model.classifier(model.bert.pooler(hidden))
    return logits


def _tiny(kind: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, num_labels=5,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return getattr(transformers, kind)(config).eval(), {"input_ids": ids, "attention_mask": mask}


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 6-layer BERT of width 32 with 5 classes, and one batch with padding."""
    return _tiny("BertForSequenceClassification")


def tiny_masked() -> tuple[Any, dict[str, Any]]:
    """The same under the masked-word head."""
    return _tiny("BertForMaskedLM")


FAMILY = Family(
    model_types=("bert",),
    classes=("BertForSequenceClassification", "BertForMaskedLM"),
    stacks=(Stack("bert.encoder.layer", "encoder", ("text",), owner="bert"),),
    readout=_readout,
    classifier="classifier",
    about="BertForSequenceClassification, BertForMaskedLM",
    tiny=tiny,
)
