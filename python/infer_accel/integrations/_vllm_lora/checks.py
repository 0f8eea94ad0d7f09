"""Whether an adapter may be used: its files, its base, and what an engine made of it. Nothing here needs vLLM."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from infer_accel.errors import AdapterError, InferAccelError
from infer_accel.lora import Adapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Faults that a message names one by one; of more it tells the number.
SHOWN = 2

#: What names an adapter's state without reading it: each file's name, size, time and node.
_Stamp = tuple[tuple[str, int, int, int], ...]


class AdapterChecks:
    """Reads adapters strictly, each state of its files once.

    Parameters
    ----------
    base_dir
        The directory of the model's weights; ``None`` where it is not known, and nothing is held against it.

    Examples
    --------
    >>> AdapterChecks(None).problem("/there/is/no/such/adapter")
    "there is no directory '/there/is/no/such/adapter'"
    """

    def __init__(self, base_dir: str | None) -> None:
        self._base = base_dir if base_dir is not None and Path(base_dir).is_dir() else None
        self._known: dict[str, tuple[_Stamp, str | None]] = {}
        self._lock = Lock()

    def problem(self, path: str) -> str | None:
        """Return what is wrong with an adapter, as one line, or None.

        Parameters
        ----------
        path
            Its directory.
        """
        if not Path(path).is_dir():
            return f"there is no directory {path!r}"
        stamp = _stamp(path)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        problem = self._read(path)
        with self._lock:
            self._known[path] = (stamp, problem)
        return problem

    @staticmethod
    def is_here(path: str) -> bool:
        """Return whether an adapter's path is one of this machine, and not a name to be looked up."""
        return Path(path).exists()

    def _read(self, path: str) -> str | None:
        try:
            # Caches of downloaded models are made of links, and the engine follows them too.
            adapter = Adapter.load(path, follow_symlinks=True)
        except AdapterError as error:
            return _listed([str(problem) for problem in error.problems]) if error.problems else str(error)
        except InferAccelError as error:
            return str(error)
        return _misfit(adapter, self._base) if self._base is not None else None


@functools.cache
def checks_of(base_dir: str | None) -> AdapterChecks:
    """Return the checks against a base that this process shares: what one part of an engine read, others know."""
    return AdapterChecks(base_dir)


def _misfit(adapter: Adapter, base: str) -> str | None:
    """Return what a base says against an adapter."""
    try:
        ledger = adapter.resolve(base, follow_symlinks=True)
    except InferAccelError:
        # A base of another format says nothing about the adapter; the engine's modules still will.
        return None
    if not ledger.problems:
        return None
    text = _listed([str(problem) for problem in ledger.problems])
    if ledger.updates or ledger.replacements:
        return text
    return f"none of its modules fits the model, so that it would change nothing: {text}"


def loaded_problem(
    factors: Mapping[str, tuple[Any, Any]], modules: Mapping[str, tuple[int, int] | None]
) -> str | None:
    """Return what is wrong with an adapter that an engine has read, as one line, or None.

    Parameters
    ----------
    factors
        ``lora_A`` and ``lora_B`` of each module, torch tensors; or None where one is missing.
    modules
        Input and output features of each module of the engine that adapters can change; None where those are not
        known.
    """
    if not factors:
        return "it holds no weights: it would change nothing"
    strange = sorted(name for name in factors if name not in modules)
    if len(strange) == len(factors):
        return f"none of its {len(factors)} modules ({_named(strange)}) is one of the model's: it would change nothing"
    if strange:
        return f"modules that the model does not have, or that no adapter can change: {_named(strange)}"
    problems = []
    for name, (lora_a, lora_b) in sorted(factors.items()):
        if lora_a is None or lora_b is None:
            problems.append(f"{name}: lora_{'A' if lora_a is None else 'B'} is missing")
            continue
        problem = _pair_problem(lora_a, lora_b, modules[name])
        if problem is not None:
            problems.append(f"{name}: {problem}")
    return _listed(problems) if problems else None


def _pair_problem(lora_a: Any, lora_b: Any, features: tuple[int, int] | None) -> str | None:  # noqa: ANN401 - torch's
    a, b = tuple(lora_a.shape), tuple(lora_b.shape)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return f"lora_A of shape {list(a)} and lora_B of shape {list(b)} are no pair"
    if features is not None and (a[1], b[0]) != features:
        return (
            f"lora_A of shape {list(a)} and lora_B of shape {list(b)}, where the model has "
            f"{features[0]} features in and {features[1]} out"
        )
    if not all(bool(part.isfinite().all()) for part in (lora_a, lora_b)):
        return "weights that are not finite"
    return None


def _listed(problems: list[str]) -> str:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _stamp(path: str) -> _Stamp:
    try:
        with os.scandir(path) as files:
            stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats))
