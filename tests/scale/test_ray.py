"""Bulk work on two workers of Ray: the same as one process, and the same when a worker is killed in the middle."""

from __future__ import annotations

import hashlib
import runpy
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from tests.scale.cluster import kill_worker, listening_addresses, two_workers
from tests.scale.needs import package
from tests.scale.test_scale_examples import EXAMPLES
from tests.scale.texts import texts, tokenizer_file

from infer_accel import errors
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Ray's own, about its own.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning", "UserWarning")
]

#: 127.0.0.1 and ::1, and the first as an address of the sixth version.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with two_workers() as running:
        yield running


@pytest.fixture(scope="module")
def tables() -> list[Any]:
    """Return eight tables: as many blocks, for two workers."""
    pyarrow = package("pyarrow")
    parts = [texts(400, seed=part) for part in range(8)]
    return [
        pyarrow.table({"number": range(1000 * part, 1000 * part + 400), "text": some})
        for part, some in enumerate(parts)
    ]


@pytest.fixture
def dataset(ray: Any, tables: list[Any]) -> Any:
    return package("ray.data").from_arrow(tables)


@pytest.fixture(scope="module")
def alone(tables: list[Any]) -> dict[int, list[int] | None]:
    """The ids of each text, by one process."""
    tokenizer = Tokenizer.from_file(tokenizer_file())
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        row["number"]: None if row["text"] is None else tokenizer.encode_list(row["text"]) for row in rows
    }


def test_nothing_listens_on_the_network(ray: Any) -> None:
    addresses = listening_addresses()
    assert addresses
    assert addresses <= LOOPBACK


def test_counts_of_two_workers(dataset: Any, alone: dict[int, list[int] | None]) -> None:
    from infer_accel.integrations.ray import count_tokens

    rows = count_tokens(dataset, tokenizer_file(), batch_rows=64).take_all()
    assert {row["number"]: row["tokens"] for row in rows} == {
        number: None if ids is None else len(ids) for number, ids in alone.items()
    }


def test_ids_of_two_workers(dataset: Any, alone: dict[int, list[int] | None]) -> None:
    from infer_accel.integrations.ray import encode

    rows = encode(dataset, tokenizer_file(), output="ids", batch_rows=None).take_all()
    got = {row["number"]: None if row["ids"] is None else list(row["ids"]) for row in rows}
    assert got == alone


def test_a_worker_killed_while_it_counts(
    dataset: Any, alone: dict[int, list[int] | None], tmp_path: Path
) -> None:
    from infer_accel.integrations.ray import count_tokens

    marker = str(tmp_path / "killed")

    def die_once(batch: Any) -> Any:
        import os
        import signal

        if 3100 in batch["number"].to_pylist():
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return batch
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    dataset = count_tokens(dataset, tokenizer_file(), batch_rows=64)
    rows = dataset.map_batches(die_once, batch_format="pyarrow", batch_size=64).take_all()
    assert Path(marker).exists(), "no worker was killed"
    assert {row["number"]: row["tokens"] for row in rows} == {
        number: None if ids is None else len(ids) for number, ids in alone.items()
    }


def test_the_work_is_done_by_two(dataset: Any, tmp_path: Path) -> None:
    from infer_accel.integrations.ray import CountTokens

    count, folder = CountTokens(tokenizer_file()), str(tmp_path)

    def who(batch: Any) -> Any:
        import os
        import pathlib
        import time

        import pyarrow as pa

        here = pathlib.Path(folder)
        (here / str(os.getpid())).touch()
        while len(list(here.iterdir())) < 2:  # the other worker comes, or this test never ends
            time.sleep(0.01)
        counted = count(batch)
        return counted.append_column("worker", pa.array([os.getpid()] * len(counted)))

    rows = dataset.map_batches(who, batch_format="pyarrow", batch_size=200).take_all()
    assert len({row["worker"] for row in rows}) >= 2


def example(name: str) -> Callable[..., Any]:
    """Return the main function of an example, which finds this Ray already running."""
    main = runpy.run_path(str(EXAMPLES / name))["main"]

    def on_this_ray(*arguments: str) -> Any:
        with mock.patch("ray.init"):
            return main(*arguments)

    return on_this_ray


def test_the_example_that_counts(
    ray: Any,
    tables: list[Any],
    alone: dict[int, list[int] | None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parquet = package("pyarrow.parquet")
    (tmp_path / "texts").mkdir()
    for part, table in enumerate(tables):
        parquet.write_table(table, tmp_path / "texts" / f"{part}.parquet")
    example("count_ray.py")(str(tokenizer_file()), str(tmp_path / "texts"), str(tmp_path / "counted"))
    tokens = sum(len(ids) for ids in alone.values() if ids is not None)
    assert f"3200 texts, {tokens} tokens" in capsys.readouterr().out
    counted = parquet.read_table(tmp_path / "counted").to_pylist()
    assert {row["number"]: row["tokens"] for row in counted} == {
        number: None if ids is None else len(ids) for number, ids in alone.items()
    }


# Merging ----------------------------------------------------------------------------------------------------

SHAPES = {"q_proj": (768, 768), "v_proj": (256, 768), "down_proj": (768, 2048)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base and six adapters."""
    package("ml_dtypes")
    from tests.checkpoints import write_adapter, write_checkpoint

    folder: Path = tmp_path_factory.mktemp("model")
    chance = np.random.default_rng(5)
    names = [f"model.layers.{layer}.self_attn.{name}" for layer in range(6) for name in SHAPES]
    shapes = {name: SHAPES[name.rpartition(".")[2]] for name in names}
    weights = {
        f"{name}.weight": chance.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    half = len(weights) // 2
    write_checkpoint(
        folder / "base", [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    )
    for number in range(6):
        layers = {
            name: (
                chance.normal(size=(8, shape[1])).astype(np.float32),
                chance.normal(size=(shape[0], 8)).astype(np.float32),
            )
            for name, shape in shapes.items()
        }
        write_adapter(folder / f"adapter-{number}", layers)
    return folder


def jobs(model: Path, output: Path) -> list[Any]:
    from infer_accel.integrations.ray import MergeJob

    one = [
        MergeJob(str(model / "base"), (str(model / f"adapter-{n}"),), str(output / str(n))) for n in range(6)
    ]
    both = (str(model / "adapter-0"), str(model / "adapter-1"))
    options = {"weights": [0.25, 0.75], "dtype": "bfloat16"}
    return [*one, MergeJob(str(model / "base"), both, str(output / "both"), options)]


def contents(output: Path) -> dict[str, str]:
    """Return the digest of each file of the outputs but their reports, and that nothing else lies there."""
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    return {
        str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(output.rglob("*"))
        if file.is_file() and file.name != "infer_accel_merge.json"
    }


@pytest.fixture(scope="module")
def merged_alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process merges, without any of this."""
    from infer_accel.lora import merge_checkpoint

    package("ray")
    output: Path = tmp_path_factory.mktemp("alone")
    for job in jobs(model, output):
        merge_checkpoint(job.base_dir, list(job.adapters), job.out_dir, **job.options)
    return contents(output)


def test_merges_of_two_workers(ray: Any, model: Path, merged_alone: dict[str, str], tmp_path: Path) -> None:
    from infer_accel.integrations.ray import merge_adapters

    seen: list[Any] = []
    outcomes = merge_adapters(jobs(model, tmp_path), on_outcome=seen.append)
    assert [outcome.error for outcome in outcomes] == [""] * 7
    assert [outcome.job for outcome in outcomes] == jobs(model, tmp_path)
    assert len(seen) == 7
    assert contents(tmp_path) == merged_alone
    assert all(outcome.report and outcome.report.output == outcome.job.out_dir for outcome in outcomes)
    again = merge_adapters(jobs(model, tmp_path))
    assert all(outcome.was_there and outcome.report is not None for outcome in again)
    assert [outcome.report for outcome in again] == [outcome.report for outcome in outcomes]


def test_workers_killed_while_they_merge(
    ray: Any, model: Path, merged_alone: dict[str, str], tmp_path: Path
) -> None:
    from infer_accel.integrations.ray import merge_adapters

    ended = threading.Event()
    killed: list[str] = []

    def kill() -> None:
        while not ended.is_set() and len(killed) < 3:
            hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
            if hidden and kill_worker("merge_one"):
                killed.append(hidden[0])
                time.sleep(0.3)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = merge_adapters(jobs(model, tmp_path), max_retries=10)
    ended.set()
    killer.join()
    assert killed, "no worker was killed"
    assert [outcome.error for outcome in outcomes] == [""] * 7
    assert contents(tmp_path) == merged_alone


def test_the_example_that_merges(
    ray: Any,
    model: Path,
    merged_alone: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for said in (": merged", ": there already"):
        assert example("merge_ray.py")(str(model / "base"), str(model), str(tmp_path / "merged")) == 0
        assert capsys.readouterr().out.count(said) == 6
    names = {f"{number}/": f"adapter-{number}/" for number in range(6)}
    wanted = {
        name.replace(short, long, 1): digest
        for name, digest in merged_alone.items()
        for short, long in names.items()
        if name.startswith(short)
    }
    assert contents(tmp_path / "merged") == wanted


def test_a_job_that_fails_stops_no_other(ray: Any, model: Path, tmp_path: Path) -> None:
    from infer_accel.integrations.ray import MergeJob, merge_adapters

    base, adapter = str(model / "base"), str(model / "adapter-0")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("somebody's")
    outcomes = merge_adapters(
        [
            MergeJob(base, (adapter,), str(tmp_path / "good")),
            MergeJob(base, (str(model / "none"),), str(tmp_path / "no adapter")),
            MergeJob(str(model / "none"), (adapter,), str(tmp_path / "no base")),
            MergeJob(base, (adapter,), str(tmp_path / "taken")),
            MergeJob(base, (adapter,), str(tmp_path / "odd"), {"dtype": "float9"}),
        ]
    )
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, True, True, True]
    assert outcomes[3].code == "checkpoint.output"
    assert [outcome.report is None for outcome in outcomes] == [False, True, True, True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "taken"]


def test_jobs_that_cannot_be(ray: Any, model: Path) -> None:
    from infer_accel.integrations.ray import MergeJob, merge_adapters

    for adapters, options in (((), {}), ("name", {}), (("a",), {"progress": print})):
        with pytest.raises(errors.ArgumentError) as caught:
            MergeJob("base", adapters, "out", options)  # type: ignore[arg-type]
        assert caught.value.code == "argument.merge_job"
    with pytest.raises(errors.ArgumentError, match="two jobs"):
        merge_adapters([MergeJob("b", ("a",), "out"), MergeJob("b", ("c",), "out")])
