"""`infer-accel replay`: what a recorded day of requests would have found in a cache."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Self

import typer

from infer_accel.cli.output import (
    MOST_SEED,
    errors,
    guarded,
    require_apart,
    require_file,
    require_picture,
    require_writable,
    results,
    write_results,
)

if TYPE_CHECKING:
    from infer_accel.kvcache import ReplayReport, Trace

__all__ = ["run"]

#: Capacities of the curve, as shares of the blocks that the whole trace asks for.
_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def run(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="Mooncake JSON lines or Azure CSV; without one a trace is made.", show_default=False
        ),
    ] = None,
    num_blocks: Annotated[int, typer.Option("--blocks", help="Blocks of the cache.")] = 20_000,
    block_size: Annotated[int, typer.Option(help="Tokens in a block: a divisor or multiple of 512.")] = 16,
    host_blocks: Annotated[int, typer.Option(help="Blocks of a second tier.")] = 0,
    bytes_per_token: Annotated[
        int, typer.Option(min=0, help="Bytes of keys and values, all layers.")
    ] = 131_072,
    seconds_per_token: Annotated[
        float | None, typer.Option(help="Let requests overlap: seconds for each token of an answer.")
    ] = None,
    outputs: Annotated[bool, typer.Option("--outputs", help="Let answers take blocks, too.")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="Also the hit rate for other capacities.")] = False,
    requests: Annotated[int, typer.Option(help="Requests of a trace that is made.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of a trace that is made.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the curve (needs matplotlib).")
    ] = None,
) -> None:
    """Send a trace of requests through a cache: hit rate, evictions, waits, bytes moved.

    Exit codes: 0 replayed, 2 wrong input.
    """
    from infer_accel.kvcache import replay

    if trace is not None:
        require_file(trace, "a Mooncake trace (JSON lines) or an Azure trace (CSV), or none to have one made")
        require_apart(json_path, "--json", [trace])
    require_writable(json_path, "--json")
    require_picture(plot)
    with guarded(trace):
        loaded = _load(trace, requests, seed)
        with _Bar(len(loaded), "replaying") as bar:
            report = replay(
                loaded,
                num_blocks=num_blocks,
                block_size=block_size,
                host_blocks=host_blocks,
                outputs=outputs,
                seconds_per_token=seconds_per_token,
                progress=bar.show,
            )
        points = _curve(loaded, report) if curve or plot is not None else []
    facts = _facts(loaded, report, bytes_per_token)
    _print(facts, points)
    document = {**facts, "curve": [{"blocks": blocks, "hit_rate": rate} for blocks, rate in points]}
    if json_path is not None:
        write_results(json_path, json.dumps(document, indent=2))
    if plot is not None:
        _draw(plot, points, repr(loaded))


def _load(path: Path | None, requests: int, seed: int) -> Trace:
    from infer_accel.kvcache import Trace

    return Trace.synthetic(requests, seed=seed) if path is None else Trace.load(path)


def _curve(trace: Trace, report: ReplayReport) -> list[tuple[int, float]]:
    from infer_accel.kvcache import replay_curve

    asked = int(report.blocks.sum())
    capacities = sorted({max(int(share * asked), 2) for share in _SHARES})
    with _Bar(len(trace) * len(capacities), "other capacities") as bar:
        return replay_curve(trace, capacities=capacities, block_size=report.block_size, progress=bar.show)


def _facts(trace: Trace, report: ReplayReport, bytes_per_token: int) -> dict[str, object]:
    return {
        "requests": len(trace),
        "has_ids": trace.has_ids,
        "num_blocks": report.num_blocks,
        "block_size": report.block_size,
        "blocks": int(report.blocks.sum()),
        "hit_blocks": int(report.hits.sum()),
        "hit_rate": report.hit_rate,
        "host_hit_rate": report.host_hit_rate,
        "evictions": report.evictions,
        "refused": report.refused,
        "bytes_moved": report.bytes_moved(bytes_per_token),
        "percentiles": report.percentiles(),
    }


def _print(facts: dict[str, object], points: list[tuple[int, float]]) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    for blocks, rate in points:
        table.add_row(f"hit rate of {blocks} blocks", f"{rate:.1%}")
    results().print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(path: Path, points: list[tuple[int, float]], title: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from infer_accel._files import replace_file

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([blocks for blocks, _ in points], [rate for _, rate in points], marker="o")
    axes.set(xscale="log", xlabel="blocks of the cache", ylabel="hit blocks ÷ all blocks", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    with guarded(f"--plot {path}"), replace_file(path) as beside:
        figure.savefig(beside, format="png", dpi=150)
    plt.close(figure)


class _Bar:
    """A bar on a terminal; nothing in a log."""

    def __init__(self, total: int, what: str) -> None:
        from rich.progress import Progress

        console = errors()
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int) -> None:
        """Show how much is done."""
        self._progress.update(self._task, completed=done)
