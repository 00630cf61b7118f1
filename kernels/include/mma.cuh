// Fragments: what a lane holds of a 16-row tile, and how it moves between registers and shared memory.
//
// Accumulator of 16 rows x 8n columns: lane l holds, for column block j, acc[4j + {0,1}] = row l/4,
// columns 8j + 2(l%4) + {0,1}, and acc[4j + {2,3}] = the same columns of row l/4 + 8. An A operand of
// 16 x 16 is four packed pairs in the same order, so an accumulator, packed, is an A operand whose
// contraction runs over the accumulator's columns. The recurrences in these kernels live on that.
//
// A "panel" is 64 bf16 (128 bytes) wide, rows 128 bytes apart, with the 16-byte chunks of row r
// permuted by xor with r % 8: what the copy engine writes under its 128-byte swizzle, and what wgmma reads.
#pragma once
#include "base.cuh"

/// Byte offset of 16-byte chunk `chunk` of row `row` in a panel.
DEVICE u32 panel_chunk(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }
/// Byte offset of element (row, col), col < 64.
DEVICE u32 panel_at(u32 row, u32 col) { return panel_chunk(row, col >> 3) + (col & 7) * 2; }

/// Packs an accumulator of 4n floats into the A operand of the next product.
template <int N> DEVICE void pack_operand(u32 (&to)[N / 2], const float (&acc)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) to[i] = pack_bf16(acc[2 * i], acc[2 * i + 1]);
}
