// Tiles of the routed products (expert_products.cu): which there are, and in which order.
#pragma once
#include "experts.cuh"

/// Tiles of 128 rows a block that run beside all columns before the next ones.
constexpr int GROUP = 8;
constexpr int TABLE_BYTES = (MAX_EXPERTS + 4) * 4;

enum Form { PLAIN, TURNED, SWIGLU };

/// What a block computes: `rows` (0 to 128) rows from `first` of the order, columns from `column`, for one expert.
struct Tile {
    int expert, column, first, rows;
};

/// prefix[e] = tiles of the experts before e, of C times R rows. One warp.
template <int C, int R = ROWS> DEVICE void count_tiles(int* prefix, const i64* bounds, int experts) {
    const int lane = threadIdx.x & 31;
    int before = 0;
    for (int e0 = 0; e0 < experts; e0 += 32) {
        const int e = e0 + lane;
        int n = e < experts ? (int(bounds[e + 1]) - int(bounds[e]) + C * R - 1) / (C * R) : 0;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const int below = __shfl_up_sync(~0u, n, o);
            if (lane >= o) n += below;
        }
        if (e < experts) prefix[e + 1] = before + n;
        before += __shfl_sync(~0u, n, 31);
    }
    if (lane == 0) prefix[0] = 0;
}

/// The tiles of this cluster of C blocks, in order, of R rows for each block.
template <int C, int R = ROWS> struct List {
    static constexpr int HEIGHT = GROUP * ROWS / R;
    const int* prefix;
    const i64* bounds;
    int wide, columns, rank, at, step, total, expert = 0;
    DEVICE List(const int* prefix, const i64* bounds, int experts, int columns, int wide)
        : prefix(prefix), bounds(bounds), wide(wide), columns(columns), rank(C == 1 ? 0 : cluster_rank()), at(blockIdx.x / C), step(gridDim.x / C) {
        total = prefix[experts] * columns;
    }
    DEVICE bool next(Tile& tile) {
        if (at >= total) return false;
        while (at >= prefix[expert + 1] * columns) expert++;
        const int pairs = prefix[expert + 1] - prefix[expert];
        int i = at - prefix[expert] * columns;
        const int group = i / (HEIGHT * columns);
        i -= group * HEIGHT * columns;
        const int height = min(HEIGHT, pairs - group * HEIGHT), column = i / height;
        const int pair = group * HEIGHT + i - column * height;
        const int begin = int(bounds[expert]), left = int(bounds[expert + 1]) - begin - pair * C * R;
        // A part of a pair is shared evenly, in blocks of 64 rows.
        const int mine = C == 1 ? R : (min(C * R / 64, (left + 63) / 64) + 1) / 2 * 64;
        tile.expert = expert, tile.column = column * wide;
        tile.first = begin + pair * C * R + (rank ? mine : 0);
        tile.rows = rank ? max(0, min(R, left - mine)) : min(left, mine);
        at += step;
        return true;
    }
};

DEVICE float silu(float x) { return x * rcp_fast(1.f + exp_fast(-x)); }

/// 64 columns x R rows (64 or 128) of a warpgroup, which has columns in the accumulators' rows, to rows of `to` [.., n]. `value(i)` is element
/// i of the R / 2 of a lane; lane l < R / 4 of warp w gives the index of row R / 4 w + l (-1: none). With `TURNED_ORDER` a lane's two columns are
/// neighbours.
template <bool TURNED_ORDER, int R, class F> DEVICE void store_columns(u8* staging, int part, bf16* to, int row, int n, int column, F value) {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    const u32 at = smem_u32(staging);
    if (TURNED_ORDER) {
        const u32 mine = at + 2 * (lane & 3) * 128 + (lane >> 2 & 3) * 4;
        const int chunk = 2 * warp + (lane >> 4);
#pragma unroll
        for (int j = 0; j < R / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                store_shared(mine + (8 * j + e) * 128 + ((chunk ^ (2 * (lane & 3) + e)) << 4), pack_bf16(value(4 * j + e), value(4 * j + 2 + e)));
    } else {
        const int matrix = lane >> 3, r = lane & 7;
        const u32 mine = at + ((matrix >> 1) * 8 + r) * 128 + (((2 * warp + (matrix & 1)) ^ r) << 4);
#pragma unroll
        for (int j = 0; j < R / 16; j++) {
            u32 f[4];
#pragma unroll
            for (int q = 0; q < 4; q++) f[q] = pack_bf16(value(8 * j + 2 * q), value(8 * j + 2 * q + 1));
            stmatrix_trans(mine + j * 2048, f);
        }
    }
    named_barrier(1 + part, 128);
    const int chunk = lane & 7;
    const bool inside = column + chunk * 8 < n;
    to += column + chunk * 8;
#pragma unroll
    for (int i = 0; i < R / 16; i++) {
        const int r = 4 * i + (lane >> 3), index = __shfl_sync(~0u, row, r);
        const uint4 v = *(const uint4*)(staging + (R / 4 * warp + r) * 128 + ((chunk ^ (r & 7)) << 4));
        store_if(inside && index >= 0, to + u64(u32(index)) * n, v);
    }
    named_barrier(1 + part, 128);
}

/// Zeros for places without an expert: rows of y, and of y1 and y2 unless null. `warp` of the eight of a block that do this.
DEVICE void zero_unrouted(bf16* y, bf16* y1, bf16* y2, const i64* order, i64 routed, int P, int n, int warp) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (i64 i = routed + blockIdx.x * 8 + warp; i < P; i += gridDim.x * 8) {
        const u64 at = u64(order[i]) * n;
        for (int c = (threadIdx.x & 31) * 8; c < n; c += 256) {
            *(uint4*)(y + at + c) = zero;
            if (y1) *(uint4*)(y1 + at + c) = zero, *(uint4*)(y2 + at + c) = zero;
        }
    }
}
