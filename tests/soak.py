"""How often a test repeats what chance decides: seconds in `make test`, long in `make soak`."""

from __future__ import annotations

import os

#: Set to anything but 0 by `make soak`.
VARIABLE = "INFER_ACCEL_SOAK"


def is_long() -> bool:
    """Return whether the environment asks for a soak."""
    return os.environ.get(VARIABLE, "0") != "0"


def repeats(short: int, long: int) -> int:
    """Return `short`, or `long` where the environment asks for a soak."""
    return long if is_long() else short
