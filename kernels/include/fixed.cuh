// States of reversible stacks in fixed point: the arithmetic of numerics/src/fixed.rs on eight elements of a thread.
// For tile kernels and for generated row kernels.
//
// A state is an int32, its value `state * unit` rounded to fp32 and then to bf16, which is what the layer has read. Forces
// are fp64, sums of a step 64-bit integers that wrap, so every bit is that of the CPU. An inverse is known modulo 2^32 and
// takes 32-bit arithmetic.
#pragma once
#include "ptx.cuh"

#define FIXED __device__ __forceinline__

/// What all elements of a step share: `a = numerator / 2^bits`, `scale = 2^bits weight 2^fraction`, the gate on the force,
/// `inverse = 1 / numerator` modulo 2^32, and `unit = 2^-fraction`.
struct FixedStep {
    int numerator, rest, bits;
    unsigned inverse;
    double scale, gate;
    float unit;
};
FIXED FixedStep fixed_step_of(int numerator, int bits, int inverse, long long scale, const double* gate, float unit) {
    return {numerator, (1 << bits) - numerator, bits, (unsigned)inverse, __longlong_as_double(scale), gate ? *gate : 1.0, unit};
}

FIXED float fixed_low(unsigned pair) { return __uint_as_float(pair << 16); }
FIXED float fixed_high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
FIXED void fixed_widen(float (&to)[8], const uint4& from) {
    to[0] = fixed_low(from.x), to[1] = fixed_high(from.x), to[2] = fixed_low(from.y), to[3] = fixed_high(from.y);
    to[4] = fixed_low(from.z), to[5] = fixed_high(from.z), to[6] = fixed_low(from.w), to[7] = fixed_high(from.w);
}
FIXED uint4 fixed_narrow(const float (&from)[8]) {
    return make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                      pack_bf16(from[6], from[7]));
}

/// Eight elements in a row, at a multiple of eight.
FIXED void fixed_load(int (&to)[8], const int* __restrict__ from) {
    const int4 a = ((const int4*)from)[0], b = ((const int4*)from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
FIXED void fixed_store(int* __restrict__ to, const int (&from)[8]) {
    ((int4*)to)[0] = make_int4(from[0], from[1], from[2], from[3]);
    ((int4*)to)[1] = make_int4(from[4], from[5], from[6], from[7]);
}

/// Kept bits take the next power of two: 1, 2, 4 or 8 bits, so eight elements take that many bytes; 0 for none.
FIXED int fixed_width(int bits) { return bits <= 2 ? bits : bits <= 4 ? 4 : 8; }
/// The packed bits of the eight elements number `eight`.
FIXED void fixed_store_kept(unsigned char* __restrict__ kept, long long eight, int bits, unsigned long long word) {
    switch (fixed_width(bits)) {
        case 1: kept[eight] = (unsigned char)word; break;
        case 2: ((unsigned short*)kept)[eight] = (unsigned short)word; break;
        case 4: ((unsigned*)kept)[eight] = (unsigned)word; break;
        case 8: ((unsigned long long*)kept)[eight] = word; break;
    }
}
FIXED unsigned long long fixed_load_kept(const unsigned char* __restrict__ kept, long long eight, int bits) {
    switch (fixed_width(bits)) {
        case 1: return kept[eight];
        case 2: return ((const unsigned short*)kept)[eight];
        case 4: return ((const unsigned*)kept)[eight];
        case 8: return ((const unsigned long long*)kept)[eight];
    }
    return 0;
}

FIXED void fixed_values(float (&value)[8], const int (&state)[8], float unit) {
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = (float)state[i] * unit;
}
/// To nearest, ties to even; saturates, and 0 for what is not a number.
FIXED long long fixed_rounded(double x) { return x == x ? __double2ll_rn(x) : 0; }
/// The scaled forces on eight elements, rounded. Gives a bit for each that is no number or too large to be one of a state.
FIXED unsigned fixed_pushes(const FixedStep& step, const int (&now)[8], const uint4& result, long long (&push)[8]) {
    // Below 2^51 a sum with 3 2^51 is rounded to a whole number, whose bits are the low ones.
    const double magic = 6755399441055744.0;
    float p[8], y[8];
    fixed_values(p, now, step.unit);
    fixed_widen(p, fixed_narrow(p));
    fixed_widen(y, result);
    double x[8];
    int top = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        x[i] = ((double)y[i] - (double)p[i]) * step.gate * step.scale;
        top = max(top, __double2hiint(x[i]) & 0x7fffffff);
        push[i] = __double_as_longlong(__dadd_rn(x[i], magic)) - __double_as_longlong(magic);
    }
    if (top < 0x43200000) return 0;
    unsigned odd = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        push[i] = fixed_rounded(x[i]);
        odd |= fabs(x[i]) < 9e15 ? 0u : 1u << i;
    }
    return odd;
}

/// The states after `now`, and the bits that are shifted out. Gives a bit for each element whose state is beyond half of
/// the range, or whose force is not a number.
FIXED unsigned fixed_forward(const FixedStep& step, const int (&before)[8], const int (&now)[8], const uint4& result,
                             int (&next)[8], unsigned long long& kept) {
    const int width = fixed_width(step.bits), mask = (1 << step.bits) - 1;
    long long push[8];
    unsigned beyond = fixed_pushes(step, now, result, push), low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const long long share = (long long)step.numerator * before[i] + (long long)step.rest * now[i];
        const long long sum = (long long)((unsigned long long)share + (unsigned long long)push[i]);
        const long long whole = sum >> step.bits;
        next[i] = (int)whole;
        (i < 4 ? low : high) |= (unsigned)((int)sum & mask) << (i % 4 * width);
        beyond |= (unsigned long long)(whole + (1ll << 30)) <= 1ull << 31 ? 0u : 1u << i;
    }
    kept = low | (unsigned long long)high << (4 * width);
    return beyond;
}

/// The states before `now`.
FIXED void fixed_reverse(const FixedStep& step, const int (&next)[8], const int (&now)[8], const uint4& result,
                         unsigned long long kept, int (&before)[8]) {
    const int width = fixed_width(step.bits);
    const unsigned mask = (1u << step.bits) - 1, low = (unsigned)kept, high = (unsigned)(kept >> (4 * width));
    long long push[8];
    fixed_pushes(step, now, result, push);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const unsigned sum = (unsigned)next[i] << step.bits | ((i < 4 ? low : high) >> (i % 4 * width) & mask);
        const unsigned share = sum - (unsigned)step.rest * (unsigned)now[i] - (unsigned)push[i];
        before[i] = (int)(share * step.inverse);
    }
}

/// Eight elements of a layer's result that a kernel has in registers, as it would write them. From here on they are held as
/// pairs, which is half of the registers.
FIXED uint4 fixed_held(const float (&result)[8]) {
    uint4 held = fixed_narrow(result);
    keep_packed(held);
    return held;
}

/// Adds to a count that is nearly always 0; whole numbers, so the order does not matter.
FIXED void fixed_count(unsigned long long* count, unsigned beyond) {
    if (beyond) atomicAdd(count, (unsigned long long)__popc(beyond));
}

/// [`fixed_forward`] from memory to memory, for the eight elements at `at`, a multiple of eight.
FIXED void fixed_forward_at(const FixedStep& step, const int* __restrict__ before, const int* __restrict__ now, const uint4& result,
                            int* __restrict__ next, unsigned short* __restrict__ value, unsigned char* __restrict__ kept,
                            unsigned long long* count, long long at) {
    int old[8], current[8], made[8];
    unsigned long long word;
    float shown[8];
    fixed_load(old, before + at);
    fixed_load(current, now + at);
    fixed_count(count, fixed_forward(step, old, current, result, made, word));
    fixed_store(next + at, made);
    fixed_values(shown, made, step.unit);
    *(uint4*)(value + at) = fixed_narrow(shown);
    fixed_store_kept(kept, at / 8, step.bits, word);
}
/// [`fixed_reverse`] from memory to memory.
FIXED void fixed_reverse_at(const FixedStep& step, const int* __restrict__ next, const int* __restrict__ now, const uint4& result,
                            const unsigned char* __restrict__ kept, int* __restrict__ before, unsigned short* __restrict__ value,
                            long long at) {
    int after[8], current[8], made[8];
    float shown[8];
    fixed_load(after, next + at);
    fixed_load(current, now + at);
    fixed_reverse(step, after, current, result, fixed_load_kept(kept, at / 8, step.bits), made);
    fixed_store(before + at, made);
    fixed_values(shown, made, step.unit);
    *(uint4*)(value + at) = fixed_narrow(shown);
}
