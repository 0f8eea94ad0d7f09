"""infer-accel: the CPU work between an LLM server's socket and its GPU kernels, done natively.

Three parts, each a module of its own:

* :mod:`infer_accel.tokenize`: text to tokens, token counts, and back;
* :mod:`infer_accel.kvcache`: block hashes, block pool, page copies of a paged KV cache;
* :mod:`infer_accel.lora`: LoRA adapters merged into weights, or applied beside them.

:mod:`infer_accel.errors` holds every exception, :mod:`infer_accel.reference` the executable specification.
The parts are loaded on first use: ``import infer_accel`` alone loads nothing but this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from infer_accel import errors, kvcache, lora, reference, tokenize

__all__ = ["__version__", "errors", "kvcache", "lora", "reference", "tokenize"]

__version__ = "0.1.0"

_PARTS = frozenset({"errors", "kvcache", "lora", "reference", "tokenize"})


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted(__all__)
