"""The block manager by lists and dictionaries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel._reference.kvcache.arguments import flat_of, rows_of
from infer_accel._reference.kvcache.hashing import hash_blocks, none_hash
from infer_accel.errors import (
    ArgumentError,
    DTypeError,
    IdError,
    InternalError,
    OutOfBlocksError,
    ReadOnlyError,
    ShapeError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._reference.kvcache.hashing import Key
    from infer_accel._reference.kvcache.pool import BlockPool
    from infer_accel._typing import Tensor

    Keys = Sequence[tuple[Key, ...] | None]

_MAX_GROUPS = 8
_MAX_BLOCK_SIZE = 1 << 24


@dataclass
class _Sequence:
    tokens: list[int]
    tables: list[list[int]]
    added_from: int
    keys: list[tuple[Key, ...] | None]
    later_keys: tuple[Key, ...] | None
    priority: int | None
    seconds: float | None
    hashes: list[bytes] = field(default_factory=list)

    def keys_of(self, block: int) -> tuple[Key, ...] | None:
        return self.keys[block] if block < len(self.keys) else self.later_keys


class BlockManager:
    """Sequences on a pool: tables, slots, forks."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        groups: Sequence[int | None],
        scrub: bool = False,
        watermark: float = 0.0,
    ) -> None:
        if not 1 <= len(groups) <= _MAX_GROUPS or 0 in groups:
            raise ArgumentError(f"groups {groups} came", code="argument.groups")
        if not 0 <= watermark < 1:
            raise ArgumentError(f"watermark={watermark} came", code="argument.watermark")
        if not 1 <= block_size <= _MAX_BLOCK_SIZE:
            raise ArgumentError(f"block_size={block_size} came", code="argument.block_size")
        self._pool = pool
        self._block_size = block_size
        self._groups = list(groups)
        self._scrub = scrub
        self._watermark = watermark
        self._none_hash = none_hash(pool.algorithm)
        self._sequences: dict[int, _Sequence] = {}
        #: Places that were released last go first; a place's generation tells its sequences apart.
        self._idle: list[int] = []
        self._generations: list[int] = []
        self._scrubs: list[int] = []
        self._counts = dict.fromkeys(
            ("admissions", "prompt_tokens", "cached_tokens", "appended_tokens", "copies", "refusals"), 0
        )

    def admit(
        self,
        token_ids: Tensor | Sequence[int],
        *,
        hashes: Tensor | Sequence[bytes] | None = None,
        extra_keys: Keys | None = None,
        prompt_keys: Keys | None = None,
        limit: int | None = None,
        priority: int | None = None,
        seconds: float | None = None,
    ) -> tuple[int, int, int]:
        """Admit a prompt; return its sequence, its cached tokens, and the tokens that have blocks."""
        tokens = flat_of(token_ids, "shape.token_ids")
        size, num_blocks = self._block_size, len(tokens) // self._block_size
        first, later = prompt_keys or (None, None)
        keys = list(extra_keys) if extra_keys else []
        if not keys and (first or later):
            keys = [first, *[later] * (num_blocks - 1)][:num_blocks]
        if "cbor" not in self._pool.algorithm and (later or any(key is not None for key in keys)):
            raise ArgumentError("extra_keys came for pickle", code="argument.extra_keys_pickle")
        if hashes is None:
            listed = keys or None
            if listed and len(listed) != num_blocks:
                raise ShapeError(f"{len(listed)} extra_keys came", code="shape.extra_keys")
            made = hash_blocks(
                tokens,
                block_size=size,
                algorithm=self._pool.algorithm,
                parent=self._none_hash,
                extra_keys=listed,
            )
            rows = [row.tobytes() for row in made]
        else:
            rows = rows_of(hashes, self._pool.digest_bytes)
            if len(rows) != num_blocks:
                raise ShapeError(f"{len(rows)} hashes came", code="shape.hash_count")
        until = self._pool.checked_retention(priority, seconds)
        usable = max(len(tokens) - 1, 0) // size
        found = self._find_cached(rows[:usable])
        cached = len(found[0])
        now = len(tokens) if limit is None else min(len(tokens), cached * size + limit)
        total = math.ceil(now / size)
        needed = (total - cached) * len(self._groups)
        hit = [block for blocks in found for block in blocks if block]
        reserved = needed + sum(self._pool.references[block] == 0 for block in hit)
        reserved += int(self._watermark * self._pool.num_blocks) if self._sequences else 0
        self._require(reserved, self._pool.num_free())
        for block in hit:
            self._pool.reference(block)
        fresh = self._take(needed)
        tables = []
        for group, blocks in enumerate(found):
            own = fresh[group * (total - cached) : (group + 1) * (total - cached)]
            tables.append([*blocks, *own])
        sequence = _Sequence(
            tokens[:now], tables, min(cached * size, now), keys, later, priority, seconds, rows[: now // size]
        )
        self._remember(sequence, cached, until)
        handle = self._place(sequence)
        self._pool.count_queries(usable, cached)
        for name, more in (
            ("admissions", 1),
            ("prompt_tokens", len(tokens)),
            ("cached_tokens", cached * size),
        ):
            self._counts[name] += more
        return handle, cached * size, now

    def step(
        self,
        sequences: Tensor | Sequence[int],
        tokens: Tensor | Sequence[int],
        counts: Tensor | Sequence[int] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Append tokens to sequences; return pairs of pages to copy."""
        handles, new = flat_of(sequences, "shape.sequences"), flat_of(tokens, "shape.token_ids")
        for position, value in enumerate(new):
            if not 0 <= value < 1 << 32:
                raise IdError(f"token id {value} came at position {position}", code="id.token")
        each = [1] * len(handles) if counts is None else flat_of(counts)
        if any(count < 0 for count in each):
            raise ArgumentError(f"{min(each)} came as a count", code="argument.count")
        if len(each) != len(handles):
            raise ShapeError(f"{len(each)} counts came", code="shape.step_counts")
        if sum(each) != len(new):
            raise ShapeError(f"{len(new)} tokens came", code="shape.step_tokens")
        running = self._running(handles)
        needed, coming, shared = self._needs(running, each)
        self._require(needed, self._pool.num_free() + coming)
        for block in shared:
            self._pool.references[block] -= 1
        for sequence in running:
            self._slide(sequence)
        copies: list[tuple[int, int]] = []
        ready = set(shared)
        fresh = self._pool.take(needed)
        for sequence, count in zip(running, each, strict=True):
            copies += self._give_blocks(sequence, count, fresh, ready)
            sequence.added_from = len(sequence.tokens)
            sequence.tokens += new[:count]
            del new[:count]
            before = len(sequence.hashes)
            self._hash(sequence)
            until = self._pool.checked_retention(sequence.priority, sequence.seconds)
            for block in range(before, len(sequence.hashes)):
                self._remember(sequence, block, until, block + 1)
        self._counts["appended_tokens"] += sum(each)
        self._counts["copies"] += len(copies)
        return np.array(copies, np.int64).reshape(-1, 2)

    def fork(self, sequence: int, count: int) -> npt.NDArray[np.int64]:
        """Return sequences that share all blocks of this one."""
        if not 0 <= count <= 1 << 20:
            raise ArgumentError(f"{count} forks came", code="argument.count")
        parent = self._running([sequence])[0]
        forks = []
        for _ in range(count):
            for table in parent.tables:
                for block in filter(None, table):
                    self._pool.references[block] += 1
            tables = [list(table) for table in parent.tables]
            fork = _Sequence(
                list(parent.tokens),
                tables,
                len(parent.tokens),
                parent.keys,
                parent.later_keys,
                parent.priority,
                parent.seconds,
                list(parent.hashes),
            )
            forks.append(self._place(fork))
        return np.array(forks, np.int64)

    def release(self, sequences: Tensor | Sequence[int]) -> None:
        """End sequences."""
        handles = flat_of(sequences, "shape.sequences")
        for handle, sequence in zip(handles, self._running(handles), strict=True):
            for table in sequence.tables:
                self._pool.release(table[::-1])
            del self._sequences[handle]
            place = handle & 0xFFFF_FFFF
            self._generations[place] += 1
            self._idle.append(place)

    def block_tables(self, sequences: Tensor | Sequence[int], out: Tensor, *, group: int = 0) -> None:
        """Write the table of each sequence into a row of `out`, with 0 behind it."""
        target, group = _integer_target(out, 2), self._group(group)
        tables = [s.tables[group] for s in self._running(sequences, repeated=True)]
        if target.shape[0] < len(tables) or target.shape[1] < max(map(len, tables), default=0):
            raise ShapeError(f"a target of shape {target.shape} came", code="shape.out")
        for row, table in zip(target, tables, strict=False):
            row[:] = 0
            row[: len(table)] = table

    def slot_mapping(self, sequences: Tensor | Sequence[int], out: Tensor, *, group: int = 0) -> int:
        """Write the slots of the tokens that were added last, with -1 behind them; return their number."""
        target, size, group = _integer_target(out, 1), self._block_size, self._group(group)
        slots = [
            s.tables[group][token // size] * size + token % size
            for s in self._running(sequences, repeated=True)
            for token in range(s.added_from, len(s.tokens))
        ]
        if target.shape[0] < len(slots):
            raise ShapeError(f"a target of shape {target.shape} came", code="shape.out")
        target[:] = -1
        target[: len(slots)] = slots
        return len(slots)

    def num_tokens(self, sequences: Tensor | Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the tokens of each sequence."""
        return np.array([len(s.tokens) for s in self._running(sequences, repeated=True)], np.int64)

    def take_scrubs(self) -> npt.NDArray[np.int64]:
        """Return the blocks to clean before they are used."""
        scrubs, self._scrubs = self._scrubs, []
        return np.array(scrubs, np.int64)

    def stats(self) -> tuple[int, ...]:
        """Return sequences and tokens that run, and the counts so far."""
        tokens = sum(len(sequence.tokens) for sequence in self._sequences.values())
        return (len(self._sequences), tokens, *self._counts.values())

    def check_invariants(self) -> None:
        """Prove that the books of manager and pool are right."""
        self._pool.check_invariants()
        named = [b for s in self._sequences.values() for table in s.tables for b in table if b]
        for block in set(named):
            if named.count(block) > self._pool.references[block]:
                raise InternalError(f"block {block} has too few references", code="internal.invariant")

    # --- Steps of the calls above ------------------------------------------------------------------------

    def _find_cached(self, rows: Sequence[bytes]) -> list[list[int]]:
        """Return the cached blocks of each group, 0 for those that a window does not need."""
        for length in range(len(rows), -1, -1):
            found = [self._usable(rows[:length], group) for group in range(len(self._groups))]
            if all(blocks is not None for blocks in found):
                return [blocks for blocks in found if blocks is not None]
        return [[] for _ in self._groups]

    def _usable(self, rows: Sequence[bytes], group: int) -> list[int] | None:
        """Return the blocks of a prefix if the group can go on from it."""
        window = self._groups[group]
        seen = len(rows) if window is None else max(math.ceil((window - 1) / self._block_size), 1)
        start = max(len(rows) - seen, 0)
        blocks = [self._pool.find(row, group) for row in rows[start:]]
        if any(block is None for block in blocks):
            return None
        return [0] * start + [block for block in blocks if block is not None]

    def _require(self, needed: int, free: int) -> None:
        if needed > free:
            self._counts["refusals"] += 1
            message = f"{needed} blocks are needed and {free} are free"
            raise OutOfBlocksError(message, needed=needed, free=free, code="out_of_blocks.all")

    def _needs(self, running: Sequence[_Sequence], each: Sequence[int]) -> tuple[int, int, list[int]]:
        """Return the blocks that a step needs, those that windows give back, and those to be copied."""
        size, references = self._block_size, dict(self._pool.references)
        needed, coming, shared = 0, 0, []
        for sequence, count in zip(running, each, strict=True):
            start = len(sequence.tokens)
            more = math.ceil((start + count) / size) - math.ceil(start / size)
            needed += more * len(self._groups)
            for group, table in enumerate(sequence.tables):
                if start % size and count and references[table[-1]] > 1:
                    references[table[-1]] -= 1
                    shared.append(table[-1])
                    needed += 1
                left = table[: self._first_needed(group, start)]
                coming += sum(bool(block) and references[block] == 1 for block in left)
        return needed, coming, shared

    def _first_needed(self, group: int, num_tokens: int) -> int:
        window = self._groups[group]
        return 0 if window is None else max(num_tokens + 1 - window, 0) // self._block_size

    def _slide(self, sequence: _Sequence) -> None:
        for group, table in enumerate(sequence.tables):
            first = min(self._first_needed(group, len(sequence.tokens)), len(table))
            self._pool.release([block for block in reversed(table[:first]) if block])
            table[:first] = [0] * first

    def _give_blocks(
        self, sequence: _Sequence, count: int, fresh: list[int], shared: set[int]
    ) -> list[tuple[int, int]]:
        """Give a sequence the blocks that `count` tokens more need; return the pages to copy."""
        size, start, copies = self._block_size, len(sequence.tokens), []
        if start % size and count:
            for table in sequence.tables:
                # The last of those who share a block keeps it; each of the others has let go of it.
                if table[-1] in shared and self._still_shared(table[-1]):
                    copies.append((table[-1], fresh.pop(0)))
                    table[-1] = copies[-1][1]
        more = math.ceil((start + count) / size) - math.ceil(start / size)
        for table in sequence.tables:
            own = [fresh.pop(0) for _ in range(more)]
            table.extend(own)
            self._note_scrubs(own)
        return copies

    def _still_shared(self, block: int) -> bool:
        named = sum(table.count(block) for s in self._sequences.values() for table in s.tables)
        return named > self._pool.references[block]

    def _take(self, count: int) -> list[int]:
        ids = self._pool.take(count)
        self._note_scrubs(ids)
        return ids

    def _note_scrubs(self, ids: Sequence[int]) -> None:
        if self._scrub:
            self._scrubs += [block for block in ids if self._pool.generation(block) > 0]

    def _hash(self, sequence: _Sequence) -> None:
        size = self._block_size
        for block in range(len(sequence.hashes), len(sequence.tokens) // size):
            made = hash_blocks(
                sequence.tokens[block * size : (block + 1) * size],
                block_size=size,
                algorithm=self._pool.algorithm,
                parent=sequence.hashes[-1] if block else self._none_hash,
                extra_keys=[sequence.keys_of(block)],
            )
            sequence.hashes.append(made[0].tobytes())

    def _remember(self, sequence: _Sequence, start: int, until: int, end: int | None = None) -> None:
        size, end = self._block_size, len(sequence.hashes) if end is None else end
        if start >= end:
            return
        for group, table in enumerate(sequence.tables):
            for block in range(start, end):
                self._pool.remember(table[block], sequence.hashes[block], group, sequence.priority, until)
        for group, window in enumerate(self._groups):
            if self._pool.log is not None:
                self._pool.log.stored(
                    sequence.hashes[start:end],
                    parent=sequence.hashes[start - 1] if start else None,
                    tokens=sequence.tokens[start * size : end * size],
                    block_size=size,
                    group=group,
                    kind=("full_attention" if window is None else "sliding_window", window),
                    keys=[sequence.keys_of(block) for block in range(start, end)],
                )

    def _place(self, sequence: _Sequence) -> int:
        if not self._idle:
            self._idle.append(len(self._generations))
            self._generations.append(0)
        place = self._idle.pop()
        handle = self._generations[place] << 32 | place
        self._sequences[handle] = sequence
        return handle

    def _running(self, sequences: Any, *, repeated: bool = False) -> list[_Sequence]:  # noqa: ANN401 - a table
        handles = flat_of(sequences, "shape.sequences")
        for position, handle in enumerate(handles):
            if handle not in self._sequences:
                raise IdError(f"sequence {handle} is not running", code="id.sequence")
            if not repeated and handle in handles[:position]:
                raise IdError(f"sequence {handle} is named twice", code="id.repeated_sequence")
        return [self._sequences[handle] for handle in handles]

    def _group(self, group: int) -> int:
        if group < 0:
            raise ArgumentError(f"{group} came as a count", code="argument.count")
        if group >= len(self._groups):
            raise ArgumentError(f"group={group} came", code="argument.groups")
        return group


def _integer_target(out: Any, ndim: int) -> npt.NDArray[np.int64]:  # noqa: ANN401 - an array or a tensor
    target = out if isinstance(out, np.ndarray) else out.numpy()
    if not target.flags.writeable:
        raise ReadOnlyError("a read-only target came", code="read_only")
    if target.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
        raise DTypeError(f"a target of {target.dtype} came", code="dtype.integer_target")
    if target.ndim != ndim:
        raise ShapeError(f"a target of shape {target.shape} came", code="shape.integer_target")
    table: npt.NDArray[np.int64] = target
    return table
