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
/// Each of the eight computing warps stages 16 rows of 128 columns.
constexpr int STAGING_WARP = 16 * 256, STAGING_BYTES = 8 * STAGING_WARP;
constexpr int MAX_EXPERTS = 512;

/// 16 rows x 128 columns of a warp to rows of `to` [.., n], in full lines: `pair(i)` is the packed pair i of the 32 that
/// a lane holds, lane r < 16 gives row r's index (-1: none), `column` is the first column.
template <class F> DEVICE void store_rows(u8* staging, bf16* to, int row, int n, int column, F pair) {
    const int lane = threadIdx.x & 31, matrix = lane >> 3;
    const u32 at = smem_u32(staging);
    __syncwarp();
    const u32 mine = at + ((matrix & 1) * 8 + (lane & 7)) * 256;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const u32 f[4] = {pair(4 * i), pair(4 * i + 1), pair(4 * i + 2), pair(4 * i + 3)};
        stmatrix(mine + (((2 * i + (matrix >> 1)) ^ (lane & 7)) << 4), f);
    }
    __syncwarp();
    const int chunk = lane & 15;
    const bool inside = column + chunk * 8 < n;
    to += column + chunk * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = 2 * i + (lane >> 4), index = __shfl_sync(~0u, row, r);
        const uint4 v = *(const uint4*)(staging + r * 256 + ((chunk ^ (r & 7)) << 4));
        if (inside && index >= 0) *(uint4*)(to + u64(u32(index)) * n) = v;
    }
}
