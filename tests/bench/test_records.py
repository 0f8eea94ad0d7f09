"""Records of the benchmarks: written whole, read back, compared and shown."""

from __future__ import annotations

import json
import math
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bench.made import row

from infer_accel._files import replace_file, write_text
from infer_accel.bench.compare import compare_rows
from infer_accel.bench.data import convert
from infer_accel.bench.harness import Bench
from infer_accel.bench.machine import describe_machine, describe_run
from infer_accel.bench.report import format_value
from infer_accel.bench.rows import InvalidRecordError, read_rows, write_document

if TYPE_CHECKING:
    from pathlib import Path


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

    def test_a_conversion_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "shipped").write_text("x")

        def broken() -> bytes:
            raise ValueError("not base64")

        with pytest.raises(ValueError, match="not base64"):
            convert.written("ranks", tmp_path / "shipped", broken)
        assert list((tmp_path / "cache" / "infer-accel").iterdir()) == []
        path = convert.written("ranks", tmp_path / "shipped", lambda: b"ranks")
        assert path.read_bytes() == b"ranks"


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
