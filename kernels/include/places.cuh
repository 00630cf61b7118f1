// Places by expert: which rows a block works on, and the copies and products that narrow tiles of them take.
//
// `order` and `bounds` are those of ops::expert_order: places sorted by expert, and where each expert begins.
#pragma once
#include "base.cuh"

/// Inclusive sum over the lanes of a warp up to this one.
DEVICE int warp_prefix(int x) {
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        const int y = __shfl_up_sync(~0u, x, o);
        if ((threadIdx.x & 31) >= o) x += y;
    }
    return x;
}

/// Places order[first .. first + rows) of one expert; `tiles` is how many tiles that has, `turn` which of them this is.
/// Expert number `experts` stands for no expert.
struct Tile {
    int expert, first, rows, tiles, turn;
};

/// Tile `index`, of `size` places, of the experts in their order and then of no expert. With `empties` an expert without
/// places has one tile of no rows. False past the last. All lanes of a warp call it and get the same.
DEVICE bool tile_at(Tile& tile, const long long* bounds, int size, int experts, int places, int index, bool empties) {
    const int lane = threadIdx.x & 31;
    int passed = 0;
    for (int base = 0; base <= experts; base += 32) {
        const int e = base + lane;
        long long from = places, to = places;
        if (e <= experts) from = bounds[e];
        if (e < experts) to = bounds[e + 1];
        // Bounds that are not those of these places would lead anywhere.
        if (from < 0 || to < from || to > places) __trap();
        int n = (int(to - from) + size - 1) / size;
        if (empties && e < experts) n = max(n, 1);
        const int sum = warp_prefix(n);
        const u32 beyond = __ballot_sync(~0u, passed + sum > index);
        if (beyond) {
            const int who = __ffs(int(beyond)) - 1;
            tile.expert = base + who;
            tile.tiles = __shfl_sync(~0u, n, who);
            tile.turn = index - passed - __shfl_sync(~0u, sum - n, who);
            tile.first = __shfl_sync(~0u, int(from), who) + tile.turn * size;
            tile.rows = min(size, __shfl_sync(~0u, int(to), who) - tile.first);
            return true;
        }
        passed += __shfl_sync(~0u, sum, 31);
    }
    return false;
}

/// The place at a position of the order.
DEVICE u32 place_at(const long long* order, int at, int places) {
    const long long place = order[at];
    if (u64(place) >= u64(places)) __trap();
    return u32(place);
}
/// place / run for places times run below 2^32; `inverse` is 2^32 / run rounded up.
DEVICE u32 row_of(u32 place, int run, u32 inverse) { return run == 1 ? place : __umulhi(place, inverse); }
