// Routing of rows to experts: the largest scores, the values at them, counts, and the places by expert.
//
// Shapes   ids [places] i64, negative for none; counts [blocks, experts + 1] i32, of each 1024 places how many name each
//          expert, and none; order [places] i64, bounds [experts + 1] i64; total [experts] fp32; score [rows, e] fp32,
//          picks [rows, slots] i64; x, dx [batches, rows, width] fp32, y, dy [batches, free, width] fp32, ids of these
//          [batches, free]. experts and e to 512, places to 2^20, slots to 16.
// Meaning  docs/ops.md, `expert_order`, `count`, `top`, `take`. The order is stable; of equal scores the smaller
//          position comes first; NaN is the largest score, and the zeros of both signs are equal.
// Numerics integers; `take_grad` adds in fp32 in the order of the index.
// Outputs  `=`. An id that is no expert, or no row, stops the program.
// Limit    latency: launches of few microseconds. Bytes: the ids twice, the scores once.
#include "places.cuh"

constexpr int CHUNK = 1024, MOST = 512, WARPS = CHUNK / 32;

/// The expert of a place, `experts` for none, -1 past the end.
DEVICE int bucket(const long long* ids, int place, int places, int experts) {
    if (place >= places) return -1;
    const long long id = ids[place];
    if (id >= experts) __trap();
    return id < 0 ? experts : int(id);
}

// Grid: places / 1024; 1024 threads.
extern "C" __global__ void __launch_bounds__(CHUNK) order_count(const long long* ids, int* counts, int places, int experts)
{
    __shared__ int own[MOST + 1];
    const int t = threadIdx.x, buckets = experts + 1;
    if (t < buckets) own[t] = 0;
    const int b = bucket(ids, blockIdx.x * CHUNK + t, places, experts);
    const u32 same = __match_any_sync(~0u, b);
    __syncthreads();
    if (b >= 0 && __ffs(int(same)) - 1 == (t & 31)) atomicAdd(&own[b], __popc(same));
    __syncthreads();
    if (t < buckets) counts[blockIdx.x * buckets + t] = own[t];
}

// Grid as order_count. A place goes behind those of smaller experts, those of earlier blocks, of earlier warps and of
// earlier lanes.
extern "C" __global__ void __launch_bounds__(CHUNK) order_place(
    const long long* ids, const int* counts, long long* order, long long* bounds, int places, int experts)
{
    __shared__ u16 before[WARPS][MOST + 1];
    __shared__ int start[MOST + 1], ends[WARPS];
    const int t = threadIdx.x, warp = t >> 5, lane = t & 31, buckets = experts + 1;
    for (int i = t; i < WARPS * (MOST + 1); i += CHUNK) (&before[0][0])[i] = 0;
    int total = 0, earlier = 0;
    if (t < buckets) {
#pragma unroll 8
        for (int b = 0; b < gridDim.x; b++) {
            const int n = counts[b * buckets + t];
            total += n;
            if (b < blockIdx.x) earlier += n;
        }
    }
    const int sum = warp_prefix(total);
    if (lane == 31) ends[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        const int all = warp_prefix(ends[lane]);
        ends[lane] = all;
    }
    const int b = bucket(ids, blockIdx.x * CHUNK + t, places, experts);
    const u32 same = __match_any_sync(~0u, b);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (b >= 0 && rank == 0) before[warp][b] = u16(__popc(same));
    __syncthreads();
    if (t < buckets) {
        const int first = sum - total + (warp ? ends[warp - 1] : 0);
        if (blockIdx.x == 0) bounds[t] = first;
        start[t] = first + earlier;
        int passed = 0;
        for (int w = 0; w < WARPS; w++) {
            const int n = before[w][t];
            before[w][t] = u16(passed);
            passed += n;
        }
    }
    __syncthreads();
    if (b >= 0) order[start[b] + before[warp][b] + rank] = blockIdx.x * CHUNK + t;
}

// Grid 1; 512 threads.
extern "C" __global__ void __launch_bounds__(MOST) count_total(const int* counts, float* total, int blocks, int experts)
{
    const int e = threadIdx.x;
    if (e >= experts) return;
    int sum = 0;
#pragma unroll 8
    for (int b = 0; b < blocks; b++) sum += counts[b * (experts + 1) + e];
    total[e] = float(sum);
}

/// Integers in the order of scores; 0 is below all of them.
DEVICE u32 rank_of(float score) {
    u32 bits = __float_as_uint(score);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return ~0u;
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Grid: rows / 8; 256 threads, a warp for each row.
extern "C" __global__ void __launch_bounds__(256) top_positions(const float* score, long long* picks, int rows, int e, int slots)
{
    constexpr int HELD = MOST / 32;
    const int lane = threadIdx.x & 31, row = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= rows) return;
    u32 key[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) key[i] = i * 32 + lane < e ? rank_of(score[u64(row) * e + i * 32 + lane]) : 0;
    for (int s = 0; s < slots; s++) {
        u32 best = 0, at = ~0u;
#pragma unroll
        for (int i = 0; i < HELD; i++) best = max(best, key[i]);
        best = __reduce_max_sync(~0u, best);
#pragma unroll
        for (int i = HELD - 1; i >= 0; i--)
            if (key[i] == best) at = i * 32 + lane;
        at = __reduce_min_sync(~0u, at);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (i * 32 + lane == at) key[i] = 0;
        if (lane == 0) picks[u64(row) * slots + s] = at;
    }
}

/// The row that an index names in its batch, -1 for none.
DEVICE long long named(const long long* ids, u64 at, int rows) {
    const long long id = ids[at];
    if (id >= rows) __trap();
    return id;
}

// Grid: elements of y / 256; 256 threads.
extern "C" __global__ void __launch_bounds__(256) take_rows(
    const float* x, const long long* ids, float* y, long long n, int rows, int free, int width)
{
    const long long i = (long long)blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    const u64 at = u64(i) / width, batch = at / free;
    const long long id = named(ids, at, rows);
    y[i] = id < 0 ? 0.f : x[(batch * rows + id) * width + u64(i) % width];
}

// Grid: batches; 128 threads. free to 64.
extern "C" __global__ void __launch_bounds__(128) take_rows_grad(
    const long long* ids, const float* dy, float* dx, int rows, int free, int width)
{
    __shared__ int name[64];
    const u64 batch = blockIdx.x;
    for (int s = threadIdx.x; s < free; s += 128) name[s] = int(max(named(ids, batch * free + s, rows), -1ll));
    __syncthreads();
    for (int i = threadIdx.x; i < rows * width; i += 128) {
        const int row = i / width, column = i - row * width;
        float sum = 0.f;
        for (int s = 0; s < free; s++)
            if (name[s] == row) sum += dy[(batch * free + s) * width + column];
        dx[batch * rows * width + i] = sum;
    }
}
