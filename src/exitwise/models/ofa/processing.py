"""The processor of OFA: pictures to pixels of one grid, texts to tokens, and errors that name the item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from exitwise.errors import InputError

from .configuration import OFAConfig
from .images import nearest_grid, open_image, pixels


class OFAProcessor(ProcessorMixin):
    """processor(images=..., text=...) -> pixel_values (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

    An image is stretched to the grid of `image_grids` whose aspect is nearest; one cell is `stride` x `stride` pixels.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_grids: Sequence[Sequence[int]] = ((30, 30),),
        stride: int = 16,
        max_length: int = 1024,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.image_grids = [list(grid) for grid in image_grids]
        self.stride = stride
        self.max_length = max_length

    @classmethod
    def for_config(cls, tokenizer: Any, config: OFAConfig) -> OFAProcessor:
        """The processor that fits a model of this configuration."""
        return cls(tokenizer, config.image_grids, config.stem_stride, config.max_position_embeddings)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
        grid: Sequence[int] | None = None,
        padding: bool | str = True,
    ) -> BatchFeature:
        """One image or text, or lists of equal length. `grid` ([rows, columns]) makes all images share one grid.

        Rows are always padded to the longest text (`padding=False` is for a single text and changes nothing).
        """
        if return_tensors != "pt":
            raise InputError(f"return_tensors is {return_tensors!r}. OFA gives PyTorch tensors: use 'pt'.")
        if images is None and text is None:
            raise InputError("neither images nor text were given. Give at least one of them.")
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self.encode_images(images, grid)
        if text is not None:
            data.update(self.encode_texts([text] if isinstance(text, str) else list(text)))
        counts = {name: len(value) for name, value in data.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"{counts['pixel_values']} images and {counts['input_ids']} texts were given. Give one text for each image.")
        return BatchFeature(data)

    def encode_images(self, images: Any, grid: Sequence[int] | None = None) -> Tensor:
        """(B, 3, rows * stride, columns * stride). All images of a batch must fall on the same grid."""
        several = images if isinstance(images, (list, tuple)) else [images]
        if not several:
            raise InputError("the list of images is empty. Give at least one image.")
        opened = [open_image(image, f"image {index}") for index, image in enumerate(several)]
        found = [tuple(grid) if grid is not None else nearest_grid(*image.size, self.image_grids) for image in opened]
        if len(set(found)) > 1:
            raise InputError(
                f"the images of this batch fall on different grids: {sorted(set(found))}. Group them by"
                " exitwise.models.ofa.images.nearest_grid, or force one with grid=[rows, columns]."
            )
        rows, columns = found[0]
        return torch.stack([pixels(image, rows, columns, self.stride) for image in opened])

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, lower-case with a leading space, without specials."""
        if not texts:
            raise InputError("the list of texts is empty. Give at least one text.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index} is a {type(text).__name__}. Give a string.")
            if not text.strip():
                raise InputError(f"text {index} is empty. OFA needs a prompt, such as 'what does the image describe?'.")
        rows: list[list[int]] = self.tokenizer([text.strip() for text in texts], add_special_tokens=False)["input_ids"]
        for index, row in enumerate(rows):
            if len(row) + 2 > self.max_length:
                raise InputError(
                    f"text {index} has {len(row)} tokens. This model reads at most {self.max_length - 2} besides start and end: shorten it."
                )
        return rows

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Source side: bos + text + eos, padded on the right."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids, mask = self._pad([[start, *row, end] for row in self.tokens(texts)], left=False)
        return {"input_ids": ids, "attention_mask": mask}

    def decoder_prompts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Decoder side, for answers behind a repeated prompt: bos + text, padded on the left so that all rows end together.

        The mask is left out where no row is padded, which keeps the position scores shared by all rows.
        """
        ids, mask = self._pad([[self.tokenizer.bos_token_id, *row] for row in self.tokens(texts)], left=True)
        return {"decoder_input_ids": ids} if bool(mask.all()) else {"decoder_input_ids": ids, "decoder_attention_mask": mask}

    def _pad(self, rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if left else slice(0, len(row))
            ids[index, where] = torch.tensor(row)
            mask[index, where] = 1
        return ids, mask
