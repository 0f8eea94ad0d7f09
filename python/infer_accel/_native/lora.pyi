"""
Low-rank adapters.
"""

from infer_accel._typing import Tensor
from typing import SupportsFloat, SupportsIndex

__all__ = ["apply_adapter", "merge_weights"]

def apply_adapter(x: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor, num_threads: SupportsIndex | None = None) -> None:
    """
    Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
    """

def merge_weights(weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor | None = None, num_threads: SupportsIndex | None = None) -> None:
    """
    Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`.
    """
