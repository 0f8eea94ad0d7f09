"""The bench of GPUs, rehearsed small in the interpreter: every case is validated and timed; without a GPU, one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from infer_accel.bench import cuda, parts
from infer_accel.bench.cuda import autotune
from infer_accel.bench.cuda.device import Gpu
from infer_accel.bench.harness import Bench
from infer_accel.cli.app import app
from infer_accel.kernels import _threshold

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take pages of a few tiles: the interpreter is no faster where there is nothing new to see."""
    monkeypatch.setattr("infer_accel.bench.cuda.pages._PAGES", (4 << 10, 16 << 10, 32 << 10, 64 << 10))
    monkeypatch.setattr("infer_accel.bench.cuda.pages._LINK_PAGES", (8 << 10, 16 << 10, 32 << 10))


def rehearsal() -> Gpu:
    return Gpu(torch.device("cpu"), call_bytes=64 << 10, calls=1)


def test_every_case_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_accel.bench.harness._ROUNDS_AT_LEAST", 1)
    gpu, bench = rehearsal(), Bench(quick=True, seconds_a_case=0.01)
    outcome = parts.run_parts({part: cuda.source(part, gpu) for part in cuda.PARTS}, bench)
    assert outcome.failures == []
    assert outcome.left_out == {}
    assert {row.part for row in outcome.rows} == set(cuda.PARTS)
    for row in outcome.rows:
        assert row.case.startswith("cuda: ")
        assert row.peers
        assert row.efficiency is not None
    assert {"device copy", "link, host to device", "link, device to host"} <= set(bench.limits.measured)
    assert gpu.gemm_rate(bench.limits) > 0


def test_a_wrong_kernel_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_accel.kernels.page_copy.page_copy", lambda *_, **__: None)
    monkeypatch.setattr("infer_accel.kernels.merge_weights.merge_many", lambda *_: None)
    monkeypatch.setattr("infer_accel.kernels.apply_adapters.apply_adapters", lambda *_, **__: None)
    bench = Bench(quick=True, seconds_a_case=0.01)
    outcome = parts.run_parts({part: cuda.source(part, rehearsal()) for part in cuda.PARTS}, bench)
    assert [row.case for row in outcome.rows] == ["cuda: page_gather 16 KiB pages"]
    assert len(outcome.failures) > 5


def test_a_record_says_what_it_was_measured_on() -> None:
    found = rehearsal().describe()
    assert found["torch"] == torch.__version__
    assert {"name", "triton", "cuda_bindings", "cuda_runtime"} <= set(found)


def test_a_threshold_is_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_TRIES", 1)
    monkeypatch.setattr(autotune, "_LENGTHS", (256, 512))
    path = tmp_path / "devices.json"
    threshold, seconds, kept = autotune.autotune(Gpu(torch.device("cpu"), call_bytes=1 << 12, calls=1), path)
    assert kept == path
    assert set(seconds) == {256, 512}
    assert _threshold.read_threshold("interpreter", path) == threshold
    with _threshold.forced(5):
        assert _threshold.read_threshold("interpreter", path) == 5
    assert autotune.choose({1: (1.0, 2.0), 2: (1.0, 0.5), 3: (2.0, 1.0)}) == 2
    assert autotune.choose({1: (2.0, 1.0), 2: (1.0, 2.0), 3: (2.0, 1.0)}) == 3


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["kvcache", "--autotune"]])
def test_without_a_gpu_one_line_says_so(arguments: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert ("--autotune" if "--autotune" in arguments else "--device cuda") in result.stderr


def test_a_part_without_gpu_code_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "tokenize", "--device", "cuda"])
    assert result.exit_code == 2
    assert "CPU alone" in result.stderr
