"""Pretrained models by what a user writes for them: a folder, a name on the hub, a GGUF file; language models with their tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import CheckpointError, InputError

MAGIC = b"GGUF"
Turn = Mapping[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder or a name on the hub, and the GGUF file in it, if the weights are in one."""

    place: str
    gguf: str | None = None

    @property
    def files(self) -> dict[str, str]:
        """What every `from_pretrained` is told besides the place."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def source_of(name: str | Path) -> Source:
    """Where `name` is. A folder without config.json that holds one GGUF file stands for that file.

    Raises CheckpointError for a GGUF file that is missing, is none, or needs the package `gguf`, and for a folder that holds no model.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        found = sorted(path.glob("*.gguf"))
        if len(found) != 1:
            several = f" It holds {len(found)} GGUF files: name one." if found else ""
            raise CheckpointError(f"The folder {path} has no config.json. Give a folder that save_pretrained wrote.{several}")
        path = found[0]
    if path.suffix.lower() != ".gguf":
        if path.is_file():
            raise CheckpointError(f"{path} is a file, but no GGUF file. Give a folder that save_pretrained wrote, a name on the hub, or a .gguf.")
        return Source(str(path) if path.is_dir() else str(name))
    if not path.is_file():
        raise CheckpointError(f"The file {path} does not exist. Give a GGUF file, a folder that save_pretrained wrote, or a name on the hub.")
    with path.open("rb") as opened:
        first = opened.read(len(MAGIC))
    if first != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {first!r}, not {MAGIC!r}. Download it again.")
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{path} is read with the package gguf, which is not installed. Run: pip install 'exitwise[gguf]'")
    return Source(str(path.parent), path.name)


def config_of(source: Source) -> Any:
    """The model's configuration. Raises CheckpointError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.place, **source.files)
    except (OSError, ValueError, KeyError) as problem:
        if Path(source.place).exists():
            raise CheckpointError(f"{_said(source)} is not a model that transformers can read: {first_line(problem)}") from problem
        raise CheckpointError(
            f"No model {source.place!r} was found: there is no such folder here, and the hub did not give it ({first_line(problem)}). "
            "Check the spelling; 'shipped' is the model that comes with Exitwise."
        ) from problem


def weights_of(source: Source, kind: Any, dtype: Any = None) -> Any:
    """A model of the class `kind` in evaluation mode; float32 unless said otherwise. Raises CheckpointError where weights are missing."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    if Path(source.place).is_dir():
        logging.disable_progress_bar()  # a folder is read at once; a download keeps its bar
    try:
        model, report = kind.from_pretrained(source.place, dtype=dtype or torch.float32, output_loading_info=True, **source.files)
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise CheckpointError(f"The weights of {_said(source)} do not load into {kind.__name__}: {first_line(problem)}") from problem
    missing, unlike = sorted(report["missing_keys"]), sorted(map(str, report.get("mismatched_keys") or ()))
    if missing or unlike:
        raise CheckpointError(
            f"The weights of {_said(source)} are not those of its config.json: {len(missing)} missing, {len(unlike)} of another shape "
            f"({', '.join([*missing, *unlike][:3])}). Save model and configuration together, with save_pretrained."
        )
    if source.gguf is not None:
        _floats(model)
    return model.eval()


def _floats(model: Any) -> None:
    """The weights of a GGUF file were turned into floats: nothing of it is quantised any more, so that it can be saved as any model."""
    for holder, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model, "is_quantized"), (model.config, "quantization_config")):
        if name in holder.__dict__:
            delattr(holder, name)


@dataclass(frozen=True)
class Speaker:
    """A language model and its tokenizer. notes: what was missing, and what is taken instead, in words for the user."""

    model: Any
    tokenizer: Any
    notes: tuple[str, ...] = ()

    @property
    def chats(self) -> bool:
        """Whether the tokenizer knows how a chat is written, so that prompts are asked as a user's turn."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def written(self, prompt: str | Sequence[Turn], chat: bool | None = None) -> str:
        """The text that the model is given for a prompt, or for the turns of a chat. chat: None follows the tokenizer.

        Raises InputError for turns or chat=True where the tokenizer has no template.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if not (self.chats if chat is None else chat):
            if isinstance(prompt, str):
                return prompt
        if not self.chats:
            raise InputError("This tokenizer has no chat template, so turns cannot be written. Give one text, and leave chat out.")
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    def prompts(self, prompts: Sequence[str | Sequence[Turn]], chat: bool | None = None) -> dict[str, Tensor]:
        """A batch, padded on the left: what `generate` takes. Raises InputError for no prompt, an empty one, or ids that the model lacks."""
        texts = [self.written(prompt, chat) for prompt in prompts]
        if not texts:
            raise InputError("No prompt was given. Give one or more.")
        templated = self.chats if chat is None else chat
        ids = self.tokenizer(texts, add_special_tokens=not templated)["input_ids"]
        most = self.model.get_input_embeddings().weight.shape[0]
        for place, row in enumerate(ids):
            if not row or not texts[place].strip():
                raise InputError(f"Prompt {place} is empty. Give one word or more.")
            if max(row) >= most:
                raise InputError(f"Prompt {place} has the token {max(row)}, but the model knows {most}. Load the tokenizer of this model.")
        batch = self.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def text(self, ids: Any) -> str:
        """The words of token ids, special tokens left out."""
        said: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return said


def language_model(name: str | Path, dtype: Any = None, note: Callable[[str], None] = lambda text: None) -> Speaker:
    """The decoder-only language model in a folder, on the hub or in a GGUF file, with its tokenizer.

    dtype: float32 unless said otherwise. note: is told in words what was missing and is replaced. Raises CheckpointError for what is no such
    model, or has no tokenizer.
    """
    source = source_of(name)
    model = weights_of(source, causal_class(source), dtype)
    tokenizer, notes = padding(tokenizer_of(source), model)
    for each in notes:
        note(each)
    return Speaker(model, tokenizer, notes)


def is_language_model(config: Any) -> bool:
    """Whether a configuration is that of a decoder-only language model: text in, the next token out."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM._model_mapping.get(type(config), None)
    named = (getattr(config, "architectures", None) or [None])[0]
    return found is not None and not getattr(config, "is_encoder_decoder", False) and named in (None, found.__name__)


def causal_class(source: Source) -> Any:
    """The class of the language model there. Raises CheckpointError for a model of another kind."""
    from transformers import AutoModelForCausalLM

    config = config_of(source)
    if not is_language_model(config):
        named = ", ".join(getattr(config, "architectures", None) or [config.model_type])
        raise CheckpointError(
            f"{_said(source)} is no decoder-only language model but a {named}. Give a Llama, Qwen, Mistral, Gemma, Phi, GPT-2, OPT or "
            "GPT-NeoX checkpoint, or one built like them."
        )
    return AutoModelForCausalLM._model_mapping[type(config)]


def tokenizer_of(source: Source) -> Any:
    """The tokenizer beside a model, as it is. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.place, **source.files)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{_said(source)} has no tokenizer that loads ({first_line(problem)}). Save it beside the model.") from problem


def padding(tokenizer: Any, model: Any) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer, padding on the left, with a token to pad with, which the model's `generate` is told too; and notes on what was taken."""
    tokenizer.padding_side, notes = "left", ()
    if tokenizer.pad_token is None:
        instead = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = instead
        notes = (f"The tokenizer has no pad token; {instead!r} is taken. Pads are masked, so that they change no answer.",)
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    return tokenizer, notes


def _said(source: Source) -> str:
    return source.place if source.gguf is None else str(Path(source.place) / source.gguf)


def first_line(problem: BaseException) -> str:
    """The kind of an error and its first line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else 'no reason given'}"
