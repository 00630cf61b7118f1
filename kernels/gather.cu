// Sums of gathered rows, and the sums that carry their gradients back.
//
// Shapes   w, grad [rows, d] fp32; index [n, slots] i64, negative for none; y, dy [n, d] fp32; order [n slots] i64, the
//          places of the index in the order of what they name, equal ones as they stand; first [rows + 1] i64, where
//          each row begins in it. d is a multiple of 4, all rows are 16-byte aligned.
// Meaning  docs/ops.md, `gather_sum`: y_i = sum over slots of w[index_i]; grad_j = sum of dy over the slots that name j
// Numerics fp32, in the order of the index: that of the definition.
// Outputs  `=`. No atomics: a block owns 1024 columns of one row and adds what it is named by, one after the other.
// Limit    forward: reads of rows, from L2 where tokens share bytes. Backward: the row that most tokens name, which is
//          one block's work per 1024 columns; eight loads are in flight.
// grid (rows or n, columns / 1024), 256 threads.
#include "base.cuh"

constexpr int AHEAD = 8;

DEVICE float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE int column() { return (blockIdx.y * 256 + threadIdx.x) * 4; }

extern "C" __global__ void __launch_bounds__(256) gather_sum(
    const float* w, const long long* index, float* y, int slots, int d)
{
    const int c = column();
    if (c >= d) return;
    const long long* own = index + u64(blockIdx.x) * slots;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int s = 0; s < slots; s++)
        if (own[s] >= 0) sum = plus(sum, *(const float4*)(w + u64(own[s]) * d + c));
    *(float4*)(y + u64(blockIdx.x) * d + c) = sum;
}

extern "C" __global__ void __launch_bounds__(256) gather_sum_grad(
    const float* dy, const long long* order, const long long* first, float* grad, int slots, int d)
{
    const int c = column();
    if (c >= d) return;
    const long long begin = first[blockIdx.x], end = first[blockIdx.x + 1];
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (long long i = begin; i < end; i += AHEAD) {
        float4 part[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k < end) part[k] = *(const float4*)(dy + u64(order[i + k] / slots) * d + c);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k < end) sum = plus(sum, part[k]);
    }
    *(float4*)(grad + u64(blockIdx.x) * d + c) = sum;
}
