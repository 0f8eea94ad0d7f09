"""What of vLLM's interface `infer_accel.integrations.vllm` uses, for where vLLM is not there: names and shapes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from infer_accel import integrations

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pytest


class Medium(Enum):
    CPU = "CPU"
    STORAGE = "STORAGE"


class Locality(Enum):
    LOCAL = "LOCAL"
    REMOTE = "REMOTE"


class LookupResult(Enum):
    MISS = auto()
    HIT = auto()
    HIT_PENDING = auto()
    RETRY = auto()


@dataclass(frozen=True)
class OffloadingEvent:
    keys: list[bytes]
    medium: Medium
    removed: bool
    locality: Locality | None = None


@dataclass
class RequestOffloadingContext:
    policy: object = None


@dataclass
class TransferJob:
    job_id: int
    keys: list[bytes]
    chunk_ids: npt.NDArray[np.int64]
    is_promotion: bool = False
    req_context: object = None


@dataclass
class JobResult:
    job_id: int
    success: bool
    successful_keys: tuple[bytes, ...] | None = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None


class SecondaryTierManager:
    medium: ClassVar[Medium | None] = None

    def __init__(self, spec: Any, view: memoryview, tier_type: str, detector: object = None) -> None:
        assert view.strides is not None
        self._block_size_bytes, self.tier_type, self._bp_detector = view.strides[0], tier_type, detector

    @property
    def block_size_bytes(self) -> int:
        return self._block_size_bytes


@dataclass
class FileMapper:
    base_path: str
    rank: int = 0
    fields: dict[str, object] = field(default_factory=dict)

    @classmethod
    def from_offloading_spec(
        cls, *, root_dir: str, offloading_spec: Any, blocks_per_file: int, parallel_agnostic: bool
    ) -> FileMapper:
        name = offloading_spec.config.model.name
        return cls(f"{root_dir}/{name}", fields={"model_name": name, "blocks_per_file": blocks_per_file})

    def get_run_config(self) -> dict[str, object]:
        return dict(self.fields)


def specification(*, events: bool = False, model: str = "model") -> Any:
    """As vLLM hands one to a tier."""
    config = SimpleNamespace(model=SimpleNamespace(name=model))
    kv_events = SimpleNamespace(enable_kv_cache_events=events)
    return SimpleNamespace(config=config, blocks_per_chunk=1, kv_events_config=kv_events)


@dataclass
class ChunkStatus:
    ref_cnt: int = 0


@dataclass
class ReqContext:
    """A request, as a policy of eviction sees it."""

    positions: dict[bytes, int] = field(default_factory=dict)
    state: dict[type, Any] = field(default_factory=dict)

    def get_offload_key_position(self, key: bytes) -> int | None:
        return self.positions.get(key)

    def get_state(self, kind: type) -> Any:
        return self.state.get(kind)

    def set_state(self, value: Any) -> None:
        self.state[type(value)] = value


class CachePolicy:
    def __init__(self, cache_capacity: int) -> None:
        self.cache_capacity = cache_capacity


def order_request_keys(key_groups: Any, req_context: ReqContext) -> list[bytes]:
    keys = [key for group in key_groups for key in group]
    return sorted(keys, key=lambda key: req_context.positions[key])


@dataclass(frozen=True)
class OffloadingConfig:
    extra_config: dict[str, Any]


class TieringOffloadingSpec:
    def __init__(self, config: OffloadingConfig) -> None:
        self.extra_config = config.extra_config
        self.tiers = self._get_secondary_tiers(config.extra_config)

    @classmethod
    def _get_secondary_tiers(cls, extra_config: dict[str, Any]) -> list[Any]:
        return list(extra_config.get("secondary_tiers", []))


class _Factory:
    """As vLLM's three are: names, and where their classes lie."""

    def __init__(self) -> None:
        self.registry: dict[str, tuple[str, str]] = {}

    def _register(self, name: str, module_path: str, class_name: str) -> None:
        if name in self.registry:
            raise ValueError("is already registered")
        self.registry[name] = (module_path, class_name)

    register_spec = register_tier = register_cache_policy = _register


FACTORIES = ("OffloadingSpecFactory", "SecondaryTierFactory", "CachePolicyFactory")


def install(monkeypatch: pytest.MonkeyPatch, *, version: str = "0.33.0") -> None:
    """Put these names where vLLM would have them, for one test."""
    here: dict[str, Any] = {name: value for name, value in globals().items() if isinstance(value, type)}
    here |= {name: _Factory() for name in FACTORIES}
    here |= {"order_request_keys": order_request_keys, "__version__": version}
    for name in (
        "vllm",
        "vllm.v1",
        "vllm.v1.kv_offload",
        "vllm.v1.kv_offload.base",
        "vllm.v1.kv_offload.config",
        "vllm.v1.kv_offload.cpu",
        "vllm.v1.kv_offload.cpu.policies",
        "vllm.v1.kv_offload.cpu.policies.base",
        "vllm.v1.kv_offload.cpu.policies.factory",
        "vllm.v1.kv_offload.factory",
        "vllm.v1.kv_offload.file_mapper",
        "vllm.v1.kv_offload.tiering",
        "vllm.v1.kv_offload.tiering.base",
        "vllm.v1.kv_offload.tiering.factory",
        "vllm.v1.kv_offload.tiering.spec",
    ):
        module = ModuleType(name)
        module.__dict__.update(here)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("vllm", "vllm_offloading"):
        monkeypatch.delitem(sys.modules, f"infer_accel.integrations.{name}", raising=False)
        monkeypatch.delattr(integrations, name, raising=False)
