"""Host memory for pages, and what is looked for in pages."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from infer_accel import _backend
from infer_accel.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    from infer_accel._typing import Tensor

#: Formats whose numbers can be infinite or no number at all.
FloatFormat: TypeAlias = Literal["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]

_implementation = _backend.load("kvcache")


class HostPool:
    """Host memory for pages: one allocation, blank at first, in huge pages where the system has them.

    Parameters
    ----------
    num_pages
        Pages.
    page_bytes
        Bytes of each.
    prefault
        Touch all of it now. Memory that was never touched costs far more at its first use than later.
    pin
        Register the memory with CUDA, so that a GPU copies to and from it at full speed. ``None``: if torch is
        loaded and has a GPU.

    Raises
    ------
    StorageError
        There is no memory for it (``storage.host_memory``).
    DeviceError
        `pin` was asked for, and torch is not loaded, has no GPU, or refuses.

    Notes
    -----
    The memory lives as long as the pool or an array of it does, and stays pinned as long. On Linux it is aligned to
    2 MiB and asks for huge pages (``MADV_HUGEPAGE``).

    Examples
    --------
    >>> pool = HostPool(8, 4096)
    >>> pool.pages.shape, int(pool.pages.sum())
    ((8, 4096), 0)
    >>> pool.pages[3] = 7
    """

    def __init__(
        self, num_pages: int, page_bytes: int, *, prefault: bool = False, pin: bool | None = None
    ) -> None:
        self._pool = _implementation.HostPool(num_pages, page_bytes, prefault=prefault)
        self._pages: npt.NDArray[np.uint8] = self._pool.pages()
        pinned = None if pin is False else _pin(self._pages, required=pin is True)
        self._pinned = pinned is not None
        if pinned is not None:
            self._pages = pinned

    @property
    def pages(self) -> npt.NDArray[np.uint8]:
        """The memory, uint8 of shape ``[num_pages, page_bytes]``."""
        return self._pages

    @property
    def pinned(self) -> bool:
        """Whether CUDA knows the memory."""
        return self._pinned

    def tensor(self) -> torch.Tensor:
        """Return the memory as a tensor of torch, uint8 of shape ``[num_pages, page_bytes]``; nothing is copied."""
        import torch  # noqa: PLC0415 - an optional companion

        return torch.from_numpy(self._pages)


class _Memory:
    """What arrays of pinned memory stand on: when the last of them is gone, so is this, and CUDA may forget it."""

    def __init__(self, pages: npt.NDArray[np.uint8]) -> None:
        self.__array_interface__ = pages.__array_interface__


def _pin(pages: npt.NDArray[np.uint8], *, required: bool) -> npt.NDArray[np.uint8] | None:
    """Register memory with CUDA, and return an array of it; None where that was not done.

    The memory stays registered as long as any view or tensor of that array is there: a GPU may be at work on it.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        if required:
            message = "pin=True came without a GPU that torch can use; import torch first, or leave pin out"
            raise DeviceError(message, code="device.pin")
        return None
    runtime = torch.cuda.cudart()
    address = pages.ctypes.data
    if pages.nbytes == 0 or int(runtime.cudaHostRegister(address, pages.nbytes, 0)) != 0:
        if required:
            raise DeviceError("CUDA refused to pin the pool's memory", code="device.pin")
        return None
    memory = _Memory(pages)
    # The array is named here so that the memory is still there when it is unregistered.
    weakref.finalize(memory, _unpin, runtime, pages)
    return np.asarray(memory)


def _unpin(runtime: object, pages: npt.NDArray[np.uint8]) -> None:
    runtime.cudaHostUnregister(pages.ctypes.data)  # type: ignore[attr-defined]


def scan_nonfinite(
    pages: Tensor, *, dtype: FloatFormat | None = None, num_threads: int | None = None
) -> npt.NDArray[np.bool_]:
    """Find the pages that hold a NaN or an infinity.

    Attention multiplies what a token must not see by zero, and NaN times zero is NaN: one such number in a page that
    is used again poisons the next request.

    Parameters
    ----------
    pages
        Shape ``[n, …]``: floats (bfloat16 and float8 included), any strides; or uint8 with `dtype`.
    dtype
        The float format that uint8 pages hold; each page is then contiguous.
    num_threads
        Threads to use; ``None`` for ``INFER_ACCEL_NUM_THREADS`` or all processors.

    Returns
    -------
    numpy.ndarray
        bool of shape ``[n]``.

    Raises
    ------
    DTypeError
        The pages hold no floats.
    ShapeError
        Bytes that do not make whole numbers.
    ArgumentError
        `dtype` is no float format; the pages have no first axis.

    Notes
    -----
    Linear in the bytes, at the speed of memory; a page is left at its first find. ``float8_e4m3fn`` has no infinity.

    Examples
    --------
    >>> import numpy as np
    >>> pages = np.zeros((3, 16), np.float16)
    >>> pages[1, 5] = np.nan
    >>> scan_nonfinite(pages)
    array([False,  True, False])
    >>> scan_nonfinite(pages.view(np.uint8), dtype="float16")
    array([False,  True, False])
    """
    found: npt.NDArray[np.bool_] = _implementation.scan_nonfinite(pages, dtype=dtype, num_threads=num_threads)
    return found


def scrub(pages: Tensor | Sequence[Tensor], ids: Tensor | Sequence[int], *, axis: int = 0) -> None:
    """Write zeros to pages, in every layer alike.

    Parameters
    ----------
    pages
        An array, or a list of arrays (one a layer); any dtype and strides. Written.
    ids
        Integers of shape ``[n]``: which pages. One may come twice.
    axis
        Which axis counts pages; negative counts from the back.

    Raises
    ------
    IdError
        A page is negative or out of range.
    ArgumentError
        The axis is not there.
    ReadOnlyError, DeviceError, GradientError
        The arrays cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> pages = np.ones((3, 2))
    >>> scrub(pages, [0, 2])
    >>> pages.tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    layers = pages if isinstance(pages, list | tuple) else [pages]
    _implementation.scrub(layers, ids, axis=axis)
