"""An OFA made ready for fine-tuning: what a loaded model fixes when it is built, changed in place; undone by loading it again."""

from __future__ import annotations

from exitwise.errors import KnobError

from .layers import OFAAttention, OFADecoderLayer, OFAEncoderLayer
from .modeling import OFAForConditionalGeneration


def tune(
    model: OFAForConditionalGeneration,
    *,
    decomposed: bool | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    drop_path: float | None = None,
    freeze_embeddings: bool = False,
    train_stem: bool | None = None,
    checkpoint_layers: bool = False,
) -> None:
    """Changes the model and its configuration, so that it is saved as it was trained; None leaves a thing as it is.

    drop_path grows from 0 in a stack's first layer to the given rate in its last. Frozen embeddings are the one table of tokens of input,
    decoder and head. Raises KnobError for a rate outside 0 to below 1.
    """
    config = model.config
    rates = {"dropout": dropout, "attention_dropout": attention_dropout, "drop_path": drop_path}
    for name, rate in rates.items():
        if rate is not None:
            if not 0 <= rate < 1:
                raise KnobError(f"{name} is {rate}. Allowed: 0 to below 1.")
            setattr(config, name, rate)
    if decomposed is not None:
        config.decomposed = decomposed
    for part in model.modules():
        if isinstance(part, OFAAttention) and attention_dropout is not None:
            part.dropout = attention_dropout
        elif isinstance(part, (OFAEncoderLayer, OFADecoderLayer)):
            part.dropout = config.dropout
    if drop_path is not None:
        for stack in (model.model.encoder.layers, model.model.decoder.layers):
            for index, layer in enumerate(stack):
                assert isinstance(layer, (OFAEncoderLayer, OFADecoderLayer))
                layer.drop_path = drop_path * index / max(len(stack) - 1, 1)
    if freeze_embeddings:
        model.model.shared.weight.requires_grad_(False)
    if train_stem is not None:
        config.train_stem = train_stem
        model.model.stem.trainable = train_stem
        model.model.stem.requires_grad_(train_stem)
    if checkpoint_layers:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # the older name
        enable()
