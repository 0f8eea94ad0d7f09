"""The disk tier by one file a page: slow, and plain enough to be read at one glance."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference.kvcache.arguments import array_of, page_keys, page_rows
from infer_accel.errors import ArgumentError, IntegrityError, OverlapError, ShapeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor

_MAX_PAGE_BYTES = 1 << 30
_CHECK_BYTES = 32
#: As in the native tier, where a record's header has this length.
_HEADER_BYTES = 192


def _address(row: npt.NDArray[np.uint8]) -> int:
    address: int = row.__array_interface__["data"][0]
    return address


class DiskTier:
    """Pages on disk: one file each, the check of its bytes in front."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        capacity_bytes: int,
        page_bytes: int,
        fingerprint: bytes,
        segment_bytes: int | None = None,
        writer: int | None = None,
        checksum: str = "xxh3",
        compression: str | None = None,
        deadline: float | None = None,
        write_deadline: float | None = None,
    ) -> None:
        if not 1 <= page_bytes <= _MAX_PAGE_BYTES:
            code = "argument.count" if page_bytes < 0 else "argument.page_bytes"
            raise ArgumentError(f"page_bytes={page_bytes} came", code=code)
        if checksum not in {"xxh3", "blake3"}:
            raise ArgumentError(f"checksum={checksum!r} came", code="argument.checksum")
        if compression not in {None, "zstd"}:
            raise ArgumentError(f"compression={compression!r} came", code="argument.compression")
        for seconds in (deadline, write_deadline):
            if seconds is not None and not seconds > 0:
                raise ArgumentError(f"a deadline of {seconds} came", code="argument.deadline")
        needed = 2 * (_HEADER_BYTES + page_bytes)
        if capacity_bytes < needed:
            code = "argument.count" if capacity_bytes < 0 else "argument.capacity_bytes"
            raise ArgumentError(f"capacity_bytes={capacity_bytes} came; {needed} are needed", code=code)
        if segment_bytes is not None and segment_bytes < _HEADER_BYTES + page_bytes:
            raise ArgumentError(f"segment_bytes={segment_bytes} came", code="argument.segment_bytes")
        self._folder = Path(path)
        self._capacity_bytes, self.page_bytes = capacity_bytes, page_bytes
        self._writer = 0 if writer is None else writer
        self._process = os.getpid()
        self._closed = False
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._folder.mkdir(parents=True, exist_ok=True)
        kind = f"{page_bytes} {checksum} {fingerprint.hex()}"
        manifest = self._folder / "reference"
        if not manifest.exists():
            manifest.write_text(kind)
        if manifest.read_text() != kind:
            raise IntegrityError(f"{path} holds pages of another kind", code="integrity.tier_layout")

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> int:
        """Store the pages whose keys are new; return how many those were."""
        names = self.names(keys)
        rows = self.rows(pages, len(names))
        stored = 0
        for name, row in zip(names, rows, strict=True):
            if name.exists():
                self._counts["known_pages"] += 1
                continue
            self._make_room()
            page = row.tobytes()
            name.write_bytes(hashlib.blake2b(page, digest_size=_CHECK_BYTES).digest() + page)
            stored += 1
        self._counts["stored_pages"] += stored
        self._counts["written_bytes"] += stored * (self.page_bytes + _HEADER_BYTES)
        return stored

    def load(
        self,
        keys: Tensor | Sequence[bytes],
        out: Tensor,
        *,
        num_threads: int | None = None,  # noqa: ARG002 - one thread is enough for a specification
    ) -> npt.NDArray[np.bool_]:
        """Load the pages that are there to the rows of `out`; return which those are."""
        names = self.names(keys)
        rows = self.rows(out, len(names), writable=True)
        found = np.zeros(len(names), np.bool_)
        for number, name in enumerate(names):
            if not name.exists():
                continue
            record = name.read_bytes()
            check, page = record[:_CHECK_BYTES], record[_CHECK_BYTES:]
            if hashlib.blake2b(page, digest_size=_CHECK_BYTES).digest() != check:
                self._counts["corrupt_pages"] += 1
                name.unlink()
                continue
            rows[number, :] = np.frombuffer(page, np.uint8)
            os.utime(name)
            found[number] = True
        self._counts["hits"] += int(found.sum())
        self._counts["misses"] += int((~found).sum())
        return found

    def store_apart(self, keys: Tensor | Sequence[bytes], pages: Sequence[Tensor]) -> int:
        """Store pages that lie apart; return how many were new."""
        self._refuse_if_closed()
        rows = self._apart(pages, len(page_keys(keys)))
        return self.store(keys, np.concatenate([np.empty((0, self.page_bytes), np.uint8), *rows]))

    def load_apart(
        self,
        keys: Tensor | Sequence[bytes],
        out: Sequence[Tensor],
        *,
        num_threads: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Load to pages that lie apart; return which were there."""
        self._refuse_if_closed()
        rows = self._apart(out, len(page_keys(keys)), writable=True)
        loaded = np.empty((len(rows), self.page_bytes), np.uint8)
        found = self.load(keys, loaded, num_threads=num_threads)
        for number in np.flatnonzero(found):
            rows[number][:] = loaded[number]
        return found

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which of the pages are there."""
        return np.array([name.exists() for name in self.names(keys)], np.bool_)

    def flush(self) -> None:
        """Make all that was stored durable."""
        self._refuse_if_closed()
        self._counts["syncs"] += 1
        for name in self._pages():
            with name.open("rb") as file:
                os.fsync(file.fileno())

    def refresh(self) -> None:
        """Do nothing: every call looks at the directory."""
        self._refuse_if_closed()

    def stats(self) -> list[tuple[str, int]]:
        """Return what the tier holds and has done, figure by figure."""
        self._refuse_if_closed()
        pages = len(self._pages())
        held = pages * (self.page_bytes + _HEADER_BYTES)
        counts = {"pages": pages, "segments": pages, "bytes": held, "capacity_bytes": self._capacity_bytes}
        return [*counts.items(), *self._counts.items()]

    def writer(self) -> int:
        """Return which writer of the directory this is."""
        self._refuse_if_closed()
        return self._writer

    def close(self) -> None:
        """End the use of the directory."""
        if os.getpid() != self._process:
            self._refuse_if_closed()
        self._closed = True

    def _make_room(self) -> None:
        pages = self._pages()
        while (len(pages) + 1) * (self.page_bytes + _HEADER_BYTES) > self._capacity_bytes:
            oldest = min(pages, key=lambda name: name.stat().st_mtime_ns)
            oldest.unlink()
            pages.remove(oldest)
            self._counts["evicted_segments"] += 1
            self._counts["evicted_pages"] += 1

    def _pages(self) -> list[Path]:
        return list(self._folder.glob("*.page"))

    def names(self, keys: Tensor | Sequence[bytes]) -> list[Path]:
        """Return the files of pages."""
        self._refuse_if_closed()
        rows = page_keys(keys)
        return [self._folder / f"{row.hex()}.page" for row in rows]

    def rows(self, pages: Tensor, count: int, *, writable: bool = False) -> npt.NDArray[np.uint8]:
        """Return pages as rows of bytes, without a copy."""
        return page_rows(pages, count, self.page_bytes, writable=writable)

    def _apart(
        self, pages: Sequence[Tensor], count: int, *, writable: bool = False
    ) -> list[npt.NDArray[np.uint8]]:
        """Return each page as a row of bytes, without a copy."""
        rows = [self._row(array_of(page, writable=writable)) for page in pages]
        if len(rows) != count:
            raise ShapeError(f"{len(rows)} pages came for {count} keys", code="shape.page_count")
        by_place = sorted(rows, key=_address) if writable else []
        if any(_address(page) + self.page_bytes > _address(after) for page, after in pairwise(by_place)):
            message = "pages to load to share memory; pass memory of its own for each"
            raise OverlapError(message, code="overlap.pages")
        return rows

    def _row(self, page: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        if page.nbytes != self.page_bytes or not page.flags.c_contiguous:
            message = (
                f"a page of {page.dtype} {page.shape} came; {self.page_bytes} bytes in one piece are needed"
            )
            raise ShapeError(message, code="shape.stored_pages")
        return page.reshape(1, -1).view(np.uint8)

    def _refuse_if_closed(self) -> None:
        if os.getpid() != self._process:
            raise StorageError("this tier was opened before a fork", code="storage.forked")
        if self._closed:
            raise StorageError("this tier is closed", code="storage.closed")


class TieredCache:
    """A dictionary in front of a disk tier; everything is written at once."""

    def __init__(
        self,
        disk: DiskTier,
        *,
        host_pages: int,
        queued_writes: int | None = None,
        queued_prefetches: int = 64,
        store_deadline: float | None = None,
    ) -> None:
        most = host_pages // 2
        if host_pages < 2 or queued_prefetches < 1 or not 1 <= (queued_writes or most) <= most:
            smallest = min(host_pages, queued_prefetches, most if queued_writes is None else queued_writes)
            code = "argument.count" if smallest < 0 else "argument.tier_count"
            raise ArgumentError("a number of pages that is out of range came", code=code)
        if queued_writes == 0:
            raise ArgumentError("queued_writes=0 came", code="argument.tier_count")
        if store_deadline is not None and not store_deadline > 0:
            raise ArgumentError(f"store_deadline={store_deadline} came", code="argument.deadline")
        disk.refresh()
        self._disk, self._host_pages = disk, host_pages
        self._host: dict[str, npt.NDArray[np.uint8]] = {}
        self._closed = False
        self._counts = dict.fromkeys(_CACHE_COUNTERS, 0)

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> npt.NDArray[np.bool_]:
        """Take pages in; return which."""
        self._refuse_if_closed()
        self._disk.store(keys, pages)
        names = self._disk.names(keys)
        for name, row in zip(names, self._disk.rows(pages, len(names)), strict=True):
            self._keep(name.name, row)
        self._counts["stored_pages"] += len(names)
        self._counts["written_pages"] += len(names)
        return np.ones(len(names), np.bool_)

    def load(
        self,
        keys: Tensor | Sequence[bytes],
        out: Tensor,
        *,
        num_threads: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Load pages to the rows of `out`; return which were there."""
        self._refuse_if_closed()
        names = self._disk.names(keys)
        rows = self._disk.rows(out, len(names), writable=True)
        # What comes from disk may push out what a later row needs.
        held = [self._host.get(name.name) for name in names]
        in_host = np.array([page is not None for page in held], np.bool_)
        found = self._disk.load(keys, out, num_threads=num_threads)
        for number, name in enumerate(names):
            if (page := held[number]) is not None:
                rows[number, :] = page
            elif found[number]:
                self._keep(name.name, rows[number])
        self._counts["host_hits"] += int(in_host.sum())
        self._counts["disk_hits"] += int((found & ~in_host).sum())
        self._counts["misses"] += int((~(found | in_host)).sum())
        return found | in_host

    def prefetch(self, keys: Tensor | Sequence[bytes]) -> int:
        """Bring pages from disk; return how many."""
        self._refuse_if_closed()
        rows = [row for row in _rows_of(keys) if f"{row.hex()}.page" not in self._host]
        wanted = [row for row, there in zip(rows, self._disk.contains(rows), strict=True) if there]
        pages = np.zeros((len(wanted), self._disk.page_bytes), np.uint8)
        found = self._disk.load(wanted, pages)
        for row, page, hit in zip(wanted, pages, found, strict=True):
            if hit:
                self._keep(f"{row.hex()}.page", page)
        self._counts["prefetched_pages"] += int(found.sum())
        return len(wanted)

    def wait_for_prefetches(self) -> None:
        """Do nothing: they are brought at once."""
        self._refuse_if_closed()

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which pages are in host memory or on disk."""
        self._refuse_if_closed()
        in_host = [name.name in self._host for name in self._disk.names(keys)]
        return self._disk.contains(keys) | np.array(in_host, np.bool_)

    def flush(self) -> None:
        """Make all that was taken in durable."""
        self._refuse_if_closed()
        self._disk.flush()

    def stats(self) -> list[tuple[str, int]]:
        """Return what the cache holds and has done, figure by figure."""
        self._refuse_if_closed()
        host = {"host_pages": len(self._host), "host_capacity": self._host_pages}
        return [*host.items(), ("queued_writes", 0), ("queued_prefetches", 0), *self._counts.items()]

    def close(self) -> None:
        """End the use of the cache."""
        if not self._closed:
            self._disk.flush()
        self._closed = True

    def _keep(self, name: str, page: npt.NDArray[np.uint8]) -> None:
        self._host[name] = self._host.pop(name, page.copy())
        while len(self._host) > self._host_pages:
            del self._host[next(iter(self._host))]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StorageError("this cache is closed", code="storage.closed")


def _rows_of(keys: Tensor | Sequence[bytes]) -> list[bytes]:
    rows = keys if isinstance(keys, list | tuple) else [row.tobytes() for row in np.asarray(keys)]
    return list(rows)


_CACHE_COUNTERS = (
    "host_hits",
    "disk_hits",
    "misses",
    "stored_pages",
    "refused_pages",
    "written_pages",
    "failed_writes",
    "prefetched_pages",
)
_COUNTERS = (
    "stored_pages",
    "known_pages",
    "written_bytes",
    "hits",
    "misses",
    "corrupt_pages",
    "vanished_pages",
    "failed_reads",
    "late_pages",
    "late_writes",
    "evicted_segments",
    "evicted_pages",
    "refused_segments",
    "torn_segments",
    "syncs",
    "unsynced_pages",
)
