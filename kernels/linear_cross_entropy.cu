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

/// One block per row. Limit: memory; the row is read twice (the second time from L2) and written once.
template <bool CAPPED> DEVICE void rows(bf16* logits, const long long* targets, const float* inverse, float cap, float scale, float* loss, int V) {
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
    const float inv_cap = CAPPED ? 1.f / cap : 0.f;
    float top = -INF, sum = 0.f;
#pragma unroll 4
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        const uint4 w = ((const uint4*)row)[i];
        const u32 p[4] = {w.x, w.y, w.z, w.w};
        float z[8], m = top;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            z[e] = e & 1 ? bf16_hi(p[e >> 1]) : bf16_lo(p[e >> 1]);
            if (CAPPED) z[e] = cap * tanh_fast(z[e] * inv_cap);
            m = fmaxf(m, z[e]);
        }
        if (m > top) {
            sum *= exp_fast(top - m);
            top = m;
        }
        const float shift = m * LOG2E;
#pragma unroll
        for (int e = 0; e < 8; e++) sum += exp2_fast(z[e] * LOG2E - shift);
    }
    const float all_top = block_reduce(top, scratch, [](float a, float b) { return fmaxf(a, b); });
    sum = block_reduce(top == -INF ? 0.f : sum * exp_fast(top - all_top), scratch, [](float a, float b) { return a + b; });
    const float lse = all_top + LN2 * __log2f(sum);
    if (threadIdx.x == 0) {
        float z = bf16_float(row[y]);
        if (CAPPED) z = cap * tanh_fast(z * inv_cap);
        loss[r] = lse - z;
    }
    __syncthreads();  // the target's logit is read before it is overwritten
    const float scaled = scale * inverse[0], shift = lse * LOG2E;
#pragma unroll 4
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        const uint4 w = ((const uint4*)row)[i];
        u32 p[4] = {w.x, w.y, w.z, w.w};
        const int hit = int(y) - 8 * i;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float d[2];
#pragma unroll
            for (int x = 0; x < 2; x++) {
                float z = x ? bf16_hi(p[e]) : bf16_lo(p[e]), slope = scaled;
                if (CAPPED) {
                    const float th = tanh_fast(z * inv_cap);
                    z = cap * th;
                    slope *= 1.f - th * th;
                }
                d[x] = (exp2_fast(z * LOG2E - shift) - (hit == 2 * e + x ? 1.f : 0.f)) * slope;
            }
            p[e] = pack_bf16(d[0], d[1]);
        }
        ((uint4*)row)[i] = make_uint4(p[0], p[1], p[2], p[3]);
    }
}

/// `scale`: the gradient that arrives (1 where the loss is the root). grid R, 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) lce_rows(
    bf16* logits, const long long* targets, const float* inverse, float cap, float scale, float* loss, int V)
{
    if (cap > 0.f) rows<true>(logits, targets, inverse, cap, scale, loss, V);
    else rows<false>(logits, targets, inverse, cap, scale, loss, V);
}
