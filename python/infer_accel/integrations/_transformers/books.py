"""Which blocks a batch's requests have, and where their tokens lie: a block manager under names of requests.

Nothing here knows transformers: what it asks for one request after the other is kept until the batch stands, and then
done by one call for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infer_accel.errors import ArgumentError
from infer_accel.kvcache import BlockManager, BlockPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class Portion(NamedTuple):
    """What a batch computes of a request."""

    #: The request.
    name: str
    #: Its new tokens.
    token_ids: Sequence[int]
    #: Its tokens before those.
    past: int


@dataclass(frozen=True)
class Geometry:
    """How blocks lie in the engine's memory: token `t` of block `b` in row ``(b + first_block) * stride + t``.

    Parameters
    ----------
    num_blocks
        Blocks that can be lent.
    block_size
        Tokens in a block.
    stride
        Rows from one block to the next.
    first_block
        Blocks before the first that can be lent.
    spare_row
        Where may be written what nobody reads.
    """

    num_blocks: int
    block_size: int
    stride: int
    first_block: int
    spare_row: int


@dataclass
class _Sequence:
    handle: int
    tokens: int
    #: Whether its last block may be shared with another one that is not full either.
    forked: bool = False
    #: Whether what its blocks should hold is being computed.
    running: bool = False
    #: The rows of its tokens, kept from step to step, and how many of them were right at the last one.
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    known: int = 0


@dataclass
class _Part:
    """What a batch computes of a sequence."""

    sequence: _Sequence
    count: int
    #: How many of the tokens, the first ones, another request of the batch writes.
    shared: int = 0


class BatchBooks:
    """The books of a batch that changes from step to step.

    A step is: :meth:`match` and :meth:`plan` for each request that might take part, :meth:`begin` for those that do,
    then :meth:`write_rows`, and :meth:`read_rows` or :meth:`tables`, which speak of that batch; when it has been
    computed, :meth:`computed` for each. Not to be shared by threads.

    Parameters
    ----------
    geometry
        The engine's memory.
    sharing
        Whether requests that begin alike share blocks.

    Notes
    -----
    A block can be found as soon as its batch begins, so requests of one batch share too; the engine writes all new
    keys and values of a layer before it reads any. Where a batch fails, everything that was found so far is forgotten.

    Examples
    --------
    >>> books = BatchBooks(Geometry(num_blocks=8, block_size=4, stride=8, first_block=2, spare_row=8))
    >>> books.match("a", range(6)), books.plan("a", 0, 6)
    (0, True)
    >>> books.begin([Portion("a", range(6), 0)])
    array([], shape=(0, 2), dtype=int64)
    >>> rows = np.zeros(8, np.int64)
    >>> books.write_rows(rows), rows
    (6, array([16, 17, 18, 19, 24, 25,  0,  0]))
    """

    def __init__(self, geometry: Geometry, *, sharing: bool = True) -> None:
        self.geometry = geometry
        self._sharing = sharing
        # The null block of the pool is none of the engine's.
        self._pool = BlockPool(geometry.num_blocks + 1, block_size=geometry.block_size)
        self._manager = BlockManager(self._pool)
        self._shift = geometry.first_block - 1
        self._sequences: dict[str, _Sequence] = {}
        self._planned = 0
        self._free = geometry.num_blocks
        self._batch: list[_Part] = []
        self._admitted = self._new_tokens = 0
        self._steps = np.arange(geometry.block_size, dtype=np.int64)
        self._table = np.zeros((0, 0), np.int64)

    # One request after the other ------------------------------------------------------------------------------

    def match(self, name: str, token_ids: Sequence[int]) -> int:
        """Return how many leading tokens of a new request are cached, and hold their blocks.

        Parameters
        ----------
        name
            The request; one that holds blocks already has no match.
        token_ids
            Its prompt. The last token is never among those found.

        Returns
        -------
        int
            A multiple of the block size; 0 holds nothing.
        """
        size = self.geometry.block_size
        if not self._sharing or name in self._sequences or len(token_ids) <= size:
            return 0
        # Most prompts are told by their first block, and waiting ones are asked again in each step.
        if self._pool.cached_blocks(token_ids[:size]) == 0:
            return 0
        admission = self._manager.admit(token_ids, limit=0)
        self._count_free()
        if self._free < self._planned:
            self._manager.release([admission.sequence])
            self._count_free()
            return 0
        self._sequences[name] = _Sequence(admission.sequence, admission.cached_tokens)
        return admission.cached_tokens

    def missing(self, name: str, past: int, count: int) -> int:
        """Return how many blocks a request lacks for `count` tokens behind `past`."""
        size = self.geometry.block_size
        needed = (past + count + size - 1) // size
        sequence = self._sequences.get(name)
        if sequence is None:
            return needed
        held = (sequence.tokens + size - 1) // size
        return max(needed - held, 0) + sequence.forked

    def plan(self, name: str, past: int, count: int, *, only_ask: bool = False) -> bool:
        """Return whether a request's next tokens have room beside those planned so far, and plan them.

        Parameters
        ----------
        name, past, count
            As for :meth:`missing`.
        only_ask
            Plan nothing.
        """
        needed = self.missing(name, past, count)
        if needed > self._free - self._planned:
            return False
        if not only_ask:
            self._planned += needed
        return True

    def fitting(self, needed: Sequence[int]) -> int:
        """Return how many requests of those that need so many blocks fit one after the other."""
        free = self._free - self._planned
        for place, blocks in enumerate(needed):
            free -= blocks
            if free < 0:
                return place
        return len(needed)

    def fork(self, name: str, new: Sequence[str]) -> int:
        """Have new requests begin as copies of one; returns how many of them could, the first ones.

        They share all its blocks, and copy the last one when they write to it.
        """
        source = self._sequences[name]
        count = min(len(new), self._free)
        for other, handle in zip(new, self._manager.fork(source.handle, count).tolist(), strict=False):
            self._sequences[other] = _Sequence(handle, source.tokens, forked=True)
        source.forked |= count > 0
        return count

    def free(self, name: str) -> None:
        """Take a request's blocks back; full ones stay cached until there is no other room.

        One that is being computed has failed: then nothing of what is cached is believed any more.
        """
        sequence = self._sequences.pop(name, None)
        if sequence is None:
            return
        self._manager.release([sequence.handle])
        if sequence.running:
            self.forget()
        self._count_free()

    def free_all(self) -> None:
        """Take the blocks of all requests back."""
        for name in list(self._sequences):
            self.free(name)
        self._planned = 0

    def forget(self) -> None:
        """Forget what blocks hold."""
        self._pool.reset()

    # The batch ------------------------------------------------------------------------------------------------

    def begin(self, portions: Sequence[Portion]) -> npt.NDArray[np.int64]:
        """Give every token of a batch its place.

        Parameters
        ----------
        portions
            The batch, in its order, each request once.

        Returns
        -------
        numpy.ndarray
            Pairs of the engine's blocks, int64 of shape ``[copies, 2]``: copy the first to the second before the
            batch is computed.

        Raises
        ------
        ArgumentError
            A request continues where it does not end, which is a defect of the caller.
        OutOfBlocksError
            It was not planned.
        """
        self._planned = 0
        self._batch = []
        going: list[_Part] = []
        tokens: list[int] = []
        for name, token_ids, past in portions:
            sequence = self._sequences.get(name)
            part = _Part(sequence or self._admit(name, token_ids, past), len(token_ids))
            if sequence is None:
                part.shared = part.count - self._new_tokens
            elif sequence.tokens != past:
                message = f"request {name!r} goes on behind {past} tokens; {sequence.tokens} are here"
                raise ArgumentError(message, code="argument.request")
            else:
                going.append(part)
                tokens.extend(token_ids)
            part.sequence.running = True
            self._batch.append(part)
        handles = [part.sequence.handle for part in going]
        copies = self._manager.step(handles, tokens, [part.count for part in going])
        for part in going:
            part.sequence.tokens += part.count
            part.sequence.forked = False
        self._count_free()
        self._read_tables()
        return copies + self._shift

    def write_rows(self, out: npt.NDArray[np.int64]) -> int:
        """Write the row of every new token of the batch; returns how many there are.

        Parameters
        ----------
        out
            int64 of one dimension. What another request of the same batch writes for this one too goes to the spare
            row.
        """
        geometry = self.geometry
        slots = np.empty(len(out), np.int64)
        count = self._manager.slot_mapping([part.sequence.handle for part in self._batch], slots)
        rows = slots[:count]
        rows += rows // geometry.block_size * (geometry.stride - geometry.block_size)
        rows += self._shift * geometry.stride
        if not any(part.shared for part in self._batch):
            out[:count] = rows
            return count
        at = taken = 0
        for part in self._batch:
            own, end = part.count - part.shared, at + part.count
            out[at : at + part.shared] = geometry.spare_row
            out[at + part.shared : end] = rows[taken : taken + own]
            at, taken = end, taken + own
        return at

    def read_rows(self, out: npt.NDArray[np.int64]) -> int:
        """Write the row of every token of the batch's requests, old and new; returns how many there are.

        Parameters
        ----------
        out
            int64 of one dimension.
        """
        at = 0
        for part, row in zip(self._batch, self._table, strict=True):
            end = at + part.sequence.tokens
            out[at:end] = self._rows(part.sequence, row)[: end - at]
            at = end
        return at

    def tables(self) -> list[npt.NDArray[np.int64]]:
        """Return the engine's blocks of each request of the batch: int64 of shape ``[blocks]``."""
        size = self.geometry.block_size
        lengths = [(part.sequence.tokens + size - 1) // size for part in self._batch]
        return [row[:length] for row, length in zip(self._table, lengths, strict=True)]

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch's requests, old and new."""
        return sum(part.sequence.tokens for part in self._batch)

    def computed(self, name: str) -> None:
        """Take note that a request's part of the batch has been computed."""
        sequence = self._sequences.get(name)
        if sequence is not None:
            sequence.running = False

    @property
    def free_blocks(self) -> int:
        """Blocks that can be lent, those among them that hold something that might be found again."""
        return self._free

    def check_invariants(self) -> None:
        """Prove that the books are right; linear in all blocks.

        Raises
        ------
        InternalError
            They are not, which is a defect of this package.
        """
        self._manager.check_invariants()

    def _admit(self, name: str, token_ids: Sequence[int], past: int) -> _Sequence:
        if past:
            message = f"request {name!r} goes on behind {past} tokens, of which none is here"
            raise ArgumentError(message, code="argument.request")
        self._admitted += 1
        salt = None if self._sharing else str(self._admitted)
        admission = self._manager.admit(token_ids, salt=salt)
        self._new_tokens = admission.num_tokens - admission.cached_tokens
        sequence = _Sequence(admission.sequence, admission.num_tokens)
        self._sequences[name] = sequence
        return sequence

    def _rows(self, sequence: _Sequence, table: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of a sequence's blocks; only blocks that were not full at the last call are new."""
        size = self.geometry.block_size
        first, last = sequence.known // size, (sequence.tokens + size - 1) // size
        if len(sequence.rows) < last * size:
            grown = np.empty(last * size + max(last // 4, 1) * size, np.int64)
            grown[: first * size] = sequence.rows[: first * size]
            sequence.rows = grown
        new = sequence.rows[first * size : last * size].reshape(-1, size)
        np.add(table[first:last, None] * self.geometry.stride, self._steps, out=new)
        sequence.known = sequence.tokens
        return sequence.rows

    def _read_tables(self) -> None:
        size = self.geometry.block_size
        width = max(((part.sequence.tokens + size - 1) // size for part in self._batch), default=0)
        self._table = np.empty((len(self._batch), width), np.int64)
        if width:
            self._manager.block_tables([part.sequence.handle for part in self._batch], self._table)
            self._table += self._shift

    def _count_free(self) -> None:
        self._free = self._pool.stats().free_blocks
