"""The scheduler's side: how much of a prompt is stored, what is loaded, what is saved."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infer_accel.integrations._connector.plan import Load, Pages, StepPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from infer_accel.integrations._connector.counters import Counters
    from infer_accel.integrations._connector.keys import KeyChain
    from infer_accel.integrations._connector.options import ConnectorOptions
    from infer_accel.integrations._connector.store import Directory

_log = logging.getLogger("infer_accel")

#: A page that could not be loaded is a miss for so long: every request would wait for it in vain.
_SECONDS_FORGOTTEN = 30.0
#: As many such pages are remembered.
_MOST_FORGOTTEN = 65_536
#: No look-ups for so long after a load that was late: the device is busy or gone.
_SECONDS_PAUSED = 5.0
#: vLLM's null block, and a place that needs no page.
_NULL_BLOCK = 0


class Request(Protocol):
    """What is asked of an engine's request."""

    @property
    def request_id(self) -> str:
        """Its name."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Its tokens so far: the prompt, then those of the answer that are known."""

    @property
    def num_tokens(self) -> int:
        """How many those are."""

    @property
    def num_prompt_tokens(self) -> int:
        """How many of them are the prompt's."""

    @property
    def cacheable_tokens(self) -> int:
        """As many of them, from the first on, are all that their keys and values depend on."""

    def key_chain(self) -> KeyChain:
        """Return the keys of its blocks, to be made."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A request that a step computes tokens of."""

    request: str
    #: Blocks that are new, or all of them.
    blocks: Sequence[int]
    #: Whether these are all of them.
    are_all: bool
    #: Tokens that have been computed when the step has.
    tokens_after: int


@dataclass(slots=True)
class _Tracked:
    request: Request
    chain: KeyChain
    blocks: list[int] = field(default_factory=list)
    #: Blocks that the engine had itself when it was asked for.
    local: int = 0
    #: Blocks that were saved, or need not be.
    saved: int = 0
    loading: Pages | None = None
    since: float = 0.0


class SchedulerSide:
    """Decides what is loaded and saved; moves nothing.

    Parameters
    ----------
    directory
        What is stored.
    options
        The connector's.
    counters
        What was done.
    block_size
        Tokens of a block.
    """

    def __init__(
        self, directory: Directory, options: ConnectorOptions, counters: Counters, *, block_size: int
    ) -> None:
        self._directory, self._options, self._counters = directory, options, counters
        self._block_size = block_size
        self._tracked: dict[str, _Tracked] = {}
        self._loads: list[Load] = []
        self._forgotten: OrderedDict[bytes, float] = OrderedDict()
        self._paused_until = 0.0

    def matched_tokens(self, request: Request, num_computed: int) -> int:
        """Return how many tokens of a prompt can be loaded behind those that the engine has.

        One token at least is left to be computed: the answer begins with what the model says to it. May be asked
        again for the same request.
        """
        tracked = self._track(request)
        tracked.local = num_computed // self._block_size
        limit = min(request.cacheable_tokens, request.num_tokens - 1) // self._block_size
        if limit <= tracked.local:
            return 0
        if time.monotonic() < self._paused_until or not self._directory.is_up():
            self._counters.add(skipped_lookups=1)
            return 0
        keys = tracked.chain.keys(request.token_ids, limit)[tracked.local :]
        found = self._directory.contains(keys)
        self._leave_out_forgotten(keys, found)
        count = len(found) if found.all() else int(found.argmin())
        self._counters.add(queried_blocks=len(keys), matched_blocks=count)
        return count * self._block_size

    def allocated(self, request: Request, blocks: Sequence[int], num_external: int) -> None:
        """Take note of a request's blocks, and plan the load of those that hold tokens of the tier."""
        tracked = self._track(request)
        tracked.blocks = list(blocks)
        count = num_external // self._block_size
        if not count:
            return
        part = slice(tracked.local, tracked.local + count)
        keys = tracked.chain.keys(request.token_ids, part.stop)[part]
        pages = Pages(keys, np.asarray(blocks[part], np.int64))
        pages = pages[pages.blocks != _NULL_BLOCK]
        tracked.loading, tracked.since = pages, time.monotonic()
        self._loads.append(Load(request.request_id, pages))

    def plan(self, scheduled: Iterable[Scheduled]) -> StepPlan:
        """Return what the worker's side does in this step."""
        plan = StepPlan(loads=self._loads, idle=True)
        self._loads = []
        for one in scheduled:
            plan.idle = False
            tracked = self._tracked.get(one.request)
            if tracked is None:
                continue
            tracked.blocks = list(one.blocks) if one.are_all else [*tracked.blocks, *one.blocks]
            pages = self._complete(tracked, one.tokens_after)
            if len(pages):
                plan.saves.append(pages)
        if plan.saves:
            self._directory.expect()
        return plan

    def settled(self, finished: AbstractSet[str], failed_blocks: AbstractSet[int]) -> None:
        """Take note of loads that ended, and of blocks that could not be loaded."""
        for name in finished:
            tracked = self._tracked.get(name)
            if tracked is None or tracked.loading is None:
                continue
            pages, tracked.loading = tracked.loading, None
            failed = np.isin(pages.blocks, list(failed_blocks))
            # Those behind the first were not tried.
            self._forget(pages.keys[failed][:1])
            if failed.any() and time.monotonic() - tracked.since >= self._options.load_deadline:
                self._pause()

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        self._tracked.pop(request_id, None)

    def reset(self) -> None:
        """Forget everything, the keys of requests that run included: what they compute now is not stored."""
        self._tracked.clear()
        self._forgotten.clear()
        self._paused_until = 0.0

    def close(self) -> None:
        """Close what was opened to be asked."""
        self._directory.close()

    def _track(self, request: Request) -> _Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = _Tracked(request, request.key_chain())
            self._tracked[request.request_id] = tracked
        return tracked

    def _complete(self, tracked: _Tracked, tokens_after: int) -> Pages:
        """Return the pages of a request that this step completes, and no step before it has."""
        request = tracked.request
        known = request.num_tokens if self._options.save == "all" else request.num_prompt_tokens
        full = min(tokens_after, request.cacheable_tokens, known) // self._block_size
        part = slice(tracked.saved, min(full, len(tracked.blocks)))
        if part.stop <= part.start:
            return Pages(np.empty((0, 32), np.uint8), np.empty(0, np.int64))
        tracked.saved = part.stop
        keys = tracked.chain.keys(request.token_ids, part.stop)[part]
        pages = Pages(keys, np.asarray(tracked.blocks[part], np.int64))
        return pages[pages.blocks != _NULL_BLOCK]

    def _leave_out_forgotten(self, keys: npt.NDArray[np.uint8], found: npt.NDArray[np.bool_]) -> None:
        if not self._forgotten:
            return
        now = time.monotonic()
        for row, key in enumerate(keys):
            until = self._forgotten.get(key.tobytes())
            if until is None:
                continue
            if now < until:
                found[row] = False
            else:
                del self._forgotten[key.tobytes()]

    def _forget(self, keys: npt.NDArray[np.uint8]) -> None:
        """Ask for pages no more for a while, though the tier says that it has them.

        One that was found to be wrong it has no more, so that it is found as soon as it was stored again.
        """
        until = time.monotonic() + _SECONDS_FORGOTTEN
        for key in keys[self._directory.contains(keys)]:
            self._forgotten[key.tobytes()] = until
            self._forgotten.move_to_end(key.tobytes())
        while len(self._forgotten) > _MOST_FORGOTTEN:
            self._forgotten.popitem(last=False)

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + _SECONDS_PAUSED
        self._counters.add(pauses=1)
        _log.warning(
            "a load was not done after %s s: nothing is looked up for %s s, prompts are computed",
            self._options.load_deadline,
            _SECONDS_PAUSED,
        )
