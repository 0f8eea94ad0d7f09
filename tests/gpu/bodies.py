"""What every kernel must do in every number format, once: on a GPU, under a sanitizer, or in the interpreter.

A body compares with the CPU's own kernels or with float64. What a graph can hold is captured on a GPU and replayed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tests.kernels.devices import SaysCuda

from infer_accel import lora
from infer_accel.kernels import apply_adapters as applying
from infer_accel.kernels import merge_weights as merging
from infer_accel.kernels import page_copy as copying
from infer_accel.kernels._stack import CudaStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Body = Callable[["Place"], None]

FORMATS = (torch.float32, torch.float16, torch.bfloat16)
CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Place:
    """Where a body runs."""

    device: torch.device
    #: Whether calls that a graph can hold go through one.
    is_captured: bool = True

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device, with the same strides."""
        if self.device.type != "cuda":
            return tensor.clone(memory_format=torch.preserve_format)
        return tensor.to(self.device)

    def ids(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """Return ids that kernels take for some on a GPU."""
        tensor = torch.from_numpy(array).to(dtype)
        return tensor.to(self.device) if self.device.type == "cuda" else SaysCuda.of(tensor)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def replay(self, call: Callable[[], object], prepare: Callable[[], object]) -> None:
        """Make a call through a graph that was captured of it; `prepare` undoes what came before the replay."""
        if self.device.type != "cuda" or not self.is_captured:
            prepare()
            call()
            self.wait()
            return
        call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        prepare()
        graph.replay()
        self.wait()


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def require_same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    kind = BITS[found.element_size()]
    same = torch.equal(found.cpu().contiguous().view(kind), wanted.cpu().contiguous().view(kind))
    assert same, f"{what}: other bits"


def require_near(found: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor, what: str) -> None:
    far = (found.cpu().double() - exact).abs() - bound
    assert bool((far <= 0).all()), f"{what}: {float(far.max())} beyond the bound"


# Pages ------------------------------------------------------------------------------------------------------


def pages(place: Place, *, page: int, form: str, ids: torch.dtype | None) -> None:
    """Copy pages of one length, by ids of the host (None) or of the device; ids of the device through a graph."""
    numbers = np.random.default_rng(page)
    layers, there, here = 2, 9, 7
    sources = [
        torch.from_numpy(numbers.integers(0, 256, (there, page), dtype=np.uint8)) for _ in range(layers)
    ]
    pairs = np.stack([numbers.integers(0, there, here), numbers.permutation(here)], axis=1).astype(np.int64)
    if form == "scatter":
        pairs = np.stack([np.arange(here), numbers.permutation(here)], axis=1)
        sources = [source[:here] for source in sources]
    elif form == "gather":
        pairs[:, 1] = np.arange(here)
    given = [place.put(source) for source in sources]
    targets = [torch.full((here, page), 0xAA, dtype=torch.uint8, device=place.device) for _ in range(layers)]
    listed = pairs if form == "pairs" else pairs[:, 0 if form == "gather" else 1].copy()
    named: Any = listed if ids is None else place.ids(listed, ids)

    def call() -> None:
        if form == "pairs":
            copying.page_copy(given, targets, named, axis=0)
        elif form == "gather":
            copying.page_gather(given, named, targets, axis=0)
        else:
            copying.page_scatter(given, targets, named, axis=0)

    def poison() -> None:
        for target in targets:
            target.fill_(0x55)

    if ids is None:
        call()
    else:
        place.replay(call, poison)
    place.wait()
    for source, target in zip(sources, targets, strict=True):
        wanted = torch.empty_like(target, device="cpu")
        wanted[pairs[:, 1]] = source[pairs[:, 0]]
        require_same(target, wanted, f"{form} of pages of {page} bytes")


# Merges -----------------------------------------------------------------------------------------------------


def merges(place: Place, *, formats: tuple[torch.dtype, ...], rank: int, layout: str) -> None:
    """Merge into a weight as it lies, or into another; adapters as they lie, transposed or at an odd address."""
    rows, columns = (40, 72) if layout != "odd" else (37, 65)
    weight = normal((rows, columns), formats[0], 0)
    a, b = normal((rank, columns), formats[1], 1), normal((rows, rank), formats[2], 2)
    if layout == "transposed weight":
        weight = weight.T.contiguous().T
    if layout == "transposed adapter":
        a, b = a.T.contiguous().T, b.T.contiguous().T
    given = [place.put(tensor) for tensor in (weight, a, b)]
    if layout == "odd":
        given = [torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape) for t in given]
    out = torch.full_like(given[0], float("nan")) if layout == "into another" else None
    merging.merge_weights(*given, scaling=0.37, out=out)
    place.wait()
    found = given[0] if out is None else out
    wanted = weight.clone(memory_format=torch.preserve_format)
    lora.merge_weights(wanted, a, b, scaling=0.37)
    what = f"merge of {formats}, rank {rank}, {layout}"
    if rank <= merging.EXACT_RANK or torch.float32 in formats[1:] or formats[1] != formats[2]:
        require_same(found, wanted, what)
    else:
        exact = weight.double() + 0.37 * (b.double() @ a.double())
        sizes = 0.37 * (b.double().abs() @ a.double().abs())
        bound = (rank + 2) * 2.0**-22 * sizes + (UNITS[formats[0]] + 2.0**-22) * exact.abs()
        require_near(found, exact, bound, what)
    if out is not None:
        require_same(given[0], weight, f"{what}: the weight")


def eight_bits(
    place: Place, *, codes: torch.dtype, scale_format: torch.dtype, scales: tuple[int, ...], rank: int
) -> None:
    """Merge into codes of eight bits whose scales stay."""
    rows, columns = 150, 136
    weight = (normal((rows, columns), torch.float32, 0) * 20).to(codes)
    scale = (normal(scales, torch.float32, 1).abs() + 0.05).to(scale_format)
    a, b = normal((rank, columns), torch.bfloat16, 2), normal((rows, rank), torch.bfloat16, 3)
    found = place.put(weight)
    merging.merge_weights(found, place.put(a), place.put(b), scaling=2.0, weight_scale=place.put(scale))
    place.wait()
    wanted = weight.clone()
    lora.merge_weights(wanted, a, b, scaling=2.0, weight_scale=scale.float(), scales="keep")
    what = f"merge of {codes}, scales {scale_format} {scales}, rank {rank}"
    if rank <= merging.EXACT_RANK:
        require_same(found, wanted, what)
    else:  # sums of tensor cores may fall on the other side of a middle: the next code
        distance = (found.cpu().float() - wanted.float()).abs()
        assert bool((distance <= wanted.float().abs() / 4 + 2.0**-6).all()), f"{what}: too far off"


# Applications -----------------------------------------------------------------------------------------------


def applies(place: Place, *, formats: tuple[torch.dtype, ...], ranks: tuple[int, ...], way: str) -> None:
    """Apply adapters of several ranks to a batch; fused slices, of which one adapter leaves one out."""
    widths, features = [5, 130], 140
    ids = np.array([1, -1, 0, 1, 1] + [len(ranks) - 1] * 17)
    adapters: list[Any] = [
        [
            (normal((rank, features), formats[1], 10 + i), normal((width, rank), formats[1], 40 + i), 0.5 + i)
            for width in widths
        ]
        for i, rank in enumerate(ranks)
    ]
    adapters[0][0] = None
    x = normal((len(ids), features), formats[0], 1)
    base = normal((len(ids), sum(widths)), formats[2], 2)
    exact, bound = base.double(), torch.zeros(base.shape, dtype=torch.float64)
    for token, name in enumerate(ids.tolist()):
        for first, product in zip((0, widths[0]), adapters[name] if name >= 0 else (), strict=False):
            if product is not None:
                a, b, scaling = product
                columns = slice(first, first + len(b))
                exact[token, columns] += scaling * (b.double() @ (a.double() @ x[token].double()))
                sizes = scaling * (b.double().abs() @ (a.double().abs() @ x[token].double().abs()))
                bound[token, columns] = (features + len(a) + 16) * 2.0**-23 * sizes
    bound += (UNITS[formats[2]] + 2.0**-22) * exact.abs()
    stack = CudaStack(
        [
            [product and (place.put(product[0]), place.put(product[1]), product[2]) for product in adapter]
            for adapter in adapters
        ],
        range(len(ranks)),
        widths,
    )
    given, out, start = place.put(x), place.put(base), place.put(base)
    if way == "host":
        applying.apply_adapters(given, stack, ids, out=out)
    else:
        named = place.ids(ids, torch.int32 if way == "int32" else torch.int64)
        place.replay(lambda: applying.apply_adapters(given, stack, named, out=out), lambda: out.copy_(start))
    place.wait()
    require_near(out, exact, bound, f"application of {formats}, ranks {ranks}, ids {way}")


def applies_one(place: Place, *, formats: tuple[torch.dtype, ...], rank: int) -> None:
    """Apply one adapter to all tokens, through a graph."""
    tokens, features, outputs = 19, 140, 130
    x, a = normal((tokens, features), formats[0], 1), normal((rank, features), formats[1], 2)
    b, base = normal((outputs, rank), formats[1], 3), normal((tokens, outputs), formats[2], 4)
    given, left, right, out, start = (place.put(tensor) for tensor in (x, a, b, base, base))
    place.replay(
        lambda: applying.apply_adapter(given, left, right, scaling=0.7, out=out), lambda: out.copy_(start)
    )
    exact = base.double() + 0.7 * ((x.double() @ a.double().T) @ b.double().T)
    sizes = 0.7 * ((x.double().abs() @ a.double().abs().T) @ b.double().abs().T)
    bound = (features + rank + 16) * 2.0**-23 * sizes + (UNITS[formats[2]] + 2.0**-22) * exact.abs()
    require_near(out, exact, bound, f"application of one adapter, {formats}, rank {rank}")


# All of them ------------------------------------------------------------------------------------------------


def _named(formats: tuple[torch.dtype, ...]) -> str:
    return " ".join(str(dtype).removeprefix("torch.") for dtype in formats)


def cases() -> Iterator[tuple[str, bool, Body]]:
    """Yield every body: its name, whether it is on the short list for sanitizers, and itself."""
    for group in (page_cases, merge_cases, eight_bit_cases, apply_cases):
        yield from group()


def page_cases() -> Iterator[tuple[str, bool, Body]]:
    """Yield words of every size and pages of several tiles, by every kind of ids."""
    for page, form, ids in itertools.product(
        (1, 6, 12, 24, 48, 4096, 33_000), ("pairs", "gather", "scatter"), (None, torch.int32, torch.int64)
    ):
        is_short = page < 33_000 and ids is torch.int64 and (form == "pairs" or page == 24)
        body = partial(pages, page=page, form=form, ids=ids)
        yield f"pages of {page}, {form}, ids {ids}", is_short, body


def merge_cases() -> Iterator[tuple[str, bool, Body]]:
    """Yield all formats with each other, in chains and by tensor cores, and all layouts."""
    ranks = 5, merging.EXACT_RANK + 3
    for formats, rank in itertools.product(itertools.product(FORMATS, repeat=3), ranks):
        body = partial(merges, formats=formats, rank=rank, layout="as it is")
        yield f"merge {_named(formats)}, rank {rank}", len(set(formats)) == 1, body
    layouts = "transposed weight", "transposed adapter", "odd", "into another"
    for dtype, layout, rank in itertools.product(FORMATS, layouts, ranks):
        body = partial(merges, formats=(dtype,) * 3, rank=rank, layout=layout)
        yield f"merge {_named((dtype,))}, rank {rank}, {layout}", dtype is torch.bfloat16, body


def eight_bit_cases() -> Iterator[tuple[str, bool, Body]]:
    """Yield both kinds of codes with every kind of scales, in chains and by tensor cores."""
    for codes, kind, scales, rank in itertools.product(
        CODES, FORMATS, ((1,), (150,), (2, 2)), (5, merging.EXACT_RANK + 3)
    ):
        body = partial(eight_bits, codes=codes, scale_format=kind, scales=scales, rank=rank)
        is_short = scales == (2, 2) and kind is torch.float32
        yield f"merge {_named((codes, kind))}, scales {scales}, rank {rank}", is_short, body


def apply_cases() -> Iterator[tuple[str, bool, Body]]:
    """Yield all formats with each other, ranks of each step's size, and ids of every kind."""
    for formats in itertools.product(FORMATS, repeat=3):
        is_short = len(set(formats)) == 1
        for ranks, way in (((3, 16), "host"), ((20, 40), "int32"), ((70, 8, 1), "int64")):
            body = partial(applies, formats=formats, ranks=ranks, way=way)
            yield f"apply {_named(formats)}, ranks {ranks}, ids {way}", is_short, body
        yield f"apply one {_named(formats)}", is_short, partial(applies_one, formats=formats, rank=17)
