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


def vllm_manager(num_blocks: int, block_size: int, *, events: bool = False) -> Any:
    """vLLM's own manager of one group of full attention."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return KVCacheManager(
        config,
        max_model_len=1 << 20,
        scheduler_block_size=block_size,
        hash_block_size=block_size,
        enable_kv_cache_events=events,
    )


def vllm_request(name: str, tokens: list[int], block_size: int) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    options = SamplingParams(max_tokens=17)
    options.update_from_generation_config({}, eos_token_id=100)
    hasher = utils.get_request_block_hasher(block_size, hashing.sha256_cbor)
    return Request(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=options,
        pooling_params=None,
        block_hasher=hasher,
    )


def plain(event: Any) -> tuple[Any, ...]:
    """An event of either side: removals one by one, as vLLM tells them."""
    if type(event).__name__ == "BlockStored":
        return (
            "stored",
            tuple(event.block_hashes),
            event.parent_block_hash,
            tuple(event.token_ids),
            event.block_size,
            event.group_idx,
            event.kv_cache_spec_kind,
            tuple(event.extra_keys),
        )
    return ("cleared",)


def flattened(events: list[Any]) -> list[tuple[Any, ...]]:
    flat: list[tuple[Any, ...]] = []
    for event in events:
        if type(event).__name__ == "BlockRemoved":
            flat += [("removed", row, event.group_idx) for row in event.block_hashes]
        else:
            flat.append(plain(event))
    return flat


@pytest.mark.parametrize("seed", range(6))
def test_a_server_day_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests on both: block ids, hits, refusals and events are equal, step by step."""
    import numpy as np

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr("vllm.envs.VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", False, raising=False)
    utils.init_none_hash(hashing.sha256_cbor)
    chance, block_size, num_blocks = random.Random(seed), 4, 60
    theirs = vllm_manager(num_blocks, block_size, events=True)
    pool = kvcache.BlockPool(num_blocks, block_size=block_size, event_bytes=1 << 20)
    ours = kvcache.BlockManager(pool)
    running: list[tuple[Any, int]] = []
    hits = refusals = 0
    for turn in range(400):
        theirs.new_step_starts()
        if chance.random() < 0.3:
            tokens = [chance.randrange(2)] * chance.randrange(1, 40) + [chance.randrange(3)]
            request = vllm_request(str(turn), tokens, block_size)
            found, cached, *_ = theirs.get_computed_blocks(request)
            given = theirs.allocate_slots(request, len(tokens) - cached, cached, found)
            if given is None:
                refusals += 1
                with pytest.raises(MemoryError):
                    ours.admit(tokens)
            else:
                request.num_computed_tokens = len(tokens)
                admitted = ours.admit(tokens)
                assert admitted.cached_tokens == cached
                hits += cached
                running.append((request, admitted.sequence))
        elif chance.random() < 0.3 and running:
            request, sequence = running.pop(chance.randrange(len(running)))
            theirs.free(request)
            ours.release([sequence])
        for request, sequence in list(running):
            token = chance.randrange(2)
            request.append_output_token_ids(token)
            given = theirs.allocate_slots(request, 1)
            if given is None:
                refusals += 1
                with pytest.raises(MemoryError):
                    ours.step([sequence], [token])
                theirs.free(request)
                ours.release([sequence])
                running.remove((request, sequence))
                continue
            request.num_computed_tokens += 1
            assert ours.step([sequence], [token]).size == 0
        tables = np.zeros((len(running), num_blocks), np.int32)
        ours.block_tables([sequence for _, sequence in running], out=tables)
        for row, (request, _) in zip(tables, running, strict=True):
            ids = theirs.get_block_ids(request.request_id)[0]
            assert row[: len(ids)].tolist() == ids
            assert not row[len(ids) :].any()
        assert pool.stats().free_blocks == theirs.block_pool.get_num_free_blocks()
        assert flattened(ours.drain_events()) == flattened(theirs.take_events())
    assert hits > 100
    assert refusals > 5


@pytest.mark.parametrize("form", ["integer", "bytes"])
def test_vllm_decodes_our_events(form: Any) -> None:
    """Its own classes read what we write, and write it back to the same bytes."""
    msgspec = pytest.importorskip("msgspec")
    from vllm.distributed import kv_events

    groups = [kvcache.CacheGroup(), kvcache.CacheGroup(32)]
    pool = kvcache.BlockPool(40, block_size=8, event_bytes=1 << 20)
    manager = kvcache.BlockManager(pool, groups=groups)
    first = manager.admit(range(100_000, 100_070), salt="tenant", adapter=("name", "/path")).sequence
    manager.step([first], [5, 6, 7, 8], [4])
    manager.release([first])
    manager.admit(range(120))
    manager.admit(range(20), extra_keys=[(("mm", "image", -3), ("prompt_embeds", bytes(32))), None])
    for kinds in ({"BlockStored", "BlockRemoved"}, {"AllBlocksCleared"}):
        data = manager.drain_events_msgpack(timestamp=12.5, data_parallel_rank=2, hashes=form)
        batch = msgspec.msgpack.Decoder(type=kv_events.KVEventBatch).decode(data)
        assert msgspec.msgpack.Encoder().encode(batch) == data
        assert (batch.ts, batch.data_parallel_rank) == (12.5, 2)
        assert {type(event).__name__ for event in batch.events} == kinds
        pool.reset()


@pytest.mark.parametrize("num_blocks", [100, 400, 5000])
def test_a_replay_hits_what_vllm_hits(num_blocks: int) -> None:
    """Block for block: the same trace, with tokens that follow from its ids, through vLLM's manager."""
    from tests.test_kvcache_replay import some_trace

    utils.init_none_hash(hashing.sha256_cbor)
    block_size = 64
    trace = kvcache.Trace.parse(some_trace(5, 120))
    theirs = vllm_manager(num_blocks, block_size, events=True)
    hits, evicted = [], 0
    for number in range(len(trace)):
        _, length, _, ids = trace.request(number)
        tokens = [ids[at // 512] * 512 + at % 512 for at in range(length)]
        request = vllm_request(str(number), tokens, block_size)
        found, cached, *_ = theirs.get_computed_blocks(request)
        if theirs.allocate_slots(request, length - cached, cached, found) is None:
            hits.append(0)
            continue
        hits.append(cached // block_size)
        theirs.free(request)
        evicted += sum(type(event).__name__ == "BlockRemoved" for event in theirs.take_events())
    report = kvcache.replay(trace, num_blocks=num_blocks, block_size=block_size)
    assert report.hits.tolist() == hits
    assert report.evictions == evicted
    assert sum(hits) > 0
