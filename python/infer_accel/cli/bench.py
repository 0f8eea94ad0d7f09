"""`infer-accel bench`: check against the oracles, then time beside the rivals."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated

import typer

from infer_accel.cli.bench_cuda import find_gpu, tune
from infer_accel.cli.bench_cuda import sources as sources_on_gpu
from infer_accel.cli.output import (
    EXIT_FELL,
    EXIT_WRONG,
    progress,
    refuse,
    require_picture,
    require_writable,
    results,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench
    from infer_accel.bench.parts import Outcome
    from infer_accel.bench.rows import Json, Row

__all__ = ["run"]

#: Of timed calls a case: long enough for dozens of rounds of anything that takes milliseconds.
_SECONDS = 4.0
#: On a GPU, whose clock sees nothing else; its hours are dear.
_SECONDS_CUDA = 2.0
_SECONDS_QUICK = 1.0


class Device(StrEnum):
    """What can be measured."""

    CPU = "cpu"
    CUDA = "cuda"


class Part(StrEnum):
    """What can be asked for."""

    ALL = "all"
    LORA = "lora"
    KVCACHE = "kvcache"
    TOKENIZE = "tokenize"


def run(
    part: Annotated[Part, typer.Argument(help="What to measure.")] = Part.ALL,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, shorter: two minutes in all.")] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write machine and rows as JSON, after every row."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --json: keep the rows of FILE, and measure the others.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hold the ratios against those of an earlier --json."),
    ] = None,
    fail_over: Annotated[
        str, typer.Option(metavar="SHARE", help="With --compare: exit 1 if a ratio lost more.")
    ] = "10%",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the rows (needs matplotlib).")
    ] = None,
    device: Annotated[Device, typer.Option(help="What to measure: this CPU, or its GPU.")] = Device.CPU,
    autotune: Annotated[
        bool,
        typer.Option("--autotune", help="Measure how pages cross the link to the GPU best, and keep it."),
    ] = False,
) -> None:
    """Check each operation against its oracle, then time it beside the installed rivals.

    Exit codes: 0 measured, 1 a row fell by more than --fail-over, 2 wrong input or a row that is wrong.
    """
    from infer_accel.bench.harness import Bench
    from infer_accel.bench.resume import record
    from infer_accel.bench.rows import InvalidRecordError, read_rows

    tolerance = _share(fail_over)
    require_writable(json_path, "--json")
    require_picture(plot)
    try:
        baseline = None if compare is None else read_rows(compare)
    except InvalidRecordError as error:
        refuse(str(error))
    gpu = None
    if device is Device.CUDA or autotune:
        gpu = _gpu(part, "--device cuda" if device is Device.CUDA else "--autotune")
    measured = gpu if device is Device.CUDA else None
    seconds = _SECONDS if measured is None else _SECONDS_CUDA
    bench = Bench(quick=quick, seconds_a_case=_SECONDS_QUICK if quick else seconds)
    if measured is not None:
        bench.gpu = measured.describe()
    earlier = _earlier(json_path, bench) if resume else []
    if gpu is not None and autotune:
        tune(gpu, bench)
    outcome = _measure(part, bench, earlier, json_path, measured, failed=_failed(json_path) if resume else [])
    machine = record(bench, outcome.rows, complete=not outcome.failures)
    if outcome.failed:
        machine["failed"] = outcome.failed
    _report(bench, outcome)
    _save(machine, outcome.rows, json_path, plot)
    fell = baseline is not None and _fell(outcome.rows, baseline, part, tolerance)
    if outcome.failures:
        raise typer.Exit(EXIT_WRONG)
    if fell:
        raise typer.Exit(EXIT_FELL)


def _earlier(json_path: Path | None, bench: Bench) -> list[Row]:
    """Return the rows of the run that was broken off, or refuse in one line."""
    from infer_accel.bench.resume import read_earlier
    from infer_accel.bench.rows import InvalidRecordError

    if json_path is None:
        refuse("--resume needs --json FILE: the rows that there are stand in it")
    try:
        return read_earlier(json_path, bench)
    except InvalidRecordError as error:
        refuse(str(error))


def _failed(json_path: Path | None) -> list[str]:
    from infer_accel.bench.resume import read_failed

    return [] if json_path is None else read_failed(json_path)


def _measure(
    part: Part,
    bench: Bench,
    earlier: Sequence[Row],
    json_path: Path | None,
    gpu: Gpu | None,
    *,
    failed: Sequence[str],
) -> Outcome:
    from infer_accel.bench import parts
    from infer_accel.bench.resume import write_so_far

    def keep(rows: Sequence[Row]) -> None:
        if json_path is not None:
            write_so_far(json_path, bench, rows)

    if gpu is not None:
        from infer_accel.bench import cuda

        names = cuda.PARTS if part is Part.ALL else (part.value,)
        sources = sources_on_gpu(names, gpu, bench, earlier=earlier, failed=failed)
    else:
        names = parts.PARTS if part is Part.ALL else (part.value,)
        sources = {name: parts.load_part(name) for name in names}
    with progress() as say:
        return parts.run_parts(sources, bench, say, earlier=earlier, keep=keep)


def _gpu(part: Part, option: str) -> Gpu:
    """Return the GPU to measure on, or refuse in one line."""
    if part is Part.TOKENIZE:
        refuse(f"{option}: tokenize runs on the CPU alone; ask for lora, kvcache or all")
    return find_gpu(option)


def _report(bench: Bench, outcome: Outcome) -> None:
    from infer_accel.bench.report import print_notes, print_rows

    console = results()
    print_rows(console, outcome.rows)
    print_notes(
        console,
        limits=bench.limits.measured,
        absent=bench.rivals.absent,
        left_out=outcome.left_out,
        failures=outcome.failures,
    )


def _save(
    machine: Mapping[str, Json], rows: Sequence[Row], json_path: Path | None, plot: Path | None
) -> None:
    from infer_accel.bench.rows import write_document

    try:
        if json_path is not None:
            write_document(json_path, machine, rows)
        if plot is not None:
            from infer_accel.bench.plot import plot_rows

            plot_rows(plot, rows, _subtitle(machine))
    except OSError as error:
        refuse(f"cannot write {error.filename}: {error.strerror}")


def _subtitle(machine: Mapping[str, Json]) -> str:
    """Return the line below the picture's title: what the figures belong to."""
    simd = machine["simd"]
    tier = simd["used"] if isinstance(simd, dict) else "?"
    date = str(machine["date"])[:10]
    return (
        f"{machine['cpu']}, {tier}, {machine['cores']} cores · {machine['system']} · {machine['python']} · "
        f"infer-accel {machine['infer_accel']} · {date} · medians, every row checked against its oracle first"
    )


def _fell(rows: Sequence[Row], baseline: Sequence[Row], part: Part, tolerance: float) -> bool:
    from infer_accel.bench.compare import compare_rows
    from infer_accel.bench.report import print_comparison

    if part is not Part.ALL:
        baseline = [row for row in baseline if row.part == part.value]
    comparison = compare_rows(rows, baseline)
    if not comparison.changes:
        refuse(
            "no row of the baseline can be compared with this run: record one with the same parts and size"
        )
    print_comparison(results(), comparison, tolerance)
    return bool(comparison.fallen(tolerance))


def _share(text: str) -> float:
    """Read "10%" or "0.1"."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        refuse(f"--fail-over {text}: is no share; write 10% or 0.1")
    if not 0 <= share < 1:
        refuse(f"--fail-over {text}: must be at least 0% and below 100%")
    return share
