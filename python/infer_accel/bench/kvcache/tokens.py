"""Rows of prompts that are looked up by their tokens, beside a tree that keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from infer_accel import kvcache, reference
from infer_accel.bench.harness import Bench, Case, Contender, cost
from infer_accel.bench.kvcache import sglang_rival

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    Ids = npt.NDArray[np.int32]

__all__ = ["cases"]

_BLOCK_SIZE = 16
_VOCABULARY = 128_256
_POOL_BLOCKS = 20_000
#: Tokens that all prompts of the second row begin with, and those that each has for itself.
_SHARED, _OWN = 1024, 512
#: Prompts of a call, so that the clock is not measured, and calls that meet new ones.
_PROMPTS, _CALLS = 16, 64

_Prompt = TypeVar("_Prompt")


def cases(bench: Bench, ids: Ids) -> Iterator[Case]:
    """Yield the rows; `ids` are those of a long prompt."""
    yield _match(bench, ids)
    yield _match_and_insert(bench)


def _match(bench: Bench, ids: Ids) -> Case:
    """Build the row of a router's question, asked with tokens: how much of a prompt is cached."""
    num_blocks = len(ids) // _BLOCK_SIZE
    hashes = kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE)
    pool = kvcache.BlockPool(_POOL_BLOCKS, block_size=_BLOCK_SIZE)
    plain = reference.kvcache.BlockPool(_POOL_BLOCKS)
    pool.cache(pool.alloc(num_blocks), hashes)
    plain.cache(plain.alloc(num_blocks), hashes)

    def check(blocks: object) -> None:
        np.testing.assert_equal(blocks, num_blocks, "blocks that match")

    peers = [
        Contender("Python reference", lambda: plain.cached_blocks(ids, block_size=_BLOCK_SIZE), check),
    ]
    if (sglang := sglang_rival.load(bench)) is not None:
        import torch

        tree = sglang_rival.Tree(sglang, _POOL_BLOCKS * _BLOCK_SIZE, _BLOCK_SIZE)
        key = tree.key_of(ids)
        tree.insert(key, torch.arange(1, len(ids) + 1))
        peers.append(
            Contender(sglang_rival.name_of(bench), lambda: tree.match(key) // _BLOCK_SIZE, check),
        )
    return Case(
        name=f"BlockPool match, prompt of {len(ids)} tokens, by its tokens",
        measure=cost("µs", 1e-6),
        work=1,
        ours=Contender("infer-accel", lambda: pool.cached_blocks(ids), check),
        peers=peers,
    )


def _match_and_insert(bench: Bench) -> Case:
    """Build the row of new prompts that share a beginning: matched, given blocks, cached, and given back."""
    chance = np.random.default_rng(7)
    shared = chance.integers(0, _VOCABULARY, _SHARED, dtype=np.int32)
    own = chance.integers(0, _VOCABULARY, (_PROMPTS * _CALLS, _OWN), dtype=np.int32)
    prompts = [np.concatenate([shared, tail]) for tail in own]
    batches = [prompts[at : at + _PROMPTS] for at in range(0, len(prompts), _PROMPTS)]
    num_blocks = (_SHARED + _OWN * len(prompts)) // _BLOCK_SIZE + 2

    def check(cached: object) -> None:
        np.testing.assert_array_equal(cached, [_SHARED] * _PROMPTS, "cached tokens")

    manager = kvcache.BlockManager(kvcache.BlockPool(num_blocks, block_size=_BLOCK_SIZE))

    def admit(prompt: Ids) -> int:
        admitted = manager.admit(prompt)
        manager.release([admitted.sequence])
        return admitted.cached_tokens

    admit(shared)
    peers = []
    if (sglang := sglang_rival.load(bench)) is not None:
        peers.append(_match_and_insert_of_sglang(bench, sglang, shared, batches, check))
    return Case(
        name=f"BlockManager match + insert, prompts of {_SHARED + _OWN} tokens that share {_SHARED}",
        measure=cost("µs", 1e-6),
        work=_PROMPTS,
        ours=Contender("infer-accel", _each(batches, admit), check),
        peers=peers,
        fresh_calls=_CALLS,
    )


def _match_and_insert_of_sglang(
    bench: Bench,
    module: object,
    shared: Ids,
    batches: Sequence[Sequence[Ids]],
    check: Callable[[object], None],
) -> Contender:
    """Return the two calls that its scheduler makes; the slots of the pages lie ready."""
    import torch

    num_tokens = _SHARED + _OWN * sum(map(len, batches))
    tree = sglang_rival.Tree(module, num_tokens, _BLOCK_SIZE)
    slots = torch.arange(1, num_tokens + 1)
    tree.insert(tree.key_of(shared), slots[:_SHARED])
    own = iter(slots[_SHARED:].split(_OWN))
    waiting = [
        [(tree.key_of(prompt), torch.cat([slots[:_SHARED], next(own)])) for prompt in batch]
        for batch in batches
    ]

    def insert(prompt: tuple[array[int], object]) -> int:
        key, values = prompt
        found = tree.match(key)
        tree.insert(key, values)
        return found

    return Contender(sglang_rival.name_of(bench), _each(waiting, insert), check)


def _each(batches: Sequence[Sequence[_Prompt]], call: Callable[[_Prompt], int]) -> Callable[[], list[int]]:
    """Return a call that takes the next batch and calls `call` on each prompt of it."""
    waiting = iter(batches)
    return lambda: [call(prompt) for prompt in next(waiting)]
