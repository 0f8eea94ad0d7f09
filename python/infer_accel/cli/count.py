"""`infer-accel count`: how many tokens files hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated

import typer

from infer_accel.cli.output import (
    MOST_THREADS,
    byte_progress,
    guarded,
    refuse,
    require_apart,
    require_finite,
    require_plain,
    require_writable,
    results,
    write_results,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from infer_accel.tokenize import ChatTemplate, Tokenizer

__all__ = ["run"]

#: Texts are counted when about this many characters have come together: enough for every thread.
_BATCH_CHARACTERS = 4 << 20
#: Keys of a record that are looked for where ``--field`` names none: a text, or a conversation.
_TEXT_FIELDS = ("text", "content", "prompt")
_CHAT_FIELDS = ("messages", "conversation", "conversations")
_PERCENTILES = (0, 1, 10, 50, 90, 99, 100)


def run(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, or directories to look through.", show_default=False)
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            "--tokenizer", "-t", help="A tokenizer file, or a model's directory.", show_default=False
        ),
    ],
    field_name: Annotated[
        str | None,
        typer.Option("--field", help="Key (column) of the text or the messages; found by name unless told."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Also how many texts have more tokens than this.")
    ] = None,
    add_special_tokens: Annotated[
        bool,
        typer.Option("--special/--no-special", help="Count the tokens that the file puts around a text."),
    ] = True,
    num_threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=MOST_THREADS, help="Threads; all unless told.")
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - for the output."),
    ] = None,
) -> None:
    """Count tokens: one text a file, a record of JSON lines, or a row of Parquet.

    Records with messages are counted as the model's chat template writes them. Exit codes: 0 counted, 2 wrong
    input.
    """
    from infer_accel.tokenize import Tokenizer

    for path in paths:
        require_finite(path, "a file of text, JSON lines or Parquet, or a directory of them")
    require_plain(tokenizer, "a tokenizer file or a model's directory")
    if json_path is not None and str(json_path) != "-":
        require_apart(json_path, "--json", [path for path in (*paths, tokenizer) if path.is_file()])
        require_writable(json_path, "--json")
    files = [file for path in paths for file in _files(path)]
    if not files:
        refuse(f"{', '.join(map(str, paths))}: no files there")
    with guarded(tokenizer):
        loaded = (Tokenizer.from_dir if tokenizer.is_dir() else Tokenizer.from_file)(tokenizer)
    counter = _Counter(loaded, add_special_tokens=add_special_tokens, num_threads=num_threads)
    counted = _count_files(files, counter, field_name)
    document = _document(counted, limit)
    if str(json_path) == "-":
        typer.echo(json.dumps(document, indent=2))
        return
    _print(document)
    if json_path is not None:
        write_results(json_path, json.dumps(document, indent=2))


def _files(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


# Reading ----------------------------------------------------------------------------------------------------


def _records(path: Path, field_name: str | None) -> Iterator[tuple[object, int]]:
    """Yield what is to be counted in a file, with the bytes of the file read so far."""
    if path.suffix in {".jsonl", ".ndjson"}:
        yield from _json_lines(path, field_name)
    elif path.suffix in {".parquet", ".pq"}:
        yield from _parquet(path, field_name)
    else:
        content = path.read_bytes()
        try:
            yield content.decode("utf-8"), len(content)
        except UnicodeDecodeError as error:
            refuse(f"{path}: is no UTF-8 text (byte {error.start}); name the files that are")


def _json_lines(path: Path, field_name: str | None) -> Iterator[tuple[object, int]]:
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            read += len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                refuse(f"{path}, line {number}: {error}")
            yield _chosen(record, field_name, f"{path}, line {number}"), read


def _countable(value: object) -> bool:
    """Return whether `value` is a text, or a list of messages: a template writes other lists as nothing."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, dict) for item in value)
    )


def _chosen(record: object, field_name: str | None, where: str) -> object:
    """Return the text or the messages of a record."""
    if not isinstance(record, dict):
        if _countable(record) and field_name is None:
            return record
        refuse(f"{where}: {type(record).__name__} came; expected an object, a string or a list of messages")
    names = [*_CHAT_FIELDS, *_TEXT_FIELDS] if field_name is None else [field_name]
    found: object = next((record[name] for name in names if _countable(record.get(name))), None)
    if found is not None:
        return found
    wanted = f"no text under {field_name!r}" if field_name else "no text or messages under a usual name"
    return refuse(f"{where}: {wanted}; it has {', '.join(map(repr, record))}: pass --field")


def _parquet(path: Path, field_name: str | None) -> Iterator[tuple[object, int]]:
    if find_spec("pyarrow") is None:
        refuse(f"{path}: Parquet needs pyarrow: pip install 'infer-accel[parquet]'")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        known = [*_CHAT_FIELDS, *_TEXT_FIELDS] if field_name is None else [field_name]
        column = next((name for name in known if name in file.schema_arrow.names), None)
        if column is None:
            refuse(f"{path}: none of its columns {', '.join(file.schema_arrow.names)} is it: pass --field")
        where = f"{path}, column {column!r}"
        rows, size = max(file.metadata.num_rows, 1), path.stat().st_size
        done = 0
        for batch in file.iter_batches(batch_size=4096, columns=[column]):
            for value in batch.column(0).to_pylist():
                done += 1
                text = "" if value is None else value
                if not _countable(text):
                    refuse(f"{where}: {type(value).__name__} came; expected texts or lists of messages")
                yield text, size * done // rows
    except ArrowException as error:
        refuse(f"{path}: {error}")


# Counting ---------------------------------------------------------------------------------------------------


@dataclass
class _Counter:
    """Counts texts and conversations as one tokenizer has them."""

    tokenizer: Tokenizer
    add_special_tokens: bool
    num_threads: int | None

    def texts(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the number of tokens of each text."""
        return self.tokenizer.count_batch(
            texts, add_special_tokens=self.add_special_tokens, num_threads=self.num_threads
        )

    def chats(self, chats: list[list[dict[str, object]]], path: Path) -> NDArray[np.int64]:
        """Return the number of tokens of each conversation's prompt."""
        chat: ChatTemplate | None = self.tokenizer.chat
        if chat is None:
            refuse(
                f"{path}: messages came, and the tokenizer has no chat template: pass the model's directory"
            )
        return chat.count_batch(chats, num_threads=self.num_threads)


@dataclass
class _File:
    """What was counted in one file."""

    path: Path
    characters: int = 0
    counts: list[int] = field(default_factory=list)


def _count_files(files: list[Path], counter: _Counter, field_name: str | None) -> list[_File]:
    total = sum(file.stat().st_size for file in files)
    counted, before = [], 0
    with byte_progress("counting") as show:
        for path in files:
            start = before
            show(start, total)

            def step(read: int, start: int = start) -> None:
                show(start + read, total)

            with guarded(path):
                counted.append(_count_file(path, counter, field_name, step))
            before += path.stat().st_size
    return counted


def _count_file(path: Path, counter: _Counter, field_name: str | None, show: Callable[[int], None]) -> _File:
    result, waiting, size = _File(path), list[object](), 0
    for record, read in _records(path, field_name):
        waiting.append(record)
        size += len(record) if isinstance(record, str) else 4096
        if size >= _BATCH_CHARACTERS:
            _count(waiting, counter, result)
            waiting, size = [], 0
            show(read)
    _count(waiting, counter, result)
    return result


def _count(records: list[object], counter: _Counter, result: _File) -> None:
    texts = [record for record in records if isinstance(record, str)]
    chats = [record for record in records if isinstance(record, list)]
    result.characters += sum(map(len, texts))
    if texts:
        result.counts.extend(counter.texts(texts).tolist())
    if chats:
        result.counts.extend(counter.chats(chats, result.path).tolist())


# Reporting --------------------------------------------------------------------------------------------------


def _document(counted: list[_File], limit: int | None) -> dict[str, object]:
    files = [{"path": str(file.path), **_figures(file.counts, limit)} for file in counted]
    everything = [count for file in counted for count in file.counts]
    characters = sum(file.characters for file in counted)
    total = {"characters": characters, **_figures(everything, limit)}
    return {"files": files, "total": total}


def _figures(counts: list[int], limit: int | None) -> dict[str, object]:
    import numpy as np

    figures: dict[str, object] = {"texts": len(counts), "tokens": sum(counts)}
    if limit is not None:
        figures["above_limit"] = sum(count > limit for count in counts)
    if counts:
        figures["mean"] = round(sum(counts) / len(counts), 2)
        values = np.percentile(counts, _PERCENTILES, method="higher")
        figures["percentiles"] = dict(zip(map(str, _PERCENTILES), map(int, values), strict=True))
    return figures


def _print(document: dict[str, object]) -> None:
    from rich.table import Table

    files, total = document["files"], document["total"]
    assert isinstance(files, list)  # noqa: S101 - for the type checker
    assert isinstance(total, dict)  # noqa: S101
    columns = ["texts", "tokens", *(["above_limit"] if "above_limit" in total else []), "mean"]
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in [*columns, *(f"p{share}" for share in _PERCENTILES)]:
        table.add_column(name.replace("_", " "), justify="right")
    rows = [*files, {"path": "all", **total}] if len(files) > 1 else files
    for row in rows:
        shares = row.get("percentiles", {})
        values = [row.get(name, "") for name in columns] + [
            shares.get(str(share), "") for share in _PERCENTILES
        ]
        table.add_row(row["path"], *(f"{value:,}" if value != "" else "" for value in values))
    results().print(table)
