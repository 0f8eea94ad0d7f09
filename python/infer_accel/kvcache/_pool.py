"""The block pool: lends cache blocks to requests and remembers what full blocks hold."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.kvcache._events import event_of
from infer_accel.kvcache._hash import prompt_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.kvcache._events import Event
    from infer_accel.kvcache._hash import Algorithm

#: Handle and id of the null block, which stands for "no block" in tables.
NULL_BLOCK = 0

_implementation = _backend.load("kvcache")


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a :class:`BlockPool` holds, and what it has done since it was made."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]] = frozenset({"allocations", "evictions", "queries", "hits"})

    #: Blocks in all, the null block counted.
    num_blocks: int
    #: Blocks that can be allocated, cached ones counted.
    free_blocks: int
    #: Blocks with a reference.
    used_blocks: int
    #: Blocks that a look-up can find.
    cached_blocks: int
    #: Blocks that are pinned.
    pinned_blocks: int
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
    has, but for events.

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
        if block_size < 1:
            message = f"block_size={block_size} came; a block holds 1 token or more"
            raise ArgumentError(message, code="argument.block_size")
        self._pool = _implementation.BlockPool(
            num_blocks,
            algorithm=algorithm,
            eviction=eviction,
            pin_blocks=pin_blocks,
            event_bytes=event_bytes,
        )
        self._block_size = block_size
        self._algorithm: Algorithm = algorithm

    @property
    def native(self) -> object:
        """The object of the native core, for other classes of this package."""
        return self._pool

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
        new: int = self._pool.cache(handles, hashes, priority=priority, seconds=seconds)
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
            The hashes have not the digest's length.
        """
        found: int = self._pool.cached_prefix(hashes)
        return found

    def cached_blocks(
        self,
        token_ids: Tensor | Sequence[int],
        *,
        salt: str | None = None,
        adapter: tuple[str, str] | None = None,
    ) -> int:
        """Return how many leading blocks of a prompt are cached: hashing and look-up in one.

        Hashes a few blocks ahead of the first that is not cached, and no further.

        Parameters
        ----------
        token_ids
            As for :func:`hash_blocks`.
        salt, adapter
            As for :func:`hash_prompt`.

        Returns
        -------
        int
            What :meth:`cached_prefix` says for the hashes of the prompt.

        Raises
        ------
        IdError, ShapeError, DTypeError
            As for :func:`hash_blocks`.
        ArgumentError
            `salt` or `adapter` came for an algorithm of pickle.
        """
        keys = prompt_keys(salt, adapter)
        if keys != (None, None) and self._algorithm in {"sha256", "xxhash"}:
            message = f"salt or adapter came for {self._algorithm}; use sha256_cbor or xxhash_cbor"
            raise ArgumentError(message, code="argument.extra_keys_pickle")
        found: int = self._pool.cached_blocks(token_ids, block_size=self._block_size, keys=keys)
        return found

    def pin(self, hashes: Tensor | Sequence[bytes], *, seconds: float | None = None) -> int:
        """Keep the longest cached prefix, whatever else is needed.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`.
        seconds
            How long, by the time that :meth:`advance` tells; ``None`` until :meth:`unpin`. A block that is
            pinned already is kept until the later of both ends.

        Returns
        -------
        int
            Blocks of the prefix: those of the first hashes.

        Raises
        ------
        OutOfBlocksError
            More blocks would be pinned than `pin_blocks` allows; none was. ``needed`` and ``free`` say how many.
        ArgumentError
            `seconds` is not above 0.

        Examples
        --------
        >>> from infer_accel.kvcache import hash_blocks
        >>> pool = BlockPool(4, pin_blocks=2)
        >>> hashes = hash_blocks(range(32), block_size=16)
        >>> blocks = pool.alloc(2)
        >>> pool.cache(blocks, hashes)
        2
        >>> pool.free(blocks)
        >>> pool.pin(hashes, seconds=60)
        2
        >>> pool.stats().free_blocks
        1
        """
        pinned: int = self._pool.pin(hashes, seconds=seconds)
        return pinned

    def unpin(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Take the pins of these blocks off; return how many there were.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`; those that are not pinned are passed over.

        Returns
        -------
        int
            Blocks that may be evicted again.
        """
        taken: int = self._pool.unpin(hashes)
        return taken

    def forget(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Forget what these blocks hold: it was lost, or must not be used again.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`. Blocks that are lent out stay so, and are found no more.

        Returns
        -------
        int
            Blocks that were forgotten, in all cache groups.
        """
        forgotten: int = self._pool.forget(hashes)
        return forgotten

    def reset(self) -> None:
        """Forget what every block holds and unpin everything: the model has changed.

        Blocks that are lent out stay so, and are found no more.
        """
        self._pool.reset()

    def advance(self, seconds: float) -> None:
        """Tell the pool the time: it has no clock of its own.

        Parameters
        ----------
        seconds
            From any beginning, such as ``time.monotonic()``, in tenths. Pins whose time is over are taken off.
            Without a call nothing ever runs out.

        Raises
        ------
        ArgumentError
            The time goes back.
        """
        self._pool.advance(float(seconds))

    def drain_events(self) -> list[Event]:
        """Return what was stored and removed since the last drain, the oldest first.

        Returns
        -------
        list
            :class:`BlockStored`, :class:`BlockRemoved`, :class:`AllBlocksCleared`; always empty where the pool
            was made without `event_bytes`.

        Examples
        --------
        >>> pool = BlockPool(4, event_bytes=1 << 20)
        >>> pool.cache(pool.alloc(1), [bytes(32)])
        1
        >>> [type(event).__name__ for event in pool.drain_events()]
        ['BlockStored']
        """
        return [event_of(fields) for fields in self._pool.drain_events()]

    def drain_events_msgpack(
        self,
        *,
        timestamp: float | None = None,
        data_parallel_rank: int | None = None,
        hashes: Literal["integer", "bytes"] = "integer",
    ) -> bytes:
        """Return the same as vLLM publishes it: MessagePack of an ``EventBatch``.

        Parameters
        ----------
        timestamp
            Seconds since 1970; ``None`` for now.
        data_parallel_rank
            Of this server, if there are several.
        hashes
            How hashes are written: the last eight bytes as an integer (vLLM's default), or all bytes.

        Returns
        -------
        bytes
            What ``msgspec.msgpack.Decoder(type=KVEventBatch)`` of a subscriber reads.

        Raises
        ------
        ArgumentError
            Another form of `hashes`.
        """
        now = time.time() if timestamp is None else timestamp
        batch: bytes = self._pool.drain_events_msgpack(now, data_parallel_rank, hashes)
        return batch

    @property
    def lost_events(self) -> int:
        """Events that were given up because nobody drained them in time."""
        lost: int = self._pool.event_counts()[1]
        return lost

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
