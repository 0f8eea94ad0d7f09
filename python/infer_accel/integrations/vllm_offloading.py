"""Pieces of vLLM's own KV offloading: a specification with the disk tier in it, and a policy of eviction.

vLLM (0.33) knows both by name once its entry point has run::

    vllm serve MODEL --kv-transfer-config '{
      "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
      "kv_connector_extra_config": {
        "spec_name": "InferAccelOffloadingSpec", "cpu_bytes_to_use": 34359738368,
        "root_dir": "/var/cache/kv", "capacity_bytes": 1099511627776
      }
    }'

vLLM moves pages between the GPU and host memory, which is why it wants a GPU; what of them goes to disk, and which
leave host memory first, is decided here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import vllm

from infer_accel.errors import ArgumentError

try:
    from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, order_request_keys
    from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec
except ImportError as error:
    _message = f"this needs vLLM 0.33, and vLLM {vllm.__version__} has no such interface: {error}"
    raise ModuleNotFoundError(_message, name="vllm") from error

if not re.match(r"0\.33\b", str(vllm.__version__)):
    _message = f"vLLM {vllm.__version__} came; its offloading is known here as of 0.33"
    raise ModuleNotFoundError(_message, name="vllm")

from infer_accel.integrations.vllm import DiskTierManager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.config import OffloadingConfig
    from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus

__all__ = ["InferAccelOffloadingSpec", "LinkedLruPolicy"]

#: Options of the specification that are the tier's.
_TIER_OPTIONS = frozenset(inspect.signature(DiskTierManager).parameters) - frozenset(
    ("offloading_spec", "primary_kv_view", "tier_type", "backpressure_detector")
)
_REQUIRED = ("root_dir", "capacity_bytes")


class InferAccelOffloadingSpec(TieringOffloadingSpec):
    """vLLM's tiers of host memory and disk, where the disk is :class:`~infer_accel.integrations.vllm.DiskTierManager`.

    Parameters
    ----------
    config
        vLLM's. ``kv_connector_extra_config`` has the options of vLLM's ``TieringOffloadingSpec``, such as
        ``cpu_bytes_to_use``, and beside them those of the tier: ``root_dir`` and ``capacity_bytes``, and the others if
        need be. Further ``secondary_tiers`` come after it. ``eviction_policy`` is :class:`LinkedLruPolicy` by default.

    Raises
    ------
    ArgumentError
        ``root_dir`` or ``capacity_bytes`` is missing.
    """

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(replace(config, extra_config=_as_tiers(config.extra_config)))

    @classmethod
    def _get_secondary_tiers(cls, extra_config: dict[str, Any]) -> list[Any]:
        tiers: list[Any] = super()._get_secondary_tiers(_as_tiers(extra_config))
        return tiers


def _as_tiers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as vLLM's own specification takes it; one that is so already comes back as it is."""
    tiers = list(given.get("secondary_tiers", []))
    if any(tier.get("type") == DiskTierManager.__name__ for tier in tiers) and "root_dir" not in given:
        return dict(given)
    missing = [name for name in _REQUIRED if not given.get(name)]
    if missing:
        message = f"missing in kv_connector_extra_config: {', '.join(missing)}"
        raise ArgumentError(message, code="argument.connector_option")
    ours = {name: given[name] for name in given.keys() & _TIER_OPTIONS}
    tier = {"type": DiskTierManager.__name__, "module_path": DiskTierManager.__module__, **ours}
    policy = {"eviction_policy": LinkedLruPolicy.__name__, "cache_policy_module_path": __name__}
    rest = {name: value for name, value in given.items() if name not in _TIER_OPTIONS}
    return {**policy, **rest, "secondary_tiers": [tier, *tiers]}


class _Prefix:
    """Chunks that were used together, the beginning of a prompt first: its end leaves before it."""

    __slots__ = ("chunks", "is_sorted", "last", "owner", "rank")

    def __init__(self, rank: int, owner: object = None) -> None:
        self.rank, self.owner = rank, owner
        #: The chunks' positions in their prompt.
        self.chunks: dict[OffloadKey, int] = {}
        self.is_sorted, self.last = True, -1

    def add(self, key: OffloadKey, position: int) -> None:
        self.is_sorted &= position >= self.last
        self.last = position
        self.chunks[key] = position

    def from_the_end(self) -> Iterator[OffloadKey]:
        if not self.is_sorted:
            self.chunks = dict(sorted(self.chunks.items(), key=itemgetter(1)))
            self.is_sorted, self.last = True, max(self.chunks.values(), default=-1)
        from_the_end: Iterator[OffloadKey] = reversed(self.chunks)
        return from_the_end


class LinkedLruPolicy(CachePolicy):
    """Evicts what was used longest ago, and of a prompt the end first, as vLLM's ``lru`` does; in constant time.

    A chunk's place tells when it was used last, whether or not it is being moved meanwhile. What a request uses stands
    together from its first chunk on, and anew when it ends. Without the beginning of a prompt, its end cannot be used.

    Parameters
    ----------
    cache_capacity
        Chunks that host memory holds.

    Notes
    -----
    Every call is O(1) for each key; an eviction passes over chunks which are being moved. vLLM's own pushes every use
    onto a heap, and makes that anew for long prompts.
    """

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self._chunks: dict[OffloadKey, ChunkStatus] = {}
        self._prefixes: dict[int, _Prefix] = {}
        self._home: dict[OffloadKey, _Prefix] = {}
        self._next_rank = 0

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        """Return a chunk, or None."""
        return self._chunks.get(key)

    def insert(
        self,
        key: OffloadKey,
        chunk: ChunkStatus,
        req_context: ReqContext,
    ) -> None:
        """Add a chunk to those that its request uses."""
        self._chunks[key] = chunk
        position = req_context.get_offload_key_position(key)
        if position is None:
            self._move(key, self._new_prefix(), 0)
        else:
            self._move(key, self._prefix_of(req_context), position)

    def remove(self, key: OffloadKey) -> None:
        """Forget a chunk whose storing failed."""
        del self._chunks[key]
        self._leave(key)

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:  # noqa: ARG002 - vLLM's
        """Make chunks those that were used last."""
        prefix = self._new_prefix()
        for position, key in enumerate(keys):
            if key in self._chunks:
                self._move(key, prefix, position)

    def on_request_access(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """Put chunks with the others that their request uses, unless a later one uses them too."""
        prefix = self._prefix_of(req_context)
        for key in keys:
            position = req_context.get_offload_key_position(key)
            if position is not None and key in self._chunks and self._home[key].rank < prefix.rank:
                self._move(key, prefix, position)

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],  # noqa: ARG002 - vLLM's
        reused_keys: set[OffloadKey],  # noqa: ARG002 - vLLM's
        req_context: ReqContext,
    ) -> None:
        """Make what a request used what was used last."""
        self.touch(order_request_keys(key_groups, req_context), req_context)

    def evict(self, n: int, protected: set[OffloadKey]) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        """Return as many chunks as are asked for, and forget them; or None, and forget none."""
        keys = chain.from_iterable(prefix.from_the_end() for prefix in self._prefixes.values())
        idle = (key for key in keys if self._chunks[key].ref_cnt == 0 and key not in protected)
        found = list(islice(idle, n))
        if len(found) < n:
            return None
        for key in found:
            self._leave(key)
        return [(key, self._chunks.pop(key)) for key in found]

    def clear(self) -> None:
        """Forget all."""
        self._chunks.clear()
        self._prefixes.clear()
        # What requests have still hold belongs to the one before, and is known by that.
        self._home = {}

    def _new_prefix(self, owner: object = None) -> _Prefix:
        self._next_rank += 1
        return _Prefix(self._next_rank, owner)

    def _prefix_of(self, req_context: ReqContext) -> _Prefix:
        """Return what a request uses: made when it first uses something, and made anew after a reset."""
        prefix: _Prefix | None = req_context.get_state(_Prefix)
        if prefix is None or prefix.owner is not self._home:
            prefix = self._new_prefix(self._home)
            req_context.set_state(prefix)
        return prefix

    def _move(self, key: OffloadKey, prefix: _Prefix, position: int) -> None:
        self._leave(key)
        if not prefix.chunks:
            # They stand in the order of their ranks, also one that was empty for a while.
            self._next_rank += 1
            prefix.rank = self._next_rank
            self._prefixes[prefix.rank] = prefix
        prefix.add(key, position)
        self._home[key] = prefix

    def _leave(self, key: OffloadKey) -> None:
        prefix = self._home.pop(key, None)
        if prefix is not None:
            del prefix.chunks[key]
            if not prefix.chunks:
                del self._prefixes[prefix.rank]
