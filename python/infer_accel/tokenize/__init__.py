"""Text to tokens, token counts, and back: exact, and fast enough to count on a server's event loop.

A :class:`Tokenizer` is read from a Hugging Face ``tokenizer.json``, a SentencePiece model or tiktoken ranks.
Byte-level BPE (GPT-2, cl100k, o200k, Llama 3, Qwen and their relatives) and SentencePiece's BPE (Llama 2,
Mistral) run on a native pipeline; every other ``tokenizer.json`` runs on the ``tokenizers`` crate. Either way
the ids are those of the family's reference.

Special tokens in text
    ``parse_special=False``, the default, takes all text as plain text: a user who writes ``<|im_start|>``
    gets the tokens of those letters and cannot forge the structure of a prompt. ``parse_special=True`` finds
    special tokens in the text, as ``tokenizers`` and vLLM do: only for text that you wrote yourself. Added
    tokens that their file does not call special are found either way. ``add_special_tokens=True``, the
    default, puts the tokens around the text that the file asks for, such as ``<|begin_of_text|>``.

In a server
    :meth:`Tokenizer.stream` turns ids back into text as a model makes them; :meth:`Tokenizer.session` keeps the
    ids of a text that grows; a :class:`PromptCache` does so for any prompts that begin like earlier ones;
    :attr:`Tokenizer.chat` turns conversations into prompts and their ids; :meth:`Tokenizer.encode_segments` encodes
    templates and user input as one text.

Threads
    A tokenizer is immutable: any number of threads may share one, and a forked child may go on using it. Long
    calls release the interpreter's lock, and batches heed Ctrl-C.
"""

from infer_accel.tokenize._batch import Ids, TokenBatch
from infer_accel.tokenize._chat import ChatTemplate
from infer_accel.tokenize._count import count_tokens
from infer_accel.tokenize._encoding import TokenOffsets
from infer_accel.tokenize._prompt_cache import PromptCache, PromptCacheStats
from infer_accel.tokenize._session import Session
from infer_accel.tokenize._stream import StreamDecoder
from infer_accel.tokenize._tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Ids",
    "PromptCache",
    "PromptCacheStats",
    "Session",
    "StreamDecoder",
    "TokenBatch",
    "TokenOffsets",
    "Tokenizer",
    "count_tokens",
]
