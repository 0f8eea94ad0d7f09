"""Puts the parts in their places, once in a process."""

from __future__ import annotations

import functools

from infer_accel.integrations._vllm_blocks import hasher, manager


@functools.cache
def once() -> None:
    """Put pool, managers and hasher in the places of vLLM's."""
    manager.install()
    hasher.install()
