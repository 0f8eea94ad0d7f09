"""Triton itself: whether it is there, and whether it compiles or interprets."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from infer_accel.errors import BackendError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["device_code", "is_interpreted"]


@functools.cache
def device_code(name: str) -> ModuleType:
    """Return a module of device code, by its name in this package.

    Raises
    ------
    BackendError
        Triton is not installed, or does not load.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        message = (
            f"CUDA tensors need Triton, which cannot be loaded ({error}): pip install 'infer-accel[gpu]'"
        )
        raise BackendError(message, code="backend.triton") from error
    return importlib.import_module(f"infer_accel.kernels.{name}")


@functools.cache
def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors (``TRITON_INTERPRET=1``).

    The variable counts at the time when Triton is imported, which is when its kernels are made.
    """
    try:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        kernel = device_code("page_copy_triton").copy_pages
    except (ImportError, BackendError):
        return False
    return isinstance(kernel, interpreter.InterpretedFunction)
