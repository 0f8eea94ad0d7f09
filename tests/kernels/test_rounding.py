"""Roundings one number at a time: where two roundings differ from one, and every code of eight bits."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from tests.kernels import rounding_kernels

from infer_accel.kernels._matrices import FORMATS

CODES = {"float8_e4m3fn": (torch.float8_e4m3fn, 0x7E), "float8_e5m2": (torch.float8_e5m2, 0x7B)}


def rounded(exact: int) -> float:
    """Return an integer rounded once to float32, ties to even."""
    cut = max(0, abs(exact).bit_length() - 24)
    kept, left = divmod(abs(exact), 1 << cut)
    is_up = 2 * left > 1 << cut or (2 * left == 1 << cut and kept % 2 == 1)
    return float(np.copysign(float((kept + is_up) << cut), exact))


def almost_ties() -> list[tuple[int, int, int]]:
    """Return factors whose product is nearly 2⁴⁶, and addends that have 2⁴⁶ as half of their last place.

    The sum lies next to a tie of float32: nearer than float64 can tell, or one of its numbers beside.
    """
    found: list[tuple[int, int, int]] = []
    for one in range(1 << 23, (1 << 23) + 40_000):
        other = round((1 << 46) / one)
        if 0 < abs(one * other - (1 << 46)) < 1 << 19:
            for place, sign in product((0, 1), (1, -1)):
                addend = ((1 << 23) + len(found) + place) << 47
                found += [(sign * one, other, addend), (one, other, sign * addend)]
    return found


def test_a_product_and_a_sum_are_rounded_once() -> None:
    cases = almost_ties()[:4096]
    assert len(cases) == 4096
    left, right, addend = (torch.tensor([case[i] for case in cases], dtype=torch.float32) for i in range(3))
    wanted = [rounded(one * other + third) for one, other, third in cases]
    # Where float64 rounds to the tie itself, two roundings are seen in every other case.
    twice = (left.double() * right.double() + addend.double()).float().tolist()
    assert sum(one != other for one, other in zip(wanted, twice, strict=True)) > 200
    found = torch.zeros(4096)
    rounding_kernels.fuse[(1,)](left, right, addend, found, COUNT=4096)
    assert found.tolist() == wanted


def test_a_product_that_float32_cannot_hold() -> None:
    # The product alone would be rounded away, overflow, or lose its sign.
    left = torch.tensor([1 + 2**-12, 2.0**100, -1e-30, 2.0**-75, float("inf"), 0.0])
    right = torch.tensor([1 + 2**-12, 2.0**28, 1e-30, 2.0**-75, 1.0, -1.0])
    addend = torch.tensor([-1 - 2**-11, -(2.0**127), 0.0, 1.0, 1.0, -0.0])
    found = torch.empty(8)
    padded = [torch.cat([tensor, torch.zeros(2)]) for tensor in (left, right, addend)]
    with np.errstate(all="ignore"):
        rounding_kernels.fuse[(1,)](*padded, found, COUNT=8)
    assert found[:5].tolist() == [2**-24, 2.0**127, -0.0, 1.0, float("inf")]
    assert np.signbit(found[2:3].numpy()).all()
    assert np.signbit(found[5:6].numpy()).all()


def values(name: str) -> list[Fraction]:
    """Return what the codes from 0 to the last finite one stand for, as torch has it."""
    dtype, last = CODES[name]
    codes = torch.arange(last + 1, dtype=torch.uint8).view(dtype)
    return [Fraction(number) for number in codes.float().tolist()]


@pytest.mark.parametrize("name", CODES)
def test_every_code_is_decoded(name: str) -> None:
    dtype, last = CODES[name]
    codes = torch.arange(256, dtype=torch.uint8)
    found = torch.zeros(256)
    rounding_kernels.decode[(1,)](codes, found, FORMAT=FORMATS[name], COUNT=256)
    is_finite = (codes & 0x7F) <= last
    assert torch.equal(found[is_finite], codes.view(dtype).float()[is_finite])
    assert torch.equal(torch.signbit(found[is_finite]), (codes >= 0x80)[is_finite])
    assert bool(found[~is_finite].isnan().all())


@pytest.mark.parametrize("name", CODES)
def test_numbers_between_codes_go_to_the_nearest(name: str) -> None:
    known = values(name)
    last = len(known) - 1
    numbers, wanted = [], []
    for code, (low, high) in enumerate(pairwise(known)):
        middle = np.float32((low + high) / 2)
        assert Fraction(float(middle)) == (low + high) / 2
        below, above = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e30))
        numbers += [float(low), below, middle, above]
        wanted += [code, code, code + code % 2, code + 1]
    # Behind the last code there is nothing to round to: it stands for all that is larger.
    top = np.float32(known[-1])
    numbers += [top, np.nextafter(top, np.float32(1e38)), 1.04 * top, 1.5 * top, 1e38, np.inf, 1e-45]
    wanted += [last] * 6 + [0]
    count = 1024
    assert 2 * len(numbers) + 2 <= count
    numbers += [-number for number in numbers]
    wanted += [code | 0x80 for code in wanted]
    numbers += [np.nan, -np.nan]
    given = torch.tensor(np.array(numbers, np.float32).tolist() + [0.0] * (count - len(numbers)))
    given[len(numbers) - 1] = torch.tensor([-1], dtype=torch.int32).view(torch.float32)[0]
    found = torch.zeros(count, dtype=torch.uint8)
    with np.errstate(all="ignore"):
        rounding_kernels.encode[(1,)](given, found, FORMAT=FORMATS[name], COUNT=count)
    assert found[: len(wanted)].tolist() == wanted
    assert [code & 0x7F for code in found[len(wanted) : len(wanted) + 2].tolist()] == [0x7F, 0x7F]
