"""Which implementation answers: the native core, or the executable specification.

``INFER_ACCEL_BACKEND`` chooses: ``native`` (the default) or ``reference``, which is exact and about a hundred
times slower. It serves where no wheel fits, and to tell a defect of the core from one of the caller. A missing
core is an error that says so; nothing falls back in silence.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from typing import TYPE_CHECKING, NoReturn

from infer_accel.errors import BackendError

if TYPE_CHECKING:
    from types import ModuleType

VARIABLE = "INFER_ACCEL_BACKEND"


def name() -> str:
    """Return the name of the backend in use, ``"native"`` or ``"reference"``."""
    chosen = os.environ.get(VARIABLE, "native")
    if chosen not in {"native", "reference"}:
        message = f"{VARIABLE}={chosen!r} names no backend; allowed: native, reference, or unset"
        raise BackendError(message, code="backend.unknown")
    return chosen


def load(part: str) -> ModuleType:
    """Return the module that implements a part (``"lora"``, ``"kvcache"`` or ``"tokenize"``)."""
    if name() == "reference":
        return importlib.import_module(f"infer_accel._reference.{part}")
    module: ModuleType = getattr(native(), part)
    return module


def files() -> ModuleType:
    """Return the native core for work on files, which the specification does not know."""
    return refuse_files() if name() == "reference" else native()


def refuse_files() -> NoReturn:
    """Raise what stands in for work on files in the specification."""
    message = f"the specification ({VARIABLE}=reference) knows tensors, not files; use the native core"
    raise BackendError(message, code="backend.files")


@functools.cache
def native() -> ModuleType:
    """Return the extension module."""
    try:
        module = importlib.import_module("infer_accel._native")
    except ImportError as error:
        message = (
            f"the native core of infer-accel cannot be loaded ({error}); install a wheel for this platform, or set "
            f"{VARIABLE}=reference for the slow specification"
        )
        raise BackendError(message, code="backend.missing") from error
    if module.system.is_debug_build():
        message = "this infer-accel is a debug build, many times slower than a release build"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return module
