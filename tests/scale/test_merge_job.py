"""One output of many, without Ray: what lies there decides what is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.scale.needs import package

from infer_accel.integrations._merge_job import REPORT, MergeJob, merge_one
from infer_accel.lora import merge_checkpoint


@pytest.fixture
def job(tmp_path: Path) -> MergeJob:
    package("ml_dtypes")
    from tests.checkpoints import write_adapter, write_checkpoint

    chance = np.random.default_rng(2)
    name = "model.layers.0.self_attn.q_proj"
    write_checkpoint(tmp_path / "base", [{f"{name}.weight": np.ones((16, 32), np.float32)}])
    for number in range(2):
        matrices = [chance.normal(size=shape).astype(np.float32) for shape in ((4, 32), (16, 4))]
        write_adapter(tmp_path / f"adapter-{number}", {name: (matrices[0], matrices[1])})
    return MergeJob(str(tmp_path / "base"), (str(tmp_path / "adapter-0"),), str(tmp_path / "out"))


def shard(folder: str | Path) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_an_output_is_made_once(job: MergeJob, tmp_path: Path) -> None:
    first, second = merge_one(job), merge_one(job)
    assert (first.error, second.error) == ("", "")
    assert (first.was_there, second.was_there) == (False, True)
    assert first.report == second.report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter-0", "adapter-1", "base", "out"]
    merge_checkpoint(job.base_dir, list(job.adapters), tmp_path / "plain")
    assert shard(job.out_dir) == shard(tmp_path / "plain")


def test_another_job_does_not_find_it(job: MergeJob, tmp_path: Path) -> None:
    merge_one(job)
    for other in (
        MergeJob(job.base_dir, (str(tmp_path / "adapter-1"),), job.out_dir),
        MergeJob(job.base_dir, job.adapters, job.out_dir, {"dtype": "float16"}),
    ):
        outcome = merge_one(other)
        assert (outcome.code, outcome.report) == ("checkpoint.output", None)
    assert merge_one(job).was_there


@pytest.mark.parametrize("reported", [False, True])
def test_killed_before_it_took_its_name(job: MergeJob, tmp_path: Path, reported: bool) -> None:
    merge_one(job)
    whole = shard(job.out_dir)
    hidden = tmp_path / ".out.merged"
    Path(job.out_dir).rename(hidden)
    if not reported:
        (hidden / REPORT).rename(hidden / f".{REPORT}.unfinished")
    outcome = merge_one(job)
    assert (outcome.error, outcome.was_there) == ("", False)
    assert shard(job.out_dir) == whole
    assert not hidden.exists()
    assert merge_one(job).was_there


def test_hidden_work_of_another_job_is_refused(job: MergeJob, tmp_path: Path) -> None:
    merge_one(job)
    Path(job.out_dir).rename(tmp_path / ".out.merged")
    outcome = merge_one(MergeJob(job.base_dir, (str(tmp_path / "adapter-1"),), job.out_dir))
    assert outcome.code == "checkpoint.output"
    assert (tmp_path / ".out.merged").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"job": 1, "report": {}}', "\ud800"])
def test_a_report_that_is_none(job: MergeJob, content: str) -> None:
    merge_one(job)
    (Path(job.out_dir) / REPORT).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert merge_one(job).code == "checkpoint.output"


def test_an_empty_directory_is_an_output_to_be(job: MergeJob) -> None:
    Path(job.out_dir).mkdir()
    assert merge_one(job).error == ""
    content: dict[str, Any] = json.loads((Path(job.out_dir) / REPORT).read_text())
    assert set(content) == {"job", "report"}
