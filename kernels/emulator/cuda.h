// CUDA C++ for a host compiler: included before every source. What a kernel means by itself is C++; this has the words that are not.
#pragma once
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "machine.h"

#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

struct char4 { signed char x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
static inline char4 make_char4(signed char x, signed char y, signed char z, signed char w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

struct ThreadIndex {
    struct X { operator int() const { return emulator::machine.now->thread; } } x;
    struct Zero { operator int() const { return 0; } } y, z;
};
struct BlockIndex {
    struct X { operator int() const { return emulator::machine.now->block->at.x; } } x;
    struct Y { operator int() const { return emulator::machine.now->block->at.y; } } y;
    struct Z { operator int() const { return emulator::machine.now->block->at.z; } } z;
};
static const ThreadIndex threadIdx;
static const BlockIndex blockIdx;
#define blockDim emulator::machine.threads
#define gridDim emulator::machine.grid

// ---- numbers ----
template <class To, class From> static inline To same_bits(const From& x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof(To));
    return y;
}
static inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
static inline float __int_as_float(int x) { return same_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return same_bits<int>(x); }
static inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
static inline int __double2hiint(double x) { return int(same_bits<long long>(x) >> 32); }
static inline int __double2loint(double x) { return int(same_bits<long long>(x)); }
static inline long long __double2ll_rn(double x) {
    if (x != x) return (long long)0x8000000000000000ull;
    if (x >= 9223372036854775808.0) return 0x7fffffffffffffffll;
    if (x < -9223372036854775808.0) return (long long)0x8000000000000000ull;
    return llrint(x);
}
static inline int __float2int_rn(float x) { return x != x ? 0 : x >= 2147483648.f ? 0x7fffffff : x < -2147483648.f ? int(0x80000000) : (int)lrintf(x); }
static inline int __float2int_rd(float x) { return __float2int_rn(floorf(x)); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __ddiv_rn(double x, double y) { return x / y; }
static inline double __dsqrt_rn(double x) { return sqrt(x); }
static inline float quick_exp(float x) { return expf(x); }
static inline float quick_log(float x) { return logf(x); }
static inline float quick_log2(float x) { return log2f(x); }
#define __expf quick_exp
#define __logf quick_log
#define __log2f quick_log2
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) { return std::common_type_t<A, B>(b) < std::common_type_t<A, B>(a) ? b : a; }
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) { return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? b : a; }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned which = select >> (4 * i) & 0xf;
        unsigned byte = unsigned(both >> (8 * (which & 7))) & 0xff;
        if (which & 8) byte = byte & 0x80 ? 0xff : 0;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) { return unsigned(((unsigned long long)high << 32 | low) >> (by & 31)); }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) { return unsigned(((unsigned long long)high << 32 | low) << (by & 31) >> 32); }

// ---- memory ----
template <class T> static inline T __ldg(const T* from) { return *from; }
template <class T> static inline T __ldcs(const T* from) { return *from; }
template <class T> static inline T __ldcg(const T* from) { return *from; }
template <class T> static inline void __stcs(T* to, const T& x) { *to = x; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
// Threads of one processor thread do not run at once, so plain updates are atomic.
template <class T, class U> static inline T atomicAdd(T* to, U x) { const T old = *to; *to = T(old + T(x)); emulator::machine.progress++; return old; }
template <class T, class U> static inline T atomicOr(T* to, U x) { const T old = *to; *to = T(old | T(x)); return old; }
template <class T, class U> static inline T atomicAnd(T* to, U x) { const T old = *to; *to = T(old & T(x)); return old; }
template <class T, class U> static inline T atomicMin(T* to, U x) { const T old = *to; if (T(x) < old) *to = T(x); return old; }
template <class T, class U> static inline T atomicMax(T* to, U x) { const T old = *to; if (old < T(x)) *to = T(x); return old; }
template <class T, class U> static inline T atomicExch(T* to, U x) { const T old = *to; *to = T(x); return old; }

// ---- threads ----
static inline void __syncthreads() { emulator::block_barrier(0, emulator::block().alive); }
static inline int __syncthreads_or(int x) {
    static int any[2];
    static unsigned turn;
    const unsigned own = turn;
    if (x) any[own & 1] = 1;
    __syncthreads();
    turn = own + 1;
    const int result = any[own & 1];
    __syncthreads();
    any[own & 1] = 0;
    return result;
}
static inline void __syncwarp(unsigned mask = ~0u) { emulator::meet(mask, 0); }
[[noreturn]] static inline void __trap() { emulator::fail("__trap()"); }
template <class T> static inline T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
    const int base = emulator::lane() & ~(width - 1);
    return emulator::given<T>(emulator::meet(mask, x), base | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int step, int width = 32) {
    const int own = emulator::lane(), from = own ^ step;
    const emulator::Meeting& all = emulator::meet(mask, x);
    return (from & ~(width - 1)) > (own & ~(width - 1)) ? x : emulator::given<T>(all, from);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned step, int width = 32) {
    const int own = emulator::lane(), from = own - int(step);
    const emulator::Meeting& all = emulator::meet(mask, x);
    return from < (own & ~(width - 1)) ? x : emulator::given<T>(all, from);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned step, int width = 32) {
    const int own = emulator::lane(), from = own + int(step);
    const emulator::Meeting& all = emulator::meet(mask, x);
    return from > (own | (width - 1)) ? x : emulator::given<T>(all, from);
}
template <class T, class F> static inline T over_lanes(unsigned mask, T x, F join) {
    const emulator::Meeting& all = emulator::meet(mask, x);
    bool any = false;
    T result = x;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) result = any ? join(result, emulator::given<T>(all, i)) : emulator::given<T>(all, i), any = true;
    return result;
}
static inline unsigned __ballot_sync(unsigned mask, int x) {
    const emulator::Meeting& all = emulator::meet(mask, x != 0);
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result |= unsigned((mask >> i & 1) && emulator::given<bool>(all, i)) << i;
    return result;
}
static inline int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
static inline int __all_sync(unsigned mask, int x) { return __ballot_sync(mask, x) == mask; }
template <class T> static inline unsigned __match_any_sync(unsigned mask, T x) {
    const emulator::Meeting& all = emulator::meet(mask, x);
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result |= unsigned((mask >> i & 1) && emulator::given<T>(all, i) == x) << i;
    return result;
}
template <class T> static inline T __reduce_min_sync(unsigned mask, T x) { return over_lanes(mask, x, [](T a, T b) { return b < a ? b : a; }); }
template <class T> static inline T __reduce_max_sync(unsigned mask, T x) { return over_lanes(mask, x, [](T a, T b) { return a < b ? b : a; }); }
template <class T> static inline T __reduce_add_sync(unsigned mask, T x) { return over_lanes(mask, x, [](T a, T b) { return T(a + b); }); }
static inline unsigned __activemask() { return emulator::lanes_alive(); }

// ---- what generated row kernels state themselves for a GPU ----
#define ROW_HOST
#define ROW
#define INLINE static inline
#include "ptx.cuh"
INLINE unsigned round_pair(float low, float high) { return pack_bf16(low, high); }
INLINE float quick_reciprocal(float x) { return rcp_fast(x); }
INLINE float quick_exp2(float x) { return exp2_fast(x); }
INLINE unsigned add_pair(unsigned a, unsigned b) { return pack_bf16(low_half(a) + low_half(b), high_half(a) + high_half(b)); }
INLINE unsigned sub_pair(unsigned a, unsigned b) { return pack_bf16(low_half(a) - low_half(b), high_half(a) - high_half(b)); }
INLINE unsigned mul_pair(unsigned a, unsigned b) { return pack_bf16(low_half(a) * low_half(b), high_half(a) * high_half(b)); }
INLINE uint4 read_once(const uint4* from) { return *from; }
INLINE uint4 read_here(const uint4* from) { return *from; }
template <int N, int AT, int FROM = 0> INLINE void copy_words(unsigned char* own, const void* from, bool there) {
    if (there) emulator::issue_in(emulator::machine.now->copies, [=] { memcpy(own + AT, static_cast<const unsigned char*>(from) + FROM, N * 4); });
}
INLINE void commit_copies() { copy_async_commit(); }
template <int N> INLINE void wait_for_copies() { copy_async_wait<N>(); }
INLINE void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    mma_bf16(c, a0, a1, a2, a3, b0, b1);
}
