"""Times LMCache's objects on disk: by its own adapters for files, and by ours; as its own benchmark drives them.

    python benches/serve_lmcache.py           # prints
    python benches/serve_lmcache.py --keep    # and writes the record and docs/integrations/lmcache.md
    python benches/serve_lmcache.py --page    # only writes the record into the page

Runs in the environment of `make test-serve`. Adapters take turns; what is read back is compared with what was written
before a figure is believed. Files stay in the system's memory: what is measured is what each does beside the device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engine_pages import Page, machine

#: Bytes of an object, objects in a task.
CASES = ((256 << 10, 128), (4 << 20, 24), (32 << 20, 4))
WAYS = ("fs", "fs_native", "ours")
NAMES = {"fs": "`fs`", "fs_native": "`fs_native`", "ours": "`InferAccelL2Adapter`"}


def specification(way: str, root: str) -> str:
    """Return an adapter as the command line names it."""
    ours = {
        "type": "plugin",
        "module_path": "infer_accel.integrations.lmcache",
        "class_name": "InferAccelL2Adapter",
        "adapter_params": {"root_dir": root, "capacity_bytes": 4 << 30},
    }
    fs = {"type": way, "base_path": root}
    return json.dumps({"fs": fs, "fs_native": fs | {"num_workers": 2}, "ours": ours}[way])


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where = record["machine"]
    place = f"LMCache {where['lmcache']}, {where['cores']} cores of {where['cpu']}, {where['date'][:10]}"
    lines = [
        f"{place}; a task of so many objects, medians in milliseconds, files in the system's memory:",
        "",
        "| | | " + " | ".join(NAMES[way] for way in WAYS) + " | against `fs` | against `fs_native` |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        if row["case"] == "times":
            first = f"{row['objects']} × {row['bytes'] / 2**20:g} MiB"
            for part in ("store", "lookup", "load"):
                times = [row[way][part] * 1e3 for way in WAYS]
                against = [f"×{other / times[-1]:.1f}" for other in times[:-1]]
                shown = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in times]
                lines.append(f"| {first} | {part} | {' | '.join([*shown, *against])} |")
                first = ""
    flips = next(row for row in record["rows"] if row["case"] == "flipped")
    lines.append(f"| a byte flipped on disk | load | {' | '.join(flips[way] for way in WAYS)} | | |")
    return "\n".join(lines) + "\n"


PAGE = Page("lmcache", "docs/integrations/lmcache.md", table)


def made(way: str, root: str) -> Any:  # noqa: ANN401 - LMCache's
    """Return an adapter, made as LMCache makes it."""
    from lmcache.v1.distributed.l2_adapters import create_l2_adapter
    from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config

    asked = argparse.Namespace(l2_adapter=[specification(way, root)])
    return create_l2_adapter(parse_args_to_l2_adapters_config(asked).adapters[0])


def quiet(_: str) -> None:
    """Say nothing."""


def measure(way: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """Return seconds of a task of each kind."""
    import torch
    from lmcache.cli.commands.bench.l2_adapter_bench import data, runner

    root = tempfile.mkdtemp(prefix="serve-lmcache-")
    adapter = made(way, root)
    try:
        memory = data.make_aligned_tensor(2 * count * size, 4096)
        memory.random_(0, 256, generator=torch.Generator().manual_seed(0))
        written, read = memory[: count * size].clone(), memory[count * size :]
        source = data.make_memory_objects(memory, count, size, 0)
        target = data.make_memory_objects(memory, count, size, count * size)
        memory[: count * size] = written
        names = [data.make_object_keys(count, key_offset=number * count) for number in range(rounds + 1)]
        given = (1, count, size, rounds + 1, lambda turn: [names[turn]])
        stored = runner.bench_store(adapter, *given, lambda _: [source], quiet)
        found = runner.bench_lookup(adapter, 1, count, rounds + 1, lambda turn: [names[turn]], quiet)
        loaded = runner.bench_load(adapter, *given, lambda _: [target], quiet)
        assert stored.total_success == found.total_success == loaded.total_success == count * (rounds + 1)
        assert torch.equal(read, written)
        # The first round opens and warms up.
        return {
            name: statistics.median(result.round_durations[1:])
            for name, result in (("store", stored), ("lookup", found), ("load", loaded))
        }
    finally:
        adapter.close()
        shutil.rmtree(root)


def flipped(way: str) -> str:
    """Return what a load makes of an object of which a byte was flipped on disk."""
    import torch
    from lmcache.cli.commands.bench.l2_adapter_bench import data, runner

    size = 1 << 20
    with tempfile.TemporaryDirectory(prefix="serve-lmcache-") as root:
        memory = torch.zeros(2 * size, dtype=torch.uint8)
        (source,), (target,) = (data.make_memory_objects(memory, 1, size, place, 7) for place in (0, size))
        names = data.make_object_keys(1)
        given = (1, 1, size, 1, lambda _: [names])
        adapter = made(way, root)
        runner.bench_store(adapter, *given, lambda _: [[source]], quiet)
        adapter.close()
        (file,) = (path for path in Path(root).rglob("*") if path.is_file() and path.stat().st_size >= size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        adapter = made(way, root)
        loaded = runner.bench_load(adapter, *given, lambda _: [[target]], quiet)
        adapter.close()
        if loaded.total_success == 0:
            return "not delivered"
        return "delivered as it was stored" if torch.equal(memory[:size], memory[size:]) else "wrong bytes"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="write the record and the page")
    parser.add_argument("--page", action="store_true", help="only write the record into the page")
    parser.add_argument("--rounds", type=int, default=4, help="tasks of each kind that are timed in a turn")
    parser.add_argument("--turns", type=int, default=3, help="how often each adapter has its turn")
    options = parser.parse_args()
    if options.page:
        PAGE.write()
        return
    rows: list[dict[str, Any]] = []
    for size, count in CASES:
        turns = [
            {way: measure(way, size, count, options.rounds) for way in WAYS} for _ in range(options.turns)
        ]
        row: dict[str, Any] = {"case": "times", "bytes": size, "objects": count, "validated": True}
        for way in WAYS:
            row[way] = {part: statistics.median(turn[way][part] for turn in turns) for part in turns[0][way]}
        rows.append(row)
    rows.append({"case": "flipped", **{way: flipped(way) for way in WAYS}})
    where = machine("lmcache", "torch")
    print(table({"machine": where, "rows": rows}))
    if options.keep:
        PAGE.keep(where, rows)


if __name__ == "__main__":
    main()
