"""Rows of the disk tier: pages stored, and pages loaded and checked, beside those who write one file a page.

Contenders of one row promise the same. *Store*: the pages outlive the process, and nobody waits for the device. So does
O_DIRECT without a sync: names and lengths of the files, and what the device holds in its own cache, are lost with the
power. *Store, durable*: ours syncs, and so do the others; vLLM's tier never does, and has no part in it.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import kvcache
from infer_accel.bench.harness import Bench, Case, Contender, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

__all__ = ["cases"]

#: Bytes of a batch: a long prompt's pages.
_BATCH_BYTES = 64 << 20
#: Batches that a store goes through in turn, so that none is there already.
_ROUNDS = 3


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a row for storing and one for loading, for each size of page."""
    for page_bytes in [64 << 10, 2 << 20]:
        with tempfile.TemporaryDirectory(prefix="infer-accel-bench-") as folder:
            work = _Work(Path(folder), page_bytes, _BATCH_BYTES // (4 if bench.quick else 1))
            yield work.store(bench)
            yield work.store(bench, durable=True)
            for threads in (1, 2):
                yield work.load(bench, threads)


def _aligned(count: int, page_bytes: int) -> Bytes:
    """Return pages that begin where the system's do, as an engine's host cache does: O_DIRECT takes no others."""
    return np.frombuffer(mmap.mmap(-1, count * page_bytes), np.uint8).reshape(count, page_bytes)


def _name(page_bytes: int) -> str:
    return f"{page_bytes >> 20} MiB" if page_bytes >= 1 << 20 else f"{page_bytes >> 10} KiB"


class _Work:
    """Pages, their keys, and the directories of all contenders."""

    def __init__(self, folder: Path, page_bytes: int, batch_bytes: int) -> None:
        self.folder, self.page_bytes = folder, page_bytes
        count = batch_bytes // page_bytes
        chance = np.random.default_rng(0)
        self.pages, self.out = _aligned(count, page_bytes), _aligned(count, page_bytes)
        self.pages[:] = chance.integers(0, 256, self.pages.shape, dtype=np.uint8)
        self.keys: Bytes = chance.integers(0, 256, (count, 32), dtype=np.uint8)
        self.names = [key.tobytes().hex() for key in self.keys]

    def check_loaded(self, _: object) -> None:
        """Compare what was loaded, and poison it for the next contender."""
        np.testing.assert_array_equal(self.out, self.pages)
        self.out.fill(0)

    def tier(self, name: str) -> kvcache.DiskTier:
        """Return a tier with room for a few batches: as a server runs it, full."""
        return kvcache.DiskTier(
            self.folder / name,
            capacity_bytes=4 * self.pages.nbytes,
            segment_bytes=self.pages.nbytes // 2,
            page_bytes=self.page_bytes,
            fingerprint=b"bench",
        )

    def store(self, bench: Bench, *, durable: bool = False) -> Case:
        """Store batches that were never seen, within a bounded directory."""
        how = ", durable" if durable else ""
        tier, round_of = self.tier(f"store{how}"), [0]

        def fresh_keys() -> None:
            round_of[0] += 1
            self.keys[:, :8] = np.frombuffer(round_of[0].to_bytes(8, "little"), np.uint8)

        def run() -> object:
            stored = tier.store(self.keys, self.pages)
            if durable:
                tier.flush()
            return stored

        def check(stored: object) -> None:
            np.testing.assert_equal(stored, len(self.keys))
            tier.load(self.keys, self.out)
            self.check_loaded(None)

        plain = "numpy tofile + fsync, one file a page" if durable else "numpy tofile, one file a page"
        peers = [self._files_store(plain, _numpy_store_synced if durable else _numpy_store)]
        if not durable and (vllm := bench.rival("vllm")) is not None:
            for direct in (False, True):
                if (write := _vllm_store(use_direct=direct)) is not None:
                    way = "O_DIRECT" if direct else "page cache"
                    peers.append(self._files_store(f"vLLM {vllm.__version__} fs tier, {way}", write))
        return Case(
            name=f"DiskTier store{how}, {_name(self.page_bytes)} pages",
            measure=rate("GB/s", 1e9),
            work=self.pages.nbytes,
            ours=Contender("infer-accel", run, check, prepare=fresh_keys),
            peers=peers,
        )

    def _files_store(self, name: str, write: Callable[[list[str], Bytes], None]) -> Contender:
        """Write to a fresh directory; the ones before are removed, as a bounded store would."""
        folder, round_of = self.folder / name.replace(" ", "-").replace("/", "-"), [0]
        paths: list[str] = []

        def prepare() -> None:
            shutil.rmtree(folder / str(round_of[0] - _ROUNDS), ignore_errors=True)
            round_of[0] += 1
            into = folder / str(round_of[0])
            into.mkdir(parents=True)
            paths[:] = [str(into / page) for page in self.names]

        def check(_: object) -> None:
            for path, page in zip(paths, self.pages, strict=True):
                np.testing.assert_array_equal(np.fromfile(path, np.uint8), page)

        return Contender(name, lambda: write(paths, self.pages), check, prepare=prepare)

    def load(self, bench: Bench, threads: int) -> Case:
        """Load a batch that lies in the page cache; ours checks every byte."""
        tier = self.tier(f"load-{threads}")
        tier.store(self.keys, self.pages)
        folder = self.folder / f"files-{threads}"
        folder.mkdir()
        paths = [str(folder / name) for name in self.names]
        _numpy_store(paths, self.pages)

        def ours() -> object:
            return tier.load(self.keys, self.out, num_threads=threads)

        def check(found: object) -> None:
            np.testing.assert_array_equal(found, True)  # noqa: FBT003 - the value, not a switch
            self.check_loaded(None)

        def by_numpy(paths: list[str], out: Bytes) -> None:
            for row, path in zip(out, paths, strict=True):
                row[:] = np.fromfile(path, np.uint8)

        def by_readinto(paths: list[str], out: Bytes) -> None:
            for row, path in zip(out, paths, strict=True):
                with Path(path).open("rb", buffering=0) as file:
                    file.readinto(row.data)

        def contender(name: str, read: Callable[[list[str], Bytes], None]) -> Contender:
            run = _in_threads(threads, read, paths, self.out)
            return Contender(f"{name}, unchecked", run, self.check_loaded)

        peers = [contender("numpy fromfile", by_numpy), contender("readinto", by_readinto)]
        if (vllm := bench.rival("vllm")) is not None:
            for direct in (False, True):
                if (read := _vllm_load(use_direct=direct)) is not None:
                    way = "O_DIRECT" if direct else "page cache"
                    peers.append(contender(f"vLLM {vllm.__version__} fs tier, {way}", read))
        plural = "s" if threads > 1 else ""
        return Case(
            name=f"DiskTier load, verified, {_name(self.page_bytes)} pages, {threads} thread{plural}",
            measure=rate("GB/s", 1e9),
            work=self.pages.nbytes,
            ours=Contender("infer-accel", ours, check),
            peers=peers,
            threads=threads,
        )


def _in_threads(
    threads: int, read: Callable[[list[str], Bytes], None], paths: list[str], out: Bytes
) -> Callable[[], None]:
    """Return a call that gives each thread a part of the pages, as a pool that runs a job a thread."""
    if threads == 1:
        return lambda: read(paths, out)
    pool = ThreadPoolExecutor(threads)
    share = -(-len(paths) // threads)
    parts = [slice(first, first + share) for first in range(0, len(paths), share)]

    def run() -> None:
        for future in [pool.submit(read, paths[part], out[part]) for part in parts]:
            future.result()

    return run


def _numpy_store(paths: list[str], pages: Bytes) -> None:
    for path, page in zip(paths, pages, strict=True):
        page.tofile(path)


def _numpy_store_synced(paths: list[str], pages: Bytes) -> None:
    for path, page in zip(paths, pages, strict=True):
        with Path(path).open("wb", buffering=0) as file:
            file.write(page.data)
            os.fdatasync(file.fileno())


def _vllm_store(*, use_direct: bool) -> Callable[[list[str], Bytes], None] | None:
    """Return vLLM's batched store, all pages in one call; its threads split such calls among them."""
    try:
        from vllm.v1.kv_offload.tiering.fs.io import batch_store_block
    except ImportError:
        return None

    def run(paths: list[str], pages: Bytes) -> None:
        offsets = list(range(0, pages.nbytes, pages.shape[1]))
        batch_store_block(paths, pages.data, offsets, pages.shape[1], use_direct)

    return run


def _vllm_load(*, use_direct: bool) -> Callable[[list[str], Bytes], None] | None:
    try:
        from vllm.v1.kv_offload.tiering.fs.io import batch_load_block
    except ImportError:
        return None

    def run(paths: list[str], out: Bytes) -> None:
        offsets = list(range(0, out.nbytes, out.shape[1]))
        batch_load_block(paths, out.data, offsets, out.shape[1], use_direct)

    return run
