"""Low-rank updates instead of all weights, by the library `peft` where it is installed."""

from __future__ import annotations

from typing import Any

from transformers.pytorch_utils import Conv1D

from exitwise.errors import KnobError


def with_lora(model: Any, rank: int, alpha: float | None = None) -> Any:
    """Puts low-rank updates on all linear layers of the model but its head, in place, and returns what `merged` takes.

    alpha: the updates are scaled by alpha / rank; None takes twice the rank. Raises KnobError without `peft`.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise KnobError(
            "Low-rank updates need the library peft, which is not installed. Run: pip install 'exitwise[lora]'; or train all weights."
        ) from None
    if rank < 1:
        raise KnobError(f"A rank of {rank} is not possible. Allowed: 1 and more, such as 16.")
    turned = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's weights are (in, out)
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear", fan_in_fan_out=turned)
    return LoraModel(model, config, "default")


def only_updates(model: Any) -> None:
    """Lets the low-rank updates learn, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(updated: Any) -> Any:
    """The model that `with_lora` was given, the updates added to its weights: an ordinary one again."""
    return updated.merge_and_unload()
