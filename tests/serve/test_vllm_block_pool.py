"""Our block pool under vLLM's managers: the same blocks, hits and tokens as with vLLM's own, step by step."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", exc_type=ImportError)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch and vLLM, when they are imported
    import torch
    from tests.serve.run import ask, make_tiny
    from tests.serve.server import serving
    from vllm.sampling_params import SamplingParams
    from vllm.utils import hashing
    from vllm.v1.core import kv_cache_coordinator, kv_cache_manager, kv_cache_utils
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched import scheduler
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )
    from vllm.v1.request import Request

    from infer_accel.errors import StaleBlockError
    from infer_accel.integrations import vllm_block_pool
    from infer_accel.integrations._vllm_blocks import hasher, manager, versions

# Of torch and vLLM, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = 4


@pytest.fixture(autouse=True)
def _known_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    register_all_kvcache_specs(None)


def hash_function(name: str) -> Any:
    """Return one of vLLM's, and begin its chains."""
    if name.startswith("xxhash"):
        pytest.importorskip("xxhash")
    function = getattr(hashing, name)
    kv_cache_utils.init_none_hash(function)
    return function


def config(num_blocks: int, spec: Any = None) -> KVCacheConfig:
    spec = spec or FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )


def make(kind: type[KVCacheManager], num_blocks: int, **options: Any) -> Any:
    return kind(
        config(num_blocks),
        1 << 20,
        scheduler_block_size=SIZE,
        hash_block_size=SIZE,
        log_stats=True,
        **options,
    )


def request(name: str, tokens: list[int], function: Any = hashing.sha256, **options: Any) -> Request:
    sampling = SamplingParams(max_tokens=17)
    sampling.update_from_generation_config({}, 100)
    return Request(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=sampling,
        pooling_params=None,
        block_hasher=kv_cache_utils.get_request_block_hasher(SIZE, function),
        **options,
    )


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Managers of vLLM and of ours, side by side."""
    for module, name in (
        (kv_cache_coordinator, "get_kv_cache_coordinator"),
        (kv_cache_manager, "get_kv_cache_coordinator"),
        (kv_cache_manager, "KVCacheManager"),
        (scheduler, "KVCacheManager"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))

    def pair(num_blocks: int, **options: Any) -> tuple[Any, Any]:
        theirs = make(KVCacheManager, num_blocks, **options)
        manager.install()
        ours = make(manager.PooledKVCacheManager, num_blocks, **options)
        assert isinstance(ours.coordinator, manager.PooledCoordinator)
        return theirs, ours

    return pair


def books(one: Any) -> tuple[Any, ...]:
    """What a pool says of itself."""
    pool = one.block_pool
    return (
        pool.get_num_free_blocks(),
        [block.block_id for block in pool.free_block_queue.get_all_free_blocks()],
        [(block.block_id, block.is_null or block.ref_cnt, block.block_hash) for block in pool.blocks],
        one.usage,
    )


def admit(one: Any, asked: Request, chunk: int, watermark: int) -> Any:
    """Do what the scheduler does for a request that waits."""
    found, cached, boundary = one.get_computed_blocks(asked)
    first = min(chunk, asked.num_tokens - cached)
    given = one.allocate_slots(
        asked, first, cached, found, full_sequence_must_fit=True, reserved_blocks=watermark
    )
    return (
        cached,
        boundary,
        found.get_block_ids(),
        None if given is None else given.get_block_ids(),
        cached + first,
    )


@pytest.mark.parametrize("name", ["sha256", "xxhash"])
@pytest.mark.parametrize("seed", range(4))
def test_a_server_day_is_the_same(seed: int, name: str, both: Any) -> None:
    """Admissions in chunks, decode steps, speculation, preemption, lost blocks, resets: the books stay equal."""
    function = hash_function(name)
    chance, num_blocks = random.Random(seed), 60
    managers = both(num_blocks)
    running: list[list[Request]] = []
    hits = refusals = resets = 0
    for turn in range(400):
        for one in managers:
            one.new_step_starts()
        act = chance.random()
        if act < 0.3:
            tokens = [chance.randrange(2)] * chance.randrange(1, 40) + [chance.randrange(3)]
            salt = chance.choice([None, None, "tenant"])
            asked = [request(str(turn), tokens, function, cache_salt=salt) for _ in managers]
            chunk, kept = chance.randrange(1, 50), chance.randrange(3)
            came = [admit(one, mine, chunk, kept) for one, mine in zip(managers, asked, strict=True)]
            assert came[0] == came[1]
            if came[0][3] is None:
                refusals += 1
            else:
                hits += came[0][0]
                for mine in asked:
                    mine.num_computed_tokens = came[0][4]
                running.append(asked)
        elif act < 0.4 and running:
            gone = running.pop(chance.randrange(len(running)))
            for one, mine in zip(managers, gone, strict=True):
                one.free(mine)
        elif act < 0.45 and running:
            # The scheduler's way where a step is under way: taken out now, given back later.
            gone = running.pop(chance.randrange(len(running)))
            for one, mine in zip(managers, gone, strict=True):
                blocks = one.pop_blocks_for_free(mine)
                one.block_pool.free_blocks(reversed(blocks))
        elif act < 0.47 and running:
            held = chance.choice(running)
            lost = set(managers[0].get_block_ids(held[0].request_id)[0][-1:])
            names = [managers[0].block_pool.blocks[number].block_hash for number in lost]
            twins = [
                b for b in managers[0].block_pool.blocks if b.block_hash in names and b.block_hash is not None
            ]
            if len(twins) == 1:  # of several with one content, ours forgets all
                for one in managers:
                    one.evict_blocks(lost)
        elif act < 0.5 and chance.random() < 0.3:
            for row in running:
                for one, mine in zip(managers, row, strict=True):
                    one.free(mine)
            running.clear()
            assert [one.reset_prefix_cache() for one in managers] == [True, True]
            resets += 1
        for row in list(running):
            ahead = chance.choice([0, 0, 2])
            new = chance.randrange(1, 4) if row[0].num_computed_tokens < row[0].num_tokens else 1
            if row[0].num_computed_tokens == row[0].num_tokens:
                token = chance.randrange(2)
                for mine in row:
                    mine.append_output_token_ids(token)
            new = min(new, row[0].num_tokens - row[0].num_computed_tokens)
            given = [
                one.allocate_slots(mine, new, num_lookahead_tokens=ahead)
                for one, mine in zip(managers, row, strict=True)
            ]
            assert (given[0] is None) == (given[1] is None)
            if given[0] is None:
                refusals += 1
                for one, mine in zip(managers, row, strict=True):
                    one.free(mine)
                running.remove(row)
                continue
            assert given[0].get_block_ids(allow_none=True) == given[1].get_block_ids(allow_none=True)
            for mine in row:
                mine.num_computed_tokens += new
            ids = [one.get_block_ids(mine.request_id) for one, mine in zip(managers, row, strict=True)]
            assert ids[0] == ids[1]
            estimates = [one.estimate_cached_tokens(mine) for one, mine in zip(managers, row, strict=True)]
            assert estimates[0] == estimates[1]
        assert books(managers[0]) == books(managers[1])
        managers[1].block_pool.check()
    assert hits > 100
    assert refusals > 5
    assert resets > 0


def test_blocks_are_what_vllm_takes_them_for(both: Any) -> None:
    """Views of single blocks, as connectors and tools read them."""
    kv_cache_utils.init_none_hash(hashing.sha256)
    _, ours = both(10)
    pool = ours.block_pool
    asked = request("one", list(range(10)))
    given = ours.allocate_slots(asked, 10)
    first, second, third = given.blocks[0]
    assert [first.block_id, first.ref_cnt, first.is_null] == [1, 1, False]
    assert first is pool.blocks[1]
    assert kv_cache_utils.get_block_hash(second.block_hash) == asked.block_hashes[1]
    assert third.block_hash is None
    assert pool.is_block_writable(third)
    assert not pool.is_block_writable(second)
    assert given.get_unhashed_block_ids() == [3]
    assert pool.get_cached_block(asked.block_hashes[0], [0]) == [first]
    assert pool.get_cached_block(asked.block_hashes[0], [1]) is None
    assert pool.cached_block_hash_to_block.get_one_block(second.block_hash) == second
    assert len(pool.cached_block_hash_to_block) == 2
    pool.touch([second, pool.null_block])
    ours.free(asked)
    assert (first.ref_cnt, second.ref_cnt, third.ref_cnt) == (0, 1, 0)
    pool.touch([first])
    assert first.ref_cnt == 1
    pool.free_blocks([second, first])
    with pytest.raises(StaleBlockError):
        pool.free_blocks([first])
    with pytest.raises(RuntimeError, match="not the one"):
        pool.touch([third])
    with pytest.raises(NotImplementedError):
        pool.unpin_blocks([first], print)
    pool.check()


@pytest.mark.parametrize(
    "change",
    [
        {"use_eagle": True},
        {"enable_caching": False},
        {"enable_kv_cache_events": True},
        {"num_prefill_lookahead": 1},
    ],
)
def test_other_configurations_keep_vllms_own(change: dict[str, Any], both: Any) -> None:
    both(10)
    kept = make(manager.PooledKVCacheManager, 10, **change)
    assert not isinstance(kept.coordinator, manager.PooledCoordinator)
    window = SlidingWindowSpec(
        block_size=SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=8
    )
    given = {"hash_block_size": SIZE, "scheduler_block_size": SIZE, "enable_caching": True}
    assert manager.serves(config(10), given)
    assert not manager.serves(config(10, window), given)
    assert not manager.serves(config(1), given)


@pytest.mark.parametrize("name", ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"])
def test_block_hashes_are_vllms(name: str) -> None:
    """With and without salt, at once and bit by bit; what has other keys goes vLLM's way."""
    function = hash_function(name)
    own = kv_cache_utils.get_request_block_hasher(SIZE, function)
    ours = hasher.bulk_hasher(SIZE, function, own)
    assert ours is not own
    chance = random.Random(name)
    for case in range(60):
        tokens = [chance.randrange(1 << chance.randrange(1, 20)) for _ in range(chance.randrange(1, 60))]
        salt = chance.choice([None, f"sält {case}"])
        expected, got = (request(str(case), tokens, function, cache_salt=salt) for _ in range(2))
        got.block_hashes = []
        got.block_hashes.extend(ours(got))
        for _ in range(3):
            assert got.block_hashes == expected.block_hashes
            more = [chance.randrange(1000) for _ in range(chance.randrange(12))]
            expected.append_output_token_ids(more)
            got._block_hasher = ours
            got.append_output_token_ids(more)
    unknown: Any = print
    assert hasher.bulk_hasher(SIZE, unknown, own) is own


def test_an_unknown_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(vllm_block_pool.VARIABLE, "1")
    assert versions.interface_problem() is None
    monkeypatch.setattr("vllm.__version__", "0.40.0")
    assert not vllm_block_pool.register()
    assert "vLLM 0.40.0 came; known to work: 0.32, 0.33" in caplog.text
    monkeypatch.undo()
    monkeypatch.setenv(vllm_block_pool.VARIABLE, "1")
    monkeypatch.setattr("vllm.v1.core.block_pool.BlockPool.touch", lambda self, blocks, why: None)
    assert not vllm_block_pool.register()
    assert "a changed build?" in caplog.text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    # Qwen2's attention has no window unless it is asked for.
    made = {"architectures": ["Qwen2ForCausalLM"]}
    return make_tiny("Qwen2Config", made, tmp_path_factory.mktemp("tiny"), with_text=True)


def engine(model: str, folder: Path, *, ours: bool, connector: bool) -> list[Any]:
    """Start vLLM's engine and ask it twice, with a reset between; room for some of the prompts only."""
    prompts = [[seed, 200, 7, 60] for seed in (1, 2, 1, 3, 2, 1)] + [[7, 150]]
    steps = [["generate", prompts, 24], ["generate", prompts, 24], ["reset"], ["generate", prompts, 24]]
    arguments = {
        "model": model, "skip_tokenizer_init": True, "dtype": "float32", "block_size": 32, "max_model_len": 512,
        "max_num_seqs": 4, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 40,
    }  # fmt: skip
    name = f"{ours}-{connector}"
    cache = {"root_dir": str(folder / name), "capacity_bytes": 1 << 28} if connector else None
    job = {"engine": arguments, "connector": cache, "steps": steps}
    results, log = ask("engine.py", job, **{vllm_block_pool.VARIABLE: "1" if ours else "0"})
    assert results is not None
    assert ("infer-accel's block pool" in log) == ours
    return [
        (one["tokens"], one["cached"]) if isinstance(one, dict) and "tokens" in one else one
        for one in results
    ]


@pytest.mark.parametrize("connector", [False, True])
def test_the_engine_says_the_same(tiny: str, tmp_path: Path, connector: bool) -> None:
    """Tokens and hits of a real engine, by the entry point; alone and with the connector beside it."""
    alone = engine(tiny, tmp_path, ours=False, connector=connector)
    assert engine(tiny, tmp_path, ours=True, connector=connector) == alone
    assert sum(alone[1][1]) > 0


@pytest.mark.skipif(
    not versions.version().startswith("0.32"), reason="of 0.33 there is no engine for CPUs to serve with"
)
def test_the_example_serves(tiny: str, tmp_path: Path) -> None:
    """What a user types; the second answer begins with what the first one left."""
    example = Path(__file__).resolve().parents[2] / "examples/vllm_block_pool.sh"
    options = ["--dtype", "float32", "--max-model-len", "512", "--block-size", "32", "--enforce-eager"]
    command = ["sh", str(example), tiny, "--enable-prompt-tokens-details", *options]
    log = tmp_path / "log"
    with serving(command, tiny, log) as server:
        prompt = [1 + place % 900 for place in range(200)]
        first, second = server.stream(prompt, 8), server.stream(prompt, 8)
    assert second.tokens == first.tokens
    assert (first.cached, second.cached) == (0, 192)
    assert "infer-accel's block pool keeps" in log.read_text()
