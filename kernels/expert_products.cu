// Wide products of routed experts, forward and input gradient: rows gathered on load, results written at their place.
//
// Shapes   P places; order [P] i64, bounds [experts + 1] i64 (`expert_order`: places of expert e are
//          order[bounds[e] .. bounds[e + 1]], places without an expert come after bounds[experts]).
//          x [ceil(P / run), k] bf16: place p takes row p / run. Wide weights bf16, or int8 codes with fp32 scales of
//          their rows: plain [experts,n,k], scale [experts,n]; turned [experts,k,n], scale [experts,k].
//          Low terms, optional: low [P,16] bf16 with left [experts,n,16] (plain) or right [experts,16,n] (turned), bf16.
//          Outputs [P,n] bf16.
// Sizes    k and n multiples of 64; experts 1..512; P 1..2^31 - 1; every pointer 16-byte aligned. Any imbalance.
// Meaning  experts_dot            y[p,n] = sum_k x[p / run,k] w[e,n,k] (scale[e,n]) + sum_r low[p,r] left[e,n,r]
//          experts_dot_turned     y[p,n] = sum over one or two terms of sum_k x[p / run,k] (scale[e,k]) w[e,k,n]
//                                 + sum_r low[p,r] right[e,r,n]
//          experts_swiglu         gated and lifted as experts_dot of two weights; hidden = silu(gated) lifted
//          A place without an expert gets zeros. NaN in a row stays in the results of its places.
// Numerics bf16 operands, fp32 accumulators, each output rounded once; hidden is computed from the fp32 sums. Codes are exact
//          in bf16: plain, the scale multiplies the accumulator; turned, scale * code is rounded to bf16 once.
// Outputs  `=`, every byte. No atomics, no host sync: a fixed order of every sum whatever the grid.
//
// Entry points, arguments in order. A TensorMap is by value; every pointer may be given as the 8 bytes of an i64, and 0 where it says null.
//
//   experts_dot             (map w, map left, x, low, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_int8        (map w, map left, x, low, scale, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned      (map w0, map w1, map right0, map right1, x0, x1, low0, low1,
//                            order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned_int8 (map w0, map w1, map right0, map right1, x0, x1, low0, low1, scale0, scale1,
//                            order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_swiglu          (map gate, map up, map left_gate, map left_up, x, low_gate, low_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//   experts_swiglu_int8     (map gate, map up, map left_gate, map left_up, x, low_gate, low_up, scale_gate, scale_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//
//   x1 null: one term (w1, right1, scale1 are then not read; give w0, right0 again). Both terms have the same k and run.
//   low null: no low term (any map in its place, for instance w). Of two lows both are given or neither; of one term low1 is null.
//   gated and lifted: both given, or both null and then not written.
//
// Maps     rank 3, interleave none, L2 promotion 256 bytes, out of range zeros, element strides 1; dimensions innermost first:
//          w, gate, up bf16 plain      (k, n, experts)   box (64, 128, 1), 128-byte swizzle
//          w bf16 turned               (n, k, experts)   box (64, 64, 1), 128-byte swizzle
//          w, gate, up int8 plain      (k, n, experts)   box (64, 128, 1), no swizzle, CU_TENSOR_MAP_DATA_TYPE_UINT8
//          w int8 turned               (n, k, experts)   box (64, 64, 1), no swizzle, CU_TENSOR_MAP_DATA_TYPE_UINT8
//          left                        (16, n, experts)  box (64, 128, 1), 128-byte swizzle, bf16 (the box is wider than the tensor)
//          right                       (n, 16, experts)  box (64, 64, 1), 128-byte swizzle, bf16 (the box is higher)
//
// Launch   grid (G, 1, 1), G even, the number of multiprocessors or one less (any even G >= 2 is right); the cluster of 2 is in the
//          code. 384 threads; dynamic shared memory EXPERTS_SMEM, for int8 EXPERTS_INT8_SMEM.
//
// A cluster of two blocks computes 256 rows x 256 columns (swiglu: 128 of gate and 128 of up): each block gathers its own 128 rows with
// 16-byte copies and loads half of B by the copy engine for both. Codes are loaded likewise, and the computing warpgroups turn
// those of the next step into bf16 panels while the tensor cores work on this one.
// A block walks its tiles by itself; one expert's tiles come one after another, in groups of 8 x all columns, so that what runs at
// one time shares rows and weights in L2. A block whose 64-row half is empty skips its products, so rows cost in steps of 128.
#include "experts.cuh"

// How the kernels were tuned; see the table in README.md.
#ifndef EXPERTS_FENCE
#define EXPERTS_FENCE 1
#endif
#ifndef EXPERTS_STAGGER
#define EXPERTS_STAGGER 1
#endif
#ifndef EXPERTS_GROUP
#define EXPERTS_GROUP 8
#endif
#ifndef EXPERTS_CLUSTER
#define EXPERTS_CLUSTER 2
#endif

constexpr int CLUSTER = EXPERTS_CLUSTER, PAIR_ROWS = CLUSTER * ROWS;
constexpr int STAGES = 4;
constexpr int CODE_BYTES = COLUMNS * DEPTH, INT8_STAGE_BYTES = A_BYTES + CODE_BYTES;
constexpr int TABLE_BYTES = (MAX_EXPERTS + 4) * 4;
constexpr int EXPERTS_SMEM = STAGES * STAGE_BYTES + 8 * 32 * 128 + TABLE_BYTES + 2 * STAGES * 8;
constexpr int EXPERTS_INT8_SMEM = STAGES * INT8_STAGE_BYTES + 2 * B_BYTES + 8 * 32 * 64 + 2 * COLUMNS * 4 + TABLE_BYTES + (2 * STAGES + 1) * 8;
static_assert(EXPERTS_SMEM == 231504 && EXPERTS_INT8_SMEM == 217176, "the launch states them");

enum Form { PLAIN, TURNED, SWIGLU };

/// What a block computes: `rows` (0 to 128) rows from `first` of the order, columns from `column`, for one expert.
struct Tile {
    int expert, column, first, rows;
};

/// prefix[e] = pairs of tiles of the experts before e. One warp.
DEVICE void count_pairs(int* prefix, const i64* bounds, int experts) {
    const int lane = threadIdx.x & 31;
    int before = 0;
    for (int e0 = 0; e0 < experts; e0 += 32) {
        const int e = e0 + lane;
        int n = e < experts ? (int(bounds[e + 1]) - int(bounds[e]) + PAIR_ROWS - 1) / PAIR_ROWS : 0;
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

/// The tiles of this cluster, in order.
struct List {
    const int* prefix;
    const i64* bounds;
    int wide, columns, rank, at, step, total, expert = 0;
    DEVICE List(const int* prefix, const i64* bounds, int experts, int columns, int wide)
        : prefix(prefix), bounds(bounds), wide(wide), columns(columns), rank(cluster_rank()), at(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {
        total = prefix[experts] * columns;
    }
    DEVICE bool next(Tile& tile) {
        if (at >= total) return false;
        while (at >= prefix[expert + 1] * columns) expert++;
        const int pairs = prefix[expert + 1] - prefix[expert];
        int i = at - prefix[expert] * columns;
        const int group = i / (EXPERTS_GROUP * columns);
        i -= group * EXPERTS_GROUP * columns;
        const int height = min(EXPERTS_GROUP, pairs - group * EXPERTS_GROUP), column = i / height;
        const int pair = group * EXPERTS_GROUP + i - column * height;
        const int begin = int(bounds[expert]), left = int(bounds[expert + 1]) - begin - pair * PAIR_ROWS;
        // A part of a pair is shared evenly, in blocks of 64 rows.
        const int mine = CLUSTER == 1 ? ROWS : (min(4, (left + 63) / 64) + 1) / 2 * 64;
        tile.expert = expert, tile.column = column * wide;
        tile.first = begin + pair * PAIR_ROWS + (rank ? mine : 0);
        tile.rows = rank ? max(0, min(ROWS, left - mine)) : min(left, mine);
        at += step;
        return true;
    }
};

DEVICE u32 multiply_add(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DEVICE u32 multiply(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
/// Sixteen codes to bf16, each exactly a 64th: code + 128 as the bits of a subnormal bf16, times 2^127, less 2.
DEVICE void widen(u32 (&to)[8], const uint4& codes) {
    const u32 words[4] = {codes.x ^ 0x80808080u, codes.y ^ 0x80808080u, codes.z ^ 0x80808080u, codes.w ^ 0x80808080u};
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = multiply_add(__byte_perm(words[i >> 1], 0, i & 1 ? 0x4342 : 0x4140), 0x7f007f00u, 0xc000c000u);
}
/// A scale, times 64, as the sum of two bf16, each twice: good to 2^-17.
struct Scale {
    u32 high, low;
    DEVICE Scale(float x) {
        x *= 64.f;
        high = pack_bf16(x, x);
        const float rest = x - bf16_lo(high);
        low = pack_bf16(rest, rest);
    }
    /// Code (a 64th of it) times scale, rounded once but for the last part of `low`.
    DEVICE u32 operator()(u32 codes) const { return multiply_add(codes, high, multiply(codes, low)); }
};

DEVICE float silu(float x) { return x * rcp_fast(1.f + exp_fast(-x)); }

/// The 16 rows of a warp to their places, in passes of PASS columns.
template <Form FORM, int PASS> DEVICE void store_tile(u8* staging, const float (&acc)[128], bf16* y0, bf16* y1, bf16* y2, int place, int n, int column) {
    if (FORM == SWIGLU) {
        if (y1) {
            store_128<PASS>(staging, y1, place, n, column, [&](int i) { return pack_bf16(acc[2 * i], acc[2 * i + 1]); });
            store_128<PASS>(staging, y2, place, n, column, [&](int i) { return pack_bf16(acc[64 + 2 * i], acc[64 + 2 * i + 1]); });
        }
        store_128<PASS>(staging, y0, place, n, column, [&](int i) {
            return pack_bf16(silu(acc[2 * i]) * acc[64 + 2 * i], silu(acc[2 * i + 1]) * acc[64 + 2 * i + 1]);
        });
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
            store_128<PASS>(staging, y0, place, n, column + 128 * h, [&](int i) { return pack_bf16(acc[64 * h + 2 * i], acc[64 * h + 2 * i + 1]); });
    }
}
/// Scales of the columns, from shared memory, times the accumulator.
DEVICE void scale_columns(float (&acc)[128], const float* scales) {
    const float2* scale = (const float2*)scales + (threadIdx.x & 3);
#pragma unroll
    for (int j = 0; j < 32; j++) {
        const float2 s = scale[4 * j];
        acc[4 * j] *= s.x, acc[4 * j + 1] *= s.y, acc[4 * j + 2] *= s.x, acc[4 * j + 3] *= s.y;
    }
}

/// All forms. Of one term w1, x1, scale1 are not read unless SWIGLU, where they are those of up (x1 is not used).
template <Form FORM, bool INT8>
DEVICE void products(const TensorMap& w0, const TensorMap& w1, const TensorMap& low_map0, const TensorMap& low_map1, const bf16* x0, const bf16* x1,
                     const bf16* low0, const bf16* low1, const float* scale0, const float* scale1, const i64* order, const i64* bounds,
                     bf16* y0, bf16* y1, bf16* y2, int run, int P, int experts, int k, int n)
{
    // A stage: 64 of the contraction, rows and B or codes of B. Codes have two panels of bf16 besides, of this step and the next.
    constexpr int STAGE = INT8 ? INT8_STAGE_BYTES : STAGE_BYTES, PASS = INT8 ? 64 : 128;
    u8* b_panels = smem + STAGES * STAGE;
    u8* staging = b_panels + (INT8 ? 2 * B_BYTES : 0);
    float* scales = (float*)(staging + 8 * 32 * PASS);  // of the columns of this tile and the one before
    int* prefix = (int*)(scales + (INT8 ? 2 * COLUMNS : 0));
    u64* full = (u64*)(prefix + TABLE_BYTES / 4);
    u64 *empty = full + STAGES, *low_full = empty + STAGES;

    const int tid = threadIdx.x & 127, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    const u32 rank = cluster_rank();
    const int wide_columns = FORM == SWIGLU ? COLUMNS / 2 : COLUMNS, columns = (n + wide_columns - 1) / wide_columns;
    const int terms = FORM == TURNED && x1 ? 2 : 1, steps = k / DEPTH, wide = terms * steps;
    const int lows = low0 ? (FORM == TURNED ? terms : 1) : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 128 + 1);        // copies of the rows, and the copy engine
            barrier_init(&empty[i], 8 * CLUSTER);   // B comes from both blocks, so both must be done with it
        }
        if (INT8) barrier_init(low_full, 1);
        barrier_init_done();
    }
    if (warp == 1) count_pairs(prefix, bounds, experts);
    cluster_sync();
    List list(prefix, bounds, experts, columns, wide_columns);
    Ring<STAGES> ring;
    // B of a step as bf16, by one thread: this block's half for both, or all of it for this block.
    auto load_b = [&](u8* b, u64* bar, const TensorMap& m0, const TensorMap& m1, const Tile& tile, int depth, bool low, bool both) {
        barrier_expect(bar, B_BYTES);
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (both && part != int(rank)) continue;
            const TensorMap& map = FORM == SWIGLU && part ? m1 : m0;
            auto load = [&](u8* at, int x, int y) {
                if (both) tensor_load_both(at, map, x, y, tile.expert, bar);
                else tensor_load(at, map, x, y, tile.expert, bar);
            };
            u8* at = b + part * (B_BYTES / 2);
            if (FORM == TURNED) {
#pragma unroll
                for (int j = 0; j < 2; j++) load(at + j * PANEL, tile.column + 128 * part + 64 * j, depth);
            } else if (FORM == SWIGLU) load(at, low && part ? -16 : depth, tile.column);  // up's low term: contraction 16 to 31
            else load(at, depth, tile.column + 128 * part);
        }
    };

    if (group == 0) {
        registers_drop<56>();
        const int chunk = tid & 7, row = tid >> 3;  // of rows row, row + 16, ..
        const u32 to = smem_u32(smem) + panel_chunk(row, chunk);
        const u32 chunks = u32(k) >> 3;
        const Divisor of_run(run);
        u32 ahead[8];
        auto fetch = [&](const Tile& tile) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (row + 16 * i < tile.rows) ahead[i] = load_early_word(order + tile.first + row + 16 * i);
        };
        auto load_codes = [&](const TensorMap& m0, const TensorMap& m1, const Tile& tile, int depth) {
            u8* codes = smem + ring.at * STAGE + A_BYTES;
            u64* bar = &full[ring.at];
            barrier_expect(bar, CODE_BYTES);
#pragma unroll
            for (int part = 0; part < 2; part++) {
                if (CLUSTER == 2 && part != rank) continue;
                const TensorMap& map = FORM == SWIGLU && part ? m1 : m0;
                auto load = [&](u8* at, int x, int y) {
                    if (CLUSTER == 2) tensor_load_both(at, map, x, y, tile.expert, bar);
                    else tensor_load(at, map, x, y, tile.expert, bar);
                };
                u8* at = codes + part * (CODE_BYTES / 2);
                if (FORM == TURNED) {
#pragma unroll
                    for (int j = 0; j < 2; j++) load(at + j * (CODE_BYTES / 4), tile.column + 128 * part + 64 * j, depth);
                } else load(at, depth, tile.column + (FORM == SWIGLU ? 0 : 128 * part));
            }
        };
        Tile tile, following;
        bool more = list.next(following);
        if (more) fetch(following);
        while (more) {
            tile = following;
            u32 place[8], from[8];
#pragma unroll
            for (int i = 0; i < 8; i++) place[i] = ahead[i], from[i] = of_run(place[i]) * chunks + chunk;  // in units of 16 bytes
            more = list.next(following);
            if (more) fetch(following);
            for (int term = 0; term < terms; term++) {
                const u8* x = (const u8*)(term ? x1 : x0);
                for (int s = 0; s < steps; s++, x += 128) {
                    barrier_wait(&empty[ring.at], ring.parity ^ 1);
                    if (tid == 0) {
                        const TensorMap& map = FORM == TURNED && term ? w1 : w0;
                        if (INT8) load_codes(map, w1, tile, s * DEPTH);
                        else load_b(smem + ring.at * STAGE + A_BYTES, &full[ring.at], map, w1, tile, s * DEPTH, false, CLUSTER == 2);
                    }
                    const u32 a = to + ring.at * STAGE;
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(from[i]) * 16);
                    copy_async_arrive(&full[ring.at]);
                    ring.next();
                }
            }
            for (int l = 0; l < lows; l++) {
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) {
                    if (INT8) barrier_arrive(&full[ring.at]);  // the others load it, to where codes become bf16
                    else load_b(smem + ring.at * STAGE + A_BYTES, &full[ring.at], l ? low_map1 : low_map0, low_map1, tile, 0, true, CLUSTER == 2);
                }
                const bf16* x = l || (FORM == SWIGLU && chunk >= 2) ? low1 : low0;
                const u32 a = to + ring.at * STAGE;
                if (chunk < (FORM == SWIGLU ? 4 : 2))
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(place[i]) * 16 + (chunk & 1) * 8);
                copy_async_arrive(&full[ring.at]);
                ring.next();
            }
        }
    } else {
        registers_raise<224>();
        const int part = group - 1;
        constexpr int TB = FORM == TURNED, B_STEP = TB ? 2048 : 32;
        const u64 a_desc = panel_descriptor(smem_u32(smem) + part * (A_BYTES / 2));
        const u64 b_desc = panel_descriptor(smem_u32(INT8 ? b_panels : smem + A_BYTES), TB ? PANEL : 16);
        u8* my_staging = staging + (part * 4 + (warp & 3)) * 32 * PASS;
        float acc[128];
        auto wait_full = [&] {
            barrier_wait(&full[ring.at], ring.parity);
            if (EXPERTS_FENCE) fence_async();  // the rows were written by ordinary copies
        };
        auto release = [&](u32 stage) {
            if (CLUSTER == 2) {
                if (lane < 2) barrier_arrive_at(&empty[stage], lane);
            } else if (lane == 0) barrier_arrive(&empty[stage]);
        };
        bool behind = EXPERTS_STAGGER && !INT8;
        u32 turn = 0, low_parity = 0, scales_turn = 0;  // INT8: which panel is next, ..
        Tile tile, following;
        bool more = list.next(following);
        auto look_ahead = [&] { more = list.next(following); };  // while the tensor cores work
        while (more) {
            tile = following;
            int place = -1;
            const int r = part * 64 + (warp & 3) * 16 + lane;
            if (lane < 16 && r < tile.rows) place = int(load_early_word(order + tile.first + r));
            const bool active = part * 64 < tile.rows;
            if (behind && part) named_barrier(1, 256);  // two steps behind, so that one half stores while the other computes
            if (INT8 ? tile.rows == 0 : !active) {
                if (behind && !part) asm volatile("bar.arrive 1, 256;" ::: "memory");
                behind = false;
                look_ahead();
                for (int s = 0; s < wide + lows; s++, ring.next()) {
                    barrier_wait(&full[ring.at], ring.parity);
                    release(ring.at);
                }
                continue;
            }
            u32 before = 0;
            if constexpr (INT8) {
                // This half of the lines of 64 codes; of it this thread has 16 codes of each of the lines line, line + 32, ..
                const int line = tid >> 2;
                const u32 first = ((2 * (tid & 3)) ^ (line & 7)) << 4;
                float column_scale = 0.f, row_scale[2];
                auto fetch_rows = [&](int s) {
                    const float* scale = (s >= steps ? scale1 + s * DEPTH - k : scale0 + s * DEPTH) + u64(tile.expert) * k + line;
                    row_scale[0] = scale[0], row_scale[1] = scale[32];
                };
                if (FORM == TURNED) fetch_rows(0);
                else {
                    const int column = tile.column + tid + (FORM == SWIGLU ? 0 : 128 * part);
                    if (column < n) column_scale = 64.f * (FORM == SWIGLU && part ? scale1 : scale0)[u64(tile.expert) * n + column];
                    scales[scales_turn + part * 128 + tid] = column_scale;
                }
                // Makes the panel of step s, together with the other half.
                auto prepare = [&](int s) {
                    uint4 codes[4];
                    barrier_wait(&full[ring.at], ring.parity);
                    if (s < wide) {
                        const uint4* from = (const uint4*)(smem + ring.at * STAGE + A_BYTES + part * (CODE_BYTES / 2)) + tid;
#pragma unroll
                        for (int i = 0; i < 4; i++) codes[i] = from[i * 128];
                    }
                    named_barrier(2, 256);  // all are done with the step before the last, whose panel comes now
                    u8* panel = b_panels + turn * B_BYTES;
                    if (s < wide) {
                        u8* to = panel + part * (B_BYTES / 2) + line * 128;
                        const Scale scale[2] = {Scale(FORM == TURNED ? row_scale[0] : 0.f), Scale(FORM == TURNED ? row_scale[1] : 0.f)};
                        if (FORM == TURNED && s + 1 < wide) fetch_rows(s + 1);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            u32 w[8];
                            widen(w, codes[i]);
                            if (FORM == TURNED)
#pragma unroll
                                for (int j = 0; j < 8; j++) w[j] = scale[i & 1](w[j]);
                            *(uint4*)(to + i * 4096 + first) = make_uint4(w[0], w[1], w[2], w[3]);
                            *(uint4*)(to + i * 4096 + (first ^ 16)) = make_uint4(w[4], w[5], w[6], w[7]);
                        }
                    } else {
                        if (threadIdx.x == 128) load_b(panel, low_full, s > wide ? low_map1 : low_map0, low_map1, tile, 0, true, false);
                        __syncwarp();
                        barrier_wait(low_full, low_parity);
                        low_parity ^= 1;
                    }
                    fence_async();
                    named_barrier(1, 256);
                };
                if (!active) {
                    look_ahead();
                    for (int s = 0; s < wide + lows; s++, ring.next(), turn ^= 1) {
                        prepare(s);
                        release(ring.at);
                    }
                } else {
                    for (int s = 0; s < wide; s++, ring.next(), turn ^= 1) {
                        prepare(s);
                        const u64 a = advance(a_desc, ring.at * STAGE), b = advance(b_desc, turn * B_BYTES);
                        wgmma_fence();
#pragma unroll
                        for (int j = 0; j < 4; j++) wgmma_ss<0, TB>(acc, advance(a, j * 32), advance(b, j * B_STEP), s + j > 0);
                        wgmma_commit();
                        if (s > 0) {
                            wgmma_wait<1>();
                            release(before);
                        } else look_ahead();
                        before = ring.at;
                    }
                    if (lows) prepare(wide);
                    wgmma_wait<0>();
                    release(before);
                    if (FORM != TURNED) scale_columns(acc, scales + scales_turn);
                    for (int l = 0; l < lows; l++, ring.next(), turn ^= 1) {
                        if (l) prepare(wide + l);
                        const u64 a = advance(a_desc, ring.at * STAGE), b = advance(b_desc, turn * B_BYTES);
                        wgmma_fence();
                        wgmma_ss<0, TB>(acc, a, b, 1);
                        if (FORM == SWIGLU) wgmma_ss<0, TB>(acc, advance(a, 32), advance(b, B_STEP), 1);
                        wgmma_commit();
                        wgmma_wait<0>();
                        release(ring.at);
                    }
                    store_tile<FORM, PASS>(my_staging, acc, y0, y1, y2, place, n, tile.column);
                }
                scales_turn ^= COLUMNS;
            } else {
                for (int s = 0; s < wide; s++, ring.next()) {
                    wait_full();
                    const u64 a = advance(a_desc, ring.at * STAGE), b = advance(b_desc, ring.at * STAGE);
                    wgmma_fence();
#pragma unroll
                    for (int j = 0; j < 4; j++) wgmma_ss<0, TB>(acc, advance(a, j * 32), advance(b, j * B_STEP), s + j > 0);
                    wgmma_commit();
                    if (s > 0) {
                        wgmma_wait<1>();
                        release(before);
                    } else look_ahead();
                    before = ring.at;
                    if (behind && !part && (s == 1 || s == wide - 1)) {
                        asm volatile("bar.arrive 1, 256;" ::: "memory");
                        behind = false;
                    }
                }
                behind = false;
                wgmma_wait<0>();
                release(before);
                for (int l = 0; l < lows; l++, ring.next()) {
                    wait_full();
                    const u64 a = advance(a_desc, ring.at * STAGE), b = advance(b_desc, ring.at * STAGE);
                    wgmma_fence();
                    wgmma_ss<0, TB>(acc, a, b, 1);
                    if (FORM == SWIGLU) wgmma_ss<0, TB>(acc, advance(a, 32), advance(b, B_STEP), 1);
                    wgmma_commit();
                    wgmma_wait<0>();
                    release(ring.at);
                }
                store_tile<FORM, PASS>(my_staging, acc, y0, y1, y2, place, n, tile.column);
            }
        }
        // Places without an expert.
        for (i64 i = bounds[experts] + blockIdx.x * 8 + part * 4 + (warp & 3); i < P; i += gridDim.x * 8) {
            const u64 at = u64(order[i]) * n;
            const uint4 zero = make_uint4(0, 0, 0, 0);
            for (int c = lane * 8; c < n; c += 256) {
                *(uint4*)(y0 + at + c) = zero;
                if (FORM == SWIGLU && y1) *(uint4*)(y1 + at + c) = zero, *(uint4*)(y2 + at + c) = zero;
            }
        }
    }
    __syncwarp();
    cluster_sync();  // the other block may still arrive here
}

#define MAP const __grid_constant__ TensorMap
#define DOT bf16 *y, int run, int P, int experts, int k, int n
#define SWIGLU_OUT bf16 *hidden, bf16 *gated, bf16 *lifted, int run, int P, int experts, int k, int n

extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_dot(MAP w, MAP left, const bf16* x, const bf16* low, const i64* order, const i64* bounds, DOT) {
    products<PLAIN, false>(w, w, left, left, x, nullptr, low, nullptr, nullptr, nullptr, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_dot_turned(MAP w0, MAP w1, MAP right0, MAP right1, const bf16* x0, const bf16* x1, const bf16* low0, const bf16* low1,
                   const i64* order, const i64* bounds, DOT) {
    products<TURNED, false>(w0, w1, right0, right1, x0, x1, low0, low1, nullptr, nullptr, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_swiglu(MAP gate, MAP up, MAP left_gate, MAP left_up, const bf16* x, const bf16* low_gate, const bf16* low_up,
               const i64* order, const i64* bounds, SWIGLU_OUT) {
    products<SWIGLU, false>(gate, up, left_gate, left_up, x, nullptr, low_gate, low_up, nullptr, nullptr, order, bounds, hidden, gated, lifted, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_dot_int8(MAP w, MAP left, const bf16* x, const bf16* low, const float* scale, const i64* order, const i64* bounds, DOT) {
    products<PLAIN, true>(w, w, left, left, x, nullptr, low, nullptr, scale, nullptr, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_dot_turned_int8(MAP w0, MAP w1, MAP right0, MAP right1, const bf16* x0, const bf16* x1, const bf16* low0, const bf16* low1,
                        const float* scale0, const float* scale1, const i64* order, const i64* bounds, DOT) {
    products<TURNED, true>(w0, w1, right0, right1, x0, x1, low0, low1, scale0, scale1, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(EXPERTS_CLUSTER) __launch_bounds__(384, 1)
experts_swiglu_int8(MAP gate, MAP up, MAP left_gate, MAP left_up, const bf16* x, const bf16* low_gate, const bf16* low_up,
                    const float* scale_gate, const float* scale_up, const i64* order, const i64* bounds, SWIGLU_OUT) {
    products<SWIGLU, true>(gate, up, left_gate, left_up, x, nullptr, low_gate, low_up, scale_gate, scale_up, order, bounds, hidden, gated, lifted, run, P, experts, k, n);
}
