"""LMCache's own connector for vLLM, as vLLM loads it by this module's name.

vLLM 0.32 for CPUs looks at ``__dict__`` of everything in every module, and breaks on an object of llvmlite that LMCache
brings along (through Numba) and that has any attribute it is asked for. Here it has no names with underscores.
"""

from __future__ import annotations

from typing import Any

from llvmlite.binding import ffi

_found = ffi._lib_wrapper.__getattr__


def _only_functions(self: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _found(self, name)


ffi._lib_wrapper.__getattr__ = _only_functions

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector  # noqa: E402

__all__ = ["LMCacheMPConnector"]
