"""What only a GPU can tell: results beside the CPU's, streams, graphs, and the link to the host. `make test-gpu`."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import torch

from infer_accel import errors, kvcache, lora
from infer_accel.kernels import _driver, _threshold
from infer_accel.kernels.merge_weights import EXACT_RANK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing was checked on a GPU"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted: `make test-gpu`"
    ),
]

FORMATS = [torch.float32, torch.float16, torch.bfloat16]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random numbers on the host."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_bytes(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind = BITS[one.element_size()]
    return bool(torch.equal(one.cpu().contiguous().view(kind), other.cpu().contiguous().view(kind)))


@pytest.mark.parametrize("page", [1, 6, 8, 24, 4096, 65536, 100_003])
@pytest.mark.parametrize("form", ["blocks first", "planes first", "interleaved layers"])
def test_page_copies(page: int, form: str) -> None:
    layers = 3
    if form == "interleaved layers":
        sources = list(random_bytes(50, layers, page, seed=0).cuda().unbind(1))
        targets = list(torch.zeros(70, layers, page, dtype=torch.uint8).cuda().unbind(1))
        axis = 0
    else:
        axis = 1 if form == "planes first" else 0
        shape = (2, 50, page) if axis else (50, 2, page)
        sources = [random_bytes(*shape, seed=seed).cuda() for seed in range(layers)]
        targets = [torch.zeros(70, 2, page, dtype=torch.uint8).cuda() for _ in range(layers)]
        if axis:
            targets = [target.permute(1, 0, 2) for target in targets]
    pairs = np.stack(
        [np.random.default_rng(1).integers(0, 50, 40), np.random.default_rng(2).permutation(70)[:40]], 1
    )
    for mapping in (pairs, torch.from_numpy(pairs).cuda(), torch.from_numpy(pairs.astype(np.int32)).cuda()):
        wanted = [torch.zeros(target.shape, dtype=torch.uint8) for target in targets]
        for target in targets:
            target.zero_()
        for source, target in zip(sources, wanted, strict=True):
            target.movedim(axis, 0)[pairs[:, 1]] = source.cpu().movedim(axis, 0)[pairs[:, 0]]
        handle = kvcache.page_copy(sources, targets, mapping, axis=axis)
        assert handle is not None
        handle.synchronize()
        assert all(torch.equal(target.cpu(), aim) for target, aim in zip(targets, wanted, strict=True))


def test_ids_on_the_gpu_are_checked_there() -> None:
    source, target = random_bytes(4, 64, seed=0).cuda(), torch.zeros(4, 64, dtype=torch.uint8).cuda()
    handle = kvcache.page_copy(source, target, torch.tensor([[0, 3], [4, 1], [1, -1]]).cuda())
    assert handle is not None
    with pytest.raises(errors.IdError):
        handle.synchronize()
    assert torch.equal(target[3], source[0])
    assert not target[:3].any()


def test_a_copy_is_ordered_by_its_stream() -> None:
    side = torch.cuda.Stream()
    source = torch.zeros(1 << 14, 4096, dtype=torch.uint8, device="cuda")
    target, pairs = torch.zeros_like(source), [[i, i] for i in range(1 << 14)]
    for value in (1, 2, 3):
        for stream in (side, side.cuda_stream):
            with torch.cuda.stream(side):
                torch.cuda._sleep(10_000_000)
                source.fill_(value)
            handle = kvcache.page_copy(source, target, pairs, stream=stream)
            assert handle is not None
            handle.wait()
            assert bool((target == value).all()), (
                "the copy did not wait for its stream, or we not for the copy"
            )
            target.zero_()
            side.wait_stream(torch.cuda.current_stream())


def test_tensors_live_until_the_copy_is_done() -> None:
    side = torch.cuda.Stream()
    source = torch.full((1 << 12, 4096), 7, dtype=torch.uint8, device="cuda")
    target, pairs = torch.zeros_like(source), [[i, i] for i in range(1 << 12)]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
    handle = kvcache.page_copy(source, target, pairs, stream=side)
    assert handle is not None
    del source
    others = [torch.full((1 << 12, 4096), 9, dtype=torch.uint8, device="cuda") for _ in range(4)]
    handle.synchronize()
    assert bool((target == 7).all())
    del others


@pytest.mark.parametrize("threshold", [0, 1 << 30], ids=["driver", "kernel"])
@pytest.mark.parametrize("page", [64, 4096, 100_000])
@pytest.mark.parametrize("kind", ["HostPool", "pin_memory"])
def test_over_the_link(threshold: int, page: int, kind: str) -> None:
    if threshold == 0 and _driver.copy_driver() is None:
        pytest.skip("cuda-bindings is not installed")
    pool = kvcache.HostPool(40, page, pin=True) if kind == "HostPool" else None
    host = pool.tensor() if pool is not None else torch.empty(40, page, dtype=torch.uint8).pin_memory()
    host.copy_(random_bytes(40, page, seed=0))
    device = torch.zeros(50, page, dtype=torch.uint8, device="cuda")
    pairs = [[i, i + 3] for i in range(10)] + [[39 - i, 20 + i] for i in range(10)]
    wanted = torch.zeros(50, page, dtype=torch.uint8)
    for fro, to in pairs:
        wanted[to] = host[fro]
    for stream in (None, torch.cuda.Stream()):
        device.zero_()
        torch.cuda.synchronize()
        with _threshold.forced(threshold):
            handle = kvcache.page_copy(host, device, pairs, stream=stream)
            assert handle is not None
            handle.synchronize()
            assert torch.equal(device.cpu(), wanted)
            back = torch.zeros(40, page, dtype=torch.uint8).pin_memory()
            handle = kvcache.page_copy(device, back, [[to, fro] for fro, to in pairs], stream=stream)
            assert handle is not None
            handle.synchronize()
        assert all(torch.equal(back[fro], host[fro]) for fro, _ in pairs)


def test_a_graph_reads_its_ids_at_each_replay() -> None:
    source, target = random_bytes(16, 4096, seed=0).cuda(), torch.zeros(16, 4096, dtype=torch.uint8).cuda()
    ids = torch.zeros(4, 2, dtype=torch.int32, device="cuda")
    kvcache.page_copy(source, target, ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kvcache.page_copy(source, target, ids)
    assert captured is not None
    for first in (1, 5):
        target.zero_()
        ids.copy_(torch.tensor([[first + i, 9 - i] for i in range(4)]))
        graph.replay()
        captured.synchronize()
        assert torch.equal(target[[9, 8, 7, 6]], source[first : first + 4])
    ids[2, 0] = 99
    graph.replay()
    with pytest.raises(errors.IdError):
        captured.synchronize()
    ids[2, 0] = 0
    graph.replay()
    captured.synchronize()


def test_ids_of_the_host_are_refused_in_a_capture() -> None:
    source = torch.zeros(4, 64, device="cuda")
    stack = lora.AdapterStack([(torch.ones(1, 64, device="cuda"), torch.ones(64, 1, device="cuda"))])
    graph = torch.cuda.CUDAGraph()
    codes = []
    with torch.cuda.graph(graph):
        source.add_(1)
        for call in (
            lambda: kvcache.page_copy(source, source, [[0, 1]]),
            lambda: lora.apply_adapters(source, stack, [0] * 4, out=torch.zeros_like(source)),
        ):
            with pytest.raises(errors.ArgumentError) as caught:
                call()
            codes.append(caught.value.code)
    assert codes == ["argument.capture"] * 2


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=3)), ids=str)
@pytest.mark.parametrize("rank", [1, 8, 17, EXACT_RANK])
def test_merges_have_the_bits_of_the_cpu(formats: tuple[torch.dtype, ...], rank: int) -> None:
    for shape in ((257, 384), (65, 130)):
        weight, a, b = (
            normal(shape, formats[0], 0),
            normal((rank, shape[1]), formats[1], 1),
            normal((shape[0], rank), formats[2], 2),
        )
        weight[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
        a[0, 5] = -float("inf")
        found, transposed = weight.cuda(), weight.T.contiguous().cuda().T
        lora.merge_weights(found, a.cuda(), b.cuda(), scaling=0.37)
        lora.merge_weights(transposed, a.cuda(), b.cuda(), scaling=0.37)
        lora.merge_weights(weight, a, b, scaling=0.37)
        assert same_bits(found, weight)
        assert same_bits(transposed, weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [EXACT_RANK + 1, 64, 100, 256])
def test_high_ranks_stay_within_the_bound(dtype: torch.dtype, rank: int) -> None:
    weight, a, b = normal((300, 520), dtype, 0), normal((rank, 520), dtype, 1), normal((300, rank), dtype, 2)
    exact = weight.double() + 0.7 * (b.double() @ a.double())
    sizes = 0.7 * (b.double().abs() @ a.double().abs())
    found = lora.merge_weights(weight.cuda(), a.cuda(), b.cuda(), scaling=0.7).cpu().double()
    bound = (rank + 2) * 2.0**-22 * sizes + (UNITS[dtype] + 2.0**-22) * exact.abs()
    assert bool(((found - exact).abs() <= bound).all())


def test_many_layers_in_one_call() -> None:
    shapes, ranks = [(64, 128), (1, 7), (300, 200), (128, 1024)] * 5, [0, 3, 16, 40]
    weights = [normal(shape, FORMATS[i % 3], i) for i, shape in enumerate(shapes)]
    adapters = [
        (
            normal((ranks[i % 4], shape[1]), torch.float32, 50 + i),
            normal((shape[0], ranks[i % 4]), FORMATS[i % 3], i),
            0.3,
        )
        for i, shape in enumerate(shapes)
    ]
    found = [weight.cuda() for weight in weights]
    lora.merge_many(found, [(a.cuda(), b.cuda(), scaling) for a, b, scaling in adapters])
    lora.merge_many(weights, adapters)
    assert all(same_bits(one, other) for one, other in zip(found, weights, strict=True))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scales", [(1,), (300,), (3, 2)])
def test_codes_of_eight_bits(dtype: torch.dtype, scales: tuple[int, ...]) -> None:
    weight = (normal((300, 200), torch.float32, 0) * 20).to(dtype)
    scale = normal(scales, torch.float32, 1).abs() + 0.01
    a, b = normal((16, 200), torch.bfloat16, 2), normal((300, 16), torch.bfloat16, 3)
    found = weight.cuda()
    lora.merge_weights(found, a.cuda(), b.cuda(), scaling=2.0, weight_scale=scale.cuda(), scales="keep")
    lora.merge_weights(weight, a, b, scaling=2.0, weight_scale=scale, scales="keep")
    assert same_bits(found, weight)


@pytest.mark.parametrize("scaling", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_survives_a_merge_of_nothing(dtype: torch.dtype, scaling: float) -> None:
    last = 0x7E if dtype is torch.float8_e4m3fn else 0x7B
    weight = torch.arange(256, dtype=torch.uint8).reshape(2, 128)[:, : last + 1].clone().view(dtype)
    found, nothing = weight.cuda(), (torch.zeros(1, last + 1), torch.zeros(2, 1))
    lora.merge_weights(weight, *nothing, scaling=scaling, weight_scale=torch.ones(1), scales="keep")
    given = [tensor.cuda() for tensor in nothing]
    lora.merge_weights(found, *given, scaling=scaling, weight_scale=torch.ones(1).cuda(), scales="keep")
    assert same_bits(found, weight)


def mixed(dtype: torch.dtype, features: int, outputs: int, ranks: list[int]) -> list[Any]:
    return [
        (normal((rank, features), dtype, 10 + i), normal((outputs, rank), dtype, 40 + i), 0.5 + i)
        for i, rank in enumerate(ranks)
    ]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("ranks", [[16], [8, 16, 3], [64, 20, 130]])
def test_mixed_batches_stay_within_the_bound(dtype: torch.dtype, ranks: list[int]) -> None:
    features, outputs, tokens = 2100, 700, 75
    products = mixed(dtype, features, outputs, ranks)
    x, base = normal((tokens, features), dtype, 1), normal((tokens, outputs), dtype, 2)
    ids = np.random.default_rng(0).integers(-1, len(ranks), tokens)
    stack = lora.AdapterStack([(a.cuda(), b.cuda(), scaling) for a, b, scaling in products])
    results = []
    for given in (ids, torch.from_numpy(ids).cuda()):
        out = base.cuda()
        lora.apply_adapters(x.cuda(), stack, given, out=out)
        results.append(out.cpu())
    assert same_bits(*results)
    for token, name in enumerate(ids.tolist()):
        wanted, bound = base[token].double(), torch.zeros(outputs, dtype=torch.float64)
        if name >= 0:
            a, b, scaling = products[name]
            wanted = wanted + scaling * (b.double() @ (a.double() @ x[token].double()))
            sizes = scaling * (b.double().abs() @ (a.double().abs() @ x[token].double().abs()))
            bound = (features + ranks[name] + 16) * 2.0**-23 * sizes
        bound = bound + (UNITS[dtype] + 2.0**-22) * wanted.abs()
        assert bool(((results[0][token].double() - wanted).abs() <= bound).all())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("rank", [3, 16, 130])
def test_one_adapter_stays_within_the_bound(dtype: torch.dtype, rank: int) -> None:
    ((a, b, scaling),) = mixed(dtype, 2100, 700, [rank])
    x, base = normal((75, 2100), dtype, 1), normal((75, 700), dtype, 2)
    wanted = base.double() + scaling * ((x.double() @ a.double().T) @ b.double().T)
    sizes = scaling * ((x.double().abs() @ a.double().abs().T) @ b.double().abs().T)
    bound = (2100 + rank + 16) * 2.0**-23 * sizes + (UNITS[dtype] + 2.0**-22) * wanted.abs()
    for given_a in (a.cuda(), a.T.contiguous().cuda().T):
        out = lora.apply_adapter(x.cuda(), given_a, b.cuda(), scaling=scaling, out=base.cuda())
        assert bool(((out.cpu().double() - wanted).abs() <= bound).all())


def test_a_graph_applies_one_adapter_at_each_replay() -> None:
    ((a, b, scaling),) = mixed(torch.bfloat16, 256, 300, [16])
    a, b = a.cuda(), b.cuda()
    x = normal((40, 256), torch.bfloat16, 1).cuda()
    out = torch.zeros(40, 300, dtype=torch.bfloat16, device="cuda")
    lora.apply_adapter(x, a, b, scaling=scaling, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lora.apply_adapter(x, a, b, scaling=scaling, out=out)
    for seed in range(3):
        x.copy_(normal((40, 256), torch.bfloat16, seed))
        wanted = lora.apply_adapter(x, a, b, scaling=scaling, out=torch.zeros_like(out))
        out.zero_()
        graph.replay()
        assert same_bits(out, wanted)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_token_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    products = mixed(dtype, 4096, 1000, [16, 16, 40])
    stack = lora.AdapterStack([(a.cuda(), b.cuda(), scaling) for a, b, scaling in products])
    x, base = normal((200, 4096), dtype, 1).cuda(), normal((200, 1000), dtype, 2).cuda()
    ids = np.random.default_rng(0).integers(-1, 3, 200)
    together = base.clone()
    lora.apply_adapters(x, stack, ids, out=together)
    for chosen in ([5], [199, 0, 77], list(range(0, 200, 3)), list(reversed(range(200)))):
        some = base[chosen].clone()
        lora.apply_adapters(x[chosen], stack, ids[chosen], out=some)
        assert same_bits(some, together[chosen])


def test_a_graph_applies_other_adapters_at_each_replay() -> None:
    products = mixed(torch.bfloat16, 256, 300, [16, 8])
    stack = lora.AdapterStack([(a.cuda(), b.cuda(), scaling) for a, b, scaling in products])
    x, out = (
        normal((40, 256), torch.bfloat16, 1).cuda(),
        torch.zeros(40, 300, dtype=torch.bfloat16, device="cuda"),
    )
    ids = torch.full((40,), -1, dtype=torch.int32, device="cuda")
    lora.apply_adapters(x, stack, ids, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lora.apply_adapters(x, stack, ids, out=out)
    for seed in range(3):
        listed = np.random.default_rng(seed).integers(-1, 2, 40)
        out.zero_()
        ids.copy_(torch.from_numpy(listed))
        graph.replay()
        wanted = torch.zeros_like(out)
        lora.apply_adapters(x, stack, listed, out=wanted)
        assert same_bits(out, wanted)


def test_pageable_memory_and_freed_tensors_are_refused() -> None:
    device = torch.zeros(4, 64, device="cuda")
    with pytest.raises(errors.DeviceError) as caught:
        kvcache.page_copy(torch.zeros(4, 64), device, [[0, 1]])
    assert caught.value.code == "device.not_pinned"
    freed = torch.zeros(4, 64, device="cuda")
    freed.untyped_storage().resize_(0)
    with pytest.raises(errors.LayoutError) as gone:
        kvcache.page_copy(device, freed, [[0, 1]])
    assert gone.value.code == "layout.storage"
