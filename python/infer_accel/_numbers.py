"""Numbers that callers pass."""

from __future__ import annotations

import math

__all__ = ["real"]


def real(number: float) -> float:
    """Return a real number as a ``float``; a text is none, though ``float()`` would read it.

    Examples
    --------
    >>> real(2)
    2.0
    >>> real("2")
    Traceback (most recent call last):
    TypeError: must be real number, not str
    """
    return math.ldexp(number, 0)
