"""Times LMCache's objects on disk: by its own adapters for files, and by ours; as its own benchmark drives them.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

Adapters take turns; what is read back is compared with what was written before a figure is believed. Files stay in the
system's memory: what is measured is what each does beside the device.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve import storage  # noqa: E402

#: Bytes of an object, objects in a task.
CASES = ((256 << 10, 128), (4 << 20, 24), (32 << 20, 4))
WAYS = ("fs", "fs_native", "ours")
NAMES = {"fs": "`fs`", "fs_native": "`fs_native`", "ours": "`InferAccelL2Adapter`"}


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
                times = [row[way][part] for way in WAYS]
                against = [f"×{other / times[-1]:.1f}" for other in times[:-1]]
                shown = map(engine_bench.milliseconds, times)
                lines.append(f"| {first} | {part} | {' | '.join([*shown, *against])} |")
                first = ""
    flips = next(row for row in record["rows"] if row["case"] == "flipped")
    lines.append(f"| a byte flipped on disk | load | {' | '.join(flips[way] for way in WAYS)} | | |")
    return "\n".join(lines) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "lmcache", "docs/integrations/lmcache.md", table, {"turns": 3, "rounds": 4}
)


def specification(way: str, root: str) -> dict[str, object]:
    """Return an adapter as the command line names it."""
    if way == "ours":
        return storage.lmcache_specification(root, capacity_bytes=4 << 30)
    return {"type": way, "base_path": root} | ({"num_workers": 2} if way == "fs_native" else {})


def quiet(_: str) -> None:
    """Say nothing."""


def measure(way: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """Return seconds of a task of each kind."""
    import torch
    from lmcache.cli.commands.bench.l2_adapter_bench import data, runner

    root = tempfile.mkdtemp(prefix="serve-lmcache-")
    adapter = storage.lmcache_adapter(specification(way, root))
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
        adapter = storage.lmcache_adapter(specification(way, root))
        runner.bench_store(adapter, *given, lambda _: [[source]], quiet)
        adapter.close()
        engine_bench.flip(root, size)
        adapter = storage.lmcache_adapter(specification(way, root))
        loaded = runner.bench_load(adapter, *given, lambda _: [[target]], quiet)
        adapter.close()
        if loaded.total_success == 0:
            return "not delivered"
        return "delivered as it was stored" if torch.equal(memory[:size], memory[size:]) else "wrong bytes"


if __name__ == "__main__":
    PHASES = engine_bench.storage_phases("objects", CASES, WAYS, measure, flipped)
    BENCH.run(PHASES, lambda _: engine_bench.machine("lmcache", "torch"))
