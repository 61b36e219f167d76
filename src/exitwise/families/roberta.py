"""RoBERTa: a text encoder, post-LN, under a classifier on its first token, or under a masked-word head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(hidden) if hasattr(model, "lm_head") else model.classifier(hidden)
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 6-layer RoBERTa of width 32 with 5 classes, and one batch with padding."""
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, num_labels=5, pad_token_id=1,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 1, 0
    return RobertaForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("roberta", "xlm-roberta"),
    classes=(
        "RobertaForSequenceClassification", "RobertaForMaskedLM", "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM",
    ),
    stacks=(Stack("roberta.encoder.layer", "encoder", ("text",), owner="roberta"),),
    readout=_readout,
    classifier="classifier",
    about="RobertaForSequenceClassification, RobertaForMaskedLM, and the same of XLM-RoBERTa",
    tiny=tiny,
)  # fmt: skip
