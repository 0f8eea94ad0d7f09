"""Times what transformers' continuous batching does around its model, by itself and with our block manager.

Needs transformers; `benches/engine_bench.py` says how to run.

A batch of requests is prefilled and then decoded, by transformers' own scheduler, and no model: tokens are made up. Its
memory is one number a row, so that what is read can be held against what was written, before a figure is believed.
Attention masks are left out, as for the kernels that need none.
"""

from __future__ import annotations

import functools
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

#: Requests, tokens of each, tokens of a page.
CASES = ((64, 8192, 16), (64, 8192, 256), (16, 2048, 16))
STEPS = 20


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where, rows = record["machine"], record["rows"]
    setting = f"transformers {where['transformers']}, 1 thread of {where['cpu']}, {where['date'][:10]}"
    lines = [
        f"{setting}; medians of {STEPS} decode steps, in milliseconds:",
        "",
        "| requests × tokens, page | | transformers | with the block manager | ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for row in rows:
        case = f"{row['requests']} × {row['tokens']:,}, {row['page']}"
        for part in ("schedule", "prepare", "update", "step"):
            own, ours = row["own"][part] * 1e3, row["ours"][part] * 1e3
            name = f"**{part}**" if part == "step" else part
            lines.append(f"| {case} | {name} | {own:.2f} | {ours:.2f} | ×{own / ours:.1f} |")
            case = ""
    return "\n".join(lines) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "transformers", "docs/integrations/transformers.md", table, {"turns": 1}
)


class Alone:
    """One process without ranks beside it."""

    tp_size = 1

    def are_kv_heads_tp_ed(self) -> bool:
        """Return False."""
        return False


def make(requests: int, tokens: int, page: int) -> tuple[Any, Any, Any, Any]:
    """Return cache, inputs, processors and scheduler, of the classes that are installed."""
    import torch
    from transformers import ContinuousBatchingConfig, LlamaConfig
    from transformers.generation.continuous_batching import continuous_api
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessorList,
    )
    from transformers.generation.continuous_batching.scheduler import FIFOScheduler
    from transformers.generation.logits_process import LogitsProcessorList

    config = LlamaConfig(
        hidden_size=2,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
    )
    config._attn_implementation = "paged|flash_attention_2"  # noqa: SLF001 - as transformers sets it
    batching = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=requests * (tokens + STEPS + page) // page + 64,
        max_batch_tokens=8192,
        max_requests_per_batch=requests,
        max_blocks_per_request=0,
        max_memory_percent=0.9,
        use_async_batching=False,
        use_cuda_graph=False,
    )
    shared = {"config": config, "continuous_batching_config": batching, "device": torch.device("cpu")}
    cache = continuous_api.PagedAttentionCache(**shared, distributed_helper=Alone(), dtype=torch.float16)
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList())
    inputs = continuous_api.ContinuousBatchingIOs(
        **shared, cache=cache, model_dtype=torch.float16, logit_processor=processors
    )
    return cache, inputs, processors, FIFOScheduler(cache, 0.0, requests)


def measure(requests: int, tokens: int, page: int) -> dict[str, float]:
    """Return seconds of the parts of a decode step."""
    import torch
    from transformers.generation.continuous_batching.requests import RequestState

    cache, inputs, processors, scheduler = make(requests, tokens, page)
    drawn = random.Random(0)
    for place in range(requests):
        prompt = [drawn.randrange(32000) for _ in range(tokens - STEPS // 2)]
        scheduler.add_waiting_request(
            RequestState(f"r{place}", prompt, max_new_tokens=1 << 30, eos_token_id=-5)
        )
    memory = torch.zeros(cache.cache_tensor.numel() // 2, dtype=torch.int64)
    times: dict[str, list[float]] = {"schedule": [], "prepare": [], "update": [], "step": []}
    step = 0
    while len(times["step"]) < STEPS:
        start = time.perf_counter()
        batch, fast, queries, reads = scheduler.schedule_batch(cache.max_batch_tokens, cache.max_tokens_read)
        scheduled = time.perf_counter()
        inputs.prepare_batch_tensors(batch, processors, fast, queries, reads, use_padding=False)
        prepared = time.perf_counter()
        given = inputs.get_model_kwargs()
        states = [future.state for future in batch]
        told = [(state.initial_tokens + state.generated_tokens)[: state.position_offset] for state in states]
        memory[given["write_index"][0]] = given["input_ids"][0].long()
        read = memory[given["read_index"][0]].tolist()
        assert not read or read == [token for one in told for token in one]
        step += 1
        computed = time.perf_counter()
        for place, future in enumerate(batch):
            if future.has_new_token:
                future.state.update_and_check_completion((step * 31 + place) % 32000, None)
            cache.mark_complete_blocks(future.state, future.complete_blocks)
        updated = time.perf_counter()
        if len(batch) == requests and queries == requests:
            assert read, "a decode step reads"
            parts = (scheduled - start, prepared - scheduled, updated - computed)
            for name, seconds in zip(times, (*parts, sum(parts)), strict=True):
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def compared(requests: int, tokens: int, page: int, turns: int) -> Iterator[dict]:
    """Give the row of a case."""
    import torch

    from infer_accel.integrations import transformers as accelerated

    torch.set_num_threads(1)

    def measured(way: str) -> dict[str, float]:
        if way == "own":
            return measure(requests, tokens, page)
        with accelerated.installed() as active:
            assert active
            return measure(requests, tokens, page)

    taken = engine_bench.in_turns(("own", "ours"), turns, measured)
    yield {"requests": requests, "tokens": tokens, "page": page, **taken, "validated": True}


def phases(options: argparse.Namespace) -> dict[str, Callable[[], Iterator[dict]]]:
    """Return what is measured: each case."""
    return {str(case): functools.partial(compared, *case, options.turns) for case in CASES}


if __name__ == "__main__":
    BENCH.run(phases, lambda _: engine_bench.machine("transformers", "torch", threads=1))
