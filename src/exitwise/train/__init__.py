"""Training for early exits: the layer-wise loss, schedules, and one plain loop."""

from .checkpoint import load, save
from .loop import train
from .losses import agreement, distilled, layer_weights, layerwise, leave_one_out, sampled_weights, self_critical
from .schedules import warmup_cosine, warmup_linear
from .settings import Progress, Settings

__all__ = [
    "Progress",
    "Settings",
    "agreement",
    "distilled",
    "layer_weights",
    "layerwise",
    "leave_one_out",
    "load",
    "sampled_weights",
    "save",
    "self_critical",
    "train",
    "warmup_cosine",
    "warmup_linear",
]
