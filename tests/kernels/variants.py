"""The forms in which kernels are launched, as the compiler sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from tests.soak import repeats

from infer_accel.kernels import _triton

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A100, H100 and H200, B200.
ARCHITECTURES = (80, 90, 100)
#: Those whose instructions are looked at too.
READ_ARCHITECTURES = ARCHITECTURES if repeats(0, 1) else (90,)


@dataclass(frozen=True)
class Variant:
    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    #: Places of arguments that are multiples of 16, as allocations of torch are.
    aligned: tuple[int, ...]
    options: dict[str, int]
    most_registers: int
    #: Beginnings of instructions that must be there, and that must not.
    needed: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = field(default=())


def variants() -> Iterator[Variant]:
    yield from page_copies()
    yield from merges()
    yield from applications()


def page_copies() -> Iterator[Variant]:
    kernel = _triton.device_code("page_copy_triton").copy_pages
    signature = {
        "table": "*i64",
        "ids": "*i64",
        "error": "*i32",
        "entries": "i32",
        "rows": "i32",
        "steps": "i32",
        "length": "i32",
        "source_pages": "i64",
        "target_pages": "i64",
    }
    # A vector of 16 bytes for each access of a tile with words of 8, whatever the length of a page.
    wide = ("LDG.E.EF.128", "STG.E.128")
    for word, lanes, columns, form, checked, is_wide, needed in (
        (8, 2, 2048, 0, True, False, wide),
        (8, 2, 512, 0, False, False, wide),
        (8, 2, 16, 1, False, True, wide),
        (8, 1, 256, 0, True, False, ("LDG.E.EF.64",)),
        (4, 1, 1024, 2, True, False, ("LDG.E.EF",)),
        (2, 1, 64, 1, False, False, ("LDG.E.EF.U16",)),
        (1, 1, 16, 0, True, False, ("LDG.E.EF.U8",)),
        *(rarer_page_copies() if repeats(0, 1) else ()),
    ):
        constants = {
            "WORD": word,
            "LANES": lanes,
            "ROWS": 1024 * lanes // columns,
            "COLUMNS": columns,
            "FORM": form,
            "CHECKED": checked,
            "WIDE": is_wide,
        }
        name = "page_copy " + " ".join(f"{key}={value}" for key, value in constants.items())
        ids = signature | {"ids": "*i64" if checked else "*i32"}
        yield Variant(name, kernel, ids, constants, (0, 1, 2), {"num_warps": 8}, 64, needed)


def rarer_page_copies() -> Iterator[tuple[int, int, int, int, bool, bool, tuple[str, ...]]]:
    access = {8: "LDG.E.EF.64", 4: "LDG.E.EF", 2: "LDG.E.EF.U16", 1: "LDG.E.EF.U8"}
    for word, columns in product(access, (16, 64, 256, 1024)):
        yield word, 1, columns, columns % 3, columns > 64, columns == 256, (access[word],)


def merges() -> Iterator[Variant]:
    kernel = _triton.device_code("merge_weights_triton").merge_layers
    signature = {"table": "*i64", "starts": "*i64", "layers": "i32", "halvings": "i32", "tiles": "i32"}
    f32, f16, bf16, e4m3, e5m2 = range(5)
    forms = [
        # weight, lora_A, lora_B, steps of 1, aligned, tensor cores
        (bf16, bf16, bf16, 0, True, False),
        (f16, f16, f16, 0, True, False),
        (f32, f32, f32, 0, True, False),
        (bf16, bf16, bf16, 0, True, True),
        (f16, f16, f16, 0, True, True),
        (e4m3, bf16, bf16, 0, True, False),
        (e5m2, bf16, bf16, 0, True, False),
    ]
    if repeats(0, 1):
        forms += [(weight, a, b, 0, True, False) for weight, a, b in product((f32, f16, bf16), repeat=3)]
        forms += [(f32, f16, f16, 0, True, True), (e5m2, f32, f32, 0, True, False)]
        forms += [
            (bf16, bf16, bf16, unit, aligned, cores)
            for unit in (1, 2)
            for aligned in (True, False)
            for cores in (True, False)
        ]
    for weight, a, b, unit, aligned, cores in dict.fromkeys(forms):
        constants = {
            "WEIGHT": weight,
            "OUT": weight,
            "A": a,
            "B": b,
            "SCALE": f32,
            "UNIT": unit,
            "ALIGNED": aligned,
            "PAIRED": a == b == bf16,
            "TENSOR_CORES": cores,
            "ROWS": 64,
            "COLUMNS": 128,
            "RANKS": 64 if cores else 16,
            "INTERPRETED": False,
        }
        vectors = ("LDG.E.128", "STG.E.128") if aligned and weight < e4m3 else ()
        # A product in chains is fused multiply-adds and nothing else; one that flushed subnormal numbers would say FTZ.
        chains = () if cores else ("FFMA",)
        others = ("FADD", "FFMA.FTZ") if weight < e4m3 and not cores else ("FFMA.FTZ",)
        name = "merge " + " ".join(f"{key}={value}" for key, value in constants.items())
        yield Variant(
            name, kernel, signature, constants, (0,), {"num_warps": 8}, 255, vectors + chains, others
        )


def applications() -> Iterator[Variant]:
    code = _triton.device_code("apply_adapters_triton")
    common = {
        "order": "*i32",
        "work": "*i32",
        "table": "*i64",
        "positions": "i32",
        "slices": "i32",
        "ranks": "i32",
    }
    shrink = {"x": "", "hidden": "*fp32", **common, "features": "i32", "x_step": "i32", "part": "i32"}
    expand = {"hidden": "*fp32", "out": "", **common, "parts": "i32", "out_step": "i32"}
    pointers = {0: "*fp32", 1: "*fp16", 2: "*u16"}
    f32, f16, bf16 = range(3)
    forms = [(dtype, dtype, ranks) for dtype, ranks in product((bf16, f16, f32), (16, 32, 64))]
    if repeats(0, 1):
        forms += list(product((f32, f16, bf16), (f32, f16, bf16), (16, 32, 64)))
    known: set[str] = set()
    for tokens, adapter, ranks in dict.fromkeys(forms):
        has_cores = tokens == adapter != f32
        shared = {"ADAPTER": adapter, "TOKENS": 16, "INTERPRETED": False}
        first = {
            "X": tokens,
            "TENSOR_CORES": has_cores,
            "FEATURES": 128 if has_cores else 32,
            "RANKS": ranks,
            **shared,
        }
        second = {"OUT": tokens, "OUTPUTS": 128, "RANKS": 16, **shared}
        options = {"num_warps": 4}
        # Products are exact in float32 and chains of fused multiply-adds, or those of tensor cores; never of tf32.
        for name, kernel, signature, constants, aligned, pointer, needed in (
            ("shrink", code.shrink, shrink, first, (0, 1, 8, 9, 10), "x", () if has_cores else ("FFMA",)),
            ("expand", code.expand, expand, second, (0, 1, 9), "out", ("FFMA",)),
        ):
            label = f"{name} " + " ".join(f"{key}={value}" for key, value in constants.items())
            if label in known:
                continue
            known.add(label)
            typed = signature | {pointer: pointers[tokens]}
            forbidden = ("HMMA.1688.F32.TF32", "FFMA.FTZ", "RED", "ATOM")
            yield Variant(label, kernel, typed, constants, aligned, options, 255, needed, forbidden)
