"""What a byte-level tokenizer is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infer_accel.errors import TokenizerError

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class AddedToken:
    """A content that is found in the text before it is cut into pieces."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class Model:
    """Everything that a byte-level tokenizer is made of."""

    #: Bytes → id of what text can become.
    tokens: Mapping[bytes, int]
    #: Rank of a merge of two tokens, or None.
    rank: Callable[[bytes, bytes], int | None]
    #: A piece that is a token as a whole becomes it, whatever the merges say.
    whole_pieces_first: bool
    #: What cuts text into pieces, each pattern what the one before has left.
    patterns: Sequence[re.Pattern[str]]
    #: Whether text between two matches of a pattern is a piece, too.
    keep_unmatched: bool
    #: Id → what it decodes to, all tokens.
    decoded: Mapping[int, bytes]
    #: Written form → id, all tokens.
    forms: Mapping[str, int]
    added: Sequence[AddedToken] = ()
    normalize: Callable[[str], str] = str
    prefix_space: bool = False
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None
    eos: int | None = None
    special: frozenset[int] = field(default_factory=frozenset)


def beyond(what: str) -> TokenizerError:
    message = f"{what}: the specification covers byte-level BPE only; set INFER_ACCEL_BACKEND=native"
    return TokenizerError(message, code="tokenizer.beyond_reference")
