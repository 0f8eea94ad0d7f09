"""Lists of ids in which those meet that make text together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["id_lists"]


def id_lists(size: int, rare: Sequence[int], *, longest: int = 14) -> st.SearchStrategy[list[int]]:
    """Return lists of ids below `size`, often of the first ones, of single bytes, of the last ones and of `rare` ones.

    The first are control tokens or bytes in every vocabulary, the last are added tokens. Lists of any ids hardly ever
    have two of them side by side.
    """
    some = [
        st.integers(0, 3),
        st.integers(0, 270),
        st.integers(0, size - 1),
        st.integers(max(size - 6, 0), size - 1),
    ]
    return st.lists(st.one_of(*some, st.sampled_from(list(rare) or [0])), max_size=longest)
