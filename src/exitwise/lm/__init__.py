"""Decoders that write, alone or after an encoder: one loop (draft, verify, accept) over a frontier of keys and values for each layer.

The walk of `exitwise.run` carries exits inside any model's own forward. Here the model's layers are called one by one, so that drafting,
late runs and rows of unlike length are one mechanism, and what a step needs is made once for all layers.
"""
