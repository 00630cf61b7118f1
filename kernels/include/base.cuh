// Types and conversions shared by all tile kernels. Needs no host header, so NVRTC compiles it as is.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
/// Bits of a bf16. Arithmetic is done in fp32; only packed pairs are converted.
typedef u16 bf16;

#define DEVICE __device__ __forceinline__

/// Two fp32 rounded to nearest even and packed, `lo` in the low half.
DEVICE u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
DEVICE float bf16_lo(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_hi(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float bf16_float(bf16 x) { return __uint_as_float(u32(x) << 16); }
DEVICE bf16 float_bf16(float x) { return bf16(pack_bf16(x, 0.f)); }

/// All dynamic shared memory of a block.
extern __shared__ __align__(1024) u8 smem[];
DEVICE u32 smem_u32(const void* p) { return u32(__cvta_generic_to_shared(p)); }

/// 16 bytes from global memory, issued where it stands: the compiler does not sink it below a wait.
DEVICE uint4 load_early(const void* from) {
    uint4 r;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(from));
    return r;
}
DEVICE u32 load_early_word(const void* from) {
    u32 r;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(from));
    return r;
}

// Fast math: at most 2 ulp, overflow to inf, underflow to 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rcp_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
DEVICE float exp_fast(float x) { return exp2_fast(x * LOG2E); }
/// 1 - 2 / (exp(2x) + 1): exact at both ends, no branch.
DEVICE float tanh_fast(float x) { return 1.f - 2.f * rcp_fast(exp2_fast(2.f * LOG2E * x) + 1.f); }

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

/// Barrier among `threads` threads of a block; `id` from 1 (0 is __syncthreads).
DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Register budget of a warpgroup, where one branch loads and others compute.
template <int N> DEVICE void registers_raise() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_drop() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
