// Products of routed experts whose weights are int8 codes: rows in 16 bits, as two planes of 8 (`split_rows`, `split_scaled` in
// quantize.cu), so that both operands are bytes and nothing is turned into bf16. Integers add up exactly, in any order.
//
// A row is unit (256 high + low). Codes are the left operand, and the high and low bytes of 64 rows beside each other the right one: a
// wgmma gives both sums of its 64 columns, which become fp32 at the end: unit scale (256 high + low). A product of bytes takes half the
// time of one of bf16, so both planes take as long as bf16 does, and draw less power.
//
// A tile is 256 columns x 64 rows; a warpgroup has 2 x 64 columns (swiglu: 64 of gate and the same 64 of up). A cluster of two blocks
// has 128 rows: each gathers its own, and loads half of the codes for both. A stage holds 128 of the contraction: rows, 128 lines of
// 128 bytes (high, then low), and codes, 256 lines, as panels (mma.cuh); turned, twice 128 lines of 128 columns each.
//
// Turned, scales go along the contraction: rows come multiplied by those of their expert, two terms as one row of both. A product of
// bytes reads its operands along the contraction only, so the codes go through registers: `ldmatrix` turns pairs of bytes, hence
// two columns come together (g of a fragment is column 2 g, g + 8 is 2 g + 1), and of 16 contracted the order is 0 1 8 9, 2 3 10 11,
// 4 5 12 13, 6 7 14 15, which the rows have too.
#pragma once
#include "experts_tiles.cuh"

constexpr int PLANE_ROWS = 64, PLANE_DEPTH = 128, PLANE_STAGES = 4, PLANE_CLUSTER = 2;
constexpr int PLANES_BYTES = 2 * PLANE_ROWS * PLANE_DEPTH, CODES_BYTES = COLUMNS * PLANE_DEPTH, PLANE_STAGE_BYTES = PLANES_BYTES + CODES_BYTES;
/// An adapter's 16 lines of 64 columns, turned.
constexpr int LOW_PANEL = 16 * 128;
constexpr int PLANE_STAGING = PLANE_ROWS * 128, UNIT_BYTES = PLANE_ROWS * 4;
constexpr int EXPERTS_INT8_SMEM = PLANE_STAGES * PLANE_STAGE_BYTES + 2 * (PLANE_STAGING + UNIT_BYTES) + TABLE_BYTES + 2 * PLANE_STAGES * 8;
static_assert(EXPERTS_INT8_SMEM == 215632, "the launch states it");

/// What the kernels of codes read. Plain, w1 is up where there is one; turned, the second of two terms.
struct Codes {
    const TensorMap &w0, &w1, &low_map0, &low_map1;
    const u8* planes;
    const float* units;
    const bf16 *low0, *low1;
    const float *scale0, *scale1;
};

/// Fragments of 32 of the contraction for 16 columns, from codes that lie turned: `at` is this lane's line and chunk.
DEVICE void turned_codes(u32* to, u32 at) {
    u32 pairs[4];
    ldmatrix_trans(pairs, at);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        to[2 * h] = __byte_perm(pairs[2 * h], pairs[2 * h + 1], 0x6420);
        to[2 * h + 1] = __byte_perm(pairs[2 * h], pairs[2 * h + 1], 0x7531);
    }
}
/// Fragments of an adapter [16, 64 columns] for 16 columns of warp w, paired as the codes are; `at` is its panel.
DEVICE void turned_low(u32* to, u32 at, int w) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    u32 pairs[4];
#pragma unroll
    for (int q = 0; q < 4; q++) pairs[q] = load_shared(at + panel_at(2 * t + (q & 1) + 8 * (q >> 1), 16 * w + 2 * g));
#pragma unroll
    for (int q = 0; q < 4; q++) to[q] = __byte_perm(pairs[q & 2], pairs[(q & 2) + 1], q & 1 ? 0x7632 : 0x5410);
}

template <Form FORM>
DEVICE void products_planes(const Codes& in, const i64* order, const i64* bounds, bf16* y0, bf16* y1, bf16* y2, int run, int terms, int P,
                            int experts, int k, int n)
{
    u8* staging = smem + PLANE_STAGES * PLANE_STAGE_BYTES;
    float* unit_table = (float*)(staging + 2 * PLANE_STAGING);
    int* prefix = (int*)(unit_table + 2 * PLANE_ROWS);
    u64 *full = (u64*)(prefix + TABLE_BYTES / 4), *empty = full + PLANE_STAGES;

    const int tid = threadIdx.x & 127, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    const u32 rank = cluster_rank();
    const int wide_columns = FORM == SWIGLU ? COLUMNS / 2 : COLUMNS, columns = (n + wide_columns - 1) / wide_columns;
    const int steps = (terms * k + PLANE_DEPTH - 1) / PLANE_DEPTH, lows = in.low0 ? 1 : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < PLANE_STAGES; i++) {
            barrier_init(&full[i], 128 + 1);   // copies of the rows, and the copy engine
            barrier_init(&empty[i], 16);       // codes come from both blocks, so both must be done with them
        }
        barrier_init_done();
    }
    if (warp == 1) count_tiles<PLANE_CLUSTER, PLANE_ROWS>(prefix, bounds, experts);
    cluster_sync();
    List<PLANE_CLUSTER, PLANE_ROWS> list(prefix, bounds, experts, columns, wide_columns);
    Ring<PLANE_STAGES> ring;

    if (group == 0) {
        registers_drop<56>();
        const int chunk = tid & 7, row = tid >> 3;  // of rows row, row + 16, ..
        const u32 to = smem_u32(smem) + panel_chunk(row, chunk);
        const u32 plane = u32(steps) * PLANE_DEPTH, chunks = plane / 8;  // bytes of a plane; 16-byte chunks of both
        const Divisor of_run(run);
        u32 ahead[4];
        auto fetch = [&](const Tile& tile) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (row + 16 * i < tile.rows) ahead[i] = load_early_word(order + tile.first + row + 16 * i);
        };
        // This block's half of the codes of a step, for both.
        auto load_codes = [&](const Tile& tile, int s) {
            u64* bar = &full[ring.at];
            u8* at = smem + ring.at * PLANE_STAGE_BYTES + PLANES_BYTES + rank * (CODES_BYTES / 2);
            barrier_expect(bar, CODES_BYTES);
            if (FORM == TURNED) {
#pragma unroll
                for (int h = 0; h < 2; h++) {  // of two terms the first may end in the middle; beyond the last there are zeros
                    const int depth = s * PLANE_DEPTH + 64 * h;
                    const bool second = terms == 2 && depth >= k;
                    tensor_load_both(at + h * (CODES_BYTES / 4), second ? in.w1 : in.w0, tile.column + 128 * rank, second ? depth - k : depth, tile.expert, bar);
                }
            } else {
                const int column = tile.column + (FORM == SWIGLU ? 0 : 128 * rank);
                tensor_load_both(at, FORM == SWIGLU && rank ? in.w1 : in.w0, s * PLANE_DEPTH, column, tile.expert, bar);
            }
        };
        // Its half of the adapters.
        auto load_low = [&](const Tile& tile) {
            u64* bar = &full[ring.at];
            u8* at = smem + ring.at * PLANE_STAGE_BYTES + PLANES_BYTES;
            if (FORM == TURNED) {
                barrier_expect(bar, terms * 4 * LOW_PANEL);
                for (int l = 0; l < terms; l++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        tensor_load_both(at + (4 * l + 2 * rank + h) * LOW_PANEL, l ? in.low_map1 : in.low_map0, tile.column + 128 * rank + 64 * h, 0, tile.expert, bar);
            } else {
                barrier_expect(bar, CODES_BYTES);
                const int column = tile.column + (FORM == SWIGLU ? 0 : 128 * rank);
                tensor_load_both(at + rank * (CODES_BYTES / 2), FORM == SWIGLU && rank ? in.low_map1 : in.low_map0, 0, column, tile.expert, bar);
            }
        };
        Tile tile, following;
        bool more = list.next(following);
        if (more) fetch(following);
        while (more) {
            tile = following;
            u32 place[4], from[4];
#pragma unroll
            for (int i = 0; i < 4; i++) place[i] = ahead[i], from[i] = of_run(place[i]) * chunks + chunk;  // in units of 16 bytes
            more = list.next(following);
            if (more) fetch(following);
            const u8* x = in.planes;
            for (int s = 0; s < steps; s++, x += PLANE_DEPTH) {
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) load_codes(tile, s);
                const u32 a = to + ring.at * PLANE_STAGE_BYTES;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (row + 16 * i < tile.rows) {
                        copy_async(a + i * 2048, x + u64(from[i]) * 16);
                        copy_async(a + i * 2048 + PLANES_BYTES / 2, x + plane + u64(from[i]) * 16);
                    }
                copy_async_arrive(&full[ring.at]);
                ring.next();
            }
            if (lows) {  // 32 bytes of a row; of two adapters those of both, of one zeros besides
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) load_low(tile);
                const bool none = chunk >= 2 && !in.low1;
                const bf16* low = chunk >= 2 && !none ? in.low1 : in.low0;
                const u32 a = to + ring.at * PLANE_STAGE_BYTES;
                if (chunk < 4)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, low + u64(place[i]) * 16 + (chunk & 1) * 8, none ? 0u : 16u);
                copy_async_arrive(&full[ring.at]);
                ring.next();
            }
        }
    } else {
        registers_raise<224>();
        const int part = group - 1, g = lane >> 2, t = lane & 3, w = warp & 3;
        const Divisor of_run(run);
        const u32 codes = smem_u32(smem) + PLANES_BYTES;
        // Lines of this warpgroup's columns: swiglu, 64 of each half; else all 128 of one half. The next 64 are at NEXT.
        const u32 lines = codes + part * (FORM == SWIGLU ? 64 : 128) * 128;
        constexpr u32 NEXT = FORM == SWIGLU ? CODES_BYTES / 2 : 64 * 128;
        const u64 row_desc = panel_descriptor(smem_u32(smem)), line_desc[2] = {panel_descriptor(lines), panel_descriptor(lines + NEXT)};
        u8* my_staging = staging + part * PLANE_STAGING;
        float* my_units = unit_table + part * PLANE_ROWS;
        int acc[2][64];  // [.., 0..31] of the high bytes, then of the low ones
        auto release = [&](u32 stage) {
            if (lane < 2) barrier_arrive_at(&empty[stage], lane);
        };
        // Turned: this lane's line of the first 32 and chunk of the first 64 columns; fragments of two quarters of a stage, each 32 of the
        // contraction, for both times 64 columns.
        const u32 turned_at = lines + panel_chunk(lane, w);
        auto turn = [&](u32 (&to)[2][8], u32 stage, int quarter) {
#pragma unroll
            for (int q = 0; q < 2; q++)
#pragma unroll
                for (int m = 0; m < 2; m++) turned_codes(to[q] + 4 * m, (turned_at ^ m * 64) + stage + (quarter + q) * 4096);
        };
        auto multiply = [&](const u32 (&a)[2][8], u32 stage, int quarter, int accumulate) {
            wgmma_fence();
#pragma unroll
            for (int q = 0; q < 2; q++)
#pragma unroll
                for (int m = 0; m < 2; m++) wgmma_bytes(acc[m], a[q] + 4 * m, advance(row_desc, stage + (quarter + q) * 32), accumulate | q);
            wgmma_commit();
        };
        Tile tile, following;
        bool more = list.next(following);
        while (more) {
            tile = following;
            if (tile.rows == 0) {
                more = list.next(following);
                for (int s = 0; s < steps + lows; s++, ring.next()) {
                    barrier_wait(&full[ring.at], ring.parity);
                    release(ring.at);
                }
                continue;
            }
            int place = -1;
            float unit = 0.f, scale[2][2] = {{1.f, 1.f}, {1.f, 1.f}};
            if (lane < 16 && 16 * w + lane < tile.rows) {
                place = int(load_early_word(order + tile.first + 16 * w + lane));
                unit = in.units[of_run(u32(place))];
            }
            if (FORM != TURNED)
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        const int column = tile.column + (FORM == SWIGLU ? 64 * part : 128 * part + 64 * m) + 16 * w + g + 8 * b;
                        scale[m][b] = column < n ? (FORM == SWIGLU && m ? in.scale1 : in.scale0)[u64(tile.expert) * n + column] : 0.f;
                    }
            u32 before = 0;
            for (int s = 0; s < steps; s++, ring.next()) {
                barrier_wait(&full[ring.at], ring.parity);
                fence_async();  // the rows were written by ordinary copies
                const u32 stage = ring.at * PLANE_STAGE_BYTES;
                if (FORM == TURNED) {
                    // Two quarters at a time, in two sets of registers: one is read while the other multiplies.
                    u32 even[2][8], odd[2][8];
                    turn(even, stage, 0);
                    multiply(even, stage, 0, s > 0);
                    wgmma_wait<1>();
                    if (s > 0) release(before);
                    turn(odd, stage, 2);
                    multiply(odd, stage, 2, 1);
                    wgmma_wait<1>();
                } else {
                    wgmma_fence();
#pragma unroll
                    for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int m = 0; m < 2; m++)
                            wgmma_bytes(acc[m], advance(line_desc[m], stage + j * 32), advance(row_desc, stage + j * 32), s + j > 0);
                    wgmma_commit();
                    if (s > 0) {
                        wgmma_wait<1>();
                        release(before);
                    }
                }
                if (s == 0) more = list.next(following);  // while the tensor cores work
                before = ring.at;
            }
            wgmma_wait<0>();
            release(before);
            if (lane < 16) my_units[16 * w + lane] = unit;
            named_barrier(1 + part, 128);
            if (lows) {
                barrier_wait(&full[ring.at], ring.parity);
                fence_async();
            }
            const u32 stage = ring.at * PLANE_STAGE_BYTES;
            // What 64 columns come to, and their part of the adapters.
            auto finish = [&](float (&sum)[32], int m) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float2 row_unit = *(const float2*)(my_units + 8 * j + 2 * t);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int i = 4 * j + e;
                        const float both = __fmaf_rn(256.f, float(acc[m][i]), float(acc[m][32 + i]));
                        sum[i] = both * ((e & 1 ? row_unit.y : row_unit.x) * scale[m][e >> 1]);
                    }
                }
                if (!lows) return;
                if (FORM == TURNED) {
                    // Of one term the second adapter is zeros, as its rows are: a product in a branch would wait for the one before.
                    u32 a[2][4];
#pragma unroll
                    for (int l = 0; l < 2; l++) turned_low(a[l], codes + stage + (4 * l + 2 * part + m) * LOW_PANEL, w);
#pragma unroll
                    for (int q = 0; q < 4; q++) a[1][q] = terms == 2 ? a[1][q] : 0;
                    wgmma_fence();
                    wgmma_rs(sum, a[0], advance(row_desc, stage), 1);
                    wgmma_rs(sum, a[1], advance(row_desc, stage + 32), 1);
                } else {
                    wgmma_fence();
                    wgmma_ss(sum, advance(line_desc[m], stage), advance(row_desc, stage + (FORM == SWIGLU ? m * 32 : 0)), 1);
                }
                wgmma_commit();
                wgmma_wait<0>();
            };
            auto release_lows = [&] {
                __syncwarp();
                if (!lows) return;
                release(ring.at);
                ring.next();
            };
            if (FORM == SWIGLU) {
                float gate[32], up[32];
                finish(gate, 0), finish(up, 1);
                release_lows();
                const int column = tile.column + 64 * part;
                if (y1) {
                    store_columns<false, PLANE_ROWS>(my_staging, part, y1, place, n, column, [&](int i) { return gate[i]; });
                    store_columns<false, PLANE_ROWS>(my_staging, part, y2, place, n, column, [&](int i) { return up[i]; });
                }
                store_columns<false, PLANE_ROWS>(my_staging, part, y0, place, n, column, [&](int i) { return silu(gate[i]) * up[i]; });
            } else {
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    float sum[32];
                    finish(sum, m);
                    if (m == 1) release_lows();
                    store_columns<FORM == TURNED, PLANE_ROWS>(my_staging, part, y0, place, n, tile.column + 128 * part + 64 * m, [&](int i) { return sum[i]; });
                }
            }
        }
        zero_unrouted(y0, FORM == SWIGLU ? y1 : nullptr, y2, order, bounds[experts], P, n, part * 4 + w);
    }
    __syncwarp();
    cluster_sync();  // the other block may still arrive here
}
