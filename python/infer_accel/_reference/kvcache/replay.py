"""Replay by a dictionary of names and the specification's pool."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference.kvcache.pool import BlockPool
from infer_accel.errors import ArgumentError, BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Outcome = tuple[npt.NDArray[np.uint32] | npt.NDArray[np.int64] | int, ...]

_IDS_TOKENS = 512
_NEVER = (1 << 32) - 1


class Trace:
    """Recorded requests."""

    def __init__(self, requests: list[tuple[int, int, int, list[int]]]) -> None:
        self.requests = sorted(requests, key=lambda request: request[0])

    @classmethod
    def parse(cls, data: bytes) -> Trace:
        """Read JSON lines of Mooncake or CSV of Azure."""
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        if not lines:
            raise ArgumentError("the trace is empty", code="argument.trace")
        try:
            read = cls._mooncake if lines[0].lstrip().startswith("{") else cls._azure
            return cls(read(lines))
        except (ValueError, KeyError, IndexError) as error:
            raise ArgumentError(f"the trace cannot be read: {error}", code="argument.trace") from error

    @classmethod
    def synthetic(cls, requests: int, system_prompts: int, continued: float, rate: float, seed: int) -> Trace:
        """Only the native core makes traces."""
        message = f"a trace of {requests, system_prompts, continued, rate, seed} needs the native core"
        raise BackendError(message, code="backend.missing")

    def __len__(self) -> int:
        return len(self.requests)

    def has_ids(self) -> bool:
        """Return whether prompts have ids."""
        return any(request[3] for request in self.requests)

    def request(self, index: int) -> tuple[int, int, int, list[int]] | None:
        """Return arrival, input tokens, output tokens and ids."""
        return self.requests[index] if index < len(self.requests) else None

    @staticmethod
    def _mooncake(lines: list[str]) -> list[tuple[int, int, int, list[int]]]:
        rows = map(json.loads, lines)
        return [
            (int(row["timestamp"]), row["input_length"], row["output_length"], row["hash_ids"])
            for row in rows
        ]

    @staticmethod
    def _azure(lines: list[str]) -> list[tuple[int, int, int, list[int]]]:
        names = lines[0].split(",")
        rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
        return [
            (
                int((now - times[0]).total_seconds() * 1000),
                int(row["ContextTokens"]),
                int(row["GeneratedTokens"]),
                [],
            )
            for now, row in zip(times, rows, strict=True)
        ]


def replay(
    trace: Trace,
    *,
    num_blocks: int,
    block_size: int,
    host_blocks: int,
    outputs: bool,
    seconds_per_token: float | None,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Replay a trace, one request after the other."""
    if host_blocks or outputs or seconds_per_token is not None:
        message = "the specification replays one request after the other, in one tier; use the native core"
        raise BackendError(message, code="backend.missing")
    if block_size == 0 or (_IDS_TOKENS % block_size and block_size % _IDS_TOKENS):
        raise ArgumentError(f"block_size={block_size} came", code="argument.replay_block_size")
    pool = BlockPool(num_blocks)
    blocks: list[int] = []
    hits: list[int] = []
    waits: list[int] = []
    for _, length, _, ids in trace.requests:
        full, total = length // block_size, -(-length // block_size)
        names = [_name(ids, block, block_size, len(blocks)) for block in range(full)]
        found: list[int] = []
        for name in names[: max(length - 1, 0) // block_size]:
            if (block := pool.find(name, 0)) is None:
                break
            found.append(block)
        free = sum(pool.references[block] == 0 for block in found)
        blocks.append(total)
        if total - len(found) + free > pool.num_free():
            hits.append(0)
            waits.append(-1)
            continue
        for block in found:
            pool.reference(block)
        held = [*found, *pool.take(total - len(found))]
        for block, name in zip(held, names, strict=False):
            pool.remember(block, name, 0, None, _NEVER)
        pool.release(held[::-1])
        hits.append(len(found))
        waits.append(0)
    if progress is not None:
        progress(len(trace))
    none = np.zeros(len(blocks), np.uint32)
    return (
        np.array(blocks, np.uint32),
        np.array(hits, np.uint32),
        none,
        np.array(waits, np.int64),
        none,
        pool.stats()[6],
        0,
    )


def _name(ids: list[int], block: int, size: int, request: int) -> bytes:
    last = (block + 1) * size - 1
    if not ids:
        return f"{request}.{block}".encode()
    return f"{ids[last // _IDS_TOKENS]}:{last % _IDS_TOKENS}".encode()
