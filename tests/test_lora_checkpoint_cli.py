"""`infer-accel merge` and `infer-accel unmerge`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints import small_adapter, small_model, write_adapter, write_checkpoint
from typer.testing import CliRunner

from infer_accel import lora
from infer_accel.cli.app import app


@pytest.fixture
def example(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    return str(base), str(write_adapter(tmp_path / "adapter", small_adapter(rng, shards)))


def test_there_and_back(example: tuple[str, str], tmp_path: Path) -> None:
    base, adapter = example
    out, record = tmp_path / "out", tmp_path / "report.json"
    done = CliRunner().invoke(
        app,
        [
            "merge",
            base,
            adapter,
            adapter,
            "-o",
            str(out),
            "--weights",
            "1,0.5",
            "--residue",
            "--json",
            str(record),
        ],
    )
    assert done.exit_code == 0, done.output
    for text in ("q_proj", "merged", "survived", "4 tensors changed, 3 went through", "verified:"):
        assert text in done.output
    report = lora.MergeReport.from_json(record.read_text())
    assert [merged.weight for merged in report.adapters] == [1.0, 0.5]
    back = tmp_path / "back"
    done = CliRunner().invoke(app, ["unmerge", str(out), adapter, adapter, "-o", str(back)])
    assert done.exit_code == 0, done.output
    assert "4 tensors came back by arithmetic" in done.output
    for path in Path(base).iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()


def test_dry_run(example: tuple[str, str], tmp_path: Path) -> None:
    base, adapter = example
    done = CliRunner().invoke(app, ["merge", base, adapter, "-o", str(tmp_path / "out"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.output
    assert not (tmp_path / "out").exists()


def test_a_report_replaces_no_file_of_the_merge(example: tuple[str, str], tmp_path: Path) -> None:
    base, adapter = example
    before = {path: path.read_bytes() for folder in example for path in Path(folder).iterdir()}
    out = tmp_path / "out"
    for record in (*before, Path(base, "new.json"), out, out / "report.json"):
        done = CliRunner().invoke(app, ["merge", base, adapter, "-o", str(out), "--json", str(record)])
        assert done.exit_code == 2
        assert "is part of" in done.output
    assert {path: path.read_bytes() for folder in example for path in Path(folder).iterdir()} == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--weights", "1,x"], "no finite number"),
        (["--weights", "nan"], "no finite number"),
        (["--weights", "1,2"], "argument.weights"),
        (["--dtype", "int8"], "dtype.output"),
        (["--json", "/no/such/directory/x"], "no directory"),
    ],
)
def test_wrong_calls_leave_with_two(
    example: tuple[str, str], tmp_path: Path, options: list[str], text: str
) -> None:
    base, adapter = example
    done = CliRunner().invoke(app, ["merge", base, adapter, "-o", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert text in done.output
    assert not (tmp_path / "out").exists()
