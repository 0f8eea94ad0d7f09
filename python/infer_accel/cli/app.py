"""The commands of `infer-accel`."""

from __future__ import annotations

from typing import Annotated

import typer

from infer_accel import __version__
from infer_accel.cli import bench, count, info, inspect, merge, replay, unmerge
from infer_accel.cli.output import command

__all__ = ["app"]

_GOES_ON = "; there is no output yet: repeat the command, and it goes on where it stopped"

app = typer.Typer(
    name="infer-accel",
    help="The CPU work of LLM inference, done natively: merge, hash, copy, count.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="bench")(command(bench.run))
app.command(name="count")(command(count.run))
app.command(name="info")(command(info.run))
app.command(name="inspect")(command(inspect.run))
app.command(name="merge")(command(merge.run, when_interrupted=_GOES_ON))
app.command(name="replay")(command(replay.run))
app.command(name="unmerge")(command(unmerge.run, when_interrupted=_GOES_ON))


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
