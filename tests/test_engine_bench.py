"""The benches of engines: tables are those of the records, and a run that is cut off loses nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
BENCHES = ROOT / "benches"
NAMES = sorted(path.stem for path in BENCHES.glob("serve_*.py"))
PAGE = "Before.\n\n<!-- figures: serve/made.json -->\n\nold\n\n<!-- end of figures -->\n\nAfter.\n"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHES), *sys.path])
    spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    # A dataclass looks for the module that it stands in.
    monkeypatch.setitem(sys.modules, name, bench)
    spec.loader.exec_module(bench)
    return bench


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_that_of_its_record(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(name, monkeypatch).BENCH
    assert bench.rendered() == (ROOT / bench.page).read_text(encoding="utf-8"), (
        f"python benches/{name}.py --page"
    )


def test_every_record_has_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {load(name, monkeypatch).BENCH.record for name in NAMES}
    assert records == set((BENCHES / "record/serve").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_all_have_one_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        word for action in load(name, monkeypatch).BENCH.parser()._actions for word in action.option_strings
    }
    common = {"--keep", "--json", "--page", "--go-on", "--child", "-h", "--help"}
    assert common <= words <= common | {"--turns", "--rounds", "--prefix"}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what the benches share, with records and pages of its own."""
    found = load("engine_bench", monkeypatch)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    monkeypatch.setattr(found, "RECORDS", tmp_path / "records")
    (tmp_path / "page.md").write_text(PAGE)
    return found


def run(shared: Any, phases: dict[str, Callable[[], Iterator[dict]]], *arguments: str) -> None:
    def table(record: dict) -> str:
        return ", ".join(str(row["value"]) for row in record["rows"]) + "\n"

    bench = shared.Bench("bench.py", "What it does.", "made", "page.md", table, {"turns": 2})
    bench.run(lambda _: phases, lambda options: {"turns": options.turns}, arguments=arguments)


def rows(*values: int) -> Callable[[], Iterator[dict]]:
    return lambda: ({"value": value} for value in values)


def cut_off(*values: int) -> Callable[[], Iterator[dict]]:
    def measure() -> Iterator[dict]:
        yield from rows(*values)()
        raise KeyboardInterrupt

    return measure


def test_what_is_kept_is_the_record_and_the_page(
    shared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(shared, {"a": rows(1, 2), "b": rows(3)})
    assert capsys.readouterr().out == "1, 2, 3\n\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md"], "asked for nothing"
    run(shared, {"a": rows(1, 2), "b": rows(3)}, "--json", str(tmp_path / "own/other.json"))
    assert (tmp_path / "page.md").read_text() == PAGE
    run(shared, {"a": rows(1, 2), "b": rows(3)}, "--keep", "--turns", "7")
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["made.json"], (
        "nothing is left beside it"
    )
    record = json.loads((tmp_path / "records/made.json").read_text())
    assert record == {"machine": {"turns": 7}, "rows": [{"value": 1}, {"value": 2}, {"value": 3}]}
    assert (tmp_path / "page.md").read_text() == PAGE.replace("old", "1, 2, 3")
    other = json.loads((tmp_path / "own/other.json").read_text())
    assert other["rows"] == record["rows"]
    (tmp_path / "page.md").write_text(PAGE)
    run(shared, {"a": cut_off()}, "--page")
    assert (tmp_path / "page.md").read_text() == PAGE.replace("old", "1, 2, 3")


def test_a_run_that_is_cut_off_goes_on(shared: Any, tmp_path: Path) -> None:
    record = tmp_path / "records/made.json"
    run(shared, {"a": rows(0)}, "--keep")
    before = record.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(shared, {"a": rows(1, 2), "b": cut_off(8, 9), "c": cut_off()}, "--keep")
    assert record.read_bytes() == before, "the record is what it was"
    assert [row["value"] for row in json.loads(record.with_name("made.json.part").read_text())["begun"]] == [
        8,
        9,
    ]
    with pytest.raises(SystemExit, match=r"begun with .*'2'.*, not with .*'3'"):
        run(shared, {"a": cut_off()}, "--keep", "--go-on", "--turns", "3")
    # A phase that was whole is not measured again, and one that was not is measured from its beginning.
    run(shared, {"a": cut_off(), "b": rows(3, 4), "c": rows(5)}, "--keep", "--go-on")
    assert [row["value"] for row in json.loads(record.read_text())["rows"]] == [1, 2, 3, 4, 5]
    assert [path.name for path in record.parent.iterdir()] == ["made.json"]
    # Without the word all is measured anew.
    with pytest.raises(KeyboardInterrupt):
        run(shared, {"a": rows(1), "b": cut_off()}, "--keep")
    run(shared, {"a": rows(6), "b": rows(7)}, "--keep")
    assert [row["value"] for row in json.loads(record.read_text())["rows"]] == [6, 7]


def test_ways_take_turns_and_medians_are_told(shared: Any) -> None:
    asked: list[str] = []

    def measure(way: str) -> dict[str, float]:
        asked.append(way)
        return {"seconds": float(len(asked))}

    # One of them is not always the first.
    assert shared.in_turns(("own", "ours"), 3, measure) == {"own": {"seconds": 4.0}, "ours": {"seconds": 3.0}}
    assert asked == ["own", "ours", "ours", "own", "own", "ours"]


def test_a_byte_is_flipped(shared: Any, tmp_path: Path) -> None:
    content = bytes(range(200))
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "small").write_bytes(content[:10])
    shared.flip(str(tmp_path), 100)
    pairs = zip(content, (tmp_path / "large").read_bytes(), strict=True)
    assert [place for place, (before, after) in enumerate(pairs) if before != after] == [100]
    assert (tmp_path / "small").read_bytes() == content[:10]
