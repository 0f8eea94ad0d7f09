"""Device code for number formats: from memory to float32 and back, rounded once, with the CPU's own bits.

A format is one of the constants below. bfloat16 and the eight-bit floats are handled by their bits: the interpreter
has no arithmetic on them and truncates where hardware rounds, and hardware writes another NaN than the CPU's kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT32 = tl.constexpr(0)
FLOAT16 = tl.constexpr(1)
BFLOAT16 = tl.constexpr(2)
FLOAT8_E4M3FN = tl.constexpr(3)
FLOAT8_E5M2 = tl.constexpr(4)


@triton.jit
def pointer(address, FORMAT: tl.constexpr, BYTES: tl.constexpr):
    """Return a pointer to numbers of a format, as they are stored; the address is a multiple of `BYTES`."""
    # The compiler remembers the multiple with the cast itself: said of the result of a call, it would be lost.
    if FORMAT == FLOAT32:
        return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), BYTES)
    elif FORMAT == FLOAT16:  # returns of unlike types: no branch may fall through
        return tl.multiple_of(address.to(tl.pointer_type(tl.float16)), BYTES)
    elif FORMAT == BFLOAT16:
        return tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), BYTES)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), BYTES)


@triton.jit
def widen(stored, FORMAT: tl.constexpr):
    """Return numbers as float32, exactly; codes of eight bits that are no finite numbers become NaN."""
    if FORMAT == FLOAT32:
        return stored
    elif FORMAT == FLOAT16:
        return stored.to(tl.float32)
    elif FORMAT == BFLOAT16:
        return (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif FORMAT == FLOAT8_E4M3FN:
        return _widen_code(stored, 3, 8, 0x7F, 0.001953125)
    else:
        return _widen_code(stored, 2, 16, 0x7C, 0.0000152587890625)


@triton.jit
def _widen_code(
    code, MANTISSA: tl.constexpr, BIAS_STEP: tl.constexpr, FIRST_SPECIAL: tl.constexpr, QUANTUM: tl.constexpr
):
    """Return what codes of eight bits stand for."""
    wide = code.to(tl.int32)
    size = wide & 0x7F
    # The exponent's bias is 7 or 15, and float32's 127.
    rebias: tl.constexpr = (127 - (7 if BIAS_STEP == 8 else 15)) << 23
    normal = ((size << (23 - MANTISSA)) + rebias).to(tl.float32, bitcast=True)
    number = tl.where(size < (1 << MANTISSA), size.to(tl.float32) * QUANTUM, normal)
    number = tl.where(size >= FIRST_SPECIAL, float("nan"), number)
    # Not by a minus sign, which Triton takes for a subtraction from zero: that has no −0.
    signed = number.to(tl.int32, bitcast=True) | ((wide & 0x80) << 24)
    return signed.to(tl.float32, bitcast=True)


@triton.jit
def narrow(values, FORMAT: tl.constexpr):
    """Return the nearest numbers of a format, ties to even, as they are stored; NaN becomes the one NaN of the CPU."""
    is_nan = values != values
    if FORMAT == FLOAT32:
        bits = tl.where(is_nan, 0x7FC00000, values.to(tl.int32, bitcast=True))
        return bits.to(tl.float32, bitcast=True)
    elif FORMAT == FLOAT16:
        bits = tl.where(is_nan, 0x7E00, values.to(tl.float16).to(tl.int16, bitcast=True))
        return bits.to(tl.int16).to(tl.float16, bitcast=True)
    elif FORMAT == BFLOAT16:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        return tl.where(is_nan, 0x7FC0, rounded).to(tl.uint16)
    elif FORMAT == FLOAT8_E4M3FN:
        # Added to a number whose last place is a quantum of the format, a smaller one is rounded to a quantum.
        return _narrow_code(values, 3, 120, 0x7E, 0x7F, 16384.0)
    else:
        return _narrow_code(values, 2, 112, 0x7B, 0x7F, 128.0)


@triton.jit
def _narrow_code(
    values,
    MANTISSA: tl.constexpr,
    REBIAS: tl.constexpr,
    LAST: tl.constexpr,
    NAN: tl.constexpr,
    ROUNDER: tl.constexpr,
):
    """Return the nearest codes of eight bits; the last finite one for what is beyond it."""
    bits = values.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    cut: tl.constexpr = 23 - MANTISSA
    half: tl.constexpr = (1 << (cut - 1)) - 1
    normal = ((size + (((size >> cut) & 1) + half)) >> cut) - (REBIAS << MANTISSA)
    rounder = tl.full(values.shape, ROUNDER, tl.float32)
    shifted = (size.to(tl.float32, bitcast=True) + rounder).to(tl.int32, bitcast=True)
    small = shifted - rounder.to(tl.int32, bitcast=True)
    code = tl.where(size < ((REBIAS + 1) << 23), small, normal)
    code = tl.minimum(code, LAST)
    code = tl.where(size > 0x7F800000, NAN, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def fused(left, right, addend, INTERPRETED: tl.constexpr):
    """Return ``left · right + addend`` with one rounding.

    The interpreter multiplies and adds in float32. There the product is exact in float64, its sum is rounded to odd,
    and then once more: as :func:`infer_accel._reference._floats.fma` has it.
    """
    if not INTERPRETED:
        return tl.fma(left, right, addend)
    else:
        product = left.to(tl.float64) * right.to(tl.float64)
        wide = addend.to(tl.float64)
        total = product + wide
        back = total - product
        lost = (product - (total - back)) + (wide - back)
        bits = total.to(tl.int64, bitcast=True)
        step = tl.where((lost > 0) == (total > 0), 1, -1).to(tl.int64)
        is_cut = (lost != 0) & (total - total == 0) & ((bits & 1) == 0)
        return tl.where(is_cut, bits + step, bits).to(tl.float64, bitcast=True).to(tl.float32)
