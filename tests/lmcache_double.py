"""What of LMCache's interface `infer_accel.integrations.lmcache` uses, for where LMCache is not there."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    import torch


class Bitmap:
    def __init__(self, size: int) -> None:
        self.bits = [False] * size

    def set(self, place: int) -> None:
        self.bits[place] = True

    def get_indices_list(self) -> list[int]:
        return [place for place, bit in enumerate(self.bits) if bit]


class L2StoreResult(int):
    def __new__(cls, success: bool, bytes_transferred: int) -> L2StoreResult:
        return super().__new__(cls, bytes_transferred if success else -1)

    def is_successful(self) -> bool:
        return self >= 0


@dataclass(frozen=True)
class AdapterUsage:
    total_bytes_used: int
    total_capacity_bytes: int


class L2AdapterInterface(ABC):
    def __init__(self, max_capacity_bytes: int = 0) -> None:
        self.stored: list[Any] = []
        self.accessed: list[Any] = []

    @abstractmethod
    def get_store_event_fd(self) -> int: ...

    @abstractmethod
    def get_lookup_and_lock_event_fd(self) -> int: ...

    @abstractmethod
    def get_load_event_fd(self) -> int: ...

    @abstractmethod
    def submit_store_task(self, keys: list[Any], objects: list[Any]) -> int: ...

    @abstractmethod
    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]: ...

    @abstractmethod
    def submit_lookup_and_lock_task(self, keys: list[Any], group_layout_descs: dict[int, Any]) -> int: ...

    @abstractmethod
    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None: ...

    @abstractmethod
    def submit_unlock(self, keys: list[Any]) -> None: ...

    @abstractmethod
    def submit_load_task(self, keys: list[Any], objects: list[Any]) -> int: ...

    @abstractmethod
    def query_load_result(self, task_id: int) -> Bitmap | None: ...

    @abstractmethod
    def close(self) -> None: ...

    def get_usage(self) -> AdapterUsage:
        return AdapterUsage(0, 0)

    def _notify_keys_stored(self, keys: list[Any], sizes: list[int]) -> None:
        self.stored += keys

    def _notify_keys_accessed(self, keys: list[Any]) -> None:
        self.accessed += keys


class Notifier:
    def __init__(self) -> None:
        self._file = os.eventfd(0)

    def fileno(self) -> int:
        return self._file

    def notify(self) -> None:
        os.eventfd_write(self._file, 1)

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class ObjectKey:
    chunk_hash: bytes
    model_name: str = "m"
    kv_rank: int = 0
    object_group_id: int = 0
    cache_salt: str = ""


@dataclass
class MemoryLayoutDesc:
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]


@dataclass
class MemoryObj:
    """An object in LMCache's memory: bytes that belong to somebody, and what they are."""

    raw_data: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    shapes: list[torch.Size] | None = None
    dtypes: list[torch.dtype] | None = None
    metadata: Any = field(init=False)

    def __post_init__(self) -> None:
        self.metadata = self

    def get_size(self) -> int:
        return len(self.raw_data)

    @property
    def byte_array(self) -> memoryview:
        return memoryview(self.raw_data.numpy())


def install(monkeypatch: pytest.MonkeyPatch, version: str = "0.5.6") -> None:
    """Put the stand-ins where LMCache would be."""
    parts: dict[str, dict[str, Any]] = {
        "lmcache": {},
        "lmcache.lmcache_native": {"Bitmap": Bitmap},
        "lmcache.v1": {},
        "lmcache.v1.platform": {"create_event_notifier": Notifier},
        "lmcache.v1.distributed": {},
        "lmcache.v1.distributed.internal_api": {"L2StoreResult": L2StoreResult},
        "lmcache.v1.distributed.l2_adapters": {},
        "lmcache.v1.distributed.l2_adapters.base": {"L2AdapterInterface": L2AdapterInterface},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    told = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "lmcache" else told(name)
    )
