"""Page copies within a GPU."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.bench.cuda import vllm_rival
from infer_accel.bench.cuda.device import require
from infer_accel.bench.cuda.plan import DeviceRow
from infer_accel.bench.harness import Case, Floor, rate
from infer_accel.kernels import page_copy as kernels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Contender

__all__ = ["POISON", "copies", "rows", "shuffled"]

_PAGES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20)
#: Of the row with many layers: as many of a block of 16 tokens, 8 heads of 128 bfloat16, keys and values.
_LAYERS, _LAYER_PAGE = 32, 64 << 10
POISON = 0xAA
#: Source, target, what is expected, what a rival gathers before it scatters.
_ARRAYS = 4
#: Pages that a rival which copies one by one is asked for.
_FEW = 4096


def rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield copies of pages in random order, page by page larger."""
    room = _ARRAYS * gpu.call_bytes + (gpu.call_bytes if gpu.is_real else 0)
    for page in _PAGES[1:3] if bench.quick else _PAGES:
        name = f"cuda: page_copy {page >> 10} KiB pages"
        yield DeviceRow(name, room, partial(_copied, bench, gpu, name, page))
    for layers, page in ((_LAYERS, _LAYER_PAGE if gpu.is_real else 512),):
        name = f"cuda: page_copy {layers} layers in a call, {_size(page)} pages"
        yield DeviceRow(name, room, partial(_layered, bench, gpu, name, layers, page))
    for way in ("page_gather", "page_scatter"):
        name = f"cuda: {way} 16 KiB pages"
        yield DeviceRow(name, room, partial(_packed, bench, gpu, name, 16 << 10))


def _size(page: int) -> str:
    return f"{page >> 10} KiB" if page >= 1 << 10 else f"{page} bytes"


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return the numbers below `count` in random order."""
    return np.random.default_rng(seed).permutation(count)


def copies(name: str, moved: int, ours: Contender, peers: Sequence[Contender], floor: Floor) -> Case:
    """Return a case of copying: bytes that a call moves, ours beside its peers and the floor."""
    return Case(name=name, measure=rate("GB/s", 1e9), work=moved, ours=ours, peers=peers, floor=floor)


def _copied(bench: Bench, gpu: Gpu, name: str, page: int) -> Case:
    """Copy all pages of one array to other places of another, which is all of memory's traffic."""
    count = max(2, gpu.call_bytes // page)
    source = gpu.random(count, page, dtype=torch.uint8, seed=0)
    target = torch.empty_like(source)
    pairs = np.stack([shuffled(count, 1), shuffled(count, 2)], axis=1)
    # On the device, as a scheduler has them that replays a graph: those of the host are checked one by one before.
    mapping = gpu.ids(pairs)
    fro, to = (torch.from_numpy(pairs[:, side].copy()).to(gpu.device) for side in (0, 1))
    expected = torch.empty_like(source)
    expected[to] = source[fro]

    def poison() -> None:
        target.fill_(POISON)

    def check(_: object) -> None:
        require(torch.equal(target, expected), "pages differ")

    def indexed(_: int) -> None:
        target[to] = source[fro]

    def copied(_: int) -> None:
        target.index_copy_(0, to, source.index_select(0, fro))

    moved = 2 * count * page
    peers = [
        gpu.contender("torch dst[i] = src[j]", indexed, check=check, prepare=poison),
        gpu.contender("torch index_copy_", copied, check=check, prepare=poison),
    ]
    few = pairs[: min(count, _FEW)]
    peers += vllm_rival.block_copies(bench, gpu, (source, target), few, 2 * len(few) * page)
    ours = gpu.contender(
        "infer-accel",
        lambda _: kernels.page_copy([source], [target], mapping, axis=0),
        check=check,
        prepare=poison,
    )
    floor = Floor("device copy", moved / gpu.copy_rate(bench.limits))
    return copies(name, moved, ours, peers, floor)


def _layered(bench: Bench, gpu: Gpu, name: str, layers: int, page: int) -> Case:
    """Copy the same pages in every layer of a cache, from one half of the blocks to the other."""
    count = max(2, gpu.call_bytes // page // layers)
    caches = [gpu.random(2 * count, page, dtype=torch.uint8, seed=layer) for layer in range(layers)]
    pairs = np.stack([shuffled(count, 1), count + shuffled(count, 2)], axis=1)
    mapping = gpu.ids(pairs)
    fro, to = (torch.from_numpy(pairs[:, side].copy()).to(gpu.device) for side in (0, 1))

    def poison() -> None:
        for cache in caches:
            cache[count:].fill_(POISON)

    def check(_: object) -> None:
        for cache in caches:
            require(torch.equal(cache[to], cache[fro]), "pages differ")

    def by_layer(_: int) -> None:
        for cache in caches:
            cache.index_copy_(0, to, cache.index_select(0, fro))

    moved = 2 * layers * count * page
    peers = [gpu.contender("torch index_copy_ by layer", by_layer, check=check, prepare=poison)]
    ours = gpu.contender(
        "infer-accel",
        lambda _: kernels.page_copy(caches, caches, mapping, axis=0),
        check=check,
        prepare=poison,
    )
    floor = Floor("device copy", moved / gpu.copy_rate(bench.limits))
    return copies(name, moved, ours, peers, floor)


def _packed(bench: Bench, gpu: Gpu, name: str, page: int) -> Case:
    """Gather pages of an array into a packed one, or scatter them out of it."""
    count = max(2, gpu.call_bytes // page)
    source = gpu.random(count, page, dtype=torch.uint8, seed=3)
    ids = shuffled(count, 4)
    target, index = torch.empty_like(source), torch.from_numpy(ids).to(gpu.device)
    listed = gpu.ids(ids)
    is_gather = "gather" in name
    if is_gather:
        expected = source.index_select(0, index)
    else:
        expected = torch.empty_like(source)
        expected[index] = source

    def check(_: object) -> None:
        require(torch.equal(target, expected), "pages differ")

    def by_us(_: int) -> None:
        if is_gather:
            kernels.page_gather([source], listed, [target], axis=0)
        else:
            kernels.page_scatter([source], [target], listed, axis=0)

    def by_torch(_: int) -> None:
        if is_gather:
            torch.index_select(source, 0, index, out=target)
        else:
            target.index_copy_(0, index, source)

    def poison() -> None:
        target.fill_(POISON)

    moved = 2 * count * page
    rival = "torch index_select" if is_gather else "torch index_copy_"
    peers = [gpu.contender(rival, by_torch, check=check, prepare=poison)]
    ours = gpu.contender("infer-accel", by_us, check=check, prepare=poison)
    floor = Floor("device copy", moved / gpu.copy_rate(bench.limits))
    return copies(name, moved, ours, peers, floor)
