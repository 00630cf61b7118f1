// Wide products of routed experts, forward and input gradient: rows gathered on load, results written at their place.
//
// Shapes   P places; order [P] i64, bounds [experts + 1] i64 (`expert_order`: places of expert e are
//          order[bounds[e] .. bounds[e + 1]], places without an expert come after bounds[experts]).
//          x [ceil(P / run), k] bf16: place p takes row p / run. Wide weights bf16, or int8 codes with fp32 scales of
//          their rows: plain [experts,n,k], scale [experts,n]; turned [experts,k,n], scale [experts,k].
//          For codes, rows in planes: [ceil(P / run), 2, k rounded up to 128] i8 and units [ceil(P / run)] fp32, of `split_rows`; turned
//          [P, 2, terms k rounded up to 128] and [P], of `split_scaled` (quantize.cu).
//          Low terms, optional: low [P,16] bf16 with left [experts,n,16] (plain) or right [experts,16,n] (turned), bf16.
//          Outputs [P,n] bf16.
// Sizes    k and n multiples of 64, for codes terms k below 2^17; experts 1..512; P 1..2^31 - 1, P n up to 2^45, rows of x times k up to
//          2^35, of planes (turned, P of them) times their width too; every pointer 16-byte aligned. Any imbalance.
// Meaning  experts_dot            y[p,n] = sum_k x[p / run,k] w[e,n,k] (scale[e,n]) + sum_r low[p,r] left[e,n,r]
//          experts_dot_turned     y[p,n] = sum over one or two terms of sum_k x[p / run,k] (scale[e,k]) w[e,k,n]
//                                 + sum_r low[p,r] right[e,r,n]
//          experts_swiglu         gated and lifted as experts_dot of two weights; hidden = silu(gated) lifted
//          A place without an expert gets zeros. NaN in a row stays in the results of its places; so does infinity, and for codes it makes
//          all of them NaN.
// Numerics bf16: operands as they are, fp32 accumulators. Codes: rows to half a unit (at most 2^-14 of their largest magnitude, see
//          quantize.cu), exact sums of 32-bit integers, the scale at the end; turned, rows times scales in fp32 before. Low terms are added in
//          fp32. Each output is rounded once; hidden is computed from the fp32 sums.
// Outputs  `=`, every byte. No atomics, no host sync: a fixed order of every sum whatever the grid.
//
// Entry points, arguments in order. A TensorMap is by value; every pointer may be given as the 8 bytes of an i64, and 0 where it says null.
//
//   experts_dot             (map w, map left, x, low, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_int8        (map w, map left, planes, units, low, scale, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned      (map w0, map w1, map right0, map right1, x0, x1, low0, low1,
//                            order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned_int8 (map w0, map w1, map right0, map right1, planes, units, low0, low1,
//                            order, bounds, y, int terms, int P, int experts, int k, int n)
//   experts_swiglu          (map gate, map up, map left_gate, map left_up, x, low_gate, low_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//   experts_swiglu_int8     (map gate, map up, map left_gate, map left_up, planes, units, low_gate, low_up, scale_gate, scale_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//
//   x1 null, or terms 1: one term (w1, right1 are then not read; give w0, right0 again). Both terms have the same k and run.
//   low null: no low term (any map in its place, for instance w). Of two lows both are given or neither; of one term low1 is null.
//   gated and lifted: both given, or both null and then not written.
//
// Maps     rank 3, interleave none, L2 promotion 256 bytes, out of range zeros, element strides 1, 128-byte swizzle; dimensions innermost
//          first:
//          w, gate, up bf16 plain      (k, n, experts)   box (64, 128, 1)
//          w bf16 turned               (n, k, experts)   box (64, 64, 1)
//          w, gate, up int8 plain      (k, n, experts)   box (128, 128, 1), CU_TENSOR_MAP_DATA_TYPE_UINT8
//          w int8 turned               (n, k, experts)   box (128, 64, 1), CU_TENSOR_MAP_DATA_TYPE_UINT8
//          left                        (16, n, experts)  box (64, 128, 1), bf16 (the box is wider than the tensor)
//          right                       (n, 16, experts)  box (64, 64, 1), bf16 (the box is higher); beside codes box (64, 16, 1)
//
// Launch   grid (G, 1, 1), G the number of multiprocessors made even (any even G >= 2 is right; the cluster of 2 is in the code). 384
//          threads; dynamic shared memory EXPERTS_SMEM, for int8 EXPERTS_INT8_SMEM.
//
// bf16: a cluster of two blocks computes 256 rows x 256 columns (swiglu: 128 of gate and 128 of up); each block gathers its own 128 rows
// with 16-byte copies and loads half of the weights by the copy engine for both. A block whose 64-row half is empty skips its
// products, so rows cost in steps of 128. int8: see experts_planes.cuh; rows cost in steps of 64. A block walks its tiles by itself; one
// expert's tiles come one after another, 8 times 128 rows high and all columns wide, so that what runs at one time shares rows and
// weights in L2.
//
// Limit    tensor and power: 2 k n FLOP of a row and term. At 98,304 rows of 58 experts of 4096 x 1024, 825 GFLOP a product, 1.05 ms at
//          788 TFLOP/s of bf16. Measured: docs/performance.md, "Routed experts".
#include "experts_planes.cuh"

constexpr int CLUSTER = 2, STAGES = 4;
constexpr int EXPERTS_SMEM = STAGES * STAGE_BYTES + 8 * 32 * 128 + TABLE_BYTES + 2 * STAGES * 8;
static_assert(EXPERTS_SMEM == 231504, "the launch states it");

/// The 16 rows of a warp to their places, 128 columns at a time.
template <Form FORM> DEVICE void store_tile(u8* staging, const float (&acc)[128], bf16* y0, bf16* y1, bf16* y2, int place, int n, int column) {
    if (FORM == SWIGLU) {
        if (y1) {
            store_rows<128>(staging, y1, place, n, column, [&](int i) { return pack_bf16(acc[2 * i], acc[2 * i + 1]); });
            store_rows<128>(staging, y2, place, n, column, [&](int i) { return pack_bf16(acc[64 + 2 * i], acc[64 + 2 * i + 1]); });
        }
        store_rows<128>(staging, y0, place, n, column, [&](int i) {
            return pack_bf16(silu(acc[2 * i]) * acc[64 + 2 * i], silu(acc[2 * i + 1]) * acc[64 + 2 * i + 1]);
        });
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
            store_rows<128>(staging, y0, place, n, column + 128 * h, [&](int i) { return pack_bf16(acc[64 * h + 2 * i], acc[64 * h + 2 * i + 1]); });
    }
}

/// All forms with bf16 weights. Of one term w1 and x1 are not read unless SWIGLU, where w1 is up (x1 is not used).
template <Form FORM>
DEVICE void products(const TensorMap& w0, const TensorMap& w1, const TensorMap& low_map0, const TensorMap& low_map1, const bf16* x0, const bf16* x1,
                     const bf16* low0, const bf16* low1, const i64* order, const i64* bounds, bf16* y0, bf16* y1, bf16* y2,
                     int run, int P, int experts, int k, int n)
{
    u8* staging = smem + STAGES * STAGE_BYTES;
    int* prefix = (int*)(staging + 8 * 32 * 128);
    u64 *full = (u64*)(prefix + TABLE_BYTES / 4), *empty = full + STAGES;

    const int tid = threadIdx.x & 127, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    const u32 rank = cluster_rank();
    const int wide_columns = FORM == SWIGLU ? COLUMNS / 2 : COLUMNS, columns = (n + wide_columns - 1) / wide_columns;
    const int terms = FORM == TURNED && x1 ? 2 : 1, steps = k / DEPTH, wide = terms * steps;
    const int lows = low0 ? (FORM == TURNED ? terms : 1) : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 128 + 1);   // copies of the rows, and the copy engine
            barrier_init(&empty[i], 16);       // B comes from both blocks, so both must be done with it
        }
        barrier_init_done();
    }
    if (warp == 1) count_tiles<CLUSTER>(prefix, bounds, experts);
    cluster_sync();
    List<CLUSTER> list(prefix, bounds, experts, columns, wide_columns);
    Ring<STAGES> ring;

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
        // This block's half of B of a step, for both.
        auto load_b = [&](const TensorMap& m0, const TensorMap& m1, const Tile& tile, int depth, bool low) {
            u8* at = smem + ring.at * STAGE_BYTES + A_BYTES + rank * (B_BYTES / 2);
            u64* bar = &full[ring.at];
            barrier_expect(bar, B_BYTES);
            if (FORM == TURNED) {
#pragma unroll
                for (int j = 0; j < 2; j++) tensor_load_both(at + j * PANEL, m0, tile.column + 128 * rank + 64 * j, depth, tile.expert, bar);
            } else if (FORM == SWIGLU) tensor_load_both(at, rank ? m1 : m0, low && rank ? -16 : depth, tile.column, tile.expert, bar);  // up's low term: contraction 16 to 31
            else tensor_load_both(at, m0, depth, tile.column + 128 * rank, tile.expert, bar);
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
                    if (tid == 0) load_b(FORM == TURNED && term ? w1 : w0, w1, tile, s * DEPTH, false);
                    const u32 a = to + ring.at * STAGE_BYTES;
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(from[i]) * 16);
                    copy_async_arrive(&full[ring.at]);
                    ring.next();
                }
            }
            for (int l = 0; l < lows; l++) {
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) load_b(l ? low_map1 : low_map0, low_map1, tile, 0, true);
                const bf16* x = l || (FORM == SWIGLU && chunk >= 2) ? low1 : low0;
                const u32 a = to + ring.at * STAGE_BYTES;
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
        const u64 b_desc = panel_descriptor(smem_u32(smem) + A_BYTES, TB ? PANEL : 16);
        u8* my_staging = staging + (part * 4 + (warp & 3)) * 32 * 128;
        float acc[128];
        auto wait_full = [&] {
            barrier_wait(&full[ring.at], ring.parity);
            fence_async();  // the rows were written by ordinary copies
        };
        auto release = [&](u32 stage) {
            if (lane < 2) barrier_arrive_at(&empty[stage], lane);
        };
        Tile tile, following;
        bool more = list.next(following);
        while (more) {
            tile = following;
            int place = -1;
            const int r = part * 64 + (warp & 3) * 16 + lane;
            if (lane < 16 && r < tile.rows) place = int(load_early_word(order + tile.first + r));
            if (part * 64 >= tile.rows) {
                more = list.next(following);
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
                } else more = list.next(following);  // while the tensor cores work
                before = ring.at;
            }
            wgmma_wait<0>();
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
            store_tile<FORM>(my_staging, acc, y0, y1, y2, place, n, tile.column);
        }
        zero_unrouted(y0, FORM == SWIGLU ? y1 : nullptr, y2, order, bounds[experts], P, n, part * 4 + (warp & 3));
    }
    __syncwarp();
    cluster_sync();  // the other block may still arrive here
}

#define MAP const __grid_constant__ TensorMap
#define DOT bf16 *y, int run, int P, int experts, int k, int n
#define SWIGLU_OUT bf16 *hidden, bf16 *gated, bf16 *lifted, int run, int P, int experts, int k, int n

extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_dot(MAP w, MAP left, const bf16* x, const bf16* low, const i64* order, const i64* bounds, DOT) {
    products<PLAIN>(w, w, left, left, x, nullptr, low, nullptr, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_dot_turned(MAP w0, MAP w1, MAP right0, MAP right1, const bf16* x0, const bf16* x1, const bf16* low0, const bf16* low1,
                   const i64* order, const i64* bounds, DOT) {
    products<TURNED>(w0, w1, right0, right1, x0, x1, low0, low1, order, bounds, y, nullptr, nullptr, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_swiglu(MAP gate, MAP up, MAP left_gate, MAP left_up, const bf16* x, const bf16* low_gate, const bf16* low_up,
               const i64* order, const i64* bounds, SWIGLU_OUT) {
    products<SWIGLU>(gate, up, left_gate, left_up, x, nullptr, low_gate, low_up, order, bounds, hidden, gated, lifted, run, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_dot_int8(MAP w, MAP left, const u8* planes, const float* units, const bf16* low, const float* scale, const i64* order, const i64* bounds, DOT) {
    products_planes<PLAIN>({w, w, left, left, planes, units, low, nullptr, scale, nullptr}, order, bounds, y, nullptr, nullptr, run, 1, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_dot_turned_int8(MAP w0, MAP w1, MAP right0, MAP right1, const u8* planes, const float* units, const bf16* low0, const bf16* low1,
                        const i64* order, const i64* bounds, bf16* y, int terms, int P, int experts, int k, int n) {
    products_planes<TURNED>({w0, w1, right0, right1, planes, units, low0, low1, nullptr, nullptr}, order, bounds, y, nullptr, nullptr, 1, terms, P, experts, k, n);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1)
experts_swiglu_int8(MAP gate, MAP up, MAP left_gate, MAP left_up, const u8* planes, const float* units, const bf16* low_gate, const bf16* low_up,
                    const float* scale_gate, const float* scale_up, const i64* order, const i64* bounds, SWIGLU_OUT) {
    products_planes<SWIGLU>({gate, up, left_gate, left_up, planes, units, low_gate, low_up, scale_gate, scale_up}, order, bounds, hidden, gated, lifted, run, 1, P, experts, k, n);
}
