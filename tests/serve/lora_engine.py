"""Runs vLLM with adapters in a process of its own, on the CPU: a job comes as JSON, as for `engine.py`.

    python tests/serve/lora_engine.py RESULT < JOB

A job is ``{"engine": {…}, "adapters": {name: directory}, "steps": [[name, …], …]}``. ``VLLM_PLUGINS`` says which
plugins are loaded.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.serve.engine import TINY_VOCABULARY, text, work


class Engine:
    """An engine, and what can be asked of it."""

    def __init__(self, arguments: dict[str, Any], adapters: dict[str, str]) -> None:
        from vllm import LLM

        self.adapters = adapters
        self.ids = {name: place + 1 for place, name in enumerate(adapters)}
        self.without_text = bool(arguments.get("skip_tokenizer_init"))
        settings = {"enable_lora": True, "enforce_eager": True, "enable_prefix_caching": False, **arguments}
        self.llm = LLM(**settings)

    def request(self, name: str | None) -> Any:
        """Return what names an adapter to vLLM."""
        from vllm.lora.request import LoRARequest

        return None if name is None else LoRARequest(name, self.ids[name], self.adapters[name])

    def prompt(self, seed: int, tokens: int) -> list[int]:
        """Return a prompt of so many tokens."""
        if self.without_text:
            drawn = random.Random(seed)
            return [drawn.randrange(3, TINY_VOCABULARY) for _ in range(tokens)]
        return list(self.llm.get_tokenizer().encode(text(seed, tokens * 6))[:tokens])

    def generate(self, prompts: list[list[int]], answer: int, names: list[str | None]) -> Any:
        """Answer prompts (seed, tokens) greedily, all together, each with its adapter; or say why not."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            max_tokens=answer, temperature=0, ignore_eos=True, detokenize=not self.without_text
        )
        asked = [{"prompt_token_ids": self.prompt(*prompt)} for prompt in prompts]
        requests = [self.request(name) for name in names]
        start = time.perf_counter()
        try:
            outputs = self.llm.generate(asked, sampling, lora_request=requests, use_tqdm=False)
        except ValueError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - start
        return {
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "seconds": seconds,
        }

    def load(self, name: str) -> Any:
        """Load an adapter as a server's ``/v1/load_lora_adapter`` does; returns why not, or None."""
        try:
            self.llm.llm_engine.add_lora(self.request(name))
        except Exception as error:  # noqa: BLE001 - whatever it is, is the answer
            return f"{type(error).__name__}: {error}"
        return None

    def upload(self, name: str, tokens: int) -> Any:
        """Return the seconds from an adapter that is new to the engine to the first token of its answer."""
        before = self.memory()
        start = time.perf_counter()
        problem = self.load(name)
        loaded = time.perf_counter()
        assert problem is None, problem
        answer = self.generate([[99, tokens]], 1, [name])
        done = time.perf_counter()
        return {
            "load_seconds": loaded - start,
            "first_token_seconds": done - start,
            "tokens": answer["tokens"],
            "grown_bytes": self.memory() - before,
            "peak_bytes": self.peak(),
        }

    def forget_base(self) -> None:
        """Have the checks know nothing of the model's files, as where they are not on this machine."""
        from infer_accel.integrations._vllm_lora.checks import AdapterChecks

        self._runner().lora_manager._infer_accel_checks = AdapterChecks(None)

    def not_finite(self) -> int:
        """Return how many numbers of the KV cache are none."""
        caches = self._runner().kv_caches
        return sum(int((~cache.float().isfinite()).sum()) for cache in caches)

    def wrapper(self) -> str:
        """Return which operations apply adapters."""
        manager = self._runner().lora_manager._adapter_manager
        return type(next(iter(manager.punica_wrapper_mapping.values()))).__name__

    def peak(self) -> int:
        """Return the most bytes that this process has had in memory."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def memory(self) -> int:
        """Return the bytes of this process that are in memory now."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) << 10

    def _runner(self) -> Any:
        core = self.llm.llm_engine.engine_core.engine_core
        return core.model_executor.driver_worker.worker.model_runner

    def close(self) -> None:
        """End the engine as a server that is stopped does."""
        self.llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    work(lambda job: Engine(job["engine"], job["adapters"]))
