"""The store of adapters: a state machine beside the specification, threads, and what is refused."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from infer_accel import errors, lora, reference

if TYPE_CHECKING:
    from collections.abc import Callable

F = np.float32
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f"])
LAYERS = ["q_proj", "k_proj", "v_proj"]
WIDTHS = {"q_proj": 20, "k_proj": 40, "v_proj": 33}


def adapter(seed: int, layers: list[str], rank: int) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    rng = np.random.default_rng(seed)
    return {
        layer: (
            rng.standard_normal((rank, 18)).astype([F, np.float16][seed % 2]),
            rng.standard_normal((WIDTHS[layer], rank)).astype([np.float16, F][seed // 2 % 2]),
            0.5,
        )
        for layer in layers
    }


def outcome(call: Callable[[], Any]) -> tuple[Any, errors.InferAccelError | None]:
    try:
        return call(), None
    except errors.InferAccelError as error:
        # A traceback would hold the stack of the call, whose bytes count.
        return None, error.with_traceback(None)


class Store(RuleBasedStateMachine):
    """Every answer, and every state, is that of the specification."""

    def __init__(self) -> None:
        super().__init__()
        self.store = lora.AdapterStore(30_000)
        self.specified = reference.lora.AdapterStore(30_000)
        self.kept: list[tuple[lora.AdapterStack, Any, np.ndarray]] = []

    def both(self, ours: Any, theirs: Any) -> Any:
        """Call both; both must answer the same, or refuse by the same code."""
        expected, refusal = outcome(theirs)
        got, refused = outcome(ours)
        if refusal is not None:
            assert refused is not None
            assert (type(refused), refused.code) == (type(refusal), refusal.code)
            if isinstance(refusal, errors.StoreFullError):
                assert isinstance(refused, errors.StoreFullError)
                assert vars(refused) == vars(refusal)
            return None
        assert refused is None
        if isinstance(got, lora.StoredAdapter):
            name, adapter_id, version, layers, rank, nbytes, pins = expected
            assert got == lora.StoredAdapter(name, adapter_id, version, tuple(layers), rank, nbytes, pins)
        return got

    @rule(
        name=NAMES, seed=st.integers(0, 99), layers=st.sets(st.sampled_from(LAYERS)), rank=st.integers(1, 40)
    )
    def load(self, name: str, seed: int, layers: set[str], rank: int) -> None:
        source = adapter(seed, sorted(layers), rank)
        self.both(
            lambda: self.store.load(name, source), lambda: self.specified.load(name, list(source.items()))
        )

    @rule(name=NAMES, is_nan=st.booleans())
    def load_what_is_refused(self, name: str, is_nan: bool) -> None:
        source = adapter(0, ["q_proj"], 4)
        if is_nan:
            source["q_proj"][1][3, 2] = np.inf
        else:
            source["k_proj"] = source["q_proj"]  # another width than the others' k_proj, if they have one
        self.both(
            lambda: self.store.load(name, source), lambda: self.specified.load(name, list(source.items()))
        )

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        self.both(lambda: self.store.get(name), lambda: self.specified.get(name))

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        self.both(lambda: self.store.pin(name), lambda: self.specified.pin(name))

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        self.both(lambda: self.store.unpin(name), lambda: self.specified.unpin(name))

    @rule(name=NAMES)
    def evict(self, name: str) -> None:
        self.both(lambda: self.store.evict(name), lambda: self.specified.evict(name))

    @rule(layers=st.sampled_from([["q_proj"], ["k_proj", "v_proj"], LAYERS]), has_slices=st.booleans())
    def apply(self, layers: list[str], has_slices: bool) -> None:
        slices = [WIDTHS[layer] for layer in layers] if has_slices else None
        stack = self.both(
            lambda: self.store.stack(layers, slices=slices), lambda: self.specified.stack(layers, slices)
        )
        if stack is None:
            return
        specified = self.specified.stack(layers, slices)
        assert list(stack.ids) == specified.ids
        width = sum(WIDTHS[layer] for layer in layers)
        rng = np.random.default_rng(7)
        ids = [*stack.ids, -1]
        x, out = rng.standard_normal((len(ids), 18)).astype(F), np.zeros((len(ids), width), F)
        expected = out.copy()
        self.both(
            lambda: lora.apply_adapters(x, stack, ids, out=out),
            lambda: reference.lora.apply_adapters(x, specified, ids, out=expected),
        )
        np.testing.assert_array_equal(out, expected)

    @invariant()
    def same_books(self) -> None:
        assert list(self.store.names) == self.specified.names()
        stats = self.store.stats
        assert stats == lora.StoreStats(*self.specified.stats())
        assert stats.used_bytes <= stats.capacity_bytes


Store.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestStore = Store.TestCase


def one(value: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rank 1, one feature, four outputs: applied to 1, it adds `value`."""
    return {"layer": (np.ones((1, 1), F), np.full((4, 1), value, F))}


def applied(stack: lora.AdapterStack, adapter_id: int) -> np.ndarray:
    return lora.apply_adapters(
        np.ones((1, 1), F), stack, [adapter_id], out=np.zeros((1, 4), F), num_threads=1
    )


def test_a_swap_is_whole_and_readers_keep_theirs() -> None:
    store = lora.AdapterStore(1 << 20)
    first = store.load("a", one(1.0))
    old = store.stack("layer")
    second = store.load("a", one(2.0))
    assert (first.id, first.version, second.id, second.version) == (0, 1, 0, 2)
    assert applied(old, 0).tolist() == [[1.0] * 4]
    assert applied(store.stack("layer"), 0).tolist() == [[2.0] * 4]


def test_an_evicted_id_is_refused_for_ever() -> None:
    store = lora.AdapterStore(1 << 20)
    gone = store.load("a", one(1.0))
    store.evict("a")
    again = store.load("a", one(1.0))
    assert again.id != gone.id
    with pytest.raises(errors.IdError):
        applied(store.stack("layer"), gone.id)


def test_what_a_stack_holds_counts() -> None:
    size = lora.AdapterStore(1 << 20).load("a", one(1.0)).nbytes
    store = lora.AdapterStore(size)
    store.load("a", one(1.0))
    held = store.stack("layer")
    store.evict("a")
    assert (store.stats.used_bytes, store.stats.stored_bytes) == (size, 0)
    with pytest.raises(errors.StoreFullError) as caught:
        store.load("b", one(2.0))
    assert (caught.value.needed, caught.value.free, caught.value.pinned) == (size, 0, 0)
    assert isinstance(caught.value, MemoryError)
    assert applied(held, 0).tolist() == [[1.0] * 4]
    del held
    store.load("b", one(2.0))


def test_pinned_for_a_block() -> None:
    store = lora.AdapterStore(1 << 20)
    store.load("a", one(1.0))
    with store.pinned("a", "a"):
        assert store.get("a").pins == 2
        with pytest.raises(errors.AdapterError):
            store.evict("a")
    assert store.get("a").pins == 0
    with pytest.raises(errors.AdapterError), store.pinned("a", "b"):
        pass
    assert store.get("a").pins == 0
    assert "a" in store
    assert "b" not in store
    assert len(store) == 1
    store.load("b", one(2.0))
    with pytest.raises(errors.AdapterError, match="b"), store.pinned("a", "b"):
        store.unpin("b")  # somebody takes a pin away that is not theirs
    assert store.get("a").pins == 0


def test_an_adapter_that_was_read_serves_as_its_matrices_do() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6)).astype(F), rng.standard_normal((4, 2)).astype(F)
    read = lora.Adapter.from_arrays({"layers.0.q_proj": (a, b)}, alpha=4)
    store = lora.AdapterStore(1 << 20)
    stored = store.load("a", read)
    assert (stored.layers, stored.rank) == (("layers.0.q_proj",), 2)
    x, out, expected = rng.standard_normal((3, 6)).astype(F), np.zeros((3, 4), F), np.zeros((3, 4), F)
    lora.apply_adapters(x, store.stack("layers.0.q_proj"), [stored.id] * 3, out=out)
    lora.apply_adapter(x, a, b, scaling=2.0, out=expected)
    np.testing.assert_array_equal(out, expected)


def test_refused() -> None:
    store = lora.AdapterStore(1 << 20)
    with pytest.raises(errors.ArgumentError):
        lora.AdapterStore(-1)
    with pytest.raises(errors.ArgumentError) as caught:
        store.load("a", {"layer": [(np.ones((1, 1), F), np.ones((4, 1), F)), None]})  # type: ignore[dict-item]
    assert caught.value.code == "argument.matrices"
    for wrong in (None, 5, [("layer", one(1.0))]):
        with pytest.raises(errors.ArgumentError) as caught:
            store.load("a", wrong)  # type: ignore[arg-type]
        assert caught.value.code == "argument.matrices"
    with pytest.raises(errors.ShapeError):
        store.load("a", {"layer": (np.ones((2, 1), F), np.ones((4, 1), F))})
    with pytest.raises(errors.ArgumentError):
        store.load("a", {"layer": (np.ones((1, 1), F), np.ones((4, 1), F), float("inf"))})
    assert store.names == ()


def test_sixteen_threads() -> None:
    """Loads, swaps, pins and evictions beside readers: each result is one whole adapter's, within the budget."""
    size = lora.AdapterStore(1 << 20).load("a", one(1.0)).nbytes
    store = lora.AdapterStore(6 * size)
    problems: list[object] = []
    is_over = threading.Event()

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(120):
            name = f"n{rng.integers(0, 9)}"
            try:
                store.load(name, one(float(rng.integers(1, 50))))
                if rng.random() < 0.3:
                    with store.pinned(name):
                        store.get(name)
                if rng.random() < 0.2:
                    store.evict(name)
            except (errors.AdapterError, errors.StoreFullError):
                pass
            except BaseException as error:  # noqa: BLE001 - it is shown below
                problems.append(error)

    def read() -> None:
        while not is_over.is_set():
            stack = store.stack("layer")
            for adapter_id in stack.ids:
                out = applied(stack, adapter_id)
                if not (out[0, 0] >= 1 and (out == out[0, 0]).all()):
                    problems.append(out)
            stats = store.stats
            if stats.used_bytes > stats.capacity_bytes:
                problems.append(stats)

    readers = [threading.Thread(target=read) for _ in range(8)]
    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for worker in [*readers, *writers]:
        worker.start()
    for worker in writers:
        worker.join()
    is_over.set()
    for worker in readers:
        worker.join()
    assert problems == []
    for name in store.names:
        store.evict(name)
    del worker
    assert store.stats.stored_bytes == 0
