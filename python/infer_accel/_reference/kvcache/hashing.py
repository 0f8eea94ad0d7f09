"""Block hashes by hashlib, pickle and a small CBOR writer."""

from __future__ import annotations

import hashlib
import os
import pickle
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from infer_accel._reference.kvcache.arguments import integers_of
from infer_accel.errors import ArgumentError, IdError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor


Key: TypeAlias = "bool | int | str | bytes | Sequence[Key] | None"

_DIGEST_BYTES = 32


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
    last = none_hash(algorithm) if parent is None else parent
    for position, value in enumerate(ids.tolist()):
        if not 0 <= value < 1 << 32:
            raise IdError(f"token id {value} came at position {position}", code="id.token")
    if block_size < 0:
        raise ArgumentError(f"{block_size} came as a count", code="argument.count")
    if block_size == 0:
        raise ArgumentError("block_size=0 came; a block holds 1 token or more", code="argument.block_size")
    if len(last) != _DIGEST_BYTES:
        raise ShapeError(f"a parent of {len(last)} bytes came, not {_DIGEST_BYTES}", code="shape.parent")
    num_blocks = len(ids) // block_size
    if extra_keys is not None and len(extra_keys) != num_blocks:
        message = f"{len(extra_keys)} extra_keys came for {num_blocks} full blocks"
        raise ShapeError(message, code="shape.extra_keys")
    hashes = np.empty((num_blocks, _DIGEST_BYTES), np.uint8)
    for block in range(num_blocks):
        tokens = tuple(ids[block * block_size : (block + 1) * block_size].tolist())
        keys = None if extra_keys is None else extra_keys[block]
        last = hashlib.sha256(_serialise(algorithm, (last, tokens, keys))).digest()
        hashes[block] = np.frombuffer(last, np.uint8)
    return hashes


def none_hash(algorithm: str = "sha256_cbor") -> bytes:
    """Return the parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``."""
    seed = os.environ.get("PYTHONHASHSEED", "vllm-none-hash")
    return hashlib.sha256(_serialise(algorithm, seed)).digest()


def _serialise(algorithm: str, value: Key) -> bytes:
    if algorithm == "sha256_cbor":
        return _cbor(value)
    if algorithm == "sha256":
        return pickle.dumps(value, protocol=5)
    message = f"algorithm={algorithm!r} came; allowed are 'sha256_cbor' and 'sha256'"
    raise ArgumentError(message, code="argument.algorithm")


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
