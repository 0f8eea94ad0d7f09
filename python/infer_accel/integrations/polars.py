"""Counting and encoding inside queries of Polars.

Needs Polars and pyarrow: ``pip install 'infer-accel[polars]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from infer_accel.integrations._bulk import CountTokens, EncodeTexts

if TYPE_CHECKING:
    import os

__all__ = ["count_tokens", "encode"]

_COLUMN, _OUTPUT = "text", "tokens"


def count_tokens(
    texts: str | pl.Expr,
    tokenizer: str | os.PathLike[str],
    *,
    add_special_tokens: bool = True,
    num_threads: int | None = None,
) -> pl.Expr:
    """Return an expression: the number of tokens of each text, Int64.

    Strings are read where they lie. The expression is elementwise, so lazy and streaming queries hand it one piece
    at a time; the interpreter's lock is given away while a piece is counted.

    Parameters
    ----------
    texts
        A column's name, or an expression of strings. Where a text is null, so is its count.
    tokenizer
        A tokenizer file, or a model's directory.
    add_special_tokens
        Count the tokens that the file puts around a text.
    num_threads
        Threads of a call; ``None`` for ``INFER_ACCEL_NUM_THREADS`` or all processors.

    Raises
    ------
    TokenizerError
        The tokenizer cannot be read.

    Examples
    --------
    >>> import polars
    >>> query = polars.scan_parquet("texts.parquet")  # doctest: +SKIP
    >>> query.filter(count_tokens("text", "tokenizer.json") <= 8192).collect()  # doctest: +SKIP
    """
    call = CountTokens(
        tokenizer,
        column=_COLUMN,
        output=_OUTPUT,
        add_special_tokens=add_special_tokens,
        num_threads=num_threads,
    )
    return _mapped(texts, call, pl.Int64())


def encode(
    texts: str | pl.Expr,
    tokenizer: str | os.PathLike[str],
    *,
    add_special_tokens: bool = True,
    num_threads: int | None = None,
) -> pl.Expr:
    """Return an expression: the token ids of each text, ``List(Int32)``; else as :func:`count_tokens`."""
    call = EncodeTexts(
        tokenizer,
        column=_COLUMN,
        output=_OUTPUT,
        add_special_tokens=add_special_tokens,
        num_threads=num_threads,
    )
    return _mapped(texts, call, pl.List(pl.Int32()))


def _mapped(texts: str | pl.Expr, call: CountTokens | EncodeTexts, dtype: pl.DataType) -> pl.Expr:
    expression = pl.col(texts) if isinstance(texts, str) else texts

    def made(series: pl.Series) -> pl.Series:
        table = pa.table({_COLUMN: pa.chunked_array(series)})
        return pl.Series(series.name, call(table).column(_OUTPUT), dtype)

    return expression.map_batches(made, return_dtype=dtype, is_elementwise=True)
