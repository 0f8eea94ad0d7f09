"""vLLM's block pool, kept by :class:`infer_accel.kvcache.BlockPool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import get_block_hash, make_block_hash_with_group_id

from infer_accel.integrations._vllm_blocks.blocks import BlockRun, BlockView, FreeOrder, ids_of
from infer_accel.kvcache import BlockPool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    from vllm.v1.request import Request

_log = init_logger("vllm.infer_accel")

#: Bytes of a hash in our pool; a shorter digest is filled up with zeros.
_DIGEST = 32
_NOT_SERVED = (
    "infer-accel's block pool has no {}: it serves one group of full attention; "
    "unset INFER_ACCEL_VLLM_BLOCK_POOL"
)


class PooledBlocks:
    """What vLLM's managers and schedulers call of a ``BlockPool``, for one group of caches and whole blocks.

    Parameters
    ----------
    num_gpu_blocks
        Blocks in all, the null block counted.
    hash_block_size
        Tokens of a block.
    """

    enable_caching = True
    enable_kv_cache_events = False
    metrics_collector = None

    def __init__(self, num_gpu_blocks: int, hash_block_size: int) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.hash_block_size = hash_block_size
        self.num_hash_lookahead_tokens = 0
        self._pool = BlockPool(num_gpu_blocks, block_size=hash_block_size, algorithm="sha256")
        self._native: Any = self._pool.native
        #: The handle of each block that is held.
        self._handles = np.zeros(num_gpu_blocks, np.int64)
        self._views: dict[int, BlockView] = {}
        self._digest = _DIGEST
        self._free = num_gpu_blocks - 1
        self.free_block_queue = FreeOrder(self)
        self.null_block = self.view(0)
        self.blocks = BlockRun(self, np.arange(num_gpu_blocks, dtype=np.int32))
        self.cached_block_hash_to_block = _Cached(self)
        #: Second names of a block, which only caches of several groups give.
        self.cached_block_hashes_by_block: dict[int, set[bytes]] = {}
        self.kv_event_queue: list[Any] = []

    # What is asked of a block.

    def view(self, block_id: int) -> BlockView:
        """Return a block as vLLM knows it; always the same object."""
        found = self._views.get(block_id)
        if found is None:
            found = self._views[block_id] = BlockView(block_id, self)
        return found

    def references(self, block_id: int) -> int:
        """Return how many hold a block."""
        return self._pool.state_of(block_id)[0]

    def hash_of(self, block_id: int) -> bytes | None:
        """Return the hash of a cached block, with its group, as vLLM writes it."""
        found = self._pool.state_of(block_id)[1]
        return None if found is None else make_block_hash_with_group_id(found[: self._digest], 0)

    def free_ids(self) -> list[int]:
        """Return the free blocks in the order in which they are lent out; linear in the pool."""
        order: list[int] = self._pool.free_order().tolist()
        return order

    # Look-ups.

    def find(self, hashes: Sequence[bytes], most: int) -> BlockRun:
        """Return the longest run of leading hashes that are cached; nothing is held by that."""
        if most <= 0 or not hashes or not len(self._native.peek(self._rows(hashes[:1]))[0]):
            return BlockRun(self)
        rows = self._rows(hashes[:most])
        ids, _ = self._native.peek(rows)
        return BlockRun(self, ids, rows[: len(ids)])

    def idle(self, run: Sequence[Any]) -> int:
        """Return how many blocks of a run nobody holds."""
        if isinstance(run, BlockRun) and run.rows is not None:
            return int(self._native.peek(run.rows)[1])
        return sum(block.ref_cnt == 0 and not block.is_null for block in run)

    def get_cached_block(self, block_hash: bytes, kv_cache_group_ids: list[int]) -> list[BlockView] | None:
        """Return the block of a hash, or None."""
        if kv_cache_group_ids != [0]:
            return None
        return list(self.find([block_hash], 1)) or None

    # What changes hands.

    def get_new_blocks(self, num_blocks: int) -> BlockRun:
        """Lend blocks; cached ones among them are forgotten."""
        if num_blocks > self._free:
            message = f"Cannot get {num_blocks} free blocks from the pool"
            raise ValueError(message)
        handles = self._native.alloc(num_blocks)
        ids = handles.astype(np.int32)  # the lower half of a handle is the id
        self._handles[ids] = handles
        self._free -= num_blocks
        return BlockRun(self, ids)

    def touch(self, blocks: Sequence[Any]) -> None:
        """Hold blocks once more, or those that a look-up has found."""
        if not isinstance(blocks, BlockRun) or blocks.rows is None:
            for block in blocks:
                self._touch_one(block)
        elif len(blocks):
            handles = self._native.lookup(blocks.rows)
            ids = handles.astype(np.int32)
            if not np.array_equal(ids, blocks.ids):
                message = "blocks were taken between a look-up and its use"
                raise RuntimeError(message)
            self._handles[ids] = handles
        self._free = self._pool.stats().free_blocks

    def _touch_one(self, block: BlockView) -> None:
        if block.is_null:
            return
        references, block_hash = self._pool.state_of(block.block_id)
        if references:
            self._native.retain(self._handles[block.block_id : block.block_id + 1])
            return
        handles = self._native.lookup([] if block_hash is None else [block_hash])
        if handles.astype(np.int32).tolist() != [block.block_id]:
            self._native.free(handles)
            message = f"block {block.block_id} is free and not the one that its hash finds"
            raise RuntimeError(message)
        self._handles[block.block_id] = handles[0]

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None:
        """Take a reference from each; those without any can be lent out again, in this order."""
        self._native.free(self._handles[ids_of(ordered_blocks)])
        self._free = self._pool.stats().free_blocks

    # What blocks hold.

    def cache_full_blocks(
        self,
        request: Request,
        blocks: Sequence[Any],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        """Remember what blocks of a request hold."""
        if num_cached_blocks >= num_full_blocks:
            return
        if block_mask is not None or kv_cache_group_id != 0 or block_size != self.hash_block_size:
            raise NotImplementedError(_NOT_SERVED.format("groups"))
        rows = self._rows(request.block_hashes[num_cached_blocks:num_full_blocks])
        ids = ids_of(blocks[num_cached_blocks:num_full_blocks])
        self._native.cache(self._handles[ids], rows)

    def evict_blocks(self, block_ids: set[int]) -> None:
        """Forget what blocks hold: it was lost. All blocks of the same content are forgotten with them."""
        states = [self._pool.state_of(number)[1] for number in block_ids]
        self._pool.forget([found for found in states if found is not None])

    def reset_prefix_cache(self) -> bool:
        """Forget what all blocks hold, if nobody holds one."""
        used = self.num_gpu_blocks - 1 - self._free
        if used:
            _log.warning("Failed to reset prefix cache because some blocks (%d) are not freed yet", used)
            return False
        self._pool.reset()
        _log.info("Successfully reset prefix cache")
        return True

    # Figures.

    def get_num_free_blocks(self) -> int:
        """Return how many blocks can be lent out."""
        return self._free

    def get_usage(self) -> float:
        """Return the part of the blocks that is held."""
        return 1.0 - self._free / (self.num_gpu_blocks - 1)

    def num_cached(self) -> int:
        """Return how many blocks a look-up can find."""
        return self._pool.stats().cached_blocks

    def take_events(self) -> list[Any]:
        """Return no events: where they are wanted, vLLM's own pool is used."""
        return []

    def is_block_writable(self, block: BlockView) -> bool:
        """Return whether a block has one holder and is not cached."""
        references, block_hash = self._pool.state_of(block.block_id)
        return not block.is_null and references == 1 and block_hash is None

    def unpin_blocks(self, *_: object) -> None:
        """Refuse what only other kinds of cache ask for."""
        raise NotImplementedError(_NOT_SERVED.format("blocks that are read after their release"))

    def check(self) -> None:
        """Prove that the books are right."""
        self._pool.check_invariants()
        if self._free != self._pool.stats().free_blocks:
            message = f"{self._free} blocks are counted as free and {self._pool.stats().free_blocks} are"
            raise RuntimeError(message)

    def _rows(self, hashes: Sequence[bytes]) -> npt.NDArray[np.uint8]:
        self._digest = len(hashes[0])
        if self._digest != _DIGEST:
            hashes = [one.ljust(_DIGEST, b"\0") for one in hashes]
        return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, _DIGEST)


class _Cached:
    """The index, as far as it is asked by name."""

    def __init__(self, pool: PooledBlocks) -> None:
        self._pool = pool

    def get_one_block(self, key: bytes) -> BlockView | None:
        found = self._pool.get_cached_block(get_block_hash(key), [0])
        return found[0] if found else None

    def __len__(self) -> int:
        return self._pool.num_cached()
