"""`infer-accel info`: what this machine is, what it can do, and what was found on it."""

from __future__ import annotations

import json
from ctypes.util import find_library
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from infer_accel.cli.output import results

if TYPE_CHECKING:
    from infer_accel.bench.rows import Json

__all__ = ["run"]

_COMPANIONS = (
    "torch",
    "tokenizers",
    "tiktoken",
    "gigatoken",
    "peft",
    "transformers",
    "triton",
    "vllm",
    "sglang",
)


def run(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    ask_torch: Annotated[
        bool, typer.Option("--torch", help="Import torch and ask it for its devices (seconds).")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the memory bandwidth (about a second).")
    ] = True,
) -> None:
    """Print the CPU, its SIMD tier, threads, memory bandwidth, libraries and devices found."""
    facts = _facts(ask_torch=ask_torch, measure=measure)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(name, value))
    results().print(table)


def _facts(*, ask_torch: bool, measure: bool) -> dict[str, Json]:
    from infer_accel.bench.machine import describe_machine, installed_versions

    facts = describe_machine()
    if measure:
        facts["memory_bandwidth"] = _bandwidth(facts["threads"])
    facts["found"] = {name: found for name, found in installed_versions(_COMPANIONS).items() if found}
    facts["cuda_driver"] = find_library("cuda") or find_library("nvcuda")
    if ask_torch:
        facts["torch"] = _torch_devices()
    return facts


def _bandwidth(threads: Json) -> dict[str, Json]:
    """Return bytes a second of a large copy, read and written, on one thread and on all."""
    from infer_accel.bench.limits import Limits

    limits = Limits()
    limits.copy_bandwidth(threads=1)
    if isinstance(threads, int) and threads > 1:
        limits.copy_bandwidth(threads=threads)
    return {name: float(f"{value:.4g}") for name, value in limits.measured.items()}


def _torch_devices() -> dict[str, Json]:
    from importlib import import_module

    try:
        torch = import_module("torch")
    except ImportError as error:
        return {"error": str(error)}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"version": str(torch.__version__), "cuda": torch.version.cuda, "devices": devices}


def _text(name: str, value: Json) -> str:
    if value is None:
        return "none found"
    if name == "memory_bytes" and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, dict):
        shown = (f"{key} {_bandwidth_text(item)}" for key, item in value.items())
        return ", ".join(shown) or "none found"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def _bandwidth_text(item: Json) -> str:
    return f"{item / 1e9:.1f} GB/s" if isinstance(item, float) else str(item)
