"""Low-rank updates instead of all weights, by the library `peft` where it is installed."""

from __future__ import annotations

from typing import Any

from exitwise.errors import KnobError


def with_lora(model: Any, rank: int, alpha: float | None = None) -> Any:
    """Puts low-rank updates on all linear layers of the model but its head, in place, and returns what `merged` takes. Raises KnobError
    without `peft`."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise KnobError(
            "Low-rank updates need the library peft, which is not installed. Run: pip install peft; or train all weights."
        ) from None
    if rank < 1:
        raise KnobError(f"A rank of {rank} is not possible. Allowed: 1 and more, such as 16.")
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def only_updates(model: Any) -> None:
    """Lets the low-rank updates learn, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(updated: Any) -> Any:
    """The base of what `with_lora` returned, its updates added to its weights: an ordinary model again."""
    return updated.merge_and_unload()
