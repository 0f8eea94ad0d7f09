"""Block hashes by hashlib, pickle and a small CBOR writer."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import secrets
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from infer_accel._reference.kvcache.arguments import integers_of
from infer_accel.errors import ArgumentError, BackendError, IdError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor


Key: TypeAlias = "bool | int | str | bytes | Sequence[Key] | None"

#: Serialisation, digest and bytes of a digest by the algorithm's name.
_ALGORITHMS = {
    "sha256_cbor": ("cbor", "sha256", 32),
    "sha256": ("pickle", "sha256", 32),
    "xxhash_cbor": ("cbor", "xxhash", 16),
    "xxhash": ("pickle", "xxhash", 16),
}
#: Chains that can be forged begin at a text that nobody outside this process knows.
_RANDOM_SEED = secrets.token_hex(32)


def hash_blocks(
    token_ids: Tensor | Sequence[int],
    *,
    block_size: int,
    algorithm: str = "sha256_cbor",
    parent: bytes | None = None,
    extra_keys: Sequence[tuple[Key, ...] | None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Hash every full block of `token_ids`, as a chain that begins at `parent`."""
    ids = integers_of(token_ids, "dtype.ids")
    if ids.ndim != 1:
        raise ShapeError(f"token_ids of shape {ids.shape} came; pass one dimension", code="shape.token_ids")
    first = none_hash(algorithm)
    last = first if parent is None else parent
    for position, value in enumerate(ids.tolist()):
        if not 0 <= value < 1 << 32:
            raise IdError(f"token id {value} came at position {position}", code="id.token")
    if block_size < 0:
        raise ArgumentError(f"{block_size} came as a count", code="argument.count")
    if block_size == 0:
        raise ArgumentError("block_size=0 came; a block holds 1 token or more", code="argument.block_size")
    digest_bytes = _ALGORITHMS[algorithm][2]
    if len(last) != digest_bytes:
        raise ShapeError(f"a parent of {len(last)} bytes came, not {digest_bytes}", code="shape.parent")
    num_blocks = len(ids) // block_size
    if extra_keys is not None and len(extra_keys) != num_blocks:
        message = f"{len(extra_keys)} extra_keys came for {num_blocks} full blocks"
        raise ShapeError(message, code="shape.extra_keys")
    hashes = np.empty((num_blocks, digest_bytes), np.uint8)
    for block in range(num_blocks):
        tokens = tuple(ids[block * block_size : (block + 1) * block_size].tolist())
        keys = None if extra_keys is None else extra_keys[block]
        last = _digest(algorithm, (last, tokens, keys))
        hashes[block] = np.frombuffer(last, np.uint8)
    return hashes


def none_hash(algorithm: str = "sha256_cbor") -> bytes:
    """Return the parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``."""
    digest_bytes_of(algorithm)
    unseeded = "vllm-none-hash" if _ALGORITHMS[algorithm][1] == "sha256" else _RANDOM_SEED
    return _digest(algorithm, os.environ.get("PYTHONHASHSEED", unseeded))


def digest_bytes_of(algorithm: str) -> int:
    """Return the bytes of a digest."""
    if algorithm not in _ALGORITHMS:
        message = f"algorithm={algorithm!r} came; allowed are {', '.join(_ALGORITHMS)}"
        raise ArgumentError(message, code="argument.algorithm")
    return _ALGORITHMS[algorithm][2]


def xxh3_128(message: bytes) -> bytes:
    """Return 128 bits of XXH3: by the package `xxhash`, or else by the native core."""
    for module, function in (("xxhash", "xxh3_128_digest"), ("infer_accel._native.kvcache", "xxh3_128")):
        try:
            digest: bytes = getattr(importlib.import_module(module), function)(message)
        except ImportError:
            continue
        return digest
    message_text = "the specification computes XXH3 by the package xxhash: pip install xxhash"
    raise BackendError(message_text, code="backend.missing")


def _digest(algorithm: str, value: Key) -> bytes:
    serialisation, function, _ = _ALGORITHMS[algorithm]
    try:
        message = _cbor(value) if serialisation == "cbor" else pickle.dumps(value, protocol=5)
    except RecursionError as error:
        message_text = "extra keys are nested too deeply; flatten them"
        raise ArgumentError(message_text, code="argument.extra_keys_depth") from error
    return hashlib.sha256(message).digest() if function == "sha256" else xxh3_128(message)


def _cbor(value: Key) -> bytes:
    """Return canonical CBOR (RFC 8949, section 4.2)."""
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return _cbor_head(3, len(text)) + text
    if isinstance(value, tuple | list):
        return _cbor_head(4, len(value)) + b"".join(map(_cbor, value))
    raise ArgumentError(f"{value!r} came in extra_keys", code="argument.extra_keys")


def _cbor_head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for tag, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * width:
            return bytes([major << 5 | tag]) + argument.to_bytes(width, "big")
    raise ArgumentError("an integer beyond 64 bits came in extra_keys", code="argument.extra_keys_integer")
