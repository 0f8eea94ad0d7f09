"""The harness of the benchmarks: rows exist only if they are right, and contenders are timed alike."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.bench.made import expect

from infer_accel.bench import harness, parts
from infer_accel.bench.harness import Bench, Case, Contender, Floor, ValidationError, cost, measure_case, rate
from infer_accel.bench.limits import Limits
from infer_accel.bench.rivals import Rivals
from infer_accel.bench.rows import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def sleepy(seconds: float) -> Callable[[], float]:
    """A call that takes exactly what the fake clock says."""

    def run() -> float:
        CLOCK.now += seconds
        return 7.0

    return run


class Clock:
    now = 0.0
    #: Processor time beyond what passes by the clock.
    helpers = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now + self.helpers


CLOCK = Clock()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    CLOCK.now = CLOCK.helpers = 0.0
    monkeypatch.setattr(harness, "time", CLOCK)
    return CLOCK


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

    @pytest.mark.parametrize("seconds", [1e-5, 0.1])
    def test_who_takes_a_second_thread_is_charged_for_it(self, clock: Clock, seconds: float) -> None:
        def both() -> float:
            clock.now += seconds
            clock.helpers += 0.9 * seconds
            return 7.0

        ours = Contender("infer-accel", sleepy(seconds), expect(7.0))
        peers = [Contender("told", both, takes_threads=True), Contender("not told", both)]
        measured = measure_case(Case("sum", cost("s", 1), 1, ours, peers), seconds=0.1)
        assert measured.seconds == pytest.approx(
            {"infer-accel": seconds, "told": 1.9 * seconds, "not told": seconds}
        )

    def test_contenders_take_turns_and_follow_each_other_alike(self, clock: Clock) -> None:
        order: list[str] = []

        def who(name: str) -> Contender:
            def run() -> float:
                order.append(name)
                clock.now += 0.1
                return 7.0

            return Contender(name, run, expect(7.0))

        def timed() -> list[str]:
            order.clear()
            case = Case("sum", cost("s", 1), 1, who("a"), [who("b"), who("c")])
            rounds = measure_case(case, seconds=12.0).rounds
            return order[-3 * rounds - 1 : -1]  # the last call is a validation

        calls = timed()
        rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
        assert len(rounds) >= 39
        assert {"".join(sorted(turn)) for turn in rounds} == {"abc"}
        # No contender inherits what the same one has left in the caches, round after round.
        followed = Counter(itertools.pairwise(calls))
        assert all(followed[pair] >= 10 for pair in itertools.permutations("abc", 2))
        assert timed() == calls, "the order is the same in every run"

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
        # Two rounds of three, in any order.
        assert [timed[i : i + 3].count("b") for i in range(0, len(timed), 3)] == [1, 1, 1]
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
