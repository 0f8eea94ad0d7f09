"""Runs vLLM in a process of its own, on the CPU: reads what to do as JSON from standard input, writes what came of it.

    python tests/serve/engine.py RESULT < JOB

A job is ``{"engine": {…arguments of vllm.LLM…}, "connector": {…} or null, "steps": [[name, …], …]}``. Text that a
prompt is made of comes with Python itself, so that nothing has to be fetched.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: What vLLM is told of a machine without a GPU. One thread unless somebody says otherwise: runs add in the same order.
ON_A_CPU = {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}

CONNECTOR = "infer_accel.integrations.vllm_connector"


#: Tokens of a model that is made here, and speaks no language.
TINY_VOCABULARY = 997


def text(seed: int, characters: int) -> str:
    """Return some of the documentation of Python's language, another part for each seed."""
    from pydoc_data import topics

    whole = "\n\n".join(topics.topics[key] for key in sorted(topics.topics))
    begin = seed * 7919 * 13 % (len(whole) - characters)
    return whole[begin : begin + characters]


@functools.cache
def model() -> str:
    """Return the directory of SmolLM2-135M, made at first."""
    from tests.models import smollm2
    from tests.serve import supervised

    if not smollm2.base_dir().is_dir():
        code = "from tests.models import smollm2; smollm2.make([])"
        root = Path(__file__).resolve().parents[2]
        supervised.run([sys.executable, "-c", code], cwd=root).check_returncode()
    return str(smollm2.base_dir())


class Engine:
    """An engine, and what can be asked of it."""

    def __init__(self, arguments: dict[str, Any], connector: dict[str, Any] | None) -> None:
        from vllm import LLM

        if connector is not None:
            arguments["kv_transfer_config"] = {
                "kv_connector": "InferAccelConnector",
                "kv_connector_module_path": CONNECTOR,
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": connector,
            }
        self.without_text = bool(arguments.get("skip_tokenizer_init"))
        self.llm = LLM(enforce_eager=True, enable_prefix_caching=True, **arguments)
        self.root = Path(connector["root_dir"]) if connector is not None else None

    def prompt(self, seed: int, tokens: int, *more: int) -> list[int]:
        """Return a prompt of so many tokens; of several parts, where more seeds and numbers come."""
        if more:
            return self.prompt(seed, tokens) + self.prompt(*more)
        if self.without_text:
            drawn = random.Random(seed)
            return [drawn.randrange(3, TINY_VOCABULARY) for _ in range(tokens)]
        ids = self.llm.get_tokenizer().encode(text(seed, tokens * 6))
        assert len(ids) >= tokens
        return list(ids[:tokens])

    def generate(self, prompts: list[list[int]], answer: int, salts: list[str | None] | None = None) -> Any:
        """Answer prompts (seed, tokens), greedily; together, and each alone in time."""
        from vllm import SamplingParams

        asked: list[dict[str, Any]] = [{"prompt_token_ids": self.prompt(*prompt)} for prompt in prompts]
        for request, salt in zip(asked, salts or [], strict=False):
            if salt is not None:
                request["cache_salt"] = salt
        sampling = SamplingParams(
            max_tokens=answer, temperature=0, ignore_eos=True, detokenize=not self.without_text
        )
        start = time.perf_counter()
        outputs = self.llm.generate(asked, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        return {
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
            "seconds": seconds,
        }

    def reset(self) -> bool:
        """Have vLLM forget its prefix cache."""
        return bool(self.llm.reset_prefix_cache())

    def _connector(self) -> Any:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group()

    def flush(self) -> bool:
        """Wait until all pages are on disk."""
        return bool(self._connector().flush())

    def stats(self) -> dict[str, float]:
        """Return the numbers of both sides."""
        import dataclasses

        worker = dataclasses.asdict(self._connector().stats())
        core = self.llm.llm_engine.engine_core.engine_core
        scheduler = dataclasses.asdict(core.scheduler.get_kv_connector().stats())
        return {name: worker[name] + scheduler[name] for name in worker}

    def flip(self, every: int) -> int:
        """Flip a bit of every so many bytes of every segment on disk; return how many."""
        assert self.root is not None
        flipped = 0
        for segment in self.root.rglob("*.segment"):
            with segment.open("r+b") as file:
                size = segment.stat().st_size
                for place in range(every, size, every):
                    file.seek(place)
                    byte = file.read(1)
                    file.seek(place)
                    file.write(bytes([byte[0] ^ 4]))
                    flipped += 1
        return flipped

    def kill(self) -> None:
        """End without a word."""
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """End the engine as a server that is stopped does."""
        self.llm.llm_engine.engine_core.shutdown()


def work(make: Callable[[dict[str, Any]], Any]) -> None:
    """Do the job on standard input with an engine that is made of it; write how long that took, and what came of it."""
    os.environ |= ON_A_CPU | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    job = json.load(sys.stdin)
    start = time.perf_counter()
    engine = make(job)
    results: list[Any] = [{"start_seconds": time.perf_counter() - start}]
    for name, *arguments in job["steps"]:
        results.append(getattr(engine, name)(*arguments))
        sys.stderr.write(f"{name} {arguments}: {str(results[-1])[:400]}\n")
        sys.stderr.flush()
    engine.close()
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    work(lambda job: Engine(job["engine"], job["connector"]))
