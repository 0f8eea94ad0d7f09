"""Device code that does nothing but round, so that tests see each number by itself."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from infer_accel.kernels.rounding_triton import fused, narrow, widen


@triton.jit
def fuse(left: Any, right: Any, addend: Any, result: Any, COUNT: tl.constexpr) -> None:
    place = tl.arange(0, COUNT)
    numbers = fused(tl.load(left + place), tl.load(right + place), tl.load(addend + place), True)
    tl.store(result + place, numbers)


@triton.jit
def encode(numbers: Any, codes: Any, FORMAT: tl.constexpr, COUNT: tl.constexpr) -> None:
    place = tl.arange(0, COUNT)
    tl.store(codes + place, narrow(tl.load(numbers + place), FORMAT))


@triton.jit
def decode(codes: Any, numbers: Any, FORMAT: tl.constexpr, COUNT: tl.constexpr) -> None:
    place = tl.arange(0, COUNT)
    tl.store(numbers + place, widen(tl.load(codes + place), FORMAT))
