"""Production vocabularies and real text, out of what is installed.

Nothing is downloaded. Vocabularies lie in packages that ship them (the extra ``bench`` installs those that
are small and need little else); English text and code come from the interpreter's own library, text in many
languages from documentation that a system may have.
"""

from __future__ import annotations

from infer_accel.bench.data.families import FAMILIES, Family, Ranks, find_family, missing_families
from infer_accel.bench.data.texts import chats, code, english, languages, multilingual

__all__ = [
    "FAMILIES",
    "Family",
    "Ranks",
    "chats",
    "code",
    "english",
    "find_family",
    "languages",
    "missing_families",
    "multilingual",
]
