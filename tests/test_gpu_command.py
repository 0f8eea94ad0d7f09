"""`benches/gpu.py` without a GPU: which steps it makes, what it keeps, what it writes; commands are doubles."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.scripts import ROOT, loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

HASH = "0123456789abcdef"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return loaded("gpu")


def a_record(name: str = "A rehearsal, no GPU") -> dict[str, Any]:
    """Return a record of a device that there is not."""
    machine = {
        "cpu": "A processor",
        "cores": 16,
        "simd": {"detected": "avx2", "used": "avx2"},
        "system": "Linux",
        "python": "CPython 3.11",
        "date": "2026-01-01T00:00:00+00:00",
        "quick": False,
        "commit": None,
        "complete": True,
        "rivals": {"peft": "0.21"},
        "absent": {"vllm": "pip install vllm"},
        "limits": {"device copy": 2e12},
        "gpu": {"name": name, "torch": "2", "triton": "3", "cuda_runtime": "13", "driver_release": "600.1"},
    }
    row = {"part": "lora", "case": "cuda: merge 2 layers", "unit": "ms", "better": "lower", "ours": 2.0}
    row |= {"peers": {"torch addmm_": 4.0, "PEFT": 8.0}, "limit": 1.0, "efficiency": 0.5}
    return {"machine": machine, "rows": [row]}


class Doubles:
    """Commands by the word that tells them apart: exit code and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.answers: dict[str, Callable[[], tuple[int, str]]] = {
            "pytest": lambda: (0, "500 passed in 100.00s\n"),
            "memcheck": lambda: (0, "40 bodies\n"),
            "racecheck": lambda: (0, "40 bodies\n"),
            "bench": self.bench,
            "render_table.py": lambda: (0, ""),
            "run.py": lambda: (0, ""),
        }

    def bench(self) -> tuple[int, str]:
        (self.folder / "full").mkdir(parents=True, exist_ok=True)
        (self.folder / "full" / "record.json").write_text(json.dumps(a_record()))
        return 0, ""

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        word = next(word for word in self.answers if any(str(part).endswith(word) for part in command))
        self.made.append(word)
        return self.answers[word]()


@pytest.fixture
def doubles(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    found = Doubles(tmp_path / "work")
    monkeypatch.setattr(gpu.State, "run", lambda _, command, **__: found.run(command))
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "commit_of", lambda _: HASH)
    monkeypatch.setattr(gpu, "sanitizer", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "RECORDS", tmp_path / "benches" / "record" / "gpu")
    return found


def test_all_steps_are_made_once_and_end_in_a_record(
    gpu: ModuleType, doubles: Doubles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(doubles.folder)]
    assert gpu.main(arguments) == gpu.DONE
    assert doubles.made[:4] == ["pytest", "memcheck", "racecheck", "bench"]
    path = tmp_path / "benches" / "record" / "gpu" / "a-rehearsal-no-gpu.json"
    document = json.loads(path.read_text())
    assert document["machine"]["commit"] == HASH
    assert document["machine"]["checks"] == {
        "tests": "500 passed in 100.00s",
        "memcheck": "40 bodies, nothing found",
        "racecheck": "40 bodies, nothing found",
    }
    assert document["rows"] == a_record()["rows"]
    assert "wrote benches/record/gpu/a-rehearsal-no-gpu.json" in capsys.readouterr().out
    doubles.made.clear()
    assert gpu.main(arguments) == gpu.DONE
    assert doubles.made == ["render_table.py", *doubles.made[1:]], "what passed is not made again"
    assert len(doubles.made) <= 2


@pytest.mark.parametrize("step", ["pytest", "memcheck", "racecheck", "bench"])
def test_what_is_wrong_keeps_no_record_and_stops_nothing(
    step: str, gpu: ModuleType, doubles: Doubles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = doubles.answers[step]
    doubles.answers[step] = lambda: (2, "1 failed, 499 passed\n")
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.WRONG
    assert doubles.made == ["pytest", "memcheck", "racecheck", "bench"]
    assert not (tmp_path / "benches").exists()
    assert "WRONG: " in capsys.readouterr().out
    doubles.answers[step] = right
    doubles.made.clear()
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    assert doubles.made[0] == step, "what passed is not made again"
    assert "render_table.py" in doubles.made


def test_the_end_of_the_time_is_no_failure(gpu: ModuleType, doubles: Doubles, tmp_path: Path) -> None:
    def over() -> tuple[int, str]:
        raise gpu.OutOfTimeError

    right, doubles.answers["racecheck"] = doubles.answers["racecheck"], over
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.UNFINISHED
    assert not (tmp_path / "benches").exists()
    doubles.answers["racecheck"] = right
    doubles.made.clear()
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    assert doubles.made[:2] == ["racecheck", "bench"]


def test_a_record_that_is_not_complete_goes_on(gpu: ModuleType, doubles: Doubles) -> None:
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    path = doubles.folder / "full" / "record.json"
    document = a_record()
    document["machine"]["complete"] = False
    path.write_text(json.dumps(document))
    doubles.made.clear()
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    assert doubles.made[0] == "bench"


def test_another_commit_begins_again(
    gpu: ModuleType, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    monkeypatch.setattr(gpu, "commit_of", lambda _: "another")
    doubles.made.clear()
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    assert doubles.made[:4] == ["pytest", "memcheck", "racecheck", "bench"]
    assert (doubles.folder / "full" / f"record-{HASH[:10]}.json").exists(), "what was measured before is kept"


def test_without_a_sanitizer_one_line_says_so(
    gpu: ModuleType,
    doubles: Doubles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "sanitizer", lambda: None)
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    said = [line for line in capsys.readouterr().out.splitlines() if "compute-sanitizer" in line]
    assert said == ["compute-sanitizer is not here: it comes with the CUDA toolkit; the step is left out"]
    document = json.loads(next((tmp_path / "benches/record/gpu").glob("*.json")).read_text())
    assert document["machine"]["checks"]["memcheck"] == "not run: compute-sanitizer is absent"
    monkeypatch.setattr(gpu, "sanitizer", lambda: "/opt/compute-sanitizer")
    doubles.made.clear()
    assert gpu.main(["--work", str(doubles.folder)]) == gpu.DONE
    assert doubles.made[0] == "memcheck", "a step that was left out is made when it can be"


def test_a_quick_run_is_no_record(gpu: ModuleType, doubles: Doubles, tmp_path: Path) -> None:
    assert gpu.main(["--work", str(doubles.folder), "--quick"]) == gpu.DONE
    assert doubles.made == ["pytest", "memcheck", "racecheck", "bench"]
    assert not (tmp_path / "benches").exists()


def test_a_command_is_ended_when_its_time_is_over(gpu: ModuleType, tmp_path: Path) -> None:
    state = gpu.State(tmp_path, HASH, time.monotonic() + gpu._SPARE_SECONDS + 1.0)
    begin = time.monotonic()
    with pytest.raises(gpu.OutOfTimeError):
        state.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"])
    assert time.monotonic() - begin < 30
    state.deadline = float("inf")
    code, said = state.run(
        [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(2)"], WORD="a"
    )
    assert (code, said) == (2, "a\n")


def test_a_package_of_another_clone_is_noticed(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import infer_accel

    assert gpu.other_files() == []
    other = tmp_path / "infer_accel"
    (other / "kernels").mkdir(parents=True)
    (other / "__init__.py").write_bytes(Path(infer_accel.__file__).read_bytes())
    (other / "kernels" / "page_copy.py").write_text("changed")
    monkeypatch.setattr(infer_accel, "__file__", str(other / "__init__.py"))
    found = gpu.other_files()
    assert "kernels/page_copy.py" in found
    assert "__init__.py" not in found


def test_without_a_gpu_one_line_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, ROOT / "benches" / "gpu.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "nothing was done" in done.stdout


def test_a_record_is_rendered_for_every_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = loaded("render_table")
    folder = tmp_path / "benches" / "record" / "gpu"
    folder.mkdir(parents=True)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "RECORDS", folder.parent)
    page = "before\n<!-- table: gpu {} -->\nold\n<!-- end of table -->\n<!-- table: short -->\n<!-- end of table -->\n"
    empty = render.rendered(page.format("full"), tmp_path / "README.md")
    assert "No record of a GPU is committed yet; `make gpu`" in empty
    for name in ("One GPU", "Other GPU"):
        document = a_record(name)
        document["machine"] |= {
            "commit": HASH,
            "checks": {"tests": "500 passed", "memcheck": "nothing found"},
        }
        (folder / f"{name}.json").write_text(json.dumps(document))
    for form in ("short", "full"):
        text = render.rendered(page.format(form), tmp_path / "README.md")
        assert text.index("**One GPU**, driver 600.1, torch 2, Triton 3, CUDA 13") < text.index(
            "**Other GPU**"
        )
        assert "commit 0123456789 (tests: 500 passed; memcheck: nothing found)" in text
        assert "| cuda: merge 2 layers | **2.00** ms |" in text
        assert "×2.00" in text
        assert "No record is committed yet" in text, "a record of a GPU is none of the processor"
