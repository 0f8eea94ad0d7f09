"""A policy of eviction and a specification for vLLM's offloading, with stand-ins for its classes."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import vllm_double
from tests.vllm_double import ChunkStatus, OffloadingConfig, ReqContext

from infer_accel.errors import ArgumentError
from infer_accel.integrations import _vllm_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "infer_accel.integrations.vllm_offloading"
OURS = {"root_dir": "/var/cache/kv", "capacity_bytes": 1 << 30}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    vllm_double.install(monkeypatch)
    yield importlib.import_module(MODULE)
    for name in (MODULE, "infer_accel.integrations.vllm"):
        sys.modules.pop(name, None)


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def use(policy: Any, numbers: list[int], *, finish: bool = True) -> ReqContext:
    """Let a request use chunks in the order of its prompt, storing those that are not there."""
    keys = [key(number) for number in numbers]
    request = ReqContext({one: place for place, one in enumerate(keys)})
    for one in keys:
        if policy.get(one) is None:
            policy.insert(one, ChunkStatus(), request)
    policy.on_request_access(keys, request)
    if finish:
        policy.on_request_finished([keys], set(), set(keys), request)
    return request


def evicted(policy: Any, count: int, protected: tuple[int, ...] = ()) -> list[int] | None:
    found = policy.evict(count, {key(number) for number in protected})
    return None if found is None else [int.from_bytes(one, "big") for one, _ in found]


def test_the_end_of_the_oldest_prompt_leaves_first(module: Any) -> None:
    policy = module.LinkedLruPolicy(16)
    for numbers in ([1, 2, 3], [4, 5], [1, 2, 6]):
        use(policy, numbers)
    assert evicted(policy, 2) == [3, 5]
    assert evicted(policy, 2) == [4, 6]
    assert policy.get(key(6)) is None
    assert evicted(policy, 3) is None
    assert evicted(policy, 2) == [2, 1]
    assert evicted(policy, 0) == []


def test_what_is_moved_or_needed_stays(module: Any) -> None:
    policy = module.LinkedLruPolicy(16)
    use(policy, [1, 2, 3])
    policy.get(key(3)).ref_cnt = 1
    assert evicted(policy, 3) is None
    assert evicted(policy, 1, protected=(2,)) == [1]
    assert policy.get(key(3)) is not None
    policy.get(key(3)).ref_cnt = 0
    assert evicted(policy, 2) == [3, 2]


def test_a_request_that_goes_on_keeps_its_beginning(module: Any) -> None:
    policy = module.LinkedLruPolicy(16)
    use(policy, [9])
    request = use(policy, [1, 2], finish=False)
    keys = [key(number) for number in (1, 2, 3, 4)]
    request.positions.update({one: place for place, one in enumerate(keys)})
    # A gap that is filled late stands where it stands in the prompt.
    for one in (keys[3], keys[2]):
        policy.insert(one, ChunkStatus(), request)
    assert evicted(policy, 3) == [9, 4, 3]


def test_after_a_reset_nothing_is_left(module: Any) -> None:
    policy = module.LinkedLruPolicy(16)
    request = use(policy, [1, 2], finish=False)
    policy.clear()
    assert policy.get(key(1)) is None
    assert evicted(policy, 1) is None
    policy.insert(key(1), ChunkStatus(), request)
    use(policy, [5])
    assert evicted(policy, 2) == [1, 5]


def test_a_chunk_that_was_not_stored_is_forgotten(module: Any) -> None:
    policy = module.LinkedLruPolicy(16)
    use(policy, [1, 2])
    policy.remove(key(2))
    policy.insert(key(7), ChunkStatus(), ReqContext())
    policy.touch([key(1), key(99)], ReqContext())
    assert evicted(policy, 2) == [7, 1]


#: What requests do: the chunks of a prompt, or how many have to leave.
STEPS = st.lists(
    st.tuples(st.just("use"), st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True))
    | st.tuples(st.just("evict"), st.integers(0, 6))
    | st.tuples(st.just("pin"), st.integers(0, 30)),
    max_size=40,
)


@given(STEPS)
def test_the_order_is_that_of_use(steps: list[tuple[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        vllm_double.install(patch)
        policy = importlib.import_module(MODULE).LinkedLruPolicy(64)
        # The specification: when each chunk was used last, and how far in its prompt it stands.
        order: dict[int, tuple[int, int]] = {}
        pinned: set[int] = set()
        for now, (what, given_) in enumerate(steps):
            if what == "use":
                use(policy, given_)
                order |= {number: (now, -place) for place, number in enumerate(given_)}
            elif what == "pin" and given_ in order:
                pinned ^= {given_}
                policy.get(key(given_)).ref_cnt = int(given_ in pinned)
            elif what == "evict":
                idle = sorted(order.keys() - pinned, key=order.__getitem__)
                expected = idle[:given_] if len(idle) >= given_ else None
                assert evicted(policy, given_) == expected
                for number in expected or []:
                    del order[number]
        assert {number for number in range(31) if policy.get(key(number)) is not None} == set(order)


def test_the_specification_has_the_tier_and_the_policy(module: Any) -> None:
    given_ = {**OURS, "checksum": "blake3", "cpu_bytes_to_use": 5, "secondary_tiers": [{"type": "fs"}]}
    spec = module.InferAccelOffloadingSpec(OffloadingConfig(given_))
    tier = {
        "type": "DiskTierManager",
        "module_path": "infer_accel.integrations.vllm",
        **OURS,
        "checksum": "blake3",
    }
    assert spec.extra_config == {
        "cpu_bytes_to_use": 5,
        "eviction_policy": "LinkedLruPolicy",
        "cache_policy_module_path": MODULE,
        "secondary_tiers": [tier, {"type": "fs"}],
    }
    assert (
        spec.tiers == module.InferAccelOffloadingSpec._get_secondary_tiers(given_) == [tier, {"type": "fs"}]
    )


def test_another_policy_may_be_named(module: Any) -> None:
    spec = module.InferAccelOffloadingSpec(OffloadingConfig({**OURS, "eviction_policy": "arc"}))
    assert spec.extra_config["eviction_policy"] == "arc"


@pytest.mark.parametrize("name", list(OURS))
def test_what_is_missing_is_named(module: Any, name: str) -> None:
    given_ = {other: value for other, value in OURS.items() if other != name}
    with pytest.raises(ArgumentError, match=name):
        module.InferAccelOffloadingSpec(OffloadingConfig(given_))


def test_vllm_knows_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_double.install(monkeypatch)
    for _ in range(2):  # some processes do it twice
        _vllm_plugins.offloading()
    found = sys.modules["vllm.v1.kv_offload.factory"]
    names = {
        name: pair for kind in vllm_double.FACTORIES for name, pair in getattr(found, kind).registry.items()
    }
    assert names == {
        "InferAccelOffloadingSpec": (MODULE, "InferAccelOffloadingSpec"),
        "infer_accel_disk": ("infer_accel.integrations.vllm", "DiskTierManager"),
        "infer_accel_lru": (MODULE, "LinkedLruPolicy"),
    }


def test_without_the_interface_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.v1", None)
    _vllm_plugins.offloading()
    assert caplog.records == []


def test_another_vllm_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_double.install(monkeypatch, version="0.34.0")
    with pytest.raises(
        ModuleNotFoundError, match=r"vLLM 0\.34\.0 came; its offloading is known here as of 0\.33"
    ):
        importlib.import_module(MODULE)
