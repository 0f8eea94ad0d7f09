"""A tier whose pages lie in another program: checked on arrival, and never waited for longer than was said."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np

from infer_accel._reference.kvcache.arguments import page_keys, page_rows
from infer_accel.errors import ArgumentError, StorageError
from infer_accel.integrations._shared.engine import EngineFullError
from infer_accel.integrations._shared.pause import Pause
from infer_accel.integrations._shared.record import HEADER_BYTES, RecordForm, Verdict
from infer_accel.integrations._shared.stats import Counts, SharedTierStats
from infer_accel.integrations._shared.workers import Job, Workers
from infer_accel.kvcache import PageLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.integrations._shared.engine import Engine

__all__ = ["SharedTier"]

_log = logging.getLogger("infer_accel")

_Answer = TypeVar("_Answer")

_MAX_PAGE_BYTES = 1 << 30
#: Jobs that wait for each thread, of all callers together.
_WAITING_PER_THREAD = 4
#: Most names in one call that asks whether they are there.
_NAMES_IN_A_CALL = 4096
#: Seconds that closing waits for a thread that is stuck.
_CLOSE_SECONDS = 0.5


class _LateError(Exception):
    """The engine did not answer in time."""


@dataclass(frozen=True, slots=True)
class _Part(Generic[_Answer]):
    """Keys from `first` to `end`, and the job that asks for them."""

    first: int
    end: int
    job: Job[_Answer]


class SharedTier:
    """What every shared tier does; :class:`~infer_accel.integrations.redis.RedisTier` is one."""

    def __init__(
        self,
        engine: Engine,
        *,
        page_bytes: int,
        fingerprint: bytes | PageLayout,
        secret: bytes | None,
        deadline: float | None,
        write_deadline: float | None,
        retry_seconds: float,
        threads: int,
        batch_bytes: int,
        names_in_a_call: int = _NAMES_IN_A_CALL,
        calls_at_once: int = 1,
    ) -> None:
        check_options(
            page_bytes, deadline=deadline, write_deadline=write_deadline, retry_seconds=retry_seconds
        )
        if threads < 1 or batch_bytes < 1:
            message = f"threads={threads} and batch_bytes={batch_bytes} came; each is at least 1"
            raise ArgumentError(message, code="argument.tier_count")
        if isinstance(fingerprint, PageLayout):
            fingerprint = fingerprint.fingerprint
        self._engine = engine
        self._page_bytes = page_bytes
        self._form = RecordForm(bytes(fingerprint), page_bytes, secret)
        self._deadline, self._write_deadline = deadline, write_deadline
        self._pages_in_a_call = max(1, batch_bytes // (page_bytes + HEADER_BYTES))
        self._names_in_a_call = names_in_a_call
        self._calls_at_once = calls_at_once
        self._workers = Workers(threads, threads * _WAITING_PER_THREAD)
        self._pause = Pause(retry_seconds)
        self._counts = Counts()
        self._process = os.getpid()
        self._closed = False

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._page_bytes

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> int:
        """Store the pages whose keys are not there yet.

        Parameters
        ----------
        keys, pages
            As for :meth:`infer_accel.kvcache.DiskTier.store`. The pages are copied before anything is sent.

        Returns
        -------
        int
            How many pages were new. When this returns the engine has them.

        Raises
        ------
        ShapeError
            Not one page of the right size for each key.
        StorageError
            The engine has no room (``storage.full``), fails or is given up for a while (``storage.io``), or takes
            nothing for `write_deadline` seconds (``storage.late``). What was stored before is intact; those of these
            pages that were not written may come yet, if the engine was late.
        """
        self._refuse_if_gone()
        names = page_keys(keys)
        rows = page_rows(pages, len(names), self._page_bytes)
        if not names:
            return 0
        began = time.monotonic()
        stored = 0
        known = 0
        try:
            self._refuse_if_paused()
            new = [
                number for number, there in enumerate(self._exist(names, self._write_deadline)) if not there
            ]
            first_of = {names[number]: number for number in reversed(new)}
            new = sorted(first_of.values())
            known = len(names) - len(new)
            for part in self._put(names, rows, new):
                stored += part
        except Exception as error:
            raise self._write_failed(error) from error
        finally:
            self._counts.add(
                stored_pages=stored,
                known_pages=known,
                unstored_pages=len(names) - known - stored,
                written_bytes=stored * (self._page_bytes + HEADER_BYTES),
                stores=1,
                store_seconds=time.monotonic() - began,
            )
        return stored

    def load(
        self,
        keys: Tensor | Sequence[bytes],
        out: Tensor,
        *,
        num_threads: int | None = None,  # noqa: ARG002 - the protocol's; threads are the tier's own
    ) -> npt.NDArray[np.bool_]:
        """Load the pages that are there, as many as come in time.

        Parameters
        ----------
        keys, out
            As for :meth:`infer_accel.kvcache.DiskTier.load`. The row of a page that is not delivered is left as it
            was.
        num_threads
            Of no effect: the tier has threads of its own.

        Returns
        -------
        numpy.ndarray
            bool of shape ``[n]``: which pages were delivered. The engine's failures are misses, never errors.

        Raises
        ------
        ShapeError
            Not one row of the right size for each key.
        StorageError
            The tier is closed, or was opened before a fork.
        """
        self._refuse_if_gone()
        names = page_keys(keys)
        rows = page_rows(out, len(names), self._page_bytes, writable=True)
        found = np.zeros(len(names), np.bool_)
        if not names:
            return found
        began = time.monotonic()
        if self._is_up():
            self._load(names, rows, found)
        else:
            self._counts.add(skipped_pages=len(names))
        hits = int(found.sum())
        self._counts.add(
            hits=hits,
            misses=len(names) - hits,
            loaded_bytes=hits * self._page_bytes,
            loads=1,
            load_seconds=time.monotonic() - began,
        )
        return found

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which pages the engine says are there; none where it does not answer in time."""
        self._refuse_if_gone()
        names = page_keys(keys)
        if not names or not self._is_up():
            return np.zeros(len(names), np.bool_)
        try:
            return np.array(self._exist(names, self._deadline), np.bool_)
        except Exception as error:  # noqa: BLE001 - the engine's client may raise anything
            self._read_failed(error, 0)
            return np.zeros(len(names), np.bool_)

    def flush(self) -> None:
        """Do nothing: what a store has returned for, the engine has. Whether that is durable is the engine's matter."""
        self._refuse_if_gone()

    def refresh(self) -> None:
        """Do nothing: every call asks the engine."""
        self._refuse_if_gone()

    def stats(self) -> SharedTierStats:
        """Return what the tier has done in this process."""
        self._refuse_if_gone()
        return self._counts.stats(up=not self._pause.paused)

    def close(self) -> None:
        """Give the connections back. A second call does nothing; any other is a StorageError."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._process:
            return
        try:
            self._engine.hang_up()
            self._workers.close(_CLOSE_SECONDS)
            self._engine.close()
        except Exception as error:  # noqa: BLE001 - the engine's client may raise anything; there is nothing to lose
            _log.info("closing the shared tier: %s: %s", type(error).__name__, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading ------------------------------------------------------------------------------------------------

    def _load(self, keys: list[bytes], rows: npt.NDArray[np.uint8], found: npt.NDArray[np.bool_]) -> None:
        """Load what comes in time into rows, and mark it."""
        ends_at = None if self._deadline is None else time.monotonic() + self._deadline
        asked = 0

        def fetch(first: int, end: int) -> Callable[[], list[bytes]]:
            return lambda: self._fetch(keys[first:end])

        try:
            for part in self._in_parts(len(keys), self._pages_in_a_call, fetch, lambda: ends_at):
                asked = part.end
                for number, page in enumerate(part.job.answer(), part.first):
                    if page:
                        rows[number, :] = np.frombuffer(page, np.uint8)
                        found[number] = True
        except Exception as error:  # noqa: BLE001 - the engine's client may raise anything
            self._read_failed(error, len(keys) - asked)

    def _fetch(self, keys: list[bytes]) -> list[bytes]:
        """Return pages, checked; on a thread of the tier. What is not there or not right is empty."""
        values = self._engine.fetch(self._names(keys))
        pages, wrong = list[bytes](), list[bytes]()
        for key, value in zip(keys, values, strict=True):
            verdict, page = (None, b"") if value is None else self._form.decode(key, value)
            pages.append(page)
            if verdict is Verdict.DAMAGED:
                self._counts.add(corrupt_pages=1)
                wrong.append(key)
            elif verdict is Verdict.REFUSED:
                self._counts.add(refused_pages=1)
                wrong.append(key)
        if wrong:
            self._remove(wrong)
        return pages

    def _remove(self, keys: list[bytes]) -> None:
        """Remove what is wrong: nobody would store it again, since it would be known."""
        _log.warning("%d pages that came are not what was stored: removed", len(keys))
        try:
            self._engine.remove(self._names(keys))
        except Exception as error:  # noqa: BLE001 - the engine's client may raise anything
            self._counts.add(failed_reads=1)
            _log.warning("they cannot be removed: %s: %s", type(error).__name__, error)

    def _exist(self, keys: list[bytes], deadline: float | None) -> list[bool]:
        """Return which pages are there."""
        ends_at = None if deadline is None else time.monotonic() + deadline
        there = list[bool]()

        def ask(first: int, end: int) -> Callable[[], list[bool]]:
            return lambda: self._engine.exist(self._names(keys[first:end]))

        for part in self._in_parts(len(keys), self._names_in_a_call, ask, lambda: ends_at):
            there += part.job.answer()
        return there

    def _read_failed(self, error: Exception, left: int) -> None:
        late = isinstance(error, _LateError)
        self._counts.add(**({"late_pages": left} if late else {"failed_reads": 1}))
        self._give_up(error)

    # Writing ------------------------------------------------------------------------------------------------

    def _put(self, keys: list[bytes], rows: npt.NDArray[np.uint8], new: list[int]) -> Iterator[int]:
        """Store rows, part by part; yield how many each was."""
        ends_at: list[float | None] = [None]

        def wind_up() -> None:
            if self._write_deadline is not None:
                ends_at[0] = time.monotonic() + self._write_deadline

        def put(first: int, end: int) -> Callable[[], None]:
            # Copied here, on the caller's thread: a late one must not read what the caller has changed since.
            numbers = new[first:end]
            records = [self._form.encode(keys[number], rows[number].tobytes()) for number in numbers]
            entries = list(zip(self._names([keys[number] for number in numbers]), records, strict=True))
            return lambda: self._engine.put(entries)

        wind_up()
        for part in self._in_parts(len(new), self._pages_in_a_call, put, lambda: ends_at[0]):
            try:
                part.job.answer()
            except EngineFullError as error:
                yield error.stored
                raise
            yield part.end - part.first
            wind_up()

    def _write_failed(self, error: Exception) -> StorageError:
        """Count what a store failed of; return what is to be raised."""
        if isinstance(error, StorageError):
            return error
        if isinstance(error, EngineFullError):
            self._counts.add(full_writes=1)
            return StorageError(f"the shared tier has no room: {error}", code="storage.full")
        self._give_up(error)
        if isinstance(error, _LateError):
            self._counts.add(late_writes=1)
            message = f"the shared tier took nothing for {self._write_deadline} s; try again later"
            return StorageError(message, code="storage.late")
        self._counts.add(failed_writes=1)
        return StorageError(f"the shared tier failed: {error}", code="storage.io")

    # The engine ---------------------------------------------------------------------------------------------

    def _in_parts(
        self,
        count: int,
        size: int,
        call: Callable[[int, int], Callable[[], _Answer]],
        ends_at: Callable[[], float | None],
    ) -> Iterator[_Part[_Answer]]:
        """Yield parts of `count` things in their order, each when its job has ended; a few are under way at a time."""
        under_way: deque[_Part[_Answer]] = deque()
        starts = iter(range(0, count, size))
        try:
            while True:
                while len(under_way) < self._calls_at_once and (first := next(starts, None)) is not None:
                    end = min(first + size, count)
                    job = self._workers.submit(call(first, end), _left(ends_at()))
                    if job is None:
                        raise _LateError("no thread came free")
                    under_way.append(_Part(first, end, job))
                if not under_way:
                    return
                if not under_way[0].job.wait(_left(ends_at())):
                    raise _LateError("no answer came")
                yield under_way.popleft()
        finally:
            for part in under_way:
                part.job.abandon()

    def _is_up(self) -> bool:
        """Return whether the engine is to be asked; where it was given up, it is probed behind the caller's back."""
        if not self._pause.paused:
            return True
        if self._pause.may_probe() and self._workers.submit(self._probe, 0.0) is None:
            self._pause.probed(answered=False)
        return False

    def _probe(self) -> None:
        answered = False
        try:
            self._engine.ping()
            answered = True
        finally:
            self._pause.probed(answered=answered)

    def _give_up(self, error: Exception) -> None:
        """Leave the engine alone for a while, and free the threads that wait for it."""
        if self._pause.begin():
            self._counts.add(pauses=1)
            _log.warning("the shared tier is given up for a while: %s: %s", type(error).__name__, error)
        if isinstance(error, _LateError):
            self._engine.hang_up()

    def _names(self, keys: list[bytes]) -> list[str]:
        return [f"{self._form.namespace}/{key.hex()}" for key in keys]

    def _refuse_if_paused(self) -> None:
        if not self._is_up():
            message = "the shared tier failed a moment ago, and is left alone for a while; try again later"
            raise StorageError(message, code="storage.io")

    def _refuse_if_gone(self) -> None:
        if os.getpid() != self._process:
            message = "this tier was opened before a fork; open one in the child"
            raise StorageError(message, code="storage.forked")
        if self._closed:
            raise StorageError("this tier is closed", code="storage.closed")


def _left(ends_at: float | None) -> float | None:
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def check_options(
    page_bytes: int, *, deadline: float | None, write_deadline: float | None, retry_seconds: float
) -> None:
    """Refuse what no shared tier can have."""
    if not 1 <= page_bytes <= _MAX_PAGE_BYTES:
        code = "argument.count" if page_bytes < 0 else "argument.page_bytes"
        raise ArgumentError(f"page_bytes={page_bytes} came; 1 to {_MAX_PAGE_BYTES} are allowed", code=code)
    for name, seconds in (
        ("deadline", deadline),
        ("write_deadline", write_deadline),
        ("retry_seconds", retry_seconds),
    ):
        if seconds is not None and not 0 < seconds < float("inf"):
            message = f"{name}={seconds} came; pass seconds above 0"
            raise ArgumentError(message, code="argument.deadline")
