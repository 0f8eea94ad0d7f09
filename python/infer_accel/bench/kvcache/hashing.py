"""Rows of block hashes."""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import kvcache, reference
from infer_accel.bench.harness import Bench, Case, Contender, Floor, cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

__all__ = ["cases"]

_BLOCK_SIZE = 16


def cases(bench: Bench, ids: npt.NDArray[np.int32]) -> Iterator[Case]:
    """Yield a row for each algorithm, on the ids of one prompt."""
    tokens = ids.tolist()
    blocks = [tuple(tokens[at : at + _BLOCK_SIZE]) for at in range(0, len(tokens), _BLOCK_SIZE)]
    algorithms: tuple[kvcache.Algorithm, ...] = ("sha256_cbor", "sha256", "xxhash_cbor", "xxhash")
    for algorithm in algorithms:
        serialise, digest = _serialiser(bench, algorithm), _digest(bench, algorithm)
        if digest is None:
            continue
        # Named, because chains of xxhash begin at random.
        first = kvcache.none_hash(algorithm)
        oracle = reference.kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE, algorithm=algorithm, parent=first)

        def check(result: object, oracle: Bytes = oracle) -> None:
            got = b"".join(result) if isinstance(result, list) else result
            np.testing.assert_array_equal(np.frombuffer(got, np.uint8), oracle.ravel())  # type: ignore[call-overload]

        def ours(algorithm: kvcache.Algorithm = algorithm, first: bytes = first) -> object:
            hashes = kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE, algorithm=algorithm, parent=first)
            return hashes.reshape(-1)

        peers = []
        floor = None
        if serialise is not None:
            library = "hashlib" if algorithm.startswith("sha256") else "xxhash"
            name = "cbor2" if algorithm.endswith("_cbor") else "pickle"
            chain = _chain(serialise, digest, first, tokens)
            peers.append(Contender(f"vLLM ({library}+{name})", chain, check))
            if library == "hashlib":
                lengths = [len(serialise((first, block, None))) for block in blocks]
                hashed = 64 * sum(-(-(length + 9) // 64) for length in lengths)
                floor = Floor("SHA-256 rate", hashed / bench.limits.sha256_rate(streams=1))
        if (vllm := bench.rival("vllm")) is not None:
            run = _chain_of_vllm(algorithm, first, tokens)
            peers.append(Contender(f"vLLM {vllm.__version__}", run, check))
        yield Case(
            name=f"hash_blocks {algorithm}, {_BLOCK_SIZE}-token blocks",
            measure=cost("ns/block", 1e-9),
            work=len(blocks),
            ours=Contender("infer-accel", ours, check),
            peers=peers,
            floor=floor,
        )


def _serialiser(bench: Bench, algorithm: kvcache.Algorithm) -> Callable[[object], bytes] | None:
    if not algorithm.endswith("_cbor"):
        return lambda value: pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    cbor2 = bench.rival("cbor2")
    return None if cbor2 is None else lambda value: bytes(cbor2.dumps(value, canonical=True))


def _digest(bench: Bench, algorithm: kvcache.Algorithm) -> Callable[[bytes], bytes] | None:
    if algorithm.startswith("sha256"):
        return lambda message: hashlib.sha256(message).digest()
    xxhash = bench.rival("xxhash")
    return None if xxhash is None else xxhash.xxh3_128_digest


def _chain(
    serialise: Callable[[object], bytes], digest: Callable[[bytes], bytes], first: bytes, tokens: list[int]
) -> Callable[[], object]:
    """Return what vLLM's `hash_block_tokens` does for each block, without the calls around it."""

    def run() -> list[bytes]:
        last, hashes = first, []
        for at in range(0, len(tokens), _BLOCK_SIZE):
            last = digest(serialise((last, tuple(tokens[at : at + _BLOCK_SIZE]), None)))
            hashes.append(last)
        return hashes

    return run


def _chain_of_vllm(algorithm: kvcache.Algorithm, first: bytes, tokens: list[int]) -> Callable[[], object]:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)

    def run() -> list[bytes]:
        last, hashes = first, []
        for at in range(0, len(tokens), _BLOCK_SIZE):
            last = kv_cache_utils.hash_block_tokens(function, last, tokens[at : at + _BLOCK_SIZE], None)
            hashes.append(last)
        return hashes

    return run
