"""Counting and encoding in batches of Arrow: what one process says, whoever does it."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from tests.scale.needs import package
from tests.scale.texts import texts, tokenizer_file

from infer_accel import errors
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def file() -> Path:
    return tokenizer_file()


@pytest.fixture(scope="module")
def alone(file: Path) -> dict[str, list[Any]]:
    """What one process says without any engine."""
    tokenizer, some = Tokenizer.from_file(file), texts(600)
    ids = [None if text is None else tokenizer.encode_list(text) for text in some]
    return {"text": some, "count": [None if row is None else len(row) for row in ids], "ids": ids}


def calls(file: Path, **options: Any) -> tuple[Any, Any]:
    package("pyarrow")
    from infer_accel.integrations._bulk import CountTokens, EncodeTexts

    return CountTokens(file, **options), EncodeTexts(file, **options)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_tables_of_arrow(file: Path, alone: dict[str, list[Any]], kind: str, pieces: int) -> None:
    pyarrow = package("pyarrow")
    some = alone["text"]
    cuts = [len(some) * number // pieces for number in range(pieces + 1)]
    kinds = getattr(pyarrow, kind)()
    chunks = [pyarrow.array(some[a:b], kinds) for a, b in pairwise(cuts)]
    table = pyarrow.table({"number": range(len(some)), "text": pyarrow.chunked_array(chunks)})
    count, encode = calls(file)
    counted, encoded = count(table), encode(table)
    assert counted["tokens"].to_pylist() == alone["count"]
    assert encoded["tokens"].to_pylist() == alone["ids"]
    assert counted.column_names == ["number", "text", "tokens"]
    assert counted["tokens"].type == pyarrow.int64()
    assert encoded["tokens"].type == pyarrow.large_list(pyarrow.int32())
    part = table.slice(100, 50)
    assert count(part)["tokens"].to_pylist() == alone["count"][100:150]
    assert encode(part)["tokens"].to_pylist() == alone["ids"][100:150]
    assert count(table.slice(3, 0))["tokens"].to_pylist() == []


def test_the_column_that_is_named(file: Path) -> None:
    pyarrow = package("pyarrow")
    count, _ = calls(file, column="a", output="b")
    table = pyarrow.table({"a": ["one two"], "b": ["old"], "c": [1]})
    assert count(table).to_pydict() == {"a": ["one two"], "b": [2], "c": [1]}
    with pytest.raises(errors.ArgumentError) as caught:
        count(pyarrow.table({"text": ["x"]}))
    assert caught.value.code == "argument.column"
    for numbers in ([1], [1, None], [None]):
        with pytest.raises(errors.DTypeError):
            count(pyarrow.table({"a": numbers}))


def test_another_tokenizer_in_a_worker_is_refused(file: Path, tmp_path: Path) -> None:
    pyarrow = package("pyarrow")
    copy = tmp_path / "tokenizer.json"
    shutil.copy(file, copy)
    count, _ = calls(copy)
    travelled = pickle.loads(pickle.dumps(count))
    assert travelled(pyarrow.table({"text": ["one two"]}))["tokens"].to_pylist() == [2]
    copy.write_bytes(copy.read_bytes() + b"\n")
    script = (
        "import pickle, sys, pyarrow; pickle.loads(sys.stdin.buffer.read())(pyarrow.table({'text': ['x']}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(count), check=False, capture_output=True
    )
    assert b"TokenizerError" in done.stderr
    assert b"another tokenizer here" in done.stderr
    for missing in (tmp_path / "none", tmp_path / "none" / "below"):
        with pytest.raises(errors.TokenizerError) as caught:
            calls(missing)
        assert caught.value.code == "tokenizer.read"


def test_a_directory_is_a_tokenizer(file: Path, tmp_path: Path) -> None:
    pyarrow = package("pyarrow")
    shutil.copy(file, tmp_path / "tokenizer.json")
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    count, _ = calls(tmp_path)
    assert count(pyarrow.table({"text": ["one two"]}))["tokens"].to_pylist() == [2]


# Polars -----------------------------------------------------------------------------------------------------


def test_expressions_of_polars(file: Path, alone: dict[str, list[Any]]) -> None:
    polars = package("polars")
    from infer_accel.integrations.polars import count_tokens, encode

    frame = polars.DataFrame({"text": alone["text"]})
    columns = {"count": count_tokens("text", file), "ids": encode(polars.col("text"), file, num_threads=1)}
    eager = frame.with_columns(**columns)
    assert eager["count"].to_list() == alone["count"]
    assert eager["ids"].to_list() == alone["ids"]
    assert eager.schema["count"] == polars.Int64
    assert eager.schema["ids"] == polars.List(polars.Int32)
    for engine in ("in-memory", "streaming"):
        lazy = frame.lazy().with_columns(**columns).filter(polars.col("count") > 100)
        wanted = [(n, row) for n, row in zip(alone["count"], alone["ids"], strict=True) if n and n > 100]
        assert lazy.select("count", "ids").collect(engine=engine).rows() == wanted
    total = frame.lazy().select(count_tokens("text", file).sum()).collect().item()
    assert total == sum(filter(None, alone["count"]))
    grouped = frame.with_row_index().group_by(polars.col("index") % 3).agg(count_tokens("text", file).sum())
    assert grouped["text"].sum() == total


def test_polars_and_nothing(file: Path) -> None:
    polars = package("polars")
    from infer_accel.integrations.polars import count_tokens, encode

    empty = polars.DataFrame({"text": []}, schema={"text": polars.String})
    assert empty.with_columns(encode("text", file)).schema["text"] == polars.List(polars.Int32)
    assert empty.select(count_tokens("text", file)).height == 0
    nothing = polars.DataFrame({"text": [None, None]}, schema={"text": polars.String})
    assert nothing.select(count_tokens("text", file)).to_series().to_list() == [None, None]


_PART = """
import sys, polars
from infer_accel.integrations.polars import count_tokens
path, tokenizer, part = sys.argv[1:]
frame = polars.scan_parquet(path).with_row_index().filter(polars.col("index") % 2 == int(part))
print(frame.select(count_tokens("text", tokenizer, num_threads=1).sum()).collect().item())
"""


def test_two_processes_of_polars(file: Path, alone: dict[str, list[Any]], tmp_path: Path) -> None:
    polars = package("polars")
    path = tmp_path / "texts.parquet"
    polars.DataFrame({"text": alone["text"]}).write_parquet(path)
    workers = [
        subprocess.Popen([sys.executable, "-c", _PART, path, file, str(part)], stdout=subprocess.PIPE)
        for part in range(2)
    ]
    parts = [int(worker.communicate()[0]) for worker in workers]
    assert sum(parts) == sum(filter(None, alone["count"]))
    assert all(parts)
