"""What every OFA module shares as a `transformers` model: configuration class, initialisation, and what may not be split."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration import OFAConfig
from .layers import OFAAttention


class OFAPreTrainedModel(PreTrainedModel):
    """Initialisation and loading for every OFA module."""

    config_class = OFAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["OFAEncoderLayer", "OFADecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        tables: Any = getattr(module, "relative_tables", None)
        if isinstance(module, OFAAttention):
            init.ones_(module.c_attn)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif tables is not None:
            for table in tables():
                init.zeros_(table.weight)
