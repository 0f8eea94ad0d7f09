"""Move pages of a paged KV cache to host memory and back, layer by layer in one call."""

import numpy as np

from infer_accel.kvcache import page_copy, page_gather

LAYERS, PAGES, BLOCK_SIZE, HEADS, HEAD_DIM = 4, 64, 16, 8, 128

# vLLM's layout on the CPU: one array a layer, [key or value, page, head, token, dim]; pages are axis 1.
cache = [
    np.random.default_rng(layer).standard_normal((2, PAGES, HEADS, BLOCK_SIZE, HEAD_DIM)).astype(np.float16)
    for layer in range(LAYERS)
]

# A request holds these pages; its cache is packed for the host, or for the network.
block_table = np.array([7, 3, 41, 12], np.int32)
packed = [np.empty((2, len(block_table), HEADS, BLOCK_SIZE, HEAD_DIM), np.float16) for _ in range(LAYERS)]
page_gather(cache, block_table, packed, axis=1)

# Later it comes back, to whichever pages are free then.
free_pages = np.array([50, 51, 9, 60], np.int32)
mapping = np.stack([np.arange(len(free_pages)), free_pages], axis=1)
page_copy(packed, cache, mapping, axis=1)

same = all((layer[:, block_table] == layer[:, free_pages]).all() for layer in cache)
print(f"{len(block_table)} pages of {LAYERS} layers moved, {sum(layer.nbytes for layer in packed) >> 10} KiB")
print("the same bytes came back:", same)
