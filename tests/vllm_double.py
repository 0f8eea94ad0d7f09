"""What of vLLM's interface `infer_accel.integrations.vllm` uses, for where vLLM is not there: names and shapes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

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


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put these names where vLLM would have them, for one test."""
    here = {name: value for name, value in globals().items() if isinstance(value, type)}
    for name in (
        "vllm",
        "vllm.v1",
        "vllm.v1.kv_offload",
        "vllm.v1.kv_offload.base",
        "vllm.v1.kv_offload.file_mapper",
        "vllm.v1.kv_offload.tiering",
        "vllm.v1.kv_offload.tiering.base",
    ):
        module = ModuleType(name)
        module.__dict__.update(here)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "infer_accel.integrations.vllm", raising=False)
