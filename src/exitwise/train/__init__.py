"""Training for early exits: the layer-wise loss, schedules, and one plain loop."""

from .loop import Progress, Settings, load, save, train
from .losses import agreement, distilled, layer_weights, layerwise, leave_one_out, sampled_weights, self_critical
from .schedules import warmup_cosine

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
]
