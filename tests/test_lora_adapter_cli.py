"""The command that looks into adapters and checkpoints."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
from tests import adapter_files as files
from typer.testing import CliRunner

from infer_accel.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


A = "base_model.model.m.q.lora_A.weight"
B = "base_model.model.m.q.lora_B.weight"


def test_inspect_prints_an_adapter(tmp_path: Path) -> None:
    folder = files.write_adapter(tmp_path / "a", files.pair("m.0.q") | files.pair("m.1.q"))
    base = files.write_base(tmp_path / "base", {f"m.{i}.q.weight": files.ramp(5, 6) for i in range(2)})
    result = CliRunner().invoke(app, ["inspect", str(folder), "--base", str(base)])
    assert result.exit_code == 0, result.output
    assert "nothing is wrong" in result.output
    assert "linear" in result.output
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(folder), "--json"]).output)
    assert [layer["path"] for layer in facts["layers"]] == ["m.0.q", "m.1.q"]
    assert facts["problems"] == []


def test_inspect_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    folder = files.write_adapter(tmp_path / "a", files.with_value(A, np.nan) | files.pair("m.k"))
    base = files.write_base(tmp_path / "base", {"m.q.weight": files.ramp(5, 6)})
    result = CliRunner().invoke(app, ["inspect", str(folder), "--base", str(base), "--json"])
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert [problem["code"] for problem in facts["problems"]] == [
        "adapter.not_finite",
        "adapter.unknown_module",
    ]
    assert CliRunner().invoke(app, ["inspect", str(folder)]).exit_code == 1
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "missing")]).exit_code == 2
    assert CliRunner().invoke(app, ["inspect", str(folder), "--base", str(tmp_path / "no")]).exit_code == 2


def test_inspect_prints_a_checkpoint(tmp_path: Path) -> None:
    tensors = {f"m.{i}.q.weight": files.ramp(5, 6, dtype=np.float16) for i in range(4)} | {
        "norm": files.ramp(6)
    }
    base = files.write_base(tmp_path / "base", tensors, shards=2)
    result = CliRunner().invoke(app, ["inspect", str(base)])
    assert result.exit_code == 0, result.output
    assert "m.*.q.weight" in result.output
    assert "5 tensors" in result.output
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(base), "--json"]).output)
    assert {row["name"]: row["nbytes"] for row in facts["tensors"]} == {
        n: t.nbytes for n, t in tensors.items()
    }
    broken = base / "model-0.safetensors"
    os.truncate(broken, broken.stat().st_size - 1)
    assert CliRunner().invoke(app, ["inspect", str(base)]).exit_code == 1
    assert CliRunner().invoke(app, ["inspect", str(broken)]).exit_code == 1
    assert CliRunner().invoke(app, ["inspect", str(base), "--base", str(base)]).exit_code == 2
