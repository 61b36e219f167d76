"""Low-rank updates instead of all weights, by the library `peft` where it is installed."""

from __future__ import annotations

from typing import Any

from exitwise.errors import KnobError


def with_lora(model: Any, rank: int, alpha: float | None = None) -> Any:
    """The model with low-rank updates on all its linear layers but the head, which alone are trained. Raises KnobError without `peft`."""
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


def merged(model: Any) -> Any:
    """The base with its updates added to its weights: an ordinary model again. A model without updates comes back as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
