"""Page copies on a GPU, and between it and pinned memory of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.bench.cuda.device import require
from infer_accel.bench.harness import Case, Floor, rate
from infer_accel.kernels import page_copy as kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench

__all__ = ["cases"]

_PAGES = (4 << 10, 16 << 10, 64 << 10, 1 << 20)
_LINK_PAGES = (16 << 10, 64 << 10, 1 << 20)
_POISON = 0xAA


def cases(bench: Bench, gpu: Gpu) -> Iterator[Case]:
    """Yield copies of pages in random order, page by page larger."""
    pages = _PAGES[1::2] if bench.quick else _PAGES
    for page in pages:
        yield _within(bench, gpu, page)
    yield _gathered(bench, gpu, 16 << 10)
    for page in _LINK_PAGES[:2] if bench.quick else _LINK_PAGES:
        for to_device in (True, False):
            yield _over_the_link(bench, gpu, page, to_device=to_device)


def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def _count(gpu: Gpu, page: int) -> int:
    return max(2, gpu.call_bytes // page)


def _within(bench: Bench, gpu: Gpu, page: int) -> Case:
    """Copy all pages of one array to other places of another, which is all of memory's traffic."""
    count = _count(gpu, page)
    source = gpu.random(count, page, dtype=torch.uint8, seed=0)
    target = torch.empty_like(source)
    pairs = np.stack([_shuffled(count, 1), _shuffled(count, 2)], axis=1)
    fro, to = (torch.from_numpy(pairs[:, side].copy()).to(gpu.device) for side in (0, 1))
    expected = torch.empty_like(source)
    expected[to] = source[fro]

    def poison() -> None:
        target.fill_(_POISON)

    def check(_: object) -> None:
        require(torch.equal(target, expected), "pages differ")

    def indexed(_: int) -> None:
        target[to] = source[fro]

    def copied(_: int) -> None:
        target.index_copy_(0, to, source.index_select(0, fro))

    moved = 2 * count * page
    return Case(
        name=f"cuda: page_copy {page >> 10} KiB pages",
        measure=rate("GB/s", 1e9),
        work=moved,
        ours=gpu.contender(
            "infer-accel",
            lambda _: kernels.page_copy([source], [target], pairs, axis=0),
            sets=1,
            check=check,
            prepare=poison,
        ),
        peers=[
            gpu.contender("torch dst[i] = src[j]", indexed, sets=1, check=check, prepare=poison),
            gpu.contender("torch index_copy_", copied, sets=1, check=check, prepare=poison),
        ],
        floor=Floor("device copy", moved / gpu.copy_rate(bench.limits)),
    )


def _gathered(bench: Bench, gpu: Gpu, page: int) -> Case:
    count = _count(gpu, page)
    source = gpu.random(count, page, dtype=torch.uint8, seed=3)
    ids = _shuffled(count, 4)
    packed, index = torch.empty_like(source), torch.from_numpy(ids).to(gpu.device)
    expected = source.index_select(0, index)

    def check(_: object) -> None:
        require(torch.equal(packed, expected), "pages differ")

    def selected(_: int) -> None:
        torch.index_select(source, 0, index, out=packed)

    def poison() -> None:
        packed.fill_(_POISON)

    moved = 2 * count * page
    return Case(
        name=f"cuda: page_gather {page >> 10} KiB pages",
        measure=rate("GB/s", 1e9),
        work=moved,
        ours=gpu.contender(
            "infer-accel",
            lambda _: kernels.page_gather([source], ids, [packed], axis=0),
            sets=1,
            check=check,
            prepare=poison,
        ),
        peers=[gpu.contender("torch index_select", selected, sets=1, check=check, prepare=poison)],
        floor=Floor("device copy", moved / gpu.copy_rate(bench.limits)),
    )


def _over_the_link(bench: Bench, gpu: Gpu, page: int, *, to_device: bool) -> Case:
    """Copy pages in random order between the device and pinned memory."""
    count = max(2, _count(gpu, page) // 4)
    host = gpu.pinned(count, page)
    host.copy_(gpu.random(count, page, dtype=torch.uint8, seed=5))
    device = host.to(gpu.device, copy=True)
    source, target = (host, device) if to_device else (device, host)
    pairs = np.stack([_shuffled(count, 6), _shuffled(count, 7)], axis=1)
    expected = torch.empty_like(host)
    expected[pairs[:, 1]] = host[pairs[:, 0]]
    listed = pairs.tolist()

    def poison() -> None:
        # The source keeps its bytes: what is poisoned is the other side.
        target.fill_(_POISON)

    def check(_: object) -> None:
        require(torch.equal(target.cpu(), expected), "pages differ")

    def one_by_one(_: int) -> None:
        for fro, to in listed:
            target[to].copy_(source[fro], non_blocking=True)

    way = "host to device" if to_device else "device to host"
    moved = count * page
    return Case(
        name=f"cuda: page_copy {page >> 10} KiB pages, {way}",
        measure=rate("GB/s", 1e9),
        work=moved,
        ours=gpu.contender(
            "infer-accel",
            lambda _: kernels.page_copy([source], [target], pairs, axis=0),
            sets=1,
            check=check,
            prepare=poison,
        ),
        peers=[gpu.contender("torch copy_ page by page", one_by_one, sets=1, check=check, prepare=poison)],
        floor=Floor(f"link, {way}", moved / gpu.link_rate(bench.limits, to_device=to_device)),
    )
