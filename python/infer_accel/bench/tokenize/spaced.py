"""Rows of vocabularies in SentencePiece's manner: Mistral's third, as everybody reads it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel.bench import data, sentencepiece
from infer_accel.bench.tokenize import texts
from infer_accel.bench.tokenize.contenders import THREADS, Way, field_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.harness import Bench, Case

__all__ = ["cases"]

_NAME = "mistral-v3"


def cases(bench: Bench, corpus: texts.Corpus) -> Iterator[Case]:
    """Yield the rows of texts, where the vocabulary is installed; none in a quick run."""
    if bench.quick:
        return
    model = sentencepiece.find_model(_NAME)
    if model is None:
        bench.rivals.absent[f"{_NAME} vocabulary"] = "pip install mistral-common"
        return
    # Nothing is put around a text, and nothing in it is special: rivals would find `<s>` in documents that speak of it.
    document = sentencepiece.as_tokenizer_json(sentencepiece.pieces(model))
    document |= {"post_processor": None, "added_tokens": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(document), "utf-8")
        family = data.Family(name=_NAME, tokenizer_json=path, ranks=None)
        entrants = field_of(bench, family, every=True)
        if (reference := _sentencepiece(bench, model)) is not None:
            entrants = replace(entrants, ways=[*entrants.ways, reference])
        yield from texts.cases(_NAME, entrants, corpus, every=True)
        yield texts.cold(_NAME, entrants, corpus)


def _sentencepiece(bench: Bench, model: Path) -> Way | None:
    module = bench.rival("sentencepiece")
    if module is None:
        return None
    processor = module.SentencePieceProcessor(str(model))
    return Way(
        "sentencepiece",
        encode_list=processor.encode,
        count=lambda text: len(processor.encode(text)),
        encode_batch=lambda texts: processor.encode(texts, num_threads=THREADS),
        count_batch=lambda texts: list(map(len, processor.encode(texts, num_threads=THREADS))),
        decode=processor.decode,
        decode_batch=lambda many: processor.decode(many, num_threads=THREADS),
        share=0.1,
    )
