"""Ids to text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer_accel.tokenize._batch import Errors, Ids, TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterable


class Decodes:
    """The calls of a :class:`Tokenizer` that make text."""

    __slots__ = ()

    _core: Any

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
        texts: list[str]
        if isinstance(batch, TokenBatch):
            texts = self._core.decode_batch(
                batch.ids, batch.offsets, skip_special_tokens, errors, num_threads
            )
        else:
            texts = self._core.decode_lists(batch, skip_special_tokens, errors, num_threads)
        return texts
