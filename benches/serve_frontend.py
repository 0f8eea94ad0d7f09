"""Times the front end of a server on agents' conversations that grow: template, tokens, count, on one core.

Needs transformers; fastokens has a row where it is installed; `benches/engine_bench.py` says how to run.

Each contender is a process of its own that makes the calls which vLLM makes for a request to `/v1/chat/completions`:
`apply_chat_template(…, tokenize=False)`, then the tokenizer on the prompt, then the number of its ids. The prompts and
ids of all are compared before a figure is believed. Requests per second are what a single core can take, as they come
at random (Poisson), so that 99 of 100 are answered within a fixed time, waiting included: from the measured times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve.engine import model as model_directory  # noqa: E402
from tests.serve.engine import text  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

AGENTS, TURNS = 8, 24
#: Characters of what an agent is told at first, of what tools answer, and of what it says itself.
INSTRUCTIONS, RESULT, SAID = 6000, 1600, 400
#: Seconds within which 99 of 100 requests are answered.
LIMITS = (0.25, 0.025)
CONTENDERS = {
    "transformers": "transformers",
    "fastokens": "transformers with fastokens",
    "infer-accel": "infer-accel",
}


def requests() -> list[list[dict[str, str]]]:
    """Return conversations as they come: every agent's grows by a turn, the agents take turns."""
    told = text(1, INSTRUCTIONS)
    talks = [[{"role": "system", "content": told}] for _ in range(AGENTS)]
    came = []
    for turn in range(TURNS):
        for agent, talk in enumerate(talks):
            talk.append({"role": "user", "content": text(100 * agent + turn + 2, RESULT)})
            came.append(list(talk))
            talk.append({"role": "assistant", "content": text(100 * agent + turn + 50, SAID)})
    return came


def contend(name: str, model: str) -> dict[str, object]:
    """Return what a contender took for each request, and what it made of them."""
    if name == "fastokens":
        import fastokens

        fastokens.patch_transformers()
    from transformers import AutoTokenizer

    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    if name == "infer-accel":
        from infer_accel.integrations.transformers_tokenizer import accelerate

        plain, tokenizer = tokenizer, accelerate(tokenizer)
        assert tokenizer is not plain, "it was left as it is"
    load = time.perf_counter() - start
    for content in ("one", "two", "three", "four"):
        tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    rendering, encoding, counts, digest = [], [], [], hashlib.sha256()
    for messages in requests():
        start = time.perf_counter()
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        rendered = time.perf_counter()
        ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=1 << 20)["input_ids"]
        count = len(ids)
        done = time.perf_counter()
        rendering.append(rendered - start)
        encoding.append(done - rendered)
        counts.append(count)
        digest.update(prompt.encode() + repr(ids).encode())
    return {
        "load": load,
        "render": rendering,
        "encode": encoding,
        "counts": counts,
        "digest": digest.hexdigest(),
    }


def rate(times: list[float], limit: float) -> float:
    """Return the most requests a second that one core answers within a limit, 99 of 100; 0 where it never does."""
    drawn = random.Random(1)
    gaps = [drawn.expovariate(1.0) for _ in range(20_000)]

    def late(per_second: float) -> float:
        free, now, waits = 0.0, 0.0, []
        for place, gap in enumerate(gaps):
            now += gap / per_second
            free = max(free, now) + times[place % len(times)]
            waits.append(free - now)
        return sorted(waits)[len(waits) * 99 // 100]

    low, high = 0.0, 1 / statistics.mean(times)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if late(middle) <= limit else (low, middle)
    return low if low > high / 1e6 else 0.0


def measure(model: str, prefix: str) -> list[dict[str, object]]:
    """Return a row for each contender that is installed."""
    came = {}
    for name in CONTENDERS:
        if name == "fastokens" and importlib.util.find_spec("fastokens") is None:
            print("no row for fastokens: pip install fastokens", file=sys.stderr)
            continue
        came[name] = BENCH.child(name, model, prefix=prefix, TOKENIZERS_PARALLELISM="0")
    expected = came["transformers"]
    rows: list[dict[str, object]] = []
    for name, found in came.items():
        assert found["digest"] == expected["digest"], f"{name} has made other prompts or ids"
        whole = [render + encode for render, encode in zip(found["render"], found["encode"], strict=True)]
        rows.append(
            {
                "contender": CONTENDERS[name],
                "requests": len(whole),
                "tokens": [min(found["counts"]), max(found["counts"])],
                "render_ms": statistics.mean(found["render"]) * 1000,
                "encode_ms": statistics.mean(found["encode"]) * 1000,
                "p99_ms": sorted(whole)[len(whole) * 99 // 100] * 1000,
                "load_seconds": found["load"],
                "requests_per_second": {str(limit): rate(whole, limit) for limit in LIMITS},
                "validated": True,
            }
        )
    return rows


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where, rows = record["machine"], record["rows"]
    low, high = rows[0]["tokens"]
    setting = (
        f"{AGENTS} agents, {TURNS} turns each, conversations of {low:,} to {high:,} tokens, {where['model']}; one core "
        f"of {where['cpu']}, transformers {where['transformers']}, tokenizers {where['tokenizers']}; "
        f"{where['date'][:10]}. Milliseconds a request, and requests a second at which 99 of 100 are done within a "
        "time, waiting included:"
    )
    heads = " | ".join(f"requests/s, 99 % in {limit * 1000:.0f} ms" for limit in LIMITS)
    lines = [
        setting,
        "",
        f"| | template | tokens | 99th percentile | {heads} |",
        "|---|" + "--:|" * (3 + len(LIMITS)),
    ]
    for row in rows:
        rates = " | ".join(
            f"{value:,.1f}" if value else "none" for value in row["requests_per_second"].values()
        )
        lines.append(
            f"| {row['contender']} | {row['render_ms']:.2f} | {row['encode_ms']:.2f} | {row['p99_ms']:.1f} | {rates} |"
        )
    theirs, ours = rows[0], rows[-1]
    best = min(row["encode_ms"] for row in rows[:-1])
    closing = (
        f"Tokens take {theirs['encode_ms'] / ours['encode_ms']:,.0f} times less time than with transformers"
        + (
            f", {best / ours['encode_ms']:.1f} times less than with the best of the others"
            if len(rows) > 2
            else ""
        )
        + f"; template and tokens together {_whole(theirs) / _whole(ours):,.0f} times less."
    )
    return "\n".join([*lines, "", closing, "", BENCH.named()]) + "\n"


def _whole(row: dict) -> float:
    return row["render_ms"] + row["encode_ms"]


BENCH = engine_bench.Bench(
    __file__, __doc__, "frontend", "docs/integrations/vllm-tokenizer.md", table, starts_processes=True
)


def phases(options: argparse.Namespace) -> dict[str, Callable[[], list[dict]]]:
    """Return what is measured: all contenders, which are held against each other."""
    return {"all": lambda: measure(options.model or model_directory(), options.prefix)}


def where(options: argparse.Namespace) -> dict[str, object]:
    """Return the machine and the model."""
    named = "SmolLM2's tokenizer and template" if options.model is None else Path(options.model).name
    return engine_bench.machine("transformers", "tokenizers", model=named)


if __name__ == "__main__":
    PARSER = BENCH.parser()
    PARSER.add_argument(
        "--model", help="a directory with a tokenizer and a chat template; SmolLM2's by default"
    )
    BENCH.run(phases, where, child=lambda arguments: contend(*arguments), parser=PARSER)
