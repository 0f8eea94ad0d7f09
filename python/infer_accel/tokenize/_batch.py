"""The ids of many texts in two arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from infer_accel.errors import ArgumentError, IdError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

#: A flat list of token ids: any sequence of ints, numpy array or torch tensor on the CPU.
Ids: TypeAlias = "Sequence[int] | NDArray[np.integer] | Tensor"
Errors: TypeAlias = Literal["replace", "ignore", "strict"]

_ID_RANGE = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The ids of many texts, one after the other in one array.

    Parameters
    ----------
    ids
        int32 ``[tokens]``: all ids.
    offsets
        int64 ``[texts + 1]``: the ids of text ``i`` are ``ids[offsets[i]:offsets[i + 1]]``.

    Examples
    --------
    >>> import numpy as np
    >>> batch = TokenBatch(np.array([5, 6, 7], np.int32), np.array([0, 1, 1, 3], np.int64))
    >>> [ids.tolist() for ids in batch]
    [[5], [], [6, 7]]
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Return the ids of one text, a view of :attr:`ids`."""
        texts = len(self)
        if not -texts <= index < texts:
            raise IndexError(f"text {index} of a batch of {texts}")
        index %= texts
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """Iterate over the ids of each text, views of :attr:`ids`."""
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 ``[texts]``: the number of ids of each text."""
        return np.diff(self.offsets)

    def to_padded(
        self, pad_id: int = 0, *, width: int | None = None, side: Literal["left", "right"] = "right"
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the ids as a rectangle, and where it holds ids.

        Parameters
        ----------
        pad_id
            What stands where a text has no id.
        width
            Columns; those of the longest text by default. Texts that are longer are refused, not cut.
        side
            Where the padding stands.

        Returns
        -------
        ids : int32 ``[texts, width]``
            Fresh memory.
        mask : bool ``[texts, width]``
            True where `ids` holds an id of the text.

        Raises
        ------
        ShapeError
            A text is longer than `width`.
        ArgumentError
            `side` is neither left nor right.
        IdError
            `pad_id` does not fit into int32.

        Examples
        --------
        >>> import numpy as np
        >>> batch = TokenBatch(np.array([5, 6, 7], np.int32), np.array([0, 1, 3], np.int64))
        >>> ids, mask = batch.to_padded(pad_id=9, side="left")
        >>> ids.tolist()
        [[9, 5], [6, 7]]
        """
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        columns = longest if width is None else width
        if columns < longest:
            message = f"a text has {longest} ids, more than width={columns}; cut the texts first"
            raise ShapeError(message, code="shape.padding")
        if side not in {"left", "right"}:
            message = f"side={side!r} came; allowed: 'left', 'right'"
            raise ArgumentError(message, code="argument.side")
        if not _ID_RANGE.min <= pad_id <= _ID_RANGE.max:
            message = f"pad_id={pad_id} came; ids are int32: {_ID_RANGE.min} to {_ID_RANGE.max}"
            raise IdError(message, code="id.range")
        places = np.arange(columns)
        missing = columns - lengths[:, None]
        mask = places < lengths[:, None] if side == "right" else places >= missing
        padded = np.full(mask.shape, pad_id, dtype=np.int32)
        padded[mask] = self.ids
        return padded, mask
