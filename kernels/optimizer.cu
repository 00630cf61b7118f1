// AdamW over many parameters in one launch, and sums of squares of many tensors in two.
//
// Shapes   a parameter: master, m, v [n] fp32; gradient [n] bf16 or fp32; act [n] bf16, the copy that the forward
//          reads, or null. They come as a table of one Parameter per tensor in device memory, whose first_block
//          rises: block i works on 8192 elements of the last tensor with first_block <= i.
// Meaning  of one element: codegen/src/optimizer.rs, from which elements.cuh is generated. Here is what is around
//          it: the table of tensors, reads and writes, and the order of sums.
// Numerics fp32, every operation rounded by itself in the order of libtorch's calls. Squares are summed in fp64:
//          a block its elements, then one block per tensor the blocks, both in a fixed order.
// Outputs  master, m, v, act in place; partial, sums `=`. No atomics.
// Limit    memory: 28 bytes per element with a bf16 gradient and a copy, 30 GB per 1.07e9: 7.1 ms at 4.2 TB/s.
//          square_blocks reads each gradient once.
#include "elements.cuh"

constexpr int THREADS = 256, ROUNDS = 8, BLOCK_ELEMENTS = THREADS * 4 * ROUNDS;

struct Parameter {
    float *master, *m, *v;
    const void* gradient;
    bf16* act;
    long long n;
    int first_block, wide;  // wide: the gradient is fp32
    float rate, keep;       // r and 1 - r d
};

DEVICE int parameter_of(const Parameter* table, int n_parameters, int block) {
    int from = 0, to = n_parameters - 1;
    while (from < to) {
        const int mid = (from + to + 1) >> 1;
        if (table[mid].first_block <= block) from = mid;
        else to = mid - 1;
    }
    return from;
}

DEVICE float4 gradient_at(const Parameter& p, u64 i) {
    if (p.wide) return load_global((const float*)p.gradient + i);
    const uint2 g = load_global((const bf16*)p.gradient + i);
    return make_float4(bf16_lo(g.x), bf16_hi(g.x), bf16_lo(g.y), bf16_hi(g.y));
}
DEVICE float one_gradient(const Parameter& p, u64 i) {
    return p.wide ? ((const float*)p.gradient)[i] : bf16_float(((const bf16*)p.gradient)[i]);
}
/// Whether groups of four elements can be read at once.
DEVICE bool aligned(const Parameter& p) {
    const u64 all = u64(p.master) | u64(p.m) | u64(p.v) | (p.wide ? u64(p.gradient) : 2 * u64(p.gradient)) | 2 * u64(p.act);
    return (all & 15) == 0;
}

struct Numbers {
    float beta1, rest1, beta2, rest2, correction1, correction2, eps, clip;
    DEVICE void step(float& w, float& m, float& v, float g, const Parameter& p) const {
        adamw_element(w, m, v, g, clip, beta1, rest1, beta2, rest2, correction1, correction2, eps, p.rate, p.keep, w, m, v);
    }
};
DEVICE double squared(float gradient) {
    double square;
    square_element(gradient, square);
    return square;
}

// Grid: as many blocks as the table counts; 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    const Parameter* table, int n_parameters, float beta1, float rest1, float beta2, float rest2, float correction1,
    float correction2, float eps, float clip)
{
    const Parameter p = table[parameter_of(table, n_parameters, blockIdx.x)];
    const Numbers numbers{beta1, rest1, beta2, rest2, correction1, correction2, eps, clip};
    const u64 start = u64(blockIdx.x - p.first_block) * BLOCK_ELEMENTS, n = p.n;
    const bool whole = aligned(p);
#pragma unroll 2
    for (int round = 0; round < ROUNDS; round++) {
        const u64 i = start + (round * THREADS + threadIdx.x) * 4;
        if (whole && i + 4 <= n) {
            const float4 g = gradient_at(p, i);
            float4 w = load_global(p.master + i), m = load_global(p.m + i), v = load_global(p.v + i);
            numbers.step(w.x, m.x, v.x, g.x, p);
            numbers.step(w.y, m.y, v.y, g.y, p);
            numbers.step(w.z, m.z, v.z, g.z, p);
            numbers.step(w.w, m.w, v.w, g.w, p);
            store_global(p.master + i, w), store_global(p.m + i, m), store_global(p.v + i, v);
            if (p.act) store_global(p.act + i, make_uint2(pack_bf16(w.x, w.y), pack_bf16(w.z, w.w)));
        } else {
            for (u64 e = i; e < i + 4 && e < n; e++) {
                float w = p.master[e], m = p.m[e], v = p.v[e];
                numbers.step(w, m, v, one_gradient(p, e), p);
                p.master[e] = w, p.m[e] = m, p.v[e] = v;
                if (p.act) p.act[e] = float_bf16(w);
            }
        }
    }
}

/// The sum of a block, in an order that does not depend on when its threads run.
DEVICE double block_sum(double x) {
    __shared__ double part[THREADS / 32];
#pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0.0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) x += part[i];
    return x;
}

/// Of each block's elements of the gradient. Grid as adamw, 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) square_blocks(const Parameter* table, int n_parameters, double* partial) {
    const Parameter p = table[parameter_of(table, n_parameters, blockIdx.x)];
    const u64 start = u64(blockIdx.x - p.first_block) * BLOCK_ELEMENTS, n = p.n;
    const bool whole = aligned(p);
    double sum = 0.0;
#pragma unroll 4
    for (int round = 0; round < ROUNDS; round++) {
        const u64 i = start + (round * THREADS + threadIdx.x) * 4;
        if (whole && i + 4 <= n) {
            const float4 g = gradient_at(p, i);
            sum += squared(g.x) + squared(g.y) + squared(g.z) + squared(g.w);
        } else {
            for (u64 e = i; e < i + 4 && e < n; e++) {
                sum += squared(one_gradient(p, e));
            }
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/// Of each tensor's blocks. Grid: one block per tensor, 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) square_totals(
    const Parameter* table, int n_parameters, const double* partial, double* sums)
{
    const int at = blockIdx.x;
    const long long n_blocks = (table[at].n + BLOCK_ELEMENTS - 1) / BLOCK_ELEMENTS;
    double sum = 0.0;
    for (long long i = threadIdx.x; i < n_blocks; i += THREADS) sum += partial[table[at].first_block + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[at] = sum;
}
