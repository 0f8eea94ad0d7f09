"""
The native core of infer-accel. Use the typed modules of ``infer_accel`` instead.
"""

from . import kvcache as kvcache, lora as lora, machine as machine, system as system, tokenize as tokenize
from typing import Final

__all__ = ["VERSION", "kvcache", "lora", "machine", "system", "tokenize"]

VERSION: Final[str]
"""
The version of this build.
"""
