"""The specification of residues: what makes a merge undoable bit for bit, and how it is stored."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import dtype_name, stored_bits
from infer_accel.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]
    Unsigned64 = NDArray[np.uint64]

__all__ = ["KERNEL_REVISION", "Residue", "adapter_digest", "mix", "tensor_digest"]

#: The revision of the arithmetic: what a delta is, bit for bit.
KERNEL_REVISION = 1

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
#: Elements of a row that are hashed together, and bytes of other data.
_SEGMENT, _CHUNK = 256, 1024
_HEADER = struct.Struct("<8sIBBHQQQQQQ")
_FORMATS = ("float32", "float16", "bfloat16")


def mix(value: int) -> int:
    """Return the finalizer of SplitMix64 of a 64-bit number."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


_PLACES = np.array([mix((at + 1) * _STEP & _MASK) for at in range(_CHUNK // 8)], np.uint64)


def _hash(data: bytes) -> int:
    """Return the NH hash of a segment: sums of products of neighbouring words, each moved by its place."""
    words = np.frombuffer(data + bytes(-len(data) % 8), np.uint32).reshape(-1, 2)
    places = np.ascontiguousarray(_PLACES[: len(words)]).view(np.uint32).reshape(-1, 2)
    moved = (words + places).astype(np.uint64)
    return int(np.sum(moved[:, 0] * moved[:, 1], dtype=np.uint64))


def _summand(hashed: int, row: int, segment: int) -> int:
    place = (row << 24 & _MASK) ^ segment
    return mix(hashed ^ mix(place * _STEP & _MASK))


def tensor_digest(tensor: Tensor) -> int:
    """Return the digest of a matrix: the sum of what its segments say with their places."""
    total = 0
    for row, elements in enumerate(stored_bits(tensor)):
        for segment, first in enumerate(range(0, len(elements), _SEGMENT)):
            total += _summand(_hash(elements[first : first + _SEGMENT].tobytes()), row, segment)
    return total & _MASK


def _bytes_digest(data: bytes) -> int:
    chunks = enumerate(range(0, len(data), _CHUNK))
    total = sum(_summand(_hash(data[first : first + _CHUNK]), 0, index) for index, first in chunks)
    return mix(len(data)) + total & _MASK


def adapter_digest(deltas: Sequence[tuple[Tensor, Tensor, Float32]]) -> int:
    """Return the digest of (lora_A, lora_B, scaling), one or several, in order."""
    digest = 0
    for *matrices, scaling in deltas:
        for tensor in matrices:
            shape = 0
            for side in tensor.shape:
                shape = mix(shape ^ side)
            kind = dtype_name(tensor)
            code = (4 if kind == "float32" else 2) | (kind == "bfloat16") << 8
            digest = mix(digest ^ mix(shape ^ code)) ^ tensor_digest(tensor)
        digest = mix(digest ^ int(np.float32(scaling).view(np.uint32)))
    return digest


@dataclass(frozen=True)
class Residue:
    """The elements that ``round(W′ − Δ)`` does not give back, and what they belong to."""

    kernel_revision: int
    base_dtype: str
    merged_dtype: str
    shape: tuple[int, int]
    adapter_digest: int
    merged_digest: int
    indices: tuple[int, ...]
    differences: tuple[int, ...]

    @property
    def exceptions(self) -> int:
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        return len(self.to_bytes())

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        return np.array(self.indices, np.int64), np.array(self.differences, np.uint32)

    def to_bytes(self) -> bytes:
        entries, expected, width = bytearray(), 0, 32 if self.base_dtype == "float32" else 16
        for index, difference in zip(self.indices, self.differences, strict=True):
            signed = difference - (1 << width) if difference >> width - 1 else difference
            entries += _number(index - expected) + _number(2 * signed if signed >= 0 else -2 * signed - 1)
            expected = index + 1
        codes = [_FORMATS.index(name) for name in (self.base_dtype, self.merged_dtype)]
        digests = (self.adapter_digest, self.merged_digest)
        header = _HEADER.pack(
            b"IAresid\x01",
            self.kernel_revision,
            *codes,
            0,
            *self.shape,
            *digests,
            self.exceptions,
            len(entries),
        )
        return header + struct.pack("<Q", _checksum(header, bytes(entries))) + bytes(entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> Residue:
        size = _HEADER.size + 8
        if len(data) < size:
            raise _damaged("it is shorter than its header")
        header, entries = data[: _HEADER.size], data[size:]
        magic, revision, base, merged, reserved, *sides, adapter, weight, count, length = _HEADER.unpack(
            header
        )
        if magic != b"IAresid\x01":
            raise _damaged("it does not begin with the mark of a residue of this layout")
        if length != len(entries):
            raise _damaged("it is shorter or longer than its header says: it was cut off, or added to")
        if reserved or data[_HEADER.size : size] != struct.pack("<Q", _checksum(header, entries)):
            raise _damaged("its checksum is wrong: bytes were changed")
        if max(base, merged) >= len(_FORMATS):
            raise _damaged("it names an unknown number format")
        indices, differences = _parse(entries, 32 if base == 0 else 16)
        if len(indices) != count or (indices and indices[-1] >= sides[0] * sides[1]):
            raise _damaged("its entries are not those that its header promises")
        formats = (_FORMATS[base], _FORMATS[merged])
        return cls(
            revision, *formats, (sides[0], sides[1]), adapter, weight, tuple(indices), tuple(differences)
        )


def _checksum(header: bytes, entries: bytes) -> int:
    return mix(_bytes_digest(header) ^ mix(_bytes_digest(entries)))


def _number(value: int) -> bytes:
    """Return a number in groups of seven bits, the least significant first."""
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(groups) + bytes([value])


def _parse(data: bytes, width: int) -> tuple[list[int], list[int]]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
        elif shift > 63:
            raise _damaged("its entries are not those that its header promises")
    indices, differences, following = [], [], 0
    if shift or len(numbers) % 2:
        raise _damaged("its entries are not those that its header promises")
    for gap, folded in zip(numbers[::2], numbers[1::2], strict=True):
        if folded >> width:
            raise _damaged("its entries are not those that its header promises")
        indices.append(following + gap)
        following = indices[-1] + 1
        differences.append((-(folded + 1) // 2 if folded & 1 else folded // 2) & (1 << width) - 1)
    return indices, differences


def _damaged(problem: str) -> IntegrityError:
    message = f"these bytes are no residue: {problem}; take the bytes that Residue.to_bytes gave"
    return IntegrityError(message, code="residue.format")
