"""The configuration of OFA: every size that the model and its processor need, and the five official presets."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from exitwise.errors import CheckpointError, unknown

STEMS = ("resnet", "efficientnet-lite0")
STEM_CHANNELS = {"resnet": 1024, "efficientnet-lite0": 320}
STEM_STRIDE = {"resnet": 16, "efficientnet-lite0": 32}

_SIZES: dict[str, dict[str, Any]] = {
    name: {
        "d_model": width,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        "resnet_blocks": blocks,
    }
    for name, width, heads, encoder, decoder, blocks in (
        ("tiny", 256, 4, 4, 4, [3, 4, 6]),
        ("medium", 512, 8, 4, 4, [3, 4, 23]),
        ("base", 768, 12, 6, 6, [3, 4, 23]),
        ("large", 1024, 16, 12, 12, [3, 8, 36]),
        ("huge", 1280, 16, 24, 12, [3, 8, 36]),
    )
}


class OFAConfig(PretrainedConfig):
    """Sizes of one OFA model; the defaults are OFA-Base (Wang et al. 2022, arXiv:2202.03052).

    `decomposed` cuts every encoder attention between image and text (MuE, Tang et al. 2023, arXiv:2211.11152).
    `image_rel_bias` off leaves the image's 2-D relative tables unread, which MuE's released code does by mistake.
    `image_grids` are the [rows, columns] of stem cells that the processor may choose from.
    """

    model_type = "ofa"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    def __init__(
        self,
        vocab_size: int = 59457,
        d_model: int = 768,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        encoder_attention_heads: int = 12,
        decoder_attention_heads: int = 12,
        encoder_ffn_dim: int = 3072,
        decoder_ffn_dim: int = 3072,
        max_position_embeddings: int = 1024,
        token_bucket_size: int = 256,
        image_bucket_size: int = 42,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        stem: str = "resnet",
        resnet_blocks: list[int] | None = None,
        stem_channels: int | None = None,
        train_stem: bool = False,
        decomposed: bool = False,
        image_rel_bias: bool = True,
        image_grids: list[list[int]] | None = None,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        unk_token_id: int = 3,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.encoder_attention_heads = encoder_attention_heads
        self.decoder_attention_heads = decoder_attention_heads
        self.encoder_ffn_dim = encoder_ffn_dim
        self.decoder_ffn_dim = decoder_ffn_dim
        self.max_position_embeddings = max_position_embeddings
        self.token_bucket_size = token_bucket_size
        self.image_bucket_size = image_bucket_size
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.drop_path = drop_path
        self.stem = stem
        self.resnet_blocks = resnet_blocks or [3, 4, 23]
        self.stem_channels = stem_channels or STEM_CHANNELS.get(stem, 0)
        self.train_stem = train_stem
        self.decomposed = decomposed
        self.image_rel_bias = image_rel_bias
        self.image_grids = image_grids or [[30, 30]]
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.unk_token_id = unk_token_id
        kwargs.setdefault("decoder_start_token_id", bos_token_id)
        kwargs.setdefault("is_encoder_decoder", True)
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(bos_token_id=bos_token_id, pad_token_id=pad_token_id, eos_token_id=eos_token_id, **kwargs)
        self._check()

    def _check(self) -> None:
        if self.stem not in STEMS:
            raise CheckpointError(f"stem {self.stem!r} is unknown. OFA knows {', '.join(STEMS)}.")
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise CheckpointError(f"d_model {self.d_model} does not divide into {heads} {side} heads. Change one of the two.")
        for grid in self.image_grids:
            if len(grid) != 2 or not all(1 <= cells <= self.image_bucket_size for cells in grid):
                raise CheckpointError(f"image grid {grid} is not allowed. Give [rows, columns], each 1..{self.image_bucket_size}.")

    @property
    def stem_stride(self) -> int:
        """Pixels per cell of the image grid, in each direction."""
        return STEM_STRIDE[self.stem]

    @classmethod
    def size(cls, name: str, **changes: Any) -> OFAConfig:
        """One of the official sizes, with any field changed by keyword."""
        if name not in _SIZES:
            raise unknown("size of OFA", name, _SIZES)
        return cls(**{**_SIZES[name], **changes})
