"""Two requests share a prompt: the second one finds the blocks that the first has filled."""

import numpy as np

from infer_accel.kvcache import BlockPool, hash_blocks

BLOCK_SIZE = 16

pool = BlockPool(num_blocks=64, block_size=BLOCK_SIZE)
rng = np.random.default_rng(0)
system_prompt = rng.integers(0, 128_000, 80)


def serve(question: np.ndarray) -> np.ndarray:
    """Return the blocks of a request, the cached prefix first."""
    prompt = np.concatenate([system_prompt, question])
    hashes = hash_blocks(prompt, block_size=BLOCK_SIZE)
    cached = pool.lookup(hashes)
    fresh = pool.alloc(-(-len(prompt) // BLOCK_SIZE) - len(cached))
    blocks = np.concatenate([cached, fresh])
    # ... here a model computes keys and values for the tokens that are not cached ...
    pool.cache(blocks[: len(hashes)], hashes)
    print(f"{len(prompt)} tokens: {len(cached)} blocks cached, {len(fresh)} new, table {pool.ids(blocks)}")
    return blocks


first = serve(rng.integers(0, 128_000, 30))
second = serve(rng.integers(0, 128_000, 50))

# Last block first, so that the shared prefix is evicted last.
pool.free(first[::-1])
pool.free(second[::-1])
pool.check_invariants()
print(pool.stats())
