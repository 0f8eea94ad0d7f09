"""A GPU to measure on: its memory, its limits, what is said of it in a record."""

from __future__ import annotations

import gc
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from infer_accel.bench.cuda import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from infer_accel.bench.harness import Contender
    from infer_accel.bench.limits import Limits
    from infer_accel.bench.rows import Json

__all__ = ["Clock", "DeviceLostError", "Gpu", "require", "why_none"]

Clock: TypeAlias = 'Literal["device", "graph", "host"]'

_CLOCKS = {"device": clock.by_one, "graph": clock.in_a_graph, "host": clock.by_the_host}

_SIDE = 8192
#: Of a measurement of a limit: the best counts, as a limit is what can be reached.
_TRIES = 10
#: What is written between samples, so that no second-level cache keeps anything: four times the largest today.
_FLUSHED_BYTES = 512 << 20
#: Left to the context, to libraries and to what the allocator cannot hand out.
_SPARE_BYTES = 3 << 30


class DeviceLostError(Exception):
    """The device answers nothing any more, as after an access to memory that is not there."""


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
    #: Calls of one sample, so that what the host does before a launch goes on while the device still works.
    calls: int = 8
    _flushed: torch.Tensor | None = None

    @property
    def is_real(self) -> bool:
        """Whether it is one."""
        kind: str = self.device.type
        return kind == "cuda"

    def seconds(self, calls: Callable[[], object]) -> float:
        """Return how long the device works on what `calls` gives it."""
        return clock.seconds(self.device, calls)

    def contender(
        self,
        name: str,
        call: Callable[[int], object],
        *,
        check: Callable[[object], None] | None,
        prepare: Callable[[], None] | None = None,
        sets: int = 1,
        calls: int | None = None,
        on: Clock = "device",
    ) -> Contender:
        """Return a contender whose calls take turns with `sets` inputs, timed by one of the three clocks.

        In a graph there is one call for each of the inputs; elsewhere there are `calls`, or :attr:`calls`.
        """
        timed = clock.Timed(self.device, name, call, check, prepare, sets, calls or self.calls)
        return _CLOCKS[on](timed)

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
        return numbers.mul_(size).to(dtype)

    def ids(self, array: npt.NDArray[np.int64]) -> torch.Tensor | npt.NDArray[np.int64]:
        """Return ids in the device's memory, where kernels check them; in a rehearsal those of the host."""
        return torch.from_numpy(array).to(self.device) if self.is_real else array

    def flush(self) -> None:
        """Write so much that the second-level cache keeps nothing of what was there before."""
        if self._flushed is None:
            size = _FLUSHED_BYTES if self.is_real else 1
            self._flushed = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._flushed.zero_()

    def release(self) -> None:
        """Give the memory of the last row back.

        Raises
        ------
        DeviceLostError
            The device answers nothing any more: no row after this one can be measured by this process.
        """
        if self.is_real:
            gc.collect()
            try:
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
            except RuntimeError as error:
                message = (
                    "the device is lost to this process; run again with --resume: what failed comes last then"
                )
                raise DeviceLostError(message) from error

    def total_bytes(self) -> int:
        """Return how much memory rows may be planned for."""
        if not self.is_real:
            return 1 << 40
        return int(torch.cuda.get_device_properties(self.device).total_memory) - _SPARE_BYTES

    def require_room(self, needed: int) -> None:
        """Refuse a row that the device has no room for, before anything is allocated.

        Raises
        ------
        MemoryError
            Less is free.
        """
        if self.is_real:
            free = torch.cuda.mem_get_info(self.device)[0]
            if needed > free:
                raise MemoryError(
                    f"{needed / 1e9:.1f} GB of the device are needed, {free / 1e9:.1f} GB are free"
                )

    def measure_limits(self, limits: Limits) -> None:
        """Measure all that the device can do at best, whether a row is held against it or not."""
        self.copy_rate(limits)
        for to_device in (True, False):
            self.link_rate(limits, to_device=to_device)
        self.gemm_rate(limits)

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
        """Return what a record says of the device: what must be the same for two runs to stand in one record."""
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
            **_nvidia_smi(),
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


#: What only the tool of the driver tells; of the link what it can do, as it may sleep at the moment.
_ASKED = {
    "driver_release": "driver_version",
    "link_generation": "pcie.link.gen.max",
    "link_width": "pcie.link.width.max",
    "power_limit": "power.limit",
    "most_sm_clock": "clocks.max.sm",
    "most_memory_clock": "clocks.max.memory",
}


def _nvidia_smi() -> dict[str, Json]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        command = [tool, f"--query-gpu={','.join(_ASKED.values())}", "--format=csv,noheader", "--id=0"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
        values = [value.strip() for value in said.stdout.strip().split(",")]
        if len(values) == len(_ASKED):
            return dict(zip(_ASKED, values, strict=True))
    return {}
