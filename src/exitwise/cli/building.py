"""`exitwise kernel`: compiled parts that make a language model's decoding on a CPU faster."""

from __future__ import annotations

from . import options
from .saying import as_json, guarded, show


@guarded
def kernel(as_object: options.Json = False) -> None:
    """Compile the kernel for this processor, once: decoding on a CPU is faster then.

    Needs a C++ compiler (CXX, or c++, g++, clang++) and takes some seconds. It
    is tried out, kept in the folder of caches (EXITWISE_CACHE names another)
    and used from then on for language models in float32; texts stay the same.
    EXITWISE_KERNEL=0 leaves it aside.

    Shows how a product with few tokens does beside PyTorch's: what drafts and
    small batches gain.

    \b
    Examples:
      exitwise kernel
      exitwise kernel --json
    """
    from .. import few

    built = few.build()
    gains = few.gains(built)
    if as_object:
        return as_json({"path": str(built.path), "times_as_fast": gains})
    show(f"{built.path}\nA product with so many tokens, times as fast as PyTorch's:")
    show("  ".join(f"{count}: {gain:.2f}" for count, gain in gains.items()))
