"""Prompts in the shape of a recorded trace, and a crowd that asks a server for them."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.serve.server import Answer

# The facts of Mooncake's trace of conversations (FAST'25, 12,031 requests), counted in its blocks of 512 tokens: all
# prompts begin with one and the same block, and 39 of 100 continue an earlier prompt.
CONTINUED = 0.39
_AT = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
#: Quantiles of the blocks of a prompt that continues nothing.
_BLOCKS = (2, 2, 3, 11, 26, 50, 176)
#: Quantiles of the blocks by which one that continues another is longer.
_MORE_BLOCKS = (1, 1, 2, 2, 7, 20, 53)


@dataclass(frozen=True)
class Prompt:
    """The first tokens of a conversation; later turns of it are longer."""

    conversation: int
    tokens: int


def prompts(count: int, seed: int, *, block: int, most: int, apart: int = 16) -> list[Prompt]:
    """Return prompts in the order in which they come.

    Parameters
    ----------
    count, seed
        How many, and which.
    block
        Tokens that stand for a block of the trace.
    most
        The tokens of the longest one; conversations that would outgrow it end there.
    apart
        A turn comes at least so many requests after the one before, so that it need not wait for that one's answer.
    """
    drawn = random.Random(seed)

    def blocks(quantiles: Sequence[int]) -> int:
        return round(float(np.interp(drawn.random(), _AT, quantiles)))

    came: list[Prompt] = []
    last: dict[int, int] = {}
    while len(came) < count:
        open_ones = [
            name
            for name, turn in last.items()
            if len(came) - turn >= apart and came[turn].tokens + 2 * block <= most
        ]
        if open_ones and drawn.random() < CONTINUED:
            name = drawn.choice(open_ones)
            length = came[last[name]].tokens + block * blocks(_MORE_BLOCKS)
        else:
            name = 1000 * seed + len(came) + 1
            length = block * (blocks(_BLOCKS) - 1) + drawn.randint(1, block)
        last[name] = len(came)
        came.append(Prompt(name, min(length, most)))
    return came


def ids(prompt: Prompt, *, block: int, vocabulary: int) -> list[int]:
    """Return the tokens of a prompt, drawn by chance: a block that all share, then the conversation's own."""
    shared, own = random.Random(0), random.Random(prompt.conversation)
    tokens = [shared.randrange(3, vocabulary) for _ in range(min(block, prompt.tokens))]
    return tokens + [own.randrange(3, vocabulary) for _ in range(prompt.tokens - len(tokens))]


def ask_all(
    ask: Callable[[Prompt], Answer],
    asked: Sequence[Prompt],
    at_once: int,
    after: Callable[[int], None] | None = None,
) -> list[Answer | None]:
    """Ask for all, so many at once, each beginning as another ends; None for those that were not answered.

    `after` is called with the number of answers at each of them, and may end the server.
    """
    answered, counting = 0, threading.Lock()

    def one(prompt: Prompt) -> Answer | None:
        nonlocal answered
        try:
            answer = ask(prompt)
        except (OSError, HTTPException, ValueError, AssertionError):
            # Refused, cut off, or half of it came: what a client sees of a server that is gone.
            if after is None:
                raise
            return None
        with counting:
            answered += 1
            if after is not None:
                after(answered)
        return answer

    with ThreadPoolExecutor(at_once) as crowd:
        return list(crowd.map(one, asked))
