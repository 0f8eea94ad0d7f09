"""Device code of applying a mixed batch of adapters: shrink to the rank, expand to the outputs.

A work item is up to TOKENS tokens of one adapter: its slot in the stack (−1: nothing to do), where its tokens begin in
`order`, and how many there are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from infer_accel.kernels.rounding_triton import BFLOAT16, fused, narrow, pointer, widen

#: Numbers that describe what an adapter does to a slice; `_stack.py` says which.
FIELDS = tl.constexpr(6)


@triton.jit(do_not_specialize=["positions", "slices", "ranks", "part"])
def shrink(
    x,
    hidden,  # float32 [parts, positions, slices, ranks]
    order,  # int32 [positions]: tokens, those of one adapter together
    work,  # int32 [items, 3]
    table,  # int64 [adapters, slices, FIELDS]
    positions,
    slices,
    ranks,
    features,
    x_step,
    part,  # features of one program
    X: tl.constexpr,
    ADAPTER: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    FEATURES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Multiply the tokens of an item by RANKS rows of its lora_A, over one part of the features."""
    item = work + 3 * tl.program_id(0)
    slot = tl.load(item).to(tl.int64)
    if slot < 0:
        return
    blocks = tl.cdiv(ranks, RANKS)
    piece = tl.program_id(1) // blocks
    first_rank = (tl.program_id(1) % blocks) * RANKS
    fields = table + (slot * slices + piece) * FIELDS
    rank = tl.load(fields + 2).to(tl.int32)
    if first_rank >= rank:
        return
    start = tl.load(item + 1)
    row = tl.arange(0, TOKENS)
    is_token = row < tl.load(item + 2)
    token = tl.load(order + start + row, mask=is_token, other=0).to(tl.int64)
    a = pointer(tl.load(fields), ADAPTER, 16)
    r = first_rank + tl.arange(0, RANKS)
    a_place = a + r[None, :].to(tl.int64) * features
    x_place = x + token[:, None] * x_step
    begin = tl.program_id(2) * part
    end = tl.minimum(begin + part, features)
    sums = tl.zeros((TOKENS, RANKS), tl.float32)
    for first in range(begin, end, FEATURES):
        feature = first + tl.arange(0, FEATURES)
        is_feature = feature < end
        left = tl.load(x_place + feature[None, :], mask=is_token[:, None] & is_feature[None, :], other=0)
        right = tl.load(a_place + feature[:, None], mask=(r < rank)[None, :] & is_feature[:, None], other=0)
        if INTERPRETED or not TENSOR_CORES:
            sums = tl.dot(widen(left, X), widen(right, ADAPTER), sums, input_precision="ieee")
        elif ADAPTER == BFLOAT16:
            sums = tl.dot(left.to(tl.bfloat16, bitcast=True), right.to(tl.bfloat16, bitcast=True), sums)
        else:
            sums = tl.dot(left, right, sums)
    place = ((tl.program_id(2) * positions + start + row).to(tl.int64) * slices + piece) * ranks
    tl.store(hidden + place[:, None] + r[None, :], sums, mask=is_token[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["positions", "slices", "ranks", "parts"])
def expand(
    hidden,
    out,
    order,
    work,
    table,
    positions,
    slices,
    ranks,
    parts,
    out_step,
    OUT: tl.constexpr,
    ADAPTER: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Add what an item's adapter makes of its tokens to OUTPUTS outputs of a slice."""
    item = work + 3 * tl.program_id(0)
    slot = tl.load(item).to(tl.int64)
    if slot < 0:
        return
    fields = table + (slot * slices + tl.program_id(2)) * FIELDS
    rank = tl.load(fields + 2).to(tl.int32)
    width = tl.load(fields + 5).to(tl.int32)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    if (rank == 0) | (tl.program_id(1) * OUTPUTS >= width):
        return
    start = tl.load(item + 1)
    row = tl.arange(0, TOKENS)
    is_token = row < tl.load(item + 2)
    is_output = output < width
    token = tl.load(order + start + row, mask=is_token, other=0).to(tl.int64)
    out_place = out + token[:, None] * out_step + (tl.load(fields + 4) + output)[None, :]
    mask = is_token[:, None] & is_output[None, :]
    before = widen(tl.load(out_place, mask=mask, other=0), OUT)
    b = pointer(tl.load(fields + 1), ADAPTER, 1) + output[None, :].to(tl.int64) * rank
    sums = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for first in range(0, rank, RANKS):
        r = first + tl.arange(0, RANKS)
        is_rank = r < rank
        middle = tl.zeros((TOKENS, RANKS), tl.float32)
        for part in range(parts):  # always in this order, whatever the batch
            place = ((part * positions + start + row).to(tl.int64) * slices + tl.program_id(2)) * ranks
            is_there = is_token[:, None] & is_rank[None, :]
            middle += tl.load(hidden + place[:, None] + r[None, :], mask=is_there, other=0.0)
        right = tl.load(b + r[:, None], mask=is_rank[:, None] & is_output[None, :], other=0)
        sums = tl.dot(middle, widen(right, ADAPTER), sums, input_precision="ieee")
    factor = tl.load(fields + 3).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(out_place, narrow(fused(factor, sums, before, INTERPRETED), OUT), mask=mask)
