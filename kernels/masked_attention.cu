// Softmax attention under a bit mask, over dense tiles of 64 x 64, forward and backward.
//
// Shapes   q, k, v, o, do, dq, dk, dv [B,T,H,D] bf16, D = ATTENTION_DIM (256), as 4-D tensor maps (D, H, T, B), 128-byte swizzle,
//          box (64, 1, 64, 1) except q of the forward kernel, (64, 1, 128, 1). mask [B,T,words] u32 shared by
//          all heads, words = 2 ceil(T / 64); any bits below T may be set. lse, delta [B,H,64 ceil(T / 64)] fp32.
// Meaning  docs/ops.md `masked_attention`, with `scale` on the scores (1 where the queries carry it);
//          a row with nothing allowed gives 0 and passes no gradient. lse is in units of log 2.
// Numerics bf16 products, fp32 accumulators and softmax; probabilities and their gradient rounded to bf16
//          as operands.
// Outputs  all `=`. No atomics: dq is a pass of its own over the stored gradient of the scores, so every
//          sum has a fixed order.
//
// Kernels  mask_pack                    truth values [B,T,T] to the bits of mask
//          mask_tiles                   which tiles hold a bit, and the mask transposed (once for all heads)
//          mask_columns                 the same flags of tiles, by tile of keys; for the gradient alone
//          attention_forward            128 queries and a head per block
//          attention_delta              rowsum(do * o)
//          attention_backward_keys      64 keys and a head per block: dk, dv, and the tiles of d(score) in
//                                       scratch [B,H,slots] of 8 KB, at `score_slot`
//          attention_backward_queries   128 queries and a head per block: dq
// Empty tiles are neither computed, nor stored, nor read: what a causal mask saves comes from its bits alone. `causal` is a
// claim that no bit is set at s > t. It halves the scratch, and `mask_pack` stops the program where it is false.
#include "copy.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

#ifndef ATTENTION_DIM
#define ATTENTION_DIM 256
#endif
constexpr int TILE = 64, DIM = ATTENTION_DIM, PANELS = DIM / 64;  // DIM: 64, 128 or 256
constexpr int PANEL = TILE * 128;
constexpr int TILE_BYTES = PANELS * PANEL;  // 64 rows of 256

/// The non-empty key tiles of one to three neighbouring query tiles, in order.
template <int N> struct Tiles {
    const u32* rows;  // tiles[first query tile]
    int n_rows, words, word;
    u32 bits;
    DEVICE Tiles(const u32* tiles, int first, int n_tiles, int words) : rows(tiles + u64(first) * words), words(words), word(-1), bits(0) {
        n_rows = min(N, n_tiles - first);
    }
    DEVICE int next() {
        while (!bits) {
            if (++word >= words) return -1;
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i < n_rows) bits |= rows[i * words + word];
        }
        const int at = __ffs(bits) - 1;
        bits &= bits - 1;
        return word * 32 + at;
    }
};

/// Where d(score) of tile (qt, kt) lies, in tiles; under a causal mask those above the diagonal have no place.
DEVICE u64 score_slot(int causal, int n, int qt, int kt) { return causal ? u64(qt) * (qt + 1) / 2 + kt : u64(qt) * n + kt; }
DEVICE u64 score_slots(int causal, int n) { return causal ? u64(n) * (n + 1) / 2 : u64(n) * n; }

// ------------------------------------------------------------------------------------------------
// mask_pack. Limit: memory, a byte of every query and key (67 MB at T=8192: 0.016 ms). Where the mask is claimed to
// be causal it stops the program at a query that may see a later key, whose d(score) would lie in another's place.
// grid (T, B), 256 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(256) mask_pack(const u8* allowed, u32* mask, int causal, int T, int words) {
    const int t = blockIdx.x, batch = blockIdx.y;
    const u64 row = u64(batch) * T + t;
    const u8* from = allowed + row * T;
    for (int base = 0; base < words * 8; base += 256) {  // four columns of a thread, a word of eight threads
        const int group = base + threadIdx.x, s = 4 * group;
        u32 four = 0;
        if (T % 4 == 0) {
            if (s < T) four = *(const u32*)(from + s);
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (s + e < T) four |= u32(from[s + e]) << (8 * e);
        }
        u32 bits = ((four & 0x01010101u) * 0x01020408u) >> 24;
        if (causal && s + 3 > t && bits >> max(t + 1 - s, 0)) __trap();
        bits <<= 4 * (group & 7);
#pragma unroll
        for (int o = 1; o < 8; o <<= 1) bits |= __shfl_xor_sync(~0u, bits, o);
        if ((group & 7) == 0 && group < words * 8) mask[row * words + group / 8] = bits;
    }
}

// ------------------------------------------------------------------------------------------------
// mask_tiles. Limit: memory, mask read and written once (17 MB at T=8192: 0.004 ms). Measured 0.021 ms (NVIDIA H200,
// 2026-11-22).
// tiles [B,n,tile_words], n = ceil(T / 64), tile_words = ceil(n / 32): bit kt of row qt. transposed
// [B,64 n,words]: bit t of row s. grid (n, tile_words, B), 256 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(256) mask_tiles(const u32* mask, u32* tiles, u32* transposed, int T, int words, int tile_words) {
    __shared__ u32 used[32];
    const int qt = blockIdx.x, n = gridDim.x, group = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    mask += u64(batch) * T * words;
    uint2 w[4][2];  // tiles warp, warp + 8, ..: rows lane and lane + 32
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int t = qt * TILE + h * 32 + lane, kt = group * 32 + i * 8 + warp;
            w[i][h] = t < T && kt < n ? *(const uint2*)&mask[u64(t) * words + 2 * kt] : make_uint2(0, 0);
        }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int kt = group * 32 + i * 8 + warp;
        const bool any = __any_sync(~0u, (w[i][0].x | w[i][0].y | w[i][1].x | w[i][1].y) != 0);
        if (lane == 0) used[i * 8 + warp] = any;
        uint2 out[2] = {};
        if (any)
#pragma unroll 8
            for (int b = 0; b < 32; b++) {
                const uint2 x = make_uint2(__ballot_sync(~0u, w[i][0].x >> b & 1), __ballot_sync(~0u, w[i][1].x >> b & 1));
                const uint2 y = make_uint2(__ballot_sync(~0u, w[i][0].y >> b & 1), __ballot_sync(~0u, w[i][1].y >> b & 1));
                if (lane == b) out[0] = x, out[1] = y;
            }
        if (kt < n)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u64 s = u64(batch) * n * TILE + kt * TILE + h * 32 + lane;
                *(uint2*)&transposed[s * words + 2 * qt] = out[h];
            }
    }
    __syncthreads();
    if (warp == 0) {
        const u32 flags = __ballot_sync(~0u, used[lane] != 0);
        if (lane == 0) tiles[(u64(batch) * n + qt) * tile_words + group] = flags;
    }
}

// ------------------------------------------------------------------------------------------------
// mask_columns. Limit: launch; tiles read and written once (2 KB at T=8192).
// columns [B,n,tile_words]: bit qt of row kt. grid (tile_words, tile_words, B), 32 threads: 32 x 32 bits turned.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(32) mask_columns(const u32* tiles, u32* columns, int n, int tile_words) {
    const int lane = threadIdx.x, qt = blockIdx.x * 32 + lane, kt = blockIdx.y * 32 + lane;
    const u64 batch = u64(blockIdx.z) * n;
    const u32 row = qt < n ? tiles[(batch + qt) * tile_words + blockIdx.y] : 0;
    u32 column = 0;
#pragma unroll 8
    for (int b = 0; b < 32; b++) {
        const u32 turned = __ballot_sync(~0u, row >> b & 1);
        if (lane == b) column = turned;
    }
    if (kt < n) columns[(batch + kt) * tile_words + blockIdx.x] = column;
}

// ------------------------------------------------------------------------------------------------
// attention_forward. Limit: tensor, 4 T^2/2 H 256 FLOP of the causal half (550 GFLOP at T=8192, H=16: 0.80 ms).
// Measured 0.842 ms with every causal tile occupied, 653 TFLOP/s (NVIDIA H200, 2026-11-22).
// grid (T / 128 rounded up, H, B), 384 threads (a warpgroup loads, two compute 64 queries each), FORWARD_SMEM.
// ------------------------------------------------------------------------------------------------
constexpr int STAGES = 2;
constexpr int FORWARD_SMEM = 2 * TILE_BYTES + STAGES * 2 * TILE_BYTES + 128;

extern "C" __global__ void __launch_bounds__(384, 1) attention_forward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap o, const u32* mask, const u32* tiles, float scale, float* lse, int T, int H, int words, int tile_words)
{
    u8* q_tile = smem;  // panels of 128 rows
    u8* kv = smem + 2 * TILE_BYTES;
    u64* k_full = (u64*)(kv + STAGES * 2 * TILE_BYTES);
    u64 *v_full = k_full + STAGES, *k_empty = v_full + STAGES, *v_empty = k_empty + STAGES, *q_full = v_empty + STAGES;
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31, group = warp >> 2;
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, batch = blockIdx.z;  // longest first
    const int n = (T + TILE - 1) / TILE;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&k_full[i], 1), barrier_init(&v_full[i], 1);
            barrier_init(&k_empty[i], 8), barrier_init(&v_empty[i], 8);
        }
        barrier_init(q_full, 1);
        barrier_init_done();
    }
    __syncthreads();
    Tiles<2> list(tiles + u64(batch) * n * tile_words, 2 * block, n, tile_words);
    if (group == 0) {
        registers_drop<24>();
        if (tid == 0) {
            barrier_expect(q_full, 2 * TILE_BYTES);
            for (int p = 0; p < PANELS; p++) tensor_load(q_tile + p * 2 * PANEL, q, p * 64, head, block * 2 * TILE, batch, q_full);
            Ring<STAGES> ring;
            int i = 0;
            for (int j = list.next(); j >= 0; j = list.next(), i++) {
                u8* to = kv + ring.at * 2 * TILE_BYTES;
                if (i >= STAGES) barrier_wait(&k_empty[ring.at], ring.parity ^ 1);
                barrier_expect(&k_full[ring.at], TILE_BYTES);
                for (int p = 0; p < PANELS; p++) tensor_load(to + p * PANEL, k, p * 64, head, j * TILE, batch, &k_full[ring.at]);
                if (i >= STAGES) barrier_wait(&v_empty[ring.at], ring.parity ^ 1);
                barrier_expect(&v_full[ring.at], TILE_BYTES);
                for (int p = 0; p < PANELS; p++) tensor_load(to + TILE_BYTES + p * PANEL, v, p * 64, head, j * TILE, batch, &v_full[ring.at]);
                ring.next();
            }
        }
    } else {
        registers_raise<240>();
        const int part = group - 1, row0 = block * 2 * TILE + part * TILE + (warp & 3) * 16 + (lane >> 2), shift = 2 * (lane & 3);
        const u32 q_at = smem_u32(q_tile) + part * PANEL;
        // One descriptor serves both majors: K-major does not look at the distance of panels.
        const u64 q_desc = panel_descriptor(q_at), kv_desc = panel_descriptor(smem_u32(kv), PANEL);
        const u32* mask0 = mask + (u64(batch) * T + row0) * words;
        float acc[DIM / 2], s[32], top[2] = {-INF, -INF}, sum[2] = {0.f, 0.f};
        u32 p[16];
        uint2 w[2];
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) acc[i] = 0.f;
        auto fetch = [&](int j) {
#pragma unroll
            for (int h = 0; h < 2; h++) w[h] = row0 + 8 * h < T ? *(const uint2*)&mask0[u64(8 * h) * words + 2 * j] : make_uint2(0, 0);
        };
        auto scores = [&](u32 stage) {
            const u64 k_desc = advance(kv_desc, stage * 2 * TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < DIM / 16; i++)
                wgmma_ss(s, advance(q_desc, (i >> 2) * 2 * PANEL + (i & 3) * 32), advance(k_desc, (i >> 2) * PANEL + (i & 3) * 32), i > 0);
            wgmma_commit();
        };
        auto values = [&](u32 stage) {
            const u64 v_desc = advance(kv_desc, (stage * 2 + 1) * TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < TILE / 16; i++)
                wgmma_rs<1>(acc, p + 4 * i, advance(v_desc, i * 2048), 1);
            wgmma_commit();
        };
        // Turns s into probabilities relative to the running maximum; returns the factors of what came before.
        auto soften = [&](float (&fix)[2]) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 bits[2] = {w[h].x >> shift, w[h].y >> shift};
                float m = -INF;
#pragma unroll
                for (int j = 0; j < 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& x = s[4 * j + 2 * h + e];
                        x = bits[j >> 2] & (1u << (8 * (j & 3) + e)) ? x : -INF;
                        m = fmaxf(m, x);
                    }
                m = fmaxf(top[h], quad_max(m));
                const float base = m == -INF ? 0.f : m * scale;
                fix[h] = exp2_fast(top[h] * scale - base);
                top[h] = m;
                float add = 0.f;
#pragma unroll
                for (int j = 0; j < 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& x = s[4 * j + 2 * h + e];
                        x = exp2_fast(x * scale - base);
                        add += x;
                    }
                sum[h] = sum[h] * fix[h] + add;
            }
        };
        int j = list.next();
        if (j >= 0) {
            Ring<STAGES> k_ring, v_ring;
            float fix[2];
            fetch(j);
            barrier_wait(q_full, 0);
            barrier_wait(&k_full[0], 0);
            scores(0);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(&k_empty[0]);
            k_ring.next();
            soften(fix);
            pack_operand(p, s);
            for (j = list.next(); j >= 0; j = list.next()) {
                fetch(j);
                barrier_wait(&k_full[k_ring.at], k_ring.parity);
                scores(k_ring.at);
                barrier_wait(&v_full[v_ring.at], v_ring.parity);
                values(v_ring.at);
                wgmma_wait<1>();
                if (lane == 0) barrier_arrive(&k_empty[k_ring.at]);
                k_ring.next();
                soften(fix);
                wgmma_wait<0>();
                if (lane == 0) barrier_arrive(&v_empty[v_ring.at]);
                v_ring.next();
                pack_operand(p, s);
#pragma unroll
                for (int i = 0; i < DIM / 2; i++) acc[i] *= fix[i >> 1 & 1];
            }
            barrier_wait(&v_full[v_ring.at], v_ring.parity);
            values(v_ring.at);
            wgmma_wait<0>();
        } else barrier_wait(q_full, 0);
        float inverse[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float total = quad_sum(sum[h]);
            const bool any = total > 0.f;
            inverse[h] = any ? 1.f / total : 0.f;
            if ((lane & 3) == 0 && row0 + 8 * h < T)
                lse[u64(batch * H + head) * n * TILE + row0 + 8 * h] = any ? top[h] * scale + __log2f(total) : INF;
        }
        // This group's rows of q are consumed; they take its output.
        const int matrix = lane >> 3;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            u32 f[4];
#pragma unroll
            for (int e = 0; e < 4; e++) f[e] = pack_bf16(acc[8 * i + 2 * e] * inverse[e & 1], acc[8 * i + 2 * e + 1] * inverse[e & 1]);
            stmatrix(q_at + (i >> 2) * 2 * PANEL + panel_chunk((warp & 3) * 16 + (matrix & 1) * 8 + (lane & 7), 2 * (i & 3) + (matrix >> 1)), f);
        }
        fence_async();
        named_barrier(1 + part, 128);
        if ((tid & 127) == 0) {
            for (int i = 0; i < PANELS; i++)
                tensor_store(o, q_tile + part * PANEL + i * 2 * PANEL, i * 64, head, block * 2 * TILE + part * TILE, batch);
            store_commit();
            store_wait_read<0>();
        }
    }
}

// ------------------------------------------------------------------------------------------------
// attention_delta. Limit: memory, do and o once (134 MB at T=8192, H=16: 0.031 ms). Measured 0.042 ms (NVIDIA H200, 2026-11-22).
// A warp per (t, h), also of the padding rows, which get 0. grid (64 n H / 8, B), 256 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(256) attention_delta(const bf16* o, const bf16* d_out, float* delta, int T, int H) {
    const int n = (T + TILE - 1) / TILE, lane = threadIdx.x & 31;
    const int row = blockIdx.x * 8 + (threadIdx.x >> 5), t = row / H, head = row - t * H;
    float x = 0.f;
    if (t < T && lane * 8 < DIM) {
        const u64 at = ((u64(blockIdx.y) * T + t) * H + head) * DIM + lane * 8;
        const uint4 a = *(const uint4*)(o + at), b = *(const uint4*)(d_out + at);
        const u32 as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int e = 0; e < 4; e++) x += bf16_lo(as[e]) * bf16_lo(bs[e]) + bf16_hi(as[e]) * bf16_hi(bs[e]);
    }
    x = warp_sum(x);
    if (lane == 0 && t < n * TILE) delta[(u64(blockIdx.y) * H + head) * n * TILE + t] = x;
}

// ------------------------------------------------------------------------------------------------
// attention_backward_keys. Limit: tensor, 8 T^2/2 H 256 FLOP of the causal half (1100 GFLOP at T=8192, H=16: 1.6 ms).
// Measured 1.674 ms, 657 TFLOP/s (NVIDIA H200, 2026-11-22). A column that every query selects is one block's
// work, which shows only where most tiles are empty.
// One warpgroup loads; one computes the probabilities and dv, one d(score) and dk. Everything is
// transposed (keys are the rows), so both products that follow take their A operand from registers.
// grid (n, H, B), 384 threads, KEYS_SMEM.
// ------------------------------------------------------------------------------------------------
constexpr int KEYS_SMEM = 2 * TILE_BYTES + STAGES * 2 * TILE_BYTES + 3 * PANEL + STAGES * 512 + 128;

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_keys(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap d_out, const __grid_constant__ TensorMap dk, const __grid_constant__ TensorMap dv,
    const u32* transposed, const u32* columns, const float* lse, const float* delta, float scale, float out_scale, u8* d_scores,
    int causal, int T, int H, int words, int tile_words)
{
    u8 *k_tile = smem, *v_tile = smem + TILE_BYTES, *ring_tiles = smem + 2 * TILE_BYTES;
    u8* share = ring_tiles + STAGES * 2 * TILE_BYTES;  // two buffers of probabilities, as registers
    u8* staging = share + 2 * PANEL;
    float* rows = (float*)(staging + PANEL);  // per stage: lse [64], delta [64]
    u64* q_full = (u64*)(rows + STAGES * 128);
    u64 *do_full = q_full + STAGES, *q_empty = do_full + STAGES, *do_empty = q_empty + STAGES;
    u64 *p_full = do_empty + STAGES, *p_empty = p_full + 2, *kv_full = p_empty + 2;
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31, group = warp >> 2;
    const int kt = blockIdx.x, head = blockIdx.y, batch = blockIdx.z, n = gridDim.x;
    const u64 bh = u64(batch) * H + head;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&q_full[i], 1), barrier_init(&do_full[i], 1);
            barrier_init(&q_empty[i], 8), barrier_init(&do_empty[i], 8);
            barrier_init(&p_full[i], 128), barrier_init(&p_empty[i], 128);
        }
        barrier_init(kv_full, 1);
        barrier_init_done();
    }
    __syncthreads();
    Tiles<1> list(columns + u64(batch) * n * tile_words, kt, n, tile_words);  // the query tiles that meet these keys
    if (group == 0) {
        registers_drop<24>();
        if (tid == 0) {
            barrier_expect(kv_full, 2 * TILE_BYTES);
            for (int p = 0; p < PANELS; p++) {
                tensor_load(k_tile + p * PANEL, k, p * 64, head, kt * TILE, batch, kv_full);
                tensor_load(v_tile + p * PANEL, v, p * 64, head, kt * TILE, batch, kv_full);
            }
            Ring<STAGES> ring;
            int i = 0;
            for (int qt = list.next(); qt >= 0; qt = list.next(), i++) {
                u8* to = ring_tiles + ring.at * 2 * TILE_BYTES;
                if (i >= STAGES) barrier_wait(&q_empty[ring.at], ring.parity ^ 1);
                barrier_expect(&q_full[ring.at], TILE_BYTES + 256);
                for (int p = 0; p < PANELS; p++) tensor_load(to + p * PANEL, q, p * 64, head, qt * TILE, batch, &q_full[ring.at]);
                bulk_load(rows + ring.at * 128, lse + bh * n * TILE + qt * TILE, 256, &q_full[ring.at]);
                if (i >= STAGES) barrier_wait(&do_empty[ring.at], ring.parity ^ 1);
                barrier_expect(&do_full[ring.at], TILE_BYTES + 256);
                for (int p = 0; p < PANELS; p++) tensor_load(to + TILE_BYTES + p * PANEL, d_out, p * 64, head, qt * TILE, batch, &do_full[ring.at]);
                bulk_load(rows + ring.at * 128 + 64, delta + bh * n * TILE + qt * TILE, 256, &do_full[ring.at]);
                ring.next();
            }
        }
    } else {
        registers_raise<240>();
        const int lwarp = warp & 3, ltid = tid & 127, matrix = lane >> 3, col0 = 2 * (lane & 3);
        const u32 own = smem_u32(group == 1 ? k_tile : v_tile);
        const u64 own_desc = panel_descriptor(own), ring_desc = panel_descriptor(smem_u32(ring_tiles), PANEL);
        float acc[DIM / 2], s[32];
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) acc[i] = 0.f;
        Ring<STAGES> ring;
        barrier_wait(kv_full, 0);
        auto product = [&](u64 tile) {  // own [64 keys][256] times tile [64 queries][256]^T
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < DIM / 16; i++)
                wgmma_ss(s, advance(own_desc, (i >> 2) * PANEL + (i & 3) * 32), advance(tile, (i >> 2) * PANEL + (i & 3) * 32), i > 0);
            wgmma_commit();
            wgmma_wait<0>();
        };
        auto accumulate = [&](const u32 (&f)[16], u64 tile) {
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < TILE / 16; i++) wgmma_rs<1>(acc, f + 4 * i, advance(tile, i * 2048), 1);
            wgmma_commit();
        };
        u32 f[16];
        if (group == 1) {
            const u32* mask0 = transposed + (u64(batch) * n * TILE + kt * TILE + lwarp * 16 + (lane >> 2)) * words;
            for (int qt = list.next(), i = 0; qt >= 0; qt = list.next(), i++) {
                uint2 w[2];
#pragma unroll
                for (int h = 0; h < 2; h++) w[h] = *(const uint2*)&mask0[u64(8 * h) * words + 2 * qt];
                const u64 q_desc = advance(ring_desc, ring.at * 2 * TILE_BYTES);
                barrier_wait(&q_full[ring.at], ring.parity);
                product(q_desc);
                const float* l = rows + ring.at * 128;
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float2 base = *(const float2*)&l[8 * j + col0];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const u32 bits = (j < 4 ? w[h].x : w[h].y) >> col0;
                        const float a = exp2_fast(s[4 * j + 2 * h] * scale - base.x), b = exp2_fast(s[4 * j + 2 * h + 1] * scale - base.y);
                        f[2 * j + h] = pack_bf16(bits & (1u << (8 * (j & 3))) ? a : 0.f, bits & (2u << (8 * (j & 3))) ? b : 0.f);
                    }
                }
                __syncwarp();
                if (lane == 0) barrier_arrive(&q_empty[ring.at]);
                uint4* to = (uint4*)(share + (i & 1) * PANEL);
                if (i >= 2) barrier_wait(&p_empty[i & 1], (i >> 1) & 1 ^ 1);
#pragma unroll
                for (int x = 0; x < 4; x++) to[x * 128 + ltid] = make_uint4(f[4 * x], f[4 * x + 1], f[4 * x + 2], f[4 * x + 3]);
                barrier_arrive(&p_full[i & 1]);
                barrier_wait(&do_full[ring.at], ring.parity);
                accumulate(f, advance(q_desc, TILE_BYTES));
                wgmma_wait<0>();
                __syncwarp();
                if (lane == 0) barrier_arrive(&do_empty[ring.at]);
                ring.next();
            }
        } else {
            for (int qt = list.next(), i = 0; qt >= 0; qt = list.next(), i++) {
                const u64 q_desc = advance(ring_desc, ring.at * 2 * TILE_BYTES);
                barrier_wait(&do_full[ring.at], ring.parity);
                product(advance(q_desc, TILE_BYTES));
                const float* d = rows + ring.at * 128 + 64;
                const uint4* from = (const uint4*)(share + (i & 1) * PANEL);
                barrier_wait(&p_full[i & 1], (i >> 1) & 1);
#pragma unroll
                for (int x = 0; x < 4; x++) {
                    const uint4 y = from[x * 128 + ltid];
                    f[4 * x] = y.x, f[4 * x + 1] = y.y, f[4 * x + 2] = y.z, f[4 * x + 3] = y.w;
                }
                barrier_arrive(&p_empty[i & 1]);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float2 base = *(const float2*)&d[8 * j + col0];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        u32& p = f[2 * j + h];
                        p = pack_bf16(bf16_lo(p) * (s[4 * j + 2 * h] - base.x), bf16_hi(p) * (s[4 * j + 2 * h + 1] - base.y));
                    }
                }
                __syncwarp();
                if (lane == 0) barrier_arrive(&do_empty[ring.at]);
                barrier_wait(&q_full[ring.at], ring.parity);
                accumulate(f, q_desc);
                // The gradient of the scores, [64 keys][64 queries], for the pass over queries.
                if (ltid == 0) store_wait_read<0>();
                named_barrier(1, 128);
#pragma unroll
                for (int x = 0; x < 4; x++)
                    stmatrix(smem_u32(staging) + panel_chunk(lwarp * 16 + (matrix & 1) * 8 + (lane & 7), 2 * x + (matrix >> 1)), f + 4 * x);
                fence_async();
                named_barrier(1, 128);
                if (ltid == 0) {
                    bulk_store(d_scores + (bh * score_slots(causal, n) + score_slot(causal, n, qt, kt)) * PANEL, staging, PANEL);
                    store_commit();
                }
                wgmma_wait<0>();
                __syncwarp();
                if (lane == 0) barrier_arrive(&q_empty[ring.at]);
                ring.next();
            }
        }
        // Each group writes over the tile that only it has read.
        const float by = group == 1 ? 1.f : out_scale;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            u32 g[4];
#pragma unroll
            for (int e = 0; e < 4; e++) g[e] = pack_bf16(acc[8 * i + 2 * e] * by, acc[8 * i + 2 * e + 1] * by);
            stmatrix(own + (i >> 2) * PANEL + panel_chunk(lwarp * 16 + (matrix & 1) * 8 + (lane & 7), 2 * (i & 3) + (matrix >> 1)), g);
        }
        fence_async();
        named_barrier(1 + group, 128);
        if (ltid == 0) {
            for (int i = 0; i < PANELS; i++)
                if (group == 1) tensor_store(dv, k_tile + i * PANEL, i * 64, head, kt * TILE, batch);
                else tensor_store(dk, v_tile + i * PANEL, i * 64, head, kt * TILE, batch);
            store_commit();
            store_wait_read<0>();
        }
    }
}

// ------------------------------------------------------------------------------------------------
// attention_backward_queries. Limit: memory and L2, the stored gradient of the scores once (1.07 GB at
// T=8192, H=16: 0.25 ms) and the keys once per block; 275 GFLOP (0.40 ms).
// Measured 0.411 ms (NVIDIA H200, 2026-11-22).
// grid (n / 2 rounded up, H, B), 384 threads (a warpgroup loads, two compute 64 queries each), QUERIES_SMEM.
// ------------------------------------------------------------------------------------------------
constexpr int GROUPS = 2, Q_STAGES = 4;
constexpr int Q_STAGE = TILE_BYTES + GROUPS * PANEL;
constexpr int QUERIES_SMEM = Q_STAGES * Q_STAGE + 128;

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_queries(
    const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap dq, const u32* tiles, const u8* d_scores, float out_scale,
    int causal, int T, int H, int tile_words)
{
    u64* full = (u64*)(smem + Q_STAGES * Q_STAGE);
    u64* empty = full + Q_STAGES;
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31, group = warp >> 2;
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const int n = (T + TILE - 1) / TILE;
    const u64 bh = u64(batch) * H + head;
    if (tid == 0) {
        for (int i = 0; i < Q_STAGES; i++) barrier_init(&full[i], 1), barrier_init(&empty[i], 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    const u32* mine = tiles + u64(batch) * n * tile_words;
    Tiles<GROUPS> list(mine, GROUPS * block, n, tile_words);
    auto used = [&](int g, int j) {
        const int qt = GROUPS * block + g;
        return qt < n && (mine[u64(qt) * tile_words + (j >> 5)] >> (j & 31) & 1);
    };
    Ring<Q_STAGES> ring;
    if (group == 0) {
        registers_drop<24>();
        if (tid == 0) {
            int i = 0;
            for (int j = list.next(); j >= 0; j = list.next(), i++) {
                if (i >= Q_STAGES) barrier_wait(&empty[ring.at], ring.parity ^ 1);
                u8* to = smem + ring.at * Q_STAGE;
                u32 bytes = TILE_BYTES;
                for (int g = 0; g < GROUPS; g++) bytes += used(g, j) ? PANEL : 0;
                barrier_expect(&full[ring.at], bytes);
                for (int p = 0; p < PANELS; p++) tensor_load(to + p * PANEL, k, p * 64, head, j * TILE, batch, &full[ring.at]);
                for (int g = 0; g < GROUPS; g++)
                    if (used(g, j)) {
                        const u64 slot = bh * score_slots(causal, n) + score_slot(causal, n, GROUPS * block + g, j);
                        bulk_load(to + TILE_BYTES + g * PANEL, d_scores + slot * PANEL, PANEL, &full[ring.at]);
                    }
                ring.next();
            }
        }
    } else {
        registers_raise<240>();
        const int part = group - 1, matrix = lane >> 3, qt = GROUPS * block + part;
        const u64 ring_desc = panel_descriptor(smem_u32(smem), PANEL);
        float acc[DIM / 2];
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) acc[i] = 0.f;
        for (int j = list.next(); j >= 0; j = list.next()) {
            barrier_wait(&full[ring.at], ring.parity);
            if (__shfl_sync(~0u, used(part, j), 0)) {
                const u64 k_desc = advance(ring_desc, ring.at * Q_STAGE), s_desc = advance(k_desc, TILE_BYTES + part * PANEL);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < TILE / 16; i++)
                    wgmma_ss<1, 1>(acc, advance(s_desc, i * 2048), advance(k_desc, i * 2048), 1);
                wgmma_commit();
                wgmma_wait<0>();
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(&empty[ring.at]);
            ring.next();
        }
        named_barrier(4, 128 * GROUPS);  // the ring is drained; its first tiles take the output
        u8* out = smem + part * TILE_BYTES;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            u32 g[4];
#pragma unroll
            for (int e = 0; e < 4; e++) g[e] = pack_bf16(acc[8 * i + 2 * e] * out_scale, acc[8 * i + 2 * e + 1] * out_scale);
            stmatrix(smem_u32(out) + (i >> 2) * PANEL + panel_chunk((warp & 3) * 16 + (matrix & 1) * 8 + (lane & 7), 2 * (i & 3) + (matrix >> 1)), g);
        }
        fence_async();
        named_barrier(1 + part, 128);
        if ((tid & 127) == 0 && qt < n) {
            for (int i = 0; i < PANELS; i++) tensor_store(dq, out + i * PANEL, i * 64, head, qt * TILE, batch);
            store_commit();
            store_wait_read<0>();
        }
    }
}
