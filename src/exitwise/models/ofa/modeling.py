"""OFA as an ordinary `transformers` model: encoder over image and text, decoder, tied head, loss and `generate`.

Written afresh from the paper (Wang et al. 2022, arXiv:2202.03052). Differs: the decoder has text positions only, so
image codes can be read and written as tokens but carry no 2-D positions.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput

from exitwise.errors import InputError

from .base import OFAPreTrainedModel
from .configuration import OFAConfig
from .decoder import OFADecoder
from .encoder import OFAEncoder, OFAEncoderOutput
from .stem import Stem


def shift_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder reads when it is to write `labels`: a start token first, the last token dropped, -100 as pad."""
    shifted = labels.new_full(labels.shape, start)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill_(shifted == -100, pad)


class OFAModel(OFAPreTrainedModel):
    """Encoder and decoder with one token embedding."""

    _tied_weights_keys = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = OFAEncoder(config)
        self.decoder = OFADecoder(config)
        self.post_init()

    @property
    def stem(self) -> Stem:
        """The image stem, which lives in the encoder so that `get_encoder()` can read pixels."""
        return self.encoder.stem

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.shared = self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def encode(self, encoder_outputs: Any, **inputs: Any) -> OFAEncoderOutput:
        """Run the encoder, or take what a call or `generate` hands over."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(**inputs)
        if not isinstance(encoder_outputs, OFAEncoderOutput):
            encoder_outputs = OFAEncoderOutput(*encoder_outputs[:2])
        if encoder_outputs.position_embeddings is None or encoder_outputs.position_embeddings.dim() != 3:
            raise InputError("encoder_outputs carry no position_embeddings. Give the output of this model's own encoder.")
        return encoder_outputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """All of `Seq2SeqLMOutput` but loss and logits; the decoder's final states, after the norm, stand in `logits`' place."""
        encoded = self.encode(
            encoder_outputs,
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_features=image_features,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
        )
        states, positions = encoded.last_hidden_state, encoded.position_embeddings
        assert states is not None and positions is not None
        if attention_mask is not None and attention_mask.shape[1] < states.shape[1]:
            attention_mask = F.pad(attention_mask, (states.shape[1] - attention_mask.shape[1], 0), value=1)
        decoded = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            encoder_positions=positions[0],
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        return Seq2SeqLMOutput(
            logits=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            encoder_last_hidden_state=states,
            encoder_hidden_states=encoded.hidden_states,
        )


class OFAForConditionalGeneration(OFAPreTrainedModel, GenerationMixin):
    """OFA with its tied head. `labels` of -100 are not counted; `hidden_states` are raw, so that each can be read out."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        self.model = OFAModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.model.encoder

    def get_decoder(self) -> nn.Module:
        return self.model.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def readout(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab_size) of the raw output of any decoder layer: shared final norm, tied head."""
        logits: Tensor = self.lm_head(self.model.decoder.layer_norm(hidden))
        return logits

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels shifted to the right behind the start token."""
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        if decoder_input_ids is None:
            if labels is None:
                raise InputError("the decoder got no tokens. Give decoder_input_ids or labels, or call generate().")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_features=image_features,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=(self.config.use_cache if use_cache is None else use_cache) and labels is None and not self.training,
            output_hidden_states=self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        output.logits = self.lm_head(output.logits)
        if labels is not None:
            output.loss = F.cross_entropy(output.logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return output.to_tuple() if return_dict is False else output
