"""The notebooks run from top to bottom, and what is committed of them is what such a run shows."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel.bench.rows import Row, write_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infer_accel.bench.rows import Json

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(path: Path) -> Any:
    execute: Callable[[Path], Any] = runpy.run_path(str(FOLDER / "run.py"))["run"]
    return execute(path)


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.fixture(autouse=True)
def without_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the stand-ins: what a real model says is what is committed, and takes longer."""
    monkeypatch.setenv("INFER_ACCEL_TEST_CACHE", str(tmp_path / "absent"))
    for name in ("MODEL", "ADAPTER", "TRACE", "RECORD"):
        monkeypatch.delenv(name, raising=False)


def test_all_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        "cpu_benchmarks",
        "gpu_benchmarks",
        "merging_without_regret",
        "prefix_caching",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_a_whole_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) >= 1
    kinds = {output.output_type for output in outputs(notebook)}
    assert "error" not in kinds
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))
    shown = "".join(output.get("text", "") for output in outputs(notebook))
    assert not re.search(r"/(home|root|tmp|work|Users)/", shown), "a path of one machine"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    fresh = run(path)
    assert pictures(fresh) >= pictures(committed) > 0
    assert not any(output.get("name") == "stderr" for output in outputs(fresh))


def text(notebook: Any) -> str:
    return "".join(output.get("text", "") for output in outputs(notebook))


def first_cells(path: Path, count: int, before: str = "") -> Any:
    """Return a notebook that has some code of its own, and then the first cells of another."""
    cells = nbformat.read(path, as_version=4).cells[:count]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(before), *cells])


def test_a_record_of_a_gpu_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row("kvcache", "cuda: page_copy 16 KiB pages", "GB/s", "higher", 90.0, {"torch": 60.0}, 100.0, 0.9),
        Row("lora", "cuda: merge", "ms", "lower", 4.0, {}, None, None),
        Row("lora", "merge on the CPU", "ms", "lower", 4.0, {"numpy": 9.0}, None, None),
    ]
    machine: dict[str, Json] = {
        "date": "2026-11-22",
        "gpu": {"name": "a GPU that is not there", "driver": "1.2", "cuda": None},
    }
    write_document(tmp_path / "record.json", machine, rows)
    monkeypatch.setenv("RECORD", str(tmp_path / "record.json"))
    nbformat.write(first_cells(FOLDER / "gpu_benchmarks.ipynb", 4), tmp_path / "cut.ipynb")
    shown = run(tmp_path / "cut.ipynb")
    assert "name a GPU that is not there, driver 1.2" in text(shown)
    assert "No record" not in text(shown)
    assert pictures(shown) == 1


def test_without_torch_the_gpu_notebook_says_so(tmp_path: Path) -> None:
    absent = "import sys\nsys.modules['torch'] = sys.modules['triton'] = None"
    nbformat.write(first_cells(FOLDER / "gpu_benchmarks.ipynb", 99, absent), tmp_path / "absent.ipynb")
    shown = run(tmp_path / "absent.ipynb")
    assert "torch is not installed" in text(shown)
    assert pictures(shown) == 2


def test_a_cell_that_fails_is_noticed(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    with pytest.raises(Exception, match="AssertionError"):
        run(tmp_path / "broken.ipynb")
