"""The block pool: lends cache blocks to requests and remembers what full blocks hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.kvcache._hash import Algorithm, none_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor

#: Handle and id of the null block, which stands for "no block" in tables.
NULL_BLOCK = 0

_EVICTIONS = ("lru",)

_implementation = _backend.load("kvcache")


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a :class:`BlockPool` holds, and what it has done since it was made."""

    #: Blocks in all, the null block counted.
    num_blocks: int
    #: Blocks that can be allocated, cached ones counted.
    free_blocks: int
    #: Blocks with a reference.
    used_blocks: int
    #: Blocks that a look-up can find.
    cached_blocks: int
    #: Blocks allocated so far.
    allocations: int
    #: Cached blocks that an allocation took so far.
    evictions: int
    #: Hashes that look-ups asked for so far.
    queries: int
    #: Hashes that look-ups found so far.
    hits: int


class BlockPool:
    """The blocks of a paged KV cache: lent to requests, counted, remembered by hash, evicted.

    Blocks are handed out in vLLM's order: first by id; a freed block that is not cached is the next to be
    lent out, a cached one the last, so that cached blocks are evicted least recently used first. Block 0 is
    the null block: never lent out, and retaining or freeing it does nothing.

    A block is named by a *handle*, ``generation << 32 | id``. The generation rises when a block comes back
    to the pool, so a handle that is used or freed after that is an error and never reaches somebody else's
    block.

    Each call does all that it was asked to, or raises and changes nothing. A pool may be shared by threads,
    and used after a fork (parent and child then have a copy each).

    Parameters
    ----------
    num_blocks
        Blocks in all, the null block counted: 2 to 2²⁷.
    block_size
        Tokens in a block. The pool itself does not count tokens; it is kept for those who share the pool.
    algorithm
        What makes the hashes that :meth:`cache` and :meth:`lookup` take: see :func:`hash_blocks`.
    eviction
        Which cached block goes first: ``"lru"``, the least recently used one.

    Raises
    ------
    ArgumentError
        A size out of range, an unknown algorithm or eviction.

    Notes
    -----
    Every call takes a few nanoseconds a block, and 68 bytes of memory a block are all that a pool ever has.

    Examples
    --------
    >>> from infer_accel.kvcache import hash_blocks
    >>> pool = BlockPool(8)
    >>> hashes = hash_blocks(range(48), block_size=16)
    >>> blocks = pool.alloc(3)
    >>> pool.ids(blocks)
    array([1, 2, 3], dtype=int32)
    >>> pool.cache(blocks, hashes)
    3
    >>> pool.free(blocks[::-1])  # last block first: the prefix is then evicted last
    >>> pool.ids(pool.lookup(hashes))
    array([1, 2, 3], dtype=int32)
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        block_size: int = 16,
        algorithm: Algorithm = "sha256_cbor",
        eviction: Literal["lru"] = "lru",
    ) -> None:
        if block_size < 1:
            message = f"block_size={block_size} came; a block holds 1 token or more"
            raise ArgumentError(message, code="argument.block_size")
        if eviction not in _EVICTIONS:
            message = f"eviction={eviction!r} came; allowed is 'lru'"
            raise ArgumentError(message, code="argument.eviction")
        none_hash(algorithm)
        self._pool = _implementation.BlockPool(num_blocks)
        self._block_size = block_size
        self._algorithm: Algorithm = algorithm

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._block_size

    @property
    def algorithm(self) -> Algorithm:
        """What makes the hashes that this pool is asked with."""
        return self._algorithm

    def alloc(self, count: int) -> npt.NDArray[np.int64]:
        """Lend blocks, each with one reference.

        Parameters
        ----------
        count
            How many, 0 allowed.

        Returns
        -------
        numpy.ndarray
            Handles, int64 of shape ``[count]``. Cached blocks among them are forgotten: their content is
            gone.

        Raises
        ------
        OutOfBlocksError
            Fewer are free; ``needed`` and ``free`` say how many. None was taken.
        ArgumentError
            `count` is negative.
        """
        handles: npt.NDArray[np.int64] = self._pool.alloc(count)
        return handles

    def retain(self, handles: Tensor | Sequence[int]) -> None:
        """Add a reference to each block, for one more request that uses it.

        Parameters
        ----------
        handles
            Integers of shape ``[n]``. A block that is named twice gets two references.

        Raises
        ------
        StaleBlockError
            A block was freed since its handle was made.
        IdError
            A handle is negative or of no block of this pool.
        """
        self._pool.retain(handles)

    def free(self, handles: Tensor | Sequence[int]) -> None:
        """Take a reference from each block; one without any can be lent out again.

        Parameters
        ----------
        handles
            Integers of shape ``[n]``, in the order of eviction: pass a sequence's blocks last one first, so
            that a prefix outlives what follows it.

        Raises
        ------
        StaleBlockError
            A block was freed already, or is named here more often than it has references. Nothing was freed.
        IdError
            A handle is negative or of no block of this pool.
        """
        self._pool.free(handles)

    def ids(self, handles: Tensor | Sequence[int]) -> npt.NDArray[np.int32]:
        """Return the plain ids of blocks: what block tables hold.

        Parameters
        ----------
        handles
            Integers of shape ``[n]``.

        Returns
        -------
        numpy.ndarray
            int32 of shape ``[n]``.

        Raises
        ------
        StaleBlockError, IdError
            As for :meth:`retain`.
        """
        ids: npt.NDArray[np.int32] = self._pool.ids(handles)
        return ids

    def cache(self, handles: Tensor | Sequence[int], hashes: Tensor | Sequence[bytes]) -> int:
        """Remember what full blocks hold, so that :meth:`lookup` finds them.

        Parameters
        ----------
        handles
            Blocks that are held, integers of shape ``[n]``.
        hashes
            Their hashes, uint8 of shape ``[n, 32]`` as :func:`hash_blocks` makes them, or a list of bytes.
            Where several blocks have one hash, all are remembered and the oldest is found.

        Returns
        -------
        int
            How many were new; a block that is cached under the same hash already is not.

        Raises
        ------
        ArgumentError
            A block is cached under another hash: a full block never changes.
        StaleBlockError, IdError
            As for :meth:`retain`; the null block is an IdError here.
        ShapeError
            Not one hash of 32 bytes for each handle.
        """
        new: int = self._pool.cache(handles, hashes)
        return new

    def lookup(self, hashes: Tensor | Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Find the longest cached prefix, and add a reference to each of its blocks.

        Parameters
        ----------
        hashes
            The chain of a prompt, uint8 of shape ``[n, 32]``, or a list of bytes.

        Returns
        -------
        numpy.ndarray
            Handles, int64 of shape ``[found]``, ``found <= n``: the blocks of the first `found` hashes. The
            caller frees them when done.

        Raises
        ------
        ShapeError
            The hashes are not 32 bytes each.
        """
        handles: npt.NDArray[np.int64] = self._pool.lookup(hashes)
        return handles

    def cached_prefix(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Return how many leading hashes are cached, without holding their blocks.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`.

        Returns
        -------
        int
            What :meth:`lookup` would find now; statistics are left alone.

        Raises
        ------
        ShapeError
            The hashes are not 32 bytes each.
        """
        found: int = self._pool.cached_prefix(hashes)
        return found

    def stats(self) -> PoolStats:
        """Return what the pool holds, and what it has done since it was made."""
        return PoolStats(*self._pool.stats())

    def check_invariants(self) -> None:
        """Prove that free list, references and index tell the same story; linear in the pool.

        Raises
        ------
        InternalError
            They do not, which is a defect of this package.
        """
        self._pool.check_invariants()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"BlockPool({stats.num_blocks}, block_size={self._block_size}, algorithm={self._algorithm!r}): "
            f"{stats.free_blocks} free, {stats.cached_blocks} cached"
        )
