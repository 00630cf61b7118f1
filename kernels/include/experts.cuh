// What the wide products of routed experts share: tiles of 128 rows x 256 columns, their list, and the way out of registers.
//
// A stage holds 64 of the contraction: A, 128 rows (16 KB), and B, 256 columns (32 KB), both as panels (mma.cuh).
// One warpgroup loads; two compute 64 rows each.
#pragma once
#include "copy.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

typedef long long i64;

constexpr int ROWS = 128, COLUMNS = 256, DEPTH = 64;
constexpr int A_BYTES = ROWS * 128, B_BYTES = COLUMNS * 128, STAGE_BYTES = A_BYTES + B_BYTES;
/// A panel of B where the contraction runs down its rows.
constexpr int PANEL = DEPTH * 128;
constexpr int MAX_EXPERTS = 512;

/// Division of row indices by a count that a kernel gets, without the long sequence of a division.
struct Divisor {
    u32 by, inverse;
    DEVICE Divisor(int by) : by(u32(by)), inverse(~0u / u32(by)) {}
    DEVICE u32 operator()(u32 x) const {
        const u32 q = __umulhi(x, inverse);  // exact or one less
        return x - q * by >= by ? q + 1 : q;
    }
};

/// 16 rows x C columns (64 or 128) of a warp to rows of `to` [.., n], in full lines: `pair(i)` is the packed pair i of the C / 4
/// that a lane holds, lane r < 16 gives row r's index (-1: none), `column` is the first column. `staging`: 32 C bytes of the warp.
template <int C, class F> DEVICE void store_rows(u8* staging, bf16* to, int row, int n, int column, F pair) {
    constexpr int CHUNKS = C / 8, PITCH = C * 2, AT_ONCE = 32 / CHUNKS;
    const int lane = threadIdx.x & 31, matrix = lane >> 3;
    __syncwarp();
    const u32 mine = smem_u32(staging) + ((matrix & 1) * 8 + (lane & 7)) * PITCH;
#pragma unroll
    for (int i = 0; i < CHUNKS / 2; i++) {
        const u32 f[4] = {pair(4 * i), pair(4 * i + 1), pair(4 * i + 2), pair(4 * i + 3)};
        stmatrix(mine + (((2 * i + (matrix >> 1)) ^ (lane & 7)) << 4), f);
    }
    __syncwarp();
    const int chunk = lane & (CHUNKS - 1);
    const bool inside = column + chunk * 8 < n;
    to += column + chunk * 8;
#pragma unroll
    for (int i = 0; i < 16 / AT_ONCE; i++) {
        const int r = AT_ONCE * i + lane / CHUNKS, index = __shfl_sync(~0u, row, r);
        const uint4 v = *(const uint4*)(staging + r * PITCH + ((chunk ^ (r & 7)) << 4));
        store_if(inside && index >= 0, to + u64(u32(index)) * n, v);
    }
}
