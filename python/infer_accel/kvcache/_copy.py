"""Page copies: blocks of a paged KV cache, moved between tensors of any layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel import _backend
from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel._typing import Tensor

_implementation = _backend.load("kvcache")


def page_copy(
    src: Tensor | Sequence[Tensor],
    dst: Tensor | Sequence[Tensor],
    mapping: Tensor | Sequence[Sequence[int]],
    *,
    axis: int = 0,
    num_threads: int | None = None,
    stream: int | None = None,
) -> None:
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
        Threads to use; ``None`` for ``INFER_ACCEL_NUM_THREADS`` or all processors.
    stream
        For CUDA tensors only, which this function does not take yet.

    Raises
    ------
    IdError
        A page is negative or out of range, or a target is named twice; the text names the row.
    OverlapError
        A byte would be read and written, or written twice.
    ShapeError, DTypeError, ReadOnlyError, DeviceError, GradientError
        The tensors do not fit each other, or cannot be used.
    ArgumentError
        An axis that is not there, `num_threads` below 1, or a `stream` for CPU tensors.
    KeyboardInterrupt
        Ctrl-C was pressed: some of the target pages are written, some are not.

    Notes
    -----
    Linear in the bytes. Where pages are adjacent on both sides their copies are joined; copies of 16 MiB
    and more go past the cache (non-temporal stores). The interpreter's lock is released from 128 KiB on.

    Examples
    --------
    >>> import numpy as np
    >>> cache = np.zeros((4, 2, 8), np.float16)
    >>> saved = np.arange(32, dtype=np.float16).reshape(2, 2, 8)
    >>> page_copy(saved, cache, [[0, 3], [1, 1]])
    >>> bool((cache[3] == saved[0]).all())
    True
    """
    _refuse_stream(stream)
    _implementation.page_copy(_layers(src), _layers(dst), mapping, axis=axis, num_threads=num_threads)


def page_gather(
    src: Tensor | Sequence[Tensor],
    ids: Tensor | Sequence[int],
    out: Tensor | Sequence[Tensor],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy page ``ids[i]`` of `src` to page ``i`` of `out`, in every layer alike.

    Parameters
    ----------
    src, out
        As `src` and `dst` of :func:`page_copy`; `out` has one page for each id.
    ids
        Integers of shape ``[n]``; an id may come twice.
    axis, num_threads
        As for :func:`page_copy`.

    Raises
    ------
    ShapeError
        `out` has not one page for each id; and as for :func:`page_copy`.
    IdError, OverlapError, DTypeError, ReadOnlyError, DeviceError, GradientError, ArgumentError
        As for :func:`page_copy`.

    Examples
    --------
    >>> import numpy as np
    >>> packed = np.zeros((2, 3))
    >>> page_gather(np.arange(12.0).reshape(4, 3), [3, 0], packed)
    >>> packed[0]
    array([ 9., 10., 11.])
    """
    _implementation.page_gather(_layers(src), ids, _layers(out), axis=axis, num_threads=num_threads)


def page_scatter(
    src: Tensor | Sequence[Tensor],
    dst: Tensor | Sequence[Tensor],
    ids: Tensor | Sequence[int],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy page ``i`` of `src` to page ``ids[i]`` of `dst`, in every layer alike.

    Parameters
    ----------
    src, dst
        As for :func:`page_copy`; `src` has one page for each id.
    ids
        Integers of shape ``[n]``, each once.
    axis, num_threads
        As for :func:`page_copy`.

    Raises
    ------
    ShapeError
        `src` has not one page for each id; and as for :func:`page_copy`.
    IdError, OverlapError, DTypeError, ReadOnlyError, DeviceError, GradientError, ArgumentError
        As for :func:`page_copy`.

    Examples
    --------
    >>> import numpy as np
    >>> cache = np.zeros((4, 3))
    >>> page_scatter(np.ones((1, 3)), cache, [2])
    >>> cache[2]
    array([1., 1., 1.])
    """
    _implementation.page_scatter(_layers(src), _layers(dst), ids, axis=axis, num_threads=num_threads)


def _layers(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors if isinstance(tensors, list | tuple) else [tensors]  # type: ignore[list-item]


def _refuse_stream(stream: int | None) -> None:
    if stream is not None:
        message = f"stream={stream} came; streams order copies of CUDA tensors, and these are on the CPU"
        raise ArgumentError(message, code="argument.stream")
