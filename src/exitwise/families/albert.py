"""ALBERT: a text encoder, post-LN, that calls one shared layer (or a few) many times, under a classifier on its pooled first token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack


def _order(model: Any) -> list[int]:
    """Which group of layers runs at each depth: depths are shared out evenly, first groups first."""
    depth, groups = model.config.num_hidden_layers, model.config.num_hidden_groups
    return [int(place / (depth / groups)) for place in range(depth)]


def _readout(model: Any, hidden: Tensor) -> Tensor:
    trunk = model.albert
    logits: Tensor = model.classifier(trunk.pooler_activation(trunk.pooler(hidden[:, 0])))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random ALBERT of width 32 whose one layer runs 6 times, with 5 classes, and one batch with padding."""
    import torch
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=99, embedding_size=16, hidden_size=32, num_hidden_layers=6, num_hidden_groups=1, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0, initializer_range=0.3, num_labels=5,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return AlbertForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("albert",),
    classes=("AlbertForSequenceClassification",),
    stacks=(Stack("albert.encoder.albert_layer_groups", "encoder", ("text",), owner="albert", order=_order),),
    readout=_readout,
    classifier="classifier",
    about="AlbertForSequenceClassification: one layer that runs many times",
    tiny=tiny,
)
