"""The disk tier against plain dictionaries, and hostile calls."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.kvcache_pages import BAD_CALLS, OPTIONS, PAGE, found_in, key, open_tier, page, pages, read_only
from tests.soak import repeats

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

IMPLEMENTATIONS = [native().kvcache, reference.kvcache]


class TierMachine(RuleBasedStateMachine):
    """The native tier and the specification, with room for everything, do what a dictionary does."""

    numbers = st.lists(st.integers(0, 40), max_size=8)

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.paths = [Path(self.folder.name) / name for name in ("native", "reference")]
        self.stored: set[int] = set()
        self.reopen()

    def reopen(self) -> None:
        pairs = zip(IMPLEMENTATIONS, self.paths, strict=True)
        self.tiers = [implementation.DiskTier(path, **OPTIONS) for implementation, path in pairs]

    @rule(numbers=numbers)
    def store(self, numbers: list[int]) -> None:
        new = set(numbers) - self.stored
        for tier in self.tiers:
            assert tier.store([key(number) for number in numbers], pages(numbers)) == len(new)
        self.stored |= new

    @rule(numbers=numbers)
    def load(self, numbers: list[int]) -> None:
        for tier in self.tiers:
            assert found_in(tier, numbers) == [number in self.stored for number in numbers]
            assert tier.contains([key(n) for n in numbers]).tolist() == [n in self.stored for n in numbers]

    @rule()
    def flush(self) -> None:
        for tier in self.tiers:
            tier.flush()

    @rule()
    def restart(self) -> None:
        for tier in self.tiers:
            tier.close()
        self.reopen()

    @invariant()
    def counts_agree(self) -> None:
        for tier in getattr(self, "tiers", []):
            stats = dict(tier.stats())
            assert stats["pages"] == len(self.stored)
            assert stats["corrupt_pages"] == 0

    def teardown(self) -> None:
        for tier in getattr(self, "tiers", []):
            tier.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestTierMachine = TierMachine.TestCase
TestTierMachine.settings = settings(
    max_examples=repeats(15, 400), stateful_step_count=repeats(20, 60), deadline=None
)


def test_stats_have_the_names_of_the_specification(tmp_path: Path) -> None:
    names = [
        [name for name, _ in implementation.DiskTier(tmp_path / str(number), **OPTIONS).stats()]
        for number, implementation in enumerate(IMPLEMENTATIONS)
    ]
    assert names[0] == names[1]
    with open_tier(tmp_path / "face") as tier:
        assert tier.stats().capacity_bytes == 1 << 20


def test_capacity_holds(tmp_path: Path) -> None:
    for number, implementation in enumerate(IMPLEMENTATIONS):
        folder = tmp_path / str(number)
        options = OPTIONS | {"capacity_bytes": 64 << 10, "segment_bytes": 16 << 10}
        tier = implementation.DiskTier(folder, **options)
        for first in range(0, 600, 10):
            numbers = list(range(first, first + 10))
            tier.store([key(n) for n in numbers], pages(numbers))
            held = sum(file.stat().st_size for file in folder.rglob("*") if file.suffix)
            assert held <= 64 << 10
            assert found_in(tier, numbers) == [True] * 10
        stats = dict(tier.stats())
        assert sum(found_in(tier, list(range(600)))) == stats["pages"]
        assert stats["evicted_pages"] == 600 - stats["pages"]


def test_tensors_of_every_kind(tmp_path: Path) -> None:
    shape = (3, 2, 4, 8)
    source = torch.randn(shape).to(torch.bfloat16)
    with open_tier(tmp_path, page_bytes=2 * 4 * 8 * 2) as tier:
        keys = torch.arange(3 * 16, dtype=torch.uint8).reshape(3, 16)
        assert tier.store(keys, source) == 3
        out = torch.zeros(shape, dtype=torch.bfloat16)
        assert tier.load(keys, out, num_threads=1).all()
        assert torch.equal(out, source)
        spread = np.zeros((6, 64), np.float16)
        assert tier.load(keys.numpy(), spread[::2]).all()
        assert (spread[::2].view(np.uint8) == source.view(torch.uint8).numpy().reshape(3, -1)).all()
        assert not spread[1::2].any()
        reverse = np.zeros((3, 128), np.uint8)
        assert tier.load(keys, reverse[::-1]).all()
        assert (reverse[::-1] == spread[::2].view(np.uint8)).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_pages_that_lie_apart(tmp_path: Path, implementation: Any) -> None:
    tier = implementation.DiskTier(tmp_path, **OPTIONS)
    keys = [key(number) for number in range(4)]
    # Each of its own kind and shape.
    given: list[Any] = [
        page(0),
        torch.from_numpy(page(1)).view(torch.bfloat16),
        page(2).view(np.float32).reshape(4, -1),
        page(3),
    ]
    assert tier.store_apart(keys, given) == 4
    assert tier.store_apart([], []) == 0
    assert found_in(tier, [0, 1, 2, 3, 4]) == [True] * 4 + [False]
    out = [
        np.full(PAGE, 0xEE, np.uint8),
        torch.zeros(PAGE // 2, dtype=torch.bfloat16),
        np.zeros((8, PAGE // 8), np.uint8),
    ]
    assert tier.load_apart([key(9), key(3), key(0)], out, num_threads=2).tolist() == [False, True, True]
    assert (np.asarray(out[0]) == 0xEE).all()
    assert (out[1].view(torch.uint8).numpy() == page(3)).all()
    assert (np.asarray(out[2]).ravel() == page(0)).all()
    wide = np.zeros(2 * PAGE, np.uint8)
    for bad, error, code in (
        ([wide[:PAGE]], errors.ShapeError, "shape.page_count"),
        ([wide[:PAGE], wide], errors.ShapeError, "shape.stored_pages"),
        ([wide[:PAGE], wide[::2]], errors.ShapeError, "shape.stored_pages"),
        ([wide[:PAGE], read_only()[0]], errors.ReadOnlyError, "read_only"),
        ([wide[:PAGE], wide[:PAGE]], errors.OverlapError, "overlap.pages"),
        ([wide[PAGE - 1 : -1], wide[:PAGE]], errors.OverlapError, "overlap.pages"),
    ):
        with pytest.raises(error) as caught:
            tier.load_apart(keys[:2], bad)
        assert caught.value.code == code
    assert not wide.any()
    assert tier.load_apart([key(1), key(2)], [wide[PAGE:], wide[:PAGE]]).all()
    assert (wide == np.concatenate([page(2), page(1)])).all()
    tier.close()


def test_a_list_is_pages_that_lie_apart(tmp_path: Path) -> None:
    size = 1 << 18
    given = [np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8) for number in range(3)]
    with open_tier(tmp_path, page_bytes=size, capacity_bytes=1 << 24) as tier:
        assert tier.store([b"a", b"b", b"c"], tuple(given)) == 3
        # One begins at no multiple of a line.
        memory = np.zeros(4 * size + 64, np.uint8)
        out = [memory[3 * size : 4 * size], memory[size + 5 : 2 * size + 5], memory[:size]]
        assert tier.load([b"c", b"a", b"b"], out).all()
        for number, row in zip((2, 0, 1), out, strict=True):
            np.testing.assert_array_equal(row, given[number])
        assert not memory[size : size + 5].any()
        assert not memory[2 * size + 5 : 3 * size].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(("call", "error", "code"), BAD_CALLS)
def test_bad_calls(
    tmp_path: Path, implementation: Any, call: Any, error: type[errors.InferAccelError], code: str
) -> None:
    tier = implementation.DiskTier(tmp_path, **OPTIONS)
    with pytest.raises(error) as caught:
        call(tier)
    assert caught.value.code == code or not code


def test_an_empty_path_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is unset must not put a tier's files where the process happens to be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.DiskTier("", **OPTIONS)
    assert caught.value.code == "argument.tier_path"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("fingerprint", [3, "model", [1, 2], None])
def test_a_fingerprint_is_bytes(tmp_path: Path, fingerprint: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        kvcache.DiskTier(tmp_path, **(OPTIONS | {"fingerprint": fingerprint}))
    assert not any(tmp_path.iterdir())


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"page_bytes": 0}, "argument.page_bytes"),
    ({"page_bytes": -1}, "argument.count"),
    ({"page_bytes": 1 << 31}, "argument.page_bytes"),
    ({"capacity_bytes": 600}, "argument.capacity_bytes"),
    ({"capacity_bytes": -5}, "argument.count"),
    ({"segment_bytes": 100}, "argument.segment_bytes"),
    ({"checksum": "crc"}, "argument.checksum"),
    ({"compression": "gzip"}, "argument.compression"),
    ({"deadline": 0.0}, "argument.deadline"),
    ({"deadline": -1.0}, "argument.deadline"),
    ({"write_deadline": 0.0}, "argument.deadline"),
    ({"write_deadline": -1.0}, "argument.deadline"),
    ({"deadline": float("nan")}, "argument.deadline"),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(("change", "code"), BAD_OPTIONS)
def test_bad_options(tmp_path: Path, implementation: Any, change: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        implementation.DiskTier(tmp_path, **(OPTIONS | change))
    assert caught.value.code == code
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize("change", [{"fingerprint": b"another"}, {"page_bytes": 256}, {"checksum": "blake3"}])
def test_another_layout_is_refused(tmp_path: Path, implementation: Any, change: dict[str, Any]) -> None:
    implementation.DiskTier(tmp_path, **OPTIONS).close()
    with pytest.raises(errors.IntegrityError) as caught:
        implementation.DiskTier(tmp_path, **(OPTIONS | change))
    assert caught.value.code == "integrity.tier_layout"


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(errors.StorageError) as caught:
        open_tier(file)
    assert caught.value.code == "storage.io"
    with pytest.raises(OSError, match="file"):
        open_tier(file / "below")


def test_sixteen_threads(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, capacity_bytes=128 << 10, segment_bytes=16 << 10)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        try:
            for _ in range(30):
                numbers = chance.integers(0, 300, 6).tolist()
                if chance.random() < 0.5:
                    tier.store([key(n) for n in numbers], pages(numbers))
                else:
                    found_in(tier, numbers)
                if chance.random() < 0.1:
                    tier.flush()
        except BaseException as error:  # noqa: BLE001 - reported by the test
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tier.stats().corrupt_pages == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_tier_refuses(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.store([key(1)], pages([1]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tier.load([key(1)], np.zeros((1, PAGE), np.uint8))
        except errors.StorageError as error:
            with open_tier(tmp_path) as own:  # another writer, the same pages
                code = 0 if error.code == "storage.forked" and found_in(own, [1]) == [True] else 2
            del tier
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert found_in(tier, [1]) == [True]
    tier.store([key(2)], pages([2]))
    tier.close()
