"""Exitwise makes a transformer stop computing when its answer is ready."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
_WHERE = {
    "Engine": "engine",
    "Monitor": "monitor",
    "Trace": "trace",
    "Family": "stack",
    "Stack": "stack",
    "Method": "method",
    "Knob": "method",
    "ExitwiseError": "errors",
}
__all__ = ["Engine", "ExitwiseError", "Family", "Knob", "Method", "Monitor", "Stack", "Trace", "families", "methods", "models"]

if TYPE_CHECKING:
    from . import families, methods, models
    from .engine import Engine
    from .errors import ExitwiseError
    from .method import Knob, Method
    from .monitor import Monitor
    from .stack import Family, Stack
    from .trace import Trace


def __getattr__(name: str) -> Any:
    """Import on first use: `import exitwise` is quick, and needs no torch."""
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'exitwise' has no attribute {name!r}")
