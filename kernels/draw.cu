// Draws of start values: a function of the key of a path and of the place of an element.
//
// Shapes   y [n], fp32 or bf16. key: the 8 words of a ChaCha8 key.
// Meaning  numerics/src/draw.rs: element i has the words 4 i .. 4 i + 3 of the key's stream (64-bit counter of blocks, stream
//          0), which are two numbers of 53 bits, and `a` and `b` are what its law is made of
// Numerics f64, rounded to fp32 and from there to bf16. Sums and products of one rounding each, so a uniform draw has the bits
//          of the processor's. Logarithm and cosine are CUDA's: a draw that needs them differs by an ulp of f64 here and there,
//          and then rarely rounds to the neighbour, once in some 10^8 draws of fp32.
// Outputs  `=`
// Limit    arithmetic: 8 rounds are 100 operations an element, and both functions as many in f64, of which an H200 does 17e12 a
//          second. Measured there: 76 billion normal elements a second, 0.2 s for the 15e9 of one rank's share of the 120B stage.
#include "base.cuh"

struct Key {
    u32 word[8];
};

DEVICE u32 turned(u32 x, int by) { return __funnelshift_l(x, x, by); }
DEVICE void quarter(u32& a, u32& b, u32& c, u32& d) {
    a += b, d = turned(d ^ a, 16);
    c += d, b = turned(b ^ c, 12);
    a += b, d = turned(d ^ a, 8);
    c += d, b = turned(b ^ c, 7);
}

/// The 16 words of a block of the stream.
DEVICE void block_of(u32 (&x)[16], const Key& key, u64 number) {
    const u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, key.word[0], key.word[1], key.word[2], key.word[3],
                           key.word[4], key.word[5], key.word[6], key.word[7], u32(number), u32(number >> 32), 0, 0};
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] = start[i];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
#pragma unroll
        for (int i = 0; i < 4; i++) quarter(x[i], x[4 + i], x[8 + i], x[12 + i]);
#pragma unroll
        for (int i = 0; i < 4; i++) quarter(x[i], x[4 + (i + 1) % 4], x[8 + (i + 2) % 4], x[12 + (i + 3) % 4]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] += start[i];
}

/// 53 bits of two words.
DEVICE u64 bits53(u32 low, u32 high) { return (u64(high) << 32 | low) >> 11; }

constexpr double UNIT = 1.0 / double(1ull << 53);

// The laws, of the two numbers of an element.
struct Normal {  // a: standard deviation
    DEVICE static double of(u64 first, u64 second, double a, double) {
        const double radius = sqrt(__dmul_rn(-2.0, log(__dmul_rn(double(first + 1), UNIT))));
        const double angle = __dmul_rn(__dmul_rn(6.283185307179586, double(second)), UNIT);
        return __dmul_rn(a, __dmul_rn(radius, cos(angle)));
    }
};
struct Uniform {  // on [a, b)
    DEVICE static double of(u64 first, u64, double a, double b) {
        return __dadd_rn(a, __dmul_rn(__dadd_rn(b, -a), __dmul_rn(double(first), UNIT)));
    }
};
struct LogUniform {  // the logarithm of a draw on (a, b]
    DEVICE static double of(u64 first, u64, double a, double b) {
        return log(__dadd_rn(b, -__dmul_rn(__dadd_rn(b, -a), __dmul_rn(double(first), UNIT))));
    }
};

DEVICE void put(float& to, double x) { to = float(x); }
DEVICE void put(bf16& to, double x) { to = float_bf16(float(x)); }

template <typename Law, typename T> DEVICE void draw(T* y, long long n, const Key& key, double a, double b) {
    const u64 number = u64(blockIdx.x) * 256 + threadIdx.x, first = number * 4;
    if (first >= u64(n)) return;
    u32 x[16];
    block_of(x, key, number);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (first + i < u64(n))
            put(y[first + i], Law::of(bits53(x[4 * i], x[4 * i + 1]), bits53(x[4 * i + 2], x[4 * i + 3]), a, b));
}

// grid n / 1024 rounded up, 256 threads of four elements. `a` and `b` come as their bits.
#define ARGUMENTS(T) \
    T *y, long long n, int k0, int k1, int k2, int k3, int k4, int k5, int k6, int k7, long long a, long long b
#define DRAW(LAW)                                                                                                   \
    draw<LAW>(y, n, Key{{u32(k0), u32(k1), u32(k2), u32(k3), u32(k4), u32(k5), u32(k6), u32(k7)}}, __longlong_as_double(a), \
              __longlong_as_double(b));

extern "C" __global__ void __launch_bounds__(256) draw_normal_f32(ARGUMENTS(float)) { DRAW(Normal) }
extern "C" __global__ void __launch_bounds__(256) draw_normal_bf16(ARGUMENTS(bf16)) { DRAW(Normal) }
extern "C" __global__ void __launch_bounds__(256) draw_uniform_f32(ARGUMENTS(float)) { DRAW(Uniform) }
extern "C" __global__ void __launch_bounds__(256) draw_uniform_bf16(ARGUMENTS(bf16)) { DRAW(Uniform) }
extern "C" __global__ void __launch_bounds__(256) draw_log_uniform_f32(ARGUMENTS(float)) { DRAW(LogUniform) }
extern "C" __global__ void __launch_bounds__(256) draw_log_uniform_bf16(ARGUMENTS(bf16)) { DRAW(LogUniform) }
