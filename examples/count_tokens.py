"""Count the tokens of texts before sending them to a model.

Run with the path of a ``tokenizer.json``; without one, the example makes a tokenizer of single bytes::

    python examples/count_tokens.py [tokenizer.json]
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from infer_accel.tokenize import Tokenizer, count_tokens


def bytes_only(folder: str) -> Tokenizer:
    """Return a tokenizer that has no token but the 256 bytes."""
    ranks = Path(folder, "bytes.tiktoken")
    ranks.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    return Tokenizer.from_tiktoken(ranks, pattern="cl100k", special_tokens={"<|end|>": 256})


def main() -> None:
    """Count, cut to a budget, and see that a user cannot forge special tokens."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_file(sys.argv[1]) if len(sys.argv) > 1 else bytes_only(folder)
        prompts = ["How many tokens is this?", "And this? <|end|>", "Straße, 漢字, 🦀"]
        for prompt, count in zip(prompts, count_tokens(prompts, tokenizer), strict=True):
            print(f"{count:4d} tokens  {prompt}")
        print("fits in 16:", tokenizer.fits(prompts[0], 16))
        print("cut to 16: ", repr(tokenizer.truncate(prompts[0], 16)))
        print("ids:       ", tokenizer.encode(prompts[0])[:8], "...")
        print("back:      ", tokenizer.decode(tokenizer.encode(prompts[2])))


if __name__ == "__main__":
    main()
