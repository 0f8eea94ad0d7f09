"""A collector of Prometheus for everything that has statistics: pools, managers, tiers, caches, stores.

Needs ``prometheus_client``: ``pip install 'infer-accel[prometheus]'``.
"""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from infer_accel.errors import ArgumentError, InferAccelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

__all__ = ["StatsCollector", "StatsSource", "dashboard"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class StatsSource(Protocol):
    """An object with statistics: a :class:`~infer_accel.kvcache.BlockPool`, for one."""

    @property
    def stats(self) -> object:
        """A dataclass of numbers, or a method that returns one; its ``COUNTERS`` name those that only grow."""
        ...


class StatsCollector:
    """Exposes the statistics of several objects, read when Prometheus asks.

    An object that cannot tell, such as a tier that was closed, has no metrics but
    ``infer_accel_source_readable{source="…"} 0``; the others have theirs.

    Parameters
    ----------
    sources
        The objects, by the name that stands in their metrics: ``{"kv_pool": pool}`` gives
        ``infer_accel_kv_pool_free_blocks`` and ``infer_accel_kv_pool_evictions_total``. The dashboard that comes with
        the package knows the names kv_pool, kv_manager, kv_cache, kv_disk, kv_shared, kv_connector, lora_store and
        prompt_cache.
    labels
        Names and values that every metric carries, such as ``{"engine": "0"}``.

    Raises
    ------
    ArgumentError
        A name that Prometheus would not take.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> from infer_accel.kvcache import BlockPool
    >>> registry = CollectorRegistry()
    >>> registry.register(StatsCollector({"kv_pool": BlockPool(8)}))
    >>> registry.get_sample_value("infer_accel_kv_pool_num_blocks")
    8
    >>> "infer_accel_kv_pool_evictions_total 0.0" in generate_latest(registry).decode()
    True
    """

    def __init__(
        self, sources: Mapping[str, StatsSource], *, labels: Mapping[str, str] | None = None
    ) -> None:
        for name in [*sources, *(labels or {})]:
            if not _NAME.fullmatch(name):
                message = f"the name {name!r} came; pass lower-case letters, digits and underscores"
                raise ArgumentError(message, code="argument.metric_name")
        if "source" in (labels or {}):
            message = "the label 'source' came; it is this collector's own: name yours otherwise"
            raise ArgumentError(message, code="argument.metric_name")
        self._sources = dict(sources)
        self._labels = dict(labels or {})

    def collect(self) -> Iterator[Metric]:
        """Yield a metric for each number of each object."""
        names, values = list(self._labels), list(self._labels.values())
        readable = GaugeMetricFamily(
            "infer_accel_source_readable",
            "whether a source could tell its numbers",
            labels=[*names, "source"],
        )
        for source, target in self._sources.items():
            try:
                found = target.stats
                stats = found() if callable(found) else found
            except InferAccelError:
                readable.add_metric([*values, source], 0)
                continue
            readable.add_metric([*values, source], 1)
            yield from self._metrics(source, stats)
        yield readable

    def _metrics(self, source: str, stats: object) -> Iterator[Metric]:
        counters: frozenset[str] = getattr(type(stats), "COUNTERS", frozenset())
        for field in dataclasses.fields(stats):  # type: ignore[arg-type]
            value = getattr(stats, field.name)
            if not isinstance(value, int | float):
                continue
            name = f"infer_accel_{source}_{field.name}"
            family = CounterMetricFamily if field.name in counters else GaugeMetricFamily
            metric = family(name, f"{field.name.replace('_', ' ')} of {source}", labels=list(self._labels))
            metric.add_metric(list(self._labels.values()), value)
            yield metric


def dashboard() -> str:
    """Return a dashboard for Grafana, as JSON to import there: a panel for each thing that one wants to see.

    Examples
    --------
    >>> import json
    >>> json.loads(dashboard())["title"]
    'infer-accel'
    """
    return files("infer_accel.integrations").joinpath("grafana_dashboard.json").read_text(encoding="utf-8")
