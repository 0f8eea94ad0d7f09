"""Blocks as vLLM knows them: objects that say what the pool's books say, and runs of them that are arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import KVCacheBlock

if TYPE_CHECKING:
    import numpy.typing as npt

    from infer_accel.integrations._vllm_blocks.pool import PooledBlocks

#: Room that a table has at first; it is doubled when it is full.
_ROOM = 16


class BlockView(KVCacheBlock):
    """One block: its number, and what the pool says of it now.

    vLLM's own class keeps references, hash and neighbours in the object. Here they are looked up, so that no object
    has to be touched when a thousand blocks change hands; one is made when somebody asks for it.
    """

    __slots__ = ()

    def __init__(self, block_id: int, pool: PooledBlocks) -> None:
        # The places are those of vLLM's class.
        self.block_id = block_id  # type: ignore[misc]
        self.pool = pool  # type: ignore[misc]
        self.is_null = block_id == 0  # type: ignore[misc]

    @property
    def ref_cnt(self) -> int:
        """References; the null block has none."""
        return self.pool.references(self.block_id)

    @property
    def _block_hash(self) -> bytes | None:
        return self.pool.hash_of(self.block_id)

    @property
    def _block_hash_num_tokens(self) -> None:
        """What only caches of several groups ask for."""
        return

    @property
    def prev_free_block(self) -> Any:
        """The one that is lent out before it, if it is free."""
        return self.pool.free_block_queue.neighbour(self.block_id, -1)

    @property
    def next_free_block(self) -> Any:
        """The one that is lent out after it, if it is free."""
        return self.pool.free_block_queue.neighbour(self.block_id, +1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockView) and (self.block_id, self.pool) == (other.block_id, other.pool)

    def __hash__(self) -> int:
        return hash(self.block_id)

    def __repr__(self) -> str:
        return f"BlockView({self.block_id}, ref_cnt={self.ref_cnt}, block_hash={self._block_hash!r})"


class BlockRun(Sequence[BlockView]):
    """Blocks in a row: a list to vLLM, and an array of ids to us. It grows at its end, as a request's table does."""

    __slots__ = ("_ids", "_length", "pool", "rows")

    def __init__(
        self,
        pool: PooledBlocks,
        ids: npt.NDArray[np.int32] | None = None,
        rows: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.pool = pool
        self._ids = np.empty(_ROOM, np.int32) if ids is None else ids
        self._length = 0 if ids is None else len(ids)
        #: Of blocks that were found, and that nobody holds yet: their hashes.
        self.rows = rows

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The ids, as a view."""
        return self._ids[: self._length]

    def extend(self, more: Iterable[Any]) -> None:
        """Add blocks at the end."""
        ids = ids_of(more)
        begin, end = self._length, self._length + len(ids)
        if end > len(self._ids):
            grown = np.empty(max(end, 2 * len(self._ids)), np.int32)
            grown[:begin] = self.ids
            self._ids = grown
        self._ids[begin:end] = ids
        self._length = end

    @overload
    def __getitem__(self, at: int) -> BlockView: ...
    @overload
    def __getitem__(self, at: slice) -> BlockRun: ...
    def __getitem__(self, at: int | slice) -> BlockView | BlockRun:
        if isinstance(at, slice):
            rows = None if self.rows is None else self.rows[at]
            return BlockRun(self.pool, self.ids[at], rows)
        return self.pool.view(int(self.ids[at]))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BlockView]:
        return map(self.pool.view, self.ids.tolist())

    def __reversed__(self) -> BlockRun:  # type: ignore[override]
        return self[::-1]

    def __radd__(self, before: list[Any]) -> Any:
        """Stand behind ``[] +``: vLLM puts copied blocks in front of new ones, and there are none here."""
        return [*before, *self] if before else self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (BlockRun, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def ids_of(blocks: Iterable[Any]) -> npt.NDArray[np.int32]:
    """Return the ids of blocks, of a run or one by one."""
    if isinstance(blocks, BlockRun):
        return blocks.ids
    return np.fromiter((block.block_id for block in blocks), np.int32)


@dataclass
class RunBlocks(KVCacheBlocks):
    """vLLM's result of an allocation, whose ids are read at once."""

    def get_block_ids(
        self, allow_none: bool = False, *, group_ids: Sequence[int] | None = None
    ) -> tuple[list[int], ...] | None:
        """Return the ids of each group."""
        groups = self.blocks if group_ids is None else tuple(self.blocks[number] for number in group_ids)
        if allow_none and not any(groups):
            return None
        return tuple(ids_of(group).tolist() for group in groups)


class FreeOrder:
    """Free blocks in the order in which they are lent out: what tests and tools read of vLLM's own queue."""

    def __init__(self, pool: PooledBlocks) -> None:
        self._pool = pool
        self.fake_free_list_head = _End(self, +1)
        self.fake_free_list_tail = _End(self, -1)

    @property
    def num_free_blocks(self) -> int:
        """How many there are."""
        return self._pool.get_num_free_blocks()

    def get_all_free_blocks(self) -> list[BlockView]:
        """Return all of them; linear in the pool."""
        return [self._pool.view(number) for number in self._pool.free_ids()]

    def neighbour(self, block_id: int, step: int) -> Any:
        """Return the block before or behind a free one, an end of the list, or None for one that is not free."""
        order = self._pool.free_ids()
        if block_id not in order:
            return None
        place = order.index(block_id) + step
        if place < 0:
            return self.fake_free_list_head
        return self._pool.view(order[place]) if place < len(order) else self.fake_free_list_tail

    def end(self, step: int) -> Any:
        """Return the first block (+1) or the last one (-1); the other end where no block is free."""
        order = self._pool.free_ids()
        if not order:
            return self.fake_free_list_tail if step > 0 else self.fake_free_list_head
        return self._pool.view(order[0 if step > 0 else -1])


class _End:
    """An end of the list, which is no block."""

    def __init__(self, order: FreeOrder, step: int) -> None:
        self._order, self._step = order, step

    @property
    def next_free_block(self) -> Any:
        return self._order.end(+1) if self._step > 0 else None

    @property
    def prev_free_block(self) -> Any:
        return self._order.end(-1) if self._step < 0 else None
