// Indexer scores, their variance, and the exact selection of the best keys as a bit mask.
//
// Shapes   q [B,T,4,128], k [B,T,128] bf16 (4-D tensor maps (128, heads, T, B), boxes (64, 1, 128, 1) and
//          (64, 1, 64, 1), 128-byte swizzle); heed [B,T,4] fp32, already a sigmoid; bias [4] fp32; ema [1] fp32.
//          score [B,T,ld] fp32 scratch with ld = T rounded up to 64, written for columns s <= t only (and up
//          to the end of t's block); mask [B,T,words] u32, words = ceil(T / 32), bit s % 32 of word s / 32;
//          variance [B,T] fp32; count [B,T] i32, the number selected.
// Meaning  models/std/sparse_attention.llm and docs/ops.md `select_top`:
//            score_ts = sum_h heed_th sigmoid(scale q_th . k_s + bias_h)
//            variance over all T columns, a future column counting as 0
//            n = min(max(1, clamp(floor(base variance / max(ema, 1e-6)), low, high)), limit, t + 1)
//          the first `sinks` columns rank first in their own order, then by score; equal scores by column.
// Numerics products bf16 with fp32 accumulators; sigmoids fp32 with their argument clamped at -21 (below
//          that they are under 1e-9); one reciprocal for the four heads. Selection is exact on the fp32
//          scores: integer histograms, then a ranking of the last few candidates.
// Outputs  all `=`. Integer atomics on counts only (their result has no order); no float atomics.
#include "copy.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

constexpr int HEADS = 4, CHANNELS = 128, QUERIES = 128, KEYS = 64;
constexpr int SEGMENT = 16;  // key tiles per block
constexpr int Q_PANEL = QUERIES * 128, K_PANEL = KEYS * 128;
constexpr int STAGES = 3;
constexpr int SCORE_SMEM = HEADS * 2 * Q_PANEL + STAGES * 2 * K_PANEL + 128;

// ------------------------------------------------------------------------------------------------
// indexer_score. Limit: 34 GFLOP for the causal half (0.05 ms) and 5 special functions per score
// (0.045 ms) at T=8192. grid (T / 1024 rounded up, T / 128 rounded up, B), 288 threads, SCORE_SMEM bytes.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(288, 1) indexer_score(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const float* heed, const float* bias, float scale,
    float* score, int T, int ld)
{
    u8* q_tile = smem;
    u8* k_tiles = smem + HEADS * 2 * Q_PANEL;
    u64* full = (u64*)(k_tiles + STAGES * 2 * K_PANEL);
    u64* empty = full + STAGES;
    u64* q_full = empty + STAGES;
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31;
    const int block = gridDim.y - 1 - blockIdx.y, batch = blockIdx.z;  // longest rows first
    const int row_end = min(T, (block + 1) * QUERIES);
    const int tile0 = blockIdx.x * SEGMENT, tile1 = min(tile0 + SEGMENT, (row_end + KEYS - 1) / KEYS);
    if (tile0 >= tile1) return;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) { barrier_init(&full[i], 1); barrier_init(&empty[i], 8); }
        barrier_init(q_full, 1);
        barrier_init_done();
    }
    __syncthreads();
    if (warp == 8) {
        if (lane == 0) {
            barrier_expect(q_full, HEADS * 2 * Q_PANEL);
            for (int i = 0; i < HEADS * 2; i++) tensor_load(q_tile + i * Q_PANEL, q, 64 * (i & 1), i >> 1, block * QUERIES, batch, q_full);
            Ring<STAGES> ring;
            for (int j = tile0; j < tile1; j++) {
                if (j >= tile0 + STAGES) barrier_wait(&empty[ring.at], ring.parity ^ 1);
                barrier_expect(&full[ring.at], 2 * K_PANEL);
                for (int i = 0; i < 2; i++) tensor_load(k_tiles + (ring.at * 2 + i) * K_PANEL, k, 64 * i, 0, j * KEYS, batch, &full[ring.at]);
                ring.next();
            }
        }
        return;
    }
    const int group = warp >> 2;
    const int row0 = block * QUERIES + warp * 16 + (lane >> 2), col0 = 2 * (lane & 3);
    float w[2][HEADS], offset[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        offset[h] = -LOG2E * bias[h];
#pragma unroll
        for (int e = 0; e < 2; e++) w[e][h] = row0 + 8 * e < T ? heed[(u64(batch) * T + row0 + 8 * e) * HEADS + h] : 0.f;
    }
    const float slope = -LOG2E * scale;
    barrier_wait(q_full, 0);
    Ring<STAGES> ring;
    float z[HEADS][32];
    for (int j = tile0; j < tile1; j++) {
        barrier_wait(&full[ring.at], ring.parity);
        const u32 k_at = smem_u32(k_tiles) + ring.at * 2 * K_PANEL;
        wgmma_fence();
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                wgmma_ss(z[h], panel_descriptor(smem_u32(q_tile) + (h * 2 + (i >> 2)) * Q_PANEL + group * 8192 + (i & 3) * 32),
                         panel_descriptor(k_at + (i >> 2) * K_PANEL + (i & 3) * 32), i > 0);
        wgmma_commit();
        wgmma_wait<0>();
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty[ring.at]);
        ring.next();
#pragma unroll
        for (int c = 0; c < 8; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float out[2];
#pragma unroll
                for (int x = 0; x < 2; x++) {
                    const int at = 4 * c + 2 * e + x;
                    float d[HEADS];
#pragma unroll
                    for (int h = 0; h < HEADS; h++) d[h] = 1.f + exp2_fast(fminf(z[h][at] * slope + offset[h], 30.f));
                    const float d01 = d[0] * d[1], d23 = d[2] * d[3];
                    const float n01 = w[e][0] * d[1] + w[e][1] * d[0], n23 = w[e][2] * d[3] + w[e][3] * d[2];
                    out[x] = (n01 * d23 + n23 * d01) * rcp_fast(d01 * d23);
                }
                const int row = row0 + 8 * e;
                if (row < T) *(float2*)&score[(u64(batch) * T + row) * ld + j * KEYS + 8 * c + col0] = make_float2(out[0], out[1]);
            }
    }
}

// ------------------------------------------------------------------------------------------------
// indexer_select. Limit: memory, the causal half of the scores once (134 MB at T=8192: 0.032 ms), in fact
// instruction issue. grid (T, B), 256 threads. SELECT_COLUMNS bounds T (a row lives in registers).
// ------------------------------------------------------------------------------------------------
#ifndef SELECT_COLUMNS
#define SELECT_COLUMNS 8192
#endif
constexpr int THREADS = 256, ROW = SELECT_COLUMNS / THREADS, BINS = 1024, RANKED = THREADS;

/// Order of floats as order of unsigned integers.
DEVICE u32 ordered(float x) {
    const u32 u = __float_as_uint(x);
    return u ^ (u32(int(u) >> 31) | 0x80000000u);
}

/// Three reductions over a block of 256 threads at the cost of one; all threads get the same bits.
template <class A, class B, class C>
DEVICE void block_reduce3(float& a, float& b, float& c, A op_a, B op_b, C op_c, float (&part)[3][8]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        a = op_a(a, __shfl_xor_sync(~0u, a, o));
        b = op_b(b, __shfl_xor_sync(~0u, b, o));
        c = op_c(c, __shfl_xor_sync(~0u, c, o));
    }
    __syncthreads();
    if (lane == 0) part[0][warp] = a, part[1][warp] = b, part[2][warp] = c;
    __syncthreads();
    a = part[0][0], b = part[1][0], c = part[2][0];
#pragma unroll
    for (int w = 1; w < 8; w++) a = op_a(a, part[0][w]), b = op_b(b, part[1][w]), c = op_c(c, part[2][w]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) indexer_select(
    const float* score, const float* ema, float base, float low, float high, int sinks, int limit, u32* mask, float* variance,
    int* count, int T, int ld, int words)
{
    __shared__ float part[3][8];
    __shared__ u32 bins[BINS], found[3], list_size, list_key[RANKED], list_col[RANKED], edge[2];
    __shared__ u32 scan[8];
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int t = gridDim.x - 1 - blockIdx.x, batch = blockIdx.y;
    const float* row = score + (u64(batch) * T + t) * ld;
    const int used = t / THREADS + 1;  // strides of THREADS columns that hold a candidate
    float v[ROW];
    float sum = 0.f, top = -INF, bottom = INF;
#pragma unroll
    for (int i = 0; i < ROW; i++)
        if (i < used) v[i] = i * THREADS + tid <= t ? row[i * THREADS + tid] : 0.f;
#pragma unroll
    for (int i = 0; i < ROW; i++)
        if (i < used) {
            const int col = i * THREADS + tid;
            sum += v[i];
            if (col <= t && col >= sinks) top = fmaxf(top, v[i]), bottom = fminf(bottom, v[i]);
        }
    auto add = [](float a, float b) { return a + b; };
    auto greater = [](float a, float b) { return fmaxf(a, b); };
    auto less = [](float a, float b) { return fminf(a, b); };
    block_reduce3(sum, top, bottom, add, greater, less, part);
    const float mean = sum / T, center = sum / (t + 1), shelf = center + 0.3f * (top - center);
    float square = 0.f, above_center = 0.f, above_shelf = 0.f;
#pragma unroll
    for (int i = 0; i < ROW; i++)
        if (i < used) {
            const int col = i * THREADS + tid;
            const float d = v[i] - mean;
            if (col <= t) square += d * d;
            if (col <= t && col >= sinks) above_center += v[i] >= center ? 1.f : 0.f, above_shelf += v[i] >= shelf ? 1.f : 0.f;
        }
    block_reduce3(square, above_center, above_shelf, add, add, add, part);
    const float var = (square + float(T - 1 - t) * mean * mean) / T;
    const float wanted = fminf(fmaxf(floorf(base * var / fmaxf(ema[0], 1e-6f)), low), high);
    const int n = min(min(max(1, int(wanted)), limit), t + 1);
    if (tid == 0) variance[u64(batch) * T + t] = var, count[u64(batch) * T + t] = n;

    // Selected: columns below `always`; of the others those with key > edge_key, or equal to it and column <= edge_col.
    const int always = min(min(sinks, n), t + 1);
    int need = n - always;
    u32 edge_key = 0xffffffffu, edge_col = 0;
    if (n == t + 1) edge_key = 0;
    else if (need > 0) {
        u32 lo = ordered(above_shelf >= need ? shelf : above_center >= need ? center : bottom), hi = ordered(top);
        auto inside = [&](int i, u32& key) {
            const int col = i * THREADS + tid;
            key = ordered(v[i]);
            return col <= t && col >= sinks && key >= lo && key <= hi;
        };
        for (;;) {  // the range shrinks until few candidates, or only equal ones, are left
            const u32 range = hi - lo;
            const int shift = range < BINS ? 0 : 22 - __clz(range);
            __syncthreads();
            for (int i = tid; i < BINS; i += THREADS) bins[i] = 0;
            if (tid == 0) list_size = 0;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < ROW; i++)
                if (i < used) {
                    u32 key;
                    if (inside(i, key)) atomicAdd(&bins[(key - lo) >> shift], 1u);
                }
            __syncthreads();
            // Counts from the top bin down: thread x holds bins 4 (255 - x) .. + 3.
            const int bin0 = BINS - 4 - 4 * tid;
            const uint4 b = *(const uint4*)&bins[bin0];
            u32 mine = (b.x + b.y) + (b.z + b.w), before = mine;
#pragma unroll
            for (int o = 1; o < 32; o <<= 1) {
                const u32 left = __shfl_up_sync(~0u, before, o);
                if (lane >= o) before += left;
            }
            if (lane == 31) scan[warp] = before;
            __syncthreads();
            for (int w = 0; w < warp; w++) before += scan[w];
            before -= mine;
            if (before < u32(need) && before + mine >= u32(need)) {
                const u32 c[4] = {b.w, b.z, b.y, b.x};
                u32 at = before;
                for (int e = 0; e < 4; e++) {
                    if (at + c[e] >= u32(need)) {
                        found[0] = bin0 + 3 - e, found[1] = at, found[2] = c[e];
                        break;
                    }
                    at += c[e];
                }
            }
            __syncthreads();
            need -= int(found[1]);
            lo += found[0] << shift;
            hi = min(hi, lo + ((1u << shift) - 1));
            const u32 left = found[2];
            if (left <= RANKED) {
#pragma unroll
                for (int i = 0; i < ROW; i++)
                    if (i < used) {
                        u32 key;
                        if (inside(i, key)) {
                            const u32 slot = atomicAdd(&list_size, 1u);
                            list_key[slot] = key, list_col[slot] = i * THREADS + tid;
                        }
                    }
                __syncthreads();
                if (tid < left) {
                    const u32 key = list_key[tid], col = list_col[tid];
                    int rank = 0;
                    for (u32 x = 0; x < left; x++) rank += list_key[x] > key || (list_key[x] == key && list_col[x] < col);
                    if (rank == need - 1) edge[0] = key, edge[1] = col;
                }
                __syncthreads();
                edge_key = edge[0], edge_col = edge[1];
                break;
            }
            if (lo == hi) {  // more equal scores than can be ranked: find the column by bisection
                edge_key = lo;
                int from = 0, to = t;
                while (from < to) {
                    const int mid = (from + to) >> 1;
                    int equal = 0;
#pragma unroll
                    for (int i = 0; i < ROW; i++)
                        if (i < used) {
                            u32 key;
                            equal += inside(i, key) && i * THREADS + tid <= mid;
                        }
                    float a = float(equal), x = 0.f, y = 0.f;
                    block_reduce3(a, x, y, add, add, add, part);
                    if (int(a) >= need) to = mid;
                    else from = mid + 1;
                }
                edge_col = from;
                break;
            }
        }
    }
    u32* out = mask + (u64(batch) * T + t) * words;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROW; i++) {
        const int col = i * THREADS + tid;
        bool selected = false;
        if (i < used) {
            const u32 key = ordered(v[i]);
            selected = col <= t && (col < always || (col >= sinks && (key > edge_key || (key == edge_key && (u32(col) <= edge_col || n == t + 1)))));
        }
        const u32 word = __ballot_sync(~0u, selected);
        if (lane == 0) bins[i * 8 + warp] = word;
    }
    __syncthreads();
    for (int i = tid; i < words; i += THREADS) out[i] = bins[i];
}
