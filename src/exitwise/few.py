"""A matrix times few tokens on a CPU, at the price of reading the matrix once: a kernel of our own, compiled once for this machine.

Decoding reads every weight for each step, and that is what a step costs; a few tokens more should cost next to nothing, which is what
drafts live on. Libraries of products are made for many tokens: PyTorch's take 1.9 times as long for five tokens as for one, and 2.5 times
for nine; `few.cpp` 1.06 and 1.35 times (`decode-roofline`), and it gives each token the same numbers whichever it comes with.

`exitwise kernel`, or `build`, compiles it where there is a C++ compiler; from then on it is found and used. Without it all is as exact,
only slower. EXITWISE_KERNEL=0 leaves it aside.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import BuildError

if TYPE_CHECKING:
    from .lm.store import Span, Store

MOST = 16  # tokens
LANES, MOST_WIDTH = 16, 512  # of the source
SOURCE = Path(__file__).with_name("few.cpp")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
CLOSE = 1e-4  # of sums of up to 1,500 products of numbers of order one, in float32, against float64


class _Look(ctypes.Structure):
    """`Look` of the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "values", "cosine", "sine", "held_keys", "held_values", "out")),
        *((name, ctypes.c_void_p) for name in ("starts", "places")),
        *((name, ctypes.c_int64) for name in ("rows", "tokens", "heads", "groups", "width", "slots", "window", "own")),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class Kernel:
    """The compiled parts. Raises OSError or AttributeError where the file is not a library with them."""

    def __init__(self, library: Path) -> None:
        self.path, opened = library, ctypes.CDLL(str(library))
        self._product, self._attend = opened.exitwise_few, opened.exitwise_attend
        self._product.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int]
        self._attend.argtypes = [ctypes.POINTER(_Look), ctypes.c_int]
        self._gated = opened.exitwise_gated
        self._gated.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 2
        self._norm = opened.exitwise_norm
        self._norm.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._norm.restype = None
        self._cosines = opened.exitwise_cosines
        self._cosines.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        self._cosines.restype = None

    def __call__(self, tokens: Tensor, matrix: Tensor, onto: Tensor | None = None) -> Tensor:
        """(count, rows): tokens (count, width), at most `MOST`, by the transpose of the matrix (rows, width), plus `onto` (count, rows).

        All in float32 on the CPU, the matrix as `takes` wants it; no gradient is kept. Raises RuntimeError, as PyTorch does, for shapes and
        types that do not fit.
        """
        tokens, (rows, width) = tokens.contiguous(), matrix.shape
        added = None if onto is None else onto.contiguous()
        if tokens.shape[1] != width or tokens.dtype != torch.float32 or (added is not None and added.shape != (tokens.shape[0], rows)):
            raise RuntimeError(
                f"{tuple(tokens.shape)} of {tokens.dtype} by the transpose of {tuple(matrix.shape)} is no product of float32."
            )
        out = torch.empty(tokens.shape[0], rows)
        base = 0 if added is None else added.data_ptr()
        failed = self._product(
            matrix.data_ptr(), tokens.data_ptr(), base, out.data_ptr(), tokens.shape[0], rows, width, torch.get_num_threads()
        )
        assert not failed, f"{tokens.shape[0]} tokens"
        return out

    def gated(self, tokens: Tensor, gate: Tensor, up: Tensor, tangent: bool) -> Tensor:
        """(count, rows): the products of tokens (count, width), at most `MOST`, with the gate (rows, width), bent, times those with up.

        Bent by SiLU, or by GELU as the tangent approximates it. Types as for products, and RuntimeError.
        """
        tokens, (rows, width) = tokens.contiguous(), up.shape
        if tokens.shape[1] != width or gate.shape != up.shape or tokens.dtype != torch.float32:
            raise RuntimeError(f"{tuple(tokens.shape)} of {tokens.dtype} do not fit {tuple(gate.shape)} and {tuple(up.shape)} of float32.")
        out = torch.empty(tokens.shape[0], rows)
        failed = self._gated(
            gate.data_ptr(),
            up.data_ptr(),
            tokens.data_ptr(),
            out.data_ptr(),
            tokens.shape[0],
            rows,
            width,
            tangent,
            torch.get_num_threads(),
        )
        assert not failed, f"{tokens.shape[0]} tokens"
        return out

    def norm(self, states: Tensor, gain: Tensor, floor: float) -> Tensor:
        """states gain / sqrt(|states|^2 + floor), of the last dimension; states and gain in float32 on the CPU."""
        states = states.contiguous()
        out, width = torch.empty_like(states), states.shape[-1]
        if gain.shape[0] != width or states.dtype != torch.float32:
            raise RuntimeError(f"A gain of {tuple(gain.shape)} does not fit states {tuple(states.shape)} of {states.dtype}.")
        self._norm(states.data_ptr(), gain.data_ptr(), floor, out.data_ptr(), states.numel() // width, width)
        return out

    def cosines(self, one: Tensor, other: Tensor) -> list[float]:
        """The cosine of each vector of one and of other, of one shape (..., width), in float32 on the CPU; 0 where one is zero."""
        shape = one.shape
        if other.shape != shape or one.dtype != torch.float32 or other.dtype != torch.float32:
            raise RuntimeError(f"{tuple(shape)} of {one.dtype} and {tuple(other.shape)} of {other.dtype} have no cosines here.")
        one, other, count = one.contiguous(), other.contiguous(), math.prod(shape[:-1])
        out = (ctypes.c_float * count)()
        self._cosines(one.data_ptr(), other.data_ptr(), out, count, shape[-1])
        return list(out)

    def attend(
        self,
        brought: tuple[Tensor, Tensor, Tensor],
        turn: tuple[Tensor, Tensor],
        span: Span,
        store: Store,
        window: int | None,
        scale: float,
    ) -> Tensor:
        """(rows, tokens, heads, width): what the heads give for the tokens that a span brings, whose keys and values go to the store.

        brought: queries (rows, tokens, heads, width), keys and values (rows, tokens, groups, width), not turned yet. turn: the tables of
        `lean.rotary`. window: how many slots back a token looks, its own included; None: to the first.
        """
        query, keys, values = (part.contiguous() for part in brought)
        (rows, tokens, heads, width), groups = query.shape, keys.shape[2]
        cosine, sine = (part.contiguous() for part in turn)
        fitting = cosine.shape[1:] == (tokens, 1, width) and cosine.shape[0] in (1, rows) and sine.shape == cosine.shape
        if query.dtype != torch.float32 or cosine.dtype != torch.float32 or heads % groups or not fitting:
            raise RuntimeError(
                f"Queries {tuple(query.shape)} of {query.dtype} do not fit {groups} groups or a turn of {tuple(cosine.shape)}."
            )
        held_keys, held_values, places = store.lie_open(span, keys, values)
        out = torch.empty_like(query)
        look = _Look(
            query.data_ptr(), keys.data_ptr(), values.data_ptr(), cosine.data_ptr(), sine.data_ptr(), held_keys.data_ptr(),
            held_values.data_ptr(), out.data_ptr(), span.first.data_ptr(), places.data_ptr(), rows, tokens, heads, groups, width,
            held_keys.shape[2], span.end if window is None else window, cosine.shape[0] > 1, scale,
        )  # fmt: skip
        failed = self._attend(look, torch.get_num_threads())
        assert not failed, f"heads of {width}"
        return out

    @staticmethod
    def looks(span: Span, width: int) -> bool:
        """Whether attention of this span with heads so wide can be made by the kernel."""
        return span.tokens <= MOST and width % LANES == 0 and width <= MOST_WIDTH

    @staticmethod
    def takes(matrix: Tensor) -> bool:
        """Whether products with this matrix can be made by the kernel."""
        return matrix.is_cpu and matrix.dtype == torch.float32 and matrix.dim() == 2 and matrix.is_contiguous()

    @torch.no_grad()
    def sound(self) -> bool:
        """Whether it multiplies, for all numbers of tokens and shapes that are no multiples of anything. A layer's use of the rest is tried
        on each layer (`Backbone`)."""
        dice = torch.Generator().manual_seed(0)
        for count, (rows, width) in zip(range(1, MOST + 1), [(37, 83), (64, 1500)] * MOST, strict=False):
            tokens, matrix, onto = (torch.randn(shape, generator=dice) for shape in ((count, width), (rows, width), (count, rows)))
            want = onto.double() + tokens.double() @ matrix.double().T
            if not torch.allclose(self(tokens, matrix, onto).double(), want, rtol=CLOSE, atol=CLOSE):
                return False
        return True


@cache
def kernel() -> Kernel | None:
    """The kernel, if it was built for this machine and is not left aside; looked for once in a process, since a rule asks for it after each
    layer."""
    return None if os.environ.get("EXITWISE_KERNEL") == "0" else _found(library())


@cache
def _found(file: Path) -> Kernel | None:
    if not file.exists():
        return None
    try:
        made = Kernel(file)
        if made.sound():
            return made
        problem = "its products are wrong"
    except (OSError, AttributeError) as error:
        problem = str(error)
    warnings.warn(f"The kernel {file} is left aside: {problem}. Delete it, and build it anew with `exitwise kernel`.", stacklevel=3)
    return None


def library() -> Path:
    """Where the kernel for this source and this processor lies, or would lie: EXITWISE_CACHE, or the user's folder of caches."""
    return _library(os.environ.get("EXITWISE_CACHE"), os.environ.get("XDG_CACHE_HOME"), SOURCE)


@cache
def _library(own: str | None, caches: str | None, source: Path) -> Path:
    folder = Path(own) if own else Path(caches or Path.home() / ".cache") / "exitwise"
    return folder / f"few-{_key(source)}.so"


def _key(source: Path) -> str:
    made_of = [source.read_text(encoding="utf-8"), *FLAGS, platform.machine(), _abilities()]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def _abilities() -> str:
    """What the processor can do, since a kernel made for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def build() -> Kernel:
    """Compile the kernel, test it and keep it; one that is there already is given back.

    Raises BuildError where there is no C++ compiler, where it does not take the source, or where what it made is wrong.
    """
    file = library()
    if (have := _found(file)) is not None:
        return have
    named = os.environ.get("CXX", "").split() or [found for name in COMPILERS if (found := shutil.which(name))][:1]
    if not named:
        raise BuildError(f"No C++ compiler was found (CXX, {', '.join(COMPILERS)}). Install one; without the kernel all works, but slower.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        try:
            done = subprocess.run([*named, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"The compiler {' '.join(named)} could not be run: {error}. Name another one in CXX.") from error
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
            raise BuildError(
                f"{' '.join(named)} could not compile the kernel: {told[0].strip()}. Name another compiler in CXX (g++ 12 or later)."
            )
        if not Kernel(made).sound():
            raise BuildError(f"{' '.join(named)} compiled a kernel that multiplies wrongly; it was not kept. Name another compiler in CXX.")
        made.replace(file)
    _found.cache_clear()
    kernel.cache_clear()
    built = _found(file)
    assert built is not None
    return built


@torch.no_grad()
def gains(ours: Kernel, counts: Sequence[int] = (1, 2, 4, 8, 16), repeats: int = 80) -> dict[int, float]:
    """How many times as fast as PyTorch's a product with so many tokens is: medians, in turn, each with a matrix that was not touched since
    long ago."""
    matrices, found = [torch.randn(1536, 576) for _ in range(repeats)], dict[int, float]()
    for count in counts:
        tokens = torch.randn(count, 576)
        spent = [_seconds(tokens, matrix, ours if i % 2 else torch.nn.functional.linear) for i, matrix in enumerate(matrices)]
        found[count] = statistics.median(spent[::2]) / statistics.median(spent[1::2])
    return found


def _seconds(tokens: Tensor, matrix: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    start = time.perf_counter()
    product(tokens, matrix)
    return time.perf_counter() - start
