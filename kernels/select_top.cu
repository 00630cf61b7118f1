// Indexer scores, their variance, and the exact selection of the best keys as a bit mask.
//
// Shapes   q [B,T,4,128], k [B,T,128] bf16 (4-D tensor maps (128, heads, T, B), boxes (64, 1, 128, 1) and
//          (64, 1, 64, 1), 128-byte swizzle); heed [B,T,4] fp32, already a sigmoid; bias [4] fp32; ema [1] fp32.
//          score [B,T,ld] fp32 scratch with ld = T rounded up to 64, written for columns s <= t only (and up
//          to the end of t's block); mask [B,T,words] u32, words = 2 ceil(T / 64), bit s % 32 of word s / 32;
//          variance [B,T] fp32; count [B,T] i32, the number selected; selected [B,T,T] u8, the mask as truth
//          values. select_given takes contiguous scores [B,T,T] fp32 and a budget [B,T] fp32 instead.
// Meaning  models/std/sparse_attention.llm and docs/ops.md `select_top`:
//            score_ts = sum_h heed_th sigmoid(scale q_th . k_s + bias_h)
//            variance over all T columns, a future column counting as 0
//            n = min(max(1, clamp(floor(base variance / max(ema, 1e-6)), low, high)), limit, t + 1)
//          the first `sinks` columns rank first in their own order, then by score; equal scores by column.
// Numerics products bf16 with fp32 accumulators; sigmoids fp32 with their argument clamped at -21 (below
//          that they are under 1e-9); one reciprocal for the four heads. Selection is exact on the fp32
//          scores: integer histograms, then a ranking of the last few candidates.
//          select_given ranks a NaN before all scores and takes -0 as 0.
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
// (0.045 ms) at T=8192. Measured 0.111 ms (NVIDIA H200, 2026-11-22). grid (T / 1024 rounded up, T / 128 rounded up, B), 288 threads, SCORE_SMEM bytes.
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
    const u64 q_desc = panel_descriptor(smem_u32(q_tile) + group * 8192), k_desc0 = panel_descriptor(smem_u32(k_tiles));
    const float slope = -LOG2E * scale;
    barrier_wait(q_full, 0);
    Ring<STAGES> ring;
    float z[HEADS][32];
    for (int j = tile0; j < tile1; j++) {
        barrier_wait(&full[ring.at], ring.parity);
        const u64 k_desc = advance(k_desc0, ring.at * 2 * K_PANEL);
        wgmma_fence();
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                wgmma_ss(z[h], advance(q_desc, (h * 2 + (i >> 2)) * Q_PANEL + (i & 3) * 32), advance(k_desc, (i >> 2) * K_PANEL + (i & 3) * 32), i > 0);
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
// indexer_select. Limit: memory, the causal half of the scores once (134 MB at T=8192: 0.032 ms); in fact
// the latency of its dozen block barriers: measured 0.109 ms (NVIDIA H200, 2026-11-22). The row is copied to shared memory and read twice: once for the
// statistics, once to list the columns above a level that about 2 n of a normal distribution exceed. The
// exact selection then works on the list; where the list does not hold n columns or overflows, on the row.
// grid (T, B), 256 threads, 4 (ld + words) bytes.
// ------------------------------------------------------------------------------------------------
constexpr int THREADS = 256, BINS = 512, LIST = 1024, RANKED = THREADS;

/// Order of floats as order of unsigned integers.
DEVICE u32 ordered(float x) {
    const u32 u = __float_as_uint(x);
    return u ^ (u32(int(u) >> 31) | 0x80000000u);
}

/// What both entry points are given.
struct Selection {
    const float* score;
    const float* budget;  // GIVEN
    const float* ema;     // not GIVEN, as the next three
    float base, low, high;
    int sinks, limit;
    u32* mask;      // or null
    u8* selected;   // or null
    float* variance;
    int* count;
    int T, ld, words;
};

template <bool GIVEN> DEVICE void select(const Selection& a) {
    __shared__ float part[4][8];
    __shared__ __align__(16) u32 bins[BINS];
    __shared__ u32 list_key[LIST], list_col[LIST], found[3], size, edge[2], scan[8];
    __shared__ u64 full;
    const int T = a.T, sinks = a.sinks;
    float* row = (float*)smem;
    u32* chosen = (u32*)(row + (GIVEN ? (T + 63) / 64 * 64 : a.ld));
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int t = gridDim.x - 1 - blockIdx.x, batch = blockIdx.y, n_columns = t + 1, n_vectors = (n_columns + 3) / 4;
    const float* from = a.score + (u64(batch) * T + t) * a.ld;
    if (GIVEN) {  // rows need not be aligned
        for (int i = tid; i < 4 * n_vectors; i += THREADS) {
            const float x = i < n_columns ? from[i] + 0.f : 0.f;
            row[i] = x == x ? x : __uint_as_float(0x7fffffff);
        }
        if (tid == 0) size = 0;
    } else if (tid == 0) {
        barrier_init(&full, 1);
        barrier_init_done();
        barrier_expect(&full, n_vectors * 16);
        bulk_load(row, from, n_vectors * 16, &full);
        size = 0;
    }
    for (int i = tid; i < a.words; i += THREADS) chosen[i] = 0;
    __syncthreads();
    if (!GIVEN) barrier_wait(&full, 0);

    const float pivot = row[0];
    float sum = 0.f, square = 0.f, top = -INF, bottom = INF;
    for (int i = tid; i < n_vectors; i += THREADS) {
        const float4 x = ((const float4*)row)[i];
        const float e[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const bool used = 4 * i + c < n_columns;
            const float d = used ? e[c] - pivot : 0.f;
            sum += d;
            square += d * d;
            if (used && 4 * i + c >= sinks) top = fmaxf(top, e[c]), bottom = fminf(bottom, e[c]);
        }
    }
    sum = warp_sum(sum), square = warp_sum(square), top = warp_max(top), bottom = -warp_max(-bottom);
    if (lane == 0) part[0][warp] = sum, part[1][warp] = square, part[2][warp] = top, part[3][warp] = bottom;
    __syncthreads();
    sum = part[0][0], square = part[1][0], top = part[2][0], bottom = part[3][0];
#pragma unroll
    for (int w = 1; w < 8; w++)
        sum += part[0][w], square += part[1][w], top = fmaxf(top, part[2][w]), bottom = fminf(bottom, part[3][w]);

    int n;
    if (GIVEN) {
        n = min(min(int(fminf(fmaxf(floorf(a.budget[u64(batch) * T + t]), 1.f), 1e9f)), a.limit), n_columns);
    } else {
        const float mean = (sum + n_columns * pivot) / T, off = mean - pivot;
        const float var = (square - 2.f * off * sum + n_columns * off * off + (T - n_columns) * mean * mean) / T;
        const float wanted = fminf(fmaxf(floorf(a.base * var / fmaxf(a.ema[0], 1e-6f)), a.low), a.high);
        n = min(min(max(1, int(wanted)), a.limit), n_columns);
        if (tid == 0) a.variance[u64(batch) * T + t] = var, a.count[u64(batch) * T + t] = n;
    }
    // Infinite scores and NaNs have no normal distribution to list them by, and no bounds but those of all keys.
    const bool wild = GIVEN && !(fabsf(sum) < INF);

    const int always = min(sinks, n);  // of the first columns; the others compete
    int need = n - always;
    if (n == n_columns) {
        for (int i = tid; i <= t >> 5; i += THREADS) chosen[i] = i < t >> 5 ? ~0u : ~0u >> (31 - (t & 31));
    } else {
        if (tid < always) atomicOr(&chosen[tid >> 5], 1u << (tid & 31));
        if (need > 0) {
            const float share = 2.f * need / (n_columns - sinks);
            float level = bottom;
            if (share < 0.4f) {  // the normal quantile, to a percent
                const float local = sum / n_columns, a = -__logf(2.f * share);
                level = pivot + local + sqrtf(fmaxf(square / n_columns - local * local, 0.f)) * (sqrtf(0.514f + 1.664f * a) - 0.717f) * 1.202f;
            }
            for (int i = tid; i < n_vectors && !wild; i += THREADS) {
                const float4 x = ((const float4*)row)[i];
                const float e[4] = {x.x, x.y, x.z, x.w};
                if (fmaxf(fmaxf(e[0], e[1]), fmaxf(e[2], e[3])) >= level) {
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        if (e[c] >= level && 4 * i + c < n_columns && 4 * i + c >= sinks) {
                            const u32 slot = atomicAdd(&size, 1u);
                            if (slot < LIST) list_key[slot] = ordered(e[c]), list_col[slot] = 4 * i + c;
                        }
                }
            }
            __syncthreads();
            const bool listed = size <= LIST && size >= u32(need);
            const int n_source = listed ? int(size) : n_columns;
            auto key_at = [&](int i) { return listed ? list_key[i] : ordered(row[i]); };
            auto column_at = [&](int i) { return listed ? list_col[i] : u32(i); };
            u32 lo = wild ? 0 : ordered(listed ? level : bottom), hi = wild ? ~0u : ordered(top), edge_key, edge_col;
            auto inside = [&](int i, u32 key) { return key >= lo && key <= hi && (listed || i >= sinks); };
            for (;;) {  // the range shrinks until few candidates, or only equal ones, are left
                const u32 range = hi - lo;
                const int shift = range < BINS ? 0 : 23 - __clz(range);
                __syncthreads();
                for (int i = tid; i < BINS; i += THREADS) bins[i] = 0;
                if (tid == 0) size = 0;
                __syncthreads();
                for (int i = tid; i < n_source; i += THREADS) {
                    const u32 key = key_at(i);
                    if (inside(i, key)) atomicAdd(&bins[(key - lo) >> shift], 1u);
                }
                __syncthreads();
                // Counts from the top bin down: thread x holds bins 2 (255 - x) and the one above.
                const int bin0 = BINS - 2 - 2 * tid;
                const u32 c0 = bins[bin0 + 1], c1 = bins[bin0];
                u32 before = c0 + c1;
#pragma unroll
                for (int o = 1; o < 32; o <<= 1) {
                    const u32 left = __shfl_up_sync(~0u, before, o);
                    if (lane >= o) before += left;
                }
                if (lane == 31) scan[warp] = before;
                __syncthreads();
                for (int w = 0; w < warp; w++) before += scan[w];
                before -= c0 + c1;
                if (before < u32(need) && before + c0 + c1 >= u32(need)) {
                    const bool upper = before + c0 >= u32(need);
                    found[0] = bin0 + upper, found[1] = upper ? before : before + c0, found[2] = upper ? c0 : c1;
                }
                __syncthreads();
                need -= int(found[1]);
                lo += found[0] << shift;
                hi = min(hi, lo + ((1u << shift) - 1));
                const u32 left = found[2];
                if (left <= RANKED) {  // rank them all; bins is free and takes key and column
                    for (int i = tid; i < n_source; i += THREADS) {
                        const u32 key = key_at(i);
                        if (inside(i, key)) {
                            const u32 slot = atomicAdd(&size, 1u);
                            bins[slot] = key, bins[RANKED + slot] = column_at(i);
                        }
                    }
                    __syncthreads();
                    if (tid < left) {
                        const u32 key = bins[tid], col = bins[RANKED + tid];
                        int rank = 0;
                        for (u32 x = 0; x < left; x++) rank += bins[x] > key || (bins[x] == key && bins[RANKED + x] < col);
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
                        for (int i = tid; i < n_source; i += THREADS) equal += inside(i, key_at(i)) && column_at(i) <= u32(mid);
                        for (int o = 16; o; o >>= 1) equal += __shfl_xor_sync(~0u, equal, o);
                        __syncthreads();
                        if (lane == 0) scan[warp] = equal;
                        __syncthreads();
                        equal = 0;
                        for (int w = 0; w < 8; w++) equal += scan[w];
                        if (equal >= need) to = mid;
                        else from = mid + 1;
                    }
                    edge_col = from;
                    break;
                }
            }
            for (int i = tid; i < n_source; i += THREADS) {
                const u32 key = key_at(i), col = column_at(i);
                if ((listed || i >= sinks) && (key > edge_key || (key == edge_key && col <= edge_col))) atomicOr(&chosen[col >> 5], 1u << (col & 31));
            }
        }
    }
    __syncthreads();
    if (a.mask) {
        u32* out = a.mask + (u64(batch) * T + t) * a.words;
        for (int i = tid; i < a.words; i += THREADS) out[i] = chosen[i];
    }
    if (a.selected) {
        u8* out = a.selected + (u64(batch) * T + t) * T;
        if (T % 4 == 0) {  // four truth values at once
            for (int i = tid; i < T / 4; i += THREADS) ((u32*)out)[i] = ((chosen[i >> 3] >> (4 * (i & 7)) & 15) * 0x00204081u) & 0x01010101u;
        } else {
            for (int i = tid; i < T; i += THREADS) out[i] = chosen[i >> 5] >> (i & 31) & 1;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) indexer_select(
    const float* score, const float* ema, float base, float low, float high, int sinks, int limit, u32* mask, u8* selected,
    float* variance, int* count, int T, int ld, int words)
{
    select<false>({score, nullptr, ema, base, low, high, sinks, limit, mask, selected, variance, count, T, ld, words});
}

// ------------------------------------------------------------------------------------------------
// select_given: the selection alone. Limit: memory, the causal half of the scores and the truth values once
// (0.05 ms at T=8192). grid (T, B), 256 threads, 4 (64 ceil(T / 64) + words) bytes.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(THREADS) select_given(
    const float* score, const float* budget, int sinks, int limit, u8* selected, int T, int words)
{
    select<true>({score, budget, nullptr, 0.f, 0.f, 0.f, sinks, limit, nullptr, selected, nullptr, nullptr, T, T, words});
}
