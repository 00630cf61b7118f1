// Runs generated row kernels on the CPU: the threads of a block are fibers that meet at every barrier and shuffle.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define ROW_HOST
#define UNROLL
#define INLINE static inline
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)
#define __restrict__
#define __shared__ static

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static float dynamic_shared[1 << 16];

static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned bits_of(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline unsigned round_one(float x) {
    const unsigned bits = bits_of(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static inline unsigned round_pair(float low, float high) { return round_one(low) | round_one(high) << 16; }
static inline float quick_reciprocal(float x) { return 1.0f / x; }
static inline float quick_exp(float x) { return expf(x); }
#define __expf quick_exp
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }

static std::vector<ucontext_t> fibers;
static std::vector<char> stacks;
static std::vector<bool> done;
static ucontext_t scheduler;
static std::function<void()> body;
static int current;
static float exchanged[1024];
constexpr int STACK = 1 << 16;

static void wait_for_all() { swapcontext(&fibers[current], &scheduler); }
static inline void __syncthreads() { wait_for_all(); }
static inline float __shfl_xor_sync(unsigned, float x, int step) {
    exchanged[threadIdx.x] = x;
    wait_for_all();
    const float y = exchanged[threadIdx.x ^ step];
    wait_for_all();
    return y;
}
static inline int __shfl_sync(unsigned, int x, int from) {
    static int shown[1024];
    shown[threadIdx.x] = x;
    wait_for_all();
    const int y = shown[threadIdx.x / 32 * 32 + (from & 31)];
    wait_for_all();
    return y;
}
static inline unsigned __ballot_sync(unsigned, bool vote) {
    static bool votes[1024];
    votes[threadIdx.x] = vote;
    wait_for_all();
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= (unsigned)votes[threadIdx.x / 32 * 32 + i] << i;
    wait_for_all();
    return all;
}
static inline int __ffs(unsigned x) { return __builtin_ffs(x); }
static inline void __trap() { abort(); }
static inline float half_of(unsigned pair, int at) { return __uint_as_float(at % 2 ? pair & 0xffff0000u : pair << 16); }
static inline void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    static unsigned a[1024][4], b[1024][2];
    unsigned* const own = a[threadIdx.x];
    own[0] = a0, own[1] = a1, own[2] = a2, own[3] = a3, b[threadIdx.x][0] = b0, b[threadIdx.x][1] = b1;
    wait_for_all();
    const int warp = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + i / 2 * 8, column = t * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int part = k % 8 / 2;
            c[i] += half_of(a[warp + row % 8 * 4 + part][row / 8 + k / 8 * 2], k) * half_of(b[warp + column * 4 + part][k / 8], k);
        }
    }
    wait_for_all();
}
static void fiber() {
    body();
    done[current] = true;
    swapcontext(&fibers[current], &scheduler);
}
static void run_grid(int grid_x, int grid_y, int block) {
    fibers.resize(1024), stacks.resize((size_t)1024 * STACK);
    gridDim = {grid_x, grid_y, 1}, blockDim = {block, 1, 1};
    for (int y = 0; y < grid_y; ++y) for (int x = 0; x < grid_x; ++x) {
        done.assign(block, false);
        for (int i = 0; i < block; ++i) {
            getcontext(&fibers[i]);
            fibers[i].uc_stack.ss_sp = &stacks[(size_t)i * STACK], fibers[i].uc_stack.ss_size = STACK, fibers[i].uc_link = 0;
            makecontext(&fibers[i], fiber, 0);
        }
        for (bool any = true; any;) {
            any = false;
            for (int i = 0; i < block; ++i) if (!done[i]) {
                any = true, current = i, threadIdx = {i, 0, 0}, blockIdx = {x, y, 0};
                swapcontext(&scheduler, &fibers[i]);
            }
        }
    }
}
