// Linear cross entropy: the row passes between its three matrix products.
//
// Shapes   logits [R,V] bf16, one chunk of rows, V a multiple of 8; targets [R] i64, -100 = not counted.
// Meaning  docs/ops.md, `linear_cross_entropy`: z = cap tanh(logit / cap) (cap 0: z = logit),
//          loss_r = logsumexp(z) - z_target; the logits become their own gradient of the mean loss,
//          (softmax(z) - onehot) (1 - tanh^2) / N.
// Numerics fp32, online maximum and sum; logits and their gradient rounded to bf16 between products.
// Outputs  logits `=` in place, loss [R] `=`, total `=`. No atomics; fixed order of every sum.
//
// The caller runs, for each chunk of rows: logits = h W^T (cuBLASLt), lce_rows, dh = logits W,
// dW (+)= logits^T h. Full logits never exist in any precision beyond one chunk of bf16.
// Limit of a whole call: the three products, 6 R V D FLOP (at 8192 x 131072 x 4096, 26.4 TFLOP: 34 ms).
#include "base.cuh"

constexpr int THREADS = 1024;

template <class F> DEVICE float block_reduce(float x, float* scratch, F op) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) x = op(x, __shfl_xor_sync(~0u, x, o));
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = scratch[lane];
#pragma unroll
    for (int o = 16; o; o >>= 1) x = op(x, __shfl_xor_sync(~0u, x, o));
    return x;
}

/// 1 / max(number of counted targets, 1). One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) lce_count(const long long* targets, float* inverse, int n) {
    __shared__ float scratch[32];
    float x = 0.f;
    for (int i = threadIdx.x; i < n; i += THREADS) x += targets[i] == -100 ? 0.f : 1.f;
    x = block_reduce(x, scratch, [](float a, float b) { return a + b; });
    if (threadIdx.x == 0) inverse[0] = 1.f / fmaxf(x, 1.f);
}

/// Sum of the row losses times 1/N. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) lce_total(const float* loss, const float* inverse, float* total, int n) {
    __shared__ float scratch[32];
    float x = 0.f;
    for (int i = threadIdx.x; i < n; i += THREADS) x += loss[i];
    x = block_reduce(x, scratch, [](float a, float b) { return a + b; });
    if (threadIdx.x == 0) total[0] = x * inverse[0];
}

/// Eight logits -> z log2(e), under a softcap: cap tanh(l / cap). tanh is an odd polynomial (6e-8) up to 0.8 and
/// two special functions beyond, which the special function unit would otherwise limit.
template <bool CAPPED> DEVICE void soften(const uint4& w, float cap, float inv_cap, float (&z)[8]) {
    const u32 p[4] = {w.x, w.y, w.z, w.w};
    float far = 0.f;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const float l = e & 1 ? bf16_hi(p[e >> 1]) : bf16_lo(p[e >> 1]);
        z[e] = l * LOG2E;
        if (CAPPED) {
            const float x = l * inv_cap, t = x * x;
            far = fmaxf(far, t);
            float y = fmaf(t, -4.364214016e-03f, 1.910764721e-02f);
            y = fmaf(t, y, -5.312241068e-02f);
            y = fmaf(t, y, 1.332123521e-01f);
            y = fmaf(t, y, -3.333269009e-01f);
            y = fmaf(t, y, 9.999999441e-01f);
            z[e] *= y;
        }
    }
    if (CAPPED && far > 0.64f) {
#pragma unroll
        for (int e = 0; e < 8; e++) z[e] = cap * LOG2E * tanh_fast((e & 1 ? bf16_hi(p[e >> 1]) : bf16_lo(p[e >> 1])) * inv_cap);
    }
}

/// One block per row, one row per SM, so that the 132 rows in flight (35 MB) stay in L2 between the two reads.
/// Limit: memory, 4 bytes per logit; floor 0.51 ms for 4096 x 131072. BOUNDED: z <= cap <= 40, so no maximum is
/// needed under the exponentials.
template <bool CAPPED, bool BOUNDED>
DEVICE void rows(bf16* logits, const long long* targets, const float* inverse, float cap, float scale, float* loss, int V) {
    __shared__ float scratch[32];
    const u64 r = blockIdx.x;
    bf16* row = logits + r * V;
    const long long y = targets[r];
    const int vectors = V / 8;
    if (y == -100) {
        for (int i = threadIdx.x; i < vectors; i += THREADS) ((uint4*)row)[i] = make_uint4(0, 0, 0, 0);
        if (threadIdx.x == 0) loss[r] = 0.f;
        return;
    }
    const float inv_cap = CAPPED ? 1.f / cap : 0.f, target = bf16_float(row[y]);
    float top = BOUNDED ? 0.f : -INF, sum = 0.f;  // in units of log 2
#pragma unroll 8
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        float z[8];
        soften<CAPPED>(((const uint4*)row)[i], cap, inv_cap, z);
        if (!BOUNDED) {
            const float m = fmaxf(fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3])), fmaxf(fmaxf(z[4], z[5]), fmaxf(z[6], z[7])));
            if (m > top) {
                sum *= exp2_fast(top - m);
                top = m;
            }
        }
#pragma unroll
        for (int e = 0; e < 8; e++) sum += exp2_fast(BOUNDED ? z[e] : z[e] - top);
    }
    const float all_top = BOUNDED ? 0.f : block_reduce(top, scratch, [](float a, float b) { return fmaxf(a, b); });
    if (!BOUNDED) sum = top == -INF ? 0.f : sum * exp2_fast(top - all_top);
    sum = block_reduce(sum, scratch, [](float a, float b) { return a + b; });
    const float lse = all_top + __log2f(sum), scaled = scale * inverse[0];
    const float inv_z = CAPPED ? LN2 * inv_cap : 0.f;
#pragma unroll 4
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        float z[8];
        u32 p[4];
        soften<CAPPED>(((const uint4*)row)[i], cap, inv_cap, z);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float th = z[e] * inv_z;
            z[e] = exp2_fast(z[e] - lse) * (CAPPED ? fmaf(-th * scaled, th, scaled) : scaled);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) p[e] = pack_bf16(z[2 * e], z[2 * e + 1]);
        ((uint4*)row)[i] = make_uint4(p[0], p[1], p[2], p[3]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {  // the target's own entry
        const float th = CAPPED ? tanh_fast(target * inv_cap) : 0.f, z = LOG2E * (CAPPED ? cap * th : target);
        loss[r] = LN2 * (lse - z);
        row[y] = float_bf16((exp2_fast(z - lse) - 1.f) * scaled * (1.f - th * th));
    }
}

/// `scale`: the gradient that arrives (1 where the loss is the root). grid R, 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS, 1) lce_rows(
    bf16* logits, const long long* targets, const float* inverse, float cap, float scale, float* loss, int V)
{
    if (cap <= 0.f) rows<false, false>(logits, targets, inverse, cap, scale, loss, V);
    else if (cap <= 40.f) rows<true, true>(logits, targets, inverse, cap, scale, loss, V);
    else rows<true, false>(logits, targets, inverse, cap, scale, loss, V);
}
