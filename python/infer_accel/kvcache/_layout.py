"""What a page holds, whoever wrote it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np

from infer_accel._reference._tensors import require_tensor
from infer_accel.errors import ArgumentError, DTypeError, LayoutError, ShapeError
from infer_accel.kvcache._copy import page_copy

if TYPE_CHECKING:
    import numpy.typing as npt

    from infer_accel._typing import Tensor

#: An axis of a page.
Axis: TypeAlias = Literal["layer", "plane", "token", "head", "dim"]

#: The order of the axes in a record, which every rank writes alike.
_RECORD_AXES: tuple[Axis, ...] = ("layer", "plane", "head", "token", "dim")
_SIZES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
}
_MAX_RECORDS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLayout:
    """What a page of a KV cache holds, and how a rank has it in memory.

    Under tensor parallelism each rank has the heads of a range. What is stored is independent of that: a page is
    stored as *records* of `granule` heads each, in one fixed order of axes, named by the page's key and the record's
    global number. So pages written by four ranks are read by two, or by one, if every range is a multiple of the
    granule. Two layouts have the same :attr:`fingerprint` exactly if they can read each other's records.

    Parameters
    ----------
    layers
        The global numbers of the layers in a page: all of a group that share a block table.
    heads
        KV heads of the whole model. A latent cache (MLA) has one, which every rank holds whole.
    head_dim
        Numbers of one head and token. MLA: the latent and the rotary part together.
    tokens
        Tokens of a block.
    dtype
        The number format: float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int8 or uint8.
    planes
        2 for keys and values; 1 for a latent cache.
    granule
        Heads in a record.
    axes
        The order of a page's axes in this rank's memory, each of layer, plane, token, head and dim once.
    head_range
        First head of this rank, and the one behind its last; ``None`` for all.
    identity
        What else separates pages that look alike: model, revision, quantisation, group of a hybrid model.

    Raises
    ------
    ArgumentError
        A size below 1, an unknown dtype, axes that are not those five, a head range that is not made of whole
        granules.

    Examples
    --------
    A model of 8 KV heads, written by two ranks and read by four:

    >>> import numpy as np
    >>> whole = PageLayout(layers=range(2), heads=8, head_dim=4, tokens=16, dtype="float16", granule=2)
    >>> writers = [whole.for_rank(rank, 2) for rank in range(2)]
    >>> reader = whole.for_rank(3, 4)
    >>> reader.head_range, reader.fingerprint == writers[0].fingerprint
    ((6, 8), True)
    >>> pages = np.arange(3 * 2 * 2 * 16 * 4 * 4).astype(np.float16).reshape(3, *writers[1].shape)
    >>> records = writers[1].pack(pages)
    >>> records.shape  # three pages of two records
    (6, 1024)
    >>> out = np.zeros((3, *reader.shape), np.float16)
    >>> reader.unpack(records[1::2], out)  # the second record of each
    >>> bool((out == pages[..., 2:4, :]).all())
    True
    """

    layers: tuple[int, ...] | range
    heads: int
    head_dim: int
    tokens: int
    dtype: str
    planes: int = 2
    granule: int = 1
    axes: tuple[Axis, ...] = ("layer", "plane", "token", "head", "dim")
    head_range: tuple[int, int] | None = None
    identity: str = ""
    _extents: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layers = tuple(self.layers)
        object.__setattr__(self, "layers", layers)
        head_range = self.head_range or (0, self.heads)
        object.__setattr__(self, "head_range", head_range)
        sizes = (len(layers), self.heads, self.head_dim, self.tokens, self.planes, self.granule)
        if min(sizes) < 1 or len(set(layers)) != len(layers) or min(layers) < 0:
            message = f"{self} came; every size is at least 1, and layers are different numbers from 0 on"
            raise ArgumentError(message, code="argument.layout")
        if self.dtype not in _SIZES:
            message = f"dtype={self.dtype!r} came; allowed: {', '.join(_SIZES)}"
            raise ArgumentError(message, code="argument.layout")
        if sorted(self.axes) != sorted(_RECORD_AXES):
            message = f"axes={self.axes} came; allowed are {_RECORD_AXES}, each once, in any order"
            raise ArgumentError(message, code="argument.layout")
        first, end = head_range
        if not 0 <= first < end <= self.heads or first % self.granule or end % self.granule:
            message = (
                f"the head range {head_range} came with granules of {self.granule} of {self.heads} heads; it must "
                "lie within and be made of whole granules: lower the granule"
            )
            raise ArgumentError(message, code="argument.head_range")
        if self.heads // self.granule > _MAX_RECORDS:
            raise ArgumentError(f"more than {_MAX_RECORDS} records a page came", code="argument.layout")
        extents = {
            "layer": len(layers),
            "plane": self.planes,
            "token": self.tokens,
            "head": end - first,
            "dim": self.head_dim,
        }
        object.__setattr__(self, "_extents", extents)

    def for_rank(self, rank: int, size: int) -> PageLayout:
        """Return the layout of a rank of `size` that share the heads evenly.

        With fewer heads than ranks, neighbouring ranks hold the same head, as engines do it.

        Raises
        ------
        ArgumentError
            Neither number divides the other, or the rank is not there.
        """
        if not 0 <= rank < size or (self.heads % size and size % self.heads):
            message = f"rank {rank} of {size} came for {self.heads} heads; one must divide the other"
            raise ArgumentError(message, code="argument.head_range")
        first = rank * self.heads // size
        return replace(self, head_range=(first, first + max(1, self.heads // size)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a page in this rank's memory."""
        return tuple(self._extents[axis] for axis in self.axes)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in this rank's memory."""
        return math.prod(self.shape) * _SIZES[self.dtype]

    @property
    def record_bytes(self) -> int:
        """Bytes of a record: what a :class:`DiskTier` for these pages has as `page_bytes`."""
        heads = self._extents["head"]
        return self.page_bytes // heads * self.granule

    @property
    def records(self) -> range:
        """The global numbers of this rank's records."""
        first, end = cast("tuple[int, int]", self.head_range)
        return range(first // self.granule, end // self.granule)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that name what records hold, whichever rank wrote them."""
        layers = ",".join(map(str, self.layers))
        facts = (
            f"layers={layers};planes={self.planes};heads={self.heads};granule={self.granule};"
            f"head_dim={self.head_dim};tokens={self.tokens};dtype={self.dtype};identity={self.identity}"
        )
        return hashlib.sha256(b"infer-accel page records 1\n" + facts.encode()).digest()

    def record_keys(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the keys of the records of pages.

        Parameters
        ----------
        keys
            uint8 of shape ``[n, key_bytes]``.

        Returns
        -------
        numpy.ndarray
            uint8 of shape ``[n * len(records), key_bytes + 2]``, page by page: the page's key, then the record's
            number, low byte first.

        Raises
        ------
        ShapeError, DTypeError
            Keys that are not rows of bytes.
        """
        if keys.ndim != 2:
            raise ShapeError(
                f"keys of shape {keys.shape} came; pass one row for each page", code="shape.keys"
            )
        if keys.dtype != np.uint8:
            message = f"keys of {keys.dtype} came; pass uint8 of shape [n, key_bytes]"
            raise DTypeError(message, code="dtype.bytes")
        numbers = np.array(self.records, "<u2").view(np.uint8).reshape(-1, 2)
        front = np.repeat(keys, len(numbers), axis=0)
        return np.concatenate([front, np.tile(numbers, (len(keys), 1))], axis=1)

    def pack(self, pages: Tensor, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Copy pages of this rank to records.

        Parameters
        ----------
        pages
            Shape ``[n, *shape]``, any strides.
        out
            uint8 of shape ``[n * len(records), record_bytes]``, written; ``None`` for new memory.

        Returns
        -------
        numpy.ndarray
            The records, page by page.

        Raises
        ------
        ShapeError, LayoutError
            Pages of another shape or format than this layout's; an `out` that is not as said.
        DTypeError, GradientError, DeviceError
            What is no tensor, or one that cannot be used.
        """
        count = self._check_pages(pages)
        shape = (count * len(self.records), self.record_bytes)
        records = np.empty(shape, np.uint8) if out is None else out
        self._copy(pages, records, count, to_records=True)
        return records

    def unpack(self, records: npt.NDArray[np.uint8], out: Tensor) -> None:
        """Copy records to pages of this rank: the way back of :meth:`pack`.

        Parameters
        ----------
        records
            uint8 of shape ``[n * len(records), record_bytes]``, page by page.
        out
            Shape ``[n, *shape]``, any strides; written.

        Raises
        ------
        ShapeError, LayoutError, DTypeError, GradientError, DeviceError, ReadOnlyError
            As for :meth:`pack`; an `out` that must not be written.
        """
        self._copy(out, records, self._check_pages(out), to_records=False)

    def _check_pages(self, pages: Tensor) -> int:
        require_tensor(pages)
        shape = tuple(pages.shape)
        if shape[1:] != self.shape or len(shape) != len(self.shape) + 1:
            message = f"pages of shape {shape} came; this layout's are [n, {', '.join(map(str, self.shape))}]"
            raise ShapeError(message, code="shape.layout_pages")
        name = str(pages.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
        if name != self.dtype:
            message = f"pages of {name} came, and the layout says {self.dtype}"
            raise LayoutError(message, code="layout.dtype")
        return shape[0]

    def _copy(self, pages: Tensor, given: object, count: int, *, to_records: bool) -> None:
        if not isinstance(given, np.ndarray):
            message = f"{type(given).__name__} came as records; pass a numpy array of uint8"
            raise DTypeError(message, code="dtype.not_a_tensor")
        records: npt.NDArray[np.uint8] = given
        wanted = (count * len(self.records), self.record_bytes)
        if records.shape != wanted or records.dtype != np.uint8 or not records.flags.c_contiguous:
            records = _refused_or_contiguous(records, wanted, writable=to_records)
        extents = self._extents
        bits = f"int{8 * _SIZES[self.dtype]}"
        inner = (extents["layer"], extents["plane"], self.granule, extents["token"], extents["dim"])
        packed = records.view(bits).reshape(count, len(self.records), *inner)
        order = [0, *(1 + self.axes.index(axis) for axis in _RECORD_AXES)]
        loose = _as_integers(pages, bits, order)
        heads = [
            (loose[:, :, :, head], packed[:, head // self.granule, :, :, head % self.granule])
            for head in range(extents["head"])
        ]
        mapping = np.repeat(np.arange(count, dtype=np.int64)[:, None], 2, axis=1)
        sides = [list(side) for side in zip(*heads, strict=True)]
        source, target = sides if to_records else reversed(sides)
        page_copy(source, target, mapping)


def _refused_or_contiguous(
    records: npt.NDArray[np.uint8], wanted: tuple[int, int], *, writable: bool
) -> npt.NDArray[np.uint8]:
    if records.shape == wanted and records.dtype == np.uint8 and not writable:
        return np.ascontiguousarray(records)
    message = f"records of {records.dtype} {records.shape} came; uint8 of {wanted} are needed, contiguous"
    raise ShapeError(message, code="shape.records")


def _as_integers(pages: Tensor, bits: str, order: list[int]) -> npt.NDArray[np.generic]:
    """Return the pages with their axes in another order, as integers of the same width; nothing is copied."""
    if isinstance(pages, np.ndarray):
        return cast("npt.NDArray[np.generic]", pages.view(bits).transpose(order))
    import torch  # noqa: PLC0415 - what is no array is a tensor

    tensor = cast("torch.Tensor", pages)
    return cast("npt.NDArray[np.generic]", tensor.view(getattr(torch, bits)).permute(order).numpy())
