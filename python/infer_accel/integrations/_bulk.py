"""Texts in Arrow tables to counts and ids: what workers of any engine call, each batch by itself."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc

from infer_accel._files import read_plain
from infer_accel.errors import ArgumentError, TokenizerError
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["CountTokens", "EncodeTexts", "TokenizerFile"]

#: What of a model's directory can decide how a text is cut.
_TOKENIZER_SUFFIXES = frozenset({".json", ".model", ".tiktoken", ".jinja", ".txt"})
_TEXT_TYPES = frozenset({pa.string(), pa.large_string(), pa.string_view()})


class TokenizerFile:
    """A tokenizer by its path and content, as it travels to workers: each reads it once.

    Parameters
    ----------
    path
        A file, or a model's directory; under the same path on every machine.

    Raises
    ------
    TokenizerError
        The path cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.digest = _digest(self.path)

    def open(self) -> Tokenizer:
        """Return the tokenizer; a TokenizerError where this machine has another one under the path."""
        return _opened(self.path, self.digest)


@functools.lru_cache(maxsize=8)
def _opened(path: str, digest: str) -> Tokenizer:
    if _digest(path) != digest:
        message = f"{path} is another tokenizer here than where the work was given out; copy that one to every machine"
        raise TokenizerError(message, code="tokenizer.other_file")
    load = Tokenizer.from_dir if Path(path).is_dir() else Tokenizer.from_file
    return load(path)


def _digest(path: str) -> str:
    found = Path(path)
    content = hashlib.sha256()
    try:
        if not found.is_dir():
            content.update(read_plain(found))
            return content.hexdigest()
        files = [file for file in found.iterdir() if file.suffix in _TOKENIZER_SUFFIXES and file.is_file()]
        for file in sorted(files):
            digest = hashlib.sha256(read_plain(file)).hexdigest()
            content.update(f"{file.name} {digest}\n".encode())
    except OSError as error:
        message = f"the tokenizer {path} cannot be read: {error}"
        raise TokenizerError(message, code="tokenizer.read") from error
    return content.hexdigest()


class _OnTexts:
    """A call on batches that adds a column made from a column of texts."""

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        *,
        column: str = "text",
        output: str = "tokens",
        add_special_tokens: bool = True,
        num_threads: int | None = 1,
    ) -> None:
        self._tokenizer = TokenizerFile(tokenizer)
        self._column, self._output = column, output
        self._add_special_tokens, self._num_threads = add_special_tokens, num_threads

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the batch with one more column, in which what is null stays null."""
        if self._column not in batch.column_names:
            message = (
                f"a batch without the column {self._column!r} came; it has {', '.join(batch.column_names)}"
            )
            raise ArgumentError(message, code="argument.column")
        texts = batch.column(self._column)
        is_null = None
        if texts.null_count and texts.type in _TEXT_TYPES:
            is_null = pc.is_null(texts).combine_chunks()
            if pa.types.is_string_view(texts.type):  # which Arrow has no such function for
                texts = texts.cast(pa.large_string())
            texts = pc.fill_null(texts, "")
        made = self._made(self._tokenizer.open(), texts, is_null)
        if self._output in batch.column_names:
            place = batch.column_names.index(self._output)
            return batch.set_column(place, self._output, made)
        return batch.append_column(self._output, made)

    def _made(self, tokenizer: Tokenizer, texts: pa.ChunkedArray, is_null: pa.Array | None) -> pa.Array:
        raise NotImplementedError


class CountTokens(_OnTexts):
    """Adds the number of tokens of each text to a table of Arrow, which is read where it lies.

    For ``map_batches`` of Ray Data and whatever else hands tables of Arrow to a callable. It travels to other
    processes with the tokenizer's path and digest; a process reads the file once.

    Parameters
    ----------
    tokenizer
        A tokenizer file, or a model's directory; under the same path, with the same content, on every machine.
    column
        The column of texts: ``string``, ``large_string`` or ``string_view``. Where a text is null, so is its count.
    output
        The column to add, int64; one of that name is replaced.
    add_special_tokens
        Count the tokens that the file puts around a text.
    num_threads
        Threads of a call; 1, since engines run a call on each core. ``None`` for all processors.

    Raises
    ------
    TokenizerError
        The tokenizer cannot be read, or, in a worker, is not the same (``tokenizer.other_file``).
    ArgumentError
        A batch has no such column.
    DTypeError
        The column holds no texts.

    Examples
    --------
    >>> import pyarrow
    >>> count = CountTokens("tokenizer.json")  # doctest: +SKIP
    >>> count(pyarrow.table({"text": ["two words", None]}))["tokens"].to_pylist()  # doctest: +SKIP
    [2, None]
    """

    def _made(self, tokenizer: Tokenizer, texts: pa.ChunkedArray, is_null: pa.Array | None) -> pa.Array:
        counts: npt.NDArray[np.int64] = tokenizer.count_batch(
            texts, add_special_tokens=self._add_special_tokens, num_threads=self._num_threads
        )
        made = pa.array(counts)
        return made if is_null is None else pc.if_else(is_null, None, made)


class EncodeTexts(_OnTexts):
    """Adds the token ids of each text to a table of Arrow, as ``large_list<int32>``.

    Parameters, errors and travelling as for :class:`CountTokens`. A file that pads to the longest text of a batch
    would make ids depend on how texts are cut into batches: turn its padding off.

    Examples
    --------
    >>> import pyarrow
    >>> encode = EncodeTexts("tokenizer.json", output="ids")  # doctest: +SKIP
    >>> encode(pyarrow.table({"text": ["two words"]}))["ids"].type  # doctest: +SKIP
    LargeListType(large_list<item: int32>)
    """

    def _made(self, tokenizer: Tokenizer, texts: pa.ChunkedArray, is_null: pa.Array | None) -> pa.Array:
        batch = tokenizer.encode_batch(
            texts, add_special_tokens=self._add_special_tokens, num_threads=self._num_threads
        )
        return cast(
            "pa.Array",
            pa.LargeListArray.from_arrays(pa.array(batch.offsets), pa.array(batch.ids), mask=is_null),
        )
