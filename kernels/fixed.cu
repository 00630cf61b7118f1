// States of reversible stacks in fixed point: steps, their inverses, the cotangents that go beside them, packed bits.
//
// Shapes   all flat, n elements. States int32; values, results of layers and cotangents bf16; kept bits u8, 8 / width elements
//          to a byte (width: the bits of the step, rounded up to a power of two); `gate` fp64 [] or null for 1; `count`
//          u64 [1]. All addresses are multiples of 16.
// Meaning  numerics/src/fixed.rs: next = (m before + (2^k - m) now + round(scale gate (y - p))) >> k, with p the value of
//          `now`, and the low k bits kept; `scale` is the bits of an fp64.
// Numerics forces fp64, sums 64-bit: the bits of the CPU. Cotangents are rounded to bf16 wherever the composition rounds.
// Outputs  `=`, but for `count`, which is added to: elements beyond half of the range. Whole numbers, so atomics keep bits.
// Limit    memory, one pass: a step moves 16.1 bytes an element with one kept bit, an inverse as many, cotangents 12.
// grid n / 2048, 256 threads, eight elements each.
#include "base.cuh"
#include "fixed.cuh"

DEVICE long long first() { return (blockIdx.x * 256ll + threadIdx.x) * 8; }

/// Of the last elements, which are not eight: `count` in a row, 0 after them.
template <class T> DEVICE void some(T (&to)[8], const T* from, int count) {
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = i < count ? from[i] : T(0);
}
template <class T> DEVICE void put(T* to, const T (&from)[8], int count) {
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < count) to[i] = from[i];
}
DEVICE void read(float (&to)[8], const bf16* from, int count) {
    if (count == 8) {
        fixed_widen(to, *(const uint4*)from);
        return;
    }
    bf16 part[8];
    some(part, from, count);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = bf16_float(part[i]);
}
/// As pairs.
DEVICE uint4 read_pairs(const bf16* from, int count) {
    if (count == 8) return *(const uint4*)from;
    bf16 part[8];
    some(part, from, count);
    return make_uint4(part[0] | u32(part[1]) << 16, part[2] | u32(part[3]) << 16, part[4] | u32(part[5]) << 16,
                      part[6] | u32(part[7]) << 16);
}
DEVICE void read(int (&to)[8], const int* from, int count) {
    if (count == 8) fixed_load(to, from);
    else some(to, from, count);
}
DEVICE void write(bf16* to, const float (&from)[8], int count) {
    if (count == 8) {
        *(uint4*)to = fixed_narrow(from);
        return;
    }
    bf16 part[8];
#pragma unroll
    for (int i = 0; i < 8; i++) part[i] = float_bf16(from[i]);
    put(to, part, count);
}
DEVICE void write(int* to, const int (&from)[8], int count) {
    if (count == 8) fixed_store(to, from);
    else put(to, from, count);
}
DEVICE void write_value(bf16* to, const int (&state)[8], float unit, int count) {
    float value[8];
    fixed_values(value, state, unit);
    write(to, value, count);
}
/// Elements of this thread: eight, or what is left, or none.
DEVICE int own(long long n) {
    const long long left = n - first();
    return left >= 8 ? 8 : left < 0 ? 0 : int(left);
}

extern "C" __global__ void __launch_bounds__(256) fixed_quantize(const bf16* x, int* state, bf16* value, u64* count, float factor, float unit, long long n) {
    const int own_n = own(n);
    if (own_n == 0) return;
    const long long at = first();
    float in[8];
    int made[8];
    read(in, x + at, own_n);
    u32 beyond = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const double scaled = double(in[i]) * double(factor);
        made[i] = int(fixed_rounded(scaled));
        beyond |= fabs(scaled) <= double(1 << 30) ? 0u : 1u << i;
    }
    fixed_count(count, beyond);
    write(state + at, made, own_n);
    write_value(value + at, made, unit, own_n);
}

extern "C" __global__ void __launch_bounds__(256) fixed_value(const int* state, bf16* value, float unit, long long n) {
    const int own_n = own(n);
    if (own_n == 0) return;
    int in[8];
    read(in, state + first(), own_n);
    write_value(value + first(), in, unit, own_n);
}

extern "C" __global__ void __launch_bounds__(256) fixed_step(
    const int* before, const int* now, const bf16* y, const double* gate, int* next, bf16* value, u8* kept, u64* count,
    int numerator, int bits, long long scale, float unit, long long n)
{
    const int own_n = own(n);
    if (own_n == 0) return;
    const FixedStep step = fixed_step_of(numerator, bits, 0, scale, gate, unit);
    const long long at = first();
    const uint4 result = read_pairs(y + at, own_n);
    if (own_n == 8) {
        fixed_forward_at(step, before, now, result, next, value, kept, count, at);
        return;
    }
    int old[8], current[8], made[8];
    u64 word;
    some(old, before + at, own_n);
    some(current, now + at, own_n);
    const u32 beyond = fixed_forward(step, old, current, result, made, word);
    fixed_count(count, beyond & ((1u << own_n) - 1));
    put(next + at, made, own_n);
    write_value(value + at, made, unit, own_n);
    const int width = fixed_width(bits);
    for (int byte = 0; byte * 8 < own_n * width; byte++) kept[at / 8 * width + byte] = u8(word >> (byte * 8));
}

extern "C" __global__ void __launch_bounds__(256) fixed_inverse(
    const int* next, const int* now, const bf16* y, const double* gate, const u8* kept, int* before, bf16* value,
    int numerator, int bits, int inverse, long long scale, float unit, long long n)
{
    const int own_n = own(n);
    if (own_n == 0) return;
    const FixedStep step = fixed_step_of(numerator, bits, inverse, scale, gate, unit);
    const long long at = first();
    const uint4 result = read_pairs(y + at, own_n);
    if (own_n == 8) {
        fixed_reverse_at(step, next, now, result, kept, before, value, at);
        return;
    }
    int after[8], current[8], made[8];
    some(after, next + at, own_n);
    some(current, now + at, own_n);
    const int width = fixed_width(bits);
    u64 word = 0;
    for (int byte = 0; byte * 8 < own_n * width; byte++) word |= u64(kept[at / 8 * width + byte]) << (byte * 8);
    fixed_reverse(step, after, current, result, word, made);
    put(before + at, made, own_n);
    write_value(value + at, made, unit, own_n);
}

DEVICE float round_bf16(float x) { return bf16_float(float_bf16(x)); }
DEVICE float seed_factor(long long weight, const double* gate) { return float(__longlong_as_double(weight) * (gate ? *gate : 1.0)); }

// What a layer is differentiated with: weight gate d.
extern "C" __global__ void __launch_bounds__(256) fixed_seed(const bf16* d, const double* gate, bf16* seed, long long weight, long long n) {
    const int own_n = own(n);
    if (own_n == 0) return;
    const float factor = seed_factor(weight, gate);
    float x[8];
    read(x, d + first(), own_n);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= factor;
    write(seed + first(), x, own_n);
}

// The cotangent of the state that a layer read: late_share late + share d - seed + through, in this order; `late` is null
// where no later step read that state.
extern "C" __global__ void __launch_bounds__(256) fixed_back(
    const bf16* late, const bf16* d, const bf16* through, const double* gate, bf16* to, float late_share, float share,
    long long weight, long long n)
{
    const int own_n = own(n);
    if (own_n == 0) return;
    const float factor = seed_factor(weight, gate);
    const long long at = first();
    float x[8], y[8], z[8];
    read(x, d + at, own_n);
    read(y, through + at, own_n);
    if (late) read(z, late + at, own_n);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float direct = round_bf16(x[i] * share), seed = round_bf16(x[i] * factor);
        const float sum = late ? round_bf16(round_bf16(z[i] * late_share) + direct) : direct;
        x[i] = round_bf16(sum - seed) + y[i];
    }
    write(to + at, x, own_n);
}

// Truth values, eight to a byte.
extern "C" __global__ void __launch_bounds__(256) pack_bits(const u8* x, u8* packed, long long n) {
    const int own_n = own(n);
    if (own_n == 0) return;
    u8 in[8];
    if (own_n == 8) *(u64*)in = *(const u64*)(x + first());
    else some(in, x + first(), own_n);
    u32 byte = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) byte |= in[i] ? 1u << i : 0u;
    packed[first() / 8] = u8(byte);
}

extern "C" __global__ void __launch_bounds__(256) unpack_bits(const u8* packed, u8* x, long long n) {
    const int own_n = own(n);
    if (own_n == 0) return;
    const u32 byte = packed[first() / 8];
    u64 all = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) all |= u64(byte >> i & 1) << (8 * i);
    if (own_n == 8) *(u64*)(x + first()) = all;
    else
        for (int i = 0; i < own_n; i++) x[first() + i] = u8(all >> (8 * i));
}
