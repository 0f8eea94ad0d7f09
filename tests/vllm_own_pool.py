"""A pytest plugin: vLLM's own tests of prefix caching, with our block pool in its place; counts those that use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from infer_accel.integrations import vllm_block_pool

os.environ[vllm_block_pool.VARIABLE] = "1"
assert vllm_block_pool.register()

from infer_accel.integrations._vllm_blocks import manager  # noqa: E402 - vLLM's interface is checked first

if TYPE_CHECKING:
    import pytest

_served: set[str] = set()
_running = [""]
_own = manager.PooledCoordinator.__init__


def _counted(self: manager.PooledCoordinator, *arguments: Any, **options: Any) -> None:
    _served.add(_running[0])
    _own(self, *arguments, **options)


manager.PooledCoordinator.__init__ = _counted  # type: ignore[method-assign]


def pytest_runtest_setup(item: pytest.Item) -> None:
    _running[0] = item.nodeid


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{len(_served)} tests took blocks from infer-accel's pool")
