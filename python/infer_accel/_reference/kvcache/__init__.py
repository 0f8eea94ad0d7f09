"""The specification of ``infer_accel.kvcache``: hashlib, dictionaries and one page at a time.

It has the names and signatures of the native module, so that either can serve the typed face.
"""

from __future__ import annotations

from infer_accel._reference.kvcache.hashing import hash_blocks, none_hash, xxh3_128
from infer_accel._reference.kvcache.manager import BlockManager
from infer_accel._reference.kvcache.nonfinite import HostPool, scan_nonfinite, scrub
from infer_accel._reference.kvcache.pages import page_copy, page_gather, page_scatter
from infer_accel._reference.kvcache.pool import BlockPool
from infer_accel._reference.kvcache.replay import Trace, replay
from infer_accel._reference.kvcache.tier import DiskTier, TieredCache

__all__ = [
    "BlockManager",
    "BlockPool",
    "DiskTier",
    "HostPool",
    "TieredCache",
    "Trace",
    "hash_blocks",
    "none_hash",
    "page_copy",
    "page_gather",
    "page_scatter",
    "replay",
    "scan_nonfinite",
    "scrub",
    "xxh3_128",
]
