"""
What this build and this machine are.
"""

from infer_accel._typing import Tensor

__all__ = ["default_threads", "describe", "detected_simd_tier", "is_debug_build", "simd_tier"]

def default_threads() -> int:
    """
    Threads that a call uses when it does not say: ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.
    """

def describe(tensor: Tensor, /) -> tuple[str, list[int], list[int], int, bool]:
    """
    How a tensor arrives here: number format, shape, strides in elements, address of its first element, and
    whether it may be written. What to look at when an operation refuses a tensor.
    """

def detected_simd_tier() -> str:
    """
    The highest instruction tier of this processor.
    """

def is_debug_build() -> bool:
    """
    Whether this is a debug build, which is ten times slower.
    """

def simd_tier() -> str:
    """
    The instruction tier in use: ``"portable"``, ``"avx2"``, ``"avx512"`` or ``"avx512bf16"``.
    """
