"""The commands of `infer-accel`."""

from __future__ import annotations

from typing import Annotated

import typer

from infer_accel import __version__
from infer_accel.cli import bench, count, info, inspect, merge, replay, unmerge

__all__ = ["app"]

app = typer.Typer(
    name="infer-accel",
    help="The CPU work of LLM inference, done natively: merge, hash, copy, count.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="bench")(bench.run)
app.command(name="count")(count.run)
app.command(name="info")(info.run)
app.command(name="inspect")(inspect.run)
app.command(name="merge")(merge.run)
app.command(name="replay")(replay.run)
app.command(name="unmerge")(unmerge.run)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"infer-accel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep `infer-accel` a group of commands."""
