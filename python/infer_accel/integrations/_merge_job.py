"""One output of many merges: atomic, and found again by who comes back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel.errors import ArgumentError, CheckpointError, InferAccelError
from infer_accel.lora import Adapter, MergeReport, merge_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REPORT", "MergeJob", "MergeOutcome", "merge_one"]

#: The file in each output that says how it was made. It is there as soon as the output is.
REPORT = "infer_accel_merge.json"

_OPTIONS = frozenset(
    {"weights", "method", "density", "rank", "seed", "dtype", "residue", "verify", "allow_unused"}
)


@dataclass(frozen=True, slots=True)
class MergeJob:
    """An output to make: a base, what is merged into it, and where.

    Parameters
    ----------
    base_dir, adapters, out_dir
        As for :func:`infer_accel.lora.merge_checkpoint`, on a file system that every machine has under these paths.
    options
        More of its options: weights, method, density, rank, seed, dtype, residue, verify, allow_unused.

    Raises
    ------
    ArgumentError
        No adapters, or an option that is not among these.
    """

    base_dir: str
    adapters: tuple[str, ...]
    out_dir: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.options) - _OPTIONS)
        if unknown:
            message = f"the options {', '.join(unknown)} came; allowed are {', '.join(sorted(_OPTIONS))}"
            raise ArgumentError(message, code="argument.merge_job")
        adapters: object = self.adapters
        if not adapters or isinstance(adapters, str):
            message = f"adapters={adapters!r} came; pass the paths of one or more"
            raise ArgumentError(message, code="argument.merge_job")
        # Paths as they were given may be objects; what travels and is compared is text.
        object.__setattr__(self, "adapters", tuple(os.fspath(path) for path in self.adapters))
        object.__setattr__(self, "base_dir", os.fspath(self.base_dir))
        object.__setattr__(self, "out_dir", os.fspath(self.out_dir))

    def digest(self) -> str:
        """Return what tells this output from others: the base's files, the adapters' contents, the options."""
        base = sorted((file.name, file.stat().st_size) for file in Path(self.base_dir).glob("*.safetensors*"))
        facts = {
            "base": base,
            "adapters": [Adapter.load(path).digest for path in self.adapters],
            "options": {name: self.options[name] for name in sorted(self.options)},
        }
        text = json.dumps(facts, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """What became of a :class:`MergeJob`."""

    job: MergeJob
    #: What the merge did; None where it failed.
    report: MergeReport | None = None
    #: Whether the output was there already, of the same job.
    was_there: bool = False
    #: Code and text of what went wrong; empty where nothing did.
    code: str = ""
    error: str = ""


def merge_one(job: MergeJob, num_threads: int | None = 1) -> MergeOutcome:
    """Make one output, or go on with it, or find it made. What goes wrong is in the outcome.

    The output appears under its name with its report in it, whole and on the disk, or not at all. A process that is
    killed leaves hidden directories beside it, from which the same job goes on, in this process or another one.
    """
    try:
        return _merge(job, num_threads)
    except InferAccelError as error:
        return MergeOutcome(job, code=error.code, error=str(error))
    except OSError as error:
        return MergeOutcome(job, code="storage.io", error=str(error))


def _merge(job: MergeJob, num_threads: int | None) -> MergeOutcome:
    digest = job.digest()
    output = Path(job.out_dir)
    if output.exists() and any(output.iterdir()):
        return MergeOutcome(job, _report_in(output, digest), was_there=True)
    # Merged under a hidden name first, so that the report is in the output when that appears.
    hidden = output.with_name(f".{output.name}.merged")
    if (hidden / REPORT).exists():
        report = _report_in(hidden, digest)
    else:
        if hidden.exists():  # killed between the merge and its report
            shutil.rmtree(hidden)
        merged = merge_checkpoint(
            job.base_dir,
            list(job.adapters),
            hidden,
            num_threads=num_threads,
            **job.options,  # type: ignore[arg-type]  # looked at above
        )
        report = dataclasses.replace(merged, output=str(output))
        _write(hidden / REPORT, json.dumps({"job": digest, "report": json.loads(report.to_json())}, indent=1))
    hidden.rename(output)
    _sync(output.parent)
    return MergeOutcome(job, report)


def _report_in(directory: Path, digest: str) -> MergeReport:
    try:
        content = json.loads((directory / REPORT).read_text(encoding="utf-8"))
        job, report = content["job"], MergeReport.from_json(json.dumps(content["report"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{directory} is there, and has no report of a merge that can be read: name another output ({error})"
        raise CheckpointError(message, code="checkpoint.output") from error
    if job != digest:
        message = f"{directory} is there, of another base, other adapters or options: name another output"
        raise CheckpointError(message, code="checkpoint.output")
    return report


def _write(path: Path, text: str) -> None:
    hidden = path.with_name(f".{path.name}.unfinished")
    with hidden.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    hidden.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
