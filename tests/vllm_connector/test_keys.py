"""Names of pages: of tokens, salts, adapters and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_accel.integrations._connector.keys import AdapterDigests, KeyChain, digest, weights_of

torch = pytest.importorskip("torch")


if TYPE_CHECKING:
    from pathlib import Path


@given(
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=60),
    size=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    salt=st.none() | st.text(min_size=1, max_size=4),
    adapter=st.none() | st.text(min_size=1, max_size=4),
)
def test_keys_do_not_depend_on_when_they_are_made(
    ids: list[int], size: int, cuts: list[int], salt: str | None, adapter: str | None
) -> None:
    origin = digest({"model": "a"})
    whole = KeyChain(origin, size, salt=salt, adapter=adapter).keys(ids, len(ids) // size)
    parts = KeyChain(origin, size, salt=salt, adapter=adapter)
    for cut in [*sorted(cuts), len(ids)]:
        have = min(cut, len(ids)) // size
        assert np.array_equal(parts.keys(ids[: have * size], have), whole[:have])
    others = [{}, {"salt": "x" + (salt or "")}, {"adapter": "x" + (adapter or "")}]
    for other in others if len(whole) and (salt or adapter) else others[1:]:
        differs = KeyChain(origin, size, **other).keys(ids, len(whole))
        assert not any(np.array_equal(*pair) for pair in zip(differs, whole, strict=True))


def test_weights_and_adapters_are_told_by_their_files(tmp_path: Path) -> None:
    assert weights_of("someone/model") is None
    assert weights_of(tmp_path) is None
    (tmp_path / "model.gguf").write_bytes(b"1")
    alone = weights_of(tmp_path / "model.gguf")
    assert alone is not None
    assert alone == weights_of(tmp_path)
    digests = AdapterDigests()
    assert digests.of(1, "a", str(tmp_path)) is None
    (tmp_path / "adapter_model.bin").write_bytes(b"1")
    assert digests.of(1, "a", str(tmp_path)) is None, "the engine has seen it without"
    assert digests.of(2, "a", str(tmp_path)) is not None
