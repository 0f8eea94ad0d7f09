"""`merge_checkpoint(method=…)`: what `combine` makes, merged; and taken back from the adapters that went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import read_checkpoint, small_adapter, small_model, write_adapter, write_checkpoint
from typer.testing import CliRunner

from infer_accel import errors, lora
from infer_accel.cli.app import app

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cat": {},
    "svd": {"rank": 3},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.5, "seed": 7},
    "dare_ties": {"density": 0.5, "seed": 7},
    "magnitude_prune": {"density": 0.3},
}
WEIGHTS = [0.75, -0.5]

Example = tuple[Path, list[Path]]


@pytest.fixture
def example(tmp_path: Path) -> Example:
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    first, second = small_adapter(rng, shards), small_adapter(rng, shards)
    # A module that only one of them changes.
    second.pop("model.layers.1.mlp.up_proj")
    adapters = [
        write_adapter(tmp_path / "first", first, alpha=8),
        write_adapter(tmp_path / "second", second, alpha=2),
    ]
    return base, adapters


def files_of(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_combined_adapter_is_merged(example: Example, tmp_path: Path, method: Any) -> None:
    base, adapters = example
    settings = METHODS[method]
    report = lora.merge_checkpoint(
        base, adapters, tmp_path / "out", weights=WEIGHTS, method=method, residue=True, **settings
    )
    one = lora.combine([lora.Adapter.load(path) for path in adapters], WEIGHTS, method=method, **settings)
    lora.merge_checkpoint(base, one, tmp_path / "expected")
    found, expected = read_checkpoint(tmp_path / "out"), read_checkpoint(tmp_path / "expected")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert report.method == method
    assert {name: getattr(report, name) for name in settings} == settings
    assert [adapter.weight for adapter in report.adapters] == WEIGHTS
    digests = [lora.Adapter.load(path).digest for path in adapters]
    assert [adapter.digest for adapter in report.adapters] == digests
    assert lora.MergeReport.from_json(report.to_json()) == report
    undone = lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "back", adapters=adapters)
    assert len(undone.undone) == len(report.tensors)
    assert files_of(tmp_path / "back") == files_of(base)


def test_the_sum_is_another(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    outputs = set()
    for method in ("sum", "linear", "ties"):
        settings = METHODS.get(method, {})
        report = lora.merge_checkpoint(base, adapters, tmp_path / method, method=method, **settings)
        assert report.method == method
        outputs.add(read_checkpoint(tmp_path / method)["model.layers.0.mlp.up_proj.weight"].tobytes())
    assert len(outputs) == 3


def test_adapters_in_another_order_are_refused(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    lora.merge_checkpoint(base, adapters, tmp_path / "out", method="cat", residue=True)
    with pytest.raises(errors.AdapterError, match="not the adapter that was merged"):
        lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "back", adapters=adapters[::-1])


def test_a_manifest_of_an_unknown_method_is_refused(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    lora.merge_checkpoint(base, adapters, tmp_path / "out", method="cat", residue=True)
    manifest = tmp_path / "out" / "residue" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"cat"', '"dog"'))
    with pytest.raises(errors.IntegrityError, match="dog"):
        lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "back", adapters=adapters)


def test_unfinished_work_of_another_method(example: Example, tmp_path: Path) -> None:
    base, adapters = example

    def stop(*_: int) -> None:
        raise InterruptedError

    settings = {"density": 0.5, "seed": 7}
    with pytest.raises(InterruptedError):
        lora.merge_checkpoint(base, adapters, tmp_path / "out", method="dare_ties", progress=stop, **settings)  # type: ignore[arg-type]
    with pytest.raises(errors.CheckpointError, match="another value of: method"):
        lora.merge_checkpoint(base, adapters, tmp_path / "out", method="dare_ties", density=0.5, seed=8)
    lora.merge_checkpoint(base, adapters, tmp_path / "out", method="dare_ties", **settings)  # type: ignore[arg-type]
    lora.merge_checkpoint(base, adapters, tmp_path / "whole", method="dare_ties", **settings)  # type: ignore[arg-type]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"method": "mean"}, "argument.method", "dare_ties"),
        ({"method": "ties"}, "argument.combine", "needs density"),
        ({"method": "ties", "density": 1.5}, "argument.combine", "density=1.5"),
        ({"method": "dare_ties", "density": 0.5}, "argument.combine", "needs seed"),
        ({"method": "cat", "density": 0.5}, "argument.combine", "no use for it"),
        ({"method": "svd", "rank": 0}, "argument.combine", "rank=0"),
        ({"density": 0.5}, "argument.combine", "plain sum"),
        ({"seed": 0}, "argument.combine", "plain sum"),
    ],
)
def test_settings_that_do_not_fit(
    example: Example, tmp_path: Path, options: dict[str, Any], code: str, text: str
) -> None:
    base, adapters = example
    with pytest.raises(errors.ArgumentError, match=text) as caught:
        lora.merge_checkpoint(base, adapters, tmp_path / "out", **options)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_adapters_that_cannot_be_combined(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    rng = np.random.default_rng(1)
    other = write_adapter(tmp_path / "other", small_adapter(rng, small_model(rng), rank=6))
    with pytest.raises(errors.AdapterError, match="equal ranks") as caught:
        lora.merge_checkpoint(base, [adapters[0], other], tmp_path / "out", method="linear")
    assert caught.value.code == "adapter.combine"


def test_deltas_without_a_place_are_told_of_their_adapter(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((4, 48)), rng.standard_normal((51, 4))
    layers = {"model.layers.7.self_attn.q_proj": (a.astype(np.float32), b.astype(np.float32))}
    other = write_adapter(tmp_path / "other", layers)
    several = [adapters[0], other]
    with pytest.raises(errors.AdapterError, match="allow_unused"):
        lora.merge_checkpoint(base, several, tmp_path / "out", method="cat")
    report = lora.merge_checkpoint(base, several, tmp_path / "out", method="cat", allow_unused=True)
    assert [len(adapter.unused) for adapter in report.adapters] == [0, 1]


def test_the_command_line(example: Example, tmp_path: Path) -> None:
    base, adapters = example
    out = tmp_path / "out"
    call = ["merge", str(base), *map(str, adapters), "-o", str(out), "--method", "dare_linear"]
    done = CliRunner().invoke(app, [*call, "--density", "0.5"])
    assert (done.exit_code, "needs seed" in done.output) == (2, True), done.output
    done = CliRunner().invoke(app, [*call, "--density", "0.5", "--seed", "3"])
    assert done.exit_code == 0, done.output
    assert "2 adapters combined by dare_linear" in done.output
    lora.merge_checkpoint(base, adapters, tmp_path / "same", method="dare_linear", density=0.5, seed=3)
    assert files_of(out) == files_of(tmp_path / "same")
