"""The command line: what it prints, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from infer_accel.bench import parts
from infer_accel.bench.harness import Bench, Case, Contender, Floor, rate
from infer_accel.cli import main
from infer_accel.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from infer_accel.bench.harness import CaseSource


def cases(bench: Bench) -> Iterator[Case]:
    """Two rows that take microseconds and are right."""
    numbers = list(range(1000))
    total = sum(numbers)

    def check(result: object) -> None:
        assert result == total

    bench.rival("a_rival_that_nobody_wrote")
    slow = Contender("loop", lambda: sum(number for number in numbers), check)
    ours = Contender("infer-accel", lambda: sum(numbers), check)
    yield Case("sum of [1000]", rate("M/s", 1e6), 1000, ours, [slow], Floor("adding", 1e-7))
    yield Case("sum alone", rate("M/s", 1e6), 1000, ours)


def wrong_cases(bench: Bench) -> Iterator[Case]:
    """One right row and one that is wrong."""
    yield from cases(bench)

    def check(result: object) -> None:
        raise AssertionError(f"expected 4, got {result}")

    yield Case("sum of nothing", rate("M/s", 1e6), 1, Contender("infer-accel", lambda: 3, check))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, CaseSource]:
    """Every part is the two rows above, and takes as long."""
    sources: dict[str, CaseSource] = dict.fromkeys(parts.PARTS, cases)
    monkeypatch.setattr(parts, "load_part", sources.__getitem__)
    monkeypatch.setattr("infer_accel.cli.bench._SECONDS_QUICK", 0.0)
    monkeypatch.setattr("infer_accel.bench.limits._BYTES", 1 << 20)
    return sources


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


class TestBench:
    def test_prints_a_table_of_every_part_with_its_notes(self) -> None:
        result = run("bench", "--quick")
        assert result.exit_code == 0, result.output
        for text in (*parts.PARTS, "sum of [1000]", "sum alone", "M/s", "loop", "×", "%"):
            assert text in result.stdout
        assert (
            "not measured against a_rival_that_nobody_wrote: pip install a_rival_that_nobody_wrote"
            in result.stdout
        )
        assert "kvcache: sum alone" in result.stderr

    def test_one_part_alone(self) -> None:
        result = run("bench", "kvcache", "--quick")
        assert result.exit_code == 0, result.output
        assert "tokenize" not in result.stdout

    def test_the_record_has_the_machine_and_the_rows(self, tmp_path: Path) -> None:
        result = run("bench", "lora", "--quick", "--json", tmp_path / "record.json")
        assert result.exit_code == 0, result.output
        document = json.loads((tmp_path / "record.json").read_text())
        assert document.keys() == {"machine", "rows"}
        assert document["machine"]["absent"] == {
            "a_rival_that_nobody_wrote": "pip install a_rival_that_nobody_wrote"
        }
        assert [row["case"] for row in document["rows"]] == ["sum of [1000]", "sum alone"]
        first = document["rows"][0]
        assert list(first) == [
            "part", "case", "unit", "better", "ours", "peers", "ratio", "limit", "efficiency", "validated",
        ]  # fmt: skip
        assert first["ratio"] == pytest.approx(first["ours"] / first["peers"]["loop"], rel=1e-4)
        assert entries(tmp_path) == {"record.json"}

    def test_a_row_that_is_wrong_ends_with_2_and_is_not_recorded(
        self, tmp_path: Path, small_parts: dict[str, CaseSource]
    ) -> None:
        small_parts["kvcache"] = wrong_cases
        result = run("bench", "--quick", "--json", tmp_path / "record.json")
        assert result.exit_code == 2
        assert (
            "WRONG: kvcache: sum of nothing: wrong before timing: AssertionError: expected 4, got 3"
            in result.stdout
        )
        names = [row["case"] for row in json.loads((tmp_path / "record.json").read_text())["rows"]]
        assert "sum of nothing" not in names
        assert len(names) == 6

    def test_a_picture_is_drawn(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        result = run("bench", "lora", "--quick", "--plot", tmp_path / "rows.png")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
        assert entries(tmp_path) == {"rows.png"}


class TestResume:
    @pytest.fixture(autouse=True)
    def committed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run of this working tree, whatever is changed in it."""
        monkeypatch.setattr("infer_accel.bench.machine._commit", lambda: "0123abcd")

    @pytest.fixture
    def broken_off(self, tmp_path: Path, small_parts: dict[str, CaseSource]) -> Path:
        """The record of a run that was interrupted in its second row."""

        def interrupted(bench: Bench) -> Iterator[Case]:
            yield next(cases(bench))
            raise KeyboardInterrupt

        whole = small_parts["lora"]
        small_parts["lora"] = interrupted
        path = tmp_path / "record.json"
        assert run("bench", "--quick", "--json", path).exit_code != 0
        small_parts["lora"] = whole
        return path

    def change(self, path: Path, **fields: object) -> None:
        document = json.loads(path.read_text())
        document["machine"] |= fields
        path.write_text(json.dumps(document))

    def test_what_was_measured_is_written_when_the_run_is_interrupted(self, broken_off: Path) -> None:
        document = json.loads(broken_off.read_text())
        assert document["machine"]["complete"] is False
        assert [(row["part"], row["case"]) for row in document["rows"]] == [("lora", "sum of [1000]")]

    def test_the_rest_is_measured_and_the_rows_are_kept(self, broken_off: Path) -> None:
        before = json.loads(broken_off.read_text())
        result = run("bench", "lora", "--quick", "--json", broken_off, "--resume")
        assert result.exit_code == 0, result.output
        document = json.loads(broken_off.read_text())
        # The ratio is worked out again, from the six digits that were written.
        ratio = pytest.approx(before["rows"][0]["ratio"], rel=1e-4)
        assert document["rows"][0] == before["rows"][0] | {"ratio": ratio}
        assert [row["case"] for row in document["rows"]] == ["sum of [1000]", "sum alone"]
        assert document["machine"]["complete"] is True
        timing = document["machine"]["timing"]
        assert timing["lora/sum of [1000]"] == before["machine"]["timing"]["lora/sum of [1000]"]
        assert "lora: sum of [1000]" not in result.stderr

    def test_another_part_is_added(self, broken_off: Path) -> None:
        result = run("bench", "kvcache", "--quick", "--json", broken_off, "--resume")
        assert result.exit_code == 0, result.output
        rows = json.loads(broken_off.read_text())["rows"]
        assert [row["part"] for row in rows] == ["lora", "kvcache", "kvcache"]

    def test_an_interruption_of_the_second_run_loses_nothing(
        self, broken_off: Path, small_parts: dict[str, CaseSource]
    ) -> None:
        assert run("bench", "--quick", "--json", broken_off, "--resume").exit_code == 0
        document = json.loads(broken_off.read_text())
        dropped = document["rows"].pop(0)
        broken_off.write_text(json.dumps(document))

        def interrupted(bench: Bench) -> Iterator[Case]:
            yield next(cases(bench))
            raise KeyboardInterrupt

        small_parts["lora"] = interrupted
        assert run("bench", "--quick", "--json", broken_off, "--resume").exit_code != 0
        found = {(row["part"], row["case"]) for row in json.loads(broken_off.read_text())["rows"]}
        assert found == {(row["part"], row["case"]) for row in [*document["rows"], dropped]}

    def test_a_new_file_is_an_ordinary_run(self, tmp_path: Path) -> None:
        result = run("bench", "lora", "--quick", "--json", tmp_path / "new.json", "--resume")
        assert result.exit_code == 0, result.output
        assert len(json.loads((tmp_path / "new.json").read_text())["rows"]) == 2

    def test_it_needs_a_file(self) -> None:
        result = run("bench", "--quick", "--resume")
        assert result.exit_code == 2
        assert "--resume needs --json FILE" in result.stderr

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({"commit": "fedc"}, "commit was 'fedc' and is '0123abcd'"),
            ({"cpu": "abacus"}, "cpu was 'abacus'"),
            ({"quick": False}, "quick was False and is True"),
            ({"rivals": {"numpy": "0.1"}}, "numpy was '0.1'"),
            ({"timing": {}}, "its limits or timing"),
            ({"limits": {"copy bandwidth, 1 thread": "fast"}}, "its limits or timing"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_a_record_of_another_run_is_refused(
        self, broken_off: Path, fields: dict[str, object], complaint: str
    ) -> None:
        self.change(broken_off, **fields)
        before = broken_off.read_bytes()
        result = run("bench", "--quick", "--json", broken_off, "--resume")
        assert result.exit_code == 2
        assert complaint in result.stderr
        assert broken_off.read_bytes() == before

    def test_a_tree_with_changes_is_refused(self, broken_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infer_accel.bench.machine._commit", lambda: "0123abcd, with changes")
        self.change(broken_off, commit="0123abcd, with changes")
        result = run("bench", "--quick", "--json", broken_off, "--resume")
        assert result.exit_code == 2
        assert "cannot be resumed from a working tree with changes" in result.stderr


class TestCompare:
    @pytest.fixture
    def baseline(self, tmp_path: Path) -> Path:
        path = tmp_path / "baseline.json"
        assert run("bench", "--quick", "--json", path).exit_code == 0
        return path

    def scale(self, path: Path, factor: float) -> None:
        """Pretend that the rows of the baseline were `factor` times as fast."""
        document = json.loads(path.read_text())
        for row in document["rows"]:
            row["ours"] *= factor
        path.write_text(json.dumps(document))

    def test_a_fall_ends_with_1_and_names_the_rows(self, baseline: Path) -> None:
        self.scale(baseline, 1000)
        result = run("bench", "--quick", "--compare", baseline, "--fail-over", "50%")
        assert result.exit_code == 1, result.output
        assert "fell  tokenize/sum of [1000]: ratio" in result.stdout
        assert "3 fell by more than 50%, 0 held" in result.stdout
        assert "no rival and no limit in common: tokenize/sum alone" in result.stdout

    def test_what_holds_ends_with_0(self, baseline: Path) -> None:
        self.scale(baseline, 1e-3)
        result = run("bench", "--quick", "--compare", baseline)
        assert result.exit_code == 0, result.output
        assert "0 fell by more than 10%, 3 held" in result.stdout

    def test_other_parts_of_the_baseline_are_not_missed(self, baseline: Path) -> None:
        self.scale(baseline, 1e-3)
        result = run("bench", "lora", "--quick", "--compare", baseline, "--fail-over", "0.5")
        assert result.exit_code == 0, result.output
        assert "not in this run" not in result.stdout

    def test_a_row_that_is_gone_is_named(self, baseline: Path) -> None:
        self.scale(baseline, 1e-3)
        document = json.loads(baseline.read_text())
        document["rows"].append(document["rows"][0] | {"case": "gone"})
        baseline.write_text(json.dumps(document))
        assert "not in this run: lora/gone" in run("bench", "--quick", "--compare", baseline).stdout

    def test_a_baseline_without_a_common_row_is_refused(self, baseline: Path) -> None:
        document = json.loads(baseline.read_text())
        for row in document["rows"]:
            row["case"] += " of another age"
        baseline.write_text(json.dumps(document))
        result = run("bench", "--quick", "--compare", baseline)
        assert result.exit_code == 2
        assert "no row of the baseline can be compared" in result.stderr

    def test_an_empty_baseline_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty.json").write_text('{"machine": {}, "rows": []}')
        assert run("bench", "--quick", "--compare", tmp_path / "empty.json").exit_code == 2

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": [{"part": "lora"}]}', "\udcff"])
    def test_a_malformed_baseline_is_refused_before_anything_runs(
        self, tmp_path: Path, text: str, small_parts: dict[str, CaseSource]
    ) -> None:
        small_parts.clear()
        path = tmp_path / "baseline.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        result = run("bench", "--quick", "--compare", path, "--json", tmp_path / "new.json")
        assert result.exit_code == 2
        assert "baseline" in result.stderr
        assert entries(tmp_path) == {"baseline.json"}

    @pytest.mark.parametrize("share", ["ten", "%", "-1%", "100%", "1", "nan", "inf%", ""])
    def test_a_share_that_is_none_is_refused(self, tmp_path: Path, share: str) -> None:
        result = run("bench", "--quick", "--fail-over", share)
        assert result.exit_code == 2
        assert "--fail-over" in result.stderr


class TestWrongCalls:
    @pytest.fixture(autouse=True)
    def nothing_runs(self, small_parts: dict[str, CaseSource]) -> None:
        small_parts.clear()

    def test_unknown_commands_parts_and_options(self) -> None:
        for arguments in (
            ["bnech"],
            ["bench", "gpu"],
            ["bench", "--fast"],
            ["info", "extra"],
            ["bench", "--json"],
        ):
            assert run(*arguments).exit_code == 2, arguments

    def test_a_baseline_that_cannot_be_read(self, tmp_path: Path) -> None:
        result = run("bench", "--compare", tmp_path / "missing.json")
        assert result.exit_code == 2
        assert "cannot read the baseline" in result.stderr
        assert run("bench", "--compare", tmp_path).exit_code == 2

    @pytest.mark.parametrize("option", ["--json", "--plot"])
    def test_a_file_that_cannot_be_written(self, tmp_path: Path, option: str) -> None:
        if option == "--plot":
            pytest.importorskip("matplotlib")
        result = run("bench", option, tmp_path / "missing" / "record.json")
        assert result.exit_code == 2
        assert "there is no directory" in result.stderr
        result = run("bench", option, tmp_path)
        assert result.exit_code == 2
        assert "is a directory" in result.stderr
        assert entries(tmp_path) == set()

    @pytest.mark.parametrize(
        ("command", "advice"),
        [
            (["replay"], "a Mooncake trace"),
            (["inspect"], "an adapter's directory"),
            (["merge", "-o", "out"], "the directory of a checkpoint"),
            (["unmerge", "-o", "out"], "`infer-accel merge --residue`"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )
    def test_a_path_where_nothing_is(self, tmp_path: Path, command: list[str], advice: str) -> None:
        name, *options = command
        others = [tmp_path] if options else []
        result = run(name, tmp_path / "missing", *others, *options)
        assert result.exit_code == 2
        assert "there is no such file or directory" in result.stderr
        assert advice in result.stderr
        assert len(result.stderr.splitlines()) == 1
        (tmp_path / "link").symlink_to("nowhere")
        result = run(name, tmp_path / "link", *others, *options)
        assert result.exit_code == 2
        assert "a link to nowhere" in result.stderr

    def test_a_trace_that_is_a_directory(self, tmp_path: Path) -> None:
        result = run("replay", tmp_path)
        assert result.exit_code == 2
        assert "is a directory" in result.stderr

    @pytest.mark.skipif(
        os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere"
    )
    def test_a_directory_that_is_read_only(self, tmp_path: Path) -> None:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        result = run("bench", "--json", locked / "record.json")
        assert result.exit_code == 2
        assert "cannot write" in result.stderr
        assert entries(locked) == set()

    @pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
    def test_a_directory_that_takes_no_files(self) -> None:
        assert run("bench", "--json", "/proc/record.json").exit_code == 2

    def test_a_picture_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infer_accel.cli.output.find_spec", lambda _: None)
        result = run("bench", "--plot", tmp_path / "rows.png")
        assert result.exit_code == 2
        assert "pip install 'infer-accel[bench]'" in result.stderr


class TestTheCore:
    @pytest.mark.parametrize("command", [["info"], ["bench", "lora"], ["replay"]], ids=lambda value: value[0])
    def test_one_that_cannot_be_loaded_is_told_in_one_line(self, command: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "infer_accel", *command],
            env=os.environ | {"INFER_ACCEL_SIMD": "mmx"}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "INFER_ACCEL_SIMD=mmx names no tier" in line
        assert "[backend.missing]" in line


class TestOutput:
    @pytest.mark.skipif(os.name == "nt", reason="names of other bytes are a thing of POSIX")
    @pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
    def test_what_the_encoding_lacks_is_escaped(self, tmp_path: Path, encoding: str) -> None:
        vocabulary = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": vocabulary}))
        name = b"\xff \xe6\xbc\xa2.txt"
        with open(os.fsencode(tmp_path) + b"/" + name, "w", encoding="utf-8") as file:  # noqa: PTH123 - bytes
            file.write("aa")
        done = subprocess.run(
            [sys.executable, "-m", "infer_accel", "count", os.fsdecode(name), "-t", "tokenizer.json"],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            cwd=tmp_path, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff" in done.stdout


class TestCtrlC:
    def test_while_the_command_line_is_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
        done = subprocess.run(
            [sys.executable, "-m", "infer_accel", "info"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")

    def test_before_a_command_has_begun(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slow = typer.Typer()

        @slow.command()
        def _pressed() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("infer_accel.cli.app.app", slow)
        monkeypatch.setattr(sys, "argv", ["infer-accel"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_in_a_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def pressed(**_: object) -> object:
            raise KeyboardInterrupt

        monkeypatch.setattr("infer_accel.bench.machine.describe_machine", pressed)
        result = run("bench", "lora", "--quick")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "interrupted"


class TestFilesOfResults:
    @pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
    @pytest.mark.parametrize("arguments", [["replay", "--requests", "5"], ["info", "--no-measure", "--json"]])
    def test_an_output_without_space_ends_in_one_line(self, arguments: list[str]) -> None:
        with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device
            done = subprocess.run(
                [sys.executable, "-m", "infer_accel", *arguments],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["error: a read or a write failed: No space left on device"]

    @pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
    def test_a_pipe_is_written_and_not_replaced(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert run("replay", "--requests", 5, "--json", pipe).exit_code == 0
            assert json.loads(os.read(reader, 1 << 16))["requests"] == 5
        finally:
            os.close(reader)
        assert pipe.is_fifo()
        assert entries(tmp_path) == {"pipe"}

    def test_a_link_stays_and_its_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "latest.json").symlink_to("kept/report.json")
        assert run("replay", "--requests", 5, "--json", tmp_path / "latest.json").exit_code == 0
        assert (tmp_path / "latest.json").is_symlink()
        assert json.loads((tmp_path / "kept" / "report.json").read_text())["requests"] == 5

    def test_a_trace_is_not_replaced_by_its_report(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        trace.write_text('{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}\n')
        before = trace.read_bytes()
        result = run("replay", trace, "--json", trace)
        assert result.exit_code == 2
        assert "is part of" in result.stderr
        assert trace.read_bytes() == before

    @pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
    def test_a_device_that_is_full_is_named(self) -> None:
        result = run("replay", "--requests", 5, "--json", "/dev/full")
        assert result.exit_code == 2
        assert "cannot write /dev/full: No space left" in result.stderr

    @pytest.mark.parametrize("command", [["bench", "lora", "--quick"], ["replay", "--requests", "5"]])
    def test_a_picture_is_a_png(self, tmp_path: Path, command: list[str]) -> None:
        pytest.importorskip("matplotlib")
        result = run(*command, "--plot", tmp_path / "curve.txt")
        assert result.exit_code == 2
        assert "name it curve.png" in " ".join(result.stderr.split())
        assert run("replay", "--requests", 5, "--plot", tmp_path / "curve.png").exit_code == 0
        assert entries(tmp_path) == {"curve.png"}

    def test_a_trace_that_is_wrong_is_named_with_its_code(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").touch()
        result = run("replay", tmp_path / "empty.jsonl")
        assert result.exit_code == 2
        assert "empty.jsonl: line 1 of the trace" in result.stderr
        assert "[argument.trace]" in result.stderr

    @pytest.mark.parametrize(
        "options",
        [
            ["replay", "--seed", "-1"],
            ["replay", "--seed", str(2**64)],
            ["replay", "--bytes-per-token", "-1"],
            ["count", "FILE", "-t", "FILE", "--threads", "-1"],
            ["count", "FILE", "-t", "FILE", "--threads", "0"],
            ["count", "FILE", "-t", "FILE", "--threads", str(2**64)],
            ["count", "FILE", "-t", "FILE", "--limit", "-1"],
            ["merge", "FILE", "FILE", "-o", "OUT", "--threads", "-1"],
            ["merge", "FILE", "FILE", "-o", "OUT", "--rank", "-1"],
            ["merge", "FILE", "FILE", "-o", "OUT", "--seed", str(2**64)],
            ["unmerge", "FILE", "FILE", "-o", "OUT", "--threads", "-1"],
        ],
        ids=" ".join,
    )
    def test_a_number_out_of_range_is_named_with_its_option(self, options: list[str]) -> None:
        result = run(*options)
        assert result.exit_code == 2
        assert f"for '{options[-2]}'" in result.stderr


class TestInfo:
    def test_prints_what_was_found(self) -> None:
        result = run("info", "--no-measure")
        assert result.exit_code == 0, result.output
        for text in ("cpu", "simd", "threads", "cuda driver", "numpy"):
            assert text in result.stdout
        assert "bandwidth" not in result.stdout

    def test_json_says_the_same_and_more(self) -> None:
        result = run("info", "--json")
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        assert facts["memory_bandwidth"]["copy bandwidth, 1 thread"] > 1e6
        assert "torch" not in facts

    def test_torch_is_asked_on_demand(self) -> None:
        result = run("info", "--json", "--no-measure", "--torch")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["torch"].keys() & {"version", "error"}


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


class TestImports:
    """Import time, as the set of what is imported: seconds would say more about the machine."""

    HEAVY = frozenset({"click", "matplotlib", "pydantic", "rich", "tiktoken", "tokenizers", "torch", "typer"})

    def test_the_package_loads_little_beside_numpy(self) -> None:
        ours = modules_after("import numpy, infer_accel") - modules_after("import numpy")
        assert ours <= {"__future__", "infer_accel"}

    @pytest.mark.parametrize("part", ["kvcache", "lora", "tokenize"])
    def test_a_part_loads_neither_torch_nor_the_command_line(self, part: str) -> None:
        loaded = modules_after(f"import infer_accel.{part}")
        assert not loaded & self.HEAVY
        assert not {name for name in loaded if name.startswith(("infer_accel.bench", "infer_accel.cli"))}

    def test_the_command_line_loads_no_rival(self) -> None:
        assert not modules_after("import infer_accel.cli") & (self.HEAVY - {"click", "rich", "typer"})

    def test_info_finds_torch_without_loading_it(self) -> None:
        code = (
            "import contextlib, io\n"
            "from infer_accel.cli.info import run\n"
            "with contextlib.redirect_stdout(io.StringIO()): run(True, False, False)"
        )
        assert not modules_after(code) & {"torch", "tokenizers", "tiktoken"}

    def test_it_runs_as_a_module(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "infer_accel", "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.startswith("infer-accel ")
