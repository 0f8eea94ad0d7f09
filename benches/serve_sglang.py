"""Times pages of SGLang's hierarchical cache on disk: by its own back end for files, and by ours.

    python benches/serve_sglang.py           # prints
    python benches/serve_sglang.py --keep    # and writes the record and docs/integrations/sglang.md
    python benches/serve_sglang.py --page    # only writes the record into the page

Runs in the environment of `make test-serve`. Both are made by SGLang's factory and take turns; what is read back is
compared with what was written before a figure is believed. Files stay in the system's memory: what is measured is what
each does beside the device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engine_pages import Page, machine

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
                own, ours = (row[way][part] * 1e3 for way in WAYS)
                shown = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in (own, ours)]
                lines.append(f"| {first} | `{part}` | {' | '.join(shown)} | ×{own / ours:.1f} |")
                first = ""
    flips = next(row for row in record["rows"] if row["case"] == "flipped")
    lines.append(f"| a byte flipped on disk | `batch_get` | {' | '.join(flips[way] for way in WAYS)} | |")
    return "\n".join(lines) + "\n"


PAGE = Page("sglang", "docs/integrations/sglang.md", table)


class Memory:
    """SGLang's host memory, as far as a back end asks it."""

    layout = "layer_first"

    def __init__(self, size: int) -> None:
        self._size = size

    def get_dummy_flat_data_page(self) -> Any:  # noqa: ANN401 - a tensor
        """Return a page."""
        import torch

        return torch.zeros(self._size // 2, dtype=torch.bfloat16)


def made(way: str, root: str, size: int) -> Any:  # noqa: ANN401 - SGLang's
    """Return a back end, made as SGLang makes it."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    ours = {
        "backend_name": "infer_accel",
        "module_path": "infer_accel.integrations.sglang",
        "class_name": "InferAccelStorage",
        "root_dir": root,
        "capacity_bytes": 4 << 30,
    }
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=False,
        model_name="m",
        extra_config=ours if way == "ours" else {"file_storage_path": root},
    )
    backend = StorageBackendFactory.create_backend(
        "dynamic" if way == "ours" else "file", config, Memory(size)
    )
    backend.register_mem_pool_host(Memory(size))
    return backend


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
        (file,) = (path for path in Path(root).rglob("*") if path.is_file() and path.stat().st_size >= size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        backend = made(way, root, size)
        (found,) = backend.batch_get(["a"], [torch.zeros_like(page)])
        closed(backend)
    if found is None:
        return "not delivered"
    return "delivered as it was stored" if torch.equal(found, page) else "wrong bytes"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="write the record and the page")
    parser.add_argument("--page", action="store_true", help="only write the record into the page")
    parser.add_argument("--rounds", type=int, default=4, help="calls of each kind that are timed in a turn")
    parser.add_argument("--turns", type=int, default=3, help="how often each has its turn")
    options = parser.parse_args()
    if options.page:
        PAGE.write()
        return
    rows: list[dict[str, Any]] = []
    for size, count in CASES:
        turns = [
            {way: measure(way, size, count, options.rounds) for way in WAYS} for _ in range(options.turns)
        ]
        row: dict[str, Any] = {"case": "times", "bytes": size, "pages": count, "validated": True}
        for way in WAYS:
            row[way] = {part: statistics.median(turn[way][part] for turn in turns) for part in turns[0][way]}
        rows.append(row)
    rows.append({"case": "flipped", **{way: flipped(way) for way in WAYS}})
    where = machine("sglang", "torch")
    print(table({"machine": where, "rows": rows}))
    if options.keep:
        PAGE.keep(where, rows)


if __name__ == "__main__":
    main()
