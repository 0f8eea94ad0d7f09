"""Rows of the part kvcache: block hashes, block pool, page copies."""

from __future__ import annotations

import ctypes
import hashlib
import pickle
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import kvcache, reference
from infer_accel.bench.harness import Bench, Case, Contender, Floor, cost, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

__all__ = ["cases"]

_BLOCK_SIZE = 16
#: A prompt of 32k tokens.
_NUM_BLOCKS = 2048
#: Llama-3's vocabulary: a third of the ids take two bytes, the others three.
_VOCABULARY = 128_256
_POOL_BLOCKS = 20_000
_BATCH = 256


def cases(bench: Bench) -> Iterator[Case]:
    """Yield every row of this part."""
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, _NUM_BLOCKS * _BLOCK_SIZE, dtype=np.int32)
    yield from _hashing(bench, ids)
    yield _alloc_and_free(bench)
    yield _lookup(bench, kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE))
    sizes = [16 << 10, 64 << 10] if bench.quick else [4 << 10, 16 << 10, 64 << 10, 2 << 20]
    for page_bytes in sizes:
        for threads in (1, 2):
            yield _page_copy(bench, page_bytes, threads)


# --- Hashing -----------------------------------------------------------------------------------------------


def _hashing(bench: Bench, ids: npt.NDArray[np.int32]) -> Iterator[Case]:
    tokens = ids.tolist()
    blocks = [tuple(tokens[at : at + _BLOCK_SIZE]) for at in range(0, len(tokens), _BLOCK_SIZE)]
    algorithms: tuple[kvcache.Algorithm, ...] = ("sha256_cbor", "sha256")
    for algorithm in algorithms:
        serialise = _serialiser(bench, algorithm)
        oracle = reference.kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE, algorithm=algorithm)

        def check(result: object, oracle: Bytes = oracle) -> None:
            got = b"".join(result) if isinstance(result, list) else result
            np.testing.assert_array_equal(np.frombuffer(got, np.uint8), oracle.ravel())  # type: ignore[call-overload]

        def ours(algorithm: kvcache.Algorithm = algorithm) -> object:
            return kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE, algorithm=algorithm).reshape(-1)

        peers = []
        compressions = 2 * len(blocks)
        if serialise is not None:
            name = "cbor2" if algorithm == "sha256_cbor" else "pickle"
            first = kvcache.none_hash(algorithm)
            chain = _chain(serialise, first, tokens)
            peers.append(Contender(f"vLLM (hashlib+{name})", chain, check))
            lengths = [len(serialise((first, block, None))) for block in blocks]
            compressions = sum(-(-(length + 9) // 64) for length in lengths)
        if (vllm := bench.rival("vllm")) is not None:
            peers.append(Contender(f"vLLM {vllm.__version__}", _chain_of_vllm(algorithm, tokens), check))
        yield Case(
            name=f"hash_blocks {algorithm}, {_BLOCK_SIZE}-token blocks",
            measure=cost("ns/block", 1e-9),
            work=len(blocks),
            ours=Contender("infer-accel", ours, check),
            peers=peers,
            floor=Floor("SHA-256 rate", 64 * compressions / bench.limits.sha256_rate(streams=1)),
        )


def _serialiser(bench: Bench, algorithm: kvcache.Algorithm) -> Callable[[object], bytes] | None:
    if algorithm == "sha256":
        return lambda value: pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    cbor2 = bench.rival("cbor2")
    return None if cbor2 is None else lambda value: bytes(cbor2.dumps(value, canonical=True))


def _chain(serialise: Callable[[object], bytes], first: bytes, tokens: list[int]) -> Callable[[], object]:
    """Return what vLLM's `hash_block_tokens` does for each block, without the calls around it."""

    def run() -> list[bytes]:
        last, hashes = first, []
        for at in range(0, len(tokens), _BLOCK_SIZE):
            last = hashlib.sha256(serialise((last, tuple(tokens[at : at + _BLOCK_SIZE]), None))).digest()
            hashes.append(last)
        return hashes

    return run


def _chain_of_vllm(algorithm: kvcache.Algorithm, tokens: list[int]) -> Callable[[], object]:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)

    def run() -> list[bytes]:
        last, hashes = None, []
        for at in range(0, len(tokens), _BLOCK_SIZE):
            last = kv_cache_utils.hash_block_tokens(function, last, tokens[at : at + _BLOCK_SIZE], None)
            hashes.append(last)
        return hashes

    return run


# --- Block pool --------------------------------------------------------------------------------------------


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
        block.block_hash = whole
        pool.cached_block_hash_to_block.insert(whole, block)
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


# --- Pages -------------------------------------------------------------------------------------------------


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
