"""What merging a checkpoint did."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MergeReport",
    "MergedAdapter",
    "OutputFile",
    "Quantization",
    "TensorChange",
    "UnmergeReport",
    "Verification",
]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What encoding did to a quantized tensor that deltas were added to."""

    #: The stored numbers against the sums before they were rounded to codes: root of the mean square, and the largest.
    rms_error: float
    largest_error: float
    #: Elements beyond the last code, which got that one.
    saturated: int
    #: Its scales, and those among them that had to grow.
    scales: int
    scales_changed: int


@dataclass(frozen=True, slots=True)
class TensorChange:
    """What happened to one tensor of a checkpoint."""

    name: str
    #: ``merged``: deltas were added. ``replaced``: the adapter brings the whole tensor. ``converted``: its number
    #: format changed. ``rescaled``: it holds the scales of a quantized tensor that deltas were added to. ``added``: it
    #: was shared with another tensor in the base, and is not any more.
    action: Literal["merged", "replaced", "converted", "rescaled", "added", "restored"]
    shape: tuple[int, ...]
    #: Its number format before, and in the output, as safetensors names them.
    dtype: str
    output_dtype: str
    #: Rank of all deltas together.
    rank: int
    #: Elements that the deltas reach, and those among them whose bits are others now.
    elements: int
    changed: int
    #: Frobenius norm of what was to be added; None where nothing was, or where it is not finite.
    delta_norm: float | None
    #: How much of that the output's number format could take: 1.0 is all of it, 0.0 nothing.
    survived: float | None
    #: Largest magnitude of what was to be added.
    largest_delta: float | None
    #: Bytes that are kept to take the merge back.
    residue_bytes: int
    #: What encoding did, of a quantized tensor that deltas were added to.
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """An adapter of a merge."""

    name: str
    #: What tells it from others: the same wherever its files lie.
    digest: str
    #: What its deltas were multiplied by, beside its own scaling.
    weight: float
    #: Deltas that have no place in the base: empty, unless ``allow_unused=True`` let them pass.
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of an output, relative to its directory."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading back a sample and computing it again in float64 found."""

    #: Elements that were computed again.
    elements: int
    #: Those among them that float64, rounded once, would have made a neighbour of: float32 cannot tell them apart.
    off: int
    #: Bytes of unchanged tensors that were compared.
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What :func:`infer_accel.lora.merge_checkpoint` did, or would do.

    Examples
    --------
    >>> from infer_accel.lora import MergeReport
    >>> report = MergeReport(output="merged", base="base", bytes=0)
    >>> MergeReport.from_json(report.to_json()) == report
    True
    """

    output: str
    base: str
    #: Bytes of the output's shards.
    bytes: int
    adapters: tuple[MergedAdapter, ...] = ()
    #: How they were put together, and the settings of that.
    method: str = "sum"
    density: float | None = None
    rank: int | None = None
    seed: int | None = None
    #: Every tensor that is not the base's, in the order of the output.
    tensors: tuple[TensorChange, ...] = ()
    #: Tensors that went through byte for byte.
    untouched: tuple[str, ...] = ()
    #: Every file of the output but the residues' own; `checksum` names the algorithm.
    files: tuple[OutputFile, ...] = ()
    checksum: str = "xxh3-128"
    #: Files of the base that were left out: they hold its weights in another form.
    left_out: tuple[str, ...] = ()
    #: Bytes that an earlier call had written before it was interrupted.
    resumed_bytes: int = 0
    residue_bytes: int = 0
    verification: Verification | None = None
    #: Threads that computed.
    threads: int = 1
    #: True where nothing was written.
    is_dry_run: bool = False

    @property
    def delta_norm(self) -> float:
        """Frobenius norm of everything that was to be added."""
        return math.sqrt(sum((change.delta_norm or 0.0) ** 2 for change in self.tensors))

    @property
    def survived(self) -> float | None:
        """How much of all deltas the output's number format could take; None if nothing was added."""
        weighed = [
            (change.delta_norm**2, change.survived)
            for change in self.tensors
            if change.delta_norm is not None and change.survived is not None
        ]
        total = sum(weight for weight, _ in weighed)
        return sum(weight * share for weight, share in weighed) / total if total else None

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the report as JSON; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MergeReport:
        """Return the report that :meth:`to_json` wrote."""
        return _read_merge(json.loads(text))


@dataclass(frozen=True, slots=True)
class UnmergeReport:
    """What :func:`infer_accel.lora.unmerge_checkpoint` did.

    Examples
    --------
    >>> from infer_accel.lora import UnmergeReport
    >>> report = UnmergeReport(output="base", merged="merged", bytes=0)
    >>> UnmergeReport.from_json(report.to_json()) == report
    True
    """

    output: str
    merged: str
    #: Bytes of the output's shards.
    bytes: int
    #: Tensors that arithmetic and a list of exceptions brought back.
    undone: tuple[str, ...] = ()
    #: Tensors that had been kept whole.
    restored: tuple[str, ...] = ()
    #: Every file of the output; `checksum` names the algorithm.
    files: tuple[OutputFile, ...] = ()
    checksum: str = "xxh3-128"
    #: Bytes that an earlier call had written before it was interrupted.
    resumed_bytes: int = 0

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the report as JSON; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> UnmergeReport:
        """Return the report that :meth:`to_json` wrote."""
        found = json.loads(text)
        return cls(
            output=str(found["output"]),
            merged=str(found["merged"]),
            bytes=int(found["bytes"]),
            undone=tuple(found["undone"]),
            restored=tuple(found["restored"]),
            files=tuple(OutputFile(**file) for file in found["files"]),
            checksum=str(found["checksum"]),
            resumed_bytes=int(found["resumed_bytes"]),
        )


#: What the core keeps for itself.
_INTERNAL = frozenset({"kept"})


def _change(found: Mapping[str, object]) -> TensorChange:
    fields = {name: value for name, value in found.items() if name not in _INTERNAL}
    shape, quantization = fields.pop("shape"), fields.pop("quantization", None)
    encoded = None if quantization is None else Quantization(**quantization)  # type: ignore[arg-type]
    return TensorChange(shape=tuple(shape), quantization=encoded, **fields)  # type: ignore[arg-type]


def _adapter(found: Mapping[str, object]) -> MergedAdapter:
    fields = dict(found)
    unused = fields.pop("unused")
    return MergedAdapter(unused=tuple(unused), **fields)  # type: ignore[arg-type]


def _read_merge(found: Mapping[str, object]) -> MergeReport:
    fields = dict(found)
    verification = fields.pop("verification")
    lists: dict[str, list[dict[str, object]]] = {
        name: fields.pop(name)  # type: ignore[misc]
        for name in ("adapters", "tensors", "files")
    }
    names: dict[str, list[str]] = {
        name: fields.pop(name)  # type: ignore[misc]
        for name in ("untouched", "left_out")
    }
    return MergeReport(
        adapters=tuple(_adapter(adapter) for adapter in lists["adapters"]),
        tensors=tuple(_change(change) for change in lists["tensors"]),
        files=tuple(OutputFile(**file) for file in lists["files"]),  # type: ignore[arg-type]
        untouched=tuple(names["untouched"]),
        left_out=tuple(names["left_out"]),
        verification=None if verification is None else Verification(**verification),  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )
