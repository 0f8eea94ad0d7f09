"""`infer-accel merge`: adapters into a checkpoint on the disk."""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from infer_accel.cli.output import (
    MOST_SEED,
    MOST_THREADS,
    byte_progress,
    guarded,
    refuse,
    require_apart,
    require_existing,
    require_writable,
    results,
    write_results,
)

if TYPE_CHECKING:
    from infer_accel.lora import MergeReport, TensorChange

__all__ = ["run"]

#: Of one module; no weight matrix has a longer side.
MOST_RANK = 2**31 - 1
#: Tensors that the table shows one by one; of more the sums by module are shown.
_ROWS = 24


def run(
    base: Annotated[Path, typer.Argument(help="Directory of the safetensors checkpoint. Only read.")],
    adapters: Annotated[list[Path], typer.Argument(help="PEFT directories or single files.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to make; absent or empty before.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,…", help="What each adapter is multiplied by; 1 by default.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="sum, or as `combine`: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune."
        ),
    ] = "sum",
    density: Annotated[
        float | None, typer.Option(help="Share of elements that ties, dare_* and magnitude_prune keep.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=MOST_RANK, help="Ranks of what svd makes.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Names the random choices of dare_*.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16: the format of the output.")
    ] = None,
    residue: Annotated[
        bool, typer.Option("--residue", help="Keep what `infer-accel unmerge` needs, in DIR/residue.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read a sample back and compute it in float64.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on with unfinished work, or discard it.")
    ] = True,
    allow_unused: Annotated[
        bool, typer.Option("--allow-unused", help="Leave out deltas that have no place in the base.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would happen, write nothing.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="The most threads that compute.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
) -> None:
    """Merge adapters into a checkpoint that need not fit into memory.

    Interrupted, killed or out of space: repeat the command and it goes on. Exit codes: 0 done, 2 refused.
    """
    from infer_accel import lora

    shares = None if weights is None else [_weight(text) for text in weights.split(",")]
    require_apart(json_path, "--json", [base, *adapters, output])
    require_writable(json_path, "--json")
    require_existing(base, "the directory of a checkpoint first, then its adapters")
    for adapter in adapters:
        require_existing(adapter, "the directory of an adapter: adapter_config.json and its weights")
    with guarded(), byte_progress("merging") as progress:
        report = lora.merge_checkpoint(
            base,
            adapters,
            output,
            weights=shares,
            method=method,  # type: ignore[arg-type]  # checked there, with a message that lists the names
            density=density,
            rank=rank,
            seed=seed,
            dtype=dtype,
            residue=residue,
            verify=verify,
            resume=resume,
            allow_unused=allow_unused,
            dry_run=dry_run,
            num_threads=threads,
            progress=progress,
        )
    _print(report)
    if json_path is not None:
        write_results(json_path, report.to_json())


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        refuse(f"--weights: {text!r} is no finite number; write for instance --weights 1,0.5")
    return weight


def _print(report: MergeReport) -> None:
    console = results()
    console.print(_table(report))
    for line in _summary(report):
        console.print(line, markup=False, highlight=False)


def _table(report: MergeReport) -> Table:
    """Return a line a changed tensor, or a line a kind of module where there are many."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in ("", "rank", "norm of the delta", "survived", "elements changed"):
        table.add_column(title, justify="right", no_wrap=True)
    if len(report.tensors) <= _ROWS:
        for change in report.tensors:
            table.add_row(change.name, change.action, *_cells([change]))
        return table
    kinds: dict[tuple[str, str], list[TensorChange]] = {}
    for change in report.tensors:
        parts = [part for part in change.name.split(".") if not part.isdigit()]
        kinds.setdefault((".".join(parts[-2:]), change.action), []).append(change)
    for (kind, action), changes in kinds.items():
        table.add_row(f"{kind} × {len(changes)}", action, *_cells(changes))
    return table


def _cells(changes: list[TensorChange]) -> tuple[str, str, str, str]:
    """Return rank, norm, survived share and changed share of some tensors together."""
    ranks = sorted({change.rank for change in changes if change.rank})
    squares = sum((change.delta_norm or 0.0) ** 2 for change in changes)
    kept = sum((change.delta_norm or 0.0) ** 2 * (change.survived or 0.0) for change in changes)
    elements = sum(change.elements for change in changes)
    changed = sum(change.changed for change in changes)
    return (
        "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else "",
        f"{math.sqrt(squares):.4g}" if squares else "",
        f"{kept / squares:.1%}" if squares else "",
        f"{changed / elements:.1%}" if elements else "",
    )


def _summary(report: MergeReport) -> list[str]:
    counts = f"{len(report.tensors)} tensors changed, {len(report.untouched)} went through byte for byte"
    lines = [f"{counts}, {report.bytes / 1e9:.2f} GB"]
    if report.method != "sum":
        lines.append(f"{len(report.adapters)} adapters combined by {report.method}")
    if report.survived is not None and not report.is_dry_run:
        lines.append(f"{report.survived:.1%} of the deltas survived the rounding to the output's format")
    encoded = [change.quantization for change in report.tensors if change.quantization is not None]
    if encoded:
        scales, grown = sum(one.scales for one in encoded), sum(one.scales_changed for one in encoded)
        worst = max(encoded, key=lambda one: one.rms_error)
        lines.append(
            f"{len(encoded)} quantized tensors: {grown} of {scales} scales grew, "
            f"{sum(one.saturated for one in encoded)} elements saturated; error of encoding at most "
            f"{worst.rms_error:.3g} (root mean square)"
        )
    lines.extend(
        f"{adapter.name}: {len(adapter.unused)} deltas have no place in the base: {adapter.unused[0]} …"
        for adapter in report.adapters
        if adapter.unused
    )
    if report.left_out:
        lines.append(f"left out, since they hold the base's weights: {', '.join(report.left_out)}")
    if report.resumed_bytes:
        lines.append(f"{report.resumed_bytes / 1e9:.2f} GB were there already, from an interrupted run")
    if report.residue_bytes:
        lines.append(f"{report.residue_bytes / 1e6:.1f} MB kept to take the merge back")
    if report.verification is not None:
        found = report.verification
        lines.append(
            f"verified: {found.elements} elements computed again in float64, {found.off} of them one step off; "
            f"{found.copied_bytes} unchanged bytes compared"
        )
    if report.is_dry_run:
        lines.append("nothing was written (--dry-run)")
    else:
        lines.append(f"{len(report.files)} files in {report.output}, {report.checksum} checksums in --json")
    return lines
