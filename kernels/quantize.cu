// Weights in 8 bits: a code per element and an fp32 scale per row; read back, and adapters merged into them.
//
// Shapes   x [rows, n] fp32 or bf16; codes [rows, n] i8; scale [rows] fp32; bad [1] i64, the first element that is not
//          finite, or 2^63 - 1, which the caller sets before; left [experts, width, rank], right [experts, rank, n] fp32
//          or bf16, rows = experts width; y [rows, n] bf16, n a multiple of 8 and rows n below 2^34.
// Meaning  numerics/src/int8.rs, int8: scale = largest magnitude / 127 in fp32, code = x / scale in fp64, to the nearest, the
//          even one of two; docs/ops.md, `merge_adapter`: x = scale code + sum over the rank of left right, in fp64, then fp32
//          dequantize: y = scale code, in fp32, then bf16
// Numerics as there, bit for bit.
// Outputs  codes, scale, y `=`; bad: the least of what stands there. In a row that is not finite codes and scale mean nothing.
// Limit    memory: the row once from memory and once from the first cache; merge: fp64, 2 rank operations per element.
#include "base.cuh"

constexpr int THREADS = 256;

DEVICE float element(const float* x, u64 i) { return x[i]; }
DEVICE float element(const bf16* x, u64 i) { return bf16_float(x[i]); }

/// The largest of a block; a row of NaN gives what its other elements give.
DEVICE float block_max(float x) {
    __shared__ float part[THREADS / 32];
    x = warp_max(x);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) x = fmaxf(x, part[i]);
    return x;
}

DEVICE signed char code_of(float x, float scale) {
    if (scale == 0.f) return 0;
    const double unit = rint(__ddiv_rn(double(x), double(scale)));
    return (signed char)(int)fmin(fmax(unit, -127.0), 127.0);
}

/// Codes and scale of a row whose elements `at` gives, four neighbours at a time where `n` allows.
template <class At> DEVICE void quantize_row(const At& at, signed char* codes, float* scale, long long* bad, u64 row, int n) {
    float most = 0.f;
    long long first = 0x7fffffffffffffffll;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float x = at(i);
        most = fmaxf(most, fabsf(x));
        if (!(fabsf(x) < INF)) first = min(first, (long long)(row * n + i));
    }
    if (first != 0x7fffffffffffffffll) atomicMin(bad, first);
    most = __fdiv_rn(block_max(most), 127.f);
    if (threadIdx.x == 0) scale[row] = most;
    if (n % 4 == 0) {
        for (int i = threadIdx.x * 4; i < n; i += THREADS * 4)
            *(char4*)(codes + row * n + i) = make_char4(code_of(at(i), most), code_of(at(i + 1), most), code_of(at(i + 2), most), code_of(at(i + 3), most));
    } else {
        for (int i = threadIdx.x; i < n; i += THREADS) codes[row * n + i] = code_of(at(i), most);
    }
}

template <class T> struct Plain {
    const T* row;
    DEVICE float operator()(int i) const { return element(row, i); }
};

// Grid: rows; 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) quantize_float(
    const float* x, signed char* codes, float* scale, long long* bad, int n)
{
    quantize_row(Plain<float>{x + u64(blockIdx.x) * n}, codes, scale, bad, blockIdx.x, n);
}
extern "C" __global__ void __launch_bounds__(THREADS) quantize_bf16(
    const bf16* x, signed char* codes, float* scale, long long* bad, int n)
{
    quantize_row(Plain<bf16>{x + u64(blockIdx.x) * n}, codes, scale, bad, blockIdx.x, n);
}

/// A row that a block has put into its shared memory.
struct Held {
    const float* row;
    DEVICE float operator()(int i) const { return row[i]; }
};

// Grid: rows; 256 threads, 4 n bytes. old_codes may be codes, old_scale scale.
template <class T> DEVICE void merge_row(
    const signed char* old_codes, const float* old_scale, const T* left, const T* right, signed char* codes, float* scale,
    long long* bad, int n, int rank, int width)
{
    float* held = (float*)smem;
    const u64 row = blockIdx.x;
    const double old = old_scale[row];
    const T *own = left + row * rank, *down = right + row / width * rank * n;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        double x = old * old_codes[row * n + i];
        for (int r = 0; r < rank; r++) x = fma(double(element(own, r)), double(element(down, u64(r) * n + i)), x);
        held[i] = float(x);
    }
    __syncthreads();
    quantize_row(Held{held}, codes, scale, bad, row, n);
}
extern "C" __global__ void __launch_bounds__(THREADS) merge_float(
    const signed char* old_codes, const float* old_scale, const float* left, const float* right, signed char* codes,
    float* scale, long long* bad, int n, int rank, int width)
{
    merge_row(old_codes, old_scale, left, right, codes, scale, bad, n, rank, width);
}
extern "C" __global__ void __launch_bounds__(THREADS) merge_bf16(
    const signed char* old_codes, const float* old_scale, const bf16* left, const bf16* right, signed char* codes,
    float* scale, long long* bad, int n, int rank, int width)
{
    merge_row(old_codes, old_scale, left, right, codes, scale, bad, n, rank, width);
}

/// Code `i` of four, exactly.
template <int I> DEVICE float code_float(u32 four) {
    return __uint_as_float(__byte_perm(four ^ 0x80808080u, 0x4b000000u, 0x7440 | I)) - 8388736.f;
}

// Grid: elements / 8192; 256 threads, eight neighbours four times each.
extern "C" __global__ void __launch_bounds__(THREADS) dequantize_bf16(
    const signed char* codes, const float* scale, bf16* y, long long total, int n)
{
    uint2 word[4];
    float unit[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u64 i = (u64(blockIdx.x) * 4 + j) * 2048 + threadIdx.x * 8;
        if (i >= total) continue;
        word[j] = *(const uint2*)(codes + i);
        unit[j] = scale[u32(i >> 3) / u32(n >> 3)];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u64 i = (u64(blockIdx.x) * 4 + j) * 2048 + threadIdx.x * 8;
        if (i >= total) continue;
        u32 r[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 four = h ? word[j].y : word[j].x;
            r[2 * h] = pack_bf16(unit[j] * code_float<0>(four), unit[j] * code_float<1>(four));
            r[2 * h + 1] = pack_bf16(unit[j] * code_float<2>(four), unit[j] * code_float<3>(four));
        }
        *(uint4*)(y + i) = make_uint4(r[0], r[1], r[2], r[3]);
    }
}
