"""
The native core of infer-accel. Use the typed modules of ``infer_accel`` instead.
"""

from . import machine as machine, system as system
from typing import Final

__all__ = ["VERSION", "machine", "system"]

VERSION: Final[str]
"""
The version of this build.
"""
