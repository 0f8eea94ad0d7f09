"""The calls that servers make on a fast tokenizer of ``transformers``, served natively: the same ids, the same prompts.

::

    from infer_accel.integrations.transformers_tokenizer import accelerate

    tokenizer = accelerate(AutoTokenizer.from_pretrained(model))
    tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokenizer(prompt)["input_ids"]

What comes back is the same tokenizer, of a class that derives from its own. Calls that a server makes for every request
are answered here, and a prompt that begins like an earlier one is encoded from there on; everything else, and whatever
is refused here, is done by ``transformers`` as before.
"""

from __future__ import annotations

from typing import TypeVar, cast

from infer_accel.integrations._tokenizer.checks import core_of
from infer_accel.integrations._tokenizer.served import Served, again

__all__ = ["DEFAULT_CACHE_BYTES", "accelerate"]

#: Memory for prompts that have come: text and ids of about 20 million tokens.
DEFAULT_CACHE_BYTES = 256 << 20

_Tokenizer = TypeVar("_Tokenizer")


def accelerate(tokenizer: _Tokenizer, *, capacity_bytes: int = DEFAULT_CACHE_BYTES) -> _Tokenizer:
    """Return a fast tokenizer of ``transformers`` whose frequent calls are served natively.

    Parameters
    ----------
    tokenizer
        A ``PreTrainedTokenizerFast`` (``TokenizersBackend``), 5.x. It is not changed.
    capacity_bytes
        Most memory for prompts that have come; see :class:`~infer_accel.tokenize.PromptCache`. 0 keeps none.

    Returns
    -------
    tokenizer
        A copy, of a class that derives from the tokenizer's. Where its ids could not be the same (a slow tokenizer, a
        kind that is not native here, settings that change its ids per call, or a probe that came out differently),
        `tokenizer` itself, and one line in the log that says why.

    Notes
    -----
    Served are a text in ``encode(text)`` and ``tokenizer(text)``, with ``add_special_tokens``, ``truncation`` and
    ``max_length``; ``decode(ids)``; and ``apply_chat_template`` of one conversation. Prompts that have to be cut off,
    batches, pairs, tensors, offsets and what else there is go to ``transformers``, errors included. The
    ``BatchEncoding`` that comes from here has ``input_ids`` and ``attention_mask`` and no ``encodings``.

    The first prompts of each chat template are rendered by ``transformers`` too; one that differs leaves that template
    to it for good, with a line in the log.

    Calls may come from several threads at once where all of them are served here; those that go to ``transformers``
    are as safe as they are there. Copies and deep copies share the cache. ``add_tokens`` begins anew.

    Examples
    --------
    >>> tokenizer = accelerate(AutoTokenizer.from_pretrained(model))  # doctest: +SKIP
    >>> tokenizer("Hello")["input_ids"]  # doctest: +SKIP
    [19556]
    """
    if isinstance(tokenizer, Served):
        return tokenizer
    core = core_of(tokenizer, capacity_bytes)
    return tokenizer if core is None else cast("_Tokenizer", again(tokenizer, core))
