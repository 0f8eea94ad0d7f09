"""
Text to tokens, counts, and back.
"""

from _typeshed import Incomplete, SupportsGetItem
from collections.abc import Sequence
from infer_accel._typing import Tensor
from os import PathLike
from typing import Any, SupportsIndex, final

__all__ = ["Tokenizer"]

@final
class Tokenizer:
    """
    A tokenizer, immutable and shared between threads.
    """
    def count(self, /, text: Any, add_special_tokens: bool, parse_special: bool, truncation: bool) -> int:
        """
        The number of ids of a text.
        """
    def count_batch(self, /, texts: Any, add_special_tokens: bool, parse_special: bool, truncation: bool, num_threads: SupportsIndex | None) -> Incomplete:
        """
        The number of ids of each of many texts.
        """
    def decode(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool, errors: str) -> str:
        """
        The text of ids.
        """
    def decode_batch(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], offsets: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool, errors: str, num_threads: SupportsIndex | None) -> list[str]:
        """
        The texts of a flat table of ids, cut at the offsets.
        """
    def decode_bytes(self, /, ids: Tensor | Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool) -> bytes:
        """
        The bytes of ids.
        """
    def encode(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> Incomplete:
        """
        The ids of a text.
        """
    def encode_batch(self, /, texts: Any, add_special_tokens: bool, parse_special: bool, num_threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete]:
        """
        The ids of many texts, and where each begins.
        """
    def encode_list(self, /, text: Any, add_special_tokens: bool, parse_special: bool) -> "list[int]":
        """
        The ids of a text, as a list.
        """
    @property
    def eos_token_id(self, /) -> int | None:
        """
        The id that ends a text, where it is known.
        """
    def fits(self, /, text: Any, max_tokens: SupportsIndex, add_special_tokens: bool, parse_special: bool) -> bool:
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
    def id_to_token(self, /, id: SupportsIndex) -> str | None:
        """
        The written form of a token.
        """
    @property
    def is_native(self, /) -> bool:
        """
        Whether the native pipeline does the work.
        """
    def token_to_id(self, /, token: Any) -> int | None:
        """
        The id of a token in its written form.
        """
    def truncate(self, /, text: Any, max_tokens: SupportsIndex, add_special_tokens: bool, parse_special: bool) -> str:
        """
        The beginning of a text that has at most so many ids.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        One more than the greatest id.
        """
