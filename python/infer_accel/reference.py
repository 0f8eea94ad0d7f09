"""The executable specification: plain numpy and plain dicts, no tricks.

It says what the native core must compute, bit for bit. It serves as the oracle of the
tests, as the "Python" row of the benchmarks, and as the fallback that ``INFER_ACCEL_BACKEND=reference`` selects.
"""

from __future__ import annotations

from infer_accel._reference import kvcache, lora, tokenize

__all__ = ["kvcache", "lora", "tokenize"]
