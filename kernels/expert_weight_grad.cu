// Weight gradient of routed experts: rows gathered on load, ragged contraction.
//
// Shapes   P, order, bounds as in expert_products.cu. x [ceil(P / run_x), d] bf16, dy [ceil(P / run_dy), f] bf16: place p takes
//          rows p / run_x and p / run_dy. dw [experts, f, d] bf16.
// Sizes    d and f multiples of 64; experts >= 1, experts f up to 2^31 - 1; P 1..2^31 - 1; every pointer 16-byte aligned. Any imbalance.
// Meaning  dw[e] = sum over the places p of expert e, in their order, of dy[p / run_dy, :]^T x[p / run_x, :]; an expert without places gets zeros.
// Numerics bf16 operands, fp32 accumulators, rounded once.
// Outputs  `=`, every byte. No atomics, no host sync: a fixed order of every sum whatever the grid.
//
//   experts_weight_grad (x, dy, order, bounds, dw, int run_x, int run_dy, int P, int experts, int d, int f)
//
// Launch   grid (G, 1, 1), G = the number of multiprocessors (any G >= 1 is right), 384 threads, EXPERTS_GRAD_SMEM.
//
// A block computes 128 rows (of f) x 256 columns (of d) of one expert and walks its tiles by itself; the contraction runs down both
// panels. One expert's tiles come one after another, so that its rows stay in L2.
//
// Limit    tensor, 2 d f FLOP of a place (825 GFLOP at 98,304 places of 4096 x 1024: 1.05 ms), then what goes from L2 to the
//          multiprocessors: both operands are gathered, so no load serves two blocks, and 9.7 GB go there.
//          Measured 1.283 ms by itself, 1.43 ms under steady load (NVIDIA H200, 2026-11-28).
#include "experts.cuh"

constexpr int STAGES = 4, STAGING_WARP = 32 * 128, STAGING_BYTES = 8 * STAGING_WARP;
constexpr int EXPERTS_GRAD_SMEM = STAGES * STAGE_BYTES + STAGING_BYTES + 2 * STAGES * 8;  // 229440
static_assert(EXPERTS_GRAD_SMEM == 229440, "the launch states it");

/// Steps of 64 places through the tiles of a block.
struct Walk {
    const i64* bounds;
    int experts, tiles, high, wide;      // tiles of an expert, high x wide of them
    int at, expert, step = 0, steps;     // steps of this tile, 0 for an expert without places
    int first, end, row, column;
    DEVICE Walk(const i64* bounds, int experts, int d, int f) : bounds(bounds), experts(experts), high((f + ROWS - 1) / ROWS), wide((d + COLUMNS - 1) / COLUMNS), at(blockIdx.x) {
        tiles = high * wide;
        locate();
    }
    DEVICE void locate() {
        expert = at / tiles;
        if (!more()) return;
        const int i = at - expert * tiles;
        column = i / high, row = (i - column * high) * ROWS, column *= COLUMNS;
        first = int(bounds[expert]), end = int(bounds[expert + 1]);
        steps = (end - first + DEPTH - 1) / DEPTH;
    }
    DEVICE bool more() const { return expert < experts; }
    DEVICE void next_tile() {
        at += gridDim.x, step = 0;
        locate();
    }
    /// To a tile that has steps.
    DEVICE void skip_empty() {
        while (more() && step >= steps) next_tile();
    }
};

extern "C" __global__ void __launch_bounds__(384, 1)
experts_weight_grad(const bf16* x, const bf16* dy, const i64* order, const i64* bounds, bf16* dw, int run_x, int run_dy, int P, int experts, int d, int f) {
    u8* staging = smem + STAGES * STAGE_BYTES;
    u64 *full = (u64*)(staging + STAGING_BYTES), *empty = full + STAGES;
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&full[i], 128), barrier_init(&empty[i], 8);
        barrier_init_done();
    }
    __syncthreads();
    Walk walk(bounds, experts, d, f);
    Ring<STAGES> ring;
    if (group == 0) {
        registers_drop<56>();
        // This thread copies chunk `chunk` of each panel of places row, row + 16, row + 32, row + 48 of a step.
        const int chunk = threadIdx.x & 7, row = threadIdx.x >> 3;
        const u32 to = smem_u32(smem) + panel_chunk(row, chunk);
        const Divisor of_x(run_x), of_dy(run_dy);
        u32 ahead[4];
        auto fetch = [&] {
            if (!walk.more()) return;
            const int i = walk.first + walk.step * DEPTH + row;
#pragma unroll
            for (int j = 0; j < 4; j++) ahead[j] = i + 16 * j < walk.end ? load_early_word(order + i + 16 * j) : ~0u;
        };
        walk.skip_empty();
        fetch();
        while (walk.more()) {
            const u8 *from_x[4], *from_dy[4];
            u32 bytes[4];
            const int columns = d - walk.column, rows = f - walk.row;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bytes[j] = ahead[j] == ~0u ? 0 : 16;  // past the last place: zeros
                const u32 place = bytes[j] ? ahead[j] : 0;
                from_x[j] = (const u8*)(x + walk.column + u64(of_x(place)) * d) + chunk * 16;
                from_dy[j] = (const u8*)(dy + walk.row + u64(of_dy(place)) * f) + chunk * 16;
            }
            walk.step++;
            walk.skip_empty();
            fetch();
            barrier_wait(&empty[ring.at], ring.parity ^ 1);
            const u32 stage = to + ring.at * STAGE_BYTES;
#pragma unroll
            for (int p = 0; p < 2; p++)
                if (64 * p < rows)
#pragma unroll
                    for (int j = 0; j < 4; j++) copy_async(stage + p * PANEL + j * 2048, from_dy[j] + p * 128, bytes[j]);
#pragma unroll
            for (int p = 0; p < 4; p++)
                if (64 * p < columns)
#pragma unroll
                    for (int j = 0; j < 4; j++) copy_async(stage + A_BYTES + p * PANEL + j * 2048, from_x[j] + p * 128, bytes[j]);
            copy_async_arrive(&full[ring.at]);
            ring.next();
        }
    } else {
        registers_raise<224>();
        const int part = group - 1;
        const u64 a_desc = panel_descriptor(smem_u32(smem) + part * PANEL, PANEL), b_desc = panel_descriptor(smem_u32(smem) + A_BYTES, PANEL);
        u8* my_staging = staging + (part * 4 + (warp & 3)) * STAGING_WARP;
        float acc[128];
        auto release = [&](u32 stage) {
            if (lane == 0) barrier_arrive(&empty[stage]);
        };
        for (Walk following = walk; walk.more(); walk = following) {
            const int row = walk.row + part * 64;
            const bool active = row < f;
            if (!active || walk.steps == 0) following.next_tile();  // else while the tensor cores work
            if (!active) {
                for (int s = 0; s < walk.steps; s++, ring.next()) {
                    barrier_wait(&full[ring.at], ring.parity);
                    release(ring.at);
                }
                continue;
            }
            u32 before = 0;
            for (int s = 0; s < walk.steps; s++, ring.next()) {
                barrier_wait(&full[ring.at], ring.parity);
                fence_async();  // the rows were written by ordinary copies
                const u64 a = advance(a_desc, ring.at * STAGE_BYTES), b = advance(b_desc, ring.at * STAGE_BYTES);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++) wgmma_ss<1, 1>(acc, advance(a, j * 2048), advance(b, j * 2048), s + j > 0);
                wgmma_commit();
                if (s > 0) {
                    wgmma_wait<1>();
                    release(before);
                } else following.next_tile();
                before = ring.at;
            }
            wgmma_wait<0>();
            if (walk.steps > 0) release(before);
            const bool any = walk.steps > 0;
            const int index = walk.expert * f + row + (warp & 3) * 16 + lane;
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_rows<128>(my_staging, dw, index, d, walk.column + 128 * h, [&](int i) { return any ? pack_bf16(acc[64 * h + 2 * i], acc[64 * h + 2 * i + 1]) : 0u; });
        }
    }
}
