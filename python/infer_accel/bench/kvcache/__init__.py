"""Rows of the part kvcache, one module a family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel import kvcache
from infer_accel.bench.kvcache import disk, hashing, manager, nonfinite, pages, pool, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.harness import Bench, Case

__all__ = ["cases"]

_BLOCK_SIZE = 16
#: A prompt of 32k tokens.
_NUM_BLOCKS = 2048
#: Llama-3's vocabulary: a third of the ids take two bytes, the others three.
_VOCABULARY = 128_256


def cases(bench: Bench) -> Iterator[Case]:
    """Yield every row of this part."""
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, _NUM_BLOCKS * _BLOCK_SIZE, dtype=np.int32)
    yield from hashing.cases(bench, ids)
    yield from pool.cases(bench, kvcache.hash_blocks(ids, block_size=_BLOCK_SIZE))
    yield from tokens.cases(bench, ids)
    yield from manager.cases(bench, ids)
    yield from pages.cases(bench)
    yield from nonfinite.cases(bench)
    yield from disk.cases(bench)
