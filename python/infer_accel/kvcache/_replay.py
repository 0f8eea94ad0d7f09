"""Replay: what a recorded day of requests would have found in a cache of a given size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from infer_accel import _backend
from infer_accel._files import read_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

_implementation = _backend.load("kvcache")


class Trace:
    """Recorded requests: when they came, how long they are, and what their prompts share.

    Made by :meth:`load` or :meth:`synthetic`. An id stands for the first 512 tokens of a prompt, the next one for
    the first 1024, and so on: equal ids, equal prefixes.

    Examples
    --------
    >>> trace = Trace.synthetic(100)
    >>> len(trace), trace.has_ids
    (100, True)
    """

    __slots__ = ("_core",)

    _core: Any

    def __init__(self) -> None:
        message = "a Trace is read from a file or made: Trace.load(path), Trace.synthetic(requests)"
        raise TypeError(message)

    @classmethod
    def _of(cls, core: object) -> Trace:
        trace = cls.__new__(cls)
        trace._core = core  # noqa: SLF001 - the class is its own maker
        return trace

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace; its content says what it is.

        Parameters
        ----------
        path
            JSON lines of Mooncake (``timestamp`` in milliseconds, ``input_length``, ``output_length``,
            ``hash_ids``), or CSV of Azure (``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``; it has no ids:
            such a trace drives load and has no hits).

        Raises
        ------
        OSError
            The file cannot be read, or is a pipe that this process was not started with.
        ArgumentError
            A line is wrong; the text says which, and how.
        """
        return cls.parse(read_plain(path, given_pipes=True))

    @classmethod
    def parse(cls, data: bytes) -> Trace:
        """Read a trace from bytes; see :meth:`load`."""
        return cls._of(_implementation.Trace.parse(data))

    @classmethod
    def synthetic(
        cls,
        requests: int,
        *,
        system_prompts: int = 16,
        continued: float = 0.6,
        rate: float = 4.0,
        seed: int = 0,
    ) -> Trace:
        """Make a trace of conversations that go on, behind system prompts that many share.

        Parameters
        ----------
        requests
            How many.
        system_prompts
            Different ones, of 1024 tokens; few of them make most of the requests.
        continued
            Share of the requests that go on with an earlier conversation.
        rate
            Requests a second.
        seed
            The same seed makes the same trace.

        Raises
        ------
        ArgumentError
            Sizes or shares that cannot be.
        """
        made = _implementation.Trace.synthetic(requests, system_prompts, continued, rate, seed)
        return cls._of(made)

    @property
    def has_ids(self) -> bool:
        """Whether it is known what prompts share."""
        known: bool = self._core.has_ids()
        return known

    def request(self, index: int) -> tuple[int, int, int, list[int]]:
        """Return arrival in milliseconds, input tokens, output tokens and ids of a request.

        Raises
        ------
        IndexError
            There is no such request.
        """
        found: tuple[int, int, int, list[int]] | None = self._core.request(index)
        if found is None:
            message = f"request {index} was asked for; there are {len(self)}"
            raise IndexError(message)
        return found

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        return f"Trace of {len(self)} requests, {'with' if self.has_ids else 'without'} ids"


@dataclass(frozen=True, slots=True, eq=False)
class ReplayReport:
    """What a replay found. Arrays have an entry for each request, in the order of arrival."""

    #: The percentiles that :meth:`percentiles` gives.
    PERCENTILES: ClassVar[tuple[int, ...]] = (50, 90, 99)

    #: Blocks of the cache, the null block counted.
    num_blocks: int
    #: Tokens in a block.
    block_size: int
    #: Blocks of the prompt, a last one that is not full counted.
    blocks: npt.NDArray[np.uint32]
    #: Blocks that the cache had.
    hits: npt.NDArray[np.uint32]
    #: Blocks that only the second tier had.
    host_hits: npt.NDArray[np.uint32]
    #: Milliseconds until a request had its blocks; -1 where it would never have fitted.
    waits: npt.NDArray[np.int64]
    #: Blocks in use after a request began.
    used: npt.NDArray[np.uint32]
    #: Cached blocks that the cache gave up.
    evictions: int
    #: Of those, blocks that the second tier took.
    host_stores: int

    @property
    def hit_rate(self) -> float:
        """Hit blocks ÷ all blocks; those of the second tier are not counted."""
        return _ratio(self.hits, self.blocks)

    @property
    def host_hit_rate(self) -> float:
        """Blocks that only the second tier had ÷ all blocks."""
        return _ratio(self.host_hits, self.blocks)

    @property
    def refused(self) -> int:
        """Requests that would never have fitted."""
        return int((self.waits < 0).sum())

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Return percentiles of the hit rate of a request, of its wait in ms, and of the blocks in use.

        Returns
        -------
        dict
            ``{"hit_rate": {"p50": …}, "wait_ms": …, "used_blocks": …}``.
        """
        each = {
            "hit_rate": self.hits / np.maximum(self.blocks, 1),
            "wait_ms": np.maximum(self.waits, 0),
            "used_blocks": self.used,
        }
        return {
            name: {f"p{rank}": float(np.percentile(values, rank)) for rank in self.PERCENTILES}
            for name, values in each.items()
        }

    def bytes_moved(self, bytes_per_token: int) -> dict[str, int]:
        """Return the bytes that went to the second tier and came back.

        Parameters
        ----------
        bytes_per_token
            Of keys and values, all layers: 131072 for Llama-3-8B in 16 bits.

        Returns
        -------
        dict
            ``{"stored": …, "loaded": …}``.
        """
        size = self.block_size * bytes_per_token
        return {"stored": self.host_stores * size, "loaded": int(self.host_hits.sum()) * size}


def replay(
    trace: Trace | str | os.PathLike[str],
    *,
    num_blocks: int,
    block_size: int = 16,
    host_blocks: int = 0,
    outputs: bool = False,
    seconds_per_token: float | None = None,
    progress: Callable[[int], object] | None = None,
) -> ReplayReport:
    """Send a trace through a cache, and report what it would have found.

    Hits and evictions are those of vLLM's KVCacheManager with as many blocks, block for block: the least
    recently used block goes first, and the last token of a prompt is computed in any case.

    Parameters
    ----------
    trace
        A :class:`Trace`, or the path of one.
    num_blocks
        Blocks of the cache; one of them is the null block.
    block_size
        Tokens in a block: a divisor or a multiple of 512.
    host_blocks
        Blocks of a second tier, which takes what the cache evicts; its hits are counted by themselves.
    outputs
        Whether answers take blocks, too; nobody hits them.
    seconds_per_token
        How long a request runs for each token of its answer: requests then overlap, hold their blocks while
        they run, and wait for others where they do not fit. ``None`` runs one after the other.
    progress
        Called now and then with the number of requests that are done.

    Returns
    -------
    ReplayReport
        Also where nothing was hit.

    Raises
    ------
    ArgumentError
        A trace that cannot be read, or a size that cannot be.
    KeyboardInterrupt
        Ctrl-C was pressed.

    Notes
    -----
    Linear in the blocks of the trace, some tens of nanoseconds each.

    Source: R. Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025, for the ids.

    Examples
    --------
    >>> report = replay(Trace.synthetic(200), num_blocks=20_000)
    >>> 0.2 < report.hit_rate < 0.9
    True
    """
    loaded = trace if isinstance(trace, Trace) else Trace.load(trace)
    outcome = _implementation.replay(
        loaded._core,  # noqa: SLF001 - this module's own
        num_blocks=num_blocks,
        block_size=block_size,
        host_blocks=host_blocks,
        outputs=outputs,
        seconds_per_token=seconds_per_token,
        progress=progress,
    )
    return ReplayReport(num_blocks, block_size, *outcome)


def replay_curve(
    trace: Trace | str | os.PathLike[str],
    *,
    capacities: Sequence[int],
    block_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, float]]:
    """Return the hit rate of a trace for each of several capacities.

    Parameters
    ----------
    trace, block_size
        As for :func:`replay`.
    capacities
        Numbers of blocks.
    progress
        Called with the number of requests that are done, all capacities counted.

    Returns
    -------
    list
        Pairs of capacity and hit rate.

    Raises
    ------
    ArgumentError, KeyboardInterrupt
        As for :func:`replay`.

    Examples
    --------
    >>> curve = replay_curve(Trace.synthetic(50), capacities=[1000, 10_000])
    >>> curve[0][1] <= curve[1][1]
    True
    """
    loaded = trace if isinstance(trace, Trace) else Trace.load(trace)
    curve = []
    for turn, num_blocks in enumerate(capacities):

        def tell(done: int, before: int = turn * len(loaded)) -> None:
            if progress is not None:
                progress(before + done)

        report = replay(loaded, num_blocks=num_blocks, block_size=block_size, progress=tell)
        curve.append((num_blocks, report.hit_rate))
    return curve


def _ratio(part: npt.NDArray[np.uint32], whole: npt.NDArray[np.uint32]) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else 0.0
