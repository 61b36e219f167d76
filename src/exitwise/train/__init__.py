"""Training for early exits: the layer-wise loss, schedules, and one plain loop."""

from .loop import Progress, Settings, load, save, train
from .losses import layer_weights, layerwise, sampled_weights
from .schedules import warmup_cosine

__all__ = ["Progress", "Settings", "layer_weights", "layerwise", "load", "sampled_weights", "save", "train", "warmup_cosine"]
