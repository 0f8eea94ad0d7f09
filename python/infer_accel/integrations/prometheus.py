"""A collector of Prometheus for everything that has statistics: pools, managers, tiers.

Needs ``prometheus_client``: ``pip install 'infer-accel[prometheus]'``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

__all__ = ["StatsCollector", "StatsSource"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class StatsSource(Protocol):
    """An object with statistics: a :class:`~infer_accel.kvcache.BlockPool`, for one."""

    def stats(self) -> object:
        """Return a dataclass of numbers; ``COUNTERS`` of its class names those that only grow."""


class StatsCollector:
    """Exposes the statistics of several objects, read when Prometheus asks.

    Parameters
    ----------
    sources
        The objects, by the name that stands in their metrics: ``{"kv_pool": pool}`` gives
        ``infer_accel_kv_pool_free_blocks`` and ``infer_accel_kv_pool_evictions_total``.
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
    >>> print(generate_latest(registry).decode().splitlines()[2])
    infer_accel_kv_pool_num_blocks 8.0
    """

    def __init__(
        self, sources: Mapping[str, StatsSource], *, labels: Mapping[str, str] | None = None
    ) -> None:
        for name in [*sources, *(labels or {})]:
            if not _NAME.fullmatch(name):
                message = f"the name {name!r} came; pass lower-case letters, digits and underscores"
                raise ArgumentError(message, code="argument.metric_name")
        self._sources = dict(sources)
        self._labels = dict(labels or {})

    def collect(self) -> Iterator[Metric]:
        """Yield a metric for each number of each object."""
        names, values = list(self._labels), list(self._labels.values())
        for source, target in self._sources.items():
            stats = target.stats()
            counters: frozenset[str] = getattr(type(stats), "COUNTERS", frozenset())
            for field in dataclasses.fields(stats):  # type: ignore[arg-type]
                value = getattr(stats, field.name)
                if not isinstance(value, int | float):
                    continue
                name = f"infer_accel_{source}_{field.name}"
                family = CounterMetricFamily if field.name in counters else GaugeMetricFamily
                metric = family(name, f"{field.name.replace('_', ' ')} of {source}", labels=names)
                metric.add_metric(values, value)
                yield metric
