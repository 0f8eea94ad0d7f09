"""Times bulk counting under Ray and Polars beside `tokenizers`, and the shared tier beside a plain client.

    make test-scale                                   # makes the environment
    .venv-scale/bin/python benches/scale.py shared    # writes benches/record/scale/shared.json
    .venv-scale/bin/python benches/scale.py bulk      # writes benches/record/scale/bulk.json
    python benches/scale.py --page                    # writes the records into docs/scale.md

Everything is compared with its rival's result before it is timed. The ways take turns, round by round, so that what
else the machine does meets all of them; a figure is the median of the rounds. Servers and Ray are on the loopback
interface.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel._files import write_text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = ROOT / "docs/scale.md"
RECORDS = ROOT / "benches/record/scale"
BEGIN, END = "<!-- figures: scale/{name}.json -->\n", "<!-- end of figures -->\n"

#: Bytes of a page, and how many make a round.
PAGES = ((64 << 10, 512), (2 << 20, 24))
ROUNDS = 7
#: Characters of a text, and bytes of all.
TEXT, TEXTS = 2000, 8 << 20
WORKERS = 2


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way, in turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


# The shared tier --------------------------------------------------------------------------------------------


def shared() -> list[dict[str, object]]:
    """Return a row for each size of pages and each direction."""
    from tests.scale.servers import Server

    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), memory="1gb") as server:
        return [row for size, count in PAGES for row in shared_rows(server.url, size, count)]


def shared_rows(url: str, size: int, count: int) -> list[dict[str, object]]:
    import numpy as np
    import redis

    from infer_accel.integrations.redis import RedisTier

    pages = np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)
    keys = [number.to_bytes(32, "little") for number in range(count)]
    out = np.zeros_like(pages)
    client = redis.Redis.from_url(url, protocol=2)
    batch = max(1, (8 << 20) // size)
    times = {"deadline": None, "write_deadline": None}
    with (
        RedisTier(url, page_bytes=size, fingerprint=b"a", **times) as tier,
        RedisTier(url, page_bytes=size, fingerprint=b"b", secret=b"secret", **times) as signed,
    ):

        def store_plainly() -> None:
            for first in range(0, count, batch):
                calls = client.pipeline(transaction=False)
                for key, page in zip(keys[first : first + batch], pages[first : first + batch], strict=True):
                    calls.set(key, page.tobytes())
                calls.execute()

        def load_plainly() -> None:
            for first in range(0, count, batch):
                for number, value in enumerate(client.mget(keys[first : first + batch]), first):
                    out[number] = np.frombuffer(value, np.uint8)

        def forget() -> None:
            client.flushall()

        stores = {
            "a plain client": store_plainly,
            "RedisTier": lambda: tier.store(keys, pages),
            "RedisTier, with a secret": lambda: signed.store(keys, pages),
        }
        loads = {
            "a plain client": load_plainly,
            "RedisTier": lambda: tier.load(keys, out),
            "RedisTier, with a secret": lambda: signed.load(keys, out),
        }
        for name, load in loads.items():
            forget()
            stores[name]()
            out[:] = 0
            load()
            assert (out == pages).all(), name
        times_of_stores: dict[str, list[float]] = {name: [] for name in stores}
        for number in range(ROUNDS + 1):
            for name, store in stores.items():
                forget()
                began = time.perf_counter()
                store()
                if number:
                    times_of_stores[name].append(time.perf_counter() - began)
        stored = {name: statistics.median(values) for name, values in times_of_stores.items()}
        forget()
        for store in stores.values():
            store()
        loaded = medians(loads, ROUNDS)
    return [
        {
            "call": call,
            "page_bytes": size,
            "pages": count,
            "pages_per_second": {name: count / value for name, value in seconds.items()},
            "validated": True,
        }
        for call, seconds in (("load", loaded), ("store", stored))
    ]


# Bulk counting ----------------------------------------------------------------------------------------------


def bulk() -> list[dict[str, object]]:
    """Return a row for one core alone, one for Ray and one for Polars."""
    import pyarrow as pa
    from tests.scale.texts import tokenizer_file

    from infer_accel.bench import data

    source = data.english() + data.code()
    source = source[: TEXTS // 2] + source[-TEXTS // 2 :]
    texts = [source[at : at + TEXT] for at in range(0, len(source), TEXT)]
    table = pa.table({"text": texts})
    size = sum(len(text.encode()) for text in texts)
    file = str(tokenizer_file())
    return [one_core(table, file, size), under_ray(table, file, size), under_polars(table, file, size)]


def counter_of_rival(file: str) -> Callable[[object], object]:
    """Return what one writes around `tokenizers` for map_batches: it has no way to take Arrow, nor to count."""

    def count(batch: object) -> object:
        import os

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker has a core
        import pyarrow as pa
        import tokenizers

        opened = globals().setdefault("_opened_tokenizers", {})
        tokenizer = opened.get(file)
        if tokenizer is None:
            tokenizer = opened[file] = tokenizers.Tokenizer.from_file(file)
        encoded = tokenizer.encode_batch_fast(batch["text"].to_pylist())
        return batch.append_column("tokens", pa.array([len(one) for one in encoded], pa.int64()))

    return count


def one_core(table: object, file: str, size: int) -> dict[str, object]:
    from infer_accel.integrations.ray import CountTokens

    ours, rival = CountTokens(file), counter_of_rival(file)
    tables = [table.slice(at, 4096) for at in range(0, len(table), 4096)]
    for part in tables:
        assert ours(part)["tokens"].to_pylist() == rival(part)["tokens"].to_pylist()
    seconds = medians(
        {
            "CountTokens": lambda: [ours(part) for part in tables],
            "tokenizers": lambda: [rival(part) for part in tables],
        },
        3,
    )
    return row("one process, one thread, no engine", size, 1, seconds)


def under_ray(table: object, file: str, size: int) -> dict[str, object]:
    from tests.scale.cluster import two_workers

    with two_workers():
        import ray.data

        from infer_accel.integrations.ray import count_tokens

        rows = len(table) // 16 + 1
        dataset = ray.data.from_arrow([table.slice(at, rows) for at in range(0, len(table), rows)])
        rival = counter_of_rival(file)
        counted: dict[str, list[int]] = {}

        def ours_once() -> None:
            done = count_tokens(dataset, file, batch_rows=4096).materialize()
            counted["CountTokens"] = [row["tokens"] for row in done.take_all()]

        def rival_once() -> None:
            done = dataset.map_batches(rival, batch_format="pyarrow", batch_size=4096).materialize()
            counted["tokenizers"] = [row["tokens"] for row in done.take_all()]

        seconds = medians({"CountTokens": ours_once, "tokenizers": rival_once}, 2)
        assert sorted(counted["CountTokens"]) == sorted(counted["tokenizers"])
    return row("Ray Data, two workers", size, WORKERS, seconds)


def under_polars(table: object, file: str, size: int) -> dict[str, object]:
    import polars as pl

    from infer_accel.integrations.polars import count_tokens
    from infer_accel.tokenize import Tokenizer

    frame = pl.from_arrow(table)
    series, tokenizer = frame["text"], Tokenizer.from_file(file)
    expression = count_tokens("text", file, num_threads=1)
    assert frame.select(expression)["text"].to_list() == tokenizer.count_batch(series).tolist()
    seconds = medians(
        {
            "count_tokens in a query": lambda: frame.select(expression),
            "count_batch on the column": lambda: tokenizer.count_batch(series, num_threads=1),
        },
        5,
    )
    return row("Polars, one thread", size, 1, seconds)


def row(where: str, size: int, cores: int, seconds: dict[str, float]) -> dict[str, object]:
    return {
        "where": where,
        "bytes": size,
        "cores": cores,
        "megabytes_per_second_and_core": {
            name: size / value / cores / 1e6 for name, value in seconds.items()
        },
        "validated": True,
    }


# Records ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """Return what the figures were taken on."""
    cpu = "?"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if "model name" in line), "?")
    packages = ("hiredis", "numpy", "obstore", "polars", "pyarrow", "ray", "redis", "tokenizers")
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def table_of(name: str, record: dict) -> str:
    """Return a record as it stands in the documentation."""
    facts, rows = record["machine"], record["rows"]
    versions = facts["versions"]
    where = f"{facts['cores']} cores of {facts['cpu']}"
    if name == "shared":
        ways = list(rows[0]["pages_per_second"])
        setting = (
            f"{where}, client and server on them; redis {versions['redis']}, hiredis {versions['hiredis']}; "
        )
        setting += f"{facts['date'][:10]}. Pages a second, and beside the plain client:"
        lines = [setting, "", "| | " + " | ".join(ways) + " |", "|---|" + "--:|" * len(ways)]
        for one in rows:
            rates = one["pages_per_second"]
            plain = rates["a plain client"]
            cells = [f"{rate:,.0f} (×{rate / plain:.2f})" for rate in rates.values()]
            lines.append(f"| {one['call']}, {one['page_bytes'] >> 10} KiB | " + " | ".join(cells) + " |")
    else:
        size = rows[0]["bytes"] / 1e6
        setting = f"{where}; Ray {versions['ray']}, Polars {versions['polars']}, tokenizers {versions['tokenizers']}; "
        setting += (
            f"{facts['date'][:10]}. Llama 3's vocabulary, {size:.0f} MB of English and Python in texts of "
        )
        setting += f"{TEXT} characters; MB/s for each core:"
        lines = [setting, "", "| | infer-accel | beside | |", "|---|--:|---|--:|"]
        for one in rows:
            (_, ours), (rival, theirs) = one["megabytes_per_second_and_core"].items()
            lines.append(f"| {one['where']} | {ours:.1f} | {rival}: {theirs:.1f} | ×{ours / theirs:.2f} |")
    return "\n".join([*lines, "", f"The record is `benches/record/scale/{name}.json`."]) + "\n"


def rendered(page: str) -> str:
    """Return a page with the records' figures in it."""
    for name in ("shared", "bulk"):
        begin = BEGIN.format(name=name)
        before, rest = page.split(begin)
        _, after = rest.split(END, 1)
        record = json.loads((RECORDS / f"{name}.json").read_text())
        page = before + begin + "\n" + table_of(name, record) + "\n" + END + after
    return page


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("shared", "bulk"))
    parser.add_argument("--page", action="store_true", help="write the records into the page")
    options = parser.parse_args()
    if options.what:
        rows = {"shared": shared, "bulk": bulk}[options.what]()
        RECORDS.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": rows}
        write_text(RECORDS / f"{options.what}.json", json.dumps(content, indent=1) + "\n")
        print(table_of(options.what, content))
    if options.page:
        write_text(PAGE, rendered(PAGE.read_text()))


if __name__ == "__main__":
    main()
