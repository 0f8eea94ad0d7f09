"""The worker's side: pages from the tier into the engine's memory, and back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import InferAccelError, LayoutError
from infer_accel.kvcache import HostPool, page_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    from infer_accel.integrations._connector.counters import Counters
    from infer_accel.integrations._connector.options import ConnectorOptions
    from infer_accel.integrations._connector.plan import Load, Pages, StepPlan
    from infer_accel.integrations._connector.store import PageStore

_log = logging.getLogger("infer_accel")

#: How long a step that computes nothing waits for a load, in seconds: the engine's loop would spin otherwise.
_IDLE_WAIT = 0.002


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blocks in the engine's memory."""

    #: Shape ``[blocks, …]``, any strides but in the last axis.
    blocks: torch.Tensor
    #: Bytes that a block has in a page; what it does not fill stays zero.
    slot_bytes: int


class Staging:
    """Pages between the engine's memory and the tier: pinned where there is a GPU.

    Parameters
    ----------
    layers
        The layers of a page, in order.
    staging_bytes
        About how much; one page at least.

    Raises
    ------
    LayoutError
        A layer whose blocks are larger than their slots, or not made of whole bytes in the last axis.
    """

    def __init__(self, layers: Sequence[Layer], staging_bytes: int) -> None:
        page_bytes = sum(layer.slot_bytes for layer in layers)
        self.pool = HostPool(max(1, staging_bytes // page_bytes), page_bytes, prefault=True)
        whole = self.pool.tensor()
        self.engine: list[torch.Tensor] = []
        self.staged: list[torch.Tensor] = []
        begin = 0
        for layer in layers:
            blocks = _as_bytes(layer.blocks)
            used = blocks[0].numel()
            if used > layer.slot_bytes:
                message = f"blocks of {used} bytes came for slots of {layer.slot_bytes}"
                raise LayoutError(message, code="layout.strides")
            self.engine.append(blocks)
            self.staged.append(whole[:, begin : begin + used].unflatten(1, blocks.shape[1:]))
            begin += layer.slot_bytes

    @property
    def num_pages(self) -> int:
        """Pages that it has room for."""
        return len(self.pool.pages)

    def gather(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Copy blocks of the engine here; returns their pages."""
        rows = np.arange(len(blocks), dtype=np.int64)
        _wait(page_copy(self.engine, self.staged, np.stack([blocks, rows], axis=1)))
        return self.pool.pages[: len(blocks)]

    def scatter(self, rows: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]) -> None:
        """Copy pages from here to blocks of the engine."""
        _wait(page_copy(self.staged, self.engine, np.stack([rows, blocks], axis=1)))


def _as_bytes(blocks: torch.Tensor) -> torch.Tensor:
    import torch  # noqa: PLC0415 - the engine has it

    if blocks.ndim < 2 or blocks.stride(-1) != 1:
        message = (
            f"blocks of shape {tuple(blocks.shape)} and strides {blocks.stride()} came; "
            "the last axis must be contiguous"
        )
        raise LayoutError(message, code="layout.strides")
    return blocks.view(torch.uint8)


def _wait(under_way: object) -> None:
    """Wait for a copy of CUDA tensors; others are done."""
    if under_way is not None:
        under_way.synchronize()  # type: ignore[attr-defined]


class WorkerSide:
    """Moves pages. Loads run in threads; a step never waits for them. Saves are copied before the step ends.

    Parameters
    ----------
    store
        Where pages are.
    options
        The connector's.
    counters
        What was done.
    """

    def __init__(self, store: PageStore, options: ConnectorOptions, counters: Counters) -> None:
        self._store, self._options, self._counters = store, options, counters
        self._staging: Staging | None = None
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Load, float]] = deque()
        self._ended: list[tuple[str, npt.NDArray[np.int64]]] = []
        self._failed_blocks: set[int] = set()
        self._open_loads = 0
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def register(self, layers: Sequence[Layer]) -> None:
        """Take note of the engine's memory, and begin to work.

        Raises
        ------
        LayoutError
            Memory that cannot be copied from. Loads that are asked for nevertheless fail at once.
        """
        self._staging = Staging(layers, self._options.staging_bytes)
        for number in range(self._options.load_threads):
            staging = Staging(layers, self._options.staging_bytes)
            thread = threading.Thread(
                target=self._work, args=(staging,), name=f"infer-accel-load-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def start_loads(self, plan: StepPlan) -> None:
        """Start a step's loads."""
        if not plan.loads:
            return
        with self._changed:
            now = time.monotonic()
            for load in plan.loads:
                self._counters.add(loads=1)
                self._open_loads += 1
                if self._stopping or not self._threads:
                    self._end(load, 0, now)
                else:
                    self._waiting.append((load, now))
            self._changed.notify_all()

    def save(self, plan: StepPlan) -> None:
        """Save a step's pages; when this returns, the engine may write to its blocks again."""
        staging = self._staging
        if not plan.saves:
            return
        start = time.monotonic()
        for pages in plan.saves:
            missing = pages[~self._store.contains(pages.keys)]
            if staging is None or not self._store.is_up():
                self._counters.add(refused_pages=len(missing))
                continue
            for begin in range(0, len(missing), staging.num_pages):
                self._save_part(staging, missing[begin : begin + staging.num_pages])
        self._counters.add(save_seconds=time.monotonic() - start)

    def finished(self, plan: StepPlan) -> set[str]:
        """Return the requests whose loads ended since the last call, whatever became of them."""
        with self._changed:
            if plan.idle and self._open_loads and not self._ended:
                self._changed.wait(_IDLE_WAIT)
            ended, self._ended = self._ended, []
            for _, blocks in ended:
                self._failed_blocks.update(blocks.tolist())
        return {request for request, _ in ended}

    def failed_blocks(self) -> set[int]:
        """Return the blocks that could not be loaded, of the requests that :meth:`finished` returned."""
        with self._changed:
            failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self) -> None:
        """End the threads: what waits fails. A second call does nothing."""
        with self._changed:
            self._stopping = True
            while self._waiting:
                load, since = self._waiting.popleft()
                self._end(load, 0, since)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _save_part(self, staging: Staging, pages: Pages) -> None:
        taken = self._store.store(pages.keys, staging.gather(pages.blocks))
        count = int(taken.sum())
        self._counters.add(
            saved_pages=count,
            refused_pages=len(taken) - count,
            saved_bytes=count * self._store.place.page_bytes,
        )

    def _work(self, staging: Staging) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting)
                if not self._waiting:
                    return
                load, since = self._waiting.popleft()
            arrived = self._load(staging, load, since)
            with self._changed:
                self._end(load, arrived, since)
                self._changed.notify_all()

    def _load(self, staging: Staging, load: Load, since: float) -> int:
        """Load pages up to the first that does not arrive, or until it is too late; return how many arrived."""
        deadline, arrived = since + self._options.load_deadline, 0
        try:
            while arrived < len(load.pages) and time.monotonic() < deadline and not self._stopping:
                part = load.pages[arrived : arrived + staging.num_pages]
                found = self._store.load(part.keys, staging.pool.pages[: len(part)])
                count = len(found) if found.all() else int(found.argmin())
                staging.scatter(np.arange(count, dtype=np.int64), part.blocks[:count])
                arrived += count
                if count < len(part):
                    break
        except InferAccelError as error:
            # A thread that ended here would leave requests waiting for ever.
            _log.warning("the load of request %s failed: %s", load.request, error)
        return arrived

    def _end(self, load: Load, arrived: int, since: float) -> None:
        """Note what became of a load; the lock is held."""
        self._open_loads -= 1
        self._ended.append((load.request, load.pages.blocks[arrived:]))
        self._counters.add(
            loaded_pages=arrived,
            failed_pages=len(load.pages) - arrived,
            loaded_bytes=arrived * self._store.place.page_bytes,
            load_seconds=time.monotonic() - since,
        )
