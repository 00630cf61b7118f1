// Weights in 8 bits: a code per element and an fp32 scale per row; read back, and adapters merged into them.
//
// Shapes   x [rows, n] fp32 or bf16; codes [rows, n] i8; scale [rows] fp32; bad [1] i64, the first element that is not
//          finite, or 2^63 - 1, which the caller sets before; left [experts, width, rank], right [experts, rank, n] fp32
//          or bf16, rows = experts width; y [rows, n] bf16, n a multiple of 8 and rows n below 2^34.
//          split_rows: x [rows, k] bf16, k a multiple of 64; planes [rows, 2, k rounded up to 128] i8, units [rows] fp32
//          split_scaled: x0, x1 [places / run, k] bf16, scale0, scale1 [experts, k] fp32, order and bounds as places.cuh says; planes and
//          units as of rows of both, one behind the other, for each place
// Meaning  numerics/src/int8.rs, int8: scale = largest magnitude / 127 in fp32, code = x / scale in fp64, to the nearest, the
//          even one of two; docs/ops.md, `merge_adapter`: x = scale code + sum over the rank of left right, in fp64, then fp32
//          dequantize: y = scale code, in fp32, then bf16
//          split_rows: x = unit (256 high + low) for planes high, low; beyond k zeros. The unit is a power of two, such that the
//          row's largest magnitude is from 8192 to 16320 units: what is at least a 64th of it is exact, what is less is off by at most
//          half a unit, 2^-14 of it. Magnitudes below 2^-113 count as that. A row that is not finite has a unit of NaN.
//          split_scaled: the same of x scale, in fp32, and of sixteen neighbours in the order 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15
// Numerics as there, bit for bit.
// Outputs  codes, scale, y `=`; bad: the least of what stands there. In a row that is not finite codes and scale mean nothing.
// Limit    memory: the row once from memory and once from the first cache; merge: fp64, 2 rank operations per element.
#include "places.cuh"

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

// ---- rows in 16 bits, for products with codes (experts_planes.cuh) ----

/// Sixteen neighbours of a row as numbers.
DEVICE void sixteen(float (&v)[16], const uint4 (&half)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u32 word[4] = {half[h].x, half[h].y, half[h].z, half[h].w};
#pragma unroll
        for (int i = 0; i < 4; i++) v[8 * h + 2 * i] = bf16_lo(word[i]), v[8 * h + 2 * i + 1] = bf16_hi(word[i]);
    }
}
DEVICE void sixteen(float (&v)[16], const bf16* x) {
    const uint4 half[2] = {load_early(x), load_early(x + 8)};
    sixteen(v, half);
}

/// The largest magnitude, as bits: larger than those of infinity where one is not a number.
DEVICE u32 largest(const float (&v)[16]) {
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
    return most;
}

/// Byte `I` of four words.
template <int I> DEVICE u32 bytes_of(u32 a, u32 b, u32 c, u32 d) {
    constexpr int PAIR = I | (4 + I) << 4;
    return __byte_perm(__byte_perm(a, b, PAIR), __byte_perm(c, d, PAIR), 0x5410);
}

/// Sixteen numbers in units to both planes. PAIRED in the order 0 1 8 9, 2 3 10 11, ..
template <bool PAIRED> DEVICE void put_sixteen(const float (&v)[16], float inverse, u8* high, u8* low) {
    u32 lo[4], hi[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 unit[4], up[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            // To the nearest, the even one of two, in the low 16 bits: the last place of the sum is 1.
            unit[e] = __float_as_uint(__fmaf_rn(v[PAIRED ? 2 * i + e % 2 + e / 2 * 8 : 4 * i + e], inverse, 12582912.f));
            up[e] = unit[e] + 128;  // the low byte is signed
        }
        lo[i] = bytes_of<0>(unit[0], unit[1], unit[2], unit[3]), hi[i] = bytes_of<1>(up[0], up[1], up[2], up[3]);
    }
    *(uint4*)high = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    *(uint4*)low = make_uint4(lo[0], lo[1], lo[2], lo[3]);
}

/// The largest of a row that `warps` warps have; all threads call it. Two calls one behind the other have two `part`s.
DEVICE u32 largest_of_row(u32 most, u32* part, int warps) {
    const int warp = threadIdx.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) most = max(most, __shfl_xor_sync(~0u, most, o));
    if (warps == 1) return most;
    if ((threadIdx.x & 31) == 0) part[warp] = most;
    __syncthreads();
    for (int i = 0; i < warps; i++) most = max(most, part[warp / warps * warps + i]);
    return most;
}

/// A row's unit, and what a number is multiplied by to have it in units.
struct Unit {
    float unit, inverse;
    DEVICE Unit(u32 most) {
        const u32 exponent = max(most >> 23, 14u);
        inverse = __uint_as_float((267 - exponent) << 23);
        unit = __uint_as_float(most >= 0x7f800000u ? 0x7fffffffu : (exponent - 13) << 23);
    }
};

// A row is `warps` warps' (1, 2, 4, 8), best one for 512 elements. Grid: rows / (8 / warps); 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) split_rows(const bf16* x, u8* planes, float* units, long long rows, int k, int warps)
{
    __shared__ u32 part[THREADS / 32];
    const int warp = threadIdx.x >> 5, stride = 32 * warps, first = warp % warps * 32 + (threadIdx.x & 31), n = k / 16, total = (n + 7) / 8 * 8;
    const u64 row = u64(blockIdx.x) * (THREADS / 32 / warps) + warp / warps;
    const bool real = row < u64(rows);
    const bf16* from = x + row * k;
    u32 most = 0;
    for (int c = first; real && c < n; c += stride) {
        float v[16];
        sixteen(v, from + 16 * c);
        most = max(most, largest(v));
    }
    const Unit u(largest_of_row(most, part, warps));
    if (!real) return;
    if (first == 0) units[row] = u.unit;
    u8 *high = planes + row * total * 32, *low = high + total * 16;
    // Again from the first cache.
    for (int c = first; c < total; c += stride) {
        float v[16] = {};
        if (c < n) sixteen(v, from + 16 * c);
        put_sixteen<false>(v, u.inverse, high + c * 16, low + c * 16);
    }
}

// The same for a row of one or two terms (x1 null), up to 4096 elements together, of each place that has an expert, times its scales. A block has
// up to 32 places of one expert, and a thread sixteen columns with their scales. Grid: places / 32 + experts + 1; 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS, 4) split_scaled(
    const bf16* x0, const bf16* x1, const float* scale0, const float* scale1, const long long* order, const long long* bounds, u8* planes,
    float* units, int places, int experts, int k, int run, int warps)
{
    constexpr int SIZE = 32;
    __shared__ u32 part[2][THREADS / 32], table[SIZE], rows[SIZE];
    Tile tile;
    if (!tile_at(tile, bounds, SIZE, experts, places, blockIdx.x, false) || tile.expert == experts) return;
    if (int(threadIdx.x) < tile.rows) {
        const u32 place = place_at(order, tile.first + threadIdx.x, places);
        table[threadIdx.x] = place, rows[threadIdx.x] = place / u32(run);
    }
    __syncthreads();
    const int warp = threadIdx.x >> 5, own = warp % warps * 32 + (threadIdx.x & 31), at_once = THREADS / 32 / warps;
    const int term = k / 16, n = x1 ? 2 * term : term, total = (n + 7) / 8 * 8;
    const bool inside = own < n;
    const bf16* x = (own < term ? x0 : x1 - k) + own * 16;
    float scale[16];
    for (int i = 0; i < 16; i++) scale[i] = inside ? ((own < term ? scale0 : scale1 - k) + u64(tile.expert) * k + own * 16)[i] : 0.f;
    uint4 next[2] = {};
    const auto fetch = [&](int i) {
        if (!inside || i >= tile.rows) return;
        const bf16* from = x + u64(rows[i]) * k;
        next[0] = load_early(from), next[1] = load_early(from + 8);
    };
    fetch(warp / warps);
    for (int base = 0; base < tile.rows; base += at_once) {
        const int i = base + warp / warps;
        float v[16];
        sixteen(v, next);
#pragma unroll
        for (int e = 0; e < 16; e++) v[e] *= scale[e];
        fetch(i + at_once);
        const Unit u(largest_of_row(largest(v), part[base / at_once & 1], warps));
        if (i >= tile.rows || own >= total) continue;
        const u64 place = table[i];
        if (own == 0) units[place] = u.unit;
        u8* high = planes + (place * 2 * total + own) * 16;
        put_sixteen<true>(v, u.inverse, high, high + total * 16);
    }
}
