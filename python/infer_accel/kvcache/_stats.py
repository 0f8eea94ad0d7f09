"""What pools and managers hold, and what they have done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


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


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """What a :class:`BlockManager` holds, and what it has done since it was made."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]] = frozenset(
        {"admissions", "prompt_tokens", "cached_tokens", "appended_tokens", "copied_blocks", "refusals"}
    )

    #: Sequences that run.
    sequences: int
    #: Tokens of the sequences that run.
    tokens: int
    #: Sequences admitted so far.
    admissions: int
    #: Tokens of prompts that came so far.
    prompt_tokens: int
    #: Tokens of prompts that were cached so far.
    cached_tokens: int
    #: Tokens that steps appended so far.
    appended_tokens: int
    #: Pages that had to be copied so far, because a fork wrote.
    copied_blocks: int
    #: Calls so far that found too few free blocks.
    refusals: int
