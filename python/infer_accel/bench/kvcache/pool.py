"""Rows of the block pool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import kvcache, reference
from infer_accel.bench.harness import Bench, Case, Contender, cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

__all__ = ["cases"]

_BLOCK_SIZE = 16
_POOL_BLOCKS = 20_000
_BATCH = 256


def cases(bench: Bench, hashes: Bytes) -> Iterator[Case]:
    """Yield the rows of the pool; `hashes` are those of a long prompt."""
    yield _alloc_and_free(bench)
    yield _lookup(bench, hashes)
    yield _match(bench, hashes)


def _alloc_and_free(bench: Bench) -> Case:
    # After the first batch the blocks that were freed last are lent out again, in this order.
    expected = list(range(1, _BATCH + 1))

    def cycle(pool: kvcache.BlockPool | reference.kvcache.BlockPool) -> Callable[[], object]:
        def run() -> object:
            handles = pool.alloc(_BATCH)
            pool.free(handles)
            return handles

        return run

    def check(result: object) -> None:
        np.testing.assert_array_equal(_ids(result), expected)

    peers = [Contender("Python reference", cycle(reference.kvcache.BlockPool(_POOL_BLOCKS)), check)]
    if (vllm := bench.rival("vllm")) is not None:
        from vllm.v1.core.block_pool import BlockPool

        theirs = BlockPool(_POOL_BLOCKS, enable_caching=True, hash_block_size=_BLOCK_SIZE)

        def run() -> object:
            blocks = theirs.get_new_blocks(_BATCH)
            theirs.free_blocks(blocks)
            return blocks

        def check_theirs(result: object) -> None:
            np.testing.assert_array_equal([block.block_id for block in result], expected)  # type: ignore[attr-defined]

        peers.append(Contender(f"vLLM {vllm.__version__}", run, check_theirs))
    return Case(
        name=f"BlockPool alloc + free, batch of {_BATCH}",
        measure=cost("ns/block", 1e-9),
        work=_BATCH,
        ours=Contender("infer-accel", cycle(kvcache.BlockPool(_POOL_BLOCKS)), check),
        peers=peers,
    )


def _lookup(bench: Bench, hashes: Bytes) -> Case:
    expected = list(range(1, len(hashes) + 1))

    def cycle(pool: kvcache.BlockPool | reference.kvcache.BlockPool) -> Callable[[], object]:
        filled = pool.alloc(len(hashes))
        pool.cache(filled, hashes)
        pool.free(filled[::-1])

        def run() -> object:
            handles = pool.lookup(hashes)
            pool.free(handles[::-1])
            return handles

        return run

    def check(result: object) -> None:
        np.testing.assert_array_equal(_ids(result), expected)

    peers = [Contender("Python reference", cycle(reference.kvcache.BlockPool(_POOL_BLOCKS)), check)]
    if (vllm := bench.rival("vllm")) is not None:
        peers.append(Contender(f"vLLM {vllm.__version__}", _lookup_of_vllm(hashes), check))
    return Case(
        name=f"BlockPool lookup + free, {len(hashes)} cached blocks",
        measure=cost("ns/block", 1e-9),
        work=len(hashes),
        ours=Contender("infer-accel", cycle(kvcache.BlockPool(_POOL_BLOCKS)), check),
        peers=peers,
    )


def _match(bench: Bench, hashes: Bytes) -> Case:
    """Build the row of a router's question: how long is the prefix that is cached? No block is taken."""
    expected = len(hashes)

    def filled(
        pool: kvcache.BlockPool | reference.kvcache.BlockPool,
    ) -> kvcache.BlockPool | reference.kvcache.BlockPool:
        blocks = pool.alloc(len(hashes))
        pool.cache(blocks, hashes)
        pool.free(blocks[::-1])
        return pool

    def check(length: object) -> None:
        np.testing.assert_equal(length, expected, "blocks that match")

    ours = filled(kvcache.BlockPool(_POOL_BLOCKS))
    plain = filled(reference.kvcache.BlockPool(_POOL_BLOCKS))
    peers = [Contender("Python reference", lambda: plain.cached_prefix(hashes), check)]
    if (dynamo := bench.rival("dynamo._core")) is not None:
        name = f"Dynamo {bench.rivals.version('dynamo._core')} RadixTree, 64-bit hashes"
        peers.append(Contender(name, _match_of_dynamo(dynamo, hashes), check))
    return Case(
        name=f"BlockPool match, {len(hashes)} cached blocks, hashes given",
        measure=cost("ns/block", 1e-9),
        work=len(hashes),
        ours=Contender("infer-accel", lambda: ours.cached_prefix(hashes), check),
        peers=peers,
    )


def _match_of_dynamo(dynamo: Any, hashes: Bytes) -> Callable[[], object]:  # noqa: ANN401 - the rival
    """Return its router's tree, which compares 64 bits of a hash, of one worker that holds all blocks."""
    words = (hashes[:, :8].copy().view(np.uint64)[:, 0] >> np.uint64(1)).tolist()
    stored = [{"block_hash": word, "tokens_hash": word} for word in words]
    event = {"event_id": 1, "dp_rank": 0, "data": {"stored": {"parent_hash": None, "blocks": stored}}}
    tree = dynamo.RadixTree()
    tree.apply_event(1, json.dumps(event).encode())

    return lambda: max(tree.find_matches(words).scores.values())


def _ids(handles: object) -> npt.NDArray[np.int64]:
    """Return the ids in handles; plain ids are their own."""
    return np.asarray(handles, np.int64) & 0xFFFF_FFFF


def _lookup_of_vllm(hashes: Bytes) -> Callable[[], object]:
    """Return the calls that vLLM makes for a prompt that hits fully: find each block, touch all, free all."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

    pool = BlockPool(_POOL_BLOCKS, enable_caching=True, hash_block_size=_BLOCK_SIZE)
    keys = [row.tobytes() for row in hashes]
    blocks = pool.get_new_blocks(len(keys))
    for key, block in zip(keys, blocks, strict=True):
        whole = make_block_hash_with_group_id(key, 0)
        pool._insert_block_hash(whole, block, num_tokens=None)  # noqa: SLF001 - what cache_full_blocks calls
    pool.free_blocks(reversed(blocks))

    def run() -> object:
        found = []
        for key in keys:
            if (block := pool.get_cached_block(key, [0])) is None:
                break
            found.extend(block)
        pool.touch(found)
        pool.free_blocks(reversed(found))
        return [block.block_id for block in found]

    return run
