"""What `exitwise inspect` prints, as values: the stacks of a model, how soon its states settle, and the self-test of walking it."""

from .inputs import example_inputs
from .report import Report, StackReport, inspect, saturation
from .selftest import Check, check, require
from .tables import render

__all__ = ["Check", "Report", "StackReport", "check", "example_inputs", "inspect", "render", "require", "saturation"]
