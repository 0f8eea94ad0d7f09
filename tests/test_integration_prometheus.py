"""Statistics as Prometheus reads them."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel import errors, kvcache
from infer_accel.integrations._connector.counters import Counters
from infer_accel.integrations._shared.stats import SharedTierStats
from infer_accel.lora import AdapterStore
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

prometheus = pytest.importorskip("prometheus_client")


def test_metrics_are_the_statistics() -> None:
    from infer_accel.integrations.prometheus import StatsCollector

    pool = kvcache.BlockPool(64, block_size=4)
    manager = kvcache.BlockManager(pool)
    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector({"kv_pool": pool, "kv_manager": manager}, labels={"engine": "3"}))
    manager.admit(range(20))
    manager.admit(range(20))
    labels = {"engine": "3"}
    expected = {
        "infer_accel_kv_pool_free_blocks": 57,
        "infer_accel_kv_pool_hits_total": 4,
        "infer_accel_kv_manager_sequences": 2,
        "infer_accel_kv_manager_cached_tokens_total": 16,
    }
    for name, value in expected.items():
        assert registry.get_sample_value(name, labels) == value


def test_names_that_prometheus_would_not_take() -> None:
    from infer_accel.integrations.prometheus import StatsCollector

    for bad in ("", "KV", "a-b", "1"):
        with pytest.raises(errors.ArgumentError) as caught:
            StatsCollector({bad: kvcache.BlockPool(8)})
        assert caught.value.code == "argument.metric_name"
    with pytest.raises(errors.ArgumentError, match="'source'"):
        StatsCollector({"kv_pool": kvcache.BlockPool(8)}, labels={"source": "a"})


class Shared:
    """What a shared tier is to a collector."""

    def stats(self) -> SharedTierStats:
        return SharedTierStats(up=1, hits=3, load_seconds=0.5)


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Any]:
    """Return one of each thing with statistics, by the names that the dashboard knows."""
    pool = kvcache.BlockPool(64, block_size=4)
    disk = kvcache.DiskTier(tmp_path / "disk", capacity_bytes=1 << 20, page_bytes=512, fingerprint=b"")
    ranks = tmp_path / "bytes.tiktoken"
    ranks.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    tokenizer = Tokenizer.from_tiktoken(ranks, pattern="cl100k")
    return {
        "kv_pool": pool,
        "kv_manager": kvcache.BlockManager(pool),
        "kv_disk": disk,
        "kv_cache": kvcache.TieredCache(disk, host_pages=4),
        "kv_shared": Shared(),
        "kv_connector": Counters(),
        "lora_store": AdapterStore(1 << 20),
        "prompt_cache": PromptCache(tokenizer, 1 << 20),
    }


def exposed(sources: dict[str, Any]) -> dict[str, str]:
    """Return the type of each metric, by the name that a query uses."""
    from infer_accel.integrations.prometheus import StatsCollector

    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector(sources))
    text = prometheus.generate_latest(registry).decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_everything_with_statistics(everything: dict[str, Any]) -> None:
    metrics = exposed(everything)
    for source, target in everything.items():
        stats = target.stats() if callable(target.stats) else target.stats
        for field in dataclasses.fields(stats):
            name = f"infer_accel_{source}_{field.name}"
            counts = field.name in type(stats).COUNTERS
            assert metrics[f"{name}_total" if counts else name] == ("counter" if counts else "gauge")
        assert {field.name for field in dataclasses.fields(stats)} >= type(stats).COUNTERS
    assert metrics["infer_accel_kv_disk_hits_total"] == "counter"
    assert metrics["infer_accel_kv_disk_bytes"] == "gauge"
    assert metrics["infer_accel_kv_shared_up"] == "gauge"


def test_a_source_that_cannot_tell_takes_nothing_from_the_others(everything: dict[str, Any]) -> None:
    from infer_accel.integrations.prometheus import StatsCollector

    everything["kv_cache"].close()
    everything["kv_disk"].close()
    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector(everything, labels={"engine": "0"}))
    readable = {
        source: registry.get_sample_value("infer_accel_source_readable", {"engine": "0", "source": source})
        for source in everything
    }
    assert readable == {source: float(source not in {"kv_cache", "kv_disk"}) for source in everything}
    assert registry.get_sample_value("infer_accel_kv_shared_hits_total", {"engine": "0"}) == 3
    assert registry.get_sample_value("infer_accel_kv_disk_hits_total", {"engine": "0"}) is None


def test_the_dashboard_asks_for_what_there_is(everything: dict[str, Any]) -> None:
    from infer_accel.integrations.prometheus import dashboard

    metrics = exposed(everything)
    board = json.loads(dashboard())
    asked: set[str] = set()
    for panel in board["panels"]:
        assert panel["title"]
        for target in panel.get("targets", []):
            names = set(re.findall(r"\binfer_accel_\w+", target["expr"]))
            assert names, target["expr"]
            for name in names:
                assert name in metrics, f"{panel['title']} asks for {name}, which nothing exposes"
                is_rate = f"rate({name}{{" in target["expr"]
                assert is_rate == (metrics[name] == "counter"), f"{name} is a {metrics[name]}"
            asked |= names
            assert target["expr"].count("(") == target["expr"].count(")")
    for source in everything:
        assert any(name.startswith(f"infer_accel_{source}_") for name in asked), source
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(set(identifiers)) == len(identifiers)
