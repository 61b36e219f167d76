"""Models that no library offers and that the methods of Exitwise need, as ordinary `transformers` models."""
