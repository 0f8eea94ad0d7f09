"""The adapter under LMCache's own base class, command line, benchmark and server, and below a real vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.serve import storage, supervised
from tests.serve.server import free_port, started

if TYPE_CHECKING:
    from collections.abc import Iterator

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [torch.Size([2, 4, 64, 32])]
CHUNK = 64


def specification(root: Path, **more: Any) -> dict[str, Any]:
    return storage.lmcache_specification(str(root), capacity_bytes=1 << 28, **more)


@contextlib.contextmanager
def made(root: Path, **more: Any) -> Iterator[Any]:
    """Make the adapter as LMCache's server does."""
    from lmcache.v1.distributed.l2_adapters import L2AdapterInterface

    adapter = storage.lmcache_adapter(specification(root, **more))
    assert isinstance(adapter, L2AdapterInterface)
    adapter.set_backend_identity("plugin")
    try:
        yield adapter
    finally:
        adapter.close()


def keys(*numbers: int, **more: Any) -> list[Any]:
    from lmcache.v1.distributed.api import ObjectKey

    facts = {"model_name": "org/m", "kv_rank": ObjectKey.ComputeKVRank(1, 0, 1, 0)} | more
    return [ObjectKey(chunk_hash=number.to_bytes(32, "big"), **facts) for number in numbers]


def objects(*values: int, dtype: Any = torch.bfloat16) -> list[Any]:
    """Return objects as LMCache's memory manager makes them."""
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

    size = SHAPES[0].numel() * dtype.itemsize
    arena = torch.empty(len(values) * size, dtype=torch.uint8)
    found = []
    for place, value in enumerate(values):
        raw = arena[place * size : (place + 1) * size]
        raw.fill_(value)
        meta = MemoryObjMetadata(
            SHAPES[0], dtype, place * size, size, 1, fmt=MemoryFormat.KV_2LTD, shapes=SHAPES, dtypes=[dtype]
        )
        found.append(TensorMemoryObj(raw, meta, None))
    return found


def waited(descriptor: int) -> None:
    from lmcache.v1.platform import consume_fd

    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(20_000)
    consume_fd(descriptor)


def store(adapter: Any, names: list[Any], given: list[Any]) -> Any:
    task = adapter.submit_store_task(names, given)
    waited(adapter.get_store_event_fd())
    return adapter.pop_completed_store_tasks()[task]


def look(adapter: Any, names: list[Any], dtype: Any = torch.bfloat16) -> list[int]:
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    task = adapter.submit_lookup_and_lock_task(names, {0: MemoryLayoutDesc(SHAPES, [dtype])})
    waited(adapter.get_lookup_and_lock_event_fd())
    found = list(adapter.query_lookup_and_lock_result(task).get_indices_list())
    adapter.submit_unlock(names)
    return found


def load(adapter: Any, names: list[Any], given: list[Any]) -> list[int]:
    task = adapter.submit_load_task(names, given)
    waited(adapter.get_load_event_fd())
    return list(adapter.query_load_result(task).get_indices_list())


def test_their_loader_loads_it_and_objects_come_back(tmp_path: Path) -> None:
    with made(tmp_path) as adapter:
        assert len({adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd()}) == 2
        result = store(adapter, keys(1, 2, 3), objects(1, 2, 3))
        assert (result.is_successful(), result.bytes_transferred()) == (True, 3 * 2 * SHAPES[0].numel())
        assert store(adapter, keys(1), objects(1)).bytes_transferred() == 0
    with made(tmp_path) as adapter:
        assert look(adapter, keys(1, 9, 3)) == [0, 2]
        given = objects(70, 71, 72)
        assert load(adapter, keys(3, 9, 1), given) == [0, 2]
        assert [int(one.tensor.view(torch.uint8).max()) for one in given] == [3, 71, 1]
        for other in ({"model_name": "org/n"}, {"kv_rank": 7}, {"object_group_id": 1}, {"cache_salt": "s"}):
            assert load(adapter, keys(1, **other), objects(9)) == [], other
        assert load(adapter, keys(1), objects(9, dtype=torch.float16)) == []
        usage = adapter.get_usage()
        assert usage.total_bytes_used > 3 * 2 * SHAPES[0].numel()
        assert not adapter.supports_global_eviction
        assert adapter.report_status()["is_healthy"]


def test_a_flipped_byte_is_a_miss(tmp_path: Path) -> None:
    with made(tmp_path) as adapter:
        assert store(adapter, keys(1, 2), objects(7, 8)).is_successful()
    (segment,) = tmp_path.rglob("*.segment")
    data = bytearray(segment.read_bytes())
    data[bytes(data).index(bytes([7]) * 4096) + 100] ^= 4
    segment.write_bytes(data)
    with made(tmp_path) as adapter:
        assert load(adapter, keys(1, 2), objects(0, 0)) == [1]
        assert adapter.report_status()["layouts"][0]["tier"]["corrupt_pages"] == 1


def test_a_directory_that_cannot_be_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with made(tmp_path / "file") as adapter:
        assert not store(adapter, keys(1), objects(1)).is_successful()
        assert look(adapter, keys(1)) == []
        assert load(adapter, keys(1), objects(1)) == []
        assert not adapter.report_status()["is_healthy"]


def test_options_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: root_dir"), made(tmp_path, capactiy=3):
        pass


def lmcache() -> str:
    found = Path(sys.executable).with_name("lmcache")
    return str(found) if found.exists() else shutil.which("lmcache") or pytest.skip("no command lmcache")


def test_their_benchmark_verifies_it(tmp_path: Path) -> None:
    sizes = ["--num-keys", "8", "--data-size-kb", "512", "--rounds", "2", "--in-flight", "2"]
    done = supervised.run(
        [
            lmcache(),
            "bench",
            "l2",
            "--l2-adapter",
            json.dumps(specification(tmp_path)),
            "--no-skip-verify",
            *sizes,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "data verified OK" in done.stdout
    assert "MISMATCH" not in done.stdout


@contextlib.contextmanager
def server(root: Path) -> Iterator[tuple[int, Any]]:
    """Start LMCache's server by the example; gives its port, and what asks its status. It is killed at the end."""
    port, http = free_port(), free_port()
    command = ["sh", str(ROOT / "examples/lmcache_server.sh"), str(root)]
    command += ["--port", str(port), "--http-port", str(http), "--chunk-size", str(CHUNK)]
    command += ["--l1-size-gb", "1", "--no-l1-use-lazy", "--disable-observability"]
    # Where there is no GPU, the engine copies.
    command += ["--supported-transfer-mode", "engine_driven"]

    def status() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/status", timeout=30) as answer:
            return json.loads(answer.read())["storage_manager"]["l2_adapters"][0]

    quiet = {"LMCACHE_TRACK_USAGE": "false"}
    with started(command, root.with_suffix(".log"), status, quiet) as process:
        assert_loopback_only(process.pid)
        yield port, status


def assert_loopback_only(process: int) -> None:
    psutil = pytest.importorskip("psutil")
    whole = psutil.Process(process)
    listening = {
        connection.laddr.ip
        for one in [whole, *whole.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_pages_outlive_a_server_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM with LMCache's own connector, and LMCache's server above our disk, killed in between."""
    pytest.importorskip("vllm", exc_type=ImportError)
    from tests.serve.run import run

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    root = tmp_path / "kv"
    steps: list[Any] = [["generate", [[3, 10 * CHUNK + 7]], 8]]

    def answered(port: int) -> Any:
        connector = {
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_module_path": "tests.serve.lmcache_connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
        }
        return run(steps, 32, None, kv_transfer_config=connector)[0]

    def stored(status: Any) -> int:
        return sum(layout["tier"]["stored_pages"] for layout in status()["layouts"])

    with server(root) as (port, status):
        first = answered(port)
        until = time.monotonic() + 30
        while stored(status) < 10 and time.monotonic() < until:
            time.sleep(0.1)
        assert stored(status) == 10
        written = status()["layouts"][0]["tier"]["written_bytes"]
    # A bit of the seventh page: what is before it is used, what is behind it is computed.
    (segment,) = root.rglob("*.segment")
    place = written * 13 // 20
    with segment.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 4]))
    with server(root) as (port, status):
        second = answered(port)
        (layout,) = status()["layouts"]
    assert first["cached"] == [0]
    assert second["tokens"] == first["tokens"]
    assert second["cached"][0] % CHUNK == 0
    assert 0 < second["cached"][0] < 10 * CHUNK
    assert layout["tier"]["corrupt_pages"] == 1
    assert layout["tier"]["hits"] == 9
