"""The block manager: whole batches of sequences on a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from infer_accel import _backend
from infer_accel.kvcache._event_source import EventSource
from infer_accel.kvcache._hash import prompt_keys
from infer_accel.kvcache._stats import ManagerStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.kvcache._hash import ExtraKey
    from infer_accel.kvcache._pool import BlockPool

_implementation = _backend.load("kvcache")


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that look at the same earlier tokens.

    Parameters
    ----------
    window
        How many tokens see each other, the current one counted; ``None`` for all of them.

    Examples
    --------
    >>> CacheGroup(window=4096).window
    4096
    """

    window: int | None = None


class Admission(NamedTuple):
    """A prompt that runs."""

    #: Its handle.
    sequence: int
    #: Its leading tokens that are cached and need not be computed.
    cached_tokens: int
    #: Its tokens that have blocks now.
    num_tokens: int


class BlockManager(EventSource):
    """Sequences on a :class:`BlockPool`: what is cached of a prompt, tables, slots, forks.

    A sequence is admitted with its prompt; each :meth:`step` then appends tokens to the whole batch. A block
    that fills up is hashed and found by later prompts. Forks share every block until one of them writes.
    Released blocks stay cached until the pool needs them.

    Each call does all that it was asked to, or raises and changes nothing. A manager may be shared by threads,
    and used after a fork of the process (parent and child then have a copy each).

    Parameters
    ----------
    pool
        Where the blocks come from; several managers may share one.
    groups
        The model's cache groups: by default one of full attention. Each has tables of its own, of blocks of the
        same size from the same pool; a prefix is cached where all groups can go on from it.
    scrub
        Whether :meth:`take_scrubs` names blocks that were lent before, so that nothing that was left in them,
        a NaN for one, reaches another request.
    watermark
        Share of the pool that admissions leave free while other sequences run, from 0 to less than 1. Steps may
        use it: so fewer sequences have to be preempted.

    Raises
    ------
    ArgumentError
        Groups or a watermark that cannot be.

    Notes
    -----
    Linear in the tokens that come and the blocks that change; sequences that end leave their memory to those
    that begin.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_accel.kvcache import BlockPool
    >>> manager = BlockManager(BlockPool(64, block_size=4))
    >>> first = manager.admit(range(10))
    >>> manager.step([first.sequence], [99])  # nothing has to be copied
    array([], shape=(0, 2), dtype=int64)
    >>> tables, slots = np.zeros((1, 4), np.int32), np.zeros(1, np.int64)
    >>> manager.block_tables([first.sequence], out=tables)
    >>> manager.slot_mapping([first.sequence], out=slots)
    1
    >>> tables, slots
    (array([[1, 2, 3, 0]], dtype=int32), array([14]))
    >>> manager.admit(range(10)).cached_tokens
    8
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        groups: Sequence[CacheGroup] = (CacheGroup(),),
        scrub: bool = False,
        watermark: float = 0.0,
    ) -> None:
        windows = [group.window for group in groups]
        self._pool = pool
        self._native_pool = pool.native
        self._groups = tuple(groups)
        self._manager = _implementation.BlockManager(
            self._native_pool, block_size=pool.block_size, groups=windows, scrub=scrub, watermark=watermark
        )

    @property
    def pool(self) -> BlockPool:
        """Where the blocks come from."""
        return self._pool

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The cache groups."""
        return self._groups

    def admit(
        self,
        token_ids: Tensor | Sequence[int],
        *,
        salt: str | None = None,
        adapter: tuple[str, str] | None = None,
        extra_keys: Sequence[tuple[ExtraKey, ...] | None] | None = None,
        hashes: Tensor | Sequence[bytes] | None = None,
        limit: int | None = None,
        priority: int | None = None,
        seconds: float | None = None,
    ) -> Admission:
        """Admit a prompt: find what is cached of it, and take blocks for the rest.

        Parameters
        ----------
        token_ids
            As for :func:`hash_blocks`. The last token is never among the cached ones: its result is where the
            next token comes from.
        salt, adapter
            As for :func:`hash_prompt`.
        extra_keys
            As for :func:`hash_blocks`, instead of `salt` (images, embeddings); blocks behind the prompt get the
            `adapter` alone.
        hashes
            The hashes of the full blocks, where they are known already: uint8 of shape ``[n, digest]``.
        limit
            Most tokens beyond the cached ones that get blocks now (a chunk of the prompt); the others are passed
            to :meth:`step`.
        priority, seconds
            As for :meth:`BlockPool.cache`, for all blocks of the sequence.

        Returns
        -------
        Admission
            Handle, cached tokens, tokens that have blocks.

        Raises
        ------
        OutOfBlocksError
            Too few blocks are free: ``needed`` (the cached blocks that are free now and the watermark counted)
            and ``free``. Nothing was taken.
        ArgumentError
            Keys for an algorithm of pickle, a priority or time that cannot be.
        IdError, ShapeError, DTypeError
            As for :func:`hash_blocks`.
        """
        admitted = self._manager.admit(
            token_ids,
            hashes=hashes,
            extra_keys=extra_keys,
            prompt_keys=prompt_keys(salt, adapter),
            limit=limit,
            priority=priority,
            seconds=seconds,
        )
        return Admission(*admitted)

    def step(
        self,
        sequences: Tensor | Sequence[int],
        token_ids: Tensor | Sequence[int],
        counts: Tensor | Sequence[int] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Append tokens to the whole batch.

        What came before is computed by now: blocks that a window has left behind come back to the pool first.

        Parameters
        ----------
        sequences
            Handles, integers of shape ``[n]``, each once.
        token_ids
            The new tokens, one after the other.
        counts
            How many of them each sequence gets; ``None`` for one each.

        Returns
        -------
        numpy.ndarray
            Pairs of blocks, int64 of shape ``[copies, 2]``: copy these pages (:func:`page_copy` takes them as
            they are) before the step is computed. A fork has written into a block that others share.

        Raises
        ------
        OutOfBlocksError
            Too few blocks are free; nothing was appended to any sequence.
        IdError
            A sequence does not run, or is named twice; or a token is outside 32 bits.
        ShapeError
            Counts, sequences and tokens do not fit each other.
        """
        copies: npt.NDArray[np.int64] = self._manager.step(sequences, token_ids, counts)
        return copies

    def fork(self, sequence: int, count: int = 1) -> npt.NDArray[np.int64]:
        """Return sequences that share all blocks of this one, the last one too, and go on by themselves.

        Parameters
        ----------
        sequence
            Which one; it goes on as well.
        count
            How many.

        Returns
        -------
        numpy.ndarray
            Handles, int64 of shape ``[count]``.

        Raises
        ------
        IdError
            The sequence does not run.

        Examples
        --------
        >>> from infer_accel.kvcache import BlockPool
        >>> manager = BlockManager(BlockPool(64, block_size=4))
        >>> parent = manager.admit(range(6)).sequence
        >>> (child,) = manager.fork(parent)
        >>> manager.step([child], [7])
        array([[2, 3]])
        """
        forks: npt.NDArray[np.int64] = self._manager.fork(sequence, count)
        return forks

    def release(self, sequences: Tensor | Sequence[int]) -> None:
        """End sequences. Their full blocks stay cached, and are evicted last ones first.

        Parameters
        ----------
        sequences
            Handles, integers of shape ``[n]``, each once.

        Raises
        ------
        IdError
            A sequence does not run, or is named twice; none was released.
        """
        self._manager.release(sequences)

    def block_tables(self, sequences: Tensor | Sequence[int], out: Tensor, *, group: int = 0) -> None:
        """Write the block ids of sequences.

        Parameters
        ----------
        sequences
            Handles, integers of shape ``[n]``.
        out
            int32 or int64 of shape ``[n or more, width]``, contiguous in its rows. A row is written as a whole:
            the ids, then 0 (the null block), which also stands for blocks that a window has left behind.
        group
            Which cache group.

        Raises
        ------
        ShapeError
            `out` is too small; nothing was written.
        IdError, ArgumentError, DTypeError, LayoutError, ReadOnlyError, DeviceError
            A sequence that does not run, an unknown group, a target that cannot be.
        """
        self._manager.block_tables(sequences, out, group=group)

    def slot_mapping(self, sequences: Tensor | Sequence[int], out: Tensor, *, group: int = 0) -> int:
        """Write where the tokens go that the last :meth:`admit` or :meth:`step` added to each sequence.

        Parameters
        ----------
        sequences
            Handles, integers of shape ``[n]``.
        out
            int32 or int64 of one dimension, contiguous: ``block * block_size + offset`` of each token, sequence
            by sequence, then -1.
        group
            Which cache group.

        Returns
        -------
        int
            How many slots there are.

        Raises
        ------
        ShapeError
            `out` is too small; nothing was written.
        IdError, ArgumentError, DTypeError, LayoutError, ReadOnlyError, DeviceError
            As for :meth:`block_tables`.
        """
        count: int = self._manager.slot_mapping(sequences, out, group=group)
        return count

    def num_tokens(self, sequences: Tensor | Sequence[int]) -> npt.NDArray[np.int64]:
        """Return how many tokens each sequence has.

        Parameters
        ----------
        sequences
            Handles, integers of shape ``[n]``.

        Returns
        -------
        numpy.ndarray
            int64 of shape ``[n]``.

        Raises
        ------
        IdError
            A sequence does not run.
        """
        tokens: npt.NDArray[np.int64] = self._manager.num_tokens(sequences)
        return tokens

    def take_scrubs(self) -> npt.NDArray[np.int64]:
        """Return the blocks that were taken since the last call and had been lent before.

        Returns
        -------
        numpy.ndarray
            Ids, int64 of shape ``[n]``: write zeros to these pages before the pages of the same step are copied
            and computed. Empty where the manager was made without `scrub`.
        """
        blocks: npt.NDArray[np.int64] = self._manager.take_scrubs()
        return blocks

    def stats(self) -> ManagerStats:
        """Return what the manager holds, and what it has done since it was made."""
        return ManagerStats(*self._manager.stats())

    def check_invariants(self) -> None:
        """Prove that tables, references and the pool tell the same story; linear in both.

        Raises
        ------
        InternalError
            They do not, which is a defect of this package, or of a caller who freed what was never lent to them.
        """
        self._manager.check_invariants()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"BlockManager({self._pool!r}): {stats.sequences} sequences, {stats.tokens} tokens"
