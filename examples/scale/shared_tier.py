"""Two servers of one model share the pages of a prompt: what one has computed, the other one loads.

Run with the URL of a store that both reach; without one, a directory stands for it::

    python examples/scale/shared_tier.py [redis://host:6379/0 | s3://bucket/prefix]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.kvcache import PageLayout, TieredCache, hash_blocks

if TYPE_CHECKING:
    from infer_accel.kvcache import Tier

LAYOUT = PageLayout(
    layers=range(2),
    heads=4,
    head_dim=32,
    tokens=16,
    dtype="float16",
    granule=4,
    identity="a model, revision 1",
)


def open_tier(url: str) -> Tier:
    """Return the tier behind a URL; whoever has the same layout finds the same pages."""
    size = LAYOUT.record_bytes
    if url.startswith(("redis:", "rediss:", "unix:")):
        from infer_accel.integrations.redis import RedisTier

        return RedisTier(url, page_bytes=size, fingerprint=LAYOUT)
    from infer_accel.integrations.object_store import ObjectStoreTier

    return ObjectStoreTier(url, page_bytes=size, fingerprint=LAYOUT)


def main(url: str) -> None:
    """Compute on one server, load on the other."""
    prompt = np.random.default_rng(0).integers(0, 128_000, 200)
    keys = LAYOUT.record_keys(hash_blocks(prompt, block_size=16))
    pages = np.random.default_rng(1).normal(size=(len(keys), *LAYOUT.shape)).astype(np.float16)

    with open_tier(url) as shared, TieredCache(shared, host_pages=64) as first:
        first.store(keys, LAYOUT.pack(pages))  # returns at once; a thread sends them
        first.flush()

    with open_tier(url) as shared, TieredCache(shared, host_pages=64) as second:
        second.prefetch(keys)  # while the request waits for its turn
        second.wait_for_prefetches()
        records = np.empty((len(keys), LAYOUT.record_bytes), np.uint8)
        found = second.load(keys, records)
        loaded = np.empty_like(pages)
        LAYOUT.unpack(records, loaded)
        print(f"{found.sum()} of {len(keys)} pages loaded, identical: {bool((loaded == pages).all())}")
        print(second.stats())
        print(shared.stats())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder).as_uri())
