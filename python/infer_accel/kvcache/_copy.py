"""Page copies: blocks of a paged KV cache, moved between tensors of any layout."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from infer_accel import _backend
from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from infer_accel._typing import Stream, Tensor
    from infer_accel.kernels._handle import PageCopy

_implementation = _backend.load("kvcache")


def page_copy(
    src: Tensor | Sequence[Tensor],
    dst: Tensor | Sequence[Tensor],
    mapping: Tensor | Sequence[Sequence[int]],
    *,
    axis: int = 0,
    num_threads: int | None = None,
    stream: Stream | int | None = None,
) -> PageCopy | None:
    """Copy pages from one tensor to another, in every layer alike.

    Sources are a snapshot: the result is as if all were read before any is written. A call that could tell
    the difference (a page both read and written, a target named twice, layers that share memory) is refused
    before the first byte moves; pages of one array may be copied to other pages of it.

    Parameters
    ----------
    src, dst
        Arrays, or lists of as many arrays (one a layer). Each pair agrees in dtype and in every axis but
        `axis`; strides are free, negative ones included. `dst` is written.
    mapping
        Integers of shape ``[n, 2]``: source page, target page.
    axis
        Which axis counts pages; negative counts from the back.
    num_threads
        Threads to use; ``None`` for ``INFER_ACCEL_NUM_THREADS`` or all processors. CUDA tensors need none.
    stream
        For CUDA tensors only: the stream that the copy is given to, torch's or its handle; torch's current one
        where it is left out.

    Returns
    -------
    PageCopy or None
        For CUDA tensors, whose copies are asynchronous, a handle to wait for. None for tensors of the CPU: the pages
        are copied.

    Raises
    ------
    IdError
        A page is negative or out of range, or a target is named twice; the text names the row.
    OverlapError
        A byte would be read and written, or written twice.
    ShapeError, DTypeError, ReadOnlyError, DeviceError, GradientError
        The tensors do not fit each other, or cannot be used.
    LayoutError
        CUDA tensors whose pages are not made of contiguous runs, or whose memory was freed.
    BackendError
        CUDA tensors, and no Triton.
    ArgumentError
        An axis that is not there, `num_threads` below 1, or a `stream` for CPU tensors.
    KeyboardInterrupt
        Ctrl-C was pressed: some of the target pages are written, some are not.

    Notes
    -----
    Linear in the bytes. Where pages are adjacent on both sides their copies are joined; copies of 16 MiB
    and more go past the cache (non-temporal stores). The interpreter's lock is released from 128 KiB on.

    On CUDA both sides lie on one GPU, or one of them in pinned memory of the host (:class:`HostPool`). A `mapping` of
    the host is checked before anything is launched; one on the GPU, for graphs, is checked there: rows that name pages
    which are not there are left out, and ``PageCopy.synchronize`` tells. See the page "CUDA" of the documentation.

    Examples
    --------
    >>> import numpy as np
    >>> cache = np.zeros((4, 2, 8), np.float16)
    >>> saved = np.arange(32, dtype=np.float16).reshape(2, 2, 8)
    >>> page_copy(saved, cache, [[0, 3], [1, 1]])
    >>> bool((cache[3] == saved[0]).all())
    True
    """
    sources, targets = _layers(src), _layers(dst)
    if _is_cuda(sources, targets):
        under_way: PageCopy = _cuda().page_copy(sources, targets, mapping, axis=axis, stream=stream)
        return under_way
    _refuse_stream(stream)
    _implementation.page_copy(sources, targets, mapping, axis=axis, num_threads=num_threads)
    return None


def page_gather(
    src: Tensor | Sequence[Tensor],
    ids: Tensor | Sequence[int],
    out: Tensor | Sequence[Tensor],
    *,
    axis: int = 0,
    num_threads: int | None = None,
    stream: Stream | int | None = None,
) -> PageCopy | None:
    """Copy page ``ids[i]`` of `src` to page ``i`` of `out`, in every layer alike.

    Parameters
    ----------
    src, out
        As `src` and `dst` of :func:`page_copy`; `out` has one page for each id.
    ids
        Integers of shape ``[n]``; an id may come twice.
    axis, num_threads, stream
        As for :func:`page_copy`.

    Returns
    -------
    PageCopy or None
        As for :func:`page_copy`.

    Raises
    ------
    ShapeError
        `out` has not one page for each id; and as for :func:`page_copy`.
    IdError, OverlapError, DTypeError, ReadOnlyError, DeviceError, GradientError, LayoutError, ArgumentError
        As for :func:`page_copy`.

    Examples
    --------
    >>> import numpy as np
    >>> packed = np.zeros((2, 3))
    >>> page_gather(np.arange(12.0).reshape(4, 3), [3, 0], packed)
    >>> packed[0]
    array([ 9., 10., 11.])
    """
    sources, targets = _layers(src), _layers(out)
    if _is_cuda(sources, targets):
        under_way: PageCopy = _cuda().page_gather(sources, ids, targets, axis=axis, stream=stream)
        return under_way
    _refuse_stream(stream)
    _implementation.page_gather(sources, ids, targets, axis=axis, num_threads=num_threads)
    return None


def page_scatter(
    src: Tensor | Sequence[Tensor],
    dst: Tensor | Sequence[Tensor],
    ids: Tensor | Sequence[int],
    *,
    axis: int = 0,
    num_threads: int | None = None,
    stream: Stream | int | None = None,
) -> PageCopy | None:
    """Copy page ``i`` of `src` to page ``ids[i]`` of `dst`, in every layer alike.

    Parameters
    ----------
    src, dst
        As for :func:`page_copy`; `src` has one page for each id.
    ids
        Integers of shape ``[n]``, each once.
    axis, num_threads, stream
        As for :func:`page_copy`.

    Returns
    -------
    PageCopy or None
        As for :func:`page_copy`.

    Raises
    ------
    ShapeError
        `src` has not one page for each id; and as for :func:`page_copy`.
    IdError, OverlapError, DTypeError, ReadOnlyError, DeviceError, GradientError, LayoutError, ArgumentError
        As for :func:`page_copy`.

    Examples
    --------
    >>> import numpy as np
    >>> cache = np.zeros((4, 3))
    >>> page_scatter(np.ones((1, 3)), cache, [2])
    >>> cache[2]
    array([1., 1., 1.])
    """
    sources, targets = _layers(src), _layers(dst)
    if _is_cuda(sources, targets):
        under_way: PageCopy = _cuda().page_scatter(sources, targets, ids, axis=axis, stream=stream)
        return under_way
    _refuse_stream(stream)
    _implementation.page_scatter(sources, targets, ids, axis=axis, num_threads=num_threads)
    return None


def _layers(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    # A tuple of types, not a union, which would be made anew in each call.
    return tensors if isinstance(tensors, (list, tuple)) else [tensors]  # type: ignore[list-item]


def _is_cuda(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Return whether a copy is one for the GPU: its first layers say so, and the kernels look at the others."""
    if sources and getattr(sources[0], "is_cuda", False):
        return True
    return bool(targets) and getattr(targets[0], "is_cuda", False)


def _cuda() -> ModuleType:
    """Return what works on CUDA tensors, which is loaded with the first of them."""
    return importlib.import_module("infer_accel.kernels.page_copy")


def _refuse_stream(stream: Stream | int | None) -> None:
    if stream is not None:
        message = f"stream={stream} came; streams order copies of CUDA tensors, and these are on the CPU"
        raise ArgumentError(message, code="argument.stream")
