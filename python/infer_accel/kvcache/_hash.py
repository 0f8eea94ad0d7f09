"""Block hashes: a chain in which each full block of tokens is named by its whole prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from infer_accel import _backend
from infer_accel.errors import ArgumentError, DTypeError, IdError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.tokenize import Tokenizer

#: How blocks are serialised and hashed, by vLLM's names.
Algorithm: TypeAlias = Literal["sha256_cbor", "sha256", "xxhash_cbor", "xxhash"]

#: A value in a block's extra keys.
ExtraKey: TypeAlias = "bool | int | str | bytes | Sequence[ExtraKey] | None"

#: Of :class:`PromptBlocks`, whose ids are int32 as a tokenizer's are.
_MAX_ID = 2**31 - 1

_implementation = _backend.load("kvcache")


def hash_blocks(
    token_ids: Tensor | Sequence[int],
    *,
    block_size: int,
    algorithm: Algorithm = "sha256_cbor",
    parent: bytes | npt.NDArray[np.uint8] | None = None,
    extra_keys: Sequence[tuple[ExtraKey, ...] | None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Hash every full block of a prompt; each hash names the block and all that came before it.

    A block's hash is ``H((parent, tokens, extra_keys))``, where `parent` is the hash of the block before
    it. The hashes equal those of vLLM 0.33 byte for byte, so that both can share a cache.

    Parameters
    ----------
    token_ids
        Integers of shape ``[tokens]``, each from 0 to 2³²-1: array, tensor or list. Arrays of int32 and
        int64 are read fastest. Tokens behind the last full block are not hashed.
    block_size
        Tokens in a block, at least 1.
    algorithm
        ``"sha256_cbor"``: SHA-256 of canonical CBOR, the same in every language. ``"sha256"``: SHA-256 of
        Python's pickle, vLLM's default; with `extra_keys` it is serialised in Python, because then its
        bytes depend on which of the objects are one and the same. ``"xxhash_cbor"``, ``"xxhash"``: 128 bits
        of XXH3 instead, eight times as fast, and no match for somebody who looks for collisions.
    parent
        The bytes of the hash before the first block: continues a chain. ``None`` begins one, with
        :func:`none_hash`.
    extra_keys
        For each full block ``None`` or a tuple of what else its content depends on: adapter, salt, image.
        Values are ``None``, bool, int (64 bits), str, bytes, and tuples of those.

    Returns
    -------
    numpy.ndarray
        uint8 of shape ``[tokens // block_size, digest]``; a digest has 32 bytes, or 16 with xxhash.

    Raises
    ------
    IdError
        A token id is negative or above 2³²-1.
    DTypeError
        Something else than integers came as `token_ids`, or than uint8 as `parent`.
    ArgumentError
        Unknown algorithm, `block_size` below 1, a value that extra keys cannot hold.
    ShapeError
        `parent` has not the length of a digest; `token_ids` has other than one dimension; `extra_keys` has not one
        entry for each full block.

    Notes
    -----
    Linear in the tokens: one chain takes two rounds of SHA-256 for 16 tokens, about 0.1 µs with SHA
    instructions. The interpreter's lock is released for prompts of more than about a thousand tokens.

    Source: vLLM's ``vllm/v1/core/kv_cache_utils.py`` and ``vllm/utils/hashing.py``; RFC 8949, section 4.2;
    FIPS 180-4.

    Examples
    --------
    >>> hashes = hash_blocks(range(35), block_size=16)
    >>> hashes.shape
    (2, 32)
    >>> continued = hash_blocks(range(16, 35), block_size=16, parent=hashes[0])
    >>> bool((continued[0] == hashes[1]).all())
    True
    """
    start = _digest_of(parent) if isinstance(parent, np.ndarray) else parent
    implementation = _implementation
    if extra_keys is not None and _needs_pickle(algorithm, extra_keys):
        from infer_accel._reference import kvcache as implementation  # noqa: PLC0415 - rarely needed

        start = none_hash(algorithm) if start is None else start
    hashes: npt.NDArray[np.uint8] = implementation.hash_blocks(
        token_ids, block_size=block_size, algorithm=algorithm, parent=start, extra_keys=extra_keys
    )
    return hashes


def _digest_of(parent: npt.NDArray[np.uint8]) -> bytes:
    """Return the bytes of a hash; other numbers than bytes would be cut to some without a word."""
    if parent.dtype != np.uint8:
        message = f"a parent of {parent.dtype} came; pass uint8, as `hash_blocks` returns it, or bytes"
        raise DTypeError(message, code="dtype.bytes")
    return parent.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class PromptBlocks:
    """The ids of a prompt, and the hashes of its full blocks."""

    #: int32 of shape ``[tokens]``.
    ids: npt.NDArray[np.int32]
    #: uint8 of shape ``[tokens // block_size, digest]``.
    hashes: npt.NDArray[np.uint8]


def hash_prompt(
    tokenizer: Tokenizer,
    text_or_messages: str | Tensor | Sequence[int] | Sequence[Mapping[str, object]],
    *,
    block_size: int,
    algorithm: Algorithm = "sha256_cbor",
    salt: str | None = None,
    adapter: tuple[str, str] | None = None,
    add_special_tokens: bool = True,
    parse_special: bool = False,
    tools: Sequence[Mapping[str, object]] | None = None,
    variables: Mapping[str, object] | None = None,
    trust_messages: bool = False,
) -> PromptBlocks:
    """Return a prompt's tokens and the hashes of its blocks: what a router asks caches for.

    From text or messages to hashes it is one native call: a conversation is rendered, encoded and hashed without the
    interpreter's lock.

    Parameters
    ----------
    tokenizer
        Encodes the text; not used where ids come.
    text_or_messages
        A text, the ids of one, or chat messages, which need a tokenizer with a chat template
        (:attr:`infer_accel.tokenize.Tokenizer.chat`) and get the beginning of the answer at their end.
    block_size, algorithm
        As for :func:`hash_blocks`.
    salt
        Keeps the prompt apart from those with another salt; vLLM's ``cache_salt``, in the first block.
    adapter
        Name and path of a LoRA adapter, as vLLM 0.33 names it; in every block.
    add_special_tokens, parse_special
        For a text: as for :meth:`infer_accel.tokenize.Tokenizer.encode`.
    tools, variables, trust_messages
        For messages: as for :meth:`infer_accel.tokenize.ChatTemplate.encode`; ``variables`` may hold ``documents``,
        and an ``add_generation_prompt`` of its own.

    Returns
    -------
    PromptBlocks
        Equal to what vLLM 0.33 computes for the same request.

    Raises
    ------
    TokenizerError
        Messages came, and the tokenizer has no chat template; or the text cannot be encoded.
    IdError
        An id is negative or above 2³¹-1: :class:`PromptBlocks` has no room for it.
    ArgumentError, DTypeError, ShapeError
        As for :func:`hash_blocks`.

    Examples
    --------
    >>> tokenizer = Tokenizer.from_file("tokenizer.json")  # doctest: +SKIP
    >>> hash_prompt(tokenizer, "Hello, world! " * 9, block_size=16, salt="tenant").hashes.shape  # doctest: +SKIP
    (2, 32)
    """
    keys = prompt_keys(salt, adapter)
    fused = not _needs_pickle(algorithm, keys) and _backend.name() == "native"
    how = {"block_size": block_size, "algorithm": algorithm, "keys": keys}
    if _are_messages(text_or_messages):
        from infer_accel.tokenize._given import clock  # noqa: PLC0415 - nothing else here needs that part

        chat = _chat_of(tokenizer)
        given = {
            "messages": text_or_messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": True,
        }
        encoding = ({**given, **(variables or {})}, clock(None, shown=chat.shows_time), trust_messages)
        if fused:
            shown, now, trusted = encoding
            return PromptBlocks(*_implementation.hash_chat(chat, shown, now=now, trusted=trusted, **how))
        text_or_messages = chat.encode(*encoding)
    if isinstance(text_or_messages, str):
        core = _core_of(tokenizer)
        if fused:
            options = (add_special_tokens, parse_special)
            return PromptBlocks(*_implementation.hash_prompt(core, text_or_messages, options=options, **how))
        text_or_messages = tokenizer.encode(
            text_or_messages, add_special_tokens=add_special_tokens, parse_special=parse_special
        )
    ids = _ids_of(text_or_messages)
    first, later = keys
    num_blocks = len(ids) // block_size if block_size > 0 and ids.ndim == 1 else 0
    extra_keys = None if first is None else [first, *[later] * (num_blocks - 1)][:num_blocks]
    hashes = hash_blocks(ids, block_size=block_size, algorithm=algorithm, extra_keys=extra_keys)
    if ids.size > 0 and (largest := int(ids.max())) > _MAX_ID:
        message = f"token id {largest} came; a prompt's ids go from 0 to {_MAX_ID}"
        raise IdError(message, code="id.token")
    return PromptBlocks(ids.astype(np.int32), hashes)


def _ids_of(prompt: object) -> npt.NDArray[np.integer]:
    """Return what came as an array, which :func:`hash_blocks` then looks at."""
    try:
        ids = np.asarray(prompt)
    except (RuntimeError, ValueError) as error:
        message = f"{type(prompt).__name__} came where ids are expected; pass integers, a text or messages ({error})"
        raise DTypeError(message, code="dtype.ids") from error
    return ids.astype(np.int64) if ids.size == 0 else ids


def prompt_keys(
    salt: str | None, adapter: tuple[str, str] | None
) -> tuple[tuple[ExtraKey, ...] | None, tuple[ExtraKey, ...] | None]:
    """Return the extra keys of a prompt's first block, and those of all others."""
    named: Sequence[str] = adapter or ()
    if isinstance(named, str) or len(named) not in {0, 2}:
        message = f"adapter={adapter!r} came; pass the adapter's name and its path"
        raise ArgumentError(message, code="argument.adapter")
    lora = (("lora", *map(_plain, named)),) if named else ()
    return (*lora, ("cache_salt", _plain(salt))) if salt else lora or None, lora or None


def _plain(text: ExtraKey) -> ExtraKey:
    """Return the text of what may be more than a text, such as a member of an enumeration."""
    return str.__str__(text) if isinstance(text, str) else text


def _needs_pickle(algorithm: Algorithm, keys: Sequence[tuple[ExtraKey, ...] | None]) -> bool:
    return algorithm in {"sha256", "xxhash"} and any(key is not None for key in keys)


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], dict)


def _core_of(tokenizer: Tokenizer) -> Any:  # noqa: ANN401 - of the backend, whichever it is
    from infer_accel.tokenize._given import core_of  # noqa: PLC0415 - nothing else here needs that part

    return core_of(tokenizer)


def _chat_of(tokenizer: Tokenizer) -> Any:  # noqa: ANN401 - of the backend, whichever it is
    """Return the native template of a tokenizer's model."""
    _core_of(tokenizer)
    chat = tokenizer.chat
    if chat is None:
        message = (
            "chat messages came, and this tokenizer has no chat template; pass the rendered text, "
            "or load the tokenizer from a model directory that has one"
        )
        raise TokenizerError(message, code="tokenizer.no_template")
    return chat._core  # noqa: SLF001 - the native class, which is this package's own


def none_hash(algorithm: Algorithm = "sha256_cbor") -> bytes:
    """Return the parent of a first block: vLLM's ``NONE_HASH``.

    Parameters
    ----------
    algorithm
        As for :func:`hash_blocks`.

    Returns
    -------
    bytes
        The hash of the value of ``PYTHONHASHSEED`` where that is set. Where it is not, of
        ``"vllm-none-hash"``, and for xxhash of a random text: the same for one process, and another for each.

    Raises
    ------
    ArgumentError
        Unknown algorithm, or a ``PYTHONHASHSEED`` that is no short text.

    Examples
    --------
    >>> len(none_hash())
    32
    """
    parent: bytes = _implementation.none_hash(algorithm)
    return parent
