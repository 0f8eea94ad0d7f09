"""What tensors and streams look like to a type checker."""

from __future__ import annotations

from typing import Protocol, TypeVar

__all__ = ["Stream", "Tensor", "TensorT"]


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


class Stream(Protocol):
    """A stream of CUDA: torch's, or anything else that tells its handle."""

    @property
    def cuda_stream(self) -> int:
        """The driver's handle."""
        ...
