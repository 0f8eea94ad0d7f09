"""What the tests of the benchmarks make: checks and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel.bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable


def expect(value: object) -> Callable[[object], None]:
    def check(result: object) -> None:
        assert result == value, f"expected {value}, got {result}"

    return check


def row(case: str = "copy", ours: float = 10.0, **changes: object) -> Row:
    fields: dict[str, object] = {
        "part": "kvcache",
        "case": case,
        "unit": "GB/s",
        "better": "higher",
        "ours": ours,
        "peers": {"numpy": 5.0, "torch": 2.0},
        "limit": 20.0,
        "efficiency": ours / 20.0,
    }
    return Row(**(fields | changes))  # type: ignore[arg-type]
