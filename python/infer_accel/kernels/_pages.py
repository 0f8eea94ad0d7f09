"""Which bytes a copy of pages moves: layers and strided pages, as a table of runs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import ArgumentError, DTypeError, LayoutError, ShapeError
from infer_accel.kernels._arguments import strided

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

__all__ = ["PageRuns", "plan_pages"]

#: Runs of all layers of a page: beyond that a copy of whole pages is the wrong tool.
_MOST_RUNS = 1 << 16


@dataclass(frozen=True, slots=True)
class PageRuns:
    """Layers whose pages are cut into runs of one length.

    Row ``i`` of `table` is a run of page 0: source address, target address, and how far the run of the next page
    lies from it, in the source and in the target, all in bytes.
    """

    table: npt.NDArray[np.int64]
    run_bytes: int

    @property
    def word(self) -> int:
        """The largest power of two, up to 16, that divides every address and length."""
        together = int(np.bitwise_or.reduce(self.table, axis=None)) | self.run_bytes
        return min(16, together & -together)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How pages of one shape lie on both sides, in bytes."""

    offsets: tuple[tuple[int, int], ...]
    run_bytes: int
    source_page: int
    target_page: int


def plan_pages(
    sources: Sequence[object], targets: Sequence[object], axis: int
) -> tuple[list[PageRuns], list[tuple[torch.Tensor, torch.Tensor]], int, int]:
    """Return the runs of a copy, its tensors, and how many pages the smallest source and target have.

    Raises
    ------
    ShapeError, DTypeError, LayoutError, GradientError, ReadOnlyError, ArgumentError
        As :func:`infer_accel.kvcache.page_copy`.
    """
    if len(sources) != len(targets):
        message = f"{len(sources)} source layers and {len(targets)} target layers came; pass one target for each source"
        raise ShapeError(message, code="shape.layers")
    layers = []
    groups: dict[int, list[tuple[int, int, int, int]]] = {}
    pages = [1 << 62, 1 << 62]
    for index, (given_source, given_target) in enumerate(zip(sources, targets, strict=True)):
        source = strided(given_source, f"layer {index} of the source", written=False)
        target = strided(given_target, f"layer {index} of the target", written=True)
        place = _checked_axis(source, target, axis, index)
        pages = [min(pages[0], source.shape[place]), min(pages[1], target.shape[place])]
        layers.append((source, target))
        geometry = _geometry(
            tuple(source.shape[:place]) + tuple(source.shape[place + 1 :]),
            source_strides=source.stride(),
            target_strides=target.stride(),
            item=source.element_size(),
            place=place,
            target_pages=target.shape[place],
            layer=index,
        )
        if geometry.run_bytes == 0:
            continue
        fro, to = source.data_ptr(), target.data_ptr()
        steps = geometry.source_page, geometry.target_page
        groups.setdefault(geometry.run_bytes, []).extend(
            (fro + here, to + there, *steps) for here, there in geometry.offsets
        )
    if sum(map(len, groups.values())) > _MOST_RUNS:
        message = f"the layers' pages fall into more than {_MOST_RUNS} runs; pass pages that are contiguous"
        raise LayoutError(message, code="layout.page_runs")
    runs = [PageRuns(np.array(table, np.int64), length) for length, table in groups.items()]
    return runs, layers, pages[0], pages[1]


def _checked_axis(source: torch.Tensor, target: torch.Tensor, axis: int, layer: int) -> int:
    """Return the page axis counted from the front, after a look at whether two tensors fit each other."""
    dimensions = source.dim()
    if not -dimensions <= axis < dimensions:
        message = f"axis={axis} came, and layer {layer} has {dimensions} axes; axes count from 0, or from −1 backwards"
        raise ArgumentError(message, code="argument.axis")
    if source.dtype != target.dtype:
        message = f"layer {layer}: {source.dtype} in the source, {target.dtype} in the target; a copy converts nothing"
        raise DTypeError(message, code="dtype.pages")
    place: int = axis % dimensions
    here, there = list(source.shape), list(target.shape)
    if len(here) == len(there):
        here[place] = there[place] = 0
    if here != there:
        message = (
            f"layer {layer} has the shape {tuple(source.shape)} in the source and {tuple(target.shape)} in the target; "
            f"all axes but axis {place}, which counts pages, must be equal"
        )
        raise ShapeError(message, code="shape.pages")
    return place


@functools.lru_cache(maxsize=1024)
def _geometry(
    page: tuple[int, ...],
    *,
    source_strides: tuple[int, ...],
    target_strides: tuple[int, ...],
    item: int,
    place: int,
    target_pages: int,
    layer: int,
) -> _Geometry:
    """Turn two strided pages into runs that are contiguous on both sides."""
    fro, to = list(source_strides), list(target_strides)
    source_page, target_page = fro.pop(place) * item, to.pop(place) * item
    if math.prod(page) == 0:
        return _Geometry((), 0, source_page, target_page)
    axes = [
        (there * item, here * item, size) for size, here, there in zip(page, fro, to, strict=True) if size > 1
    ]
    axes.sort(reverse=True)
    _require_distinct([*axes, (target_page, source_page, target_pages)], item, layer)
    joined: list[tuple[int, int, int]] = []
    for there, here, size in axes:
        if joined and joined[-1][0] == there * size and joined[-1][1] == here * size:
            size *= joined.pop()[2]  # noqa: PLW2901 - the two axes are one
        joined.append((there, here, size))
    run = item
    if joined and joined[-1][:2] == (item, item):
        run = item * joined.pop()[2]
    elif joined:
        message = (
            f"the innermost elements of layer {layer}'s pages do not lie one after the other on both sides (steps of "
            f"{joined[-1][1]} and {joined[-1][0]} bytes); on a GPU that would be a copy of single elements: permute "
            "the axes of one side first"
        )
        raise LayoutError(message, code="layout.page_run")
    if math.prod(size for _, _, size in joined) > _MOST_RUNS:
        message = (
            f"a page of layer {layer} falls into more than {_MOST_RUNS} runs; pass pages that are contiguous"
        )
        raise LayoutError(message, code="layout.page_runs")
    offsets = [(0, 0)]
    for there, here, size in joined:
        offsets = [(fro + i * here, to + i * there) for fro, to in offsets for i in range(size)]
    return _Geometry(tuple(offsets), run, source_page, target_page)


def _require_distinct(axes: list[tuple[int, int, int]], item: int, layer: int) -> None:
    """Refuse a target in which two indices name one element."""
    covered = item
    for stride, _, size in sorted(axes):
        if size > 1:
            if stride < covered:
                message = f"two indices of layer {layer} of the target name one element; clone() it first"
                raise LayoutError(message, code="layout.self_overlap")
            covered = stride * (size - 1) + covered
