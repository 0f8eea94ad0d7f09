"""The block pool by dictionaries."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference.kvcache.arguments import flat_of, rows_of
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


class BlockPool:
    """Blocks of a KV cache: lent out, counted, remembered by hash, evicted."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ArgumentError(f"{num_blocks} came as a count", code="argument.count")
        if not 2 <= num_blocks <= _MAX_BLOCKS:
            raise ArgumentError(f"num_blocks={num_blocks} came", code="argument.num_blocks")
        self._num_blocks = num_blocks
        self._free = OrderedDict.fromkeys(range(1, num_blocks))
        self._references = dict.fromkeys(range(num_blocks), 0)
        self._generations = dict.fromkeys(range(num_blocks), 0)
        self._hash_of: dict[int, bytes] = {}
        self._blocks_of: dict[bytes, dict[int, None]] = {}
        self._counts = {"allocations": 0, "evictions": 0, "queries": 0, "hits": 0}

    def alloc(self, count: int) -> npt.NDArray[np.int64]:
        """Lend `count` blocks and return their handles."""
        if count < 0:
            raise ArgumentError(f"{count} came as a count", code="argument.count")
        if count > len(self._free):
            message = f"{count} blocks are needed and {len(self._free)} are free"
            raise OutOfBlocksError(message, needed=count, free=len(self._free), code="out_of_blocks.all")
        ids = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in ids:
            self._references[block] = 1
            self._forget(block)
        self._counts["allocations"] += count
        return self._handles(ids)

    def retain(self, handles: Tensor | Sequence[int]) -> None:
        """Add a reference to each block."""
        ids: list[int] = []
        for handle in flat_of(handles):
            ids.append(self._live_one(handle))
            if self._references[ids[-1]] + ids.count(ids[-1]) > _MAX_REFERENCES:
                raise ArgumentError(f"block {ids[-1]} has too many references", code="argument.references")
        for block in filter(None, ids):
            self._references[block] += 1

    def free(self, handles: Tensor | Sequence[int]) -> None:
        """Take a reference from each block."""
        ids: list[int] = []
        for handle in flat_of(handles):
            ids.append(self._live_one(handle))
            if ids[-1] and ids.count(ids[-1]) > self._references[ids[-1]]:
                raise StaleBlockError(
                    f"block {ids[-1]} is freed more often than held", code="stale_block.handle"
                )
        without_hash: list[int] = []
        with_hash: list[int] = []
        for block in filter(None, ids):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._generations[block] = (self._generations[block] + 1) % (1 << 31)
                (with_hash if block in self._hash_of else without_hash).append(block)
        self._free.update(dict.fromkeys(with_hash))
        for block in reversed(without_hash):
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def ids(self, handles: Tensor | Sequence[int]) -> npt.NDArray[np.int32]:
        """Return the id of each block."""
        return np.array(self._live(handles), np.int32)

    def cache(self, handles: Tensor | Sequence[int], hashes: Tensor | Sequence[bytes]) -> int:
        """Remember what full blocks hold; return how many were new."""
        flat, rows = flat_of(handles), rows_of(hashes)
        if len(flat) != len(rows):
            raise ShapeError(f"{len(rows)} hashes came for {len(flat)} handles", code="shape.hash_count")
        new: dict[int, bytes] = {}
        for handle, row in zip(flat, rows, strict=True):
            block = self._live_one(handle)
            if block == 0:
                raise IdError("the null block is never cached", code="id.null_block")
            if self._hash_of.get(block, new.setdefault(block, row)) != row:
                raise ArgumentError(f"block {block} has another hash", code="argument.hash_conflict")
        new = {block: row for block, row in new.items() if block not in self._hash_of}
        for block, row in new.items():
            self._hash_of[block] = row
            self._blocks_of.setdefault(row, {})[block] = None
        return len(new)

    def lookup(self, hashes: Tensor | Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return handles of the longest run of leading hashes that are cached, each with a reference more."""
        rows = rows_of(hashes)
        ids = self._prefix(rows)
        for block in ids:
            self._free.pop(block, None)
            self._references[block] += 1
        self._counts["queries"] += len(rows)
        self._counts["hits"] += len(ids)
        return self._handles(ids)

    def cached_prefix(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Return how many leading hashes are cached."""
        return len(self._prefix(rows_of(hashes)))

    def stats(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Return blocks: in all, free, used, cached; so far: allocated, evicted, asked for, found."""
        used = self._num_blocks - 1 - len(self._free)
        counts = self._counts
        return (
            self._num_blocks,
            len(self._free),
            used,
            len(self._hash_of),
            counts["allocations"],
            counts["evictions"],
            counts["queries"],
            counts["hits"],
        )

    def check_invariants(self) -> None:
        """Prove that the books are right."""
        for block in range(1, self._num_blocks):
            if (block in self._free) != (self._references[block] == 0):
                raise InternalError(f"block {block} is lost", code="internal.invariant")
        indexed = {block: row for row, blocks in self._blocks_of.items() for block in blocks}
        if indexed != self._hash_of:
            raise InternalError("index and blocks disagree", code="internal.invariant")

    def _handles(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array([self._generations[block] << 32 | block for block in ids], np.int64)

    def _live(self, handles: Tensor | Sequence[int]) -> list[int]:
        return [self._live_one(handle) for handle in flat_of(handles)]

    def _live_one(self, handle: int) -> int:
        block, generation = handle & 0xFFFF_FFFF, handle >> 32
        if handle == 0:
            return 0
        if handle < 0 or block >= self._num_blocks:
            raise IdError(f"handle {handle} names block {block}", code="id.block")
        if self._references[block] == 0 or self._generations[block] != generation:
            raise StaleBlockError(f"handle {handle} is stale", code="stale_block.handle")
        return block

    def _prefix(self, rows: Iterable[bytes]) -> list[int]:
        ids = []
        for row in rows:
            if row not in self._blocks_of:
                break
            ids.append(next(iter(self._blocks_of[row])))
        return ids

    def _forget(self, block: int) -> None:
        row = self._hash_of.pop(block, None)
        if row is not None:
            self._counts["evictions"] += 1
            del self._blocks_of[row][block]
            if not self._blocks_of[row]:
                del self._blocks_of[row]
