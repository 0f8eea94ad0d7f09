"""Text to tokens, token counts, and back: exact, and fast enough to count on a server's event loop.

A :class:`Tokenizer` is read from a Hugging Face ``tokenizer.json`` or from tiktoken ranks. Byte-level BPE
(GPT-2, cl100k, o200k, Llama 3, Qwen and their relatives) runs on a native pipeline; every other
``tokenizer.json`` runs on the ``tokenizers`` crate. Either way the ids are those of the family's reference.

Special tokens in text
    ``parse_special=False``, the default, takes all text as plain text: a user who writes ``<|im_start|>``
    gets the tokens of those letters and cannot forge the structure of a prompt. ``parse_special=True`` finds
    special tokens in the text, as ``tokenizers`` and vLLM do: only for text that you wrote yourself. Added
    tokens that their file does not call special are found either way. ``add_special_tokens=True``, the
    default, puts the tokens around the text that the file asks for, such as ``<|begin_of_text|>``.

Threads
    A tokenizer is immutable: any number of threads may share one, and a forked child may go on using it. Long
    calls release the interpreter's lock, and batches heed Ctrl-C.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from infer_accel import _backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

__all__ = ["Ids", "TokenBatch", "Tokenizer", "count_tokens"]

#: A flat list of token ids: any sequence of ints, numpy array or torch tensor on the CPU.
Ids: TypeAlias = "Sequence[int] | NDArray[np.integer] | Tensor"
Errors: TypeAlias = Literal["replace", "ignore", "strict"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The ids of many texts, one after the other in one array.

    Parameters
    ----------
    ids
        int32 ``[tokens]``: all ids.
    offsets
        int64 ``[texts + 1]``: the ids of text ``i`` are ``ids[offsets[i]:offsets[i + 1]]``.

    Examples
    --------
    >>> import numpy as np
    >>> batch = TokenBatch(np.array([5, 6, 7], np.int32), np.array([0, 1, 1, 3], np.int64))
    >>> [ids.tolist() for ids in batch]
    [[5], [], [6, 7]]
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Return the ids of one text, a view of :attr:`ids`."""
        texts = len(self)
        if not -texts <= index < texts:
            raise IndexError(f"text {index} of a batch of {texts}")
        index %= texts
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """Iterate over the ids of each text, views of :attr:`ids`."""
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 ``[texts]``: the number of ids of each text."""
        return np.diff(self.offsets)

    def to_padded(
        self, pad_id: int = 0, *, width: int | None = None, side: Literal["left", "right"] = "right"
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the ids as a rectangle, and where it holds ids.

        Parameters
        ----------
        pad_id
            What stands where a text has no id.
        width
            Columns; those of the longest text by default. Texts that are longer are refused, not cut.
        side
            Where the padding stands.

        Returns
        -------
        ids : int32 ``[texts, width]``
            Fresh memory.
        mask : bool ``[texts, width]``
            True where `ids` holds an id of the text.

        Raises
        ------
        ValueError
            A text is longer than `width`, or `side` is neither left nor right.

        Examples
        --------
        >>> import numpy as np
        >>> batch = TokenBatch(np.array([5, 6, 7], np.int32), np.array([0, 1, 3], np.int64))
        >>> ids, mask = batch.to_padded(pad_id=9, side="left")
        >>> ids.tolist()
        [[9, 5], [6, 7]]
        """
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        columns = longest if width is None else width
        if columns < longest:
            raise ValueError(f"a text has {longest} ids, more than width={columns}; cut the texts first")
        if side not in {"left", "right"}:
            raise ValueError(f"side={side!r} came; allowed: 'left', 'right'")
        places = np.arange(columns)
        missing = columns - lengths[:, None]
        mask = places < lengths[:, None] if side == "right" else places >= missing
        padded = np.full(mask.shape, pad_id, dtype=np.int32)
        padded[mask] = self.ids
        return padded, mask


class Tokenizer:
    """Text to token ids and back; made by :meth:`from_file`, :meth:`from_dir` or :meth:`from_tiktoken`.

    Immutable, shared freely between threads. Pickling keeps where it came from, and reads that again.

    Examples
    --------
    >>> tokenizer = Tokenizer.from_file("tokenizer.json")  # doctest: +SKIP
    >>> tokenizer.encode("Hello, world!")  # doctest: +SKIP
    array([9906,   11, 1917,    0], dtype=int32)
    >>> tokenizer.count("Hello, world!")  # doctest: +SKIP
    4
    """

    __slots__ = ("_core", "_source")

    _core: Any
    _source: tuple[Any, ...]

    def __init__(self) -> None:
        message = (
            "a Tokenizer is read from a file: Tokenizer.from_file(path), from_dir(path), from_tiktoken(path)"
        )
        raise TypeError(message)

    @classmethod
    def _load(cls, way: str, path: str | os.PathLike[str], *more: object) -> Tokenizer:
        source = os.fspath(path)
        core = getattr(_backend.load("tokenize").Tokenizer, way)(source, *more)
        tokenizer = cls.__new__(cls)
        object.__setattr__(tokenizer, "_core", core)
        object.__setattr__(tokenizer, "_source", (way, source, *more))
        return tokenizer

    def __reduce__(self) -> tuple[object, ...]:
        return (_reload, self._source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from one file; its content says what it is, not its name.

        Parameters
        ----------
        path
            A Hugging Face ``tokenizer.json``, whose truncation, padding, normalizer and post-processor count;
            or tiktoken ranks (lines of ``base64 rank``) of a well-known vocabulary, recognised by the SHA-256
            of the file: r50k_base, p50k_base, cl100k_base, o200k_base, Llama 3's ``tokenizer.model``,
            ``qwen.tiktoken``.

        Raises
        ------
        TokenizerError
            The file cannot be read, is of no known format, or contradicts itself. For ranks of any other
            vocabulary it says to use :meth:`from_tiktoken`.
        """
        return cls._load("from_file", path)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a model's directory.

        Parameters
        ----------
        path
            A directory with a ``tokenizer.json`` or with tiktoken ranks. The end token (:attr:`eos_token_id`)
            is taken from ``tokenizer_config.json`` or ``special_tokens_map.json``.

        Raises
        ------
        TokenizerError
            As for :meth:`from_file`, and where the directory has no tokenizer.
        """
        return cls._load("from_dir", path)

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str,
        special_tokens: Mapping[str, int] | None = None,
        eos_token: str | None = None,
    ) -> Tokenizer:
        """Read tiktoken ranks, with what such a file does not say.

        Parameters
        ----------
        path
            Lines of ``base64 rank``, plain, not compressed.
        pattern
            The regular expression that cuts text into pieces (tiktoken's ``pat_str``), or the name of a
            well-known one: ``"gpt2"``, ``"cl100k"``, ``"o200k"``, ``"llama3"``, ``"qwen2"``. Well-known
            patterns run on scanners of their own, others on a regex engine.
        special_tokens
            Contents and ids of special tokens.
        eos_token
            Which of them ends a text.

        Raises
        ------
        TokenizerError
            The file cannot be read or is malformed, a byte has no rank, the pattern is no regular expression,
            or a special token's id is already a rank.
        """
        special = list((special_tokens or {}).items())
        return cls._load("from_tiktoken", path, pattern, special, eos_token)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Return the ids of a text.

        Parameters
        ----------
        text
            Any text; a lone surrogate is an error, as it has no tokens.
        add_special_tokens
            Put the special tokens around the text that the file asks for.
        parse_special
            Find special tokens in the text itself. See the module's text before you pass True.

        Returns
        -------
        int32 ``[tokens]``
            Fresh memory. The file's truncation and padding are applied.

        Raises
        ------
        TokenizerError
            The text has a lone surrogate; or the pipeline gave up.
        DTypeError
            `text` is no ``str``.

        Notes
        -----
        Linear in the length of the text.
        """
        ids: NDArray[np.int32] = self._core.encode(text, add_special_tokens, parse_special)
        return ids

    def encode_list(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of a text as a list of ``int``; arguments and errors as for :meth:`encode`.

        The ints are ready-made ones, shared between all lists: the first call makes one for each id.
        """
        ids: list[int] = self._core.encode_list(text, add_special_tokens, parse_special)
        return ids

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> TokenBatch:
        """Return the ids of many texts, in two arrays.

        Parameters
        ----------
        texts
            The texts; a single ``str`` is refused.
        add_special_tokens, parse_special
            As for :meth:`encode`.
        num_threads
            Threads to use at most; those of the process by default.

        Returns
        -------
        TokenBatch
            Where the file pads to the longest text of a batch, all texts have the length of the longest.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`encode`; nothing is returned for the texts that were fine.
        KeyboardInterrupt
            Ctrl-C was pressed.
        """
        ids, offsets = self._core.encode_batch(texts, add_special_tokens, parse_special, num_threads)
        return TokenBatch(ids, offsets)

    def count(
        self,
        text: str,
        *,
        truncation: bool = False,
        add_special_tokens: bool = True,
        parse_special: bool = False,
    ) -> int:
        """Return the number of ids of a text, without making them.

        Parameters
        ----------
        text
            As for :meth:`encode`.
        truncation
            False leaves the file's truncation and padding out: the length of the text. True counts what
            :meth:`encode` returns.
        add_special_tokens, parse_special
            As for :meth:`encode`.

        Returns
        -------
        int
            Special tokens that are put around the text are counted.
        """
        count: int = self._core.count(text, add_special_tokens, parse_special, truncation)
        return count

    def count_batch(
        self,
        texts: Iterable[str],
        *,
        truncation: bool = False,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of each text, int64 ``[texts]``; arguments as for :meth:`count`."""
        counts: NDArray[np.int64] = self._core.count_batch(
            texts, add_special_tokens, parse_special, truncation, num_threads
        )
        return counts

    def fits(
        self, text: str, max_tokens: int, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> bool:
        """Return whether a text has at most `max_tokens` ids; looks no further than it must.

        Truncation and padding of the file are left out, as in :meth:`count`.
        """
        fits: bool = self._core.fits(text, max_tokens, add_special_tokens, parse_special)
        return fits

    def truncate(
        self, text: str, max_tokens: int, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> str:
        """Return a beginning of the text that has at most `max_tokens` ids.

        Parameters
        ----------
        text
            As for :meth:`encode`.
        max_tokens
            How many ids the result may have, the special tokens around it included.
        add_special_tokens, parse_special
            As for :meth:`encode`.

        Returns
        -------
        str
            The text up to the end of one of its tokens, moved back to a whole character; empty where not even
            one fits. ``count(truncate(text, n)) <= n`` holds except where the special tokens alone are more.
        """
        beginning: str = self._core.truncate(text, max_tokens, add_special_tokens, parse_special)
        return beginning

    def decode(self, ids: Ids, *, skip_special_tokens: bool = True, errors: Errors = "replace") -> str:
        """Return the text of ids.

        Parameters
        ----------
        ids
            A flat list of ids.
        skip_special_tokens
            Leave special tokens out.
        errors
            What to do with bytes that are not UTF-8: ``"replace"`` puts U+FFFD in their place, as the
            references do; ``"ignore"`` leaves them out; ``"strict"`` raises.

        Raises
        ------
        IdError
            An id is negative, beyond the vocabulary, or in a gap of it.
        TokenizerError
            ``errors="strict"``, and the bytes are not UTF-8.
        DTypeError, ShapeError
            `ids` are no integers, or not one axis of them.
        """
        text: str = self._core.decode(ids, skip_special_tokens, errors)
        return text

    def decode_bytes(self, ids: Ids, *, skip_special_tokens: bool = True) -> bytes:
        """Return the bytes of ids: a token may end inside a character.

        Pipelines that are not byte-level decode to text only; their bytes are those of that text. Errors as
        for :meth:`decode`.
        """
        content: bytes = self._core.decode_bytes(ids, skip_special_tokens)
        return content

    def decode_batch(
        self,
        batch: TokenBatch | Iterable[Ids],
        *,
        skip_special_tokens: bool = True,
        errors: Errors = "replace",
        num_threads: int | None = None,
    ) -> list[str]:
        """Return the texts of many lists of ids; arguments and errors as for :meth:`decode`."""
        if not isinstance(batch, TokenBatch):
            batch = _join(batch)
        texts: list[str] = self._core.decode_batch(
            batch.ids, batch.offsets, skip_special_tokens, errors, num_threads
        )
        return texts

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token in its written form, or None.

        Byte-level tokens are written in GPT-2's printable alphabet (``Ġthe`` for ``b" the"``), whatever the
        file.
        """
        found: int | None = self._core.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the written form of an id, or None where no token has it."""
        token: str | None = self._core.id_to_token(token_id)
        return token

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id, added tokens included: the least width of a table by id."""
        size: int = self._core.vocab_size
        return size

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, where the source of the tokenizer says so."""
        found: int | None = self._core.eos_token_id
        return found

    @property
    def is_native(self) -> bool:
        """Whether the native pipeline does the work; if not, the ``tokenizers`` crate does."""
        native: bool = self._core.is_native
        return native

    def __len__(self) -> int:
        """Return :attr:`vocab_size`."""
        return self.vocab_size

    def __repr__(self) -> str:
        way, source = self._source[:2]
        return f"Tokenizer.{way}({source!r})"


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


def _reload(way: str, source: str, *more: object) -> Tokenizer:
    return Tokenizer._load(way, source, *more)  # noqa: SLF001 - the other half of Tokenizer.__reduce__


def _join(lists: Iterable[Ids]) -> TokenBatch:
    """Put lists of ids into one array, with their offsets."""
    arrays = [np.atleast_1d(np.asarray(ids)) for ids in lists]
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    filled = [array for array in arrays if len(array)]
    ids = np.concatenate(filled) if filled else np.zeros(0, dtype=np.int32)
    return TokenBatch(ids, offsets)
