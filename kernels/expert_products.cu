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
// 16-byte copies and loads half of B by the copy engine for both. The same warpgroup turns codes, loaded likewise, into bf16 panels.
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
#ifndef EXPERTS_ABLATE
#define EXPERTS_ABLATE 0
#endif
#ifndef EXPERTS_ARRIVE
#define EXPERTS_ARRIVE 0
#endif
#ifndef EXPERTS_CLUSTER
#define EXPERTS_CLUSTER 2
#endif
#ifndef EXPERTS_GROUP
#define EXPERTS_GROUP 8
#endif

constexpr int CLUSTER = EXPERTS_CLUSTER, PAIR_ROWS = CLUSTER * ROWS;
constexpr int BF16_STAGES = 4, INT8_STAGES = 3, CODE_STAGES = 2;
constexpr int CODE_BYTES = COLUMNS * DEPTH;
constexpr int TABLE_BYTES = (MAX_EXPERTS + 4) * 4;
constexpr int EXPERTS_SMEM = BF16_STAGES * STAGE_BYTES + STAGING_BYTES + TABLE_BYTES + 2 * BF16_STAGES * 8;  // 231504
constexpr int EXPERTS_INT8_SMEM = INT8_STAGES * (STAGE_BYTES + COLUMNS * 4) + CODE_STAGES * CODE_BYTES + STAGING_BYTES + TABLE_BYTES +
                                  2 * (INT8_STAGES + CODE_STAGES) * 8;  // 218208
static_assert(EXPERTS_SMEM == 231504 && EXPERTS_INT8_SMEM == 218208, "the launch states them");

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

/// Sixteen codes to bf16, exactly.
DEVICE void widen(u32 (&to)[8], const uint4& codes) {
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 w = __byte_perm(words[i], 0, h ? 0x4342 : 0x4140);  // two codes, 16 bits apart
            const u32 low = (w & 0x007f007fu) | 0x43004300u, sign = (w & 0x00800080u) | 0x43004300u;  // 128 + bits; 128 or 256
            asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(to[2 * i + h]) : "r"(low), "r"(sign));
        }
}
/// Sixteen codes times `scale`, each rounded to bf16 once. `scale` has 15 significant bits, so that `base`, -32896 scale, is exact.
DEVICE void widen(u32 (&to)[8], const uint4& codes, float scale, float base) {
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 w = words[i] ^ 0x80808080u;  // code + 128, and in the middle of 2^15: 2^15 + 128 + code
        float f[4];
#pragma unroll
        for (int e = 0; e < 4; e++) f[e] = fmaf(__uint_as_float(__byte_perm(w, 0x47000000u, 0x7404 | e << 4)), scale, base);
        to[2 * i] = pack_bf16(f[0], f[1]), to[2 * i + 1] = pack_bf16(f[2], f[3]);
    }
}
DEVICE float round_scale(float x) { return __uint_as_float((__float_as_uint(x) + 0x100u) & ~0x1ffu); }

DEVICE float silu(float x) { return x * rcp_fast(1.f + exp_fast(-x)); }

/// All forms. Of one term w1, x1, scale1 are not read unless SWIGLU, where they are those of up (x1 is not used).
template <Form FORM, bool INT8>
DEVICE void products(const TensorMap& w0, const TensorMap& w1, const TensorMap& low_map0, const TensorMap& low_map1, const bf16* x0, const bf16* x1,
                     const bf16* low0, const bf16* low1, const float* scale0, const float* scale1, const i64* order, const i64* bounds,
                     bf16* y0, bf16* y1, bf16* y2, int run, int P, int experts, int k, int n)
{
    constexpr int STAGES = INT8 ? INT8_STAGES : BF16_STAGES;
    u8* codes = smem + STAGES * STAGE_BYTES;
    u8* staging = codes + (INT8 ? CODE_STAGES * CODE_BYTES : 0);
    float* scales = (float*)(staging + STAGING_BYTES);  // of the columns of a tile, beside its last wide stage
    int* prefix = (int*)(scales + (INT8 ? STAGES * COLUMNS : 0));
    u64* full = (u64*)(prefix + TABLE_BYTES / 4);
    u64 *empty = full + STAGES, *codes_full = empty + STAGES, *codes_empty = codes_full + CODE_STAGES;

    const int tid = threadIdx.x & 127, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    const u32 rank = cluster_rank();
    const int wide_columns = FORM == SWIGLU ? COLUMNS / 2 : COLUMNS, columns = (n + wide_columns - 1) / wide_columns;
    const int terms = FORM == TURNED && x1 ? 2 : 1, steps = k / DEPTH, wide = terms * steps;
    const int lows = low0 ? (FORM == TURNED ? terms : 1) : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], (EXPERTS_ARRIVE ? 4 : 128) + 1 + (INT8 ? 4 : 0));  // copies of the rows; the copy engine; warps that turned codes
            barrier_init(&empty[i], INT8 ? 8 : 8 * CLUSTER);            // bf16 B comes from both blocks, so both must be done with it
        }
        if (INT8)
            for (int i = 0; i < CODE_STAGES; i++) barrier_init(&codes_full[i], 1), barrier_init(&codes_empty[i], 4 * CLUSTER);
        barrier_init_done();
    }
    if (warp == 1) count_pairs(prefix, bounds, experts);
    cluster_sync();
    List list(prefix, bounds, experts, columns, wide_columns);
    Ring<STAGES> ring;

    if (group == 0) {
        registers_drop<INT8 ? 104 : 56>();
        const int chunk = tid & 7, row = tid >> 3;  // of rows row, row + 16, ..
        const u32 to = smem_u32(smem) + panel_chunk(row, chunk);
        const u32 chunks = u32(k) >> 3;
        u32 ahead[8];
        auto fetch = [&](const Tile& tile, u32 (&to)[8]) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (row + 16 * i < tile.rows) to[i] = load_early_word(order + tile.first + row + 16 * i);
        };
        u32 open = 0;
        auto arrive = [&] {
            if (!EXPERTS_ARRIVE) { copy_async_arrive(&full[ring.at]); return; }
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (open < EXPERTS_ARRIVE) { open++; return; }
            asm volatile("cp.async.wait_group %0;" ::"n"(EXPERTS_ARRIVE) : "memory");
            __syncwarp();
            const u32 stage = ring.at >= EXPERTS_ARRIVE ? ring.at - EXPERTS_ARRIVE : ring.at + STAGES - EXPERTS_ARRIVE;
            if (lane == 0) barrier_arrive(&full[stage]);
        };
        // Loads B, or the half of it that is this block's to load for both.
        auto load_b = [&](const TensorMap& m0, const TensorMap& m1, const Tile& tile, int depth, bool low) {
            u8* b = smem + ring.at * STAGE_BYTES + A_BYTES;
            if (EXPERTS_ABLATE & 2) { barrier_arrive(&full[ring.at]); return; }
            barrier_expect(&full[ring.at], B_BYTES);
#pragma unroll
            for (int part = 0; part < 2; part++) {
                if (!INT8 && CLUSTER == 2 && part != rank) continue;
                const TensorMap& map = FORM == SWIGLU && part ? m1 : m0;
                auto load = [&](u8* at, int x, int y) {
                    if (INT8 || CLUSTER == 1) tensor_load(at, map, x, y, tile.expert, &full[ring.at]);
                    else tensor_load_both(at, map, x, y, tile.expert, &full[ring.at]);
                };
                u8* at = b + part * (B_BYTES / 2);
                if (FORM == TURNED) {
#pragma unroll
                    for (int j = 0; j < 2; j++) load(at + j * PANEL, tile.column + 128 * part + 64 * j, depth);
                } else if (FORM == SWIGLU) load(at, low && part ? -16 : depth, tile.column);  // up's low term: contraction 16 to 31
                else load(at, depth, tile.column + 128 * part);
            }
        };
        // Codes of step s of a tile: this block's half, for both.
        Ring<CODE_STAGES> code_ring;
        auto load_codes = [&](const Tile& tile, int s) {
            if (tid != 0) return;
            barrier_wait(&codes_empty[code_ring.at], code_ring.parity ^ 1);
            u64* bar = &codes_full[code_ring.at];
            barrier_expect(bar, CODE_BYTES);
            const bool second = s >= steps;
            const int depth = (second ? s - steps : s) * DEPTH;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                if (CLUSTER == 2 && part != rank) continue;
                u8* at = codes + code_ring.at * CODE_BYTES + part * (CODE_BYTES / 2);
                const TensorMap& map = (FORM == SWIGLU ? part : second) ? w1 : w0;
                auto load = [&](u8* to, int x, int y) {
                    if (CLUSTER == 1) tensor_load(to, map, x, y, tile.expert, bar);
                    else tensor_load_both(to, map, x, y, tile.expert, bar);
                };
                if (FORM == TURNED) {
#pragma unroll
                    for (int j = 0; j < 2; j++) load(at + j * (CODE_BYTES / 4), tile.column + 128 * part + 64 * j, depth);
                } else load(at, depth, tile.column + (FORM == SWIGLU ? 0 : 128 * part));
            }
            code_ring.next();
        };
        // Codes: this thread turns 16 of each of the lines line, line + 32, .. of 64 codes.
        const int line = tid >> 2;
        u8* const bf16_to = smem + A_BYTES + line * 128;
        const u32 bf16_first = ((2 * (tid & 3)) ^ (line & 7)) << 4;
        Ring<CODE_STAGES> read_ring;
        // Scales of the rows of a stage, line and line + 32, a step ahead; or of columns tid and tid + 128 of a tile.
        float scale_ahead[2] = {0.f, 0.f};
        auto fetch_scale = [&](const Tile& tile, int s) {
            const bool second = s >= steps;
            const float* scale = (second ? scale1 : scale0) + u64(tile.expert) * k + (second ? s - steps : s) * DEPTH + line;
#pragma unroll
            for (int h = 0; h < 2; h++) scale_ahead[h] = scale[32 * h];
        };
        auto fetch_column_scale = [&](const Tile& tile) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int column = tile.column + tid + (FORM == SWIGLU ? 0 : 128 * h);
                if (column < n) scale_ahead[h] = (FORM == SWIGLU && h ? scale1 : scale0)[u64(tile.expert) * n + column];
            }
        };
        Tile tile, following;
        bool more = list.next(following);
        if (more) {
            fetch(following, ahead);
            if (INT8) load_codes(following, 0);
            if (INT8 && FORM == TURNED) fetch_scale(following, 0);
        }
        while (more) {
            tile = following;
            u32 place[8], from[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                place[i] = ahead[i];
                from[i] = (run == 1 ? place[i] : place[i] / u32(run)) * chunks + chunk;  // in units of 16 bytes
            }
            more = list.next(following);
            if (more && !INT8) fetch(following, ahead);
            if (INT8 && FORM != TURNED) fetch_column_scale(tile);
            const u8* x = (const u8*)x0;
            for (int s = 0; s < wide; s++, x += 128) {
                const bool second = FORM == TURNED && s >= steps;
                if (FORM == TURNED && s == steps) x = (const u8*)x1;
                uint4 q[4];
                float scale[2], base[2];
                const uint4* codes_from = (const uint4*)(codes + read_ring.at * CODE_BYTES) + tid;
                auto read = [&](int half) {
#pragma unroll
                    for (int i = 0; i < 4; i++) q[i] = codes_from[(half * 4 + i) * 128];
                };
                if (INT8) {
                    if (s + 1 < wide) load_codes(tile, s + 1);  // a step ahead
                    else if (more) load_codes(following, 0);
                    barrier_wait(&codes_full[read_ring.at], read_ring.parity);
                    read(0);
                    if (FORM == TURNED) {
#pragma unroll
                        for (int h = 0; h < 2; h++) scale[h] = round_scale(scale_ahead[h]), base[h] = -32896.f * scale[h];
                        if (s + 1 < wide) fetch_scale(tile, s + 1);
                        else if (more) fetch_scale(following, 0);
                    }
                }
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) {
                    if (INT8) barrier_arrive(&full[ring.at]);
                    else load_b(second ? w1 : w0, w1, tile, (second ? s - steps : s) * DEPTH, false);
                }
                const u32 a = to + ring.at * STAGE_BYTES;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (!(EXPERTS_ABLATE & 1) && row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(from[i]) * 16);
                arrive();
                if (INT8) {
                    u8* b = bf16_to + ring.at * STAGE_BYTES;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        if (half) read(1);
#pragma unroll
                        for (int i = 0; i < 4; i++, b += 4096) {
                            u32 w[8];
                            if (FORM == TURNED) widen(w, q[i], scale[i & 1], base[i & 1]);
                            else widen(w, q[i]);
                            *(uint4*)(b + bf16_first) = make_uint4(w[0], w[1], w[2], w[3]);
                            *(uint4*)(b + (bf16_first ^ 16)) = make_uint4(w[4], w[5], w[6], w[7]);
                        }
                    }
                    __syncwarp();
                    if (lane < CLUSTER) barrier_arrive_at(&codes_empty[read_ring.at], lane);
                    read_ring.next();
                    if (FORM != TURNED && s == wide - 1)
#pragma unroll
                        for (int h = 0; h < 2; h++) scales[ring.at * COLUMNS + 128 * h + tid] = scale_ahead[h];
                    __syncwarp();
                    if (lane == 0) barrier_arrive(&full[ring.at]);
                }
                ring.next();
            }
            if (INT8 && lows) fetch(tile, place);  // again, for want of registers to keep them in
            if (INT8 && more) fetch(following, ahead);
            for (int l = 0; l < lows; l++) {
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) load_b(l ? low_map1 : low_map0, low_map1, tile, 0, true);
                const bf16* x = l || (FORM == SWIGLU && chunk >= 2) ? low1 : low0;
                const u32 a = to + ring.at * STAGE_BYTES;
                if (chunk < (FORM == SWIGLU ? 4 : 2))
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(place[i]) * 16 + (chunk & 1) * 8);
                arrive();
                if (INT8 && lane == 0) barrier_arrive(&full[ring.at]);
                ring.next();
            }
        }
        if (EXPERTS_ARRIVE) {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
            __syncwarp();
            for (; open; open--) {
                const u32 stage = ring.at >= open ? ring.at - open : ring.at + STAGES - open;
                if (lane == 0) barrier_arrive(&full[stage]);
            }
        }
    } else {
        registers_raise<INT8 ? 200 : 224>();
        const int part = group - 1;
        constexpr int TB = FORM == TURNED, B_STEP = TB ? 2048 : 32;
        const u64 a_desc = panel_descriptor(smem_u32(smem) + part * (A_BYTES / 2));
        const u64 b_desc = panel_descriptor(smem_u32(smem) + A_BYTES, TB ? PANEL : 16);
        u8* my_staging = staging + (part * 4 + (warp & 3)) * STAGING_WARP;
        float acc[128];
        auto wait_full = [&] {
            barrier_wait(&full[ring.at], ring.parity);
            if (EXPERTS_FENCE) fence_async();  // the rows were written by ordinary copies
        };
        auto release = [&](u32 stage) {
            if (INT8) {
                if (lane == 0) barrier_arrive(&empty[stage]);
            } else if (CLUSTER == 1) { if (lane == 0) barrier_arrive(&empty[stage]); }
            else if (lane < 2) barrier_arrive_at(&empty[stage], lane);
        };
        bool behind = EXPERTS_STAGGER;
        Tile tile;
        while (list.next(tile)) {
            int place = -1;
            const int r = part * 64 + (warp & 3) * 16 + lane;
            if (lane < 16 && r < tile.rows) place = int(load_early_word(order + tile.first + r));
            if (behind && part) named_barrier(1, 256);  // two steps behind, so that one half stores while the other computes
            if (part * 64 >= tile.rows) {
                if (behind && !part) asm volatile("bar.arrive 1, 256;" ::: "memory");
                behind = false;
                for (int s = 0; s < wide + lows; s++, ring.next()) {
                    barrier_wait(&full[ring.at], ring.parity);
                    release(ring.at);
                }
                continue;
            }
            u32 before = 0;
            for (int s = 0; s < wide; s++, ring.next()) {
                wait_full();
                const u64 a = advance(a_desc, ring.at * STAGE_BYTES), b = advance(b_desc, ring.at * STAGE_BYTES);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++) wgmma_ss<0, TB>(acc, advance(a, j * 32), advance(b, j * B_STEP), s + j > 0);
                wgmma_commit();
                if (s > 0) {
                    wgmma_wait<1>();
                    release(before);
                }
                before = ring.at;
                if (behind && !part && (s == 1 || s == wide - 1)) {
                    asm volatile("bar.arrive 1, 256;" ::: "memory");
                    behind = false;
                }
            }
            behind = false;
            wgmma_wait<0>();
            if (INT8 && FORM != TURNED) {
                const float2* scale = (const float2*)(scales + before * COLUMNS) + (lane & 3);
#pragma unroll
                for (int j = 0; j < 32; j++) {
                    const float2 s = scale[4 * j];
                    acc[4 * j] *= s.x, acc[4 * j + 1] *= s.y, acc[4 * j + 2] *= s.x, acc[4 * j + 3] *= s.y;
                }
                __syncwarp();
            }
            release(before);
            for (int l = 0; l < lows; l++, ring.next()) {
                wait_full();
                const u64 a = advance(a_desc, ring.at * STAGE_BYTES), b = advance(b_desc, ring.at * STAGE_BYTES);
                wgmma_fence();
                wgmma_ss<0, TB>(acc, a, b, 1);
                if (FORM == SWIGLU) wgmma_ss<0, TB>(acc, advance(a, 32), advance(b, B_STEP), 1);
                wgmma_commit();
                wgmma_wait<0>();
                release(ring.at);
            }
            if (FORM == SWIGLU) {
                if (y1) {
                    store_rows(my_staging, y1, place, n, tile.column, [&](int i) { return pack_bf16(acc[2 * i], acc[2 * i + 1]); });
                    store_rows(my_staging, y2, place, n, tile.column, [&](int i) { return pack_bf16(acc[64 + 2 * i], acc[64 + 2 * i + 1]); });
                }
                store_rows(my_staging, y0, place, n, tile.column, [&](int i) {
                    return pack_bf16(silu(acc[2 * i]) * acc[64 + 2 * i], silu(acc[2 * i + 1]) * acc[64 + 2 * i + 1]);
                });
            } else {
#pragma unroll
                for (int h = 0; h < 2; h++)
                    store_rows(my_staging, y0, place, n, tile.column + 128 * h, [&](int i) { return pack_bf16(acc[64 * h + 2 * i], acc[64 * h + 2 * i + 1]); });
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
