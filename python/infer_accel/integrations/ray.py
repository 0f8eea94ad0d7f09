"""Bulk work on the machines of a Ray cluster: counting, encoding, merging.

Needs Ray: ``pip install 'infer-accel[ray]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError

from infer_accel.errors import ArgumentError
from infer_accel.integrations._bulk import CountTokens, EncodeTexts
from infer_accel.integrations._merge_job import MergeJob, MergeOutcome, merge_one

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from ray.data import Dataset

__all__ = [
    "CountTokens",
    "EncodeTexts",
    "MergeJob",
    "MergeOutcome",
    "count_tokens",
    "encode",
    "merge_adapters",
    "merge_one",
]


def count_tokens(
    dataset: Dataset,
    tokenizer: str | os.PathLike[str],
    *,
    column: str = "text",
    output: str = "tokens",
    add_special_tokens: bool = True,
    batch_rows: int | None = 4096,
    num_cpus: float = 1.0,
) -> Dataset:
    """Add the number of tokens of each text to a dataset; nothing is counted until that is consumed.

    Parameters
    ----------
    dataset
        A dataset of Ray with a column of texts.
    tokenizer, column, output, add_special_tokens
        As for :class:`CountTokens`.
    batch_rows
        Texts of a call; ``None`` for a whole block.
    num_cpus
        Processors of a call, and so its threads.

    Returns
    -------
    ray.data.Dataset
        The dataset with an int64 column more. The same whatever the number of workers, and whichever are lost.

    Examples
    --------
    >>> import ray
    >>> texts = ray.data.read_parquet("s3://bucket/texts/")  # doctest: +SKIP
    >>> count_tokens(texts, "tokenizer.json").sum("tokens")  # doctest: +SKIP
    1234567890
    """
    call = CountTokens(
        tokenizer,
        column=column,
        output=output,
        add_special_tokens=add_special_tokens,
        num_threads=max(1, int(num_cpus)),
    )
    return _mapped(dataset, call, batch_rows, num_cpus)


def encode(
    dataset: Dataset,
    tokenizer: str | os.PathLike[str],
    *,
    column: str = "text",
    output: str = "tokens",
    add_special_tokens: bool = True,
    batch_rows: int | None = 4096,
    num_cpus: float = 1.0,
) -> Dataset:
    """Add the token ids of each text to a dataset, as ``large_list<int32>``; else as :func:`count_tokens`."""
    call = EncodeTexts(
        tokenizer,
        column=column,
        output=output,
        add_special_tokens=add_special_tokens,
        num_threads=max(1, int(num_cpus)),
    )
    return _mapped(dataset, call, batch_rows, num_cpus)


def _mapped(
    dataset: Dataset, call: CountTokens | EncodeTexts, batch_rows: int | None, num_cpus: float
) -> Dataset:
    return dataset.map_batches(
        call, batch_format="pyarrow", zero_copy_batch=True, batch_size=batch_rows, num_cpus=num_cpus
    )


def merge_adapters(
    jobs: Sequence[MergeJob],
    *,
    num_cpus: float = 1.0,
    max_retries: int = 3,
    on_outcome: Callable[[MergeOutcome], object] | None = None,
) -> list[MergeOutcome]:
    """Merge many adapters into bases, one task an output, on whatever machines the cluster has.

    Each output appears whole, with a report in it (``infer_accel_merge.json``), or not at all. A task whose worker is
    lost is done again elsewhere and goes on from what lies on the disk; so does the same call after the whole cluster
    was lost, and finds what was finished.

    Parameters
    ----------
    jobs
        The outputs to make, on a file system that all machines share.
    num_cpus
        Processors of a task, and so its threads.
    max_retries
        How often a task is done again whose worker was lost.
    on_outcome
        Called with each outcome as it comes.

    Returns
    -------
    list of MergeOutcome
        One for each job, in their order. A job that fails is an outcome with `code` and `error`, and stops no other.

    Raises
    ------
    ArgumentError
        Two jobs have the same output.

    Examples
    --------
    >>> jobs = [MergeJob("base", (f"adapters/{name}",), f"merged/{name}") for name in ("a", "b")]
    >>> [outcome.error for outcome in merge_adapters(jobs)]  # doctest: +SKIP
    ['', '']
    """
    outputs = [job.out_dir for job in jobs]
    if len(set(outputs)) != len(outputs):
        twice = sorted({path for path in outputs if outputs.count(path) > 1})
        raise ArgumentError(f"two jobs make {', '.join(twice)}", code="argument.merge_job")
    task = ray.remote(merge_one).options(num_cpus=num_cpus, max_retries=max_retries)
    waiting = {task.remote(job, max(1, int(num_cpus))): number for number, job in enumerate(jobs)}
    outcomes: dict[int, MergeOutcome] = {}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        number = waiting.pop(done)
        try:
            outcome: MergeOutcome = ray.get(done)
        except RayError as error:
            outcome = MergeOutcome(jobs[number], code="internal", error=str(error))
        outcomes[number] = outcome
        if on_outcome is not None:
            on_outcome(outcome)
    return [outcomes[number] for number in range(len(jobs))]
