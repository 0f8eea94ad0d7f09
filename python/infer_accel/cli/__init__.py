"""The command line: one file a command, and nothing imported before a command needs it.

Exit codes are part of the interface: 0 done, 1 a row fell below its baseline or something inspected is wrong, 2 a
wrong call, wrong input or a row that is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import sys

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line on the arguments of the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table or a file's name may have what the output's encoding lacks: it is shown escaped, not lost in an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Here, because loading takes a while, in which Ctrl-C is heeded as it is later.
        from infer_accel.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        # A command says so itself; before one has begun, typer ends without a word.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
        raise
