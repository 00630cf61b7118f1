// Narrow products of routed rows: 16 columns of an adapter beside rows of any width, and the adapters' gradients.
//
// Shapes   x [places / run, k] bf16, a row for each place or one for `run` of them; w0, w1 [experts, 16, k] bf16;
//          y0, y1 [places, 16] bf16; order [places], bounds [experts + 1] i64 (places.cuh); wide [places / run, columns]
//          bf16, small [places / small_run, 16] bf16; gradients [experts, 16, columns], or [experts, columns, 16] where
//          `tall`, bf16. k and columns are multiples of 64, rows 16-byte aligned, places to 2^20, run to 4096, k to 2^15;
//          of `expert_low_back` columns are a multiple of 128 up to 1024, and there is a row for each place.
// Meaning  docs/ops.md, `routed_dot`: y[p] = w[expert of p] x[row of p], 0 for no expert; `routed_weight_grad`:
//          grad[e, s, c] = sum over places p of e of small[p, s] wide[p, c]. The pair forms do two at once from one x,
//          `expert_low_back` a product with w [experts, columns, 16] and a tall gradient, from one wide.
// Numerics bf16 products, fp32 sums in a fixed order, rounded once. Gradients are summed over pieces of `piece` places (to
//          2048), and the pieces one after the other.
// Outputs  `=`. An expert without places has gradients of zero.
// Limit    memory: the wide rows once. Eight or more 16-byte loads of each thread are under way.
#include "places.cuh"
#include "mma.cuh"

constexpr int ROWS = 64, THREADS = 128;  // places of a block; two warps have 32 of them each, for one half of k

/// What a lane holds of 32 of the contraction: its rows and columns, eight elements of each. The contraction may run in any
/// order, as long as both sides have the same: so a lane's eight neighbours serve as its pairs of two steps.
template <int SETS> struct Fragment {
    uint4 a[4], b[2 * SETS];
};

template <int SETS> struct Source {
    const bf16* x;
    u32 row[4];  // in units of 16 bytes, so that 32 bits hold them
    const bf16* column[SETS];
    int half;  // elements from a column to the eighth after it
    DEVICE void load(Fragment<SETS>& f, int k) const {
#pragma unroll
        for (int i = 0; i < 4; i++) f.a[i] = load_far(x + u64(row[i] + u32(k >> 3)) * 8);
#pragma unroll
        for (int i = 0; i < 2 * SETS; i++) f.b[i] = load_early(column[i >> 1] + (k + (i & 1) * half));
    }
};

template <int SETS> DEVICE void multiply(float (&acc)[2][2 * SETS][4], const Fragment<SETS>& f) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2 * SETS; n++) {
            const uint4 &a = f.a[2 * m], &c = f.a[2 * m + 1], &b = f.b[n];
            mma_bf16(acc[m][n], a.x, c.x, a.y, c.y, b.x, b.y);
            mma_bf16(acc[m][n], a.z, c.z, a.w, c.w, b.z, b.w);
        }
}

template <int SETS> DEVICE void low_rows(
    const bf16* x, const bf16* w0, const bf16* w1, const long long* order, const long long* bounds, bf16* y0, bf16* y1,
    int places, int experts, int k, int run, u32 inverse)
{
    __shared__ float other[2][16 * SETS][32];
    const int lane = threadIdx.x & 31, group = lane >> 2, quarter = lane & 3;
    const int part = threadIdx.x >> 5 & 1, half = threadIdx.x >> 6;
    Tile tile;
    if (!tile_at(tile, bounds, ROWS, experts, places, blockIdx.x, false)) return;
    const int own = tile.rows - part * 32;  // rows of this warp
    float acc[2][2 * SETS][4] = {};
    // Rows past the last are the last again, and are not stored.
    auto place = [&](int i) {
        return place_at(order, tile.first + part * 32 + min(i * 8 + group, own - 1), places);
    };
    if (tile.expert < experts && own > 0) {
        Source<SETS> source;
        source.x = x, source.half = 8 * k;
#pragma unroll
        for (int i = 0; i < 4; i++) source.row[i] = row_of(place(i), run, inverse) * u32(k >> 3) + quarter;
#pragma unroll
        for (int i = 0; i < SETS; i++)
            source.column[i] = (i ? w1 : w0) + (u64(tile.expert) * 16 + group) * k + quarter * 8;
        Fragment<SETS> even, odd;
        // Halves in steps of 64; the first has one more where their number is odd.
        const int middle = (k >> 6) + 1 >> 1 << 6, from = half ? middle : 0, to = half ? k : middle;
        if (from < to) source.load(even, from);
#pragma unroll 1
        for (int at = from; at < to; at += 64) {
            source.load(odd, at + 32);
            multiply<SETS>(acc, even);
            // At the end the last ones again, which nobody reads.
            source.load(even, min(at + 64, to - 32));
            multiply<SETS>(acc, odd);
        }
    }
    float* flat = &acc[0][0][0];
    if (half)
#pragma unroll
        for (int i = 0; i < 16 * SETS; i++) other[part][i][lane] = flat[i];
    __syncthreads();
    if (half) return;
#pragma unroll
    for (int i = 0; i < 16 * SETS; i++) flat[i] += other[part][i][lane];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i * 8 + group >= own) continue;
        const u64 to_row = u64(place(i)) * 16 + quarter * 2;
#pragma unroll
        for (int n = 0; n < 2 * SETS; n++) {
            const float* c = &acc[i >> 1][n][2 * (i & 1)];
            *(u32*)((n < 2 ? y0 : y1) + to_row + (n & 1) * 8) = pack_bf16(c[0], c[1]);
        }
    }
}

// Grid: tiles of 64 places of each expert and of none, at most places / 64 + experts + 1; 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS, 4) expert_low(
    const bf16* x, const bf16* w, const long long* order, const long long* bounds, bf16* y, int places, int experts, int k,
    int run, u32 inverse)
{
    low_rows<1>(x, w, w, order, bounds, y, y, places, experts, k, run, inverse);
}
extern "C" __global__ void __launch_bounds__(THREADS, 4) expert_low_pair(
    const bf16* x, const bf16* w0, const bf16* w1, const long long* order, const long long* bounds, bf16* y0, bf16* y1,
    int places, int experts, int k, int run, u32 inverse)
{
    low_rows<2>(x, w0, w1, order, bounds, y0, y1, places, experts, k, run, inverse);
}

// ---- gradients ----

constexpr int PIECE = 2048, STEP = 64, COLUMNS = 128, STAGES = 3;
constexpr int WIDE_BYTES = STEP * COLUMNS * 2, SMALL_BYTES = STEP * 32, TABLE_BYTES = PIECE * 4;
constexpr int GRAD_SMEM = TABLE_BYTES + STAGES * (WIDE_BYTES + SMALL_BYTES);
constexpr int GRAD_PAIR_SMEM = TABLE_BYTES + STAGES * (WIDE_BYTES + 2 * SMALL_BYTES);
static_assert(GRAD_SMEM == 63488 && GRAD_PAIR_SMEM == 69632, "the launch states them");

/// Byte offset of 16-byte chunk `chunk` of a row of a stage, so that eight rows of one chunk lie in eight bank groups.
DEVICE u32 wide_chunk(int row, int chunk) { return row * 256 + ((chunk ^ (row & 7)) << 4); }
DEVICE u32 small_chunk(int row, int chunk) { return row * 32 + ((chunk ^ (row >> 2 & 1)) << 4); }

struct Gradient {
    const bf16 *wide, *small[2];
    bf16* grad[2];
    float* partial;  // [tiles, sets, 16, columns] of experts with several pieces
    int piece, columns, run, small_run, tall;
    u32 inverse, small_inverse;
};

template <int SETS> DEVICE void load_step(const Gradient& g, const u32* table, int rows, int step, u32 stage) {
    const int t = threadIdx.x, column = blockIdx.x * COLUMNS + (t & 15) * 8;
#pragma unroll
    for (int j = 0; j < STEP / 8; j++) {
        const int row = (t >> 4) + 8 * j, at = step * STEP + row;
        const bool real = at < rows && column < g.columns;
        const bf16* from = g.wide;
        if (real) from += u64(row_of(table[at], g.run, g.inverse)) * g.columns + column;
        copy_async(stage + wide_chunk(row, t & 15), from, real);
    }
    const int row = t >> 1, at = step * STEP + row;
    const u64 from = at < rows ? u64(row_of(table[at], g.small_run, g.small_inverse)) * 16 + (t & 1) * 8 : 0;
#pragma unroll
    for (int set = 0; set < SETS; set++)
        copy_async(stage + WIDE_BYTES + set * SMALL_BYTES + small_chunk(row, t & 1), g.small[set] + from, at < rows);
}

template <int SETS> DEVICE void add_step(float (&acc)[SETS][4][4], u32 stage) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        u32 a[SETS][4], b[2][4];
#pragma unroll
        for (int set = 0; set < SETS; set++)
            ldmatrix_trans(a[set], stage + WIDE_BYTES + set * SMALL_BYTES +
                                       small_chunk(k + (lane & 7) + (lane >> 4 << 3), lane >> 3 & 1));
#pragma unroll
        for (int i = 0; i < 2; i++)
            ldmatrix_trans(b[i], stage + wide_chunk(k + (lane & 15), warp * 4 + i * 2 + (lane >> 4)));
#pragma unroll
        for (int set = 0; set < SETS; set++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                mma_bf16(acc[set][n], a[set][0], a[set][1], a[set][2], a[set][3], b[n >> 1][2 * (n & 1)],
                         b[n >> 1][2 * (n & 1) + 1]);
    }
}

/// Sixteen neighbours of a result, rounded.
DEVICE void put_row(bf16* to, const float* from, int stride) {
    u32 r[8];
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = pack_bf16(from[2 * i * stride], from[(2 * i + 1) * stride]);
    ((uint4*)to)[0] = make_uint4(r[0], r[1], r[2], r[3]);
    ((uint4*)to)[1] = make_uint4(r[4], r[5], r[6], r[7]);
}

/// Results [16][128] of a block, held in shared memory with a padding, to their places.
DEVICE void put_gradient(const Gradient& g, bf16* grad, int expert, const float* sums) {
    constexpr int PITCH = COLUMNS + 1;
    const int t = threadIdx.x, first = blockIdx.x * COLUMNS;
    if (g.tall) {
        if (first + t < g.columns) put_row(grad + (u64(expert) * g.columns + first + t) * 16, sums + t, PITCH);
    } else {
        const int row = t >> 3, column = (t & 7) * 16;
        if (first + column < g.columns)
            put_row(grad + (u64(expert) * 16 + row) * g.columns + first + column, sums + row * PITCH + column, 1);
    }
}

template <int SETS> DEVICE void gradient(const Gradient& g, const long long* order, const long long* bounds, int places, int experts) {
    constexpr int STAGE = WIDE_BYTES + SETS * SMALL_BYTES, PITCH = COLUMNS + 1;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    Tile tile;
    if (!tile_at(tile, bounds, g.piece, experts, places, blockIdx.y, true) || tile.expert == experts) return;
    u32* table = (u32*)smem;
    for (int i = threadIdx.x; i < tile.rows; i += 128) table[i] = place_at(order, tile.first + i, places);
    __syncthreads();
    const u32 stages = smem_u32(smem) + TABLE_BYTES;
    const int steps = (tile.rows + STEP - 1) / STEP;
    float acc[SETS][4][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load_step<SETS>(g, table, tile.rows, s, stages + s * STAGE);
        copy_async_commit();
    }
    int at = 0, next = STAGES - 1;
    for (int s = 0; s < steps; s++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) load_step<SETS>(g, table, tile.rows, s + STAGES - 1, stages + next * STAGE);
        copy_async_commit();
        add_step<SETS>(acc, stages + at * STAGE);
        if (++at == STAGES) at = 0;
        if (++next == STAGES) next = 0;
    }
    float* sums = (float*)(smem + TABLE_BYTES);
#pragma unroll
    for (int set = 0; set < SETS; set++) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[((lane >> 2) + (i >> 1) * 8) * PITCH + warp * 32 + n * 8 + 2 * (lane & 3) + (i & 1)] = acc[set][n][i];
        __syncthreads();
        if (tile.tiles == 1) {
            put_gradient(g, g.grad[set], tile.expert, sums);
            continue;
        }
        float* to = g.partial + (u64(blockIdx.y) * SETS + set) * 16 * g.columns + blockIdx.x * COLUMNS + threadIdx.x;
        if (blockIdx.x * COLUMNS + threadIdx.x < g.columns)
            for (int row = 0; row < 16; row++) to[u64(row) * g.columns] = sums[row * PITCH + threadIdx.x];
    }
}

// Grid: (columns / 128, pieces of each expert, at most places / piece + experts); 128 threads, GRAD_SMEM.
extern "C" __global__ void __launch_bounds__(128, 3) expert_low_grad(
    const bf16* wide, const bf16* small, const long long* order, const long long* bounds, bf16* grad, float* partial,
    int places, int experts, int piece, int columns, int run, u32 inverse, int small_run, u32 small_inverse, int tall)
{
    gradient<1>({wide, {small, small}, {grad, grad}, partial, piece, columns, run, small_run, tall, inverse, small_inverse}, order,
                bounds, places, experts);
}
// The same with GRAD_PAIR_SMEM.
extern "C" __global__ void __launch_bounds__(128, 3) expert_low_grad_pair(
    const bf16* wide, const bf16* small0, const bf16* small1, const long long* order, const long long* bounds, bf16* grad0,
    bf16* grad1, float* partial, int places, int experts, int piece, int columns, int run, u32 inverse, int small_run,
    u32 small_inverse, int tall)
{
    gradient<2>({wide, {small0, small1}, {grad0, grad1}, partial, piece, columns, run, small_run, tall, inverse, small_inverse},
                order, bounds, places, experts);
}

// The pieces of experts that have several, added up. Grid: (columns / 128, experts); 128 threads. `sets` is 1, or 2 for
// a pair.
extern "C" __global__ void __launch_bounds__(128) expert_low_grad_sum(
    const long long* bounds, const float* partial, bf16* grad0, bf16* grad1, int places, int experts, int piece, int columns,
    int sets, int tall)
{
    __shared__ float sums[16 * (COLUMNS + 1)];
    const int lane = threadIdx.x & 31, expert = blockIdx.y, column = blockIdx.x * COLUMNS + threadIdx.x;
    const long long rows = bounds[expert + 1] - bounds[expert];
    const int pieces = int((rows + piece - 1) / piece);
    if (pieces < 2) return;
    // Pieces before this expert.
    int first = 0;
    for (int base = 0; base < expert; base += 32) {
        const int e = base + lane;
        int n = 0;
        if (e < expert) n = max(int((bounds[e + 1] - bounds[e] + piece - 1) / piece), 1);
        first += __shfl_sync(~0u, warp_prefix(n), 31);
    }
    Gradient g{};
    g.columns = columns, g.tall = tall;
    for (int set = 0; set < sets; set++) {
        __syncthreads();
        if (column < columns)
            for (int row = 0; row < 16; row++) {
                float sum = 0.f;
                for (int i = 0; i < pieces; i++)
                    sum += partial[((u64(first + i) * sets + set) * 16 + row) * columns + column];
                sums[row * (COLUMNS + 1) + threadIdx.x] = sum;
            }
        __syncthreads();
        put_gradient(g, set ? grad1 : grad0, expert, sums);
    }
}

// ---- a product and a gradient ----

constexpr int BACK_WARPS = 8, BACK_THREADS = 32 * BACK_WARPS, BACK_MOST = 512, BACK_STEP = 32, BACK_COLUMNS = 1024;
constexpr int BACK_WIDE_BYTES = BACK_STEP * BACK_COLUMNS * 2, BACK_STAGE = BACK_WIDE_BYTES + BACK_STEP * 32;
constexpr int PART_BYTES = BACK_WARPS * BACK_STEP * 16 * 4, BACK_TABLE_BYTES = BACK_MOST * 4;
constexpr int BACK_SMEM = BACK_TABLE_BYTES + PART_BYTES + STAGES * BACK_STAGE;
static_assert(BACK_SMEM == 218112, "the launch states it");
static_assert(16 * (BACK_COLUMNS + 1) * 4 <= BACK_STAGE && BACK_COLUMNS * 32 <= BACK_STAGE, "sums, and the weight, in a stage");

/// What a warp has of a block's columns, in units of 16: `blocks` of them, at most BACK_BLOCKS.
constexpr int BACK_BLOCKS = BACK_COLUMNS / 16 / BACK_WARPS;

struct Back {
    const bf16 *x, *small;
    bf16* y;
    const u32* table;
    int rows, columns, blocks;
    /// As `wide_chunk`, of rows of all columns.
    DEVICE u32 chunk(int row, int chunk) const { return row * columns * 2 + ((chunk ^ (row & 7)) << 4); }
    DEVICE void load(int step, u32 stage) const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
        for (int row = warp; row < BACK_STEP; row += BACK_WARPS) {
            const int at = step * BACK_STEP + row;
            const bool real = at < rows;
            const bf16* from = real ? x + u64(table[at]) * columns : x;
            for (int i = lane; i < columns >> 3; i += 32) copy_async(stage + chunk(row, i), from + i * 8, real);
        }
        if (threadIdx.x >= 2 * BACK_STEP) return;
        const int row = threadIdx.x >> 1, half = threadIdx.x & 1, at = step * BACK_STEP + row;
        const bf16* from = small;
        if (at < rows) from += u64(table[at]) * 16 + half * 8;
        copy_async(stage + BACK_WIDE_BYTES + small_chunk(row, half), from, at < rows);
    }
};

/// This warp's part of w [columns, 16], which lies in shared memory, as right operands: 16 columns by 16 results each.
DEVICE void hold_weight(u32 (&w)[BACK_BLOCKS][4], int blocks, u32 from) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int i = 0; i < BACK_BLOCKS; i++)
        if (i < blocks) ldmatrix_trans(w[i], from + small_chunk((warp * blocks + i) * 16 + (lane & 15), lane >> 4));
}

/// What this warp's columns add to the product of a stage: 32 places by 16.
DEVICE void part_of_step(const Back& g, const u32 (&w)[BACK_BLOCKS][4], u32 stage, float2* part) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float acc[2][2][4] = {};
#pragma unroll
    for (int i = 0; i < BACK_BLOCKS; i++) {
        if (i >= g.blocks) continue;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            u32 a[4];
            ldmatrix(a, stage + g.chunk(m * 16 + (lane & 15), (warp * g.blocks + i) * 2 + (lane >> 4)));
#pragma unroll
            for (int n = 0; n < 2; n++) mma_bf16(acc[m][n], a[0], a[1], a[2], a[3], w[i][2 * n], w[i][2 * n + 1]);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float* c = &acc[j >> 2][j >> 1 & 1][2 * (j & 1)];
        part[(warp * 8 + j) * 32 + lane] = make_float2(c[0], c[1]);
    }
}

/// Adds the gradient of a stage: 16 by this warp's columns.
DEVICE void grad_of_step(const Back& g, float (&acc)[BACK_BLOCKS][2][4], u32 stage) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int k = 0; k < BACK_STEP; k += 16) {
        u32 a[4];
        ldmatrix_trans(a, stage + BACK_WIDE_BYTES + small_chunk(k + (lane & 7) + (lane >> 4 << 3), lane >> 3 & 1));
#pragma unroll
        for (int i = 0; i < BACK_BLOCKS; i++) {
            if (i >= g.blocks) continue;
            u32 b[4];
            ldmatrix_trans(b, stage + g.chunk(k + (lane & 15), (warp * g.blocks + i) * 2 + (lane >> 4)));
#pragma unroll
            for (int n = 0; n < 2; n++) mma_bf16(acc[i][n], a[0], a[1], a[2], a[3], b[2 * n], b[2 * n + 1]);
        }
    }
}

/// Adds the parts of a stage's product, in the order of the columns, and writes it: two neighbours a thread, which are
/// those of lane and position that `part_of_step` has there.
DEVICE void put_product(const Back& g, int step, const float2* part) {
    const int lane = threadIdx.x & 31, j = threadIdx.x >> 5;
    const int at = step * BACK_STEP + (j >> 2) * 16 + (j & 1) * 8 + (lane >> 2);
    float2 sum = part[threadIdx.x];
#pragma unroll
    for (int warp = 1; warp < BACK_WARPS; warp++) {
        const float2 more = part[warp * 256 + threadIdx.x];
        sum.x += more.x, sum.y += more.y;
    }
    if (at < g.rows)
        *(u32*)(g.y + u64(g.table[at]) * 16 + (j >> 1 & 1) * 8 + 2 * (lane & 3)) = pack_bf16(sum.x, sum.y);
}

/// The gradient of a block: to `grad` [columns, 16] by way of `sums`, or to `partial` [16, columns] where there are others to add.
DEVICE void put_back_gradient(
    const Back& g, const float (&acc)[BACK_BLOCKS][2][4], bf16* grad, float* partial, float* sums)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float* to = partial ? partial : sums;
    const int pitch = partial ? g.columns : g.columns + 1;
#pragma unroll
    for (int i = 0; i < BACK_BLOCKS; i++) {
        if (i >= g.blocks) continue;
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                to[((lane >> 2) + (j >> 1) * 8) * pitch + (warp * g.blocks + i) * 16 + n * 8 + 2 * (lane & 3) + (j & 1)] =
                    acc[i][n][j];
    }
    if (partial) return;
    __syncthreads();
    for (int c = threadIdx.x; c < g.columns; c += BACK_THREADS) put_row(grad + u64(c) * 16, sums + c, pitch);
}

/// Zeros for places of no expert.
DEVICE void put_zeros(const long long* order, bf16* y, const Tile& tile, int places) {
    for (int i = threadIdx.x; i < 2 * tile.rows; i += BACK_THREADS)
        ((uint4*)(y + u64(place_at(order, tile.first + (i >> 1), places)) * 16))[i & 1] = make_uint4(0, 0, 0, 0);
}

// y [places, 16] = x [places, columns] w [experts, columns, 16], and grad [experts, columns, 16]; columns a multiple of 128 to
// 1024, piece to 512. Grid: pieces of each expert and of none, at most places / piece + experts + 1; 256 threads, BACK_SMEM.
extern "C" __global__ void __launch_bounds__(BACK_THREADS, 1) expert_low_back(
    const bf16* x, const bf16* small, const bf16* w, const long long* order, const long long* bounds, bf16* y, bf16* grad,
    float* partial, int places, int experts, int piece, int columns)
{
    Tile tile;
    if (!tile_at(tile, bounds, piece, experts, places, blockIdx.x, true)) return;
    if (tile.expert == experts) return put_zeros(order, y, tile, places);
    u32* table = (u32*)smem;
    float2* part = (float2*)(smem + BACK_TABLE_BYTES);
    const u32 stages = smem_u32(smem) + BACK_TABLE_BYTES + PART_BYTES;
    // The weight lies in the last stage until that is filled.
    const u32 weight = stages + (STAGES - 1) * BACK_STAGE;
    for (int i = threadIdx.x; i < 2 * columns; i += BACK_THREADS)
        copy_async(weight + small_chunk(i >> 1, i & 1), w + u64(tile.expert) * columns * 16 + i * 8, true);
    copy_async_commit();
    for (int i = threadIdx.x; i < tile.rows; i += BACK_THREADS) table[i] = place_at(order, tile.first + i, places);
    __syncthreads();
    const Back g{x, small, y, table, tile.rows, columns, columns / (16 * BACK_WARPS)};
    const int steps = (tile.rows + BACK_STEP - 1) / BACK_STEP;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) g.load(s, stages + s * BACK_STAGE);
        copy_async_commit();
    }
    copy_async_wait<STAGES - 1>();
    __syncthreads();
    u32 held[BACK_BLOCKS][4];
    hold_weight(held, g.blocks, weight);
    float acc[BACK_BLOCKS][2][4] = {};
    int at = 0, next = STAGES - 1;
#pragma unroll 1
    for (int s = 0; s < steps; s++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) g.load(s + STAGES - 1, stages + next * BACK_STAGE);
        copy_async_commit();
        part_of_step(g, held, stages + at * BACK_STAGE, part);
        grad_of_step(g, acc, stages + at * BACK_STAGE);
        __syncthreads();
        put_product(g, s, part);
        if (++at == STAGES) at = 0;
        if (++next == STAGES) next = 0;
    }
    // Sums lie in the first stage, which all have read.
    put_back_gradient(g, acc, grad + u64(tile.expert) * columns * 16,
                      tile.tiles == 1 ? nullptr : partial + u64(blockIdx.x) * 16 * columns,
                      (float*)(smem + BACK_TABLE_BYTES + PART_BYTES));
}
