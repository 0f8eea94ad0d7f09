"""A trace of conversations through a vLLM server that is restarted in its middle, with the KV connector and without.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

Each server is started, asked for the first half of the trace and killed without a word; then each is started again and
asked for the second half. What is counted is the tokens that were computed, what is timed the first token of every
answer, as a client sees it. The answers of both are compared token by token before a figure is believed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve.engine import model as model_directory  # noqa: E402
from tests.serve.engine import text  # noqa: E402
from tests.serve.load import Prompt, ask_all, prompts  # noqa: E402
from tests.serve.server import OPTIONS, Server, serving, with_connector  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

REQUESTS, AT_ONCE, ANSWER = 64, 4, 8
#: Of the first 60 the one that is like the trace in both: 36.4 of 100 tokens repeat what came before (the trace: 36.6),
#: and who forgets in the middle has 1.29 times as much to compute behind it (the trace's next thousand requests: 1.29).
SEED = 53
#: Tokens that stand for a block of 512 in the trace, and the longest prompt.
BLOCK, MOST = 16, 1900
TRACE = prompts(REQUESTS, SEED, block=BLOCK, most=MOST, apart=AT_ONCE)
HALVES = {"before": TRACE[: REQUESTS // 2], "after": TRACE[REQUESTS // 2 :]}
ENGINE = ["--block-size", "32", "--max-num-seqs", str(AT_ONCE), "--enable-prompt-tokens-details"]


@functools.cache
def words(seed: int) -> list[int]:
    """Return the tokens of a long text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    return list(tokenizer.encode(text(seed, MOST * 6)))


def ids(prompt: Prompt) -> list[int]:
    """Return a prompt: instructions that all share, then a conversation's own text."""
    return [*words(0)[:BLOCK], *words(prompt.conversation)[: prompt.tokens - BLOCK]][: prompt.tokens]


def ask(arguments: list[str]) -> list[dict]:
    """Ask a running server for the prompts that come on standard input."""
    server = Server(int(arguments[0]), model_directory())
    read = json.load(sys.stdin)
    places = [Prompt(place, len(prompt)) for place, prompt in enumerate(read)]
    answers = ask_all(lambda prompt: server.stream(read[prompt.conversation], ANSWER), places, AT_ONCE)
    return [vars(answer) for answer in answers if answer is not None]


@contextlib.contextmanager
def started(connector: list[str], log: Path) -> Iterator[Server]:
    """Start a server, and warm it with what is not in the trace."""
    command = ["vllm", "serve", model_directory(), "--host", "127.0.0.1", *OPTIONS, *ENGINE, *connector]
    with serving(command, model_directory(), log, {"VLLM_CPU_KVCACHE_SPACE": "2"}) as server:
        server.stream(words(999_999)[:300], 4)
        yield server


def measure(prefix: str) -> Iterator[dict[str, object]]:
    """Give a row for each server and half of the trace; both servers take turns, so that what drifts hits both."""
    came: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        connector = with_connector(
            root_dir=folder, capacity_bytes=16 << 30, host_bytes=1 << 30, load_deadline=10.0
        )
        for half, trace in HALVES.items():
            given = json.dumps([ids(prompt) for prompt in trace])
            for way in ("vLLM alone", "with infer-accel"):
                log = Path(folder) / f"{half}-{way}.log"
                with started([] if way == "vLLM alone" else connector, log) as server:
                    # In a process of its own, which may be pinned or given the machine to itself.
                    answers = BENCH.child(str(server.port), prefix=prefix, given=given)
                    server.kill()
                yield row(way, half, answers, came.setdefault(half, answers))


def row(way: str, half: str, answers: list[dict], expected: list[dict]) -> dict[str, object]:
    """Return what is told of a phase, once its answers are those of vLLM alone."""
    trace = HALVES[half]
    assert len(answers) == len(trace), f"{len(answers)} of {len(trace)} were answered"
    pairs = zip(answers, expected, strict=True)
    wrong = sum(answer["tokens"] != right["tokens"] for answer, right in pairs)
    assert wrong == 0, f"{way}: {wrong} answers have other tokens"
    first = sorted(answer["first"] for answer in answers)
    prompt_tokens = sum(prompt.tokens for prompt in trace)
    return {
        "way": way,
        "half": half,
        "requests": len(trace),
        "prompt_tokens": prompt_tokens,
        "computed_tokens": prompt_tokens - sum(answer["cached"] for answer in answers),
        "wrong_tokens": wrong,
        "median_seconds": statistics.median(first),
        "p99_seconds": first[min(len(first) - 1, len(first) * 99 // 100)],
        "validated": True,
    }


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where, rows = record["machine"], record["rows"]
    setting = (
        f"{where['model']}, {where['threads']} threads of {where['cpu']}, vllm-cpu {where['vllm-cpu']}; "
        f"{rows[0]['requests']} requests before and {rows[-1]['requests']} after the restart, {where['at_once']} at a "
        f"time, prompts of {where['shortest']} to {where['longest']} tokens; {where['date'][:10]}."
    )
    lines = [
        setting,
        "",
        "| | tokens of prompts | computed | wrong tokens | first token, median | p99 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"{row['way']}, {row['half']} the restart"
        lines.append(
            f"| {name} | {row['prompt_tokens']:,} | {row['computed_tokens']:,} | {row['wrong_tokens']} "
            f"| {row['median_seconds']:.2f} s | {row['p99_seconds']:.2f} s |"
        )
    alone, ours = rows[-2:]
    fewer, median, late = (
        alone[name] / ours[name] for name in ("computed_tokens", "median_seconds", "p99_seconds")
    )
    ratios = (
        f"After the restart vLLM alone computed {fewer:.2f} times as many tokens; its first token took {median:.2f} "
        f"times as long in the median, {late:.2f} times at the 99th percentile."
    )
    return "\n".join([*lines, "", ratios, "", BENCH.named()]) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "vllm-restart", "docs/integrations/vllm.md", table, starts_processes=True
)


def phases(options: argparse.Namespace) -> dict[str, Callable[[], Iterator[dict]]]:
    """Return what is measured: the trace, which cannot be taken in parts."""
    return {"trace": functools.partial(measure, options.prefix)}


def where(_: argparse.Namespace) -> dict[str, object]:
    """Return the machine, the model and the prompts."""
    lengths = [prompt.tokens for prompt in TRACE]
    return engine_bench.machine(
        "vllm-cpu",
        "torch",
        threads=engine_bench.threads(),
        at_once=AT_ONCE,
        shortest=min(lengths),
        longest=max(lengths),
        model="SmolLM2-135M-Instruct, float32",
    )


if __name__ == "__main__":
    BENCH.run(phases, where, child=ask)
