"""Device code of page copies."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["entries", "rows", "steps", "source_pages", "target_pages"])
def copy_pages(
    table,  # int64 [entries, 4]: source address, target address, source and target page stride, in bytes
    ids,  # [rows, 2], or [rows] where FORM says that one side counts by itself
    error,  # int32 [1]: 1 + a row whose ids are out of range
    entries,
    rows,
    steps,  # tiles along a page
    length,  # of a page of one entry, in vectors of LANES words
    source_pages,
    target_pages,
    WORD: tl.constexpr,  # bytes of a word: 8, 4, 2 or 1
    LANES: tl.constexpr,  # words of a vector: 2 where 16 bytes may be moved at once, else 1
    ROWS: tl.constexpr,  # pages of a tile
    COLUMNS: tl.constexpr,  # words of a tile's page
    FORM: tl.constexpr,  # 0: pairs; 1: gather, ids name sources; 2: scatter, ids name targets
    CHECKED: tl.constexpr,  # whether the host has looked at the ids
    WIDE: tl.constexpr,  # whether there are more tiles than 31 bits can count
):
    """Copy a run of every named page of every entry."""
    if WORD == 8:
        word = tl.int64
    elif WORD == 4:
        word = tl.int32
    elif WORD == 2:
        word = tl.int16
    else:
        word = tl.int8
    # The compiler moves vectors where it can prove that a mask never cuts one: hence the multiplication here.
    words = length * LANES
    groups = tl.cdiv(rows, ROWS)
    first = tl.program_id(0)
    if WIDE:  # a division of 64 bits is forty instructions
        groups = groups.to(tl.int64)
        first = first.to(tl.int64)
    # Pages of one entry follow each other, so that neighbouring programs work in one layer.
    for tile in range(first, groups * steps * entries, tl.num_programs(0)):
        step = tile % steps
        group = (tile // steps) % groups
        entry = tile // steps // groups
        row = group * ROWS + tl.arange(0, ROWS)
        is_row = row < rows
        if FORM == 0:
            source = tl.load(ids + 2 * row, mask=is_row, other=0).to(tl.int64)
            target = tl.load(ids + 2 * row + 1, mask=is_row, other=0).to(tl.int64)
        elif FORM == 1:
            source = tl.load(ids + row, mask=is_row, other=0).to(tl.int64)
            target = row.to(tl.int64)
        else:
            source = row.to(tl.int64)
            target = tl.load(ids + row, mask=is_row, other=0).to(tl.int64)
        is_copied = is_row
        if not CHECKED:
            is_known = (source >= 0) & (source < source_pages) & (target >= 0) & (target < target_pages)
            tl.store(error + tl.zeros_like(row), (row + 1).to(tl.int32), mask=is_row & (is_known == 0))
            is_copied = is_row & is_known
        fields = table + 4 * entry
        from_address = tl.load(fields) + source * tl.load(fields + 2)
        to_address = tl.load(fields + 1) + target * tl.load(fields + 3)
        from_page = tl.multiple_of(from_address.to(tl.pointer_type(word)), WORD * LANES)
        to_page = tl.multiple_of(to_address.to(tl.pointer_type(word)), WORD * LANES)
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        mask = is_copied[:, None] & (column < words)[None, :]
        # A source page is read once; what is written is what comes next, and may stay in the cache.
        bits = tl.load(from_page[:, None] + column[None, :], mask=mask, eviction_policy="evict_first")
        tl.store(to_page[:, None] + column[None, :], bits, mask=mask)
