"""A tiny Llama written as a GGUF file, as llama.cpp's converter lays it out, for tests of reading one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def _turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query's or key's weight in the order in which llama.cpp turns pairs: neighbours, not halves."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def write(file: Path, model: Any, tokenizer: Any) -> Path:
    """The model's weights in float32 and the tokenizer's words, in one file."""
    import gguf

    config, out = model.config, gguf.GGUFWriter(str(file), "llama")
    out.add_name("tiny")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    out.add_vocab_size(config.vocab_size)
    _words(out, tokenizer, config.vocab_size)
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for index, layer in enumerate(model.model.layers):
        for theirs, ours in parts.items():
            weight = layer.get_submodule(ours).weight.detach()
            if theirs in ("attn_q", "attn_k"):
                weight = _turned(weight, config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads)
            out.add_tensor(f"blk.{index}.{theirs}.weight", weight.numpy())
    out.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    out.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def _words(out: Any, tokenizer: Any, size: int) -> None:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {i: w for w, i in tokenizer.get_vocab().items()}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([words.get(i, f"<unused{i}>") for i in range(size)])
    out.add_token_types([3 if words.get(i, "<").startswith("<") and len(words.get(i, "<u>")) > 1 else 1 for i in range(size)])
    out.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)
