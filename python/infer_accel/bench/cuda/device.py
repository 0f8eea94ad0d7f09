"""A GPU to measure on: its clock, its limits, what is said of it in a record."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from infer_accel.bench.harness import Contender

if TYPE_CHECKING:
    from collections.abc import Callable

    from infer_accel.bench.limits import Limits
    from infer_accel.bench.rows import Json

__all__ = ["Gpu", "require", "why_none"]

#: Calls of one sample, so that what the host does before a launch goes on while the device still works.
_CALLS = 8
_SIDE = 8192
#: Of a measurement of a limit: the best counts, as a limit is what can be reached.
_TRIES = 10


def require(is_right: bool, what: str) -> None:  # noqa: FBT001 - it reads as a sentence
    """Raise an AssertionError, which keeps a row from the table, unless all is right."""
    if not is_right:
        raise AssertionError(what)


def why_none() -> str | None:
    """Return why there is no GPU to measure on; None where there is one."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device here"
    return None


@dataclass(slots=True)
class Gpu:
    """A device. On the CPU, where kernels are interpreted, it is a rehearsal: small, and timed by the host."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda", 0))
    #: Bytes that one call moves one way: several times the second-level cache.
    call_bytes: int = 512 << 20
    calls: int = _CALLS

    @property
    def is_real(self) -> bool:
        """Whether it is one."""
        kind: str = self.device.type
        return kind == "cuda"

    def seconds(self, calls: Callable[[], object]) -> float:
        """Return how long the device works on what `calls` gives it."""
        if not self.is_real:
            begin = time.perf_counter()
            calls()
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        calls()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def contender(
        self,
        name: str,
        call: Callable[[int], object],
        *,
        sets: int,
        check: Callable[[object], None] | None,
        prepare: Callable[[], None] | None = None,
    ) -> Contender:
        """Return a contender whose calls take turns with `sets` inputs, timed by the device's clock."""
        turns = itertools.cycle(range(sets))
        measured = [0.0]

        def run() -> int:
            last = 0

            def calls() -> None:
                nonlocal last
                for _ in range(self.calls):
                    last = next(turns)
                    call(last)

            measured[0] = self.seconds(calls) / self.calls
            return last

        return Contender(name, run, check=check, prepare=prepare, meter=lambda: measured[0])

    def pinned(self, *shape: int) -> torch.Tensor:
        """Return bytes in pinned memory of the host."""
        memory = torch.empty(shape, dtype=torch.uint8)
        return memory.pin_memory() if self.is_real else memory

    def random(self, *shape: int, dtype: torch.dtype, seed: int, size: float = 1.0) -> torch.Tensor:
        """Return random numbers on the device; random bytes where `dtype` is uint8."""
        generator = torch.Generator(self.device).manual_seed(seed)
        if dtype == torch.uint8:
            return torch.randint(0, 256, shape, dtype=dtype, device=self.device, generator=generator)
        numbers = torch.randn(shape, dtype=torch.float32, device=self.device, generator=generator)
        return (numbers * size).to(dtype)

    def copy_rate(self, limits: Limits) -> float:
        """Return bytes a second, read and written, of torch's copy of a large array on the device."""
        return _once(limits, "device copy", lambda: self._copy_rate(2, "device", "device"))

    def link_rate(self, limits: Limits, *, to_device: bool) -> float:
        """Return bytes a second of a large copy from pinned memory of the host, or to it."""
        if to_device:
            return _once(limits, "link, host to device", lambda: self._copy_rate(1, "host", "device"))
        return _once(limits, "link, device to host", lambda: self._copy_rate(1, "device", "host"))

    def gemm_rate(self, limits: Limits) -> float:
        """Return operations a second of torch's product of large bfloat16 matrices."""
        return _once(limits, "GEMM bfloat16", self._gemm_rate)

    def _copy_rate(self, ways: int, fro: str, to: str) -> float:
        sides = []
        for side in (fro, to):
            on_host = self.pinned(self.call_bytes)
            sides.append(on_host if side == "host" else torch.zeros_like(on_host, device=self.device))
        source, target = sides
        return ways * self.call_bytes / self._best(lambda: target.copy_(source, non_blocking=True))

    def _gemm_rate(self) -> float:
        side = _SIDE if self.is_real else 64
        one = self.random(side, side, dtype=torch.bfloat16, seed=0)
        return float(2 * side**3) / self._best(lambda: torch.matmul(one, one))

    def _best(self, call: Callable[[], object]) -> float:
        call()
        return min(self.seconds(call) for _ in range(_TRIES))

    def describe(self) -> dict[str, Json]:
        """Return what a record says of the device."""
        found: dict[str, Json] = {
            "torch": torch.__version__,
            "triton": _version("triton"),
            "cuda_bindings": _version("cuda-bindings"),
            "cuda_runtime": str(torch.version.cuda),
        }
        if not self.is_real:
            return found | {"name": "none: a rehearsal in the interpreter"}
        properties = torch.cuda.get_device_properties(self.device)
        return found | {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cache_bytes": properties.L2_cache_size,
            "driver": _driver_version(),
        }


def _once(limits: Limits, name: str, measure: Callable[[], float]) -> float:
    if name not in limits.measured:
        limits.measured[name] = measure()
    return limits.measured[name]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    """Return the version of CUDA that the driver speaks, where it can be asked."""
    try:
        from cuda.bindings import driver

        result, number = driver.cuDriverGetVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return f"{number // 1000}.{number % 1000 // 10}" if int(result) == 0 else None
