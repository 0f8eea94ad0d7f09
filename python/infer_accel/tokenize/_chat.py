"""Conversations to prompts, and to their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from infer_accel import _backend
from infer_accel.tokenize._batch import TokenBatch
from infer_accel.tokenize._given import clock, core_of, pairs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from infer_accel.tokenize._tokenizer import Tokenizer

#: A message: a dict with a ``role``, a ``content``, and whatever else the template knows.
Message: TypeAlias = "Mapping[str, object]"
#: Messages in order.
Conversation: TypeAlias = "Sequence[Message]"


class ChatTemplate:
    r"""Turns conversations into prompts as a model's chat template says; :attr:`Tokenizer.chat` has one.

    A template is what ``tokenizer_config.json`` calls ``chat_template``, written for Jinja as ``transformers``
    sets it up, and shows here what it shows there. Immutable, shared freely between threads.

    Parameters
    ----------
    tokenizer
        What :meth:`encode` and :meth:`count` use.
    template
        The template's text.
    special_tokens
        Variables that the template always has, such as ``bos_token``.

    Raises
    ------
    TokenizerError
        The text is no template.

    Notes
    -----
    Special tokens in messages
        :meth:`encode` finds special tokens only where the template wrote their beginning: a user who writes
        ``<|im_end|>`` gets the tokens of those letters. ``trust_messages=True`` finds them everywhere, as
        ``transformers`` does. Without special tokens in the messages the two give the same.

    Bounds
        One rendering takes at most 50 million steps and gives at most 64 MiB of text; values are nested at most
        64 deep.

    Examples
    --------
    >>> chat = tokenizer.chat  # doctest: +SKIP
    >>> chat.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)  # doctest: +SKIP
    '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    """

    __slots__ = ("_core", "_source", "_tokenizer")

    _core: Any

    def __init__(
        self, tokenizer: Tokenizer, template: str, *, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        named = pairs_of(special_tokens)
        self._core = _backend.load("tokenize").ChatTemplate(core_of(tokenizer), template, named)
        self._tokenizer = tokenizer
        self._source: tuple[str, dict[str, str]] | None = (template, dict(named))

    @classmethod
    def of(cls, core: object, tokenizer: Tokenizer) -> ChatTemplate:
        """Return the face of a tokenizer's own template; :attr:`Tokenizer.chat` calls this."""
        template = cls.__new__(cls)
        template._bind(core, tokenizer)  # noqa: SLF001 - the object that is being made
        return template

    def _bind(self, core: object, tokenizer: Tokenizer) -> None:
        self._core, self._tokenizer, self._source = core, tokenizer, None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that gives the ids."""
        return self._tokenizer

    def render(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt of a conversation.

        Parameters
        ----------
        messages
            The messages: dicts, lists, strings, numbers, booleans and None, nothing else.
        tools
            Descriptions of functions, in JSON Schema. Python functions are not turned into descriptions.
        documents
            What the template shows as retrieved documents.
        add_generation_prompt
            End with the beginning of the answer.
        now
            What templates show as the time; the clock's by default.
        variables
            Whatever else the template knows, such as ``enable_thinking``.

        Returns
        -------
        str
            The prompt, with special tokens as text.

        Raises
        ------
        TokenizerError
            The template refuses the conversation (code ``tokenizer.template_raised``), fails on it, or exceeds
            its bounds (``tokenizer.template``).
        DTypeError
            Something else than the values above came.
        """
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        prompt: str = self._core.render(
            {"messages": messages, **shared}, clock(now, shown=self._core.shows_time)
        )
        return prompt

    def encode(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        trust_messages: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> NDArray[np.int32]:
        """Return the ids of a conversation's prompt: rendered and encoded in one native call.

        Parameters
        ----------
        trust_messages
            Find special tokens in the messages, too. See the class's notes before you pass True.
        messages, tools, documents, add_generation_prompt, now, variables
            As for :meth:`render`.

        Returns
        -------
        int32 ``[tokens]``
            Nothing is put around what the template shows; the file's truncation and padding are left out.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`render`; also where a message holds a special token's text that cannot be told from
            the template's own (``tokenizer.untrusted_special``).
        """
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        ids: NDArray[np.int32] = self._core.encode(
            {"messages": messages, **shared}, clock(now, shown=self._core.shows_time), trust_messages
        )
        return ids

    def count(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        trust_messages: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> int:
        """Return the number of ids of a conversation's prompt, without making them.

        Arguments and errors as for :meth:`encode`.
        """
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        count: int = self._core.count(
            {"messages": messages, **shared}, clock(now, shown=self._core.shows_time), trust_messages
        )
        return count

    def render_batch(
        self,
        conversations: Iterable[Conversation],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
        num_threads: int | None = None,
    ) -> list[str]:
        """Return the prompts of many conversations, which share everything but their messages.

        Arguments and errors as for :meth:`render`; on at most `num_threads` threads. Heeds Ctrl-C.
        """
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        prompts: list[str] = self._core.render_batch(
            conversations, shared, clock(now, shown=self._core.shows_time), num_threads
        )
        return prompts

    def encode_batch(
        self,
        conversations: Iterable[Conversation],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        trust_messages: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
        num_threads: int | None = None,
    ) -> TokenBatch:
        """Return the ids of many conversations' prompts; arguments and errors as for :meth:`encode`."""
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        ids, offsets = self._core.encode_batch(
            conversations, shared, clock(now, shown=self._core.shows_time), trust_messages, num_threads
        )
        return TokenBatch(ids, offsets)

    def count_batch(
        self,
        conversations: Iterable[Conversation],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = False,
        trust_messages: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of each prompt, int64; arguments and errors as for :meth:`encode`."""
        shared = _variables(tools, documents, variables, add_generation_prompt=add_generation_prompt)
        counts: NDArray[np.int64] = self._core.count_batch(
            conversations, shared, clock(now, shown=self._core.shows_time), trust_messages, num_threads
        )
        return counts

    def __reduce__(self) -> tuple[object, ...]:
        if self._source is None:
            return (_chat_of, (self._tokenizer,))
        template, special_tokens = self._source
        return (_rebuild, (self._tokenizer, template, special_tokens))

    def __repr__(self) -> str:
        return f"ChatTemplate of {self._tokenizer!r}"


def _variables(
    tools: object, documents: object, more: Mapping[str, object] | None, *, add_generation_prompt: bool
) -> dict[str, object]:
    given = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
    return {**given, **(more or {})}


def _chat_of(tokenizer: Tokenizer) -> ChatTemplate | None:
    return tokenizer.chat


def _rebuild(tokenizer: Tokenizer, template: str, special_tokens: dict[str, str]) -> ChatTemplate:
    return ChatTemplate(tokenizer, template, special_tokens=special_tokens)
