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
        (4, 1, 1024, 2, True, False, ("LDG.E.EF",)),
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
