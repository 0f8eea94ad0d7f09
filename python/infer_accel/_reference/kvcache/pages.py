"""Page copies, one page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import dtype_name
from infer_accel._reference.kvcache.arguments import array_of, flat_of, integers_of
from infer_accel.errors import ArgumentError, DTypeError, IdError, OverlapError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor


def page_copy(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    mapping: Tensor | Sequence[Sequence[int]],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``mapping[i, 0]`` of the source to page ``mapping[i, 1]`` of the target."""
    rows = integers_of(mapping, "dtype.ids")
    if rows.shape != (0,) and (rows.ndim != 2 or rows.shape[1] != 2):
        raise ShapeError(f"a mapping of shape {rows.shape} came", code="shape.mapping")
    _copy(sources, targets, rows.reshape(-1, 2).tolist(), axis, num_threads)


def page_gather(
    sources: Sequence[Tensor],
    ids: Tensor | Sequence[int],
    targets: Sequence[Tensor],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``ids[i]`` of the source to page ``i`` of the target."""
    flat = flat_of(ids, "shape.ids")
    _check_packed(targets, len(flat), axis)
    _copy(sources, targets, [[page, packed] for packed, page in enumerate(flat)], axis, num_threads)


def page_scatter(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    ids: Tensor | Sequence[int],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``i`` of the source to page ``ids[i]`` of the target."""
    flat = flat_of(ids, "shape.ids")
    _check_packed(sources, len(flat), axis)
    _copy(sources, targets, [[packed, page] for packed, page in enumerate(flat)], axis, num_threads)


def _check_packed(layers: Sequence[Tensor], count: int, axis: int) -> None:
    for layer in layers:
        shape = tuple(layer.shape)
        if -len(shape) <= axis < len(shape) and shape[axis] != count:
            raise ShapeError(f"{shape[axis]} pages came for {count} ids", code="shape.packed_pages")


def _copy(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    rows: list[list[int]],
    axis: int,
    threads: int | None,
) -> None:
    if threads is not None and threads < 1:
        code = "argument.num_threads" if threads == 0 else "argument.count"
        raise ArgumentError(f"num_threads={threads} came", code=code)
    layers = [_bits(source) for source in sources], [_bits(target, writable=True) for target in targets]
    if len(layers[0]) != len(layers[1]):
        raise ShapeError(f"{len(sources)} layers came for {len(targets)}", code="shape.layers")
    if axis < 0 and layers[0]:
        axis += layers[0][0].ndim
    pairs = list(zip(*layers, strict=True))
    for (source, target), *tensors in zip(pairs, sources, targets, strict=True):
        _check_layer(source, target, axis, [dtype_name(tensor) for tensor in tensors])
    moved = [(np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0)) for source, target in pairs]
    _check_rows(rows, *(min((len(pair[side]) for pair in moved), default=0) for side in (0, 1)))
    _check_overlap(moved, rows)
    snapshots = [[source[row[0]].copy() for row in rows] for source, _ in moved]
    for (_, target), pages in zip(moved, snapshots, strict=True):
        for row, page in zip(rows, pages, strict=True):
            target[row[1]] = page


def _bits(tensor: Tensor, *, writable: bool = False) -> npt.NDArray[np.generic]:
    """Return a tensor's memory as integers, whichever library it comes from."""
    array = array_of(tensor, writable=writable)
    return array.view(f"u{array.itemsize}")


def _check_layer(
    source: npt.NDArray[np.generic], target: npt.NDArray[np.generic], axis: int, formats: list[str]
) -> None:
    for array in (source, target):
        if not 0 <= axis < array.ndim:
            raise ArgumentError(f"axis={axis} came for {array.ndim} dimensions", code="argument.axis")
    if formats[0] != formats[1]:
        raise DTypeError(f"{' and '.join(formats)} came", code="dtype.pages")
    if np.delete(source.shape, axis).tolist() != np.delete(target.shape, axis).tolist():
        raise ShapeError(f"pages of {source.shape} and {target.shape} came", code="shape.pages")


def _check_rows(rows: list[list[int]], source_pages: int, target_pages: int) -> None:
    written = set()
    for row, (source, target) in enumerate(rows):
        if not (0 <= source < source_pages and 0 <= target < target_pages):
            raise IdError(f"row {row} names pages {source} and {target}", code="id.page")
        if target in written:
            raise IdError(f"row {row} names target page {target} again", code="id.repeated_target")
        written.add(target)


def _check_overlap(
    layers: list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]], rows: list[list[int]]
) -> None:
    """Refuse a byte that is written twice, or read and written."""
    for number, (source, target) in enumerate(layers):
        same = (
            source.__array_interface__["data"] == target.__array_interface__["data"]
            and source.strides == target.strides
            and source.shape == target.shape
        )
        if same and source.size and {row[0] for row in rows} & {row[1] for row in rows}:
            raise OverlapError("a page is read and written", code="overlap.source_is_target")
        others = [other for other, _ in layers] + [other for _, other in layers[:number]]
        for other in others:
            if not np.may_share_memory(target, other):
                continue
            side = 0 if any(other is array for array, _ in layers) else 1
            pages = [target[row[1]] for row in rows], [other[row[side]] for row in rows]
            if any(np.shares_memory(written, page) for written in pages[0] for page in pages[1]):
                raise OverlapError("the pages to be written share memory with others", code="overlap.pages")
