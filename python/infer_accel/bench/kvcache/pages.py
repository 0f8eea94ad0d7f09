"""Rows of page copies."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import kvcache
from infer_accel.bench.harness import Bench, Case, Contender, Floor, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

__all__ = ["cases"]


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a row for each size of page and number of threads."""
    sizes = [4 << 10, 64 << 10] if bench.quick else [4 << 10, 16 << 10, 64 << 10, 2 << 20]
    for page_bytes in sizes:
        for threads in (1, 2):
            yield _page_copy(bench, page_bytes, threads)


def _page_copy(bench: Bench, page_bytes: int, threads: int) -> Case:
    # Far above any last cache that one core can fill; numpy asks for huge pages for arrays of this size.
    pages = (128 << 20 if bench.quick else 512 << 20) // page_bytes
    chance = np.random.default_rng(1)
    source = chance.integers(0, 1 << 63, (pages, page_bytes // 8), dtype=np.int64)
    target = np.zeros_like(source)
    mapping = np.stack([chance.permutation(pages), chance.permutation(pages)], axis=1)
    fro, to = np.ascontiguousarray(mapping[:, 0]), np.ascontiguousarray(mapping[:, 1])

    def check(_: object) -> None:
        wrong = [i for i in range(pages) if not np.array_equal(target[to[i]], source[fro[i]])]
        # The next contender must write every byte anew.
        target.fill(-1)
        np.testing.assert_equal(wrong, [], "rows of the mapping whose pages differ")

    peers = [Contender("numpy dst[d] = src[s]", lambda: target.__setitem__(to, source[fro]), check)]
    if threads == 1:
        peers.append(Contender("memcpy a page (ctypes)", _memcpy(source, target, mapping), check))
    if (torch := bench.rival("torch")) is not None:
        src, dst = torch.from_numpy(source), torch.from_numpy(target)
        src_index, dst_index = torch.from_numpy(fro), torch.from_numpy(to)
        packed = torch.empty_like(src)

        def select_and_copy() -> None:
            torch.index_select(src, 0, src_index, out=packed)
            dst.index_copy_(0, dst_index, packed)

        pairs = mapping.tolist()

        def copy_each() -> None:
            for s, d in pairs:
                dst[d].copy_(src[s])

        peers += [
            Contender("torch dst[d] = src[s]", lambda: dst.__setitem__(dst_index, src[src_index]), check),
            Contender("torch index_select + index_copy_", select_and_copy, check),
            Contender("torch copy_ a page", copy_each, check),
        ]
    moved = 2 * source.nbytes
    return Case(
        name=f"page_copy {_size(page_bytes)} pages at random, {threads} thread{'s' if threads > 1 else ''}",
        measure=rate("GB/s", 1e9),
        work=moved,
        ours=Contender(
            "infer-accel", lambda: kvcache.page_copy(source, target, mapping, num_threads=threads), check
        ),
        peers=peers,
        floor=Floor("copy bandwidth", moved / bench.limits.copy_bandwidth(threads=threads)),
        threads=threads,
    )


def _memcpy(
    source: npt.NDArray[np.int64], target: npt.NDArray[np.int64], mapping: npt.NDArray[np.int64]
) -> Callable[[], None]:
    memmove, page_bytes = ctypes.memmove, source.strides[0]
    fro = (source.ctypes.data + mapping[:, 0] * page_bytes).tolist()
    to = (target.ctypes.data + mapping[:, 1] * page_bytes).tolist()

    def run() -> None:
        for s, d in zip(fro, to, strict=True):
            memmove(d, s, page_bytes)

    return run


def _size(page_bytes: int) -> str:
    return f"{page_bytes >> 20} MiB" if page_bytes >= 1 << 20 else f"{page_bytes >> 10} KiB"
