"""The harness of the benchmarks: rows exist only if they are right, and say what was measured."""

from __future__ import annotations

import json
import math
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_accel._files import replace_file, write_text
from infer_accel.bench import harness, parts
from infer_accel.bench.compare import compare_rows
from infer_accel.bench.harness import Bench, Case, Contender, Floor, ValidationError, cost, measure_case, rate
from infer_accel.bench.limits import Limits
from infer_accel.bench.machine import describe_machine, describe_run
from infer_accel.bench.report import format_value
from infer_accel.bench.rivals import Rivals
from infer_accel.bench.rows import InvalidRecordError, Row, read_rows, row_of, write_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def expect(value: object) -> Callable[[object], None]:
    def check(result: object) -> None:
        assert result == value, f"expected {value}, got {result}"

    return check


def sleepy(seconds: float) -> Callable[[], float]:
    """A call that takes exactly what the fake clock says."""

    def run() -> float:
        CLOCK.now += seconds
        return 7.0

    return run


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    CLOCK.now = 0.0
    monkeypatch.setattr(harness, "time", CLOCK)
    return CLOCK


def row(case: str = "copy", ours: float = 10.0, **changes: object) -> Row:
    fields: dict[str, object] = {
        "part": "kvcache",
        "case": case,
        "unit": "GB/s",
        "better": "higher",
        "ours": ours,
        "peers": {"numpy": 5.0, "torch": 2.0},
        "limit": 20.0,
        "efficiency": ours / 20.0,
    }
    return Row(**(fields | changes))  # type: ignore[arg-type]


class TestValidation:
    def test_a_wrong_result_is_no_row(self) -> None:
        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", lambda: 3, expect(4)))
        with pytest.raises(
            ValidationError, match=r"sum: wrong before timing: AssertionError: expected 4, got 3"
        ):
            measure_case(case, seconds=0)

    def test_a_result_that_goes_wrong_while_it_is_timed_is_no_row(self, clock: Clock) -> None:
        calls = iter(range(10**9))

        def run() -> bool:
            clock.now += 1.0
            return next(calls) < 3

        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", run, expect(value=True)))
        with pytest.raises(ValidationError, match="wrong after timing"):
            measure_case(case, seconds=0)

    def test_a_call_that_raises_is_no_row(self) -> None:
        def run() -> None:
            raise OverflowError("too much")

        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", run, expect(None)))
        with pytest.raises(ValidationError, match="the call failed before timing: OverflowError: too much"):
            measure_case(case, seconds=0)

    def test_a_case_without_an_oracle_is_no_row(self) -> None:
        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", lambda: 3))
        with pytest.raises(ValidationError, match="no oracle"):
            measure_case(case, seconds=0)

    def test_a_wrong_rival_is_left_out_and_named(self, clock: Clock) -> None:
        def broken() -> None:
            raise RuntimeError("Already borrowed")

        peers = [
            Contender("fast but wrong", sleepy(1e-3), expect(8.0)),
            Contender("broken", broken),
            Contender("good", sleepy(2.0), expect(7.0)),
        ]
        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", sleepy(1.0), expect(7.0)), peers)
        measured = measure_case(case, seconds=0)
        assert measured.seconds == pytest.approx({"infer-accel": 1.0, "good": 2.0})
        assert measured.left_out["fast but wrong"].startswith("AssertionError: expected 8.0, got 7.0")
        assert measured.left_out["broken"] == "RuntimeError: Already borrowed"

    def test_preparation_comes_before_each_call_and_is_not_timed(self, clock: Clock) -> None:
        state = {"dirty": False, "prepared": 0}

        def prepare() -> None:
            clock.now += 100.0
            state["dirty"] = False
            state["prepared"] += 1

        def run() -> float:
            assert not state["dirty"], "the state of the call before"
            state["dirty"] = True
            clock.now += 1.0
            return 7.0

        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", run, expect(7.0), prepare))
        measured = measure_case(case, seconds=0)
        assert measured.seconds == pytest.approx({"infer-accel": 1.0})
        assert state["prepared"] == measured.rounds + 3  # two validations and one rehearsal


class TestTiming:
    def test_short_calls_are_repeated_inside_a_sample(self, clock: Clock) -> None:
        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", sleepy(1e-6), expect(7.0)))
        measured = measure_case(case, seconds=0.01)
        assert measured.seconds["infer-accel"] == pytest.approx(1e-6)
        assert measured.rounds >= 5
        assert clock.now > measured.rounds * 1e-3

    def test_contenders_take_turns(self, clock: Clock) -> None:
        order: list[str] = []

        def who(name: str) -> Contender:
            def run() -> float:
                order.append(name)
                clock.now += 0.1
                return 7.0

            return Contender(name, run, expect(7.0))

        case = Case("sum", cost("s", 1), 1, who("a"), [who("b"), who("c")])
        measure_case(case, seconds=0)
        timed = order[-16:-1]  # five rounds of three, then the last validation
        assert timed == [*"abc", *"bca", *"cab", *"abc", *"bca"]

    def test_a_slow_rival_is_asked_less_often_and_all_along(self, clock: Clock) -> None:
        order: list[str] = []

        def who(name: str, seconds: float) -> Contender:
            def run() -> float:
                order.append(name)
                clock.now += seconds
                return 7.0

            return Contender(name, run, expect(7.0))

        case = Case("sum", cost("s", 1), 1, who("a", 0.1), [who("b", 3.0)])
        measured = measure_case(case, seconds=1.3)
        timed = "".join(order[4:-1])  # after two validations and two rehearsals
        assert timed == "abaabaaba"
        assert measured.rounds == 6

    def test_a_rival_that_takes_forever_is_timed_once(self, clock: Clock) -> None:
        calls: list[str] = []

        def forever() -> float:
            calls.append("b")
            clock.now += 30.0
            return 7.0

        case = Case(
            "sum",
            cost("s", 1),
            1,
            Contender("a", sleepy(0.1), expect(7.0)),
            [Contender("b", forever, expect(7.0))],
        )
        measured = measure_case(case, seconds=0)
        assert measured.seconds == pytest.approx({"a": 0.1, "b": 30.0})
        assert len(calls) == 2  # one to check it, one to time it

    def test_a_meter_is_read_instead_of_the_clock(self, clock: Clock) -> None:
        ours = Contender("a", sleepy(1.0), expect(7.0), meter=lambda: 5e6)
        case = Case("memory", cost("MB", 1e6), 1, ours, [Contender("b", sleepy(2.0), meter=lambda: 2e7)])
        found = row_of("lora", case, measure_case(case, seconds=0))
        assert (found.ours, found.peers, found.ratio) == (5.0, {"b": 20.0}, 4.0)

    def test_fresh_input_is_never_met_twice(self, clock: Clock) -> None:
        parts_left = list(range(12))

        def run() -> float:
            parts_left.pop()
            clock.now += 1e-6
            return 7.0

        case = Case("count", cost("s", 1), 1, Contender("infer-accel", run, expect(7.0)), fresh_calls=12)
        assert measure_case(case, seconds=1.0).rounds == 9
        assert parts_left == []

    def test_the_median_ignores_one_slow_round(self, clock: Clock) -> None:
        calls = iter(range(10**9))

        def run() -> float:
            clock.now += 50.0 if next(calls) == 4 else 1.0
            return 7.0

        case = Case("sum", cost("s", 1), 1, Contender("infer-accel", run, expect(7.0)))
        assert measure_case(case, seconds=0).seconds["infer-accel"] == pytest.approx(1.0)

    def test_rows_carry_values_ratio_and_share_of_the_limit(self, clock: Clock) -> None:
        ours = Contender("infer-accel", sleepy(1.0), expect(7.0))
        peers = [Contender("slow", sleepy(4.0), work=50.0), Contender("slower", sleepy(9.0))]
        high = Case("copy", rate("MB/s", 1e6), 100e6, ours, peers, Floor("copy bandwidth", 0.5))
        measured = row_of("kvcache", high, measure_case(high, seconds=0))
        assert measured.ours == pytest.approx(100.0)
        assert measured.peers == pytest.approx({"slow": 12.5e-6, "slower": 100 / 9})
        assert measured.ratio == pytest.approx(9.0)
        assert (measured.limit, measured.efficiency) == pytest.approx((200.0, 0.5))
        low = Case("hash", cost("ns/block", 1e-9), 1e9, ours, peers[1:], Floor("SHA-256 rate", 0.25))
        measured = row_of("kvcache", low, measure_case(low, seconds=0))
        assert (measured.ours, measured.ratio) == pytest.approx((1.0, 9.0))
        assert (measured.limit, measured.efficiency) == pytest.approx((0.25, 0.25))

    def test_threads_of_torch_are_held_and_given_back(self) -> None:
        torch = pytest.importorskip("torch")
        before = torch.get_num_threads()
        seen: list[int] = []
        case = Case(
            "sum",
            cost("s", 1),
            1,
            Contender("infer-accel", lambda: seen.append(torch.get_num_threads()), expect(None)),
        )
        measure_case(case, seconds=0)
        assert set(seen) == {1}
        assert torch.get_num_threads() == before


class TestParts:
    def test_one_bad_row_or_part_leaves_the_others(self, clock: Clock) -> None:
        def good(bench: Bench) -> Iterator[Case]:
            for name in ("first", "second", "second"):
                yield Case(name, cost("s", 1), 1, Contender("infer-accel", sleepy(1.0), expect(7.0)))
            yield Case("third", cost("s", 1), 1, Contender("infer-accel", sleepy(1.0), expect(8.0)))

        def bad(bench: Bench) -> Iterator[Case]:
            if not bench.quick:
                yield from good(bench)
            raise FileNotFoundError("no text to count")

        said: list[str] = []
        outcome = parts.run_parts({"lora": bad, "kvcache": good}, Bench(quick=True), said.append)
        assert [measured.key for measured in outcome.rows] == ["kvcache/first", "kvcache/second"]
        assert outcome.failures[0] == "lora: FileNotFoundError: no text to count"
        assert outcome.failures[1].startswith("kvcache: second: two rows of this name")
        assert outcome.failures[2].startswith("kvcache: third: wrong before timing")
        assert "kvcache: second: timing" in said

    def test_a_missing_rival_is_remembered_with_the_way_to_get_it(self) -> None:
        rivals = Rivals()
        assert rivals.load("a_rival_that_nobody_wrote") is None
        assert rivals.load("a_rival_that_nobody_wrote") is None
        assert rivals.absent == {"a_rival_that_nobody_wrote": "pip install a_rival_that_nobody_wrote"}
        assert rivals.load("json") is json
        assert rivals.versions == {"json": "unknown"}

    def test_a_rival_that_is_there_but_does_not_load_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "half_a_rival.py").write_text("import a_library_that_is_missing")
        monkeypatch.syspath_prepend(str(tmp_path))
        rivals = Rivals()
        assert rivals.load("half_a_rival") is None
        assert rivals.absent == {
            "half_a_rival": "installed, but: No module named 'a_library_that_is_missing'"
        }


class TestRecord:
    def test_a_row_has_exactly_the_documented_fields(self) -> None:
        assert row(rounds=9, spread=0.1, limit_name="copy bandwidth").to_json() == {
            "part": "kvcache",
            "case": "copy",
            "unit": "GB/s",
            "better": "higher",
            "ours": 10.0,
            "peers": {"numpy": 5.0, "torch": 2.0},
            "ratio": 2.0,
            "limit": 20.0,
            "efficiency": 0.5,
            "validated": True,
        }

    @given(
        better=st.sampled_from(["higher", "lower"]),
        ours=st.floats(1e-9, 1e12),
        peers=st.dictionaries(st.text(max_size=8), st.floats(1e-9, 1e12), max_size=4),
        limit=st.none() | st.floats(1e-9, 1e12),
    )
    def test_a_written_row_reads_back(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        better: str,
        ours: float,
        peers: dict[str, float],
        limit: float,
    ) -> None:
        written = row(better=better, ours=ours, peers=peers, limit=limit, efficiency=limit)
        path = tmp_path_factory.mktemp("record") / "record.json"
        write_document(path, {"cpu": "any"}, [written])
        (read,) = read_rows(path)
        assert read.key == written.key
        assert read.ours == pytest.approx(ours, rel=1e-5)
        assert read.peers == pytest.approx(peers, rel=1e-5)
        assert (read.limit is None) == (limit is None)
        assert (read.ratio is None) == (not peers)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "is not JSON"),
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("\x00", "is not JSON"),
            ("[]", 'no list "rows"'),
            ("{}", 'no list "rows"'),
            ('{"rows": 3}', 'no list "rows"'),
            ('{"rows": [3]}', "row 0: expected an object, got int"),
            ('{"rows": [{}]}', '"better" must be'),
            ('{"rows": [{"better": "higher"}]}', '"peers" must be'),
            ('{"rows": [{"better": "higher", "peers": {}}]}', '"part" must be a text'),
        ],
    )
    def test_malformed_records_are_refused(self, tmp_path: Path, text: str, complaint: str) -> None:
        path = tmp_path / "baseline.json"
        path.write_text(text)
        with pytest.raises(InvalidRecordError, match=complaint):
            read_rows(path)

    @pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "3", None, True, [1]])
    def test_numbers_that_are_none_are_refused(self, tmp_path: Path, number: object) -> None:
        path = tmp_path / "baseline.json"
        for change in ({"ours": number}, {"peers": {"numpy": number}}):
            path.write_text(json.dumps({"rows": [row().to_json() | change]}))
            with pytest.raises(InvalidRecordError, match="must be a positive number"):
                read_rows(path)

    def test_unreadable_records_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRecordError, match="cannot read"):
            read_rows(tmp_path / "missing.json")
        with pytest.raises(InvalidRecordError, match="cannot read"):
            read_rows(tmp_path)
        (tmp_path / "latin.json").write_bytes(b'{"rows": "\xe9"}')
        with pytest.raises(InvalidRecordError, match="is not JSON"):
            read_rows(tmp_path / "latin.json")

    def test_the_machine_is_described_without_measuring(self) -> None:
        facts = describe_machine()
        assert {
            "infer_accel",
            "commit",
            "cpu",
            "cores",
            "simd",
            "threads",
            "system",
            "python",
            "numpy",
        } <= facts.keys()
        assert facts["simd"] in [{"detected": tier, "used": used} for tier in TIERS for used in TIERS]
        run = describe_run(Bench(quick=True), [row(rounds=9, spread=0.12345, limit_name="copy bandwidth")])
        assert run["timing"] == {"kvcache/copy": {"rounds": 9, "spread": 0.1235, "limit": "copy bandwidth"}}
        json.dumps(run, allow_nan=False)


TIERS = ("portable", "avx2", "avx512", "avx512bf16")


class TestCompare:
    def test_ratios_are_compared_and_seconds_are_not(self) -> None:
        slower_machine = row(ours=1.0, peers={"numpy": 0.5, "torch": 0.2})
        comparison = compare_rows([slower_machine], [row()])
        assert [change.factor for change in comparison.changes] == pytest.approx([1.0])
        assert comparison.fallen(0.0) == []

    def test_a_fall_is_found_and_the_worst_comes_first(self) -> None:
        now = [row("a", 8.9), row("b", 9.1), row("c", 5.0)]
        comparison = compare_rows(now, [row("a"), row("b"), row("c")])
        assert [change.key for change in comparison.fallen(0.1)] == ["kvcache/c", "kvcache/a"]
        assert comparison.fallen(0.6) == []

    def test_lower_is_better_turns_the_ratio(self) -> None:
        before, now = (row(better="lower", ours=ours, peers={"numpy": 8.0}) for ours in (1.0, 2.0))
        (change,) = compare_rows([now], [before]).changes
        assert (change.before, change.now, change.factor) == pytest.approx((8.0, 4.0, 0.5))

    def test_a_rival_that_came_since_is_no_fall(self) -> None:
        before, now = row(peers={"numpy": 5.0}), row(peers={"numpy": 5.0, "better": 9.0})
        (change,) = compare_rows([now], [before]).changes
        assert change.factor == pytest.approx(1.0)

    def test_without_a_shared_rival_the_share_of_the_limit_counts(self) -> None:
        before, now = row(peers={}), row(ours=5.0, peers={"numpy": 5.0})
        (change,) = compare_rows([now], [before]).changes
        assert change.by == "share of the limit"
        assert change.factor == pytest.approx(0.5)

    def test_what_cannot_be_compared_is_named(self) -> None:
        bare = row("bare", peers={}, limit=None, efficiency=None)
        comparison = compare_rows([bare], [bare, row("gone")])
        assert (comparison.changes, comparison.incomparable) == ([], ["kvcache/bare"])
        assert comparison.missing == ["kvcache/gone"]


class TestFiles:
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        path.write_text("old")

        def interrupted() -> None:
            with replace_file(path) as beside:
                beside.write_text("half of the n")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_is_replaced_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        write_text(path, "old")
        write_text(path, "new: ×")
        assert path.read_text(encoding="utf-8") == "new: ×"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
    def test_permissions_are_those_of_an_ordinary_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "record.json", "{}")
        (tmp_path / "plain").write_text("{}")
        assert (tmp_path / "record.json").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_writers_do_not_meet(self, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        writers = [threading.Thread(target=write_text, args=(path, str(n) * 100_000)) for n in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        text = path.read_text()
        assert text == text[0] * 100_000
        assert list(tmp_path.iterdir()) == [path]


class TestReport:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.01234, "0.0123"),
            (0.5, "0.500"),
            (1.0, "1.00"),
            (7.256, "7.26"),
            (72.56, "72.6"),
            (725.6, "726"),
            (1234.5, "1,234"),
            (1.5e-5, "1.50e-05"),
        ],
    )
    def test_values_have_three_digits(self, value: float, text: str) -> None:
        assert format_value(value) == text

    def test_a_picture_is_a_png(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        from infer_accel.bench.plot import plot_rows

        rows = [
            row(),
            row("behind", 1.0),
            row("alone", peers={}),
            row("unbound", limit=None, efficiency=None),
        ]
        plot_rows(tmp_path / "rows.png", rows, "a machine")
        assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        plot_rows(tmp_path / "none.png", [], "a machine")
        assert (tmp_path / "none.png").stat().st_size > 1000


class TestLimits:
    def test_each_is_measured_once_and_is_a_plausible_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infer_accel.bench.limits._BYTES", 1 << 20)
        limits = Limits()
        first = (
            limits.copy_bandwidth(),
            limits.read_modify_write_bandwidth(threads=2),
            limits.fma_rate("bf16"),
        )
        assert first == (
            limits.copy_bandwidth(),
            limits.read_modify_write_bandwidth(threads=2),
            limits.fma_rate("bf16"),
        )
        assert all(1e6 < value < 1e16 for value in (*first, limits.sha256_rate(streams=4)))
        assert set(limits.measured) == {
            "copy bandwidth, 1 thread",
            "read-modify-write bandwidth, 2 threads",
            "FMA rate bf16, 1 thread",
            "SHA-256 rate, 4 at once",
        }

    def test_an_unknown_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="allowed: f32, bf16"):
            Limits().fma_rate("f64")  # type: ignore[arg-type]
