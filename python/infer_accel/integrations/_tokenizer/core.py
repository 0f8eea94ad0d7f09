"""The native side of a tokenizer of another program: its ids, and its prompts."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_accel.errors import InferAccelError
from infer_accel.tokenize import ChatTemplate, PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("infer_accel")

#: Templates that are kept; requests may bring their own.
_MOST_TEMPLATES = 32
#: As many prompts of each template are made by `transformers` too, and compared.
_PROOFS = 3


class Core:
    """The native side of a tokenizer; immutable but for its caches, and shared by all copies of one."""

    def __init__(self, description: str, capacity_bytes: int) -> None:
        self._description = description
        # A tokenizer is read from a file; what `transformers` has in memory need not be what lies in the model's.
        with tempfile.TemporaryDirectory(prefix="infer-accel-") as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(description, encoding="utf-8")
            self.tokenizer = Tokenizer.from_file(path)
        self.cache = PromptCache(self.tokenizer, capacity_bytes)
        self._lock = threading.Lock()
        self._templates: OrderedDict[str, Template] = OrderedDict()

    def __copy__(self) -> Core:
        return self

    def __deepcopy__(self, memo: object) -> Core:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return Core, (self._description, self.cache.capacity_bytes)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = self.cache.encode(text, add_special_tokens=add_special_tokens, parse_special=True)
        return ids.tolist()  # type: ignore[no-any-return]  # numpy's stubs say Any

    def template(self, source: str) -> Template:
        """Return a template, made once; what is no template here is one that is not served."""
        with self._lock:
            found = self._templates.get(source)
            if found is None:
                found = self._templates[source] = Template(self.tokenizer, source)
                if len(self._templates) > _MOST_TEMPLATES:
                    self._templates.popitem(last=False)
            else:
                self._templates.move_to_end(source)
        return found


class Template:
    """A chat template, and whether it may be served."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self._chat: ChatTemplate | None = None
        self._proofs = 0
        try:
            self._chat = ChatTemplate(tokenizer, source)
        except InferAccelError as error:
            _log.info("a chat template is left to transformers: %s", error)

    def render(
        self,
        conversation: Any,  # noqa: ANN401 - whatever a server was sent
        tools: Any,  # noqa: ANN401 - as above
        documents: Any,  # noqa: ANN401 - as above
        add_generation_prompt: Any,  # noqa: ANN401 - as above
        variables: Mapping[str, object],
    ) -> str | None:
        """Return a prompt, or None where it is not for this place to make or to refuse it."""
        chat = self._chat
        if chat is None or not all(are_dicts(given) for given in (tools, documents)):
            return None
        try:
            return chat.render(
                conversation,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            )
        except (InferAccelError, TypeError, ValueError):
            return None

    def is_proved(self) -> bool:
        return self._proofs >= _PROOFS

    def compare(self, here: str, there: str) -> None:
        """Take note of whether `transformers` has rendered the same; one difference is the last."""
        if here == there:
            self._proofs += 1
        else:
            self._chat = None
            _log.error("a chat template is left to transformers, which renders it differently")


def are_dicts(given: object) -> bool:
    """Return whether this is nothing, or a list of descriptions: functions are turned into them by transformers."""
    return given is None or (type(given) is list and all(type(one) is dict for one in given))
