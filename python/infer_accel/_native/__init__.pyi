"""
The native core of infer-accel. Use the typed modules of ``infer_accel`` instead.
"""

from . import lora as lora, machine as machine, system as system
from typing import Final

__all__ = ["VERSION", "lora", "machine", "system"]

VERSION: Final[str]
"""
The version of this build.
"""
