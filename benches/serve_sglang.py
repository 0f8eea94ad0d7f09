"""Times pages of SGLang's hierarchical cache on disk: by its own back end for files, and by ours.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

Both are made by SGLang's factory and take turns; what is read back is compared with what was written before a figure is
believed. Files stay in the system's memory: what is measured is what each does beside the device.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve import storage  # noqa: E402

#: Bytes of a page, pages in a call.
CASES = ((256 << 10, 128), (2 << 20, 48), (16 << 20, 8))
WAYS = ("file", "ours")


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where = record["machine"]
    place = f"SGLang {where['sglang']}, {where['cores']} cores of {where['cpu']}, {where['date'][:10]}"
    lines = [
        f"{place}; a call of so many pages, medians in milliseconds, files in the system's memory:",
        "",
        "| | | `HiCacheFile` | `InferAccelStorage` | ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for row in record["rows"]:
        if row["case"] == "times":
            first = f"{row['pages']} × {row['bytes'] / 2**20:g} MiB"
            for part in ("batch_set", "batch_exists", "batch_get"):
                own, ours = (row[way][part] for way in WAYS)
                shown = map(engine_bench.milliseconds, (own, ours))
                lines.append(f"| {first} | `{part}` | {' | '.join(shown)} | ×{own / ours:.1f} |")
                first = ""
    flips = next(row for row in record["rows"] if row["case"] == "flipped")
    lines.append(f"| a byte flipped on disk | `batch_get` | {' | '.join(flips[way] for way in WAYS)} | |")
    return "\n".join(lines) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "sglang", "docs/integrations/sglang.md", table, {"turns": 3, "rounds": 4}
)


def made(way: str, root: str, size: int) -> Any:  # noqa: ANN401 - SGLang's
    """Return a back end for pages of so many bytes."""
    if way == "ours":
        return storage.sglang_backend(size, **storage.sglang_options(root, capacity_bytes=4 << 30))
    return storage.sglang_backend(size, "file", file_storage_path=root)


def closed(backend: Any) -> None:  # noqa: ANN401 - SGLang's
    """Close a back end that can be closed."""
    close = getattr(backend, "close", None)
    if close is not None:
        close()


def measure(way: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """Return seconds of a call of each kind."""
    import torch

    generator = torch.Generator().manual_seed(0)
    source = [
        torch.randint(0, 1 << 15, (size // 2,), dtype=torch.int16, generator=generator).view(torch.bfloat16)
        for _ in range(count)
    ]
    target = [torch.zeros_like(page) for page in source]
    times: dict[str, list[float]] = {"batch_set": [], "batch_exists": [], "batch_get": []}
    with tempfile.TemporaryDirectory(prefix="serve-sglang-") as root:
        backend = made(way, root, size)
        for turn in range(rounds + 1):
            names = [f"{turn * count + place:064x}" for place in range(count)]
            start = time.perf_counter()
            assert backend.batch_set(names, source)
            stored = time.perf_counter()
            assert backend.batch_exists(names) == count
            known = time.perf_counter()
            found = backend.batch_get(names, target)
            loaded = time.perf_counter()
            for page, there in zip(source, found, strict=True):
                assert torch.equal(page.view(torch.int16), there.view(torch.int16))
                there.zero_()
            # The first turn opens and warms up.
            if turn:
                for part, seconds in zip(
                    times, (stored - start, known - stored, loaded - known), strict=True
                ):
                    times[part].append(seconds)
        closed(backend)
    return {part: statistics.median(seconds) for part, seconds in times.items()}


def flipped(way: str) -> str:
    """Return what a back end makes of a page of which a byte was flipped on disk."""
    import torch

    size = 1 << 20
    page = torch.full((size // 2,), 3, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory(prefix="serve-sglang-") as root:
        backend = made(way, root, size)
        assert backend.batch_set(["a"], [page])
        closed(backend)
        engine_bench.flip(root, size)
        backend = made(way, root, size)
        (found,) = backend.batch_get(["a"], [torch.zeros_like(page)])
        closed(backend)
    if found is None:
        return "not delivered"
    return "delivered as it was stored" if torch.equal(found, page) else "wrong bytes"


if __name__ == "__main__":
    PHASES = engine_bench.storage_phases("pages", CASES, WAYS, measure, flipped)
    BENCH.run(PHASES, lambda _: engine_bench.machine("sglang", "torch"))
