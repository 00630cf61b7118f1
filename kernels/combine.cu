// What the choices of each row give, weighed and added up.
//
// Shapes   weights [n, slots] fp32; each [n, slots, d] bf16; y [n, d] bf16. d is a multiple of 8, all rows are 16-byte aligned.
// Meaning  docs/ops.md, `routed_combine`: y = sum over slots of weights * each
// Numerics fp32 in the order of the slots, rounded once.
// Outputs  `=`. No atomics.
// Limit    memory: reads of `each`, once.
// grid (n, columns / 2048), 256 threads.
#include "base.cuh"

extern "C" __global__ void __launch_bounds__(256) weigh_slots(
    const float* weights, const uint4* each, uint4* y, int slots, int d)
{
    const int words = d / 8, c = blockIdx.y * 256 + threadIdx.x;
    if (c >= words) return;
    const float* weight = weights + u64(blockIdx.x) * slots;
    const uint4* from = each + u64(blockIdx.x) * slots * words + c;
    float sum[8] = {};
#pragma unroll 4
    for (int s = 0; s < slots; s++) {
        const uint4 word = __ldcs(from + u64(s) * words);
        const float w = weight[s];
        const u32 pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[2 * i] += w * bf16_lo(pairs[i]);
            sum[2 * i + 1] += w * bf16_hi(pairs[i]);
        }
    }
    y[u64(blockIdx.x) * words + c] =
        make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
}
