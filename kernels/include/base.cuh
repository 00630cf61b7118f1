// Conversions and sums shared by all tile kernels.
#pragma once
#include "ptx.cuh"

DEVICE float bf16_lo(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_hi(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float bf16_float(bf16 x) { return __uint_as_float(u32(x) << 16); }
DEVICE bf16 float_bf16(float x) { return bf16(pack_bf16(x, 0.f)); }

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
DEVICE float exp_fast(float x) { return exp2_fast(x * LOG2E); }
/// 1 - 2 / (exp(2x) + 1): exact at both ends, no branch.
DEVICE float tanh_fast(float x) { return 1.f - 2.f * rcp_fast(exp2_fast(2.f * LOG2E * x) + 1.f); }

/// x / y, rounded once, for a y that many x share: its reciprocal is had once. A quotient that is off by less than a unit, corrected by its
/// exact remainder times a reciprocal that is rounded once, is the rounded quotient (Markstein 1990). Where a remainder would
/// not be exact, or is not a number, it takes the division, which is a third of AdamW's instructions otherwise.
DEVICE float divide_by(float x, float y) {
    const float inverse = __frcp_rn(y), size = fabsf(x);
    const bool usual = y >= 0x1p-20f && y <= 0x1p20f && (size == 0.f || (size >= 0x1p-96f && size <= 0x1p100f));
    if (!usual) return __fdiv_rn(x, y);
    float q = __fmul_rn(x, inverse);
    q = __fmaf_rn(__fmaf_rn(-y, q, x), inverse, q);
    q = __fmaf_rn(__fmaf_rn(-y, q, x), inverse, q);
    return size == 0.f ? x : q;  // a zero keeps its sign
}

#define INF __int_as_float(0x7f800000)

// Reductions over a warp: a butterfly, so every lane holds the same bits.
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
/// Over the four lanes that share an accumulator row.
DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
/// Over the eight lanes that share an accumulator column.
DEVICE float column_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 4);
    x += __shfl_xor_sync(~0u, x, 8);
    return x + __shfl_xor_sync(~0u, x, 16);
}
