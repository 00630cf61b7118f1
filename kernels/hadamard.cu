// Random signs and the Walsh-Hadamard transform along rows.
//
// Shapes   x, y [total / n, n] bf16, n a power of two from 64 to 8192; signs [n / 8] u8, bit i of byte j set where sign
//          8 j + i is minus.
// Meaning  numerics/src/hadamard.rs: y = H diag(signs) x / sqrt(n), or its transpose where `inverse`
// Numerics fp32, stages of stride 1, 2, 4, .. as there, so that only the last rounding differs from fp32 there: none does.
// Outputs  `=`
// Limit    memory: one read and one write. Strides to 4 are a thread's own, to 128 shuffles, to 512 its own again; above,
//          one exchange through shared memory.
#include "base.cuh"

constexpr int BLOCK = 8192, PART = 1024;  // elements of a block, of a warp
constexpr int ROWS_SMEM = BLOCK * 4;
static_assert(ROWS_SMEM == 32768, "the launch states it");

/// (a, b) becomes (a + b, a - b) for all pairs whose numbers differ in bit BIT of N values.
template <int N, int BIT> DEVICE void stage(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        if (!(i & BIT)) {
            const float a = v[i], b = v[i | BIT];
            v[i] = a + b, v[i | BIT] = a - b;
        }
}

DEVICE u32 minus(u32 bit) { return bit << 31; }

/// Strides 1 to 512 where they are below n: a lane holds four times eight neighbours, 256 apart.
DEVICE void turn_part(float (&v)[32], int n) {
    const int lane = threadIdx.x & 31;
    stage<32, 1>(v), stage<32, 2>(v), stage<32, 4>(v);
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        if (8 * step >= n) return;
        const u32 upper = lane & step ? 0x80000000u : 0u;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const float other = __shfl_xor_sync(~0u, v[i], step);
            v[i] = other + __uint_as_float(__float_as_uint(v[i]) ^ upper);
        }
    }
    if (n > 256) stage<32, 8>(v);
    if (n > 512) stage<32, 16>(v);
}

/// The part of a warp: element (i, j) of a lane is part + 256 i + 8 lane + j.
DEVICE void load_part(float (&v)[32], const bf16* x, u64 part, u64 total, const u8* signs, int n, bool signed_) {
    const int lane = threadIdx.x & 31;
    uint4 raw[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u64 at = part + i * 256 + lane * 8;
        raw[i] = at < total ? load_early(x + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 word[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
        u32 bits = 0;
        if (signed_) bits = signs[(part + i * 256 + lane * 8 & n - 1) >> 3];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float value = j & 1 ? bf16_hi(word[j >> 1]) : bf16_lo(word[j >> 1]);
            v[8 * i + j] = __uint_as_float(__float_as_uint(value) ^ minus(bits >> j & 1));
        }
    }
}

// n to 1024. Grid: total / 8192; 256 threads.
extern "C" __global__ void __launch_bounds__(256) hadamard_short(
    const bf16* x, bf16* y, const u8* signs, long long total, int n, float scale, int inverse)
{
    const int lane = threadIdx.x & 31;
    const u64 part = u64(blockIdx.x) * BLOCK + (threadIdx.x >> 5) * PART;
    if (part >= total) return;
    float v[32];
    load_part(v, x, part, total, signs, n, !inverse);
    turn_part(v, n);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u64 at = part + i * 256 + lane * 8;
        if (at >= total) continue;
        u32 bits = 0, word[4];
        if (inverse) bits = signs[(at & n - 1) >> 3];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 flip = minus(bits >> 2 * j & 1) >> 16 | minus(bits >> (2 * j + 1) & 1);
            word[j] = pack_bf16(v[8 * i + 2 * j] * scale, v[8 * i + 2 * j + 1] * scale) ^ flip;
        }
        *(uint4*)(y + at) = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/// Strides 1024 and above: WARPS warps have a row of WARPS parts.
template <int WARPS> DEVICE void long_rows(
    const bf16* x, bf16* y, const u8* signs, long long total, float scale, int inverse)
{
    constexpr int N = WARPS * PART, GROUPS = 8 / WARPS;  // groups of four columns of a lane in each part
    float* held = (float*)smem;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u64 block = u64(blockIdx.x) * BLOCK;
    float v[32];
    load_part(v, x, block + warp * PART, total, signs, N, !inverse);
    turn_part(v, N);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Lanes of the upper half of an octet begin with their second four: all banks are in use.
            const int which = half ^ (lane >> 2 & 1);
            const float4 lo = make_float4(v[8 * i], v[8 * i + 1], v[8 * i + 2], v[8 * i + 3]);
            const float4 hi = make_float4(v[8 * i + 4], v[8 * i + 5], v[8 * i + 6], v[8 * i + 7]);
            *(float4*)(held + warp * PART + i * 256 + lane * 8 + which * 4) = which ? hi : lo;
        }
    __syncthreads();
    const int row = warp / WARPS * N, first = warp % WARPS * (PART / WARPS) + lane * 4;
#pragma unroll
    for (int part = 0; part < WARPS; part++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const float4 four = *(const float4*)(held + row + part * PART + first + g * 128);
            float* to = v + (part * GROUPS + g) * 4;
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        }
    stage<32, GROUPS * 4>(v);
    if constexpr (WARPS > 2) stage<32, GROUPS * 8>(v);
    if constexpr (WARPS > 4) stage<32, GROUPS * 16>(v);
    if (block + row >= total) return;
#pragma unroll
    for (int part = 0; part < WARPS; part++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int column = part * PART + first + g * 128;
            const float* from = v + (part * GROUPS + g) * 4;
            const u32 bits = inverse ? signs[column >> 3] >> (column & 4) : 0;
            const u32 low = minus(bits & 1) >> 16 | minus(bits >> 1 & 1), high = minus(bits >> 2 & 1) >> 16 | minus(bits >> 3 & 1);
            *(uint2*)(y + block + row + column) =
                make_uint2(pack_bf16(from[0] * scale, from[1] * scale) ^ low, pack_bf16(from[2] * scale, from[3] * scale) ^ high);
        }
}

// n of 2048, 4096, 8192. Grid: total / 8192; 256 threads, ROWS_SMEM.
extern "C" __global__ void __launch_bounds__(256) hadamard_2048(const bf16* x, bf16* y, const u8* signs, long long total, float scale, int inverse)
{
    long_rows<2>(x, y, signs, total, scale, inverse);
}
extern "C" __global__ void __launch_bounds__(256) hadamard_4096(const bf16* x, bf16* y, const u8* signs, long long total, float scale, int inverse)
{
    long_rows<4>(x, y, signs, total, scale, inverse);
}
extern "C" __global__ void __launch_bounds__(256) hadamard_8192(const bf16* x, bf16* y, const u8* signs, long long total, float scale, int inverse)
{
    long_rows<8>(x, y, signs, total, scale, inverse);
}
