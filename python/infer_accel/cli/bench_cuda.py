"""What `infer-accel bench` does about a GPU: finds it, tunes it, says how long it will take."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from infer_accel.cli.output import errors, refuse, results

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, CaseSource
    from infer_accel.bench.rows import Row

__all__ = ["find_gpu", "sources", "tune"]

#: Of a record: from which length on the driver copies runs, and the seconds of both ways by length.
_THRESHOLD, _WAYS = "driver_copies_from_bytes", "seconds_by_kernel_and_driver"


def find_gpu(option: str) -> Gpu:
    """Return the GPU to measure on, or refuse in one line that names the option which asks for it."""
    if find_spec("torch") is None or find_spec("triton") is None:
        refuse(f"{option} needs torch and Triton: pip install 'infer-accel[gpu]'")
    from infer_accel.bench.cuda.device import Gpu, why_none

    why = why_none()
    if why is not None:
        refuse(f"{option}: {why}; nothing was measured")
    return Gpu()


def tune(gpu: Gpu, bench: Bench) -> None:
    """Measure both ways over the link and keep where they meet, for this user and in the record.

    A run that goes on takes what the record says, so that all of its rows go the same ways.
    """
    from infer_accel.bench.cuda.autotune import autotune, keep

    found = bench.gpu if bench.gpu is not None else {}
    known = found.get(_THRESHOLD)
    console = results()
    if isinstance(known, int):
        path = keep(gpu, known)
        console.print(f"the driver copies runs from {known} bytes on, as the record says; kept in {path}")
        return
    threshold, seconds, path = autotune(gpu)
    for length, (kernel, driver) in seconds.items():
        console.print(f"{length >> 10:>4} KiB: kernel {kernel * 1e3:.3f} ms, driver {driver * 1e3:.3f} ms")
    console.print(f"the driver copies runs from {threshold} bytes on; kept in {path}")
    found[_THRESHOLD] = threshold
    found[_WAYS] = {str(length): list(ways) for length, ways in seconds.items()}


def sources(
    names: Sequence[str], gpu: Gpu, bench: Bench, *, earlier: Sequence[Row], failed: Collection[str]
) -> dict[str, CaseSource]:
    """Return the sources of cases by part; say how many there are, and about how long they will take."""
    from infer_accel.bench import cuda
    from infer_accel.bench.cuda.plan import expected_seconds

    known = {row.key for row in earlier}
    keys = [f"{name}/{row.name}" for name in names for row in cuda.rows(name, bench, gpu)]
    left = sum(key not in known for key in keys)
    minutes = expected_seconds(left, bench) / 60
    errors().print(f"{left} of {len(keys)} rows to measure: about {minutes:.0f} minutes")
    return {name: cuda.source(name, gpu, failed) for name in names}
