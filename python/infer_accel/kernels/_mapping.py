"""Which pages go where: ids checked on the host before anything is launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import DTypeError, IdError, OverlapError, ShapeError
from infer_accel.kernels._arguments import integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel.kernels._pages import PageRuns

    Pairs = npt.NDArray[np.int64]

__all__ = ["check_bounds", "check_overlap", "list_of_ids", "pairs_of", "require_form"]


def pairs_of(mapping: object) -> Pairs:
    """Return a mapping that lies on the host as int64 of shape ``[n, 2]``."""
    array = integers(mapping, "dtype.ids")
    if array.size == 0 and array.ndim < 2:
        return np.empty((0, 2), np.int64)
    require_form(array.shape, pairs=True)
    return array


def list_of_ids(ids: object) -> npt.NDArray[np.int64]:
    """Return ids that lie on the host as int64 of shape ``[n]``."""
    array = integers(ids, "dtype.ids")
    require_form(array.shape, pairs=False)
    return array


def require_form(shape: Sequence[int], *, pairs: bool, is_integer: bool = True) -> None:
    """Refuse ids of another shape, or of something else than integers."""
    if not is_integer:
        raise DTypeError("ids on the GPU must be int32 or int64; convert them there", code="dtype.ids")
    if pairs and (len(shape) != 2 or shape[1] != 2):
        message = f"a mapping of shape {tuple(shape)} came; pass [n, 2]: source page, target page"
        raise ShapeError(message, code="shape.mapping")
    if not pairs and len(shape) != 1:
        raise ShapeError(f"ids of shape {tuple(shape)} came; pass one dimension", code="shape.ids")


def check_bounds(pairs: Pairs, source_pages: int, target_pages: int) -> None:
    """Refuse ids that a layer does not have, and targets named twice.

    Raises
    ------
    IdError
        The text names the row.
    """
    for side, pages in enumerate((source_pages, target_pages)):
        ids = pairs[:, side]
        bad = np.flatnonzero((ids < 0) | (ids >= pages))
        if bad.size:
            row, name = int(bad[0]), ("source", "target")[side]
            message = f"row {row} names page {ids[row]} of the {name}, whose smallest layer has {pages}"
            raise IdError(message, code="id.page")
    order = np.argsort(pairs[:, 1], kind="stable")
    ordered = pairs[order, 1]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if again.size:
        first, second = int(order[again[0]]), int(order[again[0] + 1])
        message = f"rows {first} and {second} name the target page {ordered[again[0]]}; name each once"
        raise IdError(message, code="id.repeated_target")


def check_overlap(groups: Sequence[PageRuns], pairs: Pairs) -> None:
    """Refuse a copy in which a byte is read and written, or written twice.

    Three ways, each dearer than the one before: no two ranges of addresses meet; those that meet are one and the
    same run on both sides, so that pages meet exactly if ids do; every run of every page is compared.

    Raises
    ------
    OverlapError
        There is such a byte.
    """
    if len(pairs) == 0 or not groups:
        return
    tables = np.concatenate([group.table for group in groups])
    lengths = np.concatenate([np.full(len(group.table), group.run_bytes) for group in groups])
    spans = [_spans(tables, lengths, pairs, side) for side in (0, 1)]
    if not _written_meet(*spans):
        return
    is_same = (tables[:, 0] == tables[:, 1]) & (tables[:, 2] == tables[:, 3]) & (tables[:, 2] >= lengths)
    together = np.minimum(spans[0], spans[1]), np.maximum(spans[0], spans[1])
    merged = np.stack([together[0][:, 0], together[1][:, 1]], axis=1)
    if is_same.all() and not _written_meet(merged[:0], merged):
        both = np.intersect1d(pairs[:, 0], pairs[:, 1])
        if both.size:
            message = (
                f"page {both[0]} is read and written by one call; copy in two calls, or through a spare page"
            )
            raise OverlapError(message, code="overlap.source_is_target")
        return
    runs = [_every_run(tables, lengths, pairs, side) for side in (0, 1)]
    if _written_meet(*runs):
        message = "pages to be written share memory with other pages of the same call; copy through memory of its own"
        raise OverlapError(message, code="overlap.pages")


def _spans(tables: Pairs, lengths: Pairs, pairs: Pairs, side: int) -> Pairs:
    """Return from where to where each run of the table reaches over all pages that are named."""
    low, high = int(pairs[:, side].min()), int(pairs[:, side].max())
    begin, step = tables[:, side], tables[:, 2 + side]
    return np.stack([begin + step * low, begin + step * high + lengths], axis=1)


def _every_run(tables: Pairs, lengths: Pairs, pairs: Pairs, side: int) -> Pairs:
    begin = (tables[:, side, None] + tables[:, 2 + side, None] * pairs[None, :, side]).reshape(-1)
    return np.stack([begin, begin + np.repeat(lengths, len(pairs))], axis=1)


def _written_meet(read: Pairs, written: Pairs) -> bool:
    """Return whether an interval that is written meets any other; those that are read may meet each other."""
    written = written[np.argsort(written[:, 0], kind="stable")]
    if bool((written[1:, 0] < written[:-1, 1]).any()):
        return True
    # The written ones are apart and in order: a read one meets one of them if it begins before the end of the first
    # that does not end before it, and ends after that one's beginning.
    place = np.searchsorted(written[:, 1], read[:, 0], side="right")
    inside = place < len(written)
    return bool((written[place[inside], 0] < read[inside, 1]).any())
