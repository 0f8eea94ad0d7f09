"""A small Ray on this machine: two workers, the loopback interface, nothing reported to anybody."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.scale.needs import package

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def two_workers() -> Iterator[Any]:
    """Yield Ray with two workers; ends them with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = package("ray")
    paths = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH", ""), str(ROOT)) if part)
    # Ray takes 127.0.0.1 for "find my address", and would listen on the network.
    with mock.patch("ray._private.services.resolve_ip_for_localhost", lambda host: host):
        ray.init(
            num_cpus=2,
            object_store_memory=256 << 20,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _system_config={"enable_metrics_collection": False},
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()


def descendants() -> dict[int, str]:
    """Return the processes below this one, and what they call themselves."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(after_name.split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid: name for pid, name in names.items() if is_below(pid)}


def listening_addresses() -> set[str]:
    """Return where processes below this one listen for others: addresses as the kernel writes them, in hexadecimal."""
    sockets: set[str] = set()
    for pid in descendants():
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(handle.readlink()))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, _, state, *_ = line.split()[1:]
            if state == "0A" and f"socket:[{line.split()[9]}]" in sockets:
                addresses.add(local.rpartition(":")[0])
    return addresses


def kill_worker(doing: str) -> bool:
    """Kill a worker of ours that is doing that now; returns whether there was one."""
    for pid, name in descendants().items():
        if name.startswith(f"ray::{doing}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
    return False
