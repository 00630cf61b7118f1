// Gated delta rule, forward and backward, in chunks of 64 tokens.
//
// Shapes   q, k, v, o, do, dq, dk, dv [B,T,H,128] bf16; g (log of the decay), beta, dg, dbeta [B,T,H] fp32.
//          q, k, v, do, dq, dk arrive as 4-D tensor maps (128, H, T, B), box (64, 1, 64, 1), 128-byte
//          swizzle: rows past T read as zeros and are not written, so T need not be a multiple of 64.
// Meaning  docs/ops.md, `gated_delta_rule`; the state starts at zero. Chunked, per chunk and head, with
//          G = cumulative sum of g, E = exp(G), t = exp(G_last - G), D_ij = exp(G_i - G_j) for i >= j:
//            L = strict_tril(beta_i D_ij k_i.k_j), M = (I + L)^-1, P = tril(D o Q K^T)
//            N = M (beta (V - E K S)),  O = E Q S + P N,  S' = E_last S + K^T (t N)
//          and backwards, dS being the gradient of the state that leaves the chunk:
//            Y = M^T (P^T dO + t K dS),  dS_prev = E_last dS + Q^T (E dO) - K^T (beta E Y),  dV = beta Y
//            dL = -strict_tril(Y N^T)   (so M is not differentiated through its inverse)
//          the rest of the gradients from S, dS, N and Y chunk by chunk (reference.py has them all).
// Numerics fp32 state and accumulators; products of bf16 operands (S, N, M, P, Y, dS rounded to bf16 as
//          operands); the inverse by fp32 substitution in blocks of 32 joined by one tf32 product.
//          Decays only as exp of differences of G within a chunk, the masked half by selection.
// Outputs  all `=`. No atomics; every sum has a fixed order.
//
// Kernels  gdn_prepare         one block per chunk and head: M, P and the token vectors
//          gdn_forward[_save]  the scan: one block per head and half of the values (64 of 128 rows of S^T)
//          gdn_backward        the scan backwards, same split: Y and dS
//          gdn_backward_chunk  one block per chunk and head: dq, dk, dv, dg, dbeta
// In the scans each warp owns 16 rows of S^T in registers and the whole recurrence stays in registers:
// an accumulator, packed, is the A operand of the next product (mma.cuh), B operands come from shared
// memory through wgmma. Nothing that the recurrence waits for crosses warps: a chunk costs it three dependent
// products and no barrier among its warps.
//
// Workspace, per (b, h, chunk) in this order: token vectors 5 x 64 fp32 [E | beta | beta E | t | G log2],
// M and P 64x64, N and Y [2 value halves][64 tokens][64], S and dS [2 value halves][2 key halves][64][64];
// bf16 tiles as panels (mma.cuh), so that plain bulk copies move them.
#include "copy.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

constexpr int CHUNK = 64, VALUE = 128;
constexpr int PANEL = CHUNK * 128;  // bytes
constexpr int VECTORS = 5 * CHUNK;  // floats per chunk

// ------------------------------------------------------------------------------------------------
// gdn_prepare. Limit: memory; reads q, k, writes M, P: 200 MB at T=8192, H=32: floor 0.047 ms.
// Measured 0.068 ms (NVIDIA H200, 2026-11-22).
// grid (H, chunks, B), 128 threads, PREPARE_SMEM bytes.
// ------------------------------------------------------------------------------------------------
constexpr int BLOCK = 32, BLOCK_STRIDE = 36;  // half a chunk; floats per row
constexpr int PREPARE_SMEM = 4 * PANEL;

extern "C" __global__ void __launch_bounds__(128, 5) gdn_prepare(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const float* g, const float* beta,
    float* vectors, u8* m_out, u8* p_out, int T, int H)
{
    u8* q_tile = smem;               // later: P panel, M panel
    u8* k_tile = smem + 2 * PANEL;   // later: blocks of L, then of M
    float* diagonal = (float*)k_tile;                         // [64][BLOCK_STRIDE]: the blocks 11 and 22
    float* corner = diagonal + CHUNK * BLOCK_STRIDE;          // [32][BLOCK_STRIDE]: the block 21
    __shared__ float G[CHUNK], b[CHUNK];
    __shared__ u64 full;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int head = blockIdx.x, chunk = blockIdx.y, batch = blockIdx.z, n_chunks = gridDim.y;
    const u64 at = u64(batch * H + head) * n_chunks + chunk;

    if (tid == 0) {
        barrier_init(&full, 1);
        barrier_init_done();
        barrier_expect(&full, 4 * PANEL);
        for (int p = 0; p < 2; p++) {
            tensor_load(k_tile + p * PANEL, k, p * 64, head, chunk * CHUNK, batch, &full);
            tensor_load(q_tile + p * PANEL, q, p * 64, head, chunk * CHUNK, batch, &full);
        }
    }
    if (warp == 1) {
        const int t0 = chunk * CHUNK + 2 * lane;
        const u64 row = (u64(batch) * T + t0) * H + head;
        const float g0 = t0 < T ? g[row] : 0.f, g1 = t0 + 1 < T ? g[row + H] : 0.f;
        b[2 * lane] = t0 < T ? beta[row] : 0.f;
        b[2 * lane + 1] = t0 + 1 < T ? beta[row + H] : 0.f;
        float sum = g0 + g1;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const float left = __shfl_up_sync(~0u, sum, o);
            if (lane >= o) sum += left;
        }
        float before = __shfl_up_sync(~0u, sum, 1);
        if (lane == 0) before = 0.f;
        G[2 * lane] = (before + g0) * LOG2E;
        G[2 * lane + 1] = (before + g0 + g1) * LOG2E;
    }
    __syncthreads();
    if (tid < CHUNK) {
        float* out = vectors + at * VECTORS;
        const float e = exp2f(G[tid]);
        out[tid] = e;
        out[CHUNK + tid] = b[tid];
        out[2 * CHUNK + tid] = b[tid] * e;
        out[3 * CHUNK + tid] = exp2f(G[CHUNK - 1] - G[tid]);
        out[4 * CHUNK + tid] = G[tid];
    }
    barrier_wait(&full, 0);
    float qk[32], kk[32];
    const u64 tile = panel_descriptor(smem_u32(smem));
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 8; s++) {
        const u32 step = (s >> 2) * PANEL + (s & 3) * 32;
        wgmma_ss(kk, advance(tile, 2 * PANEL + step), advance(tile, 2 * PANEL + step), s > 0);
        wgmma_ss(qk, advance(tile, step), advance(tile, 2 * PANEL + step), s > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    __syncthreads();  // q and k are consumed

    const int row0 = warp * 16 + (lane >> 2), col0 = 2 * (lane & 3);
    u32 p[16];
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = row0 + 8 * half, c = 8 * j + col0;
            const float d0 = exp2_fast(G[i] - G[c]), d1 = exp2_fast(G[i] - G[c + 1]);
            const float* x = &qk[4 * j + 2 * half];
            const float* y = &kk[4 * j + 2 * half];
            p[2 * j + half] = pack_bf16(i >= c ? x[0] * d0 : 0.f, i >= c + 1 ? x[1] * d1 : 0.f);
            if (warp >= 2 || j < 4)
                *(float2*)&(warp >= 2 && j < 4 ? corner + (i - BLOCK) * BLOCK_STRIDE : diagonal + i * BLOCK_STRIDE)[c & (BLOCK - 1)] =
                    make_float2(i > c ? b[i] * d0 * y[0] : 0.f, i > c + 1 ? b[i] * d1 * y[1] : 0.f);
        }
    const int matrix = lane >> 3;
#pragma unroll
    for (int s = 0; s < 4; s++)
        stmatrix(smem_u32(q_tile) + panel_chunk(warp * 16 + (matrix & 1) * 8 + (lane & 7), 2 * s + (matrix >> 1)), p + 4 * s);
    fence_async();
    __syncthreads();
    if (tid == 0) {
        bulk_store(p_out + at * PANEL, q_tile, PANEL);
        store_commit();
    }

    // M = [M11, 0; -M22 L21 M11, M22]: the diagonal blocks by substitution in place, a column per lane.
    if (warp < 2) {
        float m[BLOCK];
        float* block = diagonal + warp * BLOCK * BLOCK_STRIDE;
#pragma unroll
        for (int i = 0; i < BLOCK; i++) m[i] = 0.f;
#pragma unroll
        for (int i = 0; i < BLOCK; i++) {
            const float4* l = (const float4*)&block[i * BLOCK_STRIDE];
            float s0 = 0.f, s1 = 0.f, s2 = 0.f, s3 = 0.f;
#pragma unroll
            for (int c = 0; c < (i + 3) / 4; c++) {
                const float4 x = l[c];
                s0 += x.x * m[4 * c];
                s1 += x.y * m[4 * c + 1];
                s2 += x.z * m[4 * c + 2];
                s3 += x.w * m[4 * c + 3];
            }
            m[i] = (i == lane ? 1.f : 0.f) - ((s0 + s1) + (s2 + s3));
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < BLOCK; i++) block[i * BLOCK_STRIDE + lane] = m[i];
    }
    __syncthreads();
    const int tile_row = (warp & 1) * 16 + (lane >> 2), tile_col = (warp >> 1) * 16, t = lane & 3;
    float acc[2][4];
    auto join = [&](const float* a, const float* x) {
#pragma unroll
        for (int n = 0; n < 2; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
#pragma unroll
        for (int s = 0; s < 4; s++) {
            const float* ar = a + tile_row * BLOCK_STRIDE + 8 * s + t;
            const u32 af[4] = {to_tf32(ar[0]), to_tf32(ar[8 * BLOCK_STRIDE]), to_tf32(ar[4]), to_tf32(ar[8 * BLOCK_STRIDE + 4])};
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float* xr = x + (8 * s + t) * BLOCK_STRIDE + tile_col + 8 * n + (lane >> 2);
                const u32 xf[2] = {to_tf32(xr[0]), to_tf32(xr[4 * BLOCK_STRIDE])};
                mma_tf32(acc[n], af, xf);
            }
        }
    };
    join(corner, diagonal);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(float2*)&corner[(tile_row + 8 * half) * BLOCK_STRIDE + tile_col + 8 * n + 2 * t] = make_float2(acc[n][2 * half], acc[n][2 * half + 1]);
    __syncthreads();
    join(diagonal + BLOCK * BLOCK_STRIDE, corner);
    u8* m_tile = q_tile + PANEL;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(u32*)(m_tile + panel_at(BLOCK + tile_row + 8 * half, tile_col + 8 * n + 2 * t)) = pack_bf16(-acc[n][2 * half], -acc[n][2 * half + 1]);
    const int row = tid >> 1;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int c = 2 * (tid & 1) + e;
        const float4 x = *(const float4*)&diagonal[row * BLOCK_STRIDE + 8 * c], y = *(const float4*)&diagonal[row * BLOCK_STRIDE + 8 * c + 4];
        *(uint4*)(m_tile + panel_chunk(row, (row >> 5) * 4 + c)) = make_uint4(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w), pack_bf16(y.x, y.y), pack_bf16(y.z, y.w));
        if (row < BLOCK) *(uint4*)(m_tile + panel_chunk(row, 4 + c)) = make_uint4(0, 0, 0, 0);
    }
    fence_async();
    __syncthreads();
    if (tid == 0) {
        bulk_store(m_out + at * PANEL, m_tile, PANEL);
        store_commit();
        store_wait_read<0>();
    }
}

// ------------------------------------------------------------------------------------------------
// What both scans share: the ring of chunk tiles, and where a warp's fragment lies in a panel.
//
// A wgmma whose A operand is in registers holds its warp until the operand is read, so its time is not
// hidden behind that warp's own arithmetic. The warpgroup of the recurrence therefore only does what the
// recurrence needs that way; the rest reads both operands from shared memory or runs in other warps.
// ------------------------------------------------------------------------------------------------
constexpr int STAGES = 3;
constexpr int AT_K = 0, AT_Q = 2 * PANEL, AT_V = 4 * PANEL, AT_M = 5 * PANEL, AT_P = 6 * PANEL, AT_VEC = 7 * PANEL;
constexpr int TILES = 7 * PANEL + 1024;

/// The loading thread: chunk tiles in scan order. `value` is v forward and do backward.
template <int STAGE, bool BACKWARD>
DEVICE void scan_load(u64* full, u64* empty, const TensorMap& q, const TensorMap& k, const TensorMap& value, const float* vectors,
                      const u8* m, const u8* p, int batch, int head, int part, int n_chunks, u64 first)
{
    Ring<STAGES> ring;
    for (int i = 0; i < n_chunks; i++) {
        const int c = BACKWARD ? n_chunks - 1 - i : i;
        if (i >= STAGES) barrier_wait(&empty[ring.at], ring.parity ^ 1);
        u8* to = smem + ring.at * STAGE;
        u64* bar = &full[ring.at];
        barrier_expect(bar, TILES);
        for (int h = 0; h < 2; h++) tensor_load(to + AT_K + h * PANEL, k, h * 64, head, c * CHUNK, batch, bar);
        bulk_load(to + AT_VEC, vectors + (first + c) * VECTORS, 1024, bar);
        tensor_load(to + AT_V, value, part * 64, head, c * CHUNK, batch, bar);
        bulk_load(to + AT_M, m + (first + c) * PANEL, PANEL, bar);
        bulk_load(to + AT_P, p + (first + c) * PANEL, PANEL, bar);
        for (int h = 0; h < 2; h++) tensor_load(to + AT_Q + h * PANEL, q, h * 64, head, c * CHUNK, batch, bar);
        ring.next();
    }
}

/// Where lane `lane` of warp `warp` finds its 16 bytes of fragment `s` (16 rows of the warp x 16 columns): in a
/// panel that has the fragment's rows as rows, and in one that has them as columns.
DEVICE u32 fragment_at(int warp, int lane, int s) {
    const int matrix = lane >> 3;
    return panel_chunk(16 * warp + (matrix & 1) * 8 + (lane & 7), 2 * s + (matrix >> 1));
}
DEVICE u32 transposed_at(int warp, int lane, int s) {
    const int matrix = lane >> 3;
    return panel_chunk(16 * s + (matrix >> 1) * 8 + (lane & 7), 2 * warp + (matrix & 1));
}

#define SCAN_PROLOGUE                                                                                    \
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31;                  \
    const int n_chunks = (T + CHUNK - 1) / CHUNK;                                                        \
    const int head = blockIdx.x >> 1, part = blockIdx.x & 1, batch = blockIdx.y;                         \
    const u64 first = u64(batch * H + head) * n_chunks;

// ------------------------------------------------------------------------------------------------
// gdn_forward. Limit: latency of T/64 dependent steps of 3 products (1024 tensor cycles each per SM with
// the output, 64 blocks at H=32). Compulsory bytes 270 MB: floor 0.063 ms. `_save` also writes S and N.
// Measured 0.146 ms, saving 0.167 ms (NVIDIA H200, 2026-11-22).
// One warpgroup carries the state and hands S and N over in shared memory, one computes the output.
// grid (2 H, B), 384 threads (the third warpgroup loads), FORWARD_SMEM bytes.
// ------------------------------------------------------------------------------------------------
constexpr int AT_S = STAGES * TILES, AT_N = AT_S + 2 * PANEL, AT_O = AT_N + PANEL;
constexpr int FORWARD_SMEM = AT_O + PANEL + 128;

template <bool SAVE>
DEVICE void forward_scan(const TensorMap& q, const TensorMap& k, const TensorMap& v, const float* vectors, const u8* m,
                         const u8* p, bf16* o, u8* states, u8* news, int T, int H)
{
    SCAN_PROLOGUE
    const u64 d0 = panel_descriptor(smem_u32(smem)), d0_mn = panel_descriptor(smem_u32(smem), PANEL);
    u64* full = (u64*)(smem + AT_O + PANEL);
    u64 *empty = full + STAGES, *s_ready = empty + STAGES, *n_ready = s_ready + 1, *done = n_ready + 1;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&full[i], 1), barrier_init(&empty[i], 8);
        barrier_init(s_ready, 4), barrier_init(n_ready, 4), barrier_init(done, 4);
        barrier_init_done();
    }
    __syncthreads();
    const u32 s_image = smem_u32(smem) + AT_S, n_image = smem_u32(smem) + AT_N, o_image = smem_u32(smem) + AT_O;
    if (warp >= 8) {
        registers_drop<24>();
        if (tid == 256) scan_load<TILES, false>(full, empty, q, k, v, vectors, m, p, batch, head, part, n_chunks, first);
    } else if (warp < 4) {  // the recurrence
        registers_raise<240>();
        float s[64], x[32];
        u32 sb[32], r[16], nt[16];
#pragma unroll
        for (int i = 0; i < 64; i++) s[i] = 0.f;
        const int col0 = 2 * (lane & 3);
        Ring<STAGES> ring;
        barrier_wait(&full[0], 0);
        for (int c = 0; c < n_chunks; c++) {
            pack_operand(sb, s);
            const u32 base = smem_u32(smem) + ring.at * TILES;
            const u64 tile = advance(d0, ring.at * TILES), tile_mn = advance(d0_mn, ring.at * TILES);
            const float* vec = (const float*)(smem + ring.at * TILES + AT_VEC);
#pragma unroll
            for (int i = 0; i < 4; i++) ldmatrix_trans(r + 4 * i, base + AT_V + transposed_at(warp, lane, i));
            const float carry = vec[CHUNK - 1];
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 8; i++) wgmma_rs(x, sb + 4 * i, advance(tile, AT_K + (i >> 2) * PANEL + (i & 3) * 32), i > 0);
            wgmma_commit();
            wgmma_wait<0>();
            // R = beta (V - E K S)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 b = *(const float2*)&vec[CHUNK + 8 * j + col0], be = *(const float2*)&vec[2 * CHUNK + 8 * j + col0];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    u32& w = r[2 * j + half];
                    w = pack_bf16(b.x * bf16_lo(w) - be.x * x[4 * j + 2 * half], b.y * bf16_hi(w) - be.y * x[4 * j + 2 * half + 1]);
                }
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_rs(x, r + 4 * i, advance(tile, AT_M + i * 32), i > 0);
            wgmma_commit();
            // Handed over without a proxy fence here, which would hold this warp: the readers fence. The output of
            // the previous chunk being done frees both images.
            if (c) barrier_wait(done, (c & 1) ^ 1);
#pragma unroll
            for (int i = 0; i < 8; i++) stmatrix(s_image + (i >> 2) * PANEL + fragment_at(warp, lane, i & 3), sb + 4 * i);
            __syncwarp();
            if (lane == 0) barrier_arrive(s_ready);
#pragma unroll
            for (int i = 0; i < 64; i++) s[i] *= carry;
            wgmma_wait<0>();
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 t = *(const float2*)&vec[3 * CHUNK + 8 * j + col0];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float a = x[4 * j + 2 * half], b = x[4 * j + 2 * half + 1];
                    r[2 * j + half] = pack_bf16(a, b);
                    nt[2 * j + half] = pack_bf16(a * t.x, b * t.y);
                }
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_rs<1>(s, nt + 4 * i, advance(tile_mn, AT_K + i * 2048), 1);
            wgmma_commit();
#pragma unroll
            for (int i = 0; i < 4; i++) stmatrix_trans(n_image + transposed_at(warp, lane, i), r + 4 * i);
            __syncwarp();
            if (lane == 0) barrier_arrive(n_ready);
            const u32 stage = ring.at;
            ring.next();
            if (c + 1 < n_chunks) barrier_wait(&full[ring.at], ring.parity);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(&empty[stage]);
        }
    } else {  // the output: O = E Q S + P N
        registers_raise<240>();
        float out[32];
        Ring<STAGES> ring;
        const int lwarp = warp & 3;
        const bool elected = (tid & 127) == 0;
        for (int c = 0; c < n_chunks; c++) {
            barrier_wait(&full[ring.at], ring.parity);
            const u32 base = smem_u32(smem) + ring.at * TILES;
            const u64 tile = advance(d0, ring.at * TILES), tile_mn = advance(d0_mn, ring.at * TILES);
            const float* vec = (const float*)(smem + ring.at * TILES + AT_VEC);
            const float e0 = vec[16 * lwarp + (lane >> 2)], e1 = vec[16 * lwarp + (lane >> 2) + 8];
            barrier_wait(s_ready, c & 1);
            fence_async();
            if (SAVE && elected) {
                bulk_store(states + ((first + c) * 2 + part) * 2 * PANEL, smem + AT_S, 2 * PANEL);
                store_commit();
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const u32 step = (i >> 2) * PANEL + (i & 3) * 32;
                wgmma_ss(out, advance(tile, AT_Q + step), advance(d0, AT_S + step), i > 0);
            }
            wgmma_commit();
            wgmma_wait<0>();
#pragma unroll
            for (int j = 0; j < 8; j++) out[4 * j] *= e0, out[4 * j + 1] *= e0, out[4 * j + 2] *= e1, out[4 * j + 3] *= e1;
            barrier_wait(n_ready, c & 1);
            fence_async();
            if (SAVE && elected) {
                bulk_store(news + ((first + c) * 2 + part) * PANEL, smem + AT_N, PANEL);
                store_commit();
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_ss<0, 1>(out, advance(tile, AT_P + i * 32), advance(d0, AT_N + i * 2048), 1);
            wgmma_commit();
            wgmma_wait<0>();
            if (SAVE && elected) store_wait_read<0>();
            __syncwarp();
            if (lane == 0) barrier_arrive(done), barrier_arrive(&empty[ring.at]);
            u32 f[16];
            pack_operand(f, out);
#pragma unroll
            for (int i = 0; i < 4; i++) stmatrix(o_image + fragment_at(lwarp, lane, i), f + 4 * i);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = 16 * lwarp + 4 * i + (lane >> 3), t = c * CHUNK + row;
                if (t < T)
                    *(uint4*)(o + ((u64(batch) * T + t) * H + head) * VALUE + part * 64 + (lane & 7) * 8) =
                        *(const uint4*)(smem + AT_O + panel_chunk(row, lane & 7));
            }
            __syncwarp();
            ring.next();
        }
    }
}

#define FORWARD_ARGS                                                                                                  \
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,    \
        const float *vectors, const u8 *m, const u8 *p, bf16 *o, u8 *states, u8 *news, int T, int H
extern "C" __global__ void __launch_bounds__(384, 1) gdn_forward(FORWARD_ARGS) {
    forward_scan<false>(q, k, v, vectors, m, p, o, states, news, T, H);
}
extern "C" __global__ void __launch_bounds__(384, 1) gdn_forward_save(FORWARD_ARGS) {
    forward_scan<true>(q, k, v, vectors, m, p, o, states, news, T, H);
}

// ------------------------------------------------------------------------------------------------
// gdn_backward: the scan from the last chunk to the first; writes dS of the state leaving each chunk
// and Y. Limit: latency, as forward. Measured 0.158 ms (NVIDIA H200, 2026-11-22). One warpgroup carries dS; two warps scale do by E for it, one stores Y.
// grid (2 H, B), 256 threads, BACKWARD_SMEM bytes.
// ------------------------------------------------------------------------------------------------
constexpr int AT_E = TILES, STAGE_B = TILES + PANEL, AT_DS = STAGES * STAGE_B, AT_Y = AT_DS + 2 * PANEL;
constexpr int BACKWARD_SMEM = AT_Y + PANEL + 128;

extern "C" __global__ void __launch_bounds__(256, 1) gdn_backward(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap d_out,
    const float* vectors, const u8* m, const u8* p, u8* d_states, u8* ys, int T, int H)
{
    SCAN_PROLOGUE
    const u64 d0 = panel_descriptor(smem_u32(smem)), d0_mn = panel_descriptor(smem_u32(smem), PANEL);
    u64* full = (u64*)(smem + AT_Y + PANEL);
    u64 *empty = full + STAGES, *scaled = empty + STAGES, *s_ready = scaled + STAGES, *y_ready = s_ready + 1, *stored = y_ready + 1;
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&full[i], 1), barrier_init(&empty[i], 4), barrier_init(&scaled[i], 2);
        barrier_init(s_ready, 4), barrier_init(y_ready, 4), barrier_init(stored, 1);
        barrier_init_done();
    }
    __syncthreads();
    if (warp == 4) {
        if (lane == 0) scan_load<STAGE_B, true>(full, empty, q, k, d_out, vectors, m, p, batch, head, part, n_chunks, first);
    } else if (warp == 7) {
        if (lane == 0) {
            for (int c = n_chunks - 1, i = 0; c >= 0; c--, i++) {
                barrier_wait(s_ready, i & 1);
                fence_async();
                bulk_store(d_states + ((first + c) * 2 + part) * 2 * PANEL, smem + AT_DS, 2 * PANEL);
                store_commit();
                barrier_wait(y_ready, i & 1);
                fence_async();
                bulk_store(ys + ((first + c) * 2 + part) * PANEL, smem + AT_Y, PANEL);
                store_commit();
                store_wait_read<0>();
                barrier_arrive(stored);
            }
        }
    } else if (warp > 4) {
        Ring<STAGES> ring;
        for (int i = 0; i < n_chunks; i++) {
            barrier_wait(&full[ring.at], ring.parity);
            u8* tile = smem + ring.at * STAGE_B;
            const float* vec = (const float*)(tile + AT_VEC);
#pragma unroll
            for (int x = 0; x < 8; x++) {
                const int at = (warp - 5) * 256 + x * 32 + lane;  // 16 bytes of row at / 8
                const float e = vec[at >> 3];
                uint4 w = *(const uint4*)(tile + AT_V + at * 16);
                w.x = pack_bf16(bf16_lo(w.x) * e, bf16_hi(w.x) * e), w.y = pack_bf16(bf16_lo(w.y) * e, bf16_hi(w.y) * e);
                w.z = pack_bf16(bf16_lo(w.z) * e, bf16_hi(w.z) * e), w.w = pack_bf16(bf16_lo(w.w) * e, bf16_hi(w.w) * e);
                *(uint4*)(tile + AT_E + at * 16) = w;
            }
            fence_async();
            __syncwarp();
            if (lane == 0) barrier_arrive(&scaled[ring.at]);
            ring.next();
        }
    } else {
        float s[64], x[32], y[32];
        u32 sb[32], f[16], yb[16];
#pragma unroll
        for (int i = 0; i < 64; i++) s[i] = 0.f;
        const int col0 = 2 * (lane & 3);
        const u32 ds_image = smem_u32(smem) + AT_DS, y_image = smem_u32(smem) + AT_Y;
        Ring<STAGES> ring;
        barrier_wait(&full[0], 0);
        barrier_wait(&scaled[0], 0);
        for (int step = 0; step < n_chunks; step++) {
            const u64 tile = advance(d0, ring.at * STAGE_B), tile_mn = advance(d0_mn, ring.at * STAGE_B);
            const float* vec = (const float*)(smem + ring.at * STAGE_B + AT_VEC);
            const float carry = vec[CHUNK - 1];
            pack_operand(sb, s);
#pragma unroll
            for (int i = 0; i < 64; i++) s[i] *= carry;
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_ss<1, 1>(y, advance(tile, AT_V + i * 2048), advance(tile, AT_P + i * 2048), i > 0);
#pragma unroll
            for (int i = 0; i < 8; i++) wgmma_rs(x, sb + 4 * i, advance(tile, AT_K + (i >> 2) * PANEL + (i & 3) * 32), i > 0);
            wgmma_commit();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_ss<1, 1>(s, advance(tile, AT_E + i * 2048), advance(tile_mn, AT_Q + i * 2048), 1);
            wgmma_commit();
            wgmma_wait<1>();
            // dN = P^T dO + t K dS
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 t = *(const float2*)&vec[3 * CHUNK + 8 * j + col0];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int i = 4 * j + 2 * half;
                    f[2 * j + half] = pack_bf16(y[i] + t.x * x[i], y[i + 1] + t.y * x[i + 1]);
                }
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_rs<1>(y, f + 4 * i, advance(tile, AT_M + i * 2048), i > 0);
            wgmma_commit();
            // dS of this chunk's end, for the storing warp, which fences (see the forward scan)
            if (step) barrier_wait(stored, (step & 1) ^ 1);
#pragma unroll
            for (int i = 0; i < 8; i++) stmatrix(ds_image + (i >> 2) * PANEL + fragment_at(warp, lane, i & 3), sb + 4 * i);
            __syncwarp();
            if (lane == 0) barrier_arrive(s_ready);
            wgmma_wait<0>();
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 be = *(const float2*)&vec[2 * CHUNK + 8 * j + col0];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float a = y[4 * j + 2 * half], b = y[4 * j + 2 * half + 1];
                    yb[2 * j + half] = pack_bf16(a, b);
                    f[2 * j + half] = pack_bf16(-be.x * a, -be.y * b);
                }
            }
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma_rs<1>(s, f + 4 * i, advance(tile_mn, AT_K + i * 2048), 1);
            wgmma_commit();
#pragma unroll
            for (int i = 0; i < 4; i++) stmatrix_trans(y_image + transposed_at(warp, lane, i), yb + 4 * i);
            __syncwarp();
            if (lane == 0) barrier_arrive(y_ready);
            const u32 stage = ring.at;
            ring.next();
            if (step + 1 < n_chunks) {
                barrier_wait(&full[ring.at], ring.parity);
                barrier_wait(&scaled[ring.at], ring.parity);
            }
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(&empty[stage]);
        }
    }
}

// ------------------------------------------------------------------------------------------------
// gdn_backward_chunk: everything that is not sequential. Limit: memory, about 840 MB at T=8192, H=32:
// floor 0.20 ms. Measured 0.246 ms (NVIDIA H200, 2026-11-22). grid (H, chunks, B), 256 threads, CHUNK_SMEM bytes (two blocks per SM). Each warpgroup
// owns half of the key channels of dK and dQ; the first makes dL and the second dP.
// ------------------------------------------------------------------------------------------------
constexpr int CHUNK_SMEM = 14 * PANEL + 64;

extern "C" __global__ void __launch_bounds__(256, 2) gdn_backward_chunk(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap d_out,
    const __grid_constant__ TensorMap dq, const __grid_constant__ TensorMap dk, const bf16* v, const float* vectors,
    const u8* p, const u8* states, const u8* d_states, const u8* news, const u8* ys, bf16* dv, float* dg, float* dbeta, int T, int H)
{
    u8 *kt = smem, *qt = smem + 2 * PANEL, *dot = smem + 4 * PANEL, *nt = smem + 6 * PANEL, *yt = smem + 8 * PANEL;
    u8* st = smem + 10 * PANEL;  // dS, then S, then the outputs
    u64* bar = (u64*)(smem + 14 * PANEL);
    const int tid = threadIdx.x, warp = __shfl_sync(~0u, tid >> 5, 0), lane = tid & 31, part = warp >> 2;
    const int head = blockIdx.x, chunk = blockIdx.y, batch = blockIdx.z, n_chunks = gridDim.y;
    const u64 at = u64(batch * H + head) * n_chunks + chunk;
    if (tid == 0) {
        for (int i = 0; i < 3; i++) barrier_init(&bar[i], 1);
        barrier_init_done();
        barrier_expect(&bar[0], 8 * PANEL);
        for (int i = 0; i < 2; i++) tensor_load(kt + i * PANEL, k, 64 * i, head, chunk * CHUNK, batch, &bar[0]);
        bulk_load(nt, news + at * 2 * PANEL, 2 * PANEL, &bar[0]);
        bulk_load(st, d_states + at * 4 * PANEL, 4 * PANEL, &bar[0]);
        barrier_expect(&bar[1], 6 * PANEL);
        bulk_load(yt, ys + at * 2 * PANEL, 2 * PANEL, &bar[1]);
        for (int i = 0; i < 2; i++) {
            tensor_load(dot + i * PANEL, d_out, 64 * i, head, chunk * CHUNK, batch, &bar[1]);
            tensor_load(qt + i * PANEL, q, 64 * i, head, chunk * CHUNK, batch, &bar[1]);
        }
    }
    const float* vec = vectors + at * VECTORS;
    const int row0 = (warp & 3) * 16 + (lane >> 2), col0 = 2 * (lane & 3), matrix = lane >> 3;
    float rE[2], rb[2], rt[2], rG[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        rE[h] = vec[row0 + 8 * h], rb[h] = vec[CHUNK + row0 + 8 * h];
        rt[h] = vec[3 * CHUNK + row0 + 8 * h], rG[h] = vec[4 * CHUNK + row0 + 8 * h];
    }
    const float carry = vec[CHUNK - 1];
    constexpr int K_AT = 0, Q_AT = 2 * PANEL, DO_AT = 4 * PANEL, N_AT = 6 * PANEL, Y_AT = 8 * PANEL, S_AT = 10 * PANEL;
    const u32 n_at = smem_u32(nt), s_at = smem_u32(st);
    const u32 at0 = smem_u32(smem), at_part = at0 + part * PANEL;
    auto rows = [&](u32 tile, int i) { return panel_descriptor(at0 + tile + (i >> 2) * PANEL + (i & 3) * 32); };  // contraction along rows
    // Contraction over values of a state, this group's keys; over tokens of k or q, this group's channels.
    auto state = [&](int i) { return panel_descriptor(at_part + S_AT + (i >> 2) * 2 * PANEL + (i & 3) * 2048); };
    auto tokens = [&](u32 tile, int i) { return panel_descriptor(at_part + tile + i * 2048); };
    // Element pair of this group's panel of k or q under an accumulator's (row half, column block).
    auto pair = [&](const u8* tile, int half, int j) {
        return *(const u32*)(tile + part * PANEL + panel_chunk(row0 + 8 * half, j) + col0 * 2);
    };
    const u32 fragment = panel_chunk((warp & 3) * 16 + (matrix & 1) * 8 + (lane & 7), matrix >> 1);  // step s: xor 32 s
    __syncthreads();

    // <S, dS>: S arrives from global memory while the tiles load
    uint4 early[8];
#pragma unroll
    for (int i = 0; i < 8; i++) early[i] = load_early((const uint4*)(states + at * 4 * PANEL) + i * 256 + tid);
    // dK1 = t N dS^T
    float dK[32];
    barrier_wait(&bar[0], 0);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++) wgmma_ss<0, 1>(dK, rows(N_AT, i), state(i), i > 0);
    wgmma_commit();
    float inner = 0.f;
    {
        const uint4* b = (const uint4*)st;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint4 x = early[i], y = b[i * 256 + tid];
            const u32 xs[4] = {x.x, x.y, x.z, x.w}, ys4[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int e = 0; e < 4; e++) inner += bf16_lo(xs[e]) * bf16_lo(ys4[e]) + bf16_hi(xs[e]) * bf16_hi(ys4[e]);
        }
    }
    wgmma_wait<0>();
    __syncthreads();
    if (tid == 0) {
        barrier_expect(&bar[2], 4 * PANEL);
        bulk_load(st, states + at * 4 * PANEL, 4 * PANEL, &bar[2]);
    }
    u32 pw[16];
    if (part == 1)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) pw[2 * j + h] = load_early_word(p + at * PANEL + panel_chunk(row0 + 8 * h, j) + col0 * 2);
    float g_row[2] = {0.f, 0.f}, b_row[2] = {0.f, 0.f}, column[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 w = pair(kt, h, j);
            float* x = &dK[4 * j + 2 * h];
            x[0] *= rt[h], x[1] *= rt[h];
            g_row[h] -= x[0] * bf16_lo(w) + x[1] * bf16_hi(w);
        }
    inner = warp_sum(carry * inner - g_row[0] - g_row[1]);

    barrier_wait(&bar[1], 0);
    u32 f[16];
    // Adds what columns 8j + col0 + {0,1} of "both" (see the reference) hold; the lanes of row j keep the sums.
    auto add_columns = [&](int j, float x, float y) {
        x = column_sum(x), y = column_sum(y);
        if (j == lane >> 2) column[0] = x, column[1] = y;
    };
    if (part == 0) {  // dL = -strict_tril(Y N^T), BZ = beta dL D, in two halves of its columns
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float z[16], kk[16];
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 8; i++) wgmma_ss(z, rows(Y_AT, i), rows(N_AT + half * 4096, i), i > 0);
#pragma unroll
            for (int i = 0; i < 8; i++) wgmma_ss(kk, rows(K_AT, i), rows(K_AT + half * 4096, i), i > 0);
            wgmma_commit();
            wgmma_wait<0>();
#pragma unroll
            for (int x = 0; x < 4; x++) {
                const int j = 4 * half + x, c = 8 * j + col0;
                const float2 gc = *(const float2*)&vec[4 * CHUNK + c];
                float sum[2] = {0.f, 0.f};
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int i = row0 + 8 * h;
                    float bz[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int y = 4 * x + 2 * h + e;
                        const float ze = i > c + e ? -z[y] * exp2_fast(rG[h] - (e ? gc.y : gc.x)) : 0.f;
                        b_row[h] += ze * kk[y];
                        bz[e] = rb[h] * ze;
                        g_row[h] += bz[e] * kk[y];
                        sum[e] += bz[e] * kk[y];
                    }
                    f[2 * j + h] = pack_bf16(bz[0], bz[1]);
                }
                add_columns(j, sum[0], sum[1]);
            }
        }
    } else {  // dP = tril(D o dO N^T)
        float a[32];
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 8; i++) wgmma_ss(a, rows(DO_AT, i), rows(N_AT, i), i > 0);
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int c = 8 * j + col0;
            const float2 gc = *(const float2*)&vec[4 * CHUNK + c];
            float sum[2] = {0.f, 0.f};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = row0 + 8 * h;
                const u32 w = pw[2 * j + h];
                const float x0 = i >= c ? a[4 * j + 2 * h] : 0.f, x1 = i >= c + 1 ? a[4 * j + 2 * h + 1] : 0.f;
                const float both0 = x0 * bf16_lo(w), both1 = x1 * bf16_hi(w);
                g_row[h] += both0 + both1;
                sum[0] += both0, sum[1] += both1;
                f[2 * j + h] = pack_bf16(i >= c ? x0 * exp2_fast(rG[h] - gc.x) : 0.f, i >= c + 1 ? x1 * exp2_fast(rG[h] - gc.y) : 0.f);
            }
            add_columns(j, sum[0], sum[1]);
        }
    }
    uint4 ve[4] = {};
    const int v_row = tid >> 2, quarter = tid & 3, v_t = chunk * CHUNK + v_row;
    const u64 v_at = ((u64(batch) * T + v_t) * H + head) * VALUE + quarter * 8;
    if (v_t < T)
#pragma unroll
        for (int c = 0; c < 4; c++) ve[c] = load_early(v + v_at + 32 * c);
    __syncthreads();  // N is consumed; its panels take BZ and dP
#pragma unroll
    for (int i = 0; i < 4; i++) stmatrix(n_at + part * PANEL + (fragment ^ (32 * i)), f + 4 * i);
    fence_async();
    __syncthreads();
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        wgmma_ss<0, 1>(dK, panel_descriptor(at0 + N_AT + i * 32), tokens(K_AT, i), 1);
        wgmma_ss<1, 1>(dK, panel_descriptor(at0 + N_AT + i * 2048), tokens(K_AT, i), 1);
        wgmma_ss<1, 1>(dK, panel_descriptor(at0 + N_AT + PANEL + i * 2048), tokens(Q_AT, i), 1);
    }
    wgmma_commit();

    // dV = beta Y and Y . V, a row per four threads
    float yv = 0.f;
    {
        if (v_t < T) {
            const float b = vec[CHUNK + v_row];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint4 y = *(const uint4*)(yt + (c >> 1) * PANEL + panel_chunk(v_row, (c & 1) * 4 + quarter));
                const uint4 w = ve[c];
                const u32 y4[4] = {y.x, y.y, y.z, y.w}, w4[4] = {w.x, w.y, w.z, w.w};
                u32 o4[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    yv += bf16_lo(y4[e]) * bf16_lo(w4[e]) + bf16_hi(y4[e]) * bf16_hi(w4[e]);
                    o4[e] = pack_bf16(b * bf16_lo(y4[e]), b * bf16_hi(y4[e]));
                }
                *(uint4*)(dv + v_at + 32 * c) = make_uint4(o4[0], o4[1], o4[2], o4[3]);
            }
        }
        yv = quad_sum(yv);
    }

    // X = -E Y S^T
    float acc[32], acc2[32];
    barrier_wait(&bar[2], 0);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++) wgmma_ss<0, 1>(acc, rows(Y_AT, i), state(i), i > 0);
    wgmma_commit();
    // dQ = E dO S^T + dP K
#pragma unroll
    for (int i = 0; i < 8; i++) wgmma_ss<0, 1>(acc2, rows(DO_AT, i), state(i), i > 0);
    wgmma_commit();
    wgmma_wait<1>();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const u32 w = pair(kt, h, j);
            const float x0 = -rE[h] * acc[4 * j + 2 * h], x1 = -rE[h] * acc[4 * j + 2 * h + 1];
            sum += x0 * bf16_lo(w) + x1 * bf16_hi(w);
            dK[4 * j + 2 * h] += rb[h] * x0, dK[4 * j + 2 * h + 1] += rb[h] * x1;
        }
        b_row[h] += sum;
        g_row[h] += rb[h] * sum;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const u32 w = pair(qt, h, j);
            float* x = &acc2[4 * j + 2 * h];
            x[0] *= rE[h], x[1] *= rE[h];
            g_row[h] += x[0] * bf16_lo(w) + x[1] * bf16_hi(w);
        }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_ss<0, 1>(acc2, panel_descriptor(at0 + N_AT + PANEL + i * 32), tokens(K_AT, i), 1);
    wgmma_commit();
    __syncthreads();  // S is consumed by every warp
    pack_operand(f, dK);
#pragma unroll
    for (int i = 0; i < 4; i++) stmatrix(s_at + (2 + part) * PANEL + (fragment ^ (32 * i)), f + 4 * i);
    wgmma_wait<0>();
    pack_operand(f, acc2);
#pragma unroll
    for (int i = 0; i < 4; i++) stmatrix(s_at + part * PANEL + (fragment ^ (32 * i)), f + 4 * i);
    fence_async();
    __syncthreads();  // outputs are staged, and the panels of BZ and dP are free for the sums
    float* columns = (float*)nt;            // [8 warps][64]
    float* row_g = columns + 8 * CHUNK;     // [2][64]
    float* row_b = row_g + 2 * CHUNK;       // [2][64]
    float* row_y = row_b + 2 * CHUNK;       // [64]
    float* pieces = row_y + CHUNK;          // [8]
    if (tid == 0) {
        for (int i = 0; i < 2; i++) {
            tensor_store(dq, st + i * PANEL, 64 * i, head, chunk * CHUNK, batch);
            tensor_store(dk, st + (2 + i) * PANEL, 64 * i, head, chunk * CHUNK, batch);
        }
        store_commit();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        g_row[h] = quad_sum(g_row[h]), b_row[h] = quad_sum(b_row[h]);
        if ((lane & 3) == 0) row_g[part * CHUNK + row0 + 8 * h] = g_row[h], row_b[part * CHUNK + row0 + 8 * h] = b_row[h];
    }
    *(float2*)&columns[warp * CHUNK + 2 * lane] = make_float2(column[0], column[1]);
    if ((tid & 3) == 0) row_y[tid >> 2] = yv;
    if (lane == 0) pieces[warp] = inner;
    __syncthreads();
    if (warp == 0) {  // reverse cumulative sum over the chunk, two tokens a lane
        float d[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int i = 2 * lane + e;
            float x = row_g[i] + row_g[CHUNK + i];
            for (int w = 0; w < 8; w++) x -= columns[w * CHUNK + i];
            if (i == CHUNK - 1)
                for (int w = 0; w < 8; w++) x += pieces[w];
            d[e] = x;
        }
        float sum = d[0] + d[1];
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const float right = __shfl_down_sync(~0u, sum, o);
            if (lane + o < 32) sum += right;
        }
        const int t = chunk * CHUNK + 2 * lane;
        const u64 to = (u64(batch) * T + t) * H + head;
        if (t < T) dg[to] = sum;
        if (t + 1 < T) dg[to + H] = sum - d[0];
    } else if (warp < 4 && tid - 64 >= 0 && tid - 64 < CHUNK) {
        const int i = tid - 64, t = chunk * CHUNK + i;
        if (t < T) dbeta[(u64(batch) * T + t) * H + head] = (row_b[i] + row_b[CHUNK + i]) + row_y[i];
    }
    if (tid == 0) store_wait_read<0>();
}
