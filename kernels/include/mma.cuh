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

DEVICE void ldmatrix(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void ldmatrix_trans(u32* r, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void stmatrix(u32 at, const u32* r) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
DEVICE void stmatrix_trans(u32 at, const u32* r) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

/// Packs an accumulator of 4n floats into the A operand of the next product.
template <int N> DEVICE void pack_operand(u32 (&to)[N / 2], const float (&acc)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) to[i] = pack_bf16(acc[2 * i], acc[2 * i + 1]);
}

DEVICE u32 to_tf32(float x) {
    u32 r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}
/// 16x8 += 16x8 * 8x8 in tf32.
DEVICE void mma_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
