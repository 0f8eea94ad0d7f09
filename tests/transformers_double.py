"""A stand-in for the fast tokenizers of ``transformers``: their calls, over the ``tokenizers`` package and Jinja."""

from __future__ import annotations

import sys
from collections import UserDict
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2.sandbox

if TYPE_CHECKING:
    import pytest

HOME = "transformers.tokenization_utils_base"


class BatchEncoding(UserDict):
    """What a model is fed."""


class PreTrainedTokenizerFast:
    """The calls that are taken over, with the signatures and the behaviour of ``transformers`` 5."""

    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    split_special_tokens = False
    clean_up_tokenization_spaces = False
    model_max_length = 10**9

    def __init__(self, backend: Any, chat_template: str, **special_tokens: str) -> None:
        self._tokenizer, self.chat_template = backend, chat_template
        self.special_tokens_map = special_tokens
        #: What was not served elsewhere.
        self.calls: list[str] = []

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        return self.chat_template if chat_template is None else chat_template

    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        self.calls.append("encode")
        encoded = self._encoded(text, text_pair, add_special_tokens, padding, truncation, max_length)
        return encoded["input_ids"]

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> Any:
        self.calls.append("call")
        return self._encoded(text, text_pair, add_special_tokens, padding, truncation, max_length)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        self.calls.append("decode")
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding: Any = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        self.calls.append("chat")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(self.get_chat_template(chat_template, tools))
        shown = [{"name": one.__name__} if callable(one) else one for one in tools] if tools else tools
        prompt = template.render(
            messages=conversation,
            tools=shown,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **(self.special_tokens_map | kwargs),
        )
        if continue_final_message:
            prompt = prompt[: prompt.rindex(conversation[-1]["content"])] + conversation[-1]["content"]
        if not tokenize:
            return prompt
        encoded = self._encoded(prompt, None, False, padding, None, None)
        return encoded if return_dict else encoded["input_ids"]

    def _add_tokens(self, new_tokens: list[str], special_tokens: bool = False) -> int:
        return int(self._tokenizer.add_special_tokens(new_tokens))

    def _encoded(
        self, text: Any, pair: Any, special: bool, padding: Any, truncation: Any, longest: int | None
    ) -> BatchEncoding:
        if padding:
            raise ValueError("no padding token")
        if isinstance(text, list):
            rows = [one.ids for one in self._tokenizer.encode_batch(text, add_special_tokens=special)]
            return BatchEncoding(input_ids=rows, attention_mask=[[1] * len(row) for row in rows])
        self._tokenizer.no_truncation()
        if truncation is not False and (longest is not None or truncation):
            self._tokenizer.enable_truncation(self.model_max_length if longest is None else longest)
        ids = self._tokenizer.encode(text, pair, add_special_tokens=special).ids
        return BatchEncoding(input_ids=ids, attention_mask=[1] * len(ids))


def _refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


for _name in ("get_chat_template", "encode", "__call__", "decode", "apply_chat_template"):
    getattr(PreTrainedTokenizerFast, _name).__module__ = HOME


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is imported from ``transformers`` be this."""
    module = ModuleType("transformers")
    module.BatchEncoding = BatchEncoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
