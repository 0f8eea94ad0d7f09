"""Page copies between a GPU and pinned memory of the host."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.bench.cuda import vllm_rival
from infer_accel.bench.cuda.device import require
from infer_accel.bench.cuda.paging import POISON, copies, shuffled
from infer_accel.bench.cuda.plan import DeviceRow
from infer_accel.bench.harness import Floor
from infer_accel.kernels import page_copy as kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Case

__all__ = ["rows"]

_PAGES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 2 << 20)
_PACKED_PAGE = 64 << 10
#: A call moves a quarter of what one within the device does, as the link is slower by more.
_SHARE = 4
#: Pages that a rival which copies one by one is asked for.
_FEW = 2048


def rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield copies of pages in random order to the device and from it."""
    room = 4 * gpu.call_bytes // _SHARE
    for page in _PAGES[1:3] if bench.quick else _PAGES:
        for to_device in (True, False):
            name = f"cuda: page_copy {page >> 10} KiB pages, {_way(to_device)}"
            yield DeviceRow(name, room, partial(_copied, bench, gpu, name, page, to_device=to_device))
    for to_device in (True, False):
        page = _PACKED_PAGE if gpu.is_real else 4 << 10
        operation = "page_scatter from packed" if to_device else "page_gather to packed"
        name = f"cuda: {operation} {page >> 10} KiB pages, {_way(to_device)}"
        yield DeviceRow(name, room, partial(_packed, bench, gpu, name, page, to_device=to_device))


def _way(to_device: bool) -> str:  # noqa: FBT001 - one of two ways
    return "host to device" if to_device else "device to host"


def _floor(bench: Bench, gpu: Gpu, moved: int, *, to_device: bool) -> Floor:
    rate = gpu.link_rate(bench.limits, to_device=to_device)
    return Floor(f"link, {_way(to_device)}", moved / rate)


def _copied(bench: Bench, gpu: Gpu, name: str, page: int, *, to_device: bool) -> Case:
    """Copy pages of one side to other places of the other; the mapping lies on the host, and is checked there."""
    count = max(2, gpu.call_bytes // _SHARE // page)
    host = gpu.pinned(count, page)
    host.copy_(gpu.random(count, page, dtype=torch.uint8, seed=5))
    device = host.to(gpu.device, copy=True)
    source, target = (host, device) if to_device else (device, host)
    pairs = np.stack([shuffled(count, 6), shuffled(count, 7)], axis=1)
    expected = torch.empty(host.shape, dtype=torch.uint8)
    expected[torch.from_numpy(pairs[:, 1])] = host[torch.from_numpy(pairs[:, 0])]
    few = pairs[: min(count, _FEW)]
    listed = few.tolist()

    def poison() -> None:
        # The source keeps its bytes: what is poisoned is the other side.
        target.fill_(POISON)

    def check(_: object) -> None:
        require(torch.equal(target.cpu(), expected), "pages differ")

    def check_few(_: object) -> None:
        found, places = target.cpu(), torch.from_numpy(few[:, 1].copy())
        require(torch.equal(found[places], expected[places]), "pages differ")

    def one_by_one(_: int) -> None:
        for fro, to in listed:
            target[to].copy_(source[fro], non_blocking=True)

    moved, moved_few = count * page, len(few) * page
    page_by_page = gpu.contender("torch copy_ page by page", one_by_one, check=check_few, prepare=poison)
    peers = [replace(page_by_page, work=moved_few)]
    peers += vllm_rival.block_copies(bench, gpu, (source, target), few, moved_few)
    peers += vllm_rival.batched_copies(bench, gpu, (source, target), pairs, (check, poison))
    ours = gpu.contender(
        "infer-accel",
        lambda _: kernels.page_copy([source], [target], pairs, axis=0),
        check=check,
        prepare=poison,
    )
    floor = _floor(bench, gpu, moved, to_device=to_device)
    return copies(name, moved, ours, peers, floor)


def _packed(bench: Bench, gpu: Gpu, name: str, page: int, *, to_device: bool) -> Case:
    """Move pages that lie anywhere on the device to packed ones of the host, or back; torch does it in two calls."""
    count = max(2, gpu.call_bytes // _SHARE // page)
    device = gpu.random(count, page, dtype=torch.uint8, seed=8)
    packed = gpu.pinned(count, page)
    ids = shuffled(count, 9)
    index = torch.from_numpy(ids).to(gpu.device)
    if to_device:
        packed.copy_(gpu.random(count, page, dtype=torch.uint8, seed=10))
        expected = torch.empty_like(packed)
        expected[torch.from_numpy(ids)] = packed
    else:
        expected = device.index_select(0, index).cpu()
    target = device if to_device else packed

    def check(_: object) -> None:
        require(torch.equal(target.cpu(), expected), "pages differ")

    def poison() -> None:
        target.fill_(POISON)

    def by_us(_: int) -> None:
        if to_device:
            kernels.page_scatter([packed], [device], ids, axis=0)
        else:
            kernels.page_gather([device], ids, [packed], axis=0)

    def by_torch(_: int) -> None:
        if to_device:
            device.index_copy_(0, index, packed.to(gpu.device, non_blocking=True))
        else:
            packed.copy_(device.index_select(0, index), non_blocking=True)

    moved = count * page
    rival = "torch copy_, then index_copy_" if to_device else "torch index_select, then copy_"
    peers = [gpu.contender(rival, by_torch, check=check, prepare=poison)]
    ours = gpu.contender("infer-accel", by_us, check=check, prepare=poison)
    floor = _floor(bench, gpu, moved, to_device=to_device)
    return copies(name, moved, ours, peers, floor)
