"""Copies between host and device by the driver: runs joined where pages are neighbours, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.kernels import _driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel.kernels._device import Launch
    from infer_accel.kernels._driver import CopyDriver
    from infer_accel.kernels._pages import PageRuns

    Addresses = npt.NDArray[np.int64]

__all__ = ["copy_runs", "joined_runs"]


def joined_runs(groups: Sequence[PageRuns], pairs: Addresses) -> tuple[Addresses, Addresses, Addresses]:
    """Return source, target and length of every run, those joined that follow each other on both sides."""
    sources: list[Addresses] = []
    targets: list[Addresses] = []
    sizes: list[Addresses] = []
    for group in groups:
        for side, found in ((0, sources), (1, targets)):
            first, step = group.table[:, side, None], group.table[:, 2 + side, None]
            found.append((first + step * pairs[None, :, side]).reshape(-1))
        sizes.append(np.full(len(group.table) * len(pairs), group.run_bytes))
    if not sources:
        return (np.empty(0, np.int64),) * 3
    source, target, size = (np.concatenate(parts) for parts in (sources, targets, sizes))
    order = np.argsort(target, kind="stable")
    source, target, size = source[order], target[order], size[order]
    ends = (source[:-1] + size[:-1] != source[1:]) | (target[:-1] + size[:-1] != target[1:])
    begins = np.flatnonzero(np.concatenate([[True], ends])) if len(source) else np.empty(0, np.int64)
    total = np.concatenate([[0], np.cumsum(size)])
    lengths = np.diff(np.append(total[begins], total[-1]))
    return source[begins], target[begins], lengths


def copy_runs(runs: tuple[Addresses, Addresses, Addresses], launch: Launch, driver: CopyDriver) -> None:
    """Give runs to the driver in the order of the launch's stream, which is entered."""
    sources, targets, sizes = runs
    stream = launch.stream
    aside = None
    if stream is not None and stream.cuda_stream == 0 and not driver.takes_default_stream:
        # Batched copies are not allowed on the legacy default stream: they go beside it, between two events.
        aside = torch.cuda.Stream(launch.device)
        aside.wait_stream(stream)
        stream = aside
    handle = 0 if stream is None else stream.cuda_stream
    for begin in range(0, len(sources), _driver.LARGEST_BATCH):
        part = slice(begin, begin + _driver.LARGEST_BATCH)
        driver.copy(sources[part], targets[part], sizes[part], handle)
    if aside is not None:
        launch.stream.wait_stream(aside)
