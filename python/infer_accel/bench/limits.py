"""What this machine can do at best, measured in the same run as the rows that are held against it.

Each limit is measured once, when first asked for, by loops of the extension module that do nothing else: no
check, no dispatch, the widest instructions present. They are the denominators of every "share of the limit".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from infer_accel._native import machine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Limits"]

#: Far above any cache, small enough for a small machine.
_BYTES = 256 << 20


@dataclass(slots=True)
class Limits:
    """The ceilings, by name; `measured` keeps those that were asked for, in SI units."""

    measured: dict[str, float] = field(default_factory=dict)

    def copy_bandwidth(self, *, threads: int = 1) -> float:
        """Return bytes a second, read and written, of the best contiguous copy of a large array."""
        return self._once(
            f"copy bandwidth, {_threads(threads)}", lambda: machine.copy_bandwidth(_BYTES, threads)
        )

    def read_modify_write_bandwidth(self, *, threads: int = 1) -> float:
        """Return bytes a second, read and written, of the best update in place of a large array."""
        return self._once(
            f"read-modify-write bandwidth, {_threads(threads)}",
            lambda: machine.read_modify_write_bandwidth(_BYTES, threads),
        )

    def fma_rate(self, kind: Literal["f32", "bf16"] = "f32", *, threads: int = 1) -> float:
        """Return floating-point operations a second (two a fused multiply-add) out of registers."""
        return self._once(f"FMA rate {kind}, {_threads(threads)}", lambda: machine.fma_rate(kind, threads))

    def sha256_rate(self, *, streams: int = 1) -> float:
        """Return bytes a second of SHA-256's rounds on one thread.

        One chain of blocks must wait for each round's latency; independent messages (`streams` of them) fill
        the gaps.
        """
        return self._once(f"SHA-256 rate, {streams} at once", lambda: machine.sha256_rate(streams))

    def _once(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.measured:
            self.measured[name] = measure()
        return self.measured[name]


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
