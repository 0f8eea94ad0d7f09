"""Page copies on CUDA tensors: checked, planned and launched."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.errors import ArgumentError, DeviceError, ShapeError
from infer_accel.kernels import _driver, _link, _mapping, _threshold, _triton
from infer_accel.kernels._device import Launch, keep_until
from infer_accel.kernels._handle import PageCopy
from infer_accel.kernels._pages import plan_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Stream
    from infer_accel.kernels._pages import PageRuns

__all__ = ["page_copy", "page_gather", "page_scatter"]

#: Vectors of a tile: four for each of 256 threads, so that enough is in flight to cover memory's latency.
_TILE_WORDS = 1 << 10
_WARPS = 8
#: Programs for each multiprocessor; with about 40 registers a thread, six of 256 threads fit.
_PROGRAMS = 8
#: Programs of a copy over the link to the host, which a few can fill: the others are left to whoever computes.
_LINK_PROGRAMS = 32
#: The smallest tile's row: below that each access is shorter than a transaction of memory anyway.
_SHORTEST_ROW = 16


class _Form(IntEnum):
    """Which sides the ids name."""

    PAIRS = 0
    GATHER = 1
    SCATTER = 2


def page_copy(
    src: Sequence[object],
    dst: Sequence[object],
    mapping: object,
    *,
    axis: int,
    stream: Stream | int | None = None,
) -> PageCopy:
    """Copy pages as :func:`infer_accel.kvcache.page_copy` does, asynchronously."""
    return _copy(src, dst, mapping, _Form.PAIRS, axis=axis, stream=stream)


def page_gather(
    src: Sequence[object],
    ids: object,
    out: Sequence[object],
    *,
    axis: int,
    stream: Stream | int | None = None,
) -> PageCopy:
    """Copy page ``ids[i]`` to page ``i``, asynchronously."""
    return _copy(src, out, ids, _Form.GATHER, axis=axis, stream=stream)


def page_scatter(
    src: Sequence[object],
    dst: Sequence[object],
    ids: object,
    *,
    axis: int,
    stream: Stream | int | None = None,
) -> PageCopy:
    """Copy page ``i`` to page ``ids[i]``, asynchronously."""
    return _copy(src, dst, ids, _Form.SCATTER, axis=axis, stream=stream)


def _copy(
    src: Sequence[object],
    dst: Sequence[object],
    ids: object,
    form: _Form,
    *,
    axis: int,
    stream: Stream | int | None,
) -> PageCopy:
    groups, layers, *pages = plan_pages(src, dst, axis)
    device, crosses_link = _device_of(layers)
    launch = Launch.on(device, stream)
    if isinstance(ids, torch.Tensor) and ids.is_cuda:
        _check_ids_on_device(ids, form, device)
        table, rows, pairs = ids, len(ids), None
        _require_packed(form, rows, pages)
    else:
        pairs = _checked_pairs(ids, form, pages, groups)
        table, rows = None, len(pairs)
    driver = _driver.copy_driver() if crosses_link and not launch.captured else None
    runs = _link.joined_runs(groups, pairs) if driver is not None and pairs is not None else None
    with launch.entered():
        flag = None
        if table is not None:
            flag, table = torch.zeros(1, dtype=torch.int32, device=device), table.contiguous()
        if not rows or not groups:
            pass
        elif driver is not None and runs is not None and _is_for_driver(runs[2], launch):
            _link.copy_runs(runs, launch, driver)
        else:
            if pairs is not None:
                _refuse_capture(launch)
                table, form = launch.upload(pairs), _Form.PAIRS
            programs = _LINK_PROGRAMS if crosses_link else _PROGRAMS * launch.multiprocessors
            for group in groups:
                _launch_kernel(
                    group, table, flag, rows=rows, form=form, pages=pages, launch=launch, programs=programs
                )
        event = launch.record()
    return _handle(launch, event, flag, layers, table)


def _handle(
    launch: Launch,
    event: Any,  # noqa: ANN401 - an event of torch
    flag: torch.Tensor | None,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    table: torch.Tensor | None,
) -> PageCopy:
    """Return the handle of a copy, after seeing to it that its memory outlives it."""
    tensors = [tensor for pair in layers for tensor in pair]
    if event is not None and not launch.captured:
        if not launch.is_current:
            for tensor in [*tensors, *([table] if table is not None else [])]:
                if tensor.is_cuda:
                    tensor.record_stream(launch.stream)
        keep_until(event, tensors)
    return PageCopy(launch, event, flag, [*tensors, table])


def _device_of(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.device, bool]:
    """Return the device that does the copy, and whether the other side lies on the host."""
    sides = [{tensor.device for tensor in side} for side in zip(*layers, strict=True)] or [set(), set()]
    devices = sides[0] | sides[1]
    cuda = {device for device in devices if device.type == "cuda"}
    kinds = {device.type for device in devices}
    if len(cuda) > 1 or any(len(side) > 1 for side in sides) or kinds - {"cuda", "cpu"}:
        names = ", ".join(sorted(map(str, devices)))
        message = f"layers on {names} came; pass one device, or one device and pinned memory of the host"
        raise DeviceError(message, code="device.mixed")
    if not cuda:
        if devices and not _triton.is_interpreted():
            raise DeviceError(
                f"tensors on {devices.pop()} came where CUDA tensors are needed", code="device.not_cuda"
            )
        return torch.device("cpu"), False
    for pair in layers:
        for tensor in pair:
            if not tensor.is_cuda and not tensor.is_pinned():
                message = (
                    "a tensor of the host that is not pinned came beside CUDA tensors; use a HostPool, or "
                    "tensor.pin_memory(): a GPU cannot reach other memory of the host"
                )
                raise DeviceError(message, code="device.not_pinned")
    return cuda.pop(), len(devices) > 1


def _require_packed(form: _Form, rows: int, pages: list[int]) -> None:
    packed = {_Form.GATHER: pages[1], _Form.SCATTER: pages[0]}.get(form)
    if packed is not None and packed != rows:
        message = f"{rows} ids came with a packed tensor of {packed} pages; it needs one page for each id"
        raise ShapeError(message, code="shape.packed_pages")


def _checked_pairs(
    ids: object, form: _Form, pages: list[int], groups: Sequence[PageRuns]
) -> npt.NDArray[np.int64]:
    if form is _Form.PAIRS:
        pairs = _mapping.pairs_of(ids)
    else:
        listed = _mapping.list_of_ids(ids)
        _require_packed(form, len(listed), pages)
        places = np.arange(len(listed))
        pairs = np.stack([listed, places] if form is _Form.GATHER else [places, listed], axis=1)
    _mapping.check_bounds(pairs, pages[0], pages[1])
    _mapping.check_overlap(groups, pairs)
    return pairs


def _check_ids_on_device(ids: torch.Tensor, form: _Form, device: torch.device) -> None:
    if ids.device != device:
        message = (
            f"ids on {ids.device} came for tensors on {device}; pass them on the same device, or on the host"
        )
        raise DeviceError(message, code="device.mixed")
    is_integer = ids.dtype in {torch.int32, torch.int64}
    _mapping.require_form(ids.shape, pairs=form is _Form.PAIRS, is_integer=is_integer)


def _is_for_driver(sizes: npt.NDArray[np.int64], launch: Launch) -> bool:
    """Return whether runs between host and device are long enough for the driver's copies."""
    name = torch.cuda.get_device_name(launch.device) if launch.stream is not None else "interpreter"
    return bool(sizes.sum() >= len(sizes) * _threshold.read_threshold(name))


def _refuse_capture(launch: Launch) -> None:
    if launch.captured:
        message = (
            "ids of the host came while a graph is captured; a replay would copy the same pages again: pass ids on the "
            "GPU, in memory that lasts as long as the graph"
        )
        raise ArgumentError(message, code="argument.capture")


def _launch_kernel(
    group: PageRuns,
    ids: torch.Tensor,
    flag: torch.Tensor | None,
    *,
    rows: int,
    form: _Form,
    pages: list[int],
    launch: Launch,
    programs: int,
) -> None:
    """Launch the kernel on runs of one length; the stream is entered."""
    word, lanes = min(group.word, 8), 2 if group.word == 16 else 1
    words = group.run_bytes // word
    elements = _TILE_WORDS * lanes
    columns = min(elements, max(_SHORTEST_ROW, 1 << (words - 1).bit_length()))
    tile_rows = elements // columns
    entries, steps = len(group.table), -(-words // columns)
    tiles = entries * steps * -(-rows // tile_rows)
    table = launch.constant(group.table)
    kernel = _triton.device_code("page_copy_triton").copy_pages
    kernel[(min(tiles, programs),)](
        table,
        ids,
        table if flag is None else flag,
        entries,
        rows,
        steps,
        words // lanes,
        pages[0],
        pages[1],
        WORD=word,
        LANES=lanes,
        ROWS=tile_rows,
        COLUMNS=columns,
        FORM=int(form),
        CHECKED=flag is None,
        WIDE=max(tiles, words) >= 1 << 31,
        num_warps=_WARPS,
    )
