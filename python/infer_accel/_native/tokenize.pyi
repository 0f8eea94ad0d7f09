"""
Text to tokens, counts, and back.
"""

from _typeshed import Incomplete, SupportsGetItem
from collections.abc import Sequence
from infer_accel._typing import Tensor
from os import PathLike
from typing import Any, SupportsIndex, final

__all__ = ["ChatTemplate", "PromptCache", "Session", "StreamDecoder", "Tokenizer"]

@final
class ChatTemplate:
    """
    Conversations to prompts.
    """
    def __new__(cls, /, tokenizer: Tokenizer, template: Any, special_tokens: SupportsGetItem[int, tuple[str, str]]) -> ChatTemplate: ...
    def count(self, /, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, trusted: bool) -> int:
        """
        The number of ids of a conversation's prompt.
        """
    def count_batch(self, /, messages: Any, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, trusted: bool, num_threads: int | None) -> Incomplete:
        """
        The number of ids of each of many conversations' prompts.
        """
    def encode(self, /, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, trusted: bool) -> Incomplete:
        """
        The ids of a conversation's prompt.
        """
    def encode_batch(self, /, messages: Any, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, trusted: bool, num_threads: int | None) -> tuple[Incomplete, Incomplete]:
        """
        The ids of many conversations' prompts, and where each begins.
        """
    def render(self, /, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None) -> str:
        """
        The prompt of a conversation.
        """
    def render_batch(self, /, messages: Any, variables: "dict[str, object]", now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, num_threads: int | None) -> list[str]:
        """
        The prompts of many conversations, which share all variables but their messages.
        """
    @property
    def shows_time(self, /) -> bool:
        """
        Whether the template may show the time: if not, there is no need to ask for it.
        """

@final
class PromptCache:
    """
    Ids of prompts that begin like earlier ones.
    """
    def __new__(cls, /, tokenizer: Tokenizer, capacity_bytes: int) -> PromptCache: ...
    def clear(self, /) -> None:
        """
        Forgets everything.
        """
    def count(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> int:
        """
        The number of ids of a prompt.
        """
    def encode(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> Incomplete:
        """
        The ids of a prompt.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int]:
        """
        What the cache holds and has done.
        """

@final
class Session:
    """
    A text that grows, and its ids.
    """
    def __len__(self, /) -> int:
        """
        The number of ids.
        """
    def append(self, text: Any, /) -> int:
        """
        Appends text; returns how many of the ids from before still stand.
        """
    def copy(self, /) -> Session:
        """
        Another session with the same text.
        """
    def ids(self, start: SupportsIndex, /) -> Incomplete:
        """
        The ids from this place on.
        """
    @property
    def settled(self, /) -> int:
        """
        How many ids no appended text can change.
        """

@final
class StreamDecoder:
    """
    Ids to text, one at a time.
    """
    def finish(self, /) -> str:
        """
        The text of what is held back; the stream begins anew.
        """
    def step(self, token_id: int, /) -> str:
        """
        The text that one more id makes certain.
        """
    def step_all(self, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], /) -> str:
        """
        The text that these ids make certain; on an error those before the wrong one have been taken.
        """

@final
class Tokenizer:
    """
    A tokenizer, immutable and shared between threads.
    """
    def chat(self, /) -> ChatTemplate | None:
        """
        The chat template that came with the tokenizer.
        """
    def count(self, /, text: Any, add_special_tokens: bool, parse_special: bool, truncation: bool) -> int:
        """
        The number of ids of a text.
        """
    def count_batch(self, /, texts: Any, add_special_tokens: bool, parse_special: bool, truncation: bool, num_threads: int | None) -> Incomplete:
        """
        The number of ids of each of many texts.
        """
    def decode(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool, errors: str) -> str:
        """
        The text of ids.
        """
    def decode_batch(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], offsets: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool, errors: str, num_threads: int | None) -> "list[str]":
        """
        The texts of a flat list of ids, cut at the offsets.
        """
    def decode_bytes(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool) -> bytes:
        """
        The bytes of ids.
        """
    def decode_lists(self, /, lists: Any, skip_special_tokens: bool, errors: str, num_threads: int | None) -> "list[str]":
        """
        The texts of many lists of ids.
        """
    def encode(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> Incomplete:
        """
        The ids of a text.
        """
    def encode_batch(self, /, texts: Any, add_special_tokens: bool, parse_special: bool, num_threads: int | None) -> tuple[Incomplete, Incomplete]:
        """
        The ids of many texts, and where each begins.
        """
    def encode_list(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> "list[int]":
        """
        The ids of a text, as a list.
        """
    def encode_segments(self, /, texts: Any, trusted: SupportsGetItem[int, bool], add_special_tokens: bool) -> Incomplete:
        """
        The ids of segments, each trusted or not, as of one text.
        """
    @property
    def eos_token_id(self, /) -> int | None:
        """
        The id that ends a text, where it is known.
        """
    def fits(self, /, text: Any, max_tokens: int, add_special_tokens: bool, parse_special: bool) -> bool:
        """
        Whether a text has at most so many ids.
        """
    @staticmethod
    def from_dir(path: str | PathLike[str]) -> Tokenizer:
        """
        Reads a model's directory.
        """
    @staticmethod
    def from_file(path: str | PathLike[str]) -> Tokenizer:
        """
        Reads a file, whatever its format.
        """
    @staticmethod
    def from_tiktoken(path: str | PathLike[str], pattern: str, special_tokens: SupportsGetItem[int, tuple[str, SupportsIndex]], eos_token: str | None) -> Tokenizer:
        """
        Reads tiktoken ranks.
        """
    def id_to_token(self, /, id: int) -> str | None:
        """
        The written form of a token.
        """
    @property
    def is_native(self, /) -> bool:
        """
        Whether the native pipeline does the work.
        """
    def offsets(self, /, text: Any, in_characters: bool, add_special_tokens: bool, parse_special: bool) -> tuple[Incomplete, Incomplete]:
        """
        The ids of a text and where each of them lies in it, in characters or in bytes.
        """
    def session(self, /, add_special_tokens: bool, parse_special: bool) -> Session:
        """
        A text that grows.
        """
    def stream(self, /, skip_special_tokens: bool, errors: str, prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None) -> StreamDecoder:
        """
        A stream of ids to text, which goes on after the ids of a prompt.
        """
    def token_to_id(self, /, token: Any) -> int | None:
        """
        The id of a token in its written form.
        """
    def truncate(self, /, text: Any, max_tokens: int, add_special_tokens: bool, parse_special: bool) -> str:
        """
        The beginning of a text that has at most so many ids.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        One more than the greatest id.
        """
