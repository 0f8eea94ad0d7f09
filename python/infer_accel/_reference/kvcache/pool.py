"""The block pool by dictionaries."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel._reference.kvcache.arguments import flat_of, rows_of
from infer_accel._reference.kvcache.events import EventLog
from infer_accel._reference.kvcache.hashing import digest_bytes_of, hash_blocks
from infer_accel.errors import (
    ArgumentError,
    IdError,
    InternalError,
    OutOfBlocksError,
    ShapeError,
    StaleBlockError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor

_MAX_BLOCKS = 1 << 27
_MAX_REFERENCES = (1 << 31) - 1
_MAX_PRIORITY, _DEFAULT_PRIORITY = 100, 50
_NEVER = (1 << 32) - 1

Found = tuple[bytes, int]


class BlockPool:
    """Blocks of a KV cache: lent out, counted, remembered by hash, evicted."""

    def __init__(
        self,
        num_blocks: int,
        *,
        algorithm: str = "sha256_cbor",
        eviction: str = "lru",
        pin_blocks: int = 0,
        event_bytes: int = 0,
    ) -> None:
        for count in (num_blocks, pin_blocks, event_bytes):
            if count < 0:
                raise ArgumentError(f"{count} came as a count", code="argument.count")
        self.digest_bytes = digest_bytes_of(algorithm)
        if eviction not in {"lru", "priority"}:
            raise ArgumentError(f"eviction={eviction!r} came", code="argument.eviction")
        if not 2 <= num_blocks <= _MAX_BLOCKS:
            raise ArgumentError(f"num_blocks={num_blocks} came", code="argument.num_blocks")
        self.algorithm = algorithm
        self.num_blocks = num_blocks
        self.log = EventLog(event_bytes) if event_bytes else None
        self._by_priority = eviction == "priority"
        #: The free blocks of each list, the next one first: list 0 of those that are not cached.
        self._free: dict[int, OrderedDict[int, None]] = {0: OrderedDict.fromkeys(range(1, num_blocks))}
        self.references = dict.fromkeys(range(num_blocks), 0)
        self._generations = dict.fromkeys(range(num_blocks), 0)
        self._hash_of: dict[int, Found] = {}
        self._blocks_of: dict[Found, dict[int, None]] = {}
        self._priorities: dict[int, int] = {}
        self._deadlines: dict[int, int] = {}
        self._pins: dict[int, int] = {}
        self._pin_blocks = min(pin_blocks, num_blocks)
        self._start: float | None = None
        self._now = 0
        self._counts = {"allocations": 0, "evictions": 0, "queries": 0, "hits": 0}

    # --- Calls by handle ---------------------------------------------------------------------------------

    def alloc(self, count: int) -> npt.NDArray[np.int64]:
        """Lend `count` blocks and return their handles."""
        if count < 0:
            raise ArgumentError(f"{count} came as a count", code="argument.count")
        if count > self.num_free():
            message = f"{count} blocks are needed and {self.num_free()} are free"
            raise OutOfBlocksError(message, needed=count, free=self.num_free(), code="out_of_blocks.all")
        return self._handles(self.take(count))

    def retain(self, handles: Tensor | Sequence[int]) -> None:
        """Add a reference to each block."""
        ids: list[int] = []
        for handle in flat_of(handles):
            ids.append(self._live_one(handle))
            if self.references[ids[-1]] + ids.count(ids[-1]) > _MAX_REFERENCES:
                raise ArgumentError(f"block {ids[-1]} has too many references", code="argument.references")
        for block in filter(None, ids):
            self.references[block] += 1

    def free(self, handles: Tensor | Sequence[int]) -> None:
        """Take a reference from each block."""
        ids: list[int] = []
        for handle in flat_of(handles):
            ids.append(self._live_one(handle))
            if ids[-1] and ids.count(ids[-1]) > self.references[ids[-1]]:
                raise StaleBlockError(
                    f"block {ids[-1]} is freed more often than held", code="stale_block.handle"
                )
        self.release(ids)

    def ids(self, handles: Tensor | Sequence[int]) -> npt.NDArray[np.int32]:
        """Return the id of each block."""
        return np.array([self._live_one(handle) for handle in flat_of(handles)], np.int32)

    def cache(
        self,
        handles: Tensor | Sequence[int],
        hashes: Tensor | Sequence[bytes],
        *,
        priority: int | None = None,
        seconds: float | None = None,
    ) -> int:
        """Remember what full blocks hold; return how many were new."""
        flat, rows = flat_of(handles), self._rows(hashes)
        if len(flat) != len(rows):
            raise ShapeError(f"{len(rows)} hashes came for {len(flat)} handles", code="shape.hash_count")
        until = self.checked_retention(priority, seconds)
        new: dict[int, bytes] = {}
        for handle, row in zip(flat, rows, strict=True):
            block = self._live_one(handle)
            if block == 0:
                raise IdError("the null block is never cached", code="id.null_block")
            known = self._hash_of.get(block, (new.setdefault(block, row), 0))[0]
            if known != row:
                raise ArgumentError(f"block {block} has another hash", code="argument.hash_conflict")
        before = len(self._hash_of)
        for handle, row in zip(flat, rows, strict=True):
            self.remember(handle & 0xFFFF_FFFF, row, 0, priority, until)
        count = len(self._hash_of) - before
        if self.log is not None and count:
            self.log.stored(rows)
        return count

    def lookup(self, hashes: Tensor | Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return handles of the longest run of leading hashes that are cached, each with a reference more."""
        rows = self._rows(hashes)
        ids = self._prefix(rows)
        for block in ids:
            self.reference(block)
        self.count_queries(len(rows), len(ids))
        return self._handles(ids)

    def cached_prefix(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Return how many leading hashes are cached."""
        return len(self._prefix(self._rows(hashes)))

    def peek(self, hashes: Tensor | Sequence[bytes]) -> tuple[npt.NDArray[np.int32], int]:
        """Return which blocks a look-up would find, and how many of them nobody holds."""
        ids = self._prefix(self._rows(hashes))
        return np.array(ids, np.int32), sum(self.references[block] == 0 for block in ids)

    def state_of(self, block_id: int) -> tuple[int, bytes | None]:
        """Return references and hash of a block."""
        if block_id < 0:
            raise ArgumentError(f"{block_id} came as a count", code="argument.count")
        if block_id >= self.num_blocks:
            raise IdError(f"there is no block {block_id}", code="id.block")
        found = self._hash_of.get(block_id)
        return self.references[block_id], None if found is None else found[0]

    def free_order(self) -> npt.NDArray[np.int32]:
        """Return the free blocks in the order in which they will be lent out."""
        return np.array([block for _, blocks in sorted(self._free.items()) for block in blocks], np.int32)

    def cached_blocks(
        self, token_ids: Tensor | Sequence[int], *, block_size: int, keys: Sequence[Any] | None = None
    ) -> int:
        """Return how many leading blocks of a prompt are cached."""
        ids = flat_of(token_ids, "shape.token_ids")
        num_blocks = len(ids) // max(block_size, 1)
        first, later = keys or (None, None)
        extra_keys = [first, *[later] * (num_blocks - 1)][:num_blocks]
        hashes = hash_blocks(ids, block_size=block_size, algorithm=self.algorithm, extra_keys=extra_keys)
        return self.cached_prefix(hashes)

    # --- Retention ---------------------------------------------------------------------------------------

    def pin(self, hashes: Tensor | Sequence[bytes], *, seconds: float | None = None) -> int:
        """Keep the longest cached prefix, within the budget; return its length."""
        rows = self._rows(hashes)
        until = self._deadline(seconds)
        ids = self._prefix(rows)
        new = [block for block in dict.fromkeys(ids) if block not in self._pins]
        left = self._pin_blocks - len(self._pins)
        if len(new) > left or any(self.references[block] >= _MAX_REFERENCES for block in new):
            message = f"{len(new)} more blocks are to be pinned and {left} may be"
            raise OutOfBlocksError(message, needed=len(new), free=left, code="out_of_blocks.pins")
        for block in ids:
            if block in self._pins:
                self._pins[block] = max(self._pins[block], until)
            else:
                self.reference(block)
                self._pins[block] = until
                self._deadlines[block] = _NEVER
        return len(ids)

    def unpin(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Take pins off; return how many."""
        before = len(self._pins)
        for row in reversed(self._rows(hashes)):
            pinned = [block for block in self._blocks_of.get((row, 0), ()) if block in self._pins]
            for block in pinned[:1]:
                self._unpin(block)
        return before - len(self._pins)

    def forget(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Forget the blocks of these hashes; return how many."""
        before = len(self._hash_of)
        for row in self._rows(hashes):
            for group in range(256):
                for block in list(self._blocks_of.get((row, group), ())):
                    self._unpin(block)
                    self._drop_hash(block)
                    if self.references[block] == 0:
                        self._unlist(block)
                        self._list(block, front=True)
        return before - len(self._hash_of)

    def reset(self) -> None:
        """Forget what every block holds."""
        for block in list(self._pins):
            self._unpin(block)
        joined = [block for number in sorted(self._free) for block in self._free[number]]
        self._free = {0: OrderedDict.fromkeys(joined)}
        self._hash_of.clear()
        self._blocks_of.clear()
        if self.log is not None:
            self.log.cleared()

    def advance(self, seconds: float) -> None:
        """Tell the pool the time."""
        start = seconds if self._start is None else self._start
        ticks = (seconds - start) * 10
        if not math.isfinite(ticks) or not self._now <= ticks < _NEVER:
            raise ArgumentError(f"the time {seconds} came", code="argument.time")
        self._start, self._now = start, int(ticks)
        for block in [block for block, until in self._pins.items() if self._now >= until]:
            self._unpin(block)

    def checked_retention(self, priority: int | None, seconds: float | None) -> int:
        """Return the tick until which blocks are remembered."""
        if priority is not None:
            if priority < 0:
                raise ArgumentError(f"{priority} came as a count", code="argument.count")
            if not self._by_priority or priority > _MAX_PRIORITY:
                raise ArgumentError(f"priority={priority} came", code="argument.priority")
        return self._deadline(seconds)

    def _deadline(self, seconds: float | None) -> int:
        if seconds is None:
            return _NEVER
        if not math.isfinite(seconds) or seconds <= 0:
            raise ArgumentError(f"{seconds} seconds came", code="argument.seconds")
        return min(self._now + math.ceil(seconds * 10), _NEVER)

    def _unpin(self, block: int) -> None:
        if self._pins.pop(block, None) is not None:
            self.release([block])

    # --- Events and statistics ---------------------------------------------------------------------------

    def drain_events(self) -> list[tuple[Any, ...]]:
        """Return the events since the last drain, as tuples."""
        return [] if self.log is None else self.log.drain()

    def drain_events_msgpack(self, timestamp: float, rank: int | None, hashes: str) -> bytes:
        """Return the events since the last drain as bytes."""
        return (self.log or EventLog(0)).drain_msgpack(timestamp, rank, hashes)

    def event_counts(self) -> tuple[int, int]:
        """Return the events that wait, and those given up."""
        return (0, 0) if self.log is None else (len(self.log.events), self.log.lost)

    def stats(self) -> tuple[int, ...]:
        """Return blocks: in all, free, used, cached, pinned; so far: allocated, evicted, asked for, found."""
        free = self.num_free()
        used = self.num_blocks - 1 - free
        return (
            self.num_blocks,
            free,
            used,
            len(self._hash_of),
            len(self._pins),
            *self._counts.values(),
        )

    def check_invariants(self) -> None:
        """Prove that the books are right."""
        listed = [block for blocks in self._free.values() for block in blocks]
        for block in range(1, self.num_blocks):
            if listed.count(block) != (self.references[block] == 0):
                raise InternalError(f"block {block} is lost", code="internal.invariant")
            if self.references[block] == 0 and block not in self._free[self._list_of(block)]:
                raise InternalError(f"block {block} is in another list", code="internal.invariant")
        indexed = {block: found for found, blocks in self._blocks_of.items() for block in blocks}
        if indexed != self._hash_of:
            raise InternalError("index and blocks disagree", code="internal.invariant")
        for block in self._pins:
            if block not in self._hash_of or not self.references[block]:
                raise InternalError(f"block {block} is badly pinned", code="internal.invariant")

    # --- What the manager uses too -----------------------------------------------------------------------

    def num_free(self) -> int:
        """Return how many blocks can be allocated."""
        return sum(map(len, self._free.values()))

    def take(self, count: int) -> list[int]:
        """Take blocks; there are as many."""
        ids = []
        for _ in range(count):
            number = min(number for number, blocks in self._free.items() if blocks)
            block = self._free[number].popitem(last=False)[0]
            ids.append(block)
            self.references[block] = 1
            if block in self._hash_of:
                self._counts["evictions"] += 1
                self._drop_hash(block)
        self._counts["allocations"] += count
        return ids

    def release(self, ids: Sequence[int]) -> None:
        """Take a reference from each block, and list those that have none left."""
        uncached: list[int] = []
        for block in filter(None, ids):
            self.references[block] -= 1
            if self.references[block] == 0:
                self._generations[block] = (self._generations[block] + 1) % (1 << 31)
                if block in self._hash_of:
                    self._list(block)
                else:
                    uncached.append(block)
        for block in reversed(uncached):
            self._list(block, front=True)

    def reference(self, block: int) -> None:
        """Add a reference to a block that may be free."""
        if self.references[block] == 0:
            self._unlist(block)
        self.references[block] += 1

    def remember(self, block: int, row: bytes, group: int, priority: int | None, until: int) -> None:
        """Remember what a block holds, or renew its retention."""
        if block not in self._hash_of:
            self._hash_of[block] = (row, group)
            self._blocks_of.setdefault((row, group), {})[block] = None
        self._priorities[block] = _DEFAULT_PRIORITY if priority is None else priority
        if block not in self._pins:
            self._deadlines[block] = until

    def find(self, row: bytes, group: int) -> int | None:
        """Return the block that a look-up of this hash finds."""
        blocks = self._blocks_of.get((row, group), ())
        return next((block for block in blocks if self._now < self._deadlines[block]), None)

    def generation(self, block: int) -> int:
        """Return how often a block has come back."""
        return self._generations[block]

    def count_queries(self, queries: int, hits: int) -> None:
        """Count a look-up."""
        self._counts["queries"] += queries
        self._counts["hits"] += hits

    def _list_of(self, block: int) -> int:
        if block not in self._hash_of:
            return 0
        return 1 + self._priorities[block] if self._by_priority else 1

    def _list(self, block: int, *, front: bool = False) -> None:
        blocks = self._free.setdefault(self._list_of(block), OrderedDict())
        blocks[block] = None
        blocks.move_to_end(block, last=not front)

    def _unlist(self, block: int) -> None:
        for blocks in self._free.values():
            blocks.pop(block, None)

    def _drop_hash(self, block: int) -> None:
        row, group = found = self._hash_of.pop(block)
        del self._blocks_of[found][block]
        if not self._blocks_of[found]:
            del self._blocks_of[found]
        if self.log is not None:
            self.log.removed(row, group)

    def _handles(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array([self._generations[block] << 32 | block for block in ids], np.int64)

    def _live_one(self, handle: int) -> int:
        block, generation = handle & 0xFFFF_FFFF, handle >> 32
        if handle == 0:
            return 0
        if handle < 0 or block >= self.num_blocks:
            raise IdError(f"handle {handle} names block {block}", code="id.block")
        if self.references[block] == 0 or self._generations[block] != generation:
            raise StaleBlockError(f"handle {handle} is stale", code="stale_block.handle")
        return block

    def _prefix(self, rows: Iterable[bytes]) -> list[int]:
        ids = []
        for row in rows:
            block = self.find(row, 0)
            if block is None:
                break
            ids.append(block)
        return ids

    def _rows(self, hashes: Tensor | Sequence[bytes]) -> list[bytes]:
        return rows_of(hashes, self.digest_bytes)
