"""The specification of what grows: streams, sessions and prompt caches. All of them do everything anew each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer_accel._reference.tokenize.tokenizer import Tokenizer

__all__ = ["PromptCache", "Session", "StreamDecoder"]


class StreamDecoder:
    """What is shown after each id is what all ids so far decode to, a beginning of a character left out."""

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool, errors: str, prompt: object | None
    ) -> None:
        self._tokenizer, self._skip, self._errors = tokenizer, skip_special_tokens, errors
        self._tokenizer.decode([], skip_special_tokens, errors)
        prompt = [] if prompt is None else np.asarray(prompt).tolist()
        self._pending = _beginning(tokenizer.decode_bytes(prompt, skip_special_tokens))

    def step(self, token_id: int) -> str:
        """Return the text that one more id makes certain."""
        content = self._pending + self._tokenizer.decode_bytes([token_id], self._skip)
        pending = _beginning(content)
        text = self._tokenizer.as_text(content[: len(content) - len(pending)], self._errors)
        self._pending = pending
        return text

    def step_all(self, ids: object) -> str:
        """Return the text that these ids make certain."""
        return "".join(self.step(number) for number in np.asarray(ids).tolist())

    def finish(self) -> str:
        """Return the text of what is held back."""
        pending, self._pending = self._pending, b""
        return self._tokenizer.as_text(pending, self._errors)


def _beginning(content: bytes) -> bytes:
    r"""Return the end of the bytes that more bytes may turn into a character.

    >>> _beginning("ab漢".encode()[:-1])
    b'\xe6\xbc'
    """
    for length in (3, 2, 1):
        end = content[-length:]
        if len(end) == length and end[0] >= 0xC0:
            try:
                end.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0:
                    return end
    return b""


class Session:
    """A text that grows."""

    def __init__(self, tokenizer: Tokenizer, add_special_tokens: bool, parse_special: bool) -> None:
        self._tokenizer, self._options = tokenizer, (add_special_tokens, parse_special)
        self._text = ""

    def _all(self) -> list[int]:
        return self._tokenizer.ids_of(self._text, *self._options)

    def append(self, text: str) -> int:
        """Append text; return how many ids still stand."""
        before = self._all()
        self._tokenizer.ids_of(text, *self._options)
        self._text += text
        after = self._all()
        same = [old == new for old, new in zip(before, after, strict=False)]
        return [*same, False].index(False)

    def ids(self, start: int) -> NDArray[np.int32]:
        """Return the ids from a place on."""
        return np.array(self._all()[start:], dtype=np.int32)

    @property
    def settled(self) -> int:
        """How many ids no text can change: none is certain here."""
        return 0

    def copy(self) -> Session:
        """Return another session with the same text."""
        session = Session(self._tokenizer, *self._options)
        session._text = self._text
        return session

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._all())


class PromptCache:
    """A cache that holds nothing."""

    def __init__(self, tokenizer: Tokenizer, capacity_bytes: int) -> None:
        self._tokenizer, self._capacity_bytes = tokenizer, capacity_bytes
        self._encoded = 0

    def encode(self, text: str, add_special_tokens: bool, parse_special: bool) -> NDArray[np.int32]:
        """Return the ids of a prompt."""
        ids = self._tokenizer.encode(text, add_special_tokens, parse_special)
        self._encoded += len(text.encode())
        return ids

    def count(self, text: str, add_special_tokens: bool, parse_special: bool) -> int:
        """Return the number of ids of a prompt."""
        count = self._tokenizer.count(text, add_special_tokens, parse_special, truncation=False)
        self._encoded += len(text.encode())
        return count

    def stats(self) -> tuple[int, int, int, int, int, int]:
        """Return what it holds and has done."""
        return (0, 0, self._capacity_bytes, 0, self._encoded, 0)

    def clear(self) -> None:
        """Forget everything."""
