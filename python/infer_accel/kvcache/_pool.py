"""The block pool: lends cache blocks to requests and remembers what full blocks hold."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Literal

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.kvcache._event_source import EventSource
from infer_accel.kvcache._hash import prompt_keys
from infer_accel.kvcache._retention import Retention
from infer_accel.kvcache._stats import PoolStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.kvcache._hash import Algorithm

#: Handle and id of the null block, which stands for "no block" in tables.
NULL_BLOCK = 0

#: As for hashes.
_MAX_BLOCK_SIZE = 2**24

_implementation = _backend.load("kvcache")


class BlockPool(Retention, EventSource):
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
        Which cached block goes first: ``"lru"``, the least recently used one; ``"priority"``, the one of the
        lowest priority, and among equals the least recently used one.
    pin_blocks
        Most blocks that may be pinned at a time; 0 for none.
    event_bytes
        Bytes of events that are kept until they are drained; 0 for no events. Beyond, the log forgets what it
        holds and says "all cleared" instead.

    Raises
    ------
    ArgumentError
        A size out of range, an unknown algorithm or eviction.

    Notes
    -----
    Every call takes a few nanoseconds a block, and about 90 bytes of memory a block are all that a pool ever
    has, but for events and for the tokens of cached blocks: 32 bytes and 4 a token (at least 64) from the first
    :meth:`cached_blocks` or :meth:`BlockManager.admit` on, 32 more once blocks have extra keys.

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
        eviction: Literal["lru", "priority"] = "lru",
        pin_blocks: int = 0,
        event_bytes: int = 0,
    ) -> None:
        block_size = index(block_size)
        if not 1 <= block_size <= _MAX_BLOCK_SIZE:
            message = f"block_size={block_size} came; a block holds 1 to {_MAX_BLOCK_SIZE} tokens"
            raise ArgumentError(message, code="argument.block_size")
        self._native_pool = _implementation.BlockPool(
            num_blocks,
            algorithm=algorithm,
            eviction=eviction,
            pin_blocks=pin_blocks,
            event_bytes=event_bytes,
        )
        self._block_size = block_size
        self._algorithm: Algorithm = algorithm
        self._keeps_events = event_bytes > 0

    @property
    def native(self) -> object:
        """The object of the native core, for other classes of this package."""
        return self._native_pool

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._block_size

    @property
    def algorithm(self) -> Algorithm:
        """What makes the hashes that this pool is asked with."""
        return self._algorithm

    @property
    def keeps_events(self) -> bool:
        """Whether this pool was made with `event_bytes`."""
        return self._keeps_events

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
        handles: npt.NDArray[np.int64] = self._native_pool.alloc(count)
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
        self._native_pool.retain(handles)

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
        self._native_pool.free(handles)

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
        ids: npt.NDArray[np.int32] = self._native_pool.ids(handles)
        return ids

    def cache(
        self,
        handles: Tensor | Sequence[int],
        hashes: Tensor | Sequence[bytes],
        *,
        priority: int | None = None,
        seconds: float | None = None,
    ) -> int:
        """Remember what full blocks hold, so that :meth:`lookup` finds them.

        Parameters
        ----------
        handles
            Blocks that are held, integers of shape ``[n]``.
        hashes
            Their hashes, uint8 of shape ``[n, digest]`` as :func:`hash_blocks` makes them, or a list of bytes.
            Where several blocks have one hash, all are remembered and the oldest is found.
        priority
            For a pool that evicts by priority: 0 to 100, 50 where it is left out.
        seconds
            After which the blocks are not found any more, by the time that :meth:`advance` tells; ``None`` for
            no limit. Caching a block again renews it.

        Returns
        -------
        int
            How many were new; a block that is cached under the same hash already is not.

        Raises
        ------
        ArgumentError
            A block is cached under another hash: a full block never changes. Or a priority or time that
            cannot be.
        StaleBlockError, IdError
            As for :meth:`retain`; the null block is an IdError here.
        ShapeError
            Not one hash of the digest's length for each handle.
        """
        new: int = self._native_pool.cache(handles, hashes, priority=priority, seconds=seconds)
        return new

    def lookup(self, hashes: Tensor | Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Find the longest cached prefix, and add a reference to each of its blocks.

        Parameters
        ----------
        hashes
            The chain of a prompt, uint8 of shape ``[n, digest]``, or a list of bytes.

        Returns
        -------
        numpy.ndarray
            Handles, int64 of shape ``[found]``, ``found <= n``: the blocks of the first `found` hashes. The
            caller frees them when done.

        Raises
        ------
        ShapeError
            The hashes have not the digest's length.
        """
        handles: npt.NDArray[np.int64] = self._native_pool.lookup(hashes)
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
            The hashes have not the digest's length.
        """
        found: int = self._native_pool.cached_prefix(hashes)
        return found

    def peek(self, hashes: Tensor | Sequence[bytes]) -> tuple[npt.NDArray[np.int32], int]:
        """Return which blocks :meth:`lookup` would find now, and how many of them nobody holds.

        Whoever decides whether a request fits has to know both before anything is taken: a block that nobody holds
        is among the free ones, and a look-up takes it from there.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`.

        Returns
        -------
        numpy.ndarray
            Ids, int32 of shape ``[found]``. They stay right until the pool is called again.
        int
            Blocks among them that have no reference.

        Raises
        ------
        ShapeError
            The hashes have not the digest's length.

        Examples
        --------
        >>> from infer_accel.kvcache import hash_blocks
        >>> pool, hashes = BlockPool(8), hash_blocks(range(48), block_size=16)
        >>> blocks = pool.alloc(3)
        >>> pool.cache(blocks, hashes)
        3
        >>> pool.free(blocks[2:])
        >>> pool.peek(hashes)
        (array([1, 2, 3], dtype=int32), 1)
        """
        ids, idle = self._native_pool.peek(hashes)
        return ids, idle

    def state_of(self, block_id: int) -> tuple[int, bytes | None]:
        """Return how many references a block has, and its hash if it is cached.

        Parameters
        ----------
        block_id
            A plain id, 0 to `num_blocks` - 1.

        Returns
        -------
        tuple
            References, and the hash or None.

        Raises
        ------
        IdError
            There is no such block.
        """
        references, block_hash = self._native_pool.state_of(block_id)
        return references, block_hash

    def free_order(self) -> npt.NDArray[np.int32]:
        """Return the ids of all free blocks in the order in which they will be lent out; linear in the pool.

        Returns
        -------
        numpy.ndarray
            int32 of shape ``[free]``.

        Examples
        --------
        >>> pool = BlockPool(5)
        >>> pool.free(pool.alloc(2))
        >>> pool.free_order()
        array([1, 2, 3, 4], dtype=int32)
        """
        order: npt.NDArray[np.int32] = self._native_pool.free_order()
        return order

    def cached_blocks(
        self,
        token_ids: Tensor | Sequence[int],
        *,
        salt: str | None = None,
        adapter: tuple[str, str] | None = None,
    ) -> int:
        """Return how many leading blocks of a prompt are cached.

        The pool keeps what cached blocks hold: where it knows what follows, tokens are compared, and where it does
        not, one block is hashed. So a prompt that was seen before takes about 15 ns a block, and no prompt is hashed
        further than its first block that is not cached.

        Parameters
        ----------
        token_ids
            As for :func:`hash_blocks`.
        salt, adapter
            As for :func:`hash_prompt`.

        Returns
        -------
        int
            What :meth:`cached_prefix` says for the hashes of the prompt; statistics are left alone.

        Raises
        ------
        IdError, ShapeError, DTypeError
            As for :func:`hash_blocks`.
        ArgumentError
            `salt` or `adapter` came for an algorithm of pickle.

        Examples
        --------
        >>> from infer_accel.kvcache import hash_blocks
        >>> pool = BlockPool(8)
        >>> pool.cache(pool.alloc(3), hash_blocks(range(48), block_size=16))
        3
        >>> pool.cached_blocks(range(40)), pool.cached_blocks([0, *range(40)])
        (2, 0)
        """
        keys = prompt_keys(salt, adapter)
        if keys != (None, None) and self._algorithm in {"sha256", "xxhash"}:
            message = f"salt or adapter came for {self._algorithm}; use sha256_cbor or xxhash_cbor"
            raise ArgumentError(message, code="argument.extra_keys_pickle")
        found: int = self._native_pool.cached_blocks(token_ids, block_size=self._block_size, keys=keys)
        return found

    def stats(self) -> PoolStats:
        """Return what the pool holds, and what it has done since it was made."""
        return PoolStats(*self._native_pool.stats())

    def check_invariants(self) -> None:
        """Prove that free list, references and index tell the same story; linear in the pool.

        Raises
        ------
        InternalError
            They do not, which is a defect of this package.
        """
        self._native_pool.check_invariants()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"BlockPool({stats.num_blocks}, block_size={self._block_size}, algorithm={self._algorithm!r}): "
            f"{stats.free_blocks} free, {stats.cached_blocks} cached"
        )
