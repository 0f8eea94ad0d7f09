"""Merging by the kernel, interpreted, against the CPU's own kernels: the same bits."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, lora
from infer_accel.kernels import merge_weights as kernels

if TYPE_CHECKING:
    from collections.abc import Callable
from tests.kernels.devices import OnDevice, SaysCuda
from tests.soak import repeats

FORMATS = [torch.float32, torch.float16, torch.bfloat16]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def bits(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().view(BITS[tensor.element_size()]).numpy()
    return array


@st.composite
def merges(draw: st.DrawFn) -> dict[str, Any]:
    # A tile of the interpreter has 32 rows and 64 columns, and a step four ranks.
    rows, columns = draw(st.sampled_from([1, 5, 32, 35])), draw(st.sampled_from([1, 3, 24, 64, 70]))
    rank = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 33]))
    formats = [draw(st.sampled_from(FORMATS)) for _ in range(3)]
    if rank > kernels.EXACT_RANK:  # products of tensor cores have a bound, and a test of their own
        formats[1:] = [torch.float32, draw(st.sampled_from(FORMATS))]
    seed = draw(st.integers(0, 1 << 20))
    sides = [(rows, columns), (rank, columns), (rows, rank)]
    tensors = []
    for place, (shape, dtype) in enumerate(zip(sides, formats, strict=True)):
        layout = draw(st.sampled_from(["rows", "columns", "wider"]))
        if layout == "columns":
            tensors.append(normal(shape[::-1], dtype, seed + place).T)
        else:
            gap = 5 if layout == "wider" else 0
            tensors.append(normal((shape[0], shape[1] + gap), dtype, seed + place)[:, : shape[1]])
    special = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 6e4, 65520.0, 3.3e38]
    for _ in range(draw(st.integers(0, 3))):
        tensor = tensors[draw(st.integers(0, 2))]
        if tensor.numel():
            place = draw(st.integers(0, tensor.numel() - 1))
            tensor[place // tensor.shape[1], place % tensor.shape[1]] = draw(st.sampled_from(special))
    return {"weight": tensors[0], "lora_A": tensors[1], "lora_B": tensors[2]}


@given(merges(), st.sampled_from([1.0, 0.5, -2.3, 1e-42]), st.sampled_from([None, *FORMATS]))
@settings(max_examples=repeats(30, 2000))
def test_the_bits_are_those_of_the_cpu(
    case: dict[str, Any], scaling: float, target: torch.dtype | None
) -> None:
    weight, a, b = case["weight"], case["lora_A"], case["lora_B"]
    if target is not None and (a.shape[0] == 0 or weight.stride(1) != 1 or weight.stride(0) == 1):
        target = None
    wanted = weight.clone() if target is None else torch.empty(weight.shape, dtype=target)
    base = weight.clone()
    lora.merge_weights(
        wanted if target is None else base, a, b, scaling=scaling, out=None if target is None else wanted
    )
    found = weight if target is None else torch.empty_like(wanted)
    with np.errstate(all="ignore"):
        kernels.merge_weights(weight, a, b, scaling=scaling, out=None if target is None else found)
    np.testing.assert_array_equal(bits(found), bits(wanted))
    if target is not None:
        np.testing.assert_array_equal(bits(weight), bits(base))


@pytest.mark.parametrize("formats", list(product(FORMATS, repeat=2)), ids=str)
@pytest.mark.parametrize("rank", [3, 10])
def test_the_order_of_ranks_is_that_of_the_cpu(formats: tuple[torch.dtype, torch.dtype], rank: int) -> None:
    # In float32 each order of a sum has its own bits.
    weight, a, b = (
        normal((16, 32), torch.float32, 0),
        normal((rank, 32), formats[0], 1),
        normal((16, rank), formats[1], 2),
    )
    wanted = lora.merge_weights(weight.clone(), a, b, scaling=0.3)
    swapped = weight.T.contiguous().T
    kernels.merge_weights(weight, a, b, scaling=0.3)
    kernels.merge_weights(swapped, a, b, scaling=0.3)
    np.testing.assert_array_equal(bits(weight), bits(wanted))
    np.testing.assert_array_equal(bits(swapped), bits(wanted))


@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_of_number_is_rounded_as_on_the_cpu(target: torch.dtype) -> None:
    patterns = np.random.default_rng(0).integers(0, 1 << 32, (16, 128), dtype=np.uint64).astype(np.uint32)
    patterns[:4] = patterns[:4] & 0xFFFF0000 | 0x8000  # in the middle between two numbers of bfloat16
    patterns[4:8] = patterns[4:8] & 0x8FFFE000 | 0x38001000  # and of float16, in its range
    patterns[8] = patterns[8] & 0x807FFFFF  # subnormal
    patterns[9] = patterns[9] | 0x7F800000  # not a number
    patterns[10] = patterns[10] & 0x87FFFFFF | 0x30000000  # subnormal in float16
    weight = torch.from_numpy(patterns.view(np.float32))
    nothing = torch.zeros(1, 128), torch.zeros(16, 1)
    found, wanted = torch.empty(16, 128, dtype=target), torch.empty(16, 128, dtype=target)
    lora.merge_weights(weight, *nothing, out=wanted)
    with np.errstate(all="ignore"):
        kernels.merge_weights(weight, *nothing, scaling=1.0, out=found)
    np.testing.assert_array_equal(bits(found), bits(wanted))


@given(st.sampled_from([torch.float16, torch.bfloat16]), st.integers(33, 130), st.integers(0, 1000))
@settings(max_examples=12)
def test_high_ranks_stay_within_the_bound(dtype: torch.dtype, rank: int, seed: int) -> None:
    weight, a, b = (
        normal((20, 70), dtype, seed),
        normal((rank, 70), dtype, seed + 1),
        normal((20, rank), dtype, seed + 2),
    )
    exact = weight.double() + 0.7 * (b.double() @ a.double())
    sizes = 0.7 * (b.double().abs() @ a.double().abs())
    kernels.merge_weights(weight, a, b, scaling=0.7)
    unit = 2.0**-11 if dtype is torch.float16 else 2.0**-8
    bound = (rank + 2) * 2.0**-22 * sizes + (unit + 2.0**-22) * exact.abs()
    assert bool(((weight.double() - exact).abs() <= bound).all())


@given(st.data())
@settings(max_examples=repeats(7, 300))
def test_many_layers_in_one_call(data: st.DataObject) -> None:
    weights, adapters = [], []
    for layer in range(data.draw(st.integers(1, 6))):
        rows, columns = data.draw(st.sampled_from([1, 32, 40])), data.draw(st.sampled_from([2, 33, 70]))
        rank = data.draw(st.sampled_from([0, 1, 6]))
        dtype = data.draw(st.sampled_from(FORMATS))
        weights.append(normal((rows, columns), dtype, layer))
        adapters.append(
            (normal((rank, columns), dtype, layer + 50), normal((rows, rank), dtype, layer + 90), 0.1 * layer)
        )
    wanted = [weight.clone() for weight in weights]
    lora.merge_many(wanted, adapters)
    kernels.merge_many(weights, adapters)
    for found, expected in zip(weights, wanted, strict=True):
        np.testing.assert_array_equal(bits(found), bits(expected))


@given(st.data())
@settings(max_examples=repeats(12, 300))
def test_codes_of_eight_bits(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]))
    rows, columns = data.draw(st.sampled_from([(3, 5), (130, 9), (5, 140)]))
    shape = data.draw(st.sampled_from([(1,), (rows,), (rows, 1), (-(-rows // 128), -(-columns // 128))]))
    seed, rank = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([1, 4]))
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8))
    last = 0x7E if dtype is torch.float8_e4m3fn else 0x7B
    weight = torch.where((codes & 0x7F) > last, 0x11, codes).to(torch.uint8).view(dtype)
    is_transposed = data.draw(st.booleans())
    weight = weight.T.contiguous().T if is_transposed else weight
    scale = (normal(shape, torch.float32, seed).abs() + 0.01).to(data.draw(st.sampled_from(FORMATS)))
    size = data.draw(st.sampled_from([0.01, 1.0, 300.0]))
    a, b = normal((rank, columns), torch.float32, seed, size), normal((rows, rank), torch.bfloat16, seed)
    wanted = weight.clone()
    lora.merge_weights(wanted, a, b, scaling=0.3, weight_scale=scale.clone(), scales="keep")
    kernels.merge_weights(weight, a, b, scaling=0.3, weight_scale=scale)
    np.testing.assert_array_equal(bits(weight), bits(wanted))


@pytest.mark.parametrize("scaling", [1.0, -1.0])
def test_every_code_survives_a_merge_of_nothing(scaling: float) -> None:
    for dtype, last in ((torch.float8_e4m3fn, 0x7E), (torch.float8_e5m2, 0x7B)):
        codes = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
        codes = codes[:, : last + 1].clone().view(dtype)
        wanted = codes.clone()
        options = {"scaling": scaling, "weight_scale": torch.ones(1)}
        zeros = torch.zeros(1, codes.shape[1]), torch.zeros(2, 1)
        lora.merge_weights(wanted, *zeros, scales="keep", **options)
        kernels.merge_weights(codes, *zeros, **options)
        np.testing.assert_array_equal(bits(codes), bits(wanted))
        assert bits(codes)[1, 0] == (0x80 if scaling < 0 else 0), "−0 stays where −0 is added to it"


@pytest.mark.parametrize("rank", [1, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_of_minus_zero_stays_one(rank: int, dtype: torch.dtype) -> None:
    # Products that underflow to −0; what fills up the last step of ranks must not turn it round.
    weight, a, b = torch.full((2, 3), -0.0), torch.full((rank, 3), -1e-30), torch.full((2, rank), 1e-30)
    wanted = lora.merge_weights(weight.clone(), a.to(dtype), b.to(dtype))
    kernels.merge_weights(weight, a.to(dtype), b.to(dtype), scaling=1.0)
    np.testing.assert_array_equal(bits(weight), bits(wanted))
    assert bool(torch.signbit(weight).all())


def test_a_tile_finds_its_layer() -> None:
    # All of one form, so that they share a launch; layers of one tile, of two, and in between.
    rows = [1, 40, 33, 2, 1, 70, 1, 1, 32, 65, 3]
    weights = [torch.zeros(count, 2) for count in rows]
    adapters = [(torch.ones(1, 2), torch.full((count, 1), 1.0 + i), 1.0) for i, count in enumerate(rows)]
    for count in (0, 1, 2, 5, len(rows)):
        for weight in weights:
            weight.zero_()
        kernels.merge_many(weights[:count], adapters[:count])
        for layer, weight in enumerate(weights):
            assert bool((weight == (layer + 1.0 if layer < count else 0)).all())


def test_the_face_turns_off_to_the_kernels() -> None:
    adapter = torch.ones(1, 3), torch.ones(2, 1)
    weight = SaysCuda.of(torch.zeros(2, 3))
    assert lora.merge_weights(weight, *adapter, scaling=2.0) is weight
    assert lora.merge_many([weight], [(*adapter, 1.0)]) == [weight]
    assert (weight == 3).all()
    out = torch.empty(2, 3, dtype=torch.bfloat16)
    assert lora.merge_weights(weight, *adapter, out=out) is out
    assert (out == 4).all()
    codes = SaysCuda.of(torch.zeros(2, 3, dtype=torch.float8_e4m3fn))
    lora.merge_weights(codes, *adapter, weight_scale=torch.full((1,), 0.5), scales="keep")
    assert (codes.float() == 2).all()


def test_a_weight_may_be_its_own_target_and_layers_slices_of_one_array() -> None:
    adapter = torch.ones(1, 3), torch.ones(2, 1)
    weight = torch.zeros(2, 3)
    kernels.merge_weights(weight, *adapter, scaling=1.0, out=weight[:])
    assert (weight == 1).all()
    fused = torch.zeros(4, 3)
    kernels.merge_many([fused[:2], fused[2:]], [(*adapter, 1.0), (*adapter, 2.0)])
    assert fused[:, 0].tolist() == [1, 1, 2, 2]


WEIGHT, A, B = torch.zeros(4, 6), torch.ones(2, 6), torch.ones(4, 2)
BAD_CALLS: list[tuple[str, dict[str, Any], type[errors.InferAccelError], str]] = [
    ("rank", {"lora_A": torch.ones(3, 6)}, errors.ShapeError, "shape.mismatch"),
    ("in", {"lora_A": torch.ones(2, 5)}, errors.ShapeError, "shape.mismatch"),
    ("out", {"lora_B": torch.ones(3, 2)}, errors.ShapeError, "shape.mismatch"),
    ("vector", {"lora_A": torch.ones(6)}, errors.ShapeError, "shape.matrix"),
    ("integers", {"weight": torch.zeros(4, 6, dtype=torch.int32)}, errors.DTypeError, "dtype.unsupported"),
    ("codes without scale", {"weight": WEIGHT.to(torch.float8_e5m2)}, errors.DTypeError, "dtype.unsupported"),
    ("scale without codes", {"weight_scale": torch.ones(1)}, errors.DTypeError, "dtype.unsupported"),
    ("scaling", {"scaling": float("nan")}, errors.ArgumentError, "argument.scaling"),
    ("scaling too large", {"scaling": 1e39}, errors.ArgumentError, "argument.scaling"),
    ("out of another shape", {"out": torch.zeros(4, 5)}, errors.ShapeError, "shape.mismatch"),
    ("weight is expanded", {"weight": torch.zeros(1, 6).expand(4, 6)}, errors.LayoutError, "layout.self_overlap"),
    ("weight in steps", {"weight": torch.zeros(8, 12)[::2, ::2]}, errors.LayoutError, "layout.rows"),
    ("out otherwise", {"out": torch.zeros(6, 4).T}, errors.LayoutError, "layout.rows"),
    ("gradient", {"weight": torch.zeros(4, 6, requires_grad=True)}, errors.GradientError, "gradient.recorded"),
    ("another device", {"lora_A": torch.ones(2, 6, device="meta")}, errors.DeviceError, "device.mixed"),
    ("another GPU", {"lora_B": OnDevice.of(4, 2)}, errors.DeviceError, "device.mixed"),
    ("a list", {"lora_A": [[1.0] * 6] * 2}, errors.DTypeError, "dtype.not_a_tensor"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "code"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS]
)
def test_bad_calls_are_refused(
    call: dict[str, Any], kind: type[errors.InferAccelError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(kernels, "_launch", launched)
    given: dict[str, Any] = {"weight": WEIGHT, "lora_A": A, "lora_B": B, "scaling": 1.0} | call
    with pytest.raises(kind) as caught:
        kernels.merge_weights(**given)
    assert caught.value.code == code
    assert not WEIGHT.any()


def test_shared_memory_is_refused() -> None:
    memory = torch.zeros(40)
    weight, other = memory[:24].view(4, 6), memory[20:32].view(2, 6)
    calls: list[Callable[[], None]] = [
        lambda: kernels.merge_weights(weight, other, B, scaling=1.0),
        lambda: kernels.merge_weights(torch.zeros(4, 6), other, B, scaling=1.0, out=weight),
        lambda: kernels.merge_weights(weight, A, B, scaling=1.0, out=memory[6:30].view(4, 6)),
    ]
    for call in calls:
        with pytest.raises(errors.OverlapError) as caught:
            call()
        assert caught.value.code == "overlap.adapter"
    with pytest.raises(errors.OverlapError) as caught:
        kernels.merge_many([weight, weight], [(A, B, 1.0)] * 2)
    assert caught.value.code == "overlap.layers"


def test_scales_that_fit_no_codes_are_refused() -> None:
    codes = torch.zeros(4, 4, dtype=torch.uint8).view(torch.float8_e5m2)
    with pytest.raises(errors.ShapeError) as wrong:
        kernels.merge_weights(
            codes, torch.ones(1, 4), torch.ones(4, 1), scaling=1.0, weight_scale=torch.ones(2)
        )
    assert wrong.value.code == "shape.scale"


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic", "seed": 1},
        {"magnitude": torch.ones(2)},
        {"return_residue": True},
        {"scales": "keep"},
        {"global_scale": 1.0},
        {"weight_scale": torch.ones(1)},
        {"weight_scale": torch.ones(1), "scales": "keep", "return_report": True},
        {"weight_scale": torch.ones(1), "scales": "keep", "out": torch.zeros(2, 3)},
    ],
)
def test_options_of_the_cpu_alone_are_refused(options: dict[str, Any]) -> None:
    weight = SaysCuda.of(torch.zeros(2, 3))
    with pytest.raises(errors.ArgumentError, match="on CUDA tensors does not take") as caught:
        lora.merge_weights(weight, torch.ones(1, 3), torch.ones(2, 1), **options)
    assert caught.value.code == "argument.cuda"
    assert not weight.any()
