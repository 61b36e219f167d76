"""Training language models for early exits: losses, weights, noise, and a paper's objective as a value made of them."""

from .drafting import accepted_at_once, soft_cross_entropy

__all__ = ["accepted_at_once", "soft_cross_entropy"]
