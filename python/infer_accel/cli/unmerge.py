"""`infer-accel unmerge`: the base of a merged checkpoint, bit for bit."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from infer_accel.cli.output import (
    MOST_THREADS,
    byte_progress,
    guarded,
    require_apart,
    require_existing,
    require_writable,
    results,
    write_results,
)

__all__ = ["run"]


def run(
    merged: Annotated[Path, typer.Argument(help="What `infer-accel merge --residue` wrote. Only read.")],
    adapters: Annotated[list[Path], typer.Argument(help="The adapters of the merge, in its order.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to make; absent or empty before.")
    ],
    residue: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the residue lies, if not in MERGED/residue.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on with unfinished work, or discard it.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="The most threads that compute.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
) -> None:
    """Take a merge back: every shard of the base, byte for byte.

    Other adapters, a changed checkpoint or a damaged residue are refused. Exit codes: 0 done, 2 refused.
    """
    from infer_accel import lora

    require_apart(json_path, "--json", [merged, *adapters, output])
    require_writable(json_path, "--json")
    require_existing(merged, "the directory that `infer-accel merge --residue` made, then the adapters")
    for adapter in adapters:
        require_existing(adapter, "the adapters that were merged")
    with guarded(), byte_progress("unmerging") as progress:
        report = lora.unmerge_checkpoint(
            merged,
            output,
            adapters=adapters,
            residue_dir=residue,
            resume=resume,
            num_threads=threads,
            progress=progress,
        )
    console = results()
    ways = f"{len(report.undone)} tensors came back by arithmetic, {len(report.restored)} had been kept whole"
    written = f"{len(report.files)} files in {report.output}, {report.checksum} checksums in --json"
    for line in (f"{ways}, {report.bytes / 1e9:.2f} GB", written):
        console.print(line, markup=False, highlight=False)
    if json_path is not None:
        write_results(json_path, report.to_json())
