"""Tokenization rows: production vocabularies, real text, every id checked before anything is timed.

"Unseen" text is text that no contender has met: all of them are warmed on other text, and each call then gets
the next part of the corpus. That is what a server does; a benchmark that encodes one text again and again
measures caches.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import _backend, reference
from infer_accel.bench import data, serving
from infer_accel.bench.harness import Bench, Case, Contender, cost, rate
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["cases"]

#: Families in the order of the table; the first gets every row, also in a quick run.
_FAMILIES = ("cl100k", "o200k", "llama3", "qwen2", "gpt2")

_PART_CHARACTERS = 50_000
_MESSAGE_CHARACTERS = 1024
_THREADS = 2


@dataclass(frozen=True)
class _Way:
    """How a contender does the three kinds of work; None where it has no way of its own."""

    name: str
    encode: Callable[[str], Any] | None = None
    encode_list: Callable[[str], Any] | None = None
    count: Callable[[str], Any] | None = None
    encode_batch: Callable[[list[str]], Any] | None = None
    count_batch: Callable[[list[str]], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    #: The share of a long text that it gets, so that one slow rival does not take the whole time.
    share: float = 1.0


@dataclass(frozen=True)
class _Field:
    """Who competes, ours first, and what says which ids are right."""

    ways: list[_Way]
    oracle: Callable[[str], list[int]]


@dataclass
class _Turns:
    """Hands out the next input at every call, and remembers it for the check."""

    inputs: Sequence[Any]
    current: Any = None
    _order: Iterator[Any] = field(default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self._order = itertools.cycle(self.inputs)

    def next(self) -> Any:  # noqa: ANN401 - texts or lists of texts
        self.current = next(self._order)
        return self.current


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of this part."""
    prose, code = data.english(), data.code()
    for name in _FAMILIES:
        family = data.find_family(name)
        if family is None:
            bench.rivals.absent[f"{name} vocabulary"] = f"pip install {data.missing_families()[name]}"
            continue
        every = name == _FAMILIES[0] or not bench.quick
        yield from _family_cases(bench, family, prose, code, every=every)
        if every:
            yield from serving.cases(bench, family, prose[len(prose) // 2 :])


def _family_cases(bench: Bench, family: data.Family, prose: str, code: str, *, every: bool) -> Iterator[Case]:
    entrants = _field(bench, family, every=every)
    # A server has met a lot of text, none of it this one: half of the prose is for warming, half is unseen.
    half = len(prose) // 2
    warm = code[:400_000] + prose[:half]
    for way in entrants.ways:
        whole = warm[: int(len(warm) * way.share)]
        for call in (way.encode, way.count, way.encode_list):
            if call is not None:
                call(whole)
    unseen = _cut(prose[half:], _PART_CHARACTERS)
    messages = _cut(prose[half:], _MESSAGE_CHARACTERS)
    name = family.name
    # Each row has parts of its own: what one row has shown to a contender, the next must not show again.
    yield _long(f"count unseen English, {name}", "count", unseen[::2], entrants)
    if not every:
        return
    yield _long(f"encode unseen English to an array, {name}", "encode", unseen[1::2], entrants)
    yield _long(
        f"count unseen code, {name}",
        "count",
        _cut(code[400_000:3_400_000], _PART_CHARACTERS),
        entrants,
    )
    yield _short(f"count 1 KB, {name}", "count", messages, entrants)
    yield _short(f"encode 1 KB to an array, {name}", "encode", messages, entrants)
    yield _short(f"encode 1 KB to a list, {name}", "encode_list", messages, entrants)
    batches = [messages[at : at + 256] for at in range(0, len(messages) - 256, 256)]
    yield _batch(f"count a batch of 256 × 1 KB, {name}, 2 threads", "count_batch", batches, entrants)
    yield _batch(f"encode a batch of 256 × 1 KB, {name}, 2 threads", "encode_batch", batches, entrants)
    yield _decode(f"decode 1 KB, {name}", messages, entrants)


def _cut(text: str, characters: int) -> list[str]:
    return [text[at : at + characters] for at in range(0, len(text) - characters, characters)]


def _field(bench: Bench, family: data.Family, *, every: bool) -> _Field:
    """Return ours, the rivals that are installed, and what says which ids are right."""
    tokenizer = Tokenizer.from_tiktoken(
        family.ranks, pattern=family.pattern, special_tokens=family.special_tokens
    )
    ours = _Way(
        "infer-accel",
        encode=tokenizer.encode,
        encode_list=tokenizer.encode_list,
        count=tokenizer.count,
        encode_batch=lambda texts: tokenizer.encode_batch(texts, num_threads=_THREADS),
        count_batch=lambda texts: tokenizer.count_batch(texts, num_threads=_THREADS),
        decode=tokenizer.decode,
    )
    makers = [_tiktoken, _gigatoken]
    if every:
        # Slow to load, or slow: in a quick run they would take most of the time.
        makers += [_tokenizers, _toktok]
    made = [make(bench, family) for make in makers]
    return _Field([ours, *(way for way in made if way is not None)], _oracle(bench, family))


def _oracle(bench: Bench, family: data.Family) -> Callable[[str], list[int]]:
    """Return the family's reference; where it is not installed, the specification of this package."""
    tiktoken = bench.rival("tiktoken")
    if tiktoken is not None:
        ordinary: Callable[[str], list[int]] = _encoding(tiktoken, family).encode_ordinary
        return ordinary
    if _backend.name() == "reference":
        raise RuntimeError("the specification cannot check itself: pip install tiktoken")
    specification = reference.tokenize.Tokenizer.from_tiktoken(str(family.ranks), family.pattern, [], None)
    return lambda text: specification.encode_list(text, False, False)


def _encoding(tiktoken: Any, family: data.Family) -> Any:  # noqa: ANN401 - a rival's module and its object
    return tiktoken.Encoding(
        family.name,
        pat_str=family.pattern,
        mergeable_ranks=family.mergeable_ranks(),
        special_tokens=family.special_tokens,
    )


def _tiktoken(bench: Bench, family: data.Family) -> _Way | None:
    module = bench.rival("tiktoken")
    if module is None:
        return None
    encoding = _encoding(module, family)
    return _Way(
        "tiktoken encode_ordinary",
        encode=encoding.encode_to_numpy if hasattr(encoding, "encode_to_numpy") else encoding.encode_ordinary,
        encode_list=encoding.encode_ordinary,
        count=lambda text: len(encoding.encode_ordinary(text)),
        encode_batch=lambda texts: encoding.encode_ordinary_batch(texts, num_threads=_THREADS),
        count_batch=lambda texts: list(map(len, encoding.encode_ordinary_batch(texts, num_threads=_THREADS))),
        decode=encoding.decode,
    )


def _gigatoken(bench: Bench, family: data.Family) -> _Way | None:
    module = bench.rival("gigatoken")
    if module is None:
        return None
    tokenizer = module.Tokenizer(str(family.tokenizer_json))
    return _Way(
        "gigatoken",
        encode=tokenizer.encode,
        encode_list=lambda text: tokenizer.encode(text).tolist(),
        count=lambda text: len(tokenizer.encode(text)),
        encode_batch=tokenizer.encode_batch,
        # A ragged array of awkward, which counts its rows at once; len of each row would cost ten times the encoding.
        count_batch=lambda texts: import_module("awkward").num(tokenizer.encode_batch(texts)).tolist(),
        decode=lambda ids: tokenizer.decode(ids).decode(errors="replace"),
    )


def _tokenizers(bench: Bench, family: data.Family) -> _Way | None:
    module = bench.rival("tokenizers")
    if module is None:
        return None
    tokenizer = module.Tokenizer.from_file(str(family.tokenizer_json))

    def ids(text: str) -> Any:  # noqa: ANN401 - a list of int
        return tokenizer.encode(text, add_special_tokens=False).ids

    def batch(texts: list[str]) -> Any:  # noqa: ANN401 - a list of encodings
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    return _Way(
        "tokenizers",
        encode_list=ids,
        count=lambda text: len(ids(text)),
        encode_batch=lambda texts: [encoding.ids for encoding in batch(texts)],
        count_batch=lambda texts: [len(encoding.ids) for encoding in batch(texts)],
        decode=tokenizer.decode,
        share=0.1,
    )


def _toktok(bench: Bench, family: data.Family) -> _Way | None:
    if family.name not in {"cl100k", "o200k"}:
        return None
    module = bench.rival("toktok")
    if module is None:
        return None
    encoding = module._encoding(f"{family.name}_base")  # noqa: SLF001 - its public functions look it up at every call
    return _Way(
        "toktok",
        encode=encoding.encode_to_numpy,
        encode_list=encoding.encode_ordinary,
        count=encoding.count,
        encode_batch=encoding.encode_batch_to_numpy,
        count_batch=lambda texts: encoding.count_batch(texts, _THREADS, False),
        decode=encoding.decode,
    )


def _contenders(
    work: str, entrants: _Field, make: Callable[[_Way, Callable[[Any], Any]], Contender]
) -> tuple[Contender, list[Contender]]:
    """Return the contenders that have a way to do this work."""
    made = [make(way, call) for way in entrants.ways if (call := getattr(way, work)) is not None]
    return made[0], made[1:]


def _long(name: str, work: str, texts: list[str], entrants: _Field) -> Case:
    """Time one long text a call, each of them unseen."""

    def make(way: _Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns([text[: int(len(text) * way.share)] for text in texts])
        return Contender(
            way.name,
            lambda: call(turns.next()),
            check=lambda result: _check(result, entrants.oracle(turns.current)),
            work=sum(len(text.encode()) for text in turns.inputs) / len(turns.inputs),
        )

    contender, peers = _contenders(work, entrants, make)
    return Case(name, rate("MB/s", 1e6), contender.work or 0.0, contender, peers, fresh_calls=len(texts))


def _short(name: str, work: str, texts: list[str], entrants: _Field) -> Case:
    """Time one message a call, thousands of them in turn."""

    def make(way: _Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns(texts)
        return Contender(
            way.name,
            lambda: call(turns.next()),
            check=lambda result: _check(result, entrants.oracle(turns.current)),
        )

    contender, peers = _contenders(work, entrants, make)
    return Case(name, cost("µs", 1e-6), 1, contender, peers)


def _batch(name: str, work: str, batches: list[list[str]], entrants: _Field) -> Case:
    """Time a batch of messages a call, on two threads."""
    agree = _check_counts if work == "count_batch" else _check_lists

    def make(way: _Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns(batches)

        def check(result: object) -> None:
            agree(result, [entrants.oracle(text) for text in turns.current])

        return Contender(way.name, lambda: call(turns.next()), check=check)

    contender, peers = _contenders(work, entrants, make)
    size = sum(len(text.encode()) for batch in batches for text in batch) / len(batches)
    return Case(name, rate("MB/s", 1e6), size, contender, peers, threads=_THREADS)


def _decode(name: str, texts: list[str], entrants: _Field) -> Case:
    """Time the ids of one message a call."""
    pairs = [(np.array(entrants.oracle(text), dtype=np.int32), text) for text in texts[:256]]

    def make(way: _Way, call: Callable[[Any], Any]) -> Contender:
        # Each gets the kind of ids that it takes most readily.
        lists = way.name not in {"infer-accel", "gigatoken"}
        turns = _Turns([(ids.tolist() if lists else ids.view(np.uint32), text) for ids, text in pairs])

        def check(result: object) -> None:
            if result != turns.current[1]:
                raise AssertionError("the text that came back is another one")

        return Contender(way.name, lambda: call(turns.next()[0]), check=check)

    contender, peers = _contenders("decode", entrants, make)
    return Case(name, cost("µs", 1e-6), 1, contender, peers)


def _check(result: Any, expected: list[int]) -> None:  # noqa: ANN401 - a count, a list or an array, by contender
    if isinstance(result, int):
        if result != len(expected):
            raise AssertionError(f"{result} tokens instead of {len(expected)}")
    elif list(result) != expected:
        raise AssertionError("the ids differ from the reference's")


def _check_counts(result: Any, expected: list[list[int]]) -> None:  # noqa: ANN401 - a list or an array
    if [int(count) for count in result] != list(map(len, expected)):
        raise AssertionError("the counts differ from the reference's")


def _check_lists(result: Any, expected: list[list[int]]) -> None:  # noqa: ANN401 - each contender has its own kind
    if isinstance(result, tuple):  # toktok: all ids, and where each text's begin
        ids, offsets = (np.asarray(part) for part in result[:2])
        result = [ids[start:end] for start, end in itertools.pairwise(offsets)]
    if [np.asarray(ids).tolist() for ids in result] != expected:
        raise AssertionError("the ids differ from the reference's")
