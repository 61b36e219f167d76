"""DistilBERT: a text encoder, post-LN, under a classifier of two layers on its first token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.pre_classifier(hidden[:, 0]).relu())
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 6-layer DistilBERT of width 32 with 5 classes, and one batch with padding."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=99, dim=32, n_layers=6, n_heads=4, hidden_dim=64, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0,
        seq_classif_dropout=0.0, initializer_range=0.2, num_labels=5,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return DistilBertForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("distilbert",),
    classes=("DistilBertForSequenceClassification",),
    stacks=(Stack("distilbert.transformer.layer", "encoder", ("text",), owner="distilbert"),),
    readout=_readout,
    classifier="classifier",
    about="DistilBertForSequenceClassification",
    tiny=tiny,
)
