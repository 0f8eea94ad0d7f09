"""A disk for LMCache's multiprocess server: a plugin of ``--l2-adapter``.

::

    lmcache server --l1-size-gb 20 --eviction-policy LRU --l2-adapter '{
        "type": "plugin", "module_path": "infer_accel.integrations.lmcache", "class_name": "InferAccelL2Adapter",
        "adapter_params": {"root_dir": "/var/cache/kv", "capacity_bytes": 1099511627776}}'
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import logging
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    from lmcache.lmcache_native import Bitmap
    from lmcache.v1.distributed.internal_api import L2StoreResult
    from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface

    from infer_accel.integrations._lmcache_tasks import Tasks
except ImportError as error:
    _message = f"this plugin needs LMCache 0.5, and what is installed has no such interface: {error}"
    raise ModuleNotFoundError(_message, name="lmcache") from error

from infer_accel.errors import ArgumentError
from infer_accel.integrations._page_files import PageFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.l2_adapters.base import AdapterUsage
    from lmcache.v1.memory_management import MemoryObj

__all__ = ["KNOWN_VERSIONS", "InferAccelL2Adapter"]

#: Minor versions of LMCache that were tested.
KNOWN_VERSIONS = ("0.5",)

_log = logging.getLogger("infer_accel")

#: What LMCache asks of an adapter, and with which parameters.
_INTERFACE = {
    "get_store_event_fd": (),
    "get_lookup_and_lock_event_fd": (),
    "get_load_event_fd": (),
    "submit_store_task": ("keys", "objects"),
    "pop_completed_store_tasks": (),
    "submit_lookup_and_lock_task": ("keys", "group_layout_descs"),
    "query_lookup_and_lock_result": ("task_id",),
    "submit_unlock": ("keys",),
    "submit_load_task": ("keys", "objects"),
    "query_load_result": ("task_id",),
    "close": (),
}
#: Store tasks that wait; LMCache holds the memory of each until it is done. The next one fails at once.
_MOST_WAITING = 64
#: Layouts, each with a directory of its own.
_MOST_LAYOUTS = 64
#: Seconds for the device to take a store, where nothing else is said.
_WRITE_DEADLINE = 30.0


class _Layout(NamedTuple):
    """What an object's bytes are."""

    page_bytes: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


class InferAccelL2Adapter(L2AdapterInterface):
    """LMCache's objects in a :class:`~infer_accel.kvcache.DiskTier` for each of their layouts.

    Parameters
    ----------
    config
        ``adapter_params`` of the command line: ``root_dir`` and ``capacity_bytes`` must be there; ``segment_bytes``,
        ``checksum``, ``compression``, ``deadline`` (5 seconds) and ``write_deadline`` (30) are those of ``DiskTier``;
        ``load_threads`` (2) is how many load tasks are worked on at once.
    l1_memory_desc
        LMCache's; not used.

    Raises
    ------
    ArgumentError
        An option that is unknown, missing or out of range.

    Notes
    -----
    An object is named by its chunk's hash, model, rank, group and salt, in a directory that is named by its shapes,
    dtypes and size. One that is damaged, late, or cannot be read is one that is not there, and one that cannot be
    written is a store task that failed. Nothing is locked: what is evicted between lookup and load is a miss.
    """

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: object = None) -> None:
        del l1_memory_desc
        super().__init__()
        options = {"write_deadline": _WRITE_DEADLINE} | dict(config)
        threads = options.pop("load_threads", 2)
        if not isinstance(threads, int) or not 1 <= threads <= 64:
            message = f"load_threads={threads!r} came; 1 to 64 are allowed"
            raise ArgumentError(message, code="argument.connector_option")
        PageFiles(options, {})  # options that cannot be are an error now, and not with the first object
        self._options = options
        self._lock = Lock()
        self._layouts: dict[_Layout, PageFiles] = {}
        self._stored_layouts: set[_Layout] = set()
        self._refused = 0
        self._problem = _interface_problem()
        if self._problem is not None:
            _log.error("infer-accel's adapter is off, and LMCache works without it: %s", self._problem)
        self._stores: Tasks[L2StoreResult] = Tasks("store", 1)
        self._lookups: Tasks[Bitmap] = Tasks("lookup", 1)
        self._loads: Tasks[Bitmap] = Tasks("load", threads)

    def get_store_event_fd(self) -> int:
        """Return what is readable when a store is done."""
        return self._stores.event_fd

    def get_lookup_and_lock_event_fd(self) -> int:
        """Return what is readable when a lookup is done."""
        return self._lookups.event_fd

    def get_load_event_fd(self) -> int:
        """Return what is readable when a load is done."""
        return self._loads.event_fd

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Store objects; returns the task."""
        failed = L2StoreResult(False, 0)  # noqa: FBT003 - LMCache's signature
        if self._problem is not None:
            return self._stores.finished(failed)
        if self._stores.waiting >= _MOST_WAITING:
            self._refused += 1
            return self._stores.finished(failed)
        return self._stores.submit(lambda: self._store(keys, objects), failed)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """Return what is done, and forget it."""
        return self._stores.take_all()

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        """Look which objects are there; returns the task."""
        nothing = Bitmap(len(keys))
        if self._problem is not None:
            return self._lookups.finished(nothing)
        return self._lookups.submit(lambda: self._lookup(keys, group_layout_descs), nothing)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """Return which were there; None while it is not known, or was told before."""
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Do nothing: nothing is locked."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Fill objects; returns the task."""
        nothing = Bitmap(len(keys))
        if self._problem is not None:
            return self._loads.finished(nothing)
        return self._loads.submit(lambda: self._load(keys, objects), nothing)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """Return which were filled; None while it is not known, or was told before."""
        return self._loads.take(task_id)

    def get_usage(self) -> AdapterUsage:
        """Return the bytes in the directories, whoever wrote them."""
        used = sum(stats.bytes for files in self._all_files() if (stats := files.stats) is not None)
        return dataclasses.replace(super().get_usage(), total_bytes_used=used)

    def report_status(self) -> dict[str, Any]:
        """Return what LMCache's status shows: figures of each tier, and what failed."""
        with self._lock:
            layouts = dict(self._layouts)
        shown = []
        for layout, files in layouts.items():
            stats = files.stats
            shown.append(
                {
                    **layout._asdict(),
                    "failures": files.failures,
                    "last_failure": files.last_failure,
                    "tier": None if stats is None else dataclasses.asdict(stats),
                }
            )
        return {
            "is_healthy": self._problem is None and all(one["tier"] is not None for one in shown),
            "type": type(self).__name__,
            "problem": self._problem,
            "root_dir": str(self._options["root_dir"]),
            "waiting_stores": self._stores.waiting,
            "refused_stores": self._refused,
            "layouts": shown,
        }

    def close(self) -> None:
        """Finish all tasks, make what was stored durable, and close. A second call does nothing."""
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.finish()
        for files in self._all_files():
            files.close()
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.close()

    def _store(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> L2StoreResult:
        is_stored, new_keys, sizes = True, [], []
        for layout, places in _by_layout(objects).items():
            files = self._files_of(layout)
            if files is None or not files.open(layout.page_bytes):
                is_stored = False
                continue
            names = [_name_of(keys[place]) for place in places]
            known = files.present(names)
            if not files.store(names, [_bytes_of(objects[place]) for place in places]):
                is_stored = False
                continue
            self._stored_layouts.add(layout)
            fresh = [keys[place] for place, is_known in zip(places, known, strict=True) if not is_known]
            new_keys += fresh
            sizes += [layout.page_bytes] * len(fresh)
        if new_keys:
            self._notify_keys_stored(new_keys, sizes)
        return L2StoreResult(is_stored, sum(sizes))

    def _lookup(self, keys: Sequence[ObjectKey], descs: Mapping[int, MemoryLayoutDesc]) -> Bitmap:
        found = Bitmap(len(keys))
        groups: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(key.object_group_id, []).append(place)
        for group, places in groups.items():
            names = [_name_of(keys[place]) for place in places]
            for layout in self._layouts_of(descs.get(group)):
                files = self._files_of(layout)
                if files is None or not files.open(layout.page_bytes):
                    continue
                for place, is_there in zip(places, files.present(names), strict=True):
                    if is_there:
                        found.set(place)
        return found

    def _load(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> Bitmap:
        filled, loaded = Bitmap(len(keys)), []
        for layout, places in _by_layout(objects).items():
            files = self._files_of(layout)
            if files is None:
                continue
            names = [_name_of(keys[place]) for place in places]
            found = files.load(names, [_bytes_of(objects[place]) for place in places])
            for place, is_there in zip(places, found, strict=True):
                if is_there:
                    filled.set(place)
                    loaded.append(keys[place])
        if loaded:
            self._notify_keys_accessed(loaded)
        return filled

    def _layouts_of(self, desc: MemoryLayoutDesc | None) -> list[_Layout]:
        """Return where objects of a group are looked for: where LMCache says, or where this process stored any.

        What LMCache says is what the engine has. A serializer in between stores something else, which is known when
        the first object has passed.
        """
        if desc is not None and desc.shapes:
            layout = _layout(None, desc.shapes, desc.dtypes)
            if layout in self._stored_layouts or not self._stored_layouts:
                return [layout]
            return [layout, *self._stored_layouts]
        return list(self._stored_layouts)

    def _files_of(self, layout: _Layout) -> PageFiles | None:
        with self._lock:
            files = self._layouts.get(layout)
            if files is None and len(self._layouts) < _MOST_LAYOUTS:
                facts = {"engine": "lmcache", "shapes": layout.shapes, "dtypes": layout.dtypes}
                files = self._layouts[layout] = PageFiles(self._options, facts)
            return files

    def _all_files(self) -> list[PageFiles]:
        with self._lock:
            return list(self._layouts.values())


def _name_of(key: ObjectKey) -> str:
    """Return a name that no other object has."""
    return json.dumps(
        [key.chunk_hash.hex(), key.model_name, key.kv_rank, key.object_group_id, key.cache_salt]
    )


def _layout(page_bytes: int | None, shapes: Sequence[Any], dtypes: Sequence[Any]) -> _Layout:
    if page_bytes is None:
        page_bytes = sum(shape.numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
    return _Layout(page_bytes, tuple(tuple(shape) for shape in shapes), tuple(str(dtype) for dtype in dtypes))


def _by_layout(objects: Sequence[MemoryObj]) -> dict[_Layout, list[int]]:
    places: dict[_Layout, list[int]] = {}
    for place, one in enumerate(objects):
        meta = one.metadata
        layout = _layout(one.get_size(), meta.shapes or [meta.shape], meta.dtypes or [meta.dtype])
        places.setdefault(layout, []).append(place)
    return places


def _bytes_of(one: MemoryObj) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return an object's own memory."""
    return np.frombuffer(one.byte_array, np.uint8)


def _interface_problem() -> str | None:
    """Return why this version of LMCache is not served; None where it is."""
    version = importlib.metadata.version("lmcache")
    known = ", ".join(f"{minor}.*" for minor in KNOWN_VERSIONS)
    if ".".join(version.split(".")[:2]) not in KNOWN_VERSIONS:
        return f"LMCache {version} is installed; known to work: {known}"
    for name, parameters in _INTERFACE.items():
        method = getattr(L2AdapterInterface, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)[1:]
        if method is None or found != parameters:
            return f"LMCache {version} calls {name}{found}, and {name}{parameters} is served; known to work: {known}"
    return None


_strange = sorted(getattr(InferAccelL2Adapter, "__abstractmethods__", ()))
if _strange:
    _message = f"LMCache asks an adapter for {', '.join(_strange)}, which is not served; known to work: LMCache 0.5.6"
    raise ModuleNotFoundError(_message, name="lmcache")
