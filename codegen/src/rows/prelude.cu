// What generated row kernels share. No header is included, so that any compiler of CUDA C++ takes it.

typedef unsigned short bf16;

#ifndef UNROLL
#define UNROLL _Pragma("unroll")
#endif
#ifndef INLINE
#define INLINE __device__ __forceinline__
#endif

// What is done in one row, where several rows follow each other in the text.
#ifndef ROW
#define ROW __attribute__((always_inline))
#endif

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

// Two floats rounded to bf16 to the nearest, ties to even: the first in the low half.
#ifndef ROW_HOST
INLINE unsigned round_pair(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
INLINE float quick_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
INLINE float quick_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two results of bf16. Rounded from 32 bits they would have the same bits: these have more than twice as many (but for products so small
// that 32 bits round them too).
INLINE unsigned add_pair(unsigned a, unsigned b) {
    unsigned y;
    asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
INLINE unsigned sub_pair(unsigned a, unsigned b) {
    unsigned y;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
INLINE unsigned mul_pair(unsigned a, unsigned b) {
    unsigned y;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
// Four words that no other thread reads: they are not kept in the first-level cache.
INLINE uint4 read_once(const uint4* from) {
    uint4 four;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w) : "l"(from));
    return four;
}
// The same where a kernel has no registers for words that the compiler begins to read before: it moves these less.
INLINE uint4 read_here(const uint4* from) {
    uint4 four;
    asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w) : "l"(from));
    return four;
}
// N words, 1, 2 or 4, on their way to shared memory if they are `there`, for this thread alone: it has them once it has waited
// for the group that it commits them to. AT and FROM are bytes from where the addresses are.
template <int N, int AT, int FROM = 0> INLINE void copy_words(unsigned char* own, const void* from, bool there) {
    asm volatile("{\n.reg .pred there;\nsetp.ne.s32 there, %2, 0;\n@there cp.async.ca.shared.global [%0 + %3], [%1 + %5], %4;\n}"
                 ::"r"((unsigned)__cvta_generic_to_shared(own)), "l"(from), "r"((int)there), "n"(AT), "n"(N * 4), "n"(FROM) : "memory");
}
INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N groups of this thread's copies are under way.
template <int N> INLINE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
// C[16][8] += A[16][16] B[16][8] of a warp, bf16 and f32: the rows and columns of a thread are those of
// mma.m16n8k16.
INLINE void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

INLINE float widen(bf16 x) { return __uint_as_float((unsigned)x << 16); }
INLINE float widen(float x) { return x; }
INLINE bool widen(bool x) { return x; }
INLINE float widen(long long x) { return (float)x; }
INLINE float widen_low(unsigned pair) { return __uint_as_float(pair << 16); }
INLINE float widen_high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
INLINE float rounded(float x) { return widen_low(round_pair(x, 0.0f)); }
INLINE void narrow(bf16& to, float x) { to = (bf16)(round_pair(x, 0.0f) & 0xffffu); }
INLINE void narrow(float& to, float x) { to = x; }
INLINE void narrow(bool& to, bool x) { to = x; }

// A vector of N floats to the precision of bf16.
template <int N> INLINE void round_all(float (&x)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) x[i] = rounded(x[i]);
}

template <int N> INLINE void put_four(unsigned (&to)[N], int at, const uint4& four) {
    to[at] = four.x, to[at + 1] = four.y, to[at + 2] = four.z, to[at + 3] = four.w;
}
// N / 2 pairs of bf16 in a row, N a multiple of 2; the address is a multiple of what is read at once.
template <int N> INLINE void load_pairs(unsigned (&to)[N / 2], const bf16* __restrict__ from) {
    if constexpr (N % 8 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 8) {
            put_four<N / 2>(to, i / 2, *reinterpret_cast<const uint4*>(from + i));
        }
    } else if constexpr (N % 4 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 4) {
            const uint2 two = *reinterpret_cast<const uint2*>(from + i);
            to[i / 2] = two.x, to[i / 2 + 1] = two.y;
        }
    } else {
        UNROLL
        for (int i = 0; i < N; i += 2) to[i / 2] = *reinterpret_cast<const unsigned*>(from + i);
    }
}
// The same for pairs that no other thread reads, N a multiple of 8.
template <int N> INLINE void load_once(unsigned (&to)[N / 2], const bf16* __restrict__ from) {
    UNROLL
    for (int i = 0; i < N; i += 8) {
        put_four<N / 2>(to, i / 2, read_once(reinterpret_cast<const uint4*>(from + i)));
    }
}
template <int N> INLINE void load_here(unsigned (&to)[N / 2], const bf16* __restrict__ from) {
    UNROLL
    for (int i = 0; i < N; i += 8) {
        put_four<N / 2>(to, i / 2, read_here(reinterpret_cast<const uint4*>(from + i)));
    }
}
template <int N> INLINE void unpack(float (&to)[N], const unsigned (&from)[N / 2]) {
    UNROLL
    for (int i = 0; i < N; i += 2) to[i] = widen_low(from[i / 2]), to[i + 1] = widen_high(from[i / 2]);
}
template <int N> INLINE void pack(unsigned (&to)[N / 2], const float (&from)[N]) {
    UNROLL
    for (int i = 0; i < N; i += 2) to[i / 2] = round_pair(from[i], from[i + 1]);
}
// The same, and the pairs that it was rounded to.
template <int N> INLINE void round_pairs(unsigned (&pairs)[N / 2], float (&x)[N]) {
    pack<N>(pairs, x);
    unpack<N>(x, pairs);
}
template <int N> INLINE void add_pairs(unsigned (&y)[N], const unsigned (&a)[N], const unsigned (&b)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) y[i] = add_pair(a[i], b[i]);
}
template <int N> INLINE void sub_pairs(unsigned (&y)[N], const unsigned (&a)[N], const unsigned (&b)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) y[i] = sub_pair(a[i], b[i]);
}
template <int N> INLINE void mul_pairs(unsigned (&y)[N], const unsigned (&a)[N], const unsigned (&b)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) y[i] = mul_pair(a[i], b[i]);
}
template <int N, class T> INLINE void copy(T (&to)[N], const T (&from)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) to[i] = from[i];
}
// Where one of several rows that follow each other in the text has what is under way of it.
template <int AT> struct Place { static constexpr int at = AT; };
// N words, 1, 2 or 4, that have been copied.
template <int N> INLINE void take(unsigned (&to)[N], const unsigned char* from) {
    if constexpr (N == 4) {
        put_four<N>(to, 0, *reinterpret_cast<const uint4*>(from));
    } else if constexpr (N == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        to[0] = two.x, to[1] = two.y;
    } else {
        to[0] = *reinterpret_cast<const unsigned*>(from);
    }
}
template <int N> INLINE void take(float (&to)[N], const unsigned char* from) {
    unsigned words[N];
    take(words, from);
    UNROLL
    for (int i = 0; i < N; ++i) to[i] = __uint_as_float(words[i]);
}
// N words that are not there to be copied.
template <int N> INLINE void clear_words(unsigned char* to) {
    UNROLL
    for (int i = 0; i < N; ++i) reinterpret_cast<unsigned*>(to)[i] = 0;
}
template <int N> INLINE void load(float (&to)[N], const bf16* __restrict__ from) {
    if constexpr (N % 2 == 0) {
        unsigned pairs[N / 2];
        load_pairs<N>(pairs, from);
        unpack<N>(to, pairs);
    } else {
        UNROLL
        for (int i = 0; i < N; ++i) to[i] = widen(from[i]);
    }
}
template <int N> INLINE void load(float (&to)[N], const float* __restrict__ from) {
    if constexpr (N % 4 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    } else {
        UNROLL
        for (int i = 0; i < N; ++i) to[i] = from[i];
    }
}
template <int N> INLINE void load(bool (&to)[N], const bool* __restrict__ from) {
    UNROLL
    for (int i = 0; i < N; ++i) to[i] = from[i];
}
template <int N> INLINE void store_pairs(bf16* __restrict__ to, const unsigned (&from)[N / 2]) {
    if constexpr (N % 8 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 8) {
            uint4 four;
            four.x = from[i / 2], four.y = from[i / 2 + 1], four.z = from[i / 2 + 2], four.w = from[i / 2 + 3];
            *reinterpret_cast<uint4*>(to + i) = four;
        }
    } else if constexpr (N % 4 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 4) {
            uint2 two;
            two.x = from[i / 2], two.y = from[i / 2 + 1];
            *reinterpret_cast<uint2*>(to + i) = two;
        }
    } else {
        UNROLL
        for (int i = 0; i < N; i += 2) *reinterpret_cast<unsigned*>(to + i) = from[i / 2];
    }
}
template <int N> INLINE void store(bf16* __restrict__ to, const float (&from)[N]) {
    if constexpr (N % 2 == 0) {
        unsigned pairs[N / 2];
        pack<N>(pairs, from);
        store_pairs<N>(to, pairs);
    } else {
        UNROLL
        for (int i = 0; i < N; ++i) narrow(to[i], from[i]);
    }
}
template <int N> INLINE void store(float* __restrict__ to, const float (&from)[N]) {
    if constexpr (N % 4 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 4) {
            float4 four;
            four.x = from[i], four.y = from[i + 1], four.z = from[i + 2], four.w = from[i + 3];
            *reinterpret_cast<float4*>(to + i) = four;
        }
    } else {
        UNROLL
        for (int i = 0; i < N; ++i) to[i] = from[i];
    }
}
template <int N> INLINE void store(bool* __restrict__ to, const bool (&from)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) to[i] = from[i];
}
template <int N, class T> INLINE void clear(T (&x)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) x[i] = 0;
}

// 16 rows of TERMS numbers from row `base` on as the first factor of `multiply`, TERMS a multiple of 8; rows from `last` on
// are read as the one before.
template <int TERMS> INLINE void load_factor(unsigned (&factor)[(TERMS + 15) / 16][4], const bf16* __restrict__ from, int base, int last) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    UNROLL
    for (int i = 0; i < (TERMS + 15) / 16 * 4; ++i) {
        const long long row = min(base + g + i % 2 * 8, last - 1);
        const int term = i / 2 * 8;
        factor[i / 4][i % 4] = term < TERMS ? *reinterpret_cast<const unsigned*>(from + row * TERMS + term + t * 2) : 0u;
    }
}
// That factor times 8 neighbouring columns of a matrix for each of the four threads that have a row: rounded, those of
// this thread in rows g and g + 8. `from` is where those of thread g / 2 are in the first row of the matrix: of each pair of
// columns that a thread reads there it puts the one that its place in a fragment stands for beside that of the next row.
template <int TERMS>
INLINE void multiply_factor(unsigned (&upper)[4], unsigned (&lower)[4], const unsigned (&factor)[(TERMS + 15) / 16][4],
                            const bf16* __restrict__ from, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const unsigned select = g % 2 == 0 ? 0x5410u : 0x7632u;
    float product[4][4];
    UNROLL
    for (int j = 0; j < 4; ++j) clear(product[j]);
    UNROLL
    for (int term = 0; term < TERMS; term += 16) {
        unsigned rows[4][4];
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (term + i / 2 * 8 < TERMS) load_pairs<8>(rows[i], from + (term + i / 2 * 8 + t * 2 + i % 2) * stride);
            else clear(rows[i]);
        }
        const unsigned (&x)[4] = factor[term / 16];
        UNROLL
        for (int j = 0; j < 4; ++j) {
            multiply(product[j], x[0], x[1], x[2], x[3], __byte_perm(rows[0][j], rows[1][j], select),
                     __byte_perm(rows[2][j], rows[3][j], select));
        }
    }
    UNROLL
    for (int j = 0; j < 4; ++j) {
        upper[j] = round_pair(product[j][0], product[j][1]);
        lower[j] = round_pair(product[j][2], product[j][3]);
    }
}
template <class T> INLINE void swap_all(T& a, T& b) {
    const T other = a;
    a = b, b = other;
}
template <class T, int N> INLINE void swap_all(T (&a)[N], T (&b)[N]) {
    UNROLL
    for (int i = 0; i < N; ++i) swap_all(a[i], b[i]);
}

// Sum over WIDTH neighbouring threads of a warp, WIDTH a power of two: the same bits in all of them.
template <int WIDTH> INLINE float segment_sum(float x) {
    UNROLL
    for (int step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
// Sums of N numbers over WIDTH neighbouring threads, with the bits of `segment_sum`. Of two numbers, those threads go on with the
// second that would have the same sum of the first as others: half of the exchanges are left after each step, until one number
// is. Last, each thread has all sums from where they are.
template <int WIDTH, int N> INLINE void segment_sums(float (&x)[N]) {
    int left = N, steps = 0;
    UNROLL
    for (int step = WIDTH / 2; step > 0; step /= 2) {
        const bool second = (threadIdx.x & step) != 0;
        UNROLL
        for (int n = 0; n < (N + 1) / 2; ++n) {
            if (2 * n + 1 < left) {
                const float own = second ? x[2 * n + 1] : x[2 * n], other = second ? x[2 * n] : x[2 * n + 1];
                x[n] = own + __shfl_xor_sync(0xffffffffu, other, step);
            } else if (2 * n < left) {
                x[n] = x[2 * n] + __shfl_xor_sync(0xffffffffu, x[2 * n], step);
            }
        }
        left = (left + 1) / 2, ++steps;
    }
    if (N == 1) return;
    float sums[N];
    UNROLL
    for (int n = 0; n < N; ++n) {
        int from = 0;
        UNROLL
        for (int step = 0; step < steps; ++step) from += (n >> step & 1) * (WIDTH / 2 >> step);
        sums[n] = __shfl_sync(0xffffffffu, x[n >> steps], from, WIDTH);
    }
    copy(x, sums);
}
// The same for two rows beside each other.
template <int WIDTH, int N> INLINE void segment_sums(float (&x)[N], float (&y)[N]) {
    float both[2 * N];
    UNROLL
    for (int n = 0; n < N; ++n) both[n] = x[n], both[N + n] = y[n];
    segment_sums<WIDTH>(both);
    UNROLL
    for (int n = 0; n < N; ++n) x[n] = both[n], y[n] = both[N + n];
}
// Sum over the threads of a warp that are at the same place in a row of WIDTH threads.
template <int WIDTH> INLINE float across_sum(float x) {
    UNROLL
    for (int step = 16; step >= WIDTH; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
// Sums of N numbers over the threads of a row, four of each of WARPS warps, the same in all of them; `row` is the row of 16.
template <int N, int WARPS> INLINE void fragment_sum(float (&x)[N], float* scratch, int row) {
    UNROLL
    for (int n = 0; n < N; ++n) x[n] = segment_sum<4>(x[n]);
    if (threadIdx.x % 4 == 0) {
        UNROLL
        for (int n = 0; n < N; ++n) scratch[(threadIdx.x / 32 * 16 + row) * N + n] = x[n];
    }
    __syncthreads();
    UNROLL
    for (int n = 0; n < N; ++n) x[n] = scratch[row * N + n];
    UNROLL
    for (int w = 1; w < WARPS; ++w) {
        UNROLL
        for (int n = 0; n < N; ++n) x[n] += scratch[(w * 16 + row) * N + n];
    }
}
// Sums of N numbers over a block of WARPS warps, the same in all threads.
template <int N, int WARPS> INLINE void block_sum(float (&x)[N], float* scratch) {
    constexpr int STRIDE = (N + 3) / 4 * 4;
    UNROLL
    for (int n = 0; n < N; ++n) x[n] = segment_sum<32>(x[n]);
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        UNROLL
        for (int n = 0; n < N; ++n) scratch[warp * STRIDE + n] = x[n];
    }
    __syncthreads();
    UNROLL
    for (int n = 0; n < N; ++n) x[n] = scratch[n];
    // Unrolled whole, many numbers would all be read before the first is added, and spill.
    constexpr int AT_ONCE = N * WARPS > 128 ? 4 : WARPS;
#pragma unroll AT_ONCE
    for (int w = 1; w < WARPS; ++w) {
        UNROLL
        for (int n = 0; n < N; ++n) x[n] += scratch[w * STRIDE + n];
    }
}

// A sum of rows of a table that the slots of an index name, in the order of the slots; a negative one names none.
// `table` is where the N elements of this thread are in row 0, rows are `stride` elements apart, and elements of threads
// that are not inside are not read. An index that is not below `rows` stops the program.
//
// Here all threads of a warp have one row of the kernel: each reads one slot of 32, and what they find is passed
// around, so that an empty slot costs nothing, wherever it stands. Several rows of the table are read before the first of
// them is added; what is added in the place of none is 0, which changes no sum that begins at 0.
template <int N, class T>
INLINE void gather_named(float (&sum)[N], const T* __restrict__ table, int named, unsigned present, long long stride, bool inside) {
    constexpr bool PAIRS = sizeof(T) == 2 && N % 2 == 0;
    constexpr int WIDTH = PAIRS ? N / 2 : N, AHEAD = WIDTH > 4 ? 32 / WIDTH : 8;
    while (present != 0) {
        unsigned pairs[AHEAD][PAIRS ? N / 2 : 1];
        float plain[AHEAD][PAIRS ? 1 : N];
        UNROLL
        for (int k = 0; k < AHEAD; ++k) {
            const int row = __shfl_sync(0xffffffffu, named, __ffs(present) - 1);
            const bool read = present != 0 && inside;
            const T* const from = table + row * stride;
            if constexpr (PAIRS) {
                if (read) load_pairs<N>(pairs[k], from);
                else clear(pairs[k]);
            } else {
                if (read) load<N>(plain[k], from);
                else clear(plain[k]);
            }
            present &= present - 1;
        }
        UNROLL
        for (int k = 0; k < AHEAD; ++k) {
            UNROLL
            for (int i = 0; i < N; ++i) {
                if constexpr (PAIRS) sum[i] += i % 2 == 0 ? widen_low(pairs[k][i / 2]) : widen_high(pairs[k][i / 2]);
                else sum[i] += plain[k][i];
            }
        }
    }
}
template <int N, class T>
INLINE void gather_sum(float (&sum)[N], const T* __restrict__ table, const long long* __restrict__ index, int slots, int rows,
                       long long stride, bool inside) {
    clear(sum);
    UNROLL
    for (int first = 0; first < slots; first += 32) {
        const int slot = first + threadIdx.x % 32;
        const long long named = slot < slots ? index[slot] : -1;
        if (named >= rows) __trap();
        gather_named(sum, table, (int)named, __ballot_sync(0xffffffffu, named >= 0), stride, inside);
    }
}
// The same where threads of a warp have different rows: each goes through the slots by itself.
template <int N, class T>
INLINE void gather_sum_alone(float (&sum)[N], const T* __restrict__ table, const long long* __restrict__ index, int slots, int rows,
                             long long stride, bool inside) {
    clear(sum);
    for (int slot = 0; slot < slots; ++slot) {
        const long long named = index[slot];
        if (named >= rows) __trap();
        if (named < 0 || !inside) continue;
        float read[N];
        load<N>(read, table + named * stride);
        UNROLL
        for (int i = 0; i < N; ++i) sum[i] += read[i];
    }
}

INLINE float sigmoid(float x) { return quick_reciprocal(1.0f + quick_exp2(-1.44269504f * x)); }
INLINE float silu(float x) { return x * sigmoid(x); }
INLINE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
INLINE float square(float x) { return x * x; }
INLINE float exp_grad(float x, float dy) { return dy * expf(x); }
INLINE float ln_grad(float x, float dy) { return dy / x; }
INLINE float sqrt_grad(float x, float dy) { return 0.5f * dy / sqrtf(x); }
INLINE float rsqrt_grad(float x, float dy) {
    const float root = rsqrtf(x);
    return -0.5f * dy * root * (root * root);
}
INLINE float recip_grad(float x, float dy) { return -dy / (x * x); }
INLINE float sigmoid_grad(float x, float dy) {
    const float s = sigmoid(x);
    return dy * s * (1.0f - s);
}
INLINE float silu_grad(float x, float dy) {
    const float s = sigmoid(x);
    return dy * (s + x * s * (1.0f - s));
}
INLINE float softplus_grad(float x, float dy) { return dy * sigmoid(x); }
INLINE float tanh_grad(float x, float dy) {
    const float y = tanhf(x);
    return dy * (1.0f - y * y);
}
INLINE float square_grad(float x, float dy) { return x * (2.0f * dy); }
INLINE float abs_grad(float x, float dy) { return x > 0.0f ? dy : (x < 0.0f ? -dy : 0.0f); }
INLINE float clamp_to(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// K = exp(x - row maximum).
template <int S, int J> INLINE void shifted_exp(float (&k)[S][J], const float (&x)[S][J]) {
    UNROLL
    for (int s = 0; s < S; ++s) {
        float top = x[s][0];
        UNROLL
        for (int j = 1; j < J; ++j) top = fmaxf(top, x[s][j]);
        UNROLL
        for (int j = 0; j < J; ++j) k[s][j] = expf(x[s][j] - top);
    }
}
// u = 1 / (K v + eps), then v = 1 / (K^T u + eps).
template <int S, int J> INLINE void sinkhorn_step(const float (&k)[S][J], float (&u)[S], float (&v)[J], float eps) {
    UNROLL
    for (int s = 0; s < S; ++s) {
        float sum = 0.0f;
        UNROLL
        for (int j = 0; j < J; ++j) sum += k[s][j] * v[j];
        u[s] = quick_reciprocal(sum + eps);
    }
    UNROLL
    for (int j = 0; j < J; ++j) {
        float sum = 0.0f;
        UNROLL
        for (int s = 0; s < S; ++s) sum += k[s][j] * u[s];
        v[j] = quick_reciprocal(sum + eps);
    }
}
template <int S, int J> INLINE void sinkhorn(float (&y)[S][J], const float (&x)[S][J], int iterations, float eps) {
    float k[S][J], u[S], v[J];
    shifted_exp(k, x);
    UNROLL
    for (int j = 0; j < J; ++j) v[j] = 1.0f / J;
    UNROLL
    for (int s = 0; s < S; ++s) u[s] = 1.0f;
    for (int step = 0; step < iterations; ++step) sinkhorn_step(k, u, v, eps);
    UNROLL
    for (int s = 0; s < S; ++s) {
        UNROLL
        for (int j = 0; j < J; ++j) y[s][j] = u[s] * k[s][j] * v[j];
    }
}
// The derivative of exactly these steps. `kept` has room for `iterations * (S + J)` numbers of every
// thread of the block, one thread next to the other.
template <int S, int J>
INLINE void sinkhorn_grad(float (&dx)[S][J], const float (&x)[S][J], const float (&dy)[S][J], int iterations,
                          float eps, float* kept) {
    float k[S][J], dk[S][J], u[S], v[J], du[S], dv[J];
    shifted_exp(k, x);
    UNROLL
    for (int j = 0; j < J; ++j) v[j] = 1.0f / J, dv[j] = 0.0f;
    UNROLL
    for (int s = 0; s < S; ++s) u[s] = 1.0f, du[s] = 0.0f;
    float* const own = kept + threadIdx.x;
    for (int step = 0; step < iterations; ++step) {
        sinkhorn_step(k, u, v, eps);
        UNROLL
        for (int s = 0; s < S; ++s) own[(step * (S + J) + s) * blockDim.x] = u[s];
        UNROLL
        for (int j = 0; j < J; ++j) own[(step * (S + J) + S + j) * blockDim.x] = v[j];
    }
    UNROLL
    for (int s = 0; s < S; ++s) {
        UNROLL
        for (int j = 0; j < J; ++j) {
            dk[s][j] = dy[s][j] * u[s] * v[j];
            du[s] += dy[s][j] * k[s][j] * v[j];
            dv[j] += dy[s][j] * k[s][j] * u[s];
        }
    }
    for (int step = iterations - 1; step >= 0; --step) {
        UNROLL
        for (int s = 0; s < S; ++s) u[s] = own[(step * (S + J) + s) * blockDim.x];
        UNROLL
        for (int j = 0; j < J; ++j) {
            const float now = own[(step * (S + J) + S + j) * blockDim.x];
            const float d = -dv[j] * now * now;
            UNROLL
            for (int s = 0; s < S; ++s) dk[s][j] += d * u[s], du[s] += k[s][j] * d;
            v[j] = step == 0 ? 1.0f / J : own[((step - 1) * (S + J) + S + j) * blockDim.x];
            dv[j] = 0.0f;
        }
        UNROLL
        for (int s = 0; s < S; ++s) {
            const float d = -du[s] * u[s] * u[s];
            UNROLL
            for (int j = 0; j < J; ++j) dk[s][j] += d * v[j], dv[j] += k[s][j] * d;
            du[s] = 0.0f;
        }
    }
    UNROLL
    for (int s = 0; s < S; ++s) {
        float sum = 0.0f;
        UNROLL
        for (int j = 0; j < J; ++j) dx[s][j] = dk[s][j] * k[s][j], sum += dx[s][j];
        bool before = false;
        UNROLL
        for (int j = 0; j < J; ++j) {
            bool is_top = !before;
            UNROLL
            for (int other = 0; other < J; ++other) is_top = is_top && x[s][j] >= x[s][other];
            if (is_top) dx[s][j] -= sum;
            before = before || is_top;
        }
    }
}

// The sums over the rows of partial[rows][columns], in their order: column by column, each by 32
// threads that take every 32nd row, whose sums are then added in order.
template <class T> INLINE void finish(const float* __restrict__ partial, T* __restrict__ to, int rows, int columns, float scale) {
    __shared__ float sums[32][33];
    const int column = blockIdx.x * 32 + threadIdx.x % 32, first = threadIdx.x / 32;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 8
        for (int row = first; row < rows; row += 32) sum += partial[(long long)row * columns + column];
    }
    sums[first][threadIdx.x % 32] = sum;
    __syncthreads();
    if (first == 0 && column < columns) {
        UNROLL
        for (int other = 1; other < 32; ++other) sum += sums[other][threadIdx.x % 32];
        narrow(to[column], sum * scale);
    }
}
extern "C" __global__ void __launch_bounds__(1024) rows_finish_act(const float* partial, bf16* to, int rows, int columns, float scale) {
    finish(partial, to, rows, columns, scale);
}
extern "C" __global__ void __launch_bounds__(1024) rows_finish_f32(const float* partial, float* to, int rows, int columns, float scale) {
    finish(partial, to, rows, columns, scale);
}
