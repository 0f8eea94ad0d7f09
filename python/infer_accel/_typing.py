"""What tensors and streams look like to a type checker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ArrowArray", "ArrowStream", "Stream", "Tensor", "TensorT", "Texts"]


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


class ArrowArray(Protocol):
    """An Arrow array of any library: what has the C data interface's method."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """Return capsules of the schema and of the array."""
        ...


class ArrowStream(Protocol):
    """A chunked Arrow array or a column of any library: what has the C stream interface's method."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule of a stream of arrays."""
        ...


#: Many texts: strings, or Arrow data of strings.
Texts: TypeAlias = "Iterable[str] | ArrowArray | ArrowStream"
