"""Rivals run on as many threads as ours: torch and BLAS are told so for the time of a case."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["limited_threads"]


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Hold torch (where it is imported) and BLAS (where threadpoolctl is installed) to `count` threads."""
    with ExitStack() as undo:
        if find_spec("threadpoolctl") is not None:
            undo.enter_context(import_module("threadpoolctl").threadpool_limits(count))
        torch = sys.modules.get("torch")
        if torch is not None:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            undo.callback(torch.set_num_threads, before)
        yield
