// Tiles of the routed products (expert_products.cu): which there are, and in which order.
#pragma once
#include "experts.cuh"

/// Tiles of rows that run beside all columns before the next ones.
constexpr int GROUP = 8;
constexpr int TABLE_BYTES = (MAX_EXPERTS + 4) * 4;

enum Form { PLAIN, TURNED, SWIGLU };

/// What a block computes: `rows` (0 to 128) rows from `first` of the order, columns from `column`, for one expert.
struct Tile {
    int expert, column, first, rows;
};

/// prefix[e] = tiles of the experts before e, of C times 128 rows. One warp.
template <int C> DEVICE void count_tiles(int* prefix, const i64* bounds, int experts) {
    const int lane = threadIdx.x & 31;
    int before = 0;
    for (int e0 = 0; e0 < experts; e0 += 32) {
        const int e = e0 + lane;
        int n = e < experts ? (int(bounds[e + 1]) - int(bounds[e]) + C * ROWS - 1) / (C * ROWS) : 0;
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

/// The tiles of this cluster of C blocks, in order.
template <int C> struct List {
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
        const int group = i / (GROUP * columns);
        i -= group * GROUP * columns;
        const int height = min(GROUP, pairs - group * GROUP), column = i / height;
        const int pair = group * GROUP + i - column * height;
        const int begin = int(bounds[expert]), left = int(bounds[expert + 1]) - begin - pair * C * ROWS;
        // A part of a pair is shared evenly, in blocks of 64 rows.
        const int mine = C == 1 ? ROWS : (min(4, (left + 63) / 64) + 1) / 2 * 64;
        tile.expert = expert, tile.column = column * wide;
        tile.first = begin + pair * C * ROWS + (rank ? mine : 0);
        tile.rows = rank ? max(0, min(ROWS, left - mine)) : min(left, mine);
        at += step;
        return true;
    }
};

DEVICE float silu(float x) { return x * rcp_fast(1.f + exp_fast(-x)); }

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
