"""A :class:`~infer_accel.kvcache.DiskTier` as a secondary tier of vLLM's KV offloading.

vLLM (0.33) loads it by name; nothing has to be registered or patched::

    vllm serve MODEL --kv-transfer-config '{
      "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
      "kv_connector_extra_config": {
        "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 34359738368,
        "secondary_tiers": [{
          "type": "DiskTierManager", "module_path": "infer_accel.integrations.vllm",
          "root_dir": "/var/cache/kv", "capacity_bytes": 1099511627776
        }]
      }
    }'

What it has beside vLLM's own file system tier: a bound on bytes with eviction, a check of every page (a flipped bit is
a miss, not a wrong answer), segments instead of a file a block, an index in memory (a look-up asks no device), and
deadlines.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from vllm.v1.kv_offload.base import Locality, LookupResult, Medium, OffloadingEvent, RequestOffloadingContext
from vllm.v1.kv_offload.file_mapper import FileMapper
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from infer_accel.integrations._transfer import Transfer, TransferQueue, TransferResult
from infer_accel.kvcache import DiskTier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    from vllm.v1.kv_offload.base import OffloadingSpec, OffloadKey, ReqContext, ScheduleEndContext
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
    from vllm.v1.kv_offload.tiering.base import TransferJob

    from infer_accel.kvcache import TierStats

__all__ = ["DiskTierManager"]

_log = logging.getLogger("infer_accel")

#: A page that could not be loaded is a miss for so long, though it may be there: the scheduler would ask again at once.
_SECONDS_FORGOTTEN = 30.0
#: As many such pages are remembered.
_MOST_FORGOTTEN = 65_536
#: Seconds between two looks for what other processes have stored.
_REFRESH_INTERVAL = 0.5


class DiskTierManager(SecondaryTierManager):
    """vLLM's chunks on disk.

    Parameters
    ----------
    offloading_spec, primary_kv_view, tier_type, backpressure_detector
        vLLM's: what is cached, the pages in host memory, this tier's name, and its own back-pressure.
    root_dir
        A directory. Models and layouts get directories of their own in it, named as vLLM's file system tier names them;
        several engines may share it.
    capacity_bytes
        Most bytes in the directory of this model and layout, all engines together.
    read_threads
        Loads that run at once; there is one thread that stores.
    max_jobs
        Most loads, and most stores, that wait; what comes then fails at once.
    durable
        Whether a store is reported as done only when the device has it. Without it pages outlive the process and not
        the machine, as those of vLLM's own tier.
    deadline, write_deadline, checksum, compression, segment_bytes
        As for :class:`~infer_accel.kvcache.DiskTier`.
    enable_kv_events
        Whether stored chunks are announced, where vLLM's events are on.
    locality
        ``"LOCAL"``, ``"REMOTE"`` or None, for events.

    Raises
    ------
    StorageError
        The directory cannot be used.
    ValueError
        A locality that vLLM does not know, or pages that are not contiguous.

    Notes
    -----
    A look-up is a dictionary's, so it answers at once, and not in the next step as a look-up of files does. What other
    engines store is seen within half a second of a miss. Of a load that arrives in part, exactly the chunks that did
    not arrive are reported as missing, wherever they stand in it.
    """

    medium: ClassVar[Medium | None] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        root_dir: str,
        capacity_bytes: int,
        *,
        backpressure_detector: BackpressureDetector | None = None,
        read_threads: int = 2,
        max_jobs: int = 1024,
        durable: bool = False,
        deadline: float | None = 5.0,
        write_deadline: float | None = 30.0,
        checksum: str = "xxh3",
        compression: str | None = None,
        segment_bytes: int | None = None,
        enable_kv_events: bool = False,
        locality: str | None = None,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality(locality) if locality is not None else None
        self.events: list[OffloadingEvent] | None = None
        if enable_kv_events:
            if offloading_spec.kv_events_config.enable_kv_cache_events:
                self.events = []
            else:
                _log.warning("tier %r announces nothing: KV cache events are off in vLLM", tier_type)
        pages = _pages(primary_kv_view)
        mapper = FileMapper.from_offloading_spec(
            root_dir=root_dir,
            offloading_spec=offloading_spec,
            blocks_per_file=offloading_spec.blocks_per_chunk,
            parallel_agnostic=True,
        )
        identity = {**mapper.get_run_config(), "rank": mapper.rank}
        self._tier = DiskTier(
            Path(f"{mapper.base_path}_r{mapper.rank}"),
            capacity_bytes=capacity_bytes,
            page_bytes=pages.shape[1],
            fingerprint=json.dumps(identity, sort_keys=True).encode(),
            segment_bytes=segment_bytes,
            checksum=checksum,  # type: ignore[arg-type]  # the tier refuses what it does not know
            compression=compression,  # type: ignore[arg-type]  # as above
            deadline=deadline,
            write_deadline=write_deadline,
        )
        self._queue = TransferQueue(
            self._tier, pages, load_threads=read_threads, max_jobs=max_jobs, durable=durable
        )
        self._forgotten: OrderedDict[bytes, float] = OrderedDict()
        self._missed = False
        self._refreshed = time.monotonic()

    def stats(self) -> TierStats:
        """Return what the tier holds and has done, for a collector of metrics."""
        return self._tier.stats()

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:  # noqa: ARG002 - vLLM's
        """Ask for nothing special."""
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:  # noqa: ARG002 - vLLM's
        """Return whether a chunk is there. Asks no device."""
        if self._forgotten and (until := self._forgotten.get(key)) is not None:
            if time.monotonic() < until:
                return LookupResult.MISS
            del self._forgotten[key]
        if self._tier.contains([key])[0]:
            return LookupResult.HIT
        self._missed = True
        return LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:  # noqa: ARG002 - vLLM's
        """Have a thread look for chunks of other engines, where something was missed."""
        now = time.monotonic()
        if self._missed and now - self._refreshed >= _REFRESH_INTERVAL:
            self._missed, self._refreshed = False, now
            self._queue.refresh()

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Queue chunks to be stored."""
        self._submit(job_metadata, is_load=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Queue chunks to be loaded."""
        self._submit(job_metadata, is_load=True)

    def _submit(self, job: TransferJob, *, is_load: bool) -> None:
        rows = np.asarray(job.chunk_ids, np.int64)
        self._queue.submit(Transfer(job.job_id, list(job.keys), rows, is_load))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Return what has ended since the last call."""
        return [self._settled(result) for result in self._queue.finished()]

    def _settled(self, result: TransferResult) -> JobResult:
        job, arrived = result.job, None
        if not job.is_load and result.success:
            for key in job.keys:
                self._forgotten.pop(key, None)
            if self.events is not None and job.keys:
                self.events.append(self._stored(job.keys))
        elif job.is_load and not result.success:
            pairs = list(zip(job.keys, result.done.tolist(), strict=False))
            self._forget([key for key, there in pairs if not there])
            arrived = tuple(key for key, there in pairs if there) or None
        return JobResult(
            job_id=job.job_id,
            success=result.success,
            successful_keys=arrived,
            transfer_time=result.seconds,
            transfer_bytes=len(job.keys) * self.block_size_bytes or None,
        )

    def _stored(self, keys: Sequence[bytes]) -> OffloadingEvent:
        return OffloadingEvent(keys=list(keys), medium=self.medium, removed=False, locality=self.locality)

    def _forget(self, keys: Iterable[bytes]) -> None:
        until = time.monotonic() + _SECONDS_FORGOTTEN
        for key in keys:
            self._forgotten[key] = until
            self._forgotten.move_to_end(key)
        while len(self._forgotten) > _MOST_FORGOTTEN:
            self._forgotten.popitem(last=False)

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Return what was stored since the last call."""
        if self.events is not None:
            yield from self.events
            self.events.clear()

    def drain_jobs(self) -> None:
        """Return when no job touches the pages any more."""
        self._queue.drain()

    def shutdown(self) -> None:
        """End the threads and close the tier: what was stored is durable then."""
        self._queue.shutdown()
        self._tier.close()


def _pages(view: memoryview) -> npt.NDArray[np.uint8]:
    """Return the host's pages as rows of bytes, in place."""
    if not view.c_contiguous:
        message = f"pages of shape {view.shape} and strides {view.strides} came; pass contiguous ones"
        raise ValueError(message)
    return np.frombuffer(view, np.uint8).reshape(len(view), -1)
