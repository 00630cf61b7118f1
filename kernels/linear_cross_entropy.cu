// Linear cross entropy: the row passes between its three matrix products.
//
// Shapes   logits [R,V] bf16, one chunk of rows, V a multiple of 8; targets [R] i64, -100 = not counted.
// Meaning  docs/ops.md, `linear_cross_entropy`: z = cap tanh(logit / cap) (cap 0: z = logit),
//          loss_r = logsumexp(z) - z_target; the logits become their own gradient of the mean loss,
//          (softmax(z) - onehot) (1 - tanh^2) / N.
// Numerics fp32, online maximum and sum; logits and their gradient rounded to bf16 between products.
//          A target that is neither -100 nor a class stops the program.
// Outputs  logits `=` in place, loss [R] `=`, total `=`. No atomics; fixed order of every sum.
//
// The caller runs, for each chunk of rows: logits = h W^T (cuBLASLt), lce_rows, dh = logits W,
// dW (+)= logits^T h. Full logits never exist in any precision beyond one chunk of bf16.
// Limit of a whole call: the three products, 6 R V D FLOP (at 8192 x 131072 x 4096, 26.4 TFLOP: 34 ms).
// Measured 39.4 ms, with a softcap 40.3 ms, 4096 rows a chunk (NVIDIA H200, 2026-11-22); the products take 38.1 of it.
#include "base.cuh"

constexpr int THREADS = 1024;

template <class F> DEVICE float block_reduce(float x, float none, float* scratch, F op) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) x = op(x, __shfl_xor_sync(~0u, x, o));
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < blockDim.x >> 5 ? scratch[lane] : none;
#pragma unroll
    for (int o = 16; o; o >>= 1) x = op(x, __shfl_xor_sync(~0u, x, o));
    return x;
}

/// 1 / max(number of counted targets, 1). One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) lce_count(const long long* targets, float* inverse, int n) {
    __shared__ float scratch[32];
    float x = 0.f;
    for (int i = threadIdx.x; i < n; i += THREADS) x += targets[i] == -100 ? 0.f : 1.f;
    x = block_reduce(x, 0.f, scratch, [](float a, float b) { return a + b; });
    if (threadIdx.x == 0) inverse[0] = 1.f / fmaxf(x, 1.f);
}

/// Sum of the row losses times 1/N. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) lce_total(const float* loss, const float* inverse, float* total, int n) {
    __shared__ float scratch[32];
    float x = 0.f;
    for (int i = threadIdx.x; i < n; i += THREADS) x += loss[i];
    x = block_reduce(x, 0.f, scratch, [](float a, float b) { return a + b; });
    if (threadIdx.x == 0) total[0] = x * inverse[0];
}

/// Softcap by a polynomial: cap tanh(l / cap) log2(e) = l P(l^2), to 1e-6 up to |l| = 0.8 cap; two special
/// functions beyond, of which the unit would otherwise limit the pass.
struct Softcap {
    float c[5], edge, cap, inv_cap;
    DEVICE Softcap(float cap) : cap(cap), inv_cap(1.f / cap) {
        const float u = inv_cap * inv_cap, p[5] = {9.999990288e-01f, -3.332553976e-01f, 1.323185610e-01f, -4.921207493e-02f, 1.212490479e-02f};
        float scale = LOG2E;
#pragma unroll
        for (int i = 0; i < 5; i++) c[i] = p[i] * scale, scale *= u;
        edge = 0.64f * cap * cap;
    }
    DEVICE float near(float l, float t) const { return l * fmaf(t, fmaf(t, fmaf(t, fmaf(t, c[4], c[3]), c[2]), c[1]), c[0]); }
    DEVICE float far(float l) const { return cap * LOG2E * tanh_fast(l * inv_cap); }
};

/// Eight logits -> z log2(e).
template <bool CAPPED> DEVICE void soften(const uint4& w, const Softcap& cap, float (&z)[8]) {
    const u32 p[4] = {w.x, w.y, w.z, w.w};
    float l[8], top = 0.f;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        l[e] = e & 1 ? bf16_hi(p[e >> 1]) : bf16_lo(p[e >> 1]);
        if (CAPPED) {
            const float t = l[e] * l[e];
            top = fmaxf(top, t);
            z[e] = cap.near(l[e], t);
        } else z[e] = l[e] * LOG2E;
    }
    if (CAPPED && top > cap.edge) {
#pragma unroll
        for (int e = 0; e < 8; e++) z[e] = cap.far(l[e]);
    }
}

/// Two rows per SM. What shared memory holds of a row is read once; the rest of the 264 rows in flight (43 MB at
/// V = 131072) stays in L2 until the second read. Limit: memory, 4 bytes per logit; floor 0.51 ms for
/// 4096 x 131072, measured 0.68 ms, with a softcap 0.82 ms. BOUNDED: z <= cap <= 40, so no maximum is needed under the exponentials.
constexpr int ROW_THREADS = 512, CACHED = 12 * ROW_THREADS;  // vectors of 16 bytes: 96 KB

template <bool CAPPED, bool BOUNDED>
DEVICE void rows(bf16* logits, const long long* targets, const float* inverse, const Softcap& cap, float scale, float* loss, int V) {
    __shared__ float scratch[32];
    const u64 r = blockIdx.x;
    bf16* row = logits + r * V;
    uint4* cache = (uint4*)smem;
    const long long y = targets[r];
    const int vectors = V / 8, tid = threadIdx.x;
    if (y == -100) {
        for (int i = tid; i < vectors; i += ROW_THREADS) ((uint4*)row)[i] = make_uint4(0, 0, 0, 0);
        if (tid == 0) loss[r] = 0.f;
        return;
    }
    if (u64(y) >= u64(V)) __trap();
    const float target = bf16_float(row[y]);
    float top = BOUNDED ? 0.f : -INF, sum = 0.f;  // in units of log 2
    auto add = [&](const uint4& w) {
        float z[8];
        soften<CAPPED>(w, cap, z);
        if (!BOUNDED) {
            const float m = fmaxf(fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3])), fmaxf(fmaxf(z[4], z[5]), fmaxf(z[6], z[7])));
            if (m > top) {
                sum *= exp2_fast(top - m);
                top = m;
            }
        }
#pragma unroll
        for (int e = 0; e < 8; e++) sum += exp2_fast(BOUNDED ? z[e] : z[e] - top);
    };
    const int cached = min(vectors, CACHED);
#pragma unroll 6
    for (int i = tid; i < cached; i += ROW_THREADS) {
        const uint4 w = ((const uint4*)row)[i];
        cache[i] = w;
        add(w);
    }
#pragma unroll 4
    for (int i = tid + CACHED; i < vectors; i += ROW_THREADS) add(((const uint4*)row)[i]);
    const float all_top = BOUNDED ? 0.f : block_reduce(top, -INF, scratch, [](float a, float b) { return fmaxf(a, b); });
    if (!BOUNDED) sum = top == -INF ? 0.f : sum * exp2_fast(top - all_top);
    sum = block_reduce(sum, 0.f, scratch, [](float a, float b) { return a + b; });
    const float lse = all_top + __log2f(sum), scaled = scale * inverse[0];
    const float bend = CAPPED ? -scaled * LN2 * LN2 * cap.inv_cap * cap.inv_cap : 0.f;
    auto grad = [&](const uint4& w, int i) {
        float z[8];
        soften<CAPPED>(w, cap, z);
#pragma unroll
        for (int e = 0; e < 8; e++) z[e] = exp2_fast(z[e] - lse) * (CAPPED ? fmaf(z[e] * z[e], bend, scaled) : scaled);
        ((uint4*)row)[i] = make_uint4(pack_bf16(z[0], z[1]), pack_bf16(z[2], z[3]), pack_bf16(z[4], z[5]), pack_bf16(z[6], z[7]));
    };
#pragma unroll 4
    for (int i = tid + CACHED; i < vectors; i += ROW_THREADS) grad(((const uint4*)row)[i], i);
#pragma unroll 4
    for (int i = tid; i < cached; i += ROW_THREADS) grad(cache[i], i);
    __syncthreads();
    if (tid == 0) {  // the target's own entry
        const float z = CAPPED ? cap.far(target) : LOG2E * target;
        loss[r] = LN2 * (lse - z);
        row[y] = float_bf16((exp2_fast(z - lse) - 1.f) * fmaf(z * z, bend, scaled));
    }
}

/// `scale`: the gradient that arrives (1 where the loss is the root). grid R, 512 threads, 16 CACHED bytes.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) lce_rows(
    bf16* logits, const long long* targets, const float* inverse, float cap, float scale, float* loss, int V)
{
    const Softcap softcap(cap > 0.f ? cap : 1.f);
    if (cap <= 0.f) rows<false, false>(logits, targets, inverse, softcap, scale, loss, V);
    else if (cap <= 40.f) rows<true, true>(logits, targets, inverse, softcap, scale, loss, V);
    else rows<true, false>(logits, targets, inverse, softcap, scale, loss, V);
}
