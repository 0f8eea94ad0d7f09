"""Counting without a tokenizer at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, overload

from infer_accel.tokenize._tokenizer import Tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray


@overload
def count_tokens(  # type: ignore[overload-overlap]  # a str is an iterable of str, and comes first
    text_or_texts: str, tokenizer: Tokenizer | str | os.PathLike[str]
) -> int: ...
@overload
def count_tokens(
    text_or_texts: Iterable[str], tokenizer: Tokenizer | str | os.PathLike[str]
) -> NDArray[np.int64]: ...
def count_tokens(
    text_or_texts: str | Iterable[str], tokenizer: Tokenizer | str | os.PathLike[str]
) -> int | NDArray[np.int64]:
    """Return how many tokens a text has, or each of many texts.

    Parameters
    ----------
    text_or_texts
        One text, or any iterable of texts.
    tokenizer
        A tokenizer, or the path of one: a file, or a model's directory.

    Returns
    -------
    int or int64 ``[texts]``
        As :meth:`Tokenizer.count` and :meth:`Tokenizer.count_batch` count: special tokens that the file puts
        around a text are included, truncation and padding are not.

    Examples
    --------
    >>> count_tokens(["one text", "another"], "tokenizer.json")  # doctest: +SKIP
    array([2, 1])
    """
    if not isinstance(tokenizer, Tokenizer):
        load = Tokenizer.from_dir if Path(tokenizer).is_dir() else Tokenizer.from_file
        tokenizer = load(tokenizer)
    if isinstance(text_or_texts, str):
        return tokenizer.count(text_or_texts)
    return tokenizer.count_batch(text_or_texts)
