"""The bench of GPUs, rehearsed small in the interpreter: every case is validated and timed; without a GPU, one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.soak import is_long
from typer.testing import CliRunner

from infer_accel.bench import cuda, harness, parts
from infer_accel.bench.cuda import applying, autotune, clock, merging, paging, plan
from infer_accel.bench.cuda.device import DeviceLostError, Gpu
from infer_accel.bench.harness import Bench
from infer_accel.bench.rivals import Rivals
from infer_accel.cli.app import app
from infer_accel.kernels import _threshold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infer_accel.bench.cuda.plan import DeviceRow


#: Before anything is made shorter.
FORMATS = merging._FORMATS


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take pages and matrices of a tile or two, once: more of them would show nothing new."""
    monkeypatch.setattr(paging, "_PAGES", (4 << 10, 8 << 10, 16 << 10, 32 << 10))
    monkeypatch.setattr("infer_accel.bench.cuda.linking._PAGES", (4 << 10, 8 << 10, 16 << 10))
    monkeypatch.setattr("infer_accel.bench.cuda.merging._REHEARSED", ((5, 8), (4, 8)))
    monkeypatch.setattr("infer_accel.bench.cuda.merging._REHEARSED_CODES", (130, 8))
    monkeypatch.setattr("infer_accel.bench.harness._ROUNDS_AT_LEAST", 1)
    monkeypatch.setattr("infer_accel.bench.harness._ROUNDS_AT_MOST", 1)
    if not is_long():  # the interpreter takes a tenth of a second for a rank of a tile
        half, whole = torch.bfloat16, torch.float32
        formats = (half, half, 3), (half, half, 64), (torch.float16, torch.float16, 2), (half, whole, 2)
        monkeypatch.setattr(merging, "_FORMATS", formats)
        monkeypatch.setattr(merging, "_QUICK_FORMATS", formats[:2])
        monkeypatch.setattr(merging, "_CODES", ((torch.float8_e4m3fn, 2), (torch.float8_e5m2, 64)))
        monkeypatch.setattr("infer_accel.bench.cuda.launching._RANK", 2)


def rehearsal() -> Gpu:
    return Gpu(torch.device("cpu"), call_bytes=32 << 10, calls=1)


def a_bench(*, quick: bool = True) -> Bench:
    return Bench(quick=quick, seconds_a_case=0.01)


def test_every_case_is_checked_and_timed() -> None:
    gpu, bench = rehearsal(), a_bench(quick=False)
    outcome = parts.run_parts({part: cuda.source(part, gpu) for part in cuda.PARTS}, bench)
    assert outcome.failures == []
    assert outcome.left_out == {}
    assert {row.part for row in outcome.rows} == set(cuda.PARTS)
    names = [f"{part}/{row.name}" for part in cuda.PARTS for row in cuda.rows(part, bench, gpu)]
    assert [row.key for row in outcome.rows] == names
    for row in outcome.rows:
        assert row.case.startswith("cuda: ")
        assert row.peers
        assert (row.efficiency is None) == ("'s time" in row.case), (
            "launches have no limit, all others have one"
        )
    limits = {"device copy", "link, host to device", "link, device to host", "GEMM bfloat16"}
    assert limits <= set(bench.limits.measured)
    for operation in ("page_copy", "page_gather", "page_scatter", "merge", "apply", "apply_adapter,"):
        assert any(operation in name for name in names)


def test_a_wrong_kernel_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "page_copy.page_copy",
        "page_copy.page_scatter",
        "merge_weights.merge_many",
        "merge_weights.merge_weights",
        "apply_adapters.apply_adapter",
        "apply_adapters.apply_adapters",
    ):
        monkeypatch.setattr(f"infer_accel.kernels.{name}", lambda *_, **__: None)
    bench = a_bench()
    outcome = parts.run_parts({part: cuda.source(part, rehearsal()) for part in cuda.PARTS}, bench)
    assert all("page_gather" in row.case for row in outcome.rows)
    assert len(outcome.rows) == 2
    assert len(outcome.failures) == len(outcome.failed) > 12


class RealInName(Gpu):
    """A device that plans as one of 80 GB does, and builds nothing."""

    @property
    def is_real(self) -> bool:
        return True

    def total_bytes(self) -> int:
        return 77 << 30


def planned(*, quick: bool = False) -> list[tuple[str, DeviceRow]]:
    gpu = RealInName(torch.device("cpu"))
    return [(part, row) for part in cuda.PARTS for row in cuda.rows(part, a_bench(quick=quick), gpu)]


def test_a_whole_run_fits_into_minutes_and_into_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_FORMATS", FORMATS)
    rows = planned()
    names = [row.name for _, row in rows]
    assert len(set(names)) == len(names) > 50
    assert max(row.device_bytes for _, row in rows) < 40 << 30
    assert plan.expected_seconds(len(rows), Bench(seconds_a_case=2.0)) < 8 * 60
    assert plan.expected_seconds(len(planned(quick=True)), Bench(seconds_a_case=1.0)) < 2.5 * 60
    for adapters, tokens in ((1, 1), (1, 4096), (8, 8), (8, 4096), (64, 64), (64, 4096)):
        who = f"{adapters} adapter{'s' * (adapters > 1)} to {tokens} token{'s' * (tokens > 1)}, 4096x4096"
        assert any(who in name for name in names)
    for page in paging._PAGES:
        assert f"cuda: page_copy {page >> 10} KiB pages" in names
    assert sum("224 layers of an 8B model" in name for name in names) == len(merging._FORMATS)


def test_a_small_device_gets_fewer_layers() -> None:
    assert [rank for *_, rank in FORMATS[:6]] == [8, 16, 32, 64, 128, 256]
    model = merging._fitting(a_bench(quick=False), RealInName(torch.device("cpu")), *FORMATS[5])
    assert len(model.shapes) == 224
    assert 28e9 < model.device_bytes < 34e9

    class Small(RealInName):
        def total_bytes(self) -> int:
            return 20 << 30

    model = merging._fitting(a_bench(quick=False), Small(torch.device("cpu")), *FORMATS[5])
    assert len(model.shapes) == 112
    assert model.device_bytes < 20 << 30


def test_memory_that_is_said_to_be_needed_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that a row makes is counted, of the two kinds of rows that need most."""
    made: list[int] = []
    random = Gpu.random

    def counting(self: Gpu, *shape: int, **options: Any) -> torch.Tensor:
        found = random(self, *shape, **options)
        made.append(found.nbytes)
        return found

    monkeypatch.setattr(Gpu, "random", counting)
    batch = applying._Batch(3, 6, side=40, sets=2)
    applying._Tensors.random(rehearsal(), batch)
    # Two targets beside what is random; stacks are copies of the adapters.
    assert sum(made) + 2 * batch.token_bytes + 2 * batch.adapter_bytes < batch.device_bytes
    made.clear()
    model = merging._Model(((40, 24), (8, 24)), torch.bfloat16, torch.bfloat16, 8)
    merging._Layers.random(rehearsal(), model)
    assert sum(made) == model.weight_bytes + model.adapter_bytes
    assert sum(made) + model.weight_bytes <= model.device_bytes


def test_a_row_without_room_or_input_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(merging, "_many", broken)
    outcome = parts.run_parts({"lora": cuda.source("lora", rehearsal())}, a_bench())
    assert all("cannot be built: RuntimeError: CUDA out of memory" in failure for failure in outcome.failures)
    assert [key for key in outcome.failed if "8B" not in key] == []
    assert len(outcome.failed) == 2
    assert any("float8" in row.case for row in outcome.rows), "rows behind them are measured"


def test_rows_that_failed_come_last() -> None:
    gpu, bench = rehearsal(), a_bench()
    names = [row.name for row in cuda.rows("kvcache", bench, gpu)]
    found = [case.name for case in cuda.source("kvcache", gpu, [f"kvcache/{names[1]}"])(bench)]
    assert found == [names[0], *names[2:], names[1]]


@pytest.fixture
def machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command find a rehearsal of a few rows, in a working tree without changes, with no rival to load."""
    monkeypatch.setattr("infer_accel.cli.bench.find_gpu", lambda _: rehearsal())
    monkeypatch.setattr("infer_accel.bench.machine._commit", lambda: "abc")
    monkeypatch.setattr(Rivals, "load", lambda *_: None)
    rows = cuda.rows

    def some(part: str, bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
        every = list(rows(part, bench, gpu))
        yield from every[:3] if part == "lora" else [every[place] for place in (0, 1, 2, 3, 6)]

    monkeypatch.setattr(cuda, "rows", some)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_run_that_was_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_with_a_gpu: None
) -> None:
    path, built = tmp_path / "record.json", list[str]()
    begin = plan._build

    def until_the_fourth(row: DeviceRow, gpu: Gpu) -> Any:
        built.append(row.name)
        if len(built) == 4:
            raise KeyboardInterrupt
        return begin(row, gpu)

    monkeypatch.setattr(plan, "_build", until_the_fourth)
    arguments = ("kvcache", "--device", "cuda", "--quick", "--json", path, "--resume")
    assert run(*arguments).exit_code != 0
    so_far = json.loads(path.read_text())
    assert len(so_far["rows"]) == 3
    assert so_far["machine"]["complete"] is False
    assert so_far["machine"]["gpu"]["torch"] == torch.__version__
    assert {"device copy", "GEMM bfloat16"} <= set(so_far["machine"]["limits"])
    result = run(*arguments)
    assert result.exit_code == 0
    assert built[3:5] == [built[3]] * 2, "the row that was broken off is the first to be built"
    assert len(built) == len(set(built)) + 1, "and what was measured is not built again"
    done = json.loads(path.read_text())
    assert done["machine"]["complete"] is True
    # The ratio is worked out again, from the six digits that were written.
    ours = [[row["ours"] for row in document["rows"][:3]] for document in (so_far, done)]
    assert ours[0] == ours[1]
    assert "2 of 5 rows to measure" in result.stderr


def test_another_gpu_does_not_go_on_with_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_with_a_gpu: None
) -> None:
    path = tmp_path / "record.json"
    arguments = ("kvcache", "--device", "cuda", "--quick", "--json", path, "--resume")
    assert run(*arguments).exit_code == 0
    described = Gpu.describe
    monkeypatch.setattr(Gpu, "describe", lambda self: described(self) | {"name": "another"})
    result = run(*arguments)
    assert result.exit_code == 2
    assert "the GPU's name was" in result.stderr
    result = run("kvcache", "--quick", "--json", path, "--resume")
    assert result.exit_code == 2
    assert "a GPU was True" in result.stderr


def test_a_lost_device_keeps_the_rows_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_with_a_gpu: None
) -> None:
    """A wrong access ends every later call of the process; the next run measures the others first."""
    path, built, lost = tmp_path / "record.json", list[str](), list[str]()
    begin = plan._build

    def failing(row: DeviceRow, gpu: Gpu) -> Any:
        built.append(row.name)
        if "host's time" not in row.name and not lost:
            lost.append(row.name)
            raise RuntimeError("an illegal memory access was encountered")
        return begin(row, gpu)

    def release(_: Gpu) -> None:
        if lost and built[-1] == lost[0] and "a new process" not in built:
            raise DeviceLostError("the device is lost")

    monkeypatch.setattr(plan, "_build", failing)
    monkeypatch.setattr(Gpu, "release", release)
    arguments = ("kvcache", "--device", "cuda", "--quick", "--json", path, "--resume")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "the device is lost" in result.stdout
    so_far = json.loads(path.read_text())
    assert len(so_far["rows"]) == len(built) - 1 == 2
    assert so_far["machine"]["failed"] == [f"kvcache/{lost[0]}"]
    built.append("a new process")
    assert run(*arguments).exit_code == 0
    assert built[-1] == lost[0]
    assert "failed" not in json.loads(path.read_text())["machine"]


def test_a_threshold_in_a_record_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_with_a_gpu: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = list[int]()

    def measure(gpu: Gpu) -> tuple[int, dict[int, tuple[float, float]], Path]:
        calls.append(1)
        return 4096, {4096: (2.0, 1.0)}, autotune.keep(gpu, 4096)

    monkeypatch.setattr(autotune, "autotune", measure)
    path = tmp_path / "record.json"
    arguments = ("kvcache", "--device", "cuda", "--quick", "--autotune", "--json", path, "--resume")
    assert run(*arguments).exit_code == 0
    gpu = json.loads(path.read_text())["machine"]["gpu"]
    assert gpu["driver_copies_from_bytes"] == 4096
    assert gpu["seconds_by_kernel_and_driver"] == {"4096": [2.0, 1.0]}
    autotune.keep(rehearsal(), 1)
    result = run(*arguments)
    assert result.exit_code == 0
    assert "as the record says" in result.stdout
    assert len(calls) == 1
    assert _threshold.read_threshold("interpreter") == 4096
    assert json.loads(path.read_text())["machine"]["gpu"] == gpu


def test_rounds_are_counted_by_what_a_sample_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that the device's clock sees as a microsecond may hold the host for much longer."""
    monkeypatch.setattr("infer_accel.bench.harness._ROUNDS_AT_MOST", 101)
    ticks: Iterator[float] = iter(range(10_000))
    monkeypatch.setattr("infer_accel.bench.harness.time.perf_counter", lambda: 0.1 * next(ticks))
    who = rehearsal().contender("slow", lambda _: None, check=None)
    quick = replace(who, meter=lambda: 1e-6)
    assert harness._Pace.of(quick, 1.0, None).rounds < 10
    assert harness._Pace.of(replace(quick, by_the_clock=False), 1.0, None).rounds == 101


def test_what_is_captured_begins_with_what_was_prepared() -> None:
    """The rehearsal of a capture makes its calls; they must not count."""
    total = [0, 0]

    def prepare() -> None:
        total[:] = 0, 0

    def call(turn: int) -> None:
        total[turn] += 1

    who = clock.in_a_graph(clock.Timed(torch.device("cpu"), "adds", call, None, prepare, sets=2))
    for _ in range(3):
        prepare()
        assert who.run() == 1
        assert total == [1, 1]


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
