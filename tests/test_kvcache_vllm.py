"""The same calls to vLLM's own functions, where vLLM is installed."""

from __future__ import annotations

import os
import random
import secrets
from typing import Any

import pytest

from infer_accel import kvcache

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
hashing = pytest.importorskip("vllm.utils.hashing", exc_type=ImportError)
utils = pytest.importorskip("vllm.v1.core.kv_cache_utils", exc_type=ImportError)

ALGORITHMS: list[kvcache.Algorithm] = ["sha256_cbor", "sha256", "xxhash_cbor", "xxhash"]


def some_keys(chance: random.Random) -> tuple[Any, ...] | None:
    """Extra keys as vLLM makes them: adapter, images, salt, prompt embeddings, in this order."""
    text = secrets.token_hex(8)
    keys: list[Any] = []
    if chance.random() < 0.5:
        keys.append(("lora", f"adapter {text}", f"/path/{text}"))
    keys += [("mm", f"{text}-{number}", number * 7 - 5) for number in range(chance.randrange(3))]
    if chance.random() < 0.3:
        keys.append(("cache_salt", f"sält {text}"))
    if chance.random() < 0.3:
        keys.append(("prompt_embeds", secrets.token_bytes(32)))
    return tuple(keys) or None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hashes_equal_those_of_vllm(algorithm: kvcache.Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    function = hashing.get_hash_fn_by_name(algorithm)
    chance = random.Random(algorithm)
    for case in range(300):
        if case % 2:
            monkeypatch.setenv("PYTHONHASHSEED", str(chance.randrange(1 << 32)))
        elif algorithm.startswith("sha256"):
            monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        else:
            monkeypatch.setenv("PYTHONHASHSEED", "0")  # else both begin at random
        utils.init_none_hash(function)
        assert kvcache.none_hash(algorithm) == utils.NONE_HASH
        block_size = chance.choice([1, 2, 3, 4, 16, 64, 128])
        num_blocks = chance.randrange(6)
        ids = [chance.randrange(1 << chance.randrange(1, 20)) for _ in range(num_blocks * block_size + 3)]
        keys = [some_keys(chance) for _ in range(len(ids) // block_size)] if chance.random() < 0.6 else None
        parent = function(secrets.token_bytes(5)) if chance.random() < 0.5 else None
        last, expected = parent, []
        for block in range(len(ids) // block_size):
            tokens = ids[block * block_size : (block + 1) * block_size]
            last = utils.hash_block_tokens(function, last, tokens, keys[block] if keys else None)
            expected.append(last)
        got = kvcache.hash_blocks(
            ids, block_size=block_size, algorithm=algorithm, parent=parent, extra_keys=keys
        )
        assert [row.tobytes() for row in got] == expected
