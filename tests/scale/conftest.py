"""Servers and tiers for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from tests.kvcache_pages import PAGE
from tests.scale.needs import package, server_command
from tests.scale.servers import Server

if TYPE_CHECKING:
    from pathlib import Path

#: Opens a tier on the store of this test; what is named replaces the options of the tests.
Open: TypeAlias = Callable[..., Any]

#: Times that no test depends on: where an engine never answers, a tier that returned kept its deadline.
TIMES: dict[str, float] = {"deadline": 20.0, "write_deadline": 20.0, "retry_seconds": 0.01}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    package("redis")
    server_command()
    with Server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["redis", "directory", "memory"])
def open_shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """How a tier is opened on an empty store; twice is the same store."""
    opened: list[Any] = []
    make = _maker(request, tmp_path)

    def open_tier(**options: Any) -> Any:
        tier = make({"page_bytes": PAGE, "fingerprint": b"a layout", **TIMES, **options})
        opened.append(tier)
        return tier

    yield open_tier
    for tier in opened:
        tier.close()


def _maker(request: pytest.FixtureRequest, folder: Path) -> Callable[[dict[str, Any]], Any]:
    if request.param == "redis":
        running: Server = request.getfixturevalue("server")
        package("redis").Redis(port=running.port).flushall()
        from infer_accel.integrations.redis import RedisTier

        return lambda options: RedisTier(running.url, **options)
    stores = package("obstore.store")
    store = stores.LocalStore(folder) if request.param == "directory" else stores.MemoryStore()
    from infer_accel.integrations.object_store import ObjectStoreTier

    return lambda options: ObjectStoreTier(store, **options)


class Raw:
    """What lies in the store behind a tier, as bytes that a test may change."""

    def __init__(self, tier: Any) -> None:
        self._tier = tier

    def names(self, numbers: list[bytes]) -> list[str]:
        names: list[str] = self._tier._names(numbers)
        return names

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._tier._engine.fetch(self.names([key]))[0]
        return value

    def put(self, key: bytes, value: bytes) -> None:
        self._tier._engine.put([(self.names([key])[0], value)])


@pytest.fixture
def raw() -> Callable[[Any], Raw]:
    return Raw
