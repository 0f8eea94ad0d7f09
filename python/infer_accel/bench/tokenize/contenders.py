"""Who competes in the rows of tokenize, and how each of them does the work."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import _backend, reference
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from infer_accel.bench import data
    from infer_accel.bench.harness import Bench

__all__ = ["THREADS", "Field", "Way", "field_of"]

#: Threads of the rows that ask for more than one.
THREADS = 2


@dataclass(frozen=True)
class Way:
    """How a contender does each kind of work; None where it has no way of its own."""

    name: str
    encode: Callable[[str], Any] | None = None
    encode_list: Callable[[str], Any] | None = None
    count: Callable[[str], Any] | None = None
    encode_batch: Callable[[list[str]], Any] | None = None
    count_batch: Callable[[list[str]], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    decode_batch: Callable[[Any], Any] | None = None
    #: The way of a new instance, which has met no text yet; None where an instance remembers none.
    fresh: Callable[[], Way] | None = None
    #: The share of a long text that it gets, so that one slow rival does not take the whole time.
    share: float = 1.0
    #: Whether it takes a second thread for a long text by itself.
    takes_threads: bool = False
    #: Whether it takes ids most readily as lists; otherwise as arrays of uint32.
    takes_lists: bool = True


@dataclass(frozen=True)
class Field:
    """Who competes, ours first, and what says which ids are right."""

    ways: list[Way]
    oracle: Callable[[str], list[int]]


def field_of(bench: Bench, family: data.Family, *, every: bool) -> Field:
    """Return ours, the rivals that are installed, and what says which ids are right.

    Parameters
    ----------
    bench
        Knows which rivals are installed.
    family
        The vocabulary.
    every
        Whether those rivals take part, too, that are slow, or slow to load: they would take most of a quick run.
    """
    makers = [_tiktoken, _gigatoken]
    if every:
        makers += [_tokenizers, _toktok, _fastokens]
    made = [make(bench, family) for make in makers]
    return Field([_ours(family), *(way for way in made if way is not None)], _oracle(bench, family))


def _oracle(bench: Bench, family: data.Family) -> Callable[[str], list[int]]:
    """Return the family's reference; where it is not installed, the specification of this package."""
    if family.ranks is not None and (tiktoken := bench.rival("tiktoken")) is not None:
        ordinary: Callable[[str], list[int]] = _encoding(tiktoken, family.ranks).encode_ordinary
        return ordinary
    if (tokenizers := bench.rival("tokenizers")) is not None:
        reading = tokenizers.Tokenizer.from_file(str(family.tokenizer_json))
        return lambda text: list(reading.encode(text, add_special_tokens=False).ids)
    if _backend.name() == "reference":
        raise RuntimeError("the specification cannot check itself: pip install tiktoken tokenizers")
    specification = reference.tokenize.Tokenizer.from_file(str(family.tokenizer_json))
    return lambda text: specification.encode_list(text, False, False)


def _ours(family: data.Family) -> Way:
    ranks = family.ranks
    if ranks is None:
        tokenizer = Tokenizer.from_file(family.tokenizer_json)
    else:
        tokenizer = Tokenizer.from_tiktoken(
            ranks.path, pattern=ranks.pattern, special_tokens=ranks.special_tokens
        )
    return Way(
        "infer-accel",
        encode=tokenizer.encode,
        encode_list=tokenizer.encode_list,
        count=tokenizer.count,
        encode_batch=lambda texts: tokenizer.encode_batch(texts, num_threads=THREADS),
        count_batch=lambda texts: tokenizer.count_batch(texts, num_threads=THREADS),
        decode=tokenizer.decode,
        decode_batch=lambda ids: tokenizer.decode_batch(ids, num_threads=THREADS),
        fresh=lambda: _ours(family),
        takes_lists=False,
    )


def _encoding(tiktoken: Any, ranks: data.Ranks) -> Any:  # noqa: ANN401 - a rival's module and its object
    return tiktoken.Encoding(
        ranks.path.stem,
        pat_str=ranks.pattern,
        mergeable_ranks=ranks.mergeable(),
        special_tokens=ranks.special_tokens,
    )


def _tiktoken(bench: Bench, family: data.Family) -> Way | None:
    module = bench.rival("tiktoken")
    if module is None or family.ranks is None:
        return None
    encoding = _encoding(module, family.ranks)
    return Way(
        "tiktoken encode_ordinary",
        encode=encoding.encode_to_numpy if hasattr(encoding, "encode_to_numpy") else encoding.encode_ordinary,
        encode_list=encoding.encode_ordinary,
        count=lambda text: len(encoding.encode_ordinary(text)),
        encode_batch=lambda texts: encoding.encode_ordinary_batch(texts, num_threads=THREADS),
        count_batch=lambda texts: list(map(len, encoding.encode_ordinary_batch(texts, num_threads=THREADS))),
        decode=encoding.decode,
        decode_batch=lambda ids: encoding.decode_batch(ids, num_threads=THREADS),
    )


def _gigatoken(bench: Bench, family: data.Family) -> Way | None:
    module = bench.rival("gigatoken")
    if module is None:
        return None
    tokenizer = module.Tokenizer(str(family.tokenizer_json))

    def decode(ids: Any) -> str:  # noqa: ANN401 - an array
        text: str = tokenizer.decode(ids).decode(errors="replace")
        return text

    return Way(
        "gigatoken",
        encode=tokenizer.encode,
        encode_list=lambda text: tokenizer.encode(text).tolist(),
        count=lambda text: len(tokenizer.encode(text)),
        encode_batch=tokenizer.encode_batch,
        # A ragged array of awkward, which counts its rows at once; len of each row would cost ten times the encoding.
        count_batch=lambda texts: import_module("awkward").num(tokenizer.encode_batch(texts)).tolist(),
        decode=decode,
        # It has no call for many.
        decode_batch=lambda many: [decode(ids) for ids in many],
        fresh=lambda: Way("gigatoken", encode=module.Tokenizer(str(family.tokenizer_json)).encode),
        takes_lists=False,
    )


def _tokenizers(bench: Bench, family: data.Family) -> Way | None:
    module = bench.rival("tokenizers")
    if module is None:
        return None
    tokenizer = module.Tokenizer.from_file(str(family.tokenizer_json))

    def ids(text: str) -> Any:  # noqa: ANN401 - a list of int
        return tokenizer.encode(text, add_special_tokens=False).ids

    def batch(texts: list[str]) -> Any:  # noqa: ANN401 - a list of encodings
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    return Way(
        "tokenizers",
        encode_list=ids,
        count=lambda text: len(ids(text)),
        encode_batch=lambda texts: [encoding.ids for encoding in batch(texts)],
        count_batch=lambda texts: [len(encoding.ids) for encoding in batch(texts)],
        decode=tokenizer.decode,
        decode_batch=tokenizer.decode_batch,
        share=0.1,
    )


def _toktok(bench: Bench, family: data.Family) -> Way | None:
    if family.name not in {"cl100k", "o200k"}:
        return None
    module = bench.rival("toktok")
    if module is None:
        return None
    encoding = module._encoding(f"{family.name}_base")  # noqa: SLF001 - its public functions look it up at every call
    return Way(
        "toktok",
        encode=encoding.encode_to_numpy,
        encode_list=encoding.encode_ordinary,
        count=encoding.count,
        encode_batch=encoding.encode_batch_to_numpy,
        count_batch=lambda texts: encoding.count_batch(texts, THREADS, False),
        decode=encoding.decode,
        decode_batch=encoding.decode_batch,
    )


def _fastokens(bench: Bench, family: data.Family) -> Way | None:
    module = bench.rival("fastokens")
    if module is None:
        return None

    def make() -> Way:
        tokenizer = module.Tokenizer.from_file(str(family.tokenizer_json))

        def flat(texts: list[str]) -> tuple[Any, Any]:
            ids, offsets = tokenizer.encode_batch_flat(texts)
            return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)

        return Way(
            "fastokens",
            encode=lambda text: flat([text])[0],
            encode_list=lambda text: tokenizer.encode(text).ids,
            count=lambda text: len(flat([text])[0]),
            encode_batch=flat,
            count_batch=lambda texts: np.diff(flat(texts)[1]).tolist(),
            decode=tokenizer.decode,
            decode_batch=tokenizer.decode_batch,
            fresh=make,
            takes_threads=True,  # for texts of some 64 KB and more
        )

    return make()
