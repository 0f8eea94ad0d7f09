"""Block hashes: a chain in which each full block of tokens is named by its whole prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from infer_accel import _backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor

#: How blocks are serialised and hashed, by vLLM's names.
Algorithm: TypeAlias = Literal["sha256_cbor", "sha256"]

#: A value in a block's extra keys.
ExtraKey: TypeAlias = "bool | int | str | bytes | Sequence[ExtraKey] | None"

_implementation = _backend.load("kvcache")


def hash_blocks(
    token_ids: Tensor | Sequence[int],
    *,
    block_size: int,
    algorithm: Algorithm = "sha256_cbor",
    parent: bytes | npt.NDArray[np.uint8] | None = None,
    extra_keys: Sequence[tuple[ExtraKey, ...] | None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Hash every full block of a prompt; each hash names the block and all that came before it.

    A block's hash is ``H((parent, tokens, extra_keys))``, where `parent` is the hash of the block before
    it. The hashes equal those of vLLM 0.33 byte for byte, so that both can share a cache.

    Parameters
    ----------
    token_ids
        Integers of shape ``[tokens]``, each from 0 to 2³²-1: array, tensor or list. Arrays of int32 and
        int64 are read fastest. Tokens behind the last full block are not hashed.
    block_size
        Tokens in a block, at least 1.
    algorithm
        ``"sha256_cbor"``: SHA-256 of canonical CBOR, the same in every language. ``"sha256"``: SHA-256 of
        Python's pickle, vLLM's former default; with `extra_keys` it is computed in Python, because then its
        bytes depend on which of the objects are one and the same.
    parent
        The 32 bytes of the hash before the first block: continues a chain. ``None`` begins one, with
        :func:`none_hash`.
    extra_keys
        For each full block ``None`` or a tuple of what else its content depends on: adapter, salt, image.
        Values are ``None``, bool, int (64 bits), str, bytes, and tuples of those.

    Returns
    -------
    numpy.ndarray
        uint8 of shape ``[tokens // block_size, 32]``.

    Raises
    ------
    IdError
        A token id is negative or above 2³²-1.
    ArgumentError
        Unknown algorithm, `block_size` below 1, a value that extra keys cannot hold.
    ShapeError
        `parent` is not 32 bytes long; `token_ids` has other than one dimension; `extra_keys` has not one
        entry for each full block.

    Notes
    -----
    Linear in the tokens: one chain takes two rounds of SHA-256 for 16 tokens, about 0.1 µs with SHA
    instructions. The interpreter's lock is released for prompts of more than about a thousand tokens.

    Source: vLLM's ``vllm/v1/core/kv_cache_utils.py`` and ``vllm/utils/hashing.py``; RFC 8949, section 4.2;
    FIPS 180-4.

    Examples
    --------
    >>> hashes = hash_blocks(range(35), block_size=16)
    >>> hashes.shape
    (2, 32)
    >>> continued = hash_blocks(range(16, 35), block_size=16, parent=hashes[0])
    >>> bool((continued[0] == hashes[1]).all())
    True
    """
    start = np.asarray(parent, np.uint8).tobytes() if isinstance(parent, np.ndarray) else parent
    implementation = _implementation
    if algorithm == "sha256" and extra_keys is not None and any(keys is not None for keys in extra_keys):
        from infer_accel._reference import kvcache as implementation  # noqa: PLC0415 - rarely needed
    hashes: npt.NDArray[np.uint8] = implementation.hash_blocks(
        token_ids, block_size=block_size, algorithm=algorithm, parent=start, extra_keys=extra_keys
    )
    return hashes


def none_hash(algorithm: Algorithm = "sha256_cbor") -> bytes:
    """Return the parent of a first block: vLLM's ``NONE_HASH``.

    Parameters
    ----------
    algorithm
        As for :func:`hash_blocks`.

    Returns
    -------
    bytes
        The hash of the value of ``PYTHONHASHSEED`` where that is set, and of ``"vllm-none-hash"`` where it
        is not.

    Raises
    ------
    ArgumentError
        Unknown algorithm, or a ``PYTHONHASHSEED`` that is no short text.

    Examples
    --------
    >>> len(none_hash())
    32
    """
    parent: bytes = _implementation.none_hash(algorithm)
    return parent
