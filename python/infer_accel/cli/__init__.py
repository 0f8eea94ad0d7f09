"""The command line: one file a command, and nothing imported before a command needs it.

Exit codes are part of the interface: 0 done, 1 a row fell below its baseline or something inspected is wrong, 2 a
wrong call, wrong input or a row that is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

from infer_accel.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Run the command line on the arguments of the process."""
    app()
