"""Count the tokens of a column inside a query, and keep what fits a context.

Run with Parquet files and a tokenizer; without them, the example makes a few texts::

    python examples/scale/count_polars.py tokenizer.json 'texts/*.parquet'
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import polars as pl

from infer_accel.integrations.polars import count_tokens, encode


def sample(folder: Path) -> tuple[Path, str]:
    """Write a tokenizer of GPT-2's bytes alone, and some texts."""
    names = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in names}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(sorted(set(range(256)) - set(names)))}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    tokenizer = folder / "tokenizer.json"

    tokenizer.write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                "decoder": None,
                "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
            }
        )
    )
    texts = ["How many tokens is this?", "Straße, 漢字, 🦀", None, "words " * 50]
    pl.DataFrame({"text": texts}).write_parquet(folder / "texts.parquet")
    return tokenizer, str(folder / "*.parquet")


def main(tokenizer: str | Path, files: str) -> None:
    """Sum, filter and encode; nothing is read twice, and the query streams."""
    rows = pl.scan_parquet(files)
    print(
        rows.select(count_tokens("text", tokenizer).sum().alias("tokens in all")).collect(engine="streaming")
    )
    fitting = rows.filter(count_tokens("text", tokenizer) <= 100)
    print(fitting.with_columns(encode("text", tokenizer).alias("ids")).collect())


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as made:
            main(*sample(Path(made)))
