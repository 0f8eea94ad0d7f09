"""Paged KV-cache blocks: name them by hash, lend them out, move their pages.

A *block* holds the keys and values of `block_size` consecutive tokens; a *page* is a block's memory in one
tensor. :func:`hash_blocks` names a full block by its whole prefix, byte for byte as vLLM does.
:class:`BlockPool` lends blocks to requests, counts references and finds cached prefixes; :class:`BlockManager`
runs whole batches of sequences on it. :func:`page_copy` moves pages between tensors of any layout;
:class:`PageLayout` says what they hold. :class:`DiskTier` keeps pages on disk, checked, and :class:`TieredCache`
has host memory in front of it. :class:`HostPool` is memory for pages, :func:`scan_nonfinite` finds those that
would poison others.

The functions take numpy arrays and CPU tensors of torch (bfloat16 and float8 included) without a copy. Small
integer tables (ids, handles, mappings, hashes) are copied privately before they are checked.
"""

from __future__ import annotations

from infer_accel.kvcache._cache import CacheStats, TieredCache
from infer_accel.kvcache._copy import page_copy, page_gather, page_scatter
from infer_accel.kvcache._events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from infer_accel.kvcache._hash import Algorithm, ExtraKey, PromptBlocks, hash_blocks, hash_prompt, none_hash
from infer_accel.kvcache._host import FloatFormat, HostPool, scan_nonfinite, scrub
from infer_accel.kvcache._layout import PageLayout
from infer_accel.kvcache._manager import Admission, BlockManager, CacheGroup
from infer_accel.kvcache._pool import NULL_BLOCK, BlockPool
from infer_accel.kvcache._protocol import Tier
from infer_accel.kvcache._replay import ReplayReport, Trace, replay, replay_curve
from infer_accel.kvcache._stats import ManagerStats, PoolStats
from infer_accel.kvcache._tier import Checksum, DiskTier, TierStats

__all__ = [
    "NULL_BLOCK",
    "Admission",
    "Algorithm",
    "AllBlocksCleared",
    "BlockManager",
    "BlockPool",
    "BlockRemoved",
    "BlockStored",
    "CacheGroup",
    "CacheStats",
    "Checksum",
    "DiskTier",
    "Event",
    "ExtraKey",
    "FloatFormat",
    "HostPool",
    "ManagerStats",
    "PageLayout",
    "PoolStats",
    "PromptBlocks",
    "ReplayReport",
    "Tier",
    "TierStats",
    "TieredCache",
    "Trace",
    "hash_blocks",
    "hash_prompt",
    "none_hash",
    "page_copy",
    "page_gather",
    "page_scatter",
    "replay",
    "replay_curve",
    "scan_nonfinite",
    "scrub",
]
