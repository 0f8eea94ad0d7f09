"""What tensors look like to a type checker."""

from __future__ import annotations

from typing import Protocol, TypeVar

__all__ = ["Tensor", "TensorT"]


class Tensor(Protocol):
    """A numpy array, a torch tensor, or anything else that exports DLPack."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Entries of each axis."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device's type and number."""
        ...


TensorT = TypeVar("TensorT", bound=Tensor)
