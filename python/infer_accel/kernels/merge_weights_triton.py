"""Device code of merging: many layers in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from infer_accel.kernels.rounding_triton import BFLOAT16, FLOAT8_E4M3FN, fused, narrow, pointer, widen

#: Numbers that describe a layer; `merge_weights.py` says which.
FIELDS = tl.constexpr(19)


@triton.jit
def product(
    left,
    right,
    sums,
    A: tl.constexpr,
    B: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Return ``sums + left @ right``; without tensor cores each element is one chain of fused multiply-adds."""
    if INTERPRETED:
        sums = _product_written_out(widen(left, B), widen(right, A), sums, TENSOR_CORES)
    elif not TENSOR_CORES:
        sums = tl.dot(widen(left, B), widen(right, A), sums, input_precision="ieee")
    elif A == BFLOAT16:
        sums = tl.dot(left.to(tl.bfloat16, bitcast=True), right.to(tl.bfloat16, bitcast=True), sums)
    else:
        sums = tl.dot(left, right, sums)
    return sums


@triton.jit
def _product_written_out(left, right, sums, TENSOR_CORES: tl.constexpr):
    """Return what the compiler makes of a product of float32 matrices, in its order: for the interpreter."""
    if TENSOR_CORES:
        sums = tl.dot(left, right, sums, input_precision="ieee")
    else:
        place = tl.arange(0, right.shape[0])
        for k in range(right.shape[0]):
            one = tl.sum(tl.where(place[None, :] == k, left, -0.0), 1)
            other = tl.sum(tl.where(place[:, None] == k, right, -0.0), 0)
            sums = fused(one[:, None], other[None, :], sums, INTERPRETED=True)
    return sums


@triton.jit(do_not_specialize=["layers", "halvings", "tiles"])
def merge_layers(
    table,  # int64 [layers, FIELDS]
    starts,  # int64 [layers]: the first tile of each layer
    layers,
    halvings,  # of a search among the layers
    tiles,
    WEIGHT: tl.constexpr,  # formats: of the weights,
    OUT: tl.constexpr,  # of the results,
    A: tl.constexpr,  # of lora_A,
    B: tl.constexpr,  # of lora_B,
    SCALE: tl.constexpr,  # and of the scales of weights of eight bits
    UNIT: tl.constexpr,  # which steps are 1: 0 those of A's columns and B's ranks, 1 of A's ranks and B's rows, 2 none
    ALIGNED: tl.constexpr,  # whether rows begin at multiples of 16 bytes
    PAIRED: tl.constexpr,  # whether the odd rank of a pair comes first
    TENSOR_CORES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,  # of a step; an even number of them
    INTERPRETED: tl.constexpr,
):
    """Add to each weight the product of its adapter, tile by tile, each element rounded once."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        layer = 0
        after = layers
        for _ in range(halvings):
            middle = (layer + after) // 2
            is_later = tl.load(starts + middle) <= tile
            is_open = middle > layer
            layer = tl.where(is_open & is_later, middle, layer)
            after = tl.where(is_open & (is_later == 0), middle, after)
        fields = table + layer * FIELDS
        rows = tl.load(fields + 4)
        columns = tl.load(fields + 5)
        weight_step = tl.load(fields + 6)
        out_step = tl.load(fields + 7)
        a_rank = tl.load(fields + 8)
        a_column = tl.load(fields + 9)
        b_row = tl.load(fields + 10)
        b_rank = tl.load(fields + 11)
        rank = tl.load(fields + 12).to(tl.int32)
        factor = tl.load(fields + 13).to(tl.int32).to(tl.float32, bitcast=True)
        bytes_: tl.constexpr = 16 if ALIGNED else 1
        weight = pointer(tl.load(fields), WEIGHT, bytes_)
        out = pointer(tl.load(fields + 1), OUT, bytes_)
        a = pointer(tl.load(fields + 2), A, bytes_)
        b = pointer(tl.load(fields + 3), B, 1)
        if UNIT == 0:
            a_column = 1
            b_rank = 1
        elif UNIT == 1:
            a_rank = 1
            b_row = 1
        if ALIGNED:
            columns = tl.multiple_of(columns, 8)
            weight_step = tl.multiple_of(weight_step, 8)
            out_step = tl.multiple_of(out_step, 8)
            if UNIT == 0:
                a_rank = tl.multiple_of(a_rank, 8)
        across = tl.cdiv(columns, COLUMNS)
        local = tile - tl.load(starts + layer)
        row = (local // across) * ROWS + tl.arange(0, ROWS)
        column = (local % across) * COLUMNS + tl.arange(0, COLUMNS)
        is_row = row < rows
        is_column = column < columns
        mask = is_row[:, None] & is_column[None, :]
        # Asked for first, so that it is on its way while the product is computed.
        stored = tl.load(weight + row[:, None] * weight_step + column[None, :], mask=mask, other=0)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, rank, RANKS):
            place = first + tl.arange(0, RANKS)
            is_rank = place < rank
            if PAIRED:
                place = tl.where((place ^ 1) < rank, place ^ 1, place)
            # What fills up the last step is −1 · 0 = −0: a product that changes no sum, −0 included. Triton makes +0
            # of a −0 that is written out.
            left = tl.load(
                b + row[:, None] * b_row + place[None, :] * b_rank,
                mask=is_row[:, None] & is_rank[None, :],
                other=0xBF80 if B == BFLOAT16 else -1.0,
            )
            right = tl.load(
                a + place[:, None] * a_rank + column[None, :] * a_column,
                mask=is_rank[:, None] & is_column[None, :],
                other=0,
            )
            sums = product(left, right, sums, A, B, TENSOR_CORES, INTERPRETED)
        before = widen(stored, WEIGHT)
        if WEIGHT >= FLOAT8_E4M3FN:
            scale_row = row // tl.load(fields + 17)
            scale_column = column // tl.load(fields + 18)
            scales = pointer(tl.load(fields + 14), SCALE, 1)
            place = scale_row[:, None] * tl.load(fields + 15) + scale_column[None, :] * tl.load(fields + 16)
            one: tl.constexpr = 0x3F80 if SCALE == BFLOAT16 else 1.0
            scale = widen(tl.load(scales + place, mask=mask, other=one), SCALE)
            merged = tl.div_rn(fused(factor, sums, before * scale, INTERPRETED), scale)
        else:
            merged = fused(factor, sums, before, INTERPRETED)
        tl.store(out + row[:, None] * out_step + column[None, :], narrow(merged, OUT), mask=mask)
