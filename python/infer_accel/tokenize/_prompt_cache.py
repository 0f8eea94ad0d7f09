"""Prompts that begin like earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.tokenize._given import core_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infer_accel.tokenize._tokenizer import Tokenizer


#: More than this is a mistake, not a size.
_MAX_CAPACITY_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class PromptCacheStats:
    """What a :class:`PromptCache` holds, and what it has done since it was made.

    Parameters
    ----------
    entries
        Parts of prompts that are held.
    bytes
        Memory that they take, what the cache needs for itself included.
    capacity_bytes
        The most memory that they may take.
    reused_bytes
        UTF-8 bytes of prompts whose ids were found.
    encoded_bytes
        UTF-8 bytes of prompts that had to be encoded.
    evictions
        Parts that made room for others.

    Examples
    --------
    >>> stats = PromptCacheStats(
    ...     entries=2, bytes=9000, capacity_bytes=10000, reused_bytes=300, encoded_bytes=100, evictions=0
    ... )
    >>> stats.hit_rate
    0.75
    """

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]] = frozenset({"reused_bytes", "encoded_bytes", "evictions"})

    entries: int
    bytes: int
    capacity_bytes: int
    reused_bytes: int
    encoded_bytes: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """The share of all bytes whose ids were found; 0 before the first prompt."""
        return self.reused_bytes / max(self.reused_bytes + self.encoded_bytes, 1)


class PromptCache:
    """Encodes prompts that begin like earlier ones, and only their ends anew.

    There is nothing to open or to close: whoever sends a prompt that grows, such as an agent's conversation,
    finds the ids of its beginning. They are exactly those of :meth:`Tokenizer.encode`: a prompt is divided only
    where its two parts are encoded independently of each other, and what is kept is compared byte by byte.

    Parameters
    ----------
    tokenizer
        Where it is not :attr:`Tokenizer.is_native`, or has a pattern of its own, no such places are known: the
        cache then stays empty, and all text is encoded.
    capacity_bytes
        The most memory for text and ids, 0 to 2⁴⁰; a 512th of it is taken at once. What was not used for longest goes
        first. A token of English
        takes about 9 bytes, and up to 27 where its prompt has come several times and there is room: such prompts are
        kept in longer parts, too, which are found faster.

    Raises
    ------
    ArgumentError
        A `capacity_bytes` out of range.

    Notes
    -----
    Any number of threads share one cache; none waits for another for longer than a look-up. A forked child may
    go on using its copy. Text that was seen costs a hash, a comparison and a copy of its ids: O(length), at the
    speed of memory. Until its call returns, a thread may hold parts that have made room for others meanwhile.

    Prompts stay in memory until they make room for others; :meth:`clear` forgets them.

    Examples
    --------
    >>> cache = PromptCache(tokenizer, 64 << 20)  # doctest: +SKIP
    >>> ids = cache.encode(conversation)  # doctest: +SKIP
    >>> ids = cache.encode(conversation + next_turn)  # the beginning is found  # doctest: +SKIP
    """

    __slots__ = ("_core", "_tokenizer", "capacity_bytes")

    _core: Any

    def __init__(self, tokenizer: Tokenizer, capacity_bytes: int) -> None:
        if capacity_bytes > _MAX_CAPACITY_BYTES:
            message = (
                f"capacity_bytes={capacity_bytes} came as a count; 0 to {_MAX_CAPACITY_BYTES} are allowed"
            )
            raise ArgumentError(message, code="argument.count")
        self._core = _backend.load("tokenize").PromptCache(core_of(tokenizer), capacity_bytes)
        self._tokenizer = tokenizer
        self.capacity_bytes = capacity_bytes

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids it holds."""
        return self._tokenizer

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Return the ids of a prompt; arguments, result and errors as for :meth:`Tokenizer.encode`."""
        ids: NDArray[np.int32] = self._core.encode(text, add_special_tokens, parse_special)
        return ids

    def count(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> int:
        """Return the number of ids of a prompt, the file's truncation and padding left out.

        Arguments and errors as for :meth:`Tokenizer.count`.
        """
        count: int = self._core.count(text, add_special_tokens, parse_special)
        return count

    @property
    def stats(self) -> PromptCacheStats:
        """What the cache holds and has done."""
        entries, held, capacity, reused, encoded, evictions = self._core.stats()
        return PromptCacheStats(entries, held, capacity, reused, encoded, evictions)

    def clear(self) -> None:
        """Forget all prompts; the figures of what was done go on."""
        self._core.clear()

    def __reduce__(self) -> tuple[object, ...]:
        return (PromptCache, (self._tokenizer, self.capacity_bytes))

    def __repr__(self) -> str:
        return f"PromptCache({self._tokenizer!r}, {self.capacity_bytes})"
