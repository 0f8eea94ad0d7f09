"""`infer-accel count` on texts, JSON lines and Parquet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from infer_accel.cli.app import app
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from typer.testing import Result


@pytest.fixture
def model(small: Tokenizer, tmp_path: Path) -> Path:
    """Return a model's directory with a chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(Path(small._source[1]).read_bytes())
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|begin|>{{ m.content }}{% endfor %}")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["count", *map(str, arguments)])


def figures(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_texts_and_directories(model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(model)
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    contents = {"a.txt": "The end.", "deep/b.md": "# 漢字\n" * 50, "empty": ""}
    for name, content in contents.items():
        (folder / name).write_text(content, "utf-8")
    document = figures(folder, "-t", model)
    expected = {str(folder / name): tokenizer.count(content) for name, content in contents.items()}
    assert {file["path"]: file["tokens"] for file in document["files"]} == expected
    assert document["total"]["tokens"] == sum(expected.values())
    assert document["total"]["texts"] == 3
    assert document["total"]["characters"] == sum(map(len, contents.values()))
    assert document["total"]["percentiles"]["100"] == max(expected.values())
    shown = call(folder / "a.txt", "-t", model / "tokenizer.json")
    assert shown.exit_code == 0
    assert str(tokenizer.count("The end.")) in shown.output


def test_json_lines_of_texts_and_messages(model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(model)
    records = [
        {"text": "one two"},
        {"id": 5, "messages": [{"role": "user", "content": "three"}]},
        "four",
        {"content": "", "other": "x"},
        {"text": "many " * 100},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n\n".join(map(json.dumps, records)) + "\n")
    document = figures(path, "-t", model, "--limit", 20, "--threads", 2)
    texts = ["one two", "four", "", "many " * 100]
    chat = tokenizer.encode_list("<|begin|>three", parse_special=True)
    assert document["total"]["tokens"] == sum(map(tokenizer.count, texts)) + len(chat)
    assert document["total"]["above_limit"] == 1
    assert figures(path, "-t", model, "--no-special")["total"]["texts"] == 5
    path.write_text('{"body": "one two", "text": "x"}\n')
    assert figures(path, "-t", model, "--field", "body")["total"]["tokens"] == tokenizer.count("one two")


def test_rows_of_parquet(model: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"n": [1, 2, 3], "text": ["one two", None, "漢字"]}), path)
    tokenizer = Tokenizer.from_dir(model)
    assert figures(path, "-t", model)["total"]["tokens"] == tokenizer.count("one two") + tokenizer.count(
        "漢字"
    )
    assert call(path, "-t", model, "--field", "body").exit_code == 2
    path.write_bytes(b"PAR1 no such thing PAR1")
    assert call(path, "-t", model).exit_code == 2


def test_the_figures_become_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert call(tmp_path / "a.txt", "-t", model, "--json", tmp_path / "figures.json").exit_code == 0
    assert json.loads((tmp_path / "figures.json").read_text())["total"]["texts"] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b"{broken", "line 1"),
        ("a.jsonl", b'{"x": 1}', "--field"),
        ("a.jsonl", b"7", "int came"),
        ("a.jsonl", b'{"text": "\\ud800"}', "surrogate"),
        ("a.jsonl", b"[" * 200_000, "line 1"),
        ("a.jsonl", b'[{"role": 7}, 7]', "a.jsonl"),
    ],
)
def test_wrong_input_is_refused(model: Path, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = call(tmp_path / name, "-t", model)
    assert result.exit_code == 2
    assert said in result.stderr
    assert name in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_column_of_no_texts_is_refused(model: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        arrow.table({"text": ["one", None], "id": [1, 2], "raw": [b"a", b"b"]}), tmp_path / "a.parquet"
    )
    assert figures(tmp_path / "a.parquet", "-t", model)["total"]["texts"] == 2
    for column, came in (("id", "int came"), ("raw", "bytes came")):
        result = call(tmp_path / "a.parquet", "-t", model, "--field", column)
        assert result.exit_code == 2
        assert f"column '{column}': {came}" in result.stderr


def test_figures_replace_no_file_of_the_call(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    for target in (tmp_path / "a.txt", model / "tokenizer.json"):
        result = call(tmp_path / "a.txt", "-t", model / "tokenizer.json", "--json", target)
        assert result.exit_code == 2
        assert "is part of" in result.stderr
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_tokenizer_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    os.mkfifo(tmp_path / "pipe")
    result = call(tmp_path / "a.txt", "-t", tmp_path / "pipe")
    assert result.exit_code == 2
    assert "a pipe or a device" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")  # noqa: PTH110
def test_a_device_without_an_end_is_refused(model: Path) -> None:
    result = call("/dev/zero", "-t", model)
    assert result.exit_code == 2
    assert "/dev/zero: is a device; pass a file of text" in " ".join(result.stderr.split())
    assert figures("/dev/null", "-t", model)["total"]["tokens"] == 0


def test_missing_paths_and_templates_are_named(small: Tokenizer, model: Path, tmp_path: Path) -> None:
    assert call(tmp_path / "none", "-t", model).exit_code == 2
    (tmp_path / "a.txt").write_text("x")
    assert call(tmp_path / "a.txt", "-t", tmp_path / "none").exit_code == 2
    (tmp_path / "nothing").mkdir()
    assert call(tmp_path / "nothing", "-t", model).exit_code == 2
    (tmp_path / "b.jsonl").write_text('{"messages": []}')
    result = call(tmp_path / "b.jsonl", "-t", small._source[1])
    assert result.exit_code == 2
    assert "chat template" in " ".join(result.output.split())
