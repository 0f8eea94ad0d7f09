"""Pages on disk: bounded, checked, shared by processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeAlias

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.kvcache._layout import PageLayout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor

#: The check of each page.
Checksum: TypeAlias = Literal["xxh3", "blake3"]

_implementation = _backend.load("kvcache")


@dataclass(frozen=True, slots=True)
class TierStats:
    """What a :class:`DiskTier` holds, and what it has done since it was opened."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]]

    #: Pages that can be found.
    pages: int
    #: Segments that are read.
    segments: int
    #: Bytes of all segments in the directory, whoever wrote them; those being written count as long as they may become.
    bytes: int
    #: Most bytes.
    capacity_bytes: int
    #: Pages written so far.
    stored_pages: int
    #: Pages that came so far and were there already.
    known_pages: int
    #: Bytes written so far, headers included.
    written_bytes: int
    #: Pages asked for and delivered.
    hits: int
    #: Pages asked for and not delivered, whatever the reason.
    misses: int
    #: Pages that were not what was stored: each a miss, and forgotten.
    corrupt_pages: int
    #: Pages whose segment went, by eviction in another process, before they were read: each a miss.
    vanished_pages: int
    #: Reads that failed: each a miss.
    failed_reads: int
    #: Pages that the device did not deliver in time: each a miss.
    late_pages: int
    #: Stores and flushes that the device did not answer in time: each an error.
    late_writes: int
    #: Segments removed to make room.
    evicted_segments: int
    #: Pages in them.
    evicted_pages: int
    #: Files that are no segments of this directory's kind: of another layout or version, or damaged at the front.
    refused_segments: int
    #: Segments that a crash left open, found when the tier was opened and cut to their last whole batch.
    torn_segments: int
    #: Syncs.
    syncs: int
    #: Pages forgotten because a sync of them failed.
    unsynced_pages: int


TierStats.COUNTERS = frozenset(TierStats.__slots__) - {
    "pages",
    "segments",
    "bytes",
    "capacity_bytes",
    "torn_segments",
}


class DiskTier:
    """A store of KV-cache pages in a directory: bounded, durable on request, and never wrong.

    Pages are appended to *segments*. Each lies behind a header with its key, its length, the fingerprint of its
    layout and a 128-bit check of its bytes; a page is delivered only if all of that fits. What does not fit (a
    flipped bit, a torn write, a file of another layout) is a miss and a figure in :meth:`stats`, never data.

    What is promised after a crash: no load delivers other bytes than were stored under that key; everything that was
    stored before a :meth:`flush` which returned is there, until it is evicted. Without a flush, pages survive the
    end of the process but not that of the machine.

    Several processes may share a directory. Each writes segments of its own, as a *writer* with a number, and reads
    those of all. A segment that another process evicts while it is read is a miss.

    Tiers may be shared by threads. After a fork the child's copy refuses to work: open a tier there.

    Parameters
    ----------
    path
        The directory; made if it is not there.
    capacity_bytes
        Most bytes of all segments in the directory, whoever writes them. At least two segments.
    page_bytes
        Bytes of every page, at most 1 GiB.
    fingerprint
        What the pages hold: bytes that are equal for all who may read each other's pages (model, layout, dtype),
        or a :class:`PageLayout`. A directory has one; another is refused.
    segment_bytes
        How much goes at once when room is needed; ``None`` for an eighth of the capacity, at most 256 MiB. All who
        share a directory should say the same.
    writer
        Which writer this is, 0 to 255; ``None`` for the first whose place is free.
    checksum
        ``"xxh3"``: as fast as memory, finds what devices and crashes do. ``"blake3"``: slower; nobody can make
        another page that fits a check.
    compression
        ``"zstd"`` or ``None``. A page that does not shrink is stored as it is; pages of both kinds are read.
    deadline
        Seconds that a :meth:`load` waits for the device; what is not there by then is a miss. ``None``
        waits for ever.
    write_deadline
        Seconds that a :meth:`store` waits for the device to take anything, and a :meth:`flush` until all is durable;
        then they raise ``storage.late``. Another thread writes then, which costs a fifth of a store's speed.
        ``None`` waits for ever.

    Raises
    ------
    IntegrityError
        The directory holds pages of another size, fingerprint, checksum or version.
    StorageError
        The directory cannot be used; the writer's place is taken (``storage.writer_in_use``).
    ArgumentError
        A path of no characters, a size that is out of range, an unknown checksum or compression.

    Notes
    -----
    Opening is linear in the number of pages (their headers are read), storing and loading in the bytes. In memory a
    page takes about 200 bytes. Eviction removes the segment that was used longest ago as a whole: pages are never
    moved, so a byte is written once.

    Source: M. Rosenblum and J. Ousterhout, "The design and implementation of a log-structured file system", 1992;
    XXH3 (``xxhash.com``); BLAKE3.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> keys = [b"first block", b"other block"]
    >>> pages = np.arange(2 * 4096, dtype=np.uint32).astype(np.uint8).reshape(2, 4096)
    >>> with DiskTier(folder.name, capacity_bytes=1 << 20, page_bytes=4096, fingerprint=b"my model") as tier:
    ...     stored = tier.store(keys, pages)
    ...     tier.flush()
    ...     out = np.zeros_like(pages)
    ...     found = tier.load(keys, out)
    >>> stored, found.tolist(), bool((out == pages).all())
    (2, [True, True], True)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        capacity_bytes: int,
        page_bytes: int,
        fingerprint: bytes | PageLayout,
        segment_bytes: int | None = None,
        writer: int | None = None,
        checksum: Checksum = "xxh3",
        compression: Literal["zstd"] | None = None,
        deadline: float | None = 5.0,
        write_deadline: float | None = None,
    ) -> None:
        if isinstance(fingerprint, PageLayout):
            fingerprint = fingerprint.fingerprint
        if not os.fspath(path):
            raise ArgumentError("an empty path came; name a directory", code="argument.tier_path")
        if compression not in {None, "zstd"}:
            message = f"compression={compression!r} came; allowed are 'zstd' and None"
            raise ArgumentError(message, code="argument.compression")
        self._page_bytes = page_bytes
        self._tier = _implementation.DiskTier(
            path,
            capacity_bytes=capacity_bytes,
            page_bytes=page_bytes,
            fingerprint=bytes(memoryview(fingerprint)),  # bytes() alone makes zeros of a number
            segment_bytes=segment_bytes,
            writer=writer,
            checksum=checksum,
            compression=compression,
            deadline=deadline,
            write_deadline=write_deadline,
        )

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._page_bytes

    @property
    def writer(self) -> int:
        """Which writer of the directory this is."""
        number: int = self._tier.writer()
        return number

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor | Sequence[Tensor]) -> int:
        """Store the pages whose keys are not there yet.

        A key stands for the content of its page, as a block hash does: one that is known is not written again.

        Parameters
        ----------
        keys
            uint8 of shape ``[n, key_bytes]``, or `n` ``bytes`` of one length, 1 to 64.
        pages
            Any dtype, shape ``[n, …]``: ``page_bytes`` bytes each, contiguous within a page. Strides between
            pages are free. Or a list of `n` contiguous pages, wherever each lies.

        Returns
        -------
        int
            How many pages were new. They can be loaded when this returns, and are durable after :meth:`flush`.

        Raises
        ------
        ShapeError
            Not one page of the right size for each key.
        StorageError
            The device is full (``storage.full``), fails (``storage.io``) or does not answer (``storage.late``), or
            everything else in the directory is being written (``storage.no_room``). What was stored before is intact;
            those of these pages that were not written are not there, or, if the device was late, may come yet.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> folder = tempfile.TemporaryDirectory()
        >>> tier = DiskTier(folder.name, capacity_bytes=1 << 20, page_bytes=8, fingerprint=b"")
        >>> tier.store([b"a", b"b"], np.zeros((2, 4), np.float16))
        2
        >>> tier.store([b"a", b"c"], np.zeros((2, 4), np.float16))
        1
        >>> tier.close()
        >>> folder.cleanup()
        """
        is_list = isinstance(pages, (list, tuple))
        stored: int = self._tier.store_apart(keys, pages) if is_list else self._tier.store(keys, pages)
        return stored

    def load(
        self,
        keys: Tensor | Sequence[bytes],
        out: Tensor | Sequence[Tensor],
        *,
        num_threads: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Load the pages that are there.

        Parameters
        ----------
        keys
            As for :meth:`store`.
        out
            Written: any dtype, shape ``[n, …]``, ``page_bytes`` bytes each, contiguous within a page; or a list of
            `n` contiguous pages, wherever each lies. The row of a page that is not delivered is left as it was, or
            is zeros: pages of more than 128 KiB are checked when parts of them are there already, and blanked if
            they turn out to be wrong.
        num_threads
            Threads that read; ``None`` for ``INFER_ACCEL_NUM_THREADS`` or all processors.

        Returns
        -------
        numpy.ndarray
            bool of shape ``[n]``: which pages were delivered.

        Raises
        ------
        ShapeError
            Not one row of the right size for each key.
        StorageError
            The tier is closed, or was opened before a fork. A device that fails or is late gives misses.
        KeyboardInterrupt
            Ctrl-C was pressed: some rows are written.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> folder = tempfile.TemporaryDirectory()
        >>> tier = DiskTier(folder.name, capacity_bytes=1 << 20, page_bytes=4, fingerprint=b"")
        >>> tier.store([b"a"], np.array([7], np.int32))
        1
        >>> out = np.zeros(2, np.int32)
        >>> tier.load([b"b", b"a"], out)
        array([False,  True])
        >>> out
        array([0, 7], dtype=int32)
        >>> tier.close()
        >>> folder.cleanup()
        """
        load = self._tier.load_apart if isinstance(out, (list, tuple)) else self._tier.load
        found: npt.NDArray[np.bool_] = load(keys, out, num_threads=num_threads)
        return found

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which pages this process knows to be there; asks no device.

        What another process stored is known after :meth:`refresh`, or after a load that missed.
        """
        found: npt.NDArray[np.bool_] = self._tier.contains(keys)
        return found

    def flush(self) -> None:
        """Return when all that was stored before this call is durable. Threads that call at once share a sync.

        Raises
        ------
        StorageError
            The device failed: the pages that may be lost are forgotten, so that a later flush that returns is true.
            Or it did not answer (``storage.late``): what was stored may be durable or not.
        """
        self._tier.flush()

    def refresh(self) -> None:
        """Look for what other processes have stored and removed. A load that misses does so by itself."""
        self._tier.refresh()

    def stats(self) -> TierStats:
        """Return what the tier holds and has done."""
        return TierStats(**dict(self._tier.stats()))

    def close(self) -> None:
        """Flush, and give the writer's place back. A second call does nothing; any other is a StorageError."""
        self._tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
