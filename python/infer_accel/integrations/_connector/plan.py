"""What the scheduler's side tells the worker's, once a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """Pages by key, and the engine's blocks that hold them or are to hold them."""

    #: uint8 of shape ``[n, 32]``.
    keys: npt.NDArray[np.uint8]
    #: int64 of shape ``[n]``.
    blocks: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, part: slice | npt.NDArray[np.bool_]) -> Pages:
        return Pages(self.keys[part], self.blocks[part])


@dataclass(frozen=True, slots=True)
class Load:
    """Pages that a request waits for, in the order of its prompt."""

    request: str
    pages: Pages


@dataclass(slots=True)
class StepPlan:
    """What the worker's side does in a step."""

    #: To be started.
    loads: list[Load] = field(default_factory=list)
    #: Complete when the step has been computed, to be stored then.
    saves: list[Pages] = field(default_factory=list)
    #: Whether the step computes nothing, so that waiting for a load delays nobody.
    idle: bool = False
