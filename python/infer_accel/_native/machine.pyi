"""
What this machine can do at best: the ceilings that benchmarks are held against.
"""

from typing import SupportsIndex

__all__ = ["copy_bandwidth", "cpu_features", "fma_rate", "read_modify_write_bandwidth", "sha256_rate"]

def copy_bandwidth(num_bytes: SupportsIndex, num_threads: SupportsIndex) -> float:
    """
    Bytes a second, read and written, of the best contiguous copy of ``num_bytes`` on ``num_threads`` threads.
    """

def cpu_features() -> list[str]:
    """
    The names of the instruction sets that matter here and that this processor has.
    """

def fma_rate(kind: str, num_threads: SupportsIndex) -> float:
    """
    Floating-point operations a second, two a multiply-add, of ``kind`` ``"f32"`` or ``"bf16"``.
    """

def read_modify_write_bandwidth(num_bytes: SupportsIndex, num_threads: SupportsIndex) -> float:
    """
    Bytes a second, read and written, of the best update in place of ``num_bytes`` on ``num_threads`` threads.
    """

def sha256_rate(streams: SupportsIndex) -> float:
    """
    Bytes a second through the rounds of SHA-256 on one thread, ``streams`` (1, 2 or 4) messages at once.
    """
