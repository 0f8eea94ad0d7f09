"""How many ids a text has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infer_accel._typing import Texts


class Counts:
    """The calls of a :class:`Tokenizer` that count, and make no ids where its pipeline is native."""

    __slots__ = ()

    _core: Any

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
        texts: Texts,
        *,
        truncation: bool = False,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of each text, int64 ``[texts]``.

        Arguments as for :meth:`count`, `texts` as for :meth:`Tokenizer.encode_batch`: also Arrow data.
        """
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
