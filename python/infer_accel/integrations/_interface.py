"""Whether an engine is one that an integration was written against: its version, and the parameters of its methods."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: The parameters of methods, without what they are called on.
Signatures = dict[type, dict[str, tuple[str, ...]]]


def version_problem(engine: str, version: str, known: Sequence[str]) -> str | None:
    """Return what is wrong with a version, of which the minor ones that are known are given; or None."""
    found = re.match(r"\d+\.\d+", version)
    if (found[0] if found else version) in known:
        return None
    return f"{engine} {version} came; known to work: {', '.join(known)}"


def signature_problem(
    engine: str, version: str, signatures: Mapping[type, Mapping[str, tuple[str, ...]]]
) -> str | None:
    """Return the first method that is not there or has other parameters; or None."""
    for kind, methods in signatures.items():
        for name, wanted in methods.items():
            found = _parameters(getattr(kind, name, None))
            if found != wanted:
                return (
                    f"{engine} {version} has {kind.__name__}.{name}{found}, where {name}{wanted} was expected: "
                    "a changed build?"
                )
    return None


def _parameters(method: Callable[..., object] | None) -> tuple[str, ...] | None:
    if method is None:
        return None
    names = tuple(inspect.signature(method).parameters)
    # A class method has no `self` to leave out.
    return names if inspect.ismethod(method) else names[1:]
