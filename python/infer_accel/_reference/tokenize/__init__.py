"""The specification of ``infer_accel.tokenize``: byte-level byte-pair encoding in plain Python.

Text goes through five steps: added tokens are cut out (:mod:`.added`), the rest is normalized, cut into pieces by
a pattern (:mod:`.patterns`), each piece is merged byte by byte (:mod:`.encoding`), and the file's special tokens
are put around the ids. Everything is written to be read: merging is quadratic in the length of a piece.

Only byte-level pipelines are specified here; for everything else the ``tokenizers`` library is the
specification.
"""

from infer_accel._reference.tokenize.alphabet import bytes_of, printable
from infer_accel._reference.tokenize.chat import ChatTemplate
from infer_accel._reference.tokenize.encoding import merge
from infer_accel._reference.tokenize.growing import PromptCache, Session, StreamDecoder
from infer_accel._reference.tokenize.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "PromptCache",
    "Session",
    "StreamDecoder",
    "Tokenizer",
    "bytes_of",
    "merge",
    "printable",
]
