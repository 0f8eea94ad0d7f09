"""Tensors that say they are on a GPU, on a machine without one."""

from __future__ import annotations

from typing import Any

import torch


class OnDevice(torch.Tensor):
    """A tensor without memory that names any device."""

    @staticmethod
    def of(*shape: int, device: str = "cuda:0", dtype: torch.dtype = torch.float32) -> torch.Tensor:
        tensor: torch.Tensor = torch.Tensor._make_wrapper_subclass(
            OnDevice, shape, dtype=dtype, device=device
        )
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called on a tensor that has no memory")


class SaysCuda(torch.Tensor):
    """A tensor in memory of the CPU that says it is on a GPU: the interpreter's."""

    @property
    def is_cuda(self) -> bool:
        return True

    @classmethod
    def of(cls, tensor: torch.Tensor) -> torch.Tensor:
        claimed: torch.Tensor = tensor.as_subclass(cls)
        return claimed
