"""Which tokens go together: a batch sorted by adapter and cut into work items, on the host or on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.errors import IdError, ShapeError
from infer_accel.kernels._arguments import integers

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int32]

__all__ = ["TOKENS", "checked_ids", "items_of_one", "items_on_device", "items_on_host", "most_items"]

#: Tokens of a work item: the least that tensor cores multiply. It never varies, so that neither do results.
TOKENS = 16


def checked_ids(ids: object, tokens: int) -> npt.NDArray[np.int64]:
    """Return ids that lie on the host, one for each token.

    Raises
    ------
    ShapeError, DTypeError, IdError
        They are something else.
    """
    array = integers(ids, "dtype.ids")
    if array.shape != (tokens,):
        message = f"adapter_ids of shape {array.shape} came for {tokens} tokens; pass one for each"
        raise ShapeError(message, code="shape.adapter_ids")
    return array


def items_on_host(ids: npt.NDArray[np.int64], names: list[int]) -> tuple[Integers, Integers]:
    """Return the tokens sorted by adapter, and the work items as rows of slot, start and length.

    Raises
    ------
    IdError
        An id that the stack does not have.
    """
    known = np.array(names, np.int64)
    slots = np.searchsorted(known, ids)
    is_known = np.append(known, -1)[np.minimum(slots, len(known))] == ids
    bad = np.flatnonzero(~is_known & (ids != -1))
    if bad.size:
        token = int(bad[0])
        message = f"token {token} names adapter {ids[token]}, which the stack does not have; −1 is for none"
        raise IdError(message, code="id.adapter")
    slots = np.where(ids == -1, -1, slots)
    order = np.argsort(slots, kind="stable")
    order = order[int((slots == -1).sum()) :]
    found, counts = np.unique(slots[order], return_counts=True)
    pieces = -(-counts // TOKENS)
    first = np.cumsum(pieces) - pieces
    within = (np.arange(int(pieces.sum())) - np.repeat(first, pieces)) * TOKENS
    starts = np.repeat(np.cumsum(counts) - counts, pieces) + within
    lengths = np.minimum(np.repeat(counts, pieces) - within, TOKENS)
    work = np.stack([np.repeat(found, pieces), starts, lengths], axis=1)
    return order.astype(np.int32), work.astype(np.int32)


def items_of_one(tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same where all tokens have one adapter; a graph can hold it, and nothing is uploaded."""
    order = torch.arange(tokens, dtype=torch.int32, device=device)
    starts = order[::TOKENS]
    work = torch.stack([torch.zeros_like(starts), starts, (tokens - starts).clamp_(max=TOKENS)], dim=1)
    return order, work


def most_items(tokens: int, adapters: int) -> int:
    """Return how many work items a batch can have at most."""
    return min(tokens, tokens // TOKENS + adapters)


def items_on_device(ids: torch.Tensor, names: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same by operations of torch that a graph can hold; what is left of the items does nothing.

    An id that the stack does not have counts as none: the host cannot be asked here.
    """
    tokens = len(ids)
    wide = ids.to(torch.int64)
    place = torch.searchsorted(names, wide).clamp_(max=len(names) - 1)
    slots = torch.where(names[place] == wide, place, -1)
    ordered, order = torch.sort(slots, stable=True)
    position = torch.arange(tokens, device=ids.device)
    within = position - torch.searchsorted(ordered, ordered)
    is_start = (within % TOKENS == 0) & (ordered >= 0)
    # Tokens without an adapter come first; they go to an item of their own, behind all others, that is cut off.
    count = most_items(tokens, len(names))
    item = torch.where(ordered >= 0, torch.cumsum(is_start, 0) - 1, count)
    work = torch.full((count + 1, 3), -1, dtype=torch.int64, device=ids.device)
    work[:, 2] = 0
    work[:, 0].scatter_(0, item, ordered)
    work[:, 1].scatter_reduce_(0, item, position, "amin", include_self=False)
    work[:, 2].scatter_add_(0, item, torch.ones_like(item))
    work[count, 0] = -1
    return order.to(torch.int32), work[:count].to(torch.int32).contiguous()
