// Softmax attention under a bit mask, gathered: each query reads the keys that it selects, and nothing else. For a few
// selected keys among many, where nearly every dense tile of masked_attention.cu would hold a bit.
//
// Shapes   q, k, v, o, do, dq, dk, dv [B,T,H,D] bf16, D = ATTENTION_DIM (64, 128 or 256). bits [B,rows,words] u32, a mask by
//          query (rows = T) or, transposed, by key (rows = 64 ceil(T / 64)), as masked_attention.cu packs both, shared by all
//          heads. starts [B,T+1] i32, list [B,capacity] i32: the set columns of row r ascend at list[starts[r] ..
//          starts[r+1]]. counts [B,T] i32. sums [B,H,T] fp32 pairs: log2 of the sum of exponentials, and rowsum(do * o).
// Meaning  docs/ops.md `masked_attention`, with `scale` on the scores; a row with nothing allowed gives 0 and passes no
//          gradient.
// Numerics fp32 products, sums and softmax of bf16 inputs; results are rounded once.
// Outputs  all `=`. No atomics: a result is summed by one warp (queries) or one block (keys) in the order of its list.
//
// Kernels  list_count, list_starts, list_fill   bits to lists, of the mask and of its transpose (once for all heads)
//          gathered_forward                     a query and a head per warp: o
//          gathered_grad_queries                a query and a head per warp: dq and sums; no forward is run before it
//          gathered_grad_keys                   a key and a head per block: dk, dv
//
// Limit    second-level cache. With L selected keys a query, a pair of query and key moves 4 D bytes in each of the three
//          kernels and nothing of it is shared, as heads have keys of their own: T L H 4 D bytes each, 275 GB at T = 65536,
//          L = 256, H = 16, D = 256. Floor: 55 ms each at 5 TB/s from L2 (what kernels/README.md measured for gathered rows).
//          Blocks go head by head, since k and v of one head are what L2 holds: 67 MB there, of which 50 MB stay at best, so
//          that memory delivers a quarter, 0.02 s. FLOPs: 4, 8 and 8 of a pair and channel, 275 to 550 GFLOP in
//          fp32; with conversions 4 to 6 instructions of a lane, 10 to 15 ms. Tensor cores would not help: they would want a
//          tile of queries that share their keys. Registers and 64 bytes under way of a lane hide the latency.
//          Lists: two readings of the bits each, T^2 / 4 bytes (1.1 GB there: 0.26 ms), and 4 T L bytes written.
#include "places.cuh"

#ifndef ATTENTION_DIM
#define ATTENTION_DIM 256
#endif
constexpr int DIM = ATTENTION_DIM;
constexpr int CHANNELS = DIM == 64 ? 8 : 16;  // of a lane
constexpr int LANES = DIM / CHANNELS;         // a group: 8 or 16 lanes that share a row
constexpr int GROUPS = 32 / LANES, PIECES = CHANNELS / 8;
constexpr int WARPS = 4;   // of a block
constexpr int AHEAD = 4;   // rows of a group that are read together

// ------------------------------------------------------------------------------------------------
// Lists
// ------------------------------------------------------------------------------------------------

// counts = bits of each row. `most` is a claim on them that the list's capacity rests on: a row with more stops the program.
// grid (T / 8 rounded up, B), 256 threads, a warp for each row.
extern "C" __global__ void __launch_bounds__(256) list_count(const u32* bits, int* counts, int most, int T, int rows, int words)
{
    const int lane = threadIdx.x & 31, row = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= T) return;
    bits += (u64(blockIdx.y) * rows + row) * words;
    int n = 0;
    for (int w = lane; w < words; w += 32) n += __popc(bits[w]);
    n = __shfl_sync(~0u, warp_prefix(n), 31);
    if (n > most) __trap();
    if (lane == 0) counts[u64(blockIdx.y) * T + row] = n;
}

// starts = counts summed before each row. grid B, 1024 threads: each sums a run of rows.
extern "C" __global__ void __launch_bounds__(1024) list_starts(const int* counts, int* starts, int T)
{
    __shared__ int ends[32];
    const int t = threadIdx.x, warp = t >> 5, lane = t & 31, run = (T + 1023) / 1024;
    const int first = min(t * run, T), last = min(first + run, T);
    counts += u64(blockIdx.x) * T, starts += u64(blockIdx.x) * (T + 1);
    int own = 0;
    for (int i = first; i < last; i++) own += counts[i];
    const int through = warp_prefix(own);
    if (lane == 31) ends[warp] = through;
    __syncthreads();
    if (warp == 0) {
        const int all = warp_prefix(ends[lane]);
        ends[lane] = all;
    }
    __syncthreads();
    int at = through - own + (warp ? ends[warp - 1] : 0);
    for (int i = first; i < last; i++) {
        starts[i] = at;
        at += counts[i];
    }
    if (t == 1023) starts[T] = at;
}

// Grid and threads as list_count.
extern "C" __global__ void __launch_bounds__(256) list_fill(
    const u32* bits, const int* starts, int* list, int capacity, int T, int rows, int words)
{
    const int lane = threadIdx.x & 31, row = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= T) return;
    bits += (u64(blockIdx.y) * rows + row) * words;
    int at = starts[u64(blockIdx.y) * (T + 1) + row];
    list += u64(blockIdx.y) * capacity;
    for (int base = 0; base < words; base += 32) {
        u32 word = base + lane < words ? bits[base + lane] : 0;
        const int own = __popc(word), through = warp_prefix(own);
        for (int to = at + through - own; word; word &= word - 1) list[to++] = (base + lane) * 32 + __ffs(int(word)) - 1;
        at += __shfl_sync(~0u, through, 31);
    }
}

// ------------------------------------------------------------------------------------------------
// Rows of a head. A group of lanes has a row: piece p of lane l is channels 8 (p LANES + l) .. + 8.
// ------------------------------------------------------------------------------------------------
struct Row {
    uint4 piece[PIECES];
};

DEVICE Row load_row(const bf16* row) {
    Row r;
#pragma unroll
    for (int p = 0; p < PIECES; p++) r.piece[p] = *(const uint4*)(row + 8 * (p * LANES + (threadIdx.x & (LANES - 1))));
    return r;
}
DEVICE void widen(float (&to)[CHANNELS], const Row& row) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const u32 words[4] = {row.piece[p].x, row.piece[p].y, row.piece[p].z, row.piece[p].w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            to[8 * p + 2 * e] = bf16_lo(words[e]);
            to[8 * p + 2 * e + 1] = bf16_hi(words[e]);
        }
    }
}
DEVICE void store_row(bf16* row, const float (&x)[CHANNELS]) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        u32 words[4];
#pragma unroll
        for (int e = 0; e < 4; e++) words[e] = pack_bf16(x[8 * p + 2 * e], x[8 * p + 2 * e + 1]);
        *(uint4*)(row + 8 * (p * LANES + (threadIdx.x & (LANES - 1)))) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
/// Over the lanes of a group; each of them has the sum.
DEVICE float group_sum(float x) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}
/// Over the groups of a warp, lane by lane.
DEVICE float across_sum(float x) {
#pragma unroll
    for (int o = LANES; o < 32; o <<= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}
DEVICE float across_max(float x) {
#pragma unroll
    for (int o = LANES; o < 32; o <<= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
DEVICE float dot(const float (&x)[CHANNELS], const Row& row) {
    float y[CHANNELS], sum = 0.f;
    widen(y, row);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) sum += x[c] * y[c];
    return group_sum(sum);
}
/// acc += by * row
DEVICE void add_row(float (&acc)[CHANNELS], float by, const Row& row) {
    float x[CHANNELS];
    widen(x, row);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) acc[c] += by * x[c];
}

/// A list, dealt to groups: group g of n has entries g, g + n, .. and takes AHEAD of them at a time. Past the end it reads the
/// first entry again, and `has` says that it does not count. Needs an entry.
struct Dealt {
    const int* list;
    int n, at, stride, next[AHEAD];
    DEVICE Dealt(const int* list, int n, int group, int groups) : list(list), n(n), at(group), stride(groups) { look(); }
    DEVICE bool has(int i) const { return at + i * stride < n; }
    DEVICE void look() {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) next[i] = list[has(i) ? at + i * stride : 0];
    }
    DEVICE void advance() {
        at += AHEAD * stride;
        look();
    }
};

/// The largest score so far, and what brings sums to a new one.
struct Top {
    float top = -INF, base = 0.f;
    DEVICE float raise(const float (&x)[AHEAD]) {
        float m = top;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) m = fmaxf(m, x[i]);
        return to(m);
    }
    DEVICE float to(float m) {
        base = m == -INF ? 0.f : m;
        const float fix = exp2_fast(top - base);
        top = m;
        return fix;
    }
};

/// Where a warp works: its query and the list of it.
struct Place {
    int t, head, batch, n;
    const int* list;
    u64 row;      // first channel of [batch, t, head]
    u64 columns;  // first channel of [batch, 0, head]
    DEVICE Place(const int* starts, const int* all, int capacity, int t, int T, int H) : t(t), head(blockIdx.y), batch(blockIdx.z) {
        starts += u64(batch) * (T + 1) + t;
        n = starts[1] - starts[0];
        list = all + u64(batch) * capacity + starts[0];
        row = ((u64(batch) * T + t) * H + head) * DIM;
        columns = (u64(batch) * T * H + head) * DIM;
    }
};

// ------------------------------------------------------------------------------------------------
// gathered_forward. grid (T / 4 rounded up, H, B), 128 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(32 * WARPS, 4) gathered_forward(
    const bf16* q, const bf16* k, const bf16* v, bf16* o, const int* starts, const int* list, float scale, int capacity, int T, int H)
{
    const int t = blockIdx.x * WARPS + (threadIdx.x >> 5), group = (threadIdx.x & 31) / LANES;
    if (t >= T) return;
    const Place place(starts, list, capacity, t, T, H);
    float acc[CHANNELS] = {}, sum = 0.f;
    if (place.n) {
        float query[CHANNELS];
        widen(query, load_row(q + place.row));
        k += place.columns, v += place.columns;
        Top top;
        Dealt dealt(place.list, place.n, group, GROUPS);
        // As many turns for every group, since lanes of all of them meet in shuffles.
        for (int turn = 0; turn < place.n; turn += AHEAD * GROUPS) {
            Row keys[AHEAD], values[AHEAD];
            float x[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) keys[i] = load_row(k + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) values[i] = load_row(v + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float score = dot(query, keys[i]) * scale;
                x[i] = dealt.has(i) ? score : -INF;
            }
            dealt.advance();
            const float fix = top.raise(x);
            sum *= fix;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) acc[c] *= fix;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float p = exp2_fast(x[i] - top.base);
                sum += p;
                add_row(acc, p, values[i]);
            }
        }
        const float fix = top.to(across_max(top.top));
        const float inverse = 1.f / across_sum(sum * fix);
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) acc[c] = across_sum(acc[c] * fix) * inverse;
    }
    if (group == 0) store_row(o + place.row, acc);
}

// ------------------------------------------------------------------------------------------------
// gathered_grad_queries. With e the exponentials and g = do . v: dq = (sum e g k - delta sum e k) / sum e,
// delta = sum e g / sum e, so that one reading of k and v gives all. grid (T / 4 rounded up, H, B), 128 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3) gathered_grad_queries(
    const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, bf16* dq, float2* sums, const int* starts, const int* list,
    float scale, float out_scale, int capacity, int T, int H)
{
    const int t = blockIdx.x * WARPS + (threadIdx.x >> 5), group = (threadIdx.x & 31) / LANES;
    if (t >= T) return;
    const Place place(starts, list, capacity, t, T, H);
    float drawn[CHANNELS] = {}, mean[CHANNELS] = {}, sum = 0.f, weighed = 0.f;  // sums of e g k, e k, e, e g
    float2 row = make_float2(INF, 0.f);
    if (place.n) {
        float query[CHANNELS], out[CHANNELS];
        widen(query, load_row(q + place.row));
        widen(out, load_row(d_out + place.row));
        k += place.columns, v += place.columns;
        Top top;
        Dealt dealt(place.list, place.n, group, GROUPS);
        for (int turn = 0; turn < place.n; turn += AHEAD * GROUPS) {
            Row keys[AHEAD], values[AHEAD];
            float x[AHEAD], g[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) keys[i] = load_row(k + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) values[i] = load_row(v + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float score = dot(query, keys[i]) * scale;
                g[i] = dot(out, values[i]);
                x[i] = dealt.has(i) ? score : -INF;
            }
            dealt.advance();
            const float fix = top.raise(x);
            sum *= fix, weighed *= fix;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) drawn[c] *= fix, mean[c] *= fix;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float e = exp2_fast(x[i] - top.base), eg = e * g[i];
                sum += e, weighed += eg;
                add_row(mean, e, keys[i]);
                add_row(drawn, eg, keys[i]);
            }
        }
        const float fix = top.to(across_max(top.top));
        sum = across_sum(sum * fix);
        const float inverse = 1.f / sum, delta = across_sum(weighed * fix) * inverse;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++)
            // Not one instruction: with the product unrounded, a query of one key would be left the rounding of drawn.
            drawn[c] = (across_sum(drawn[c] * fix) - __fmul_rn(delta, across_sum(mean[c] * fix))) * inverse * out_scale;
        row = make_float2(top.top + __log2f(sum), delta);
    }
    if (group == 0) store_row(dq + place.row, drawn);
    if ((threadIdx.x & 31) == 0) sums[(u64(place.batch) * H + place.head) * T + t] = row;
}

// ------------------------------------------------------------------------------------------------
// gathered_grad_keys. starts and list are those of the transposed bits: the queries of each key. A key that every query
// selects is one block's work, begun first where it is a first key (67 MB at T = 65536, near a millisecond).
// grid (T, H, B), 128 threads.
// ------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(32 * WARPS, 3) gathered_grad_keys(
    const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float2* sums, bf16* dk, bf16* dv, const int* starts,
    const int* list, float scale, float out_scale, int capacity, int T, int H)
{
    __shared__ __align__(16) float parts[WARPS][2][DIM];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = lane / LANES;
    const Place place(starts, list, capacity, blockIdx.x, T, H);
    float to_key[CHANNELS] = {}, to_value[CHANNELS] = {};
    if (place.n) {
        float key[CHANNELS], value[CHANNELS];
        widen(key, load_row(k + place.row));
        widen(value, load_row(v + place.row));
        q += place.columns, d_out += place.columns, sums += (u64(place.batch) * H + place.head) * T;
        Dealt dealt(place.list, place.n, warp * GROUPS + group, WARPS * GROUPS);
        for (int turn = 0; turn < place.n; turn += AHEAD * WARPS * GROUPS) {
            Row queries[AHEAD], outs[AHEAD];
            float2 row[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) queries[i] = load_row(q + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) outs[i] = load_row(d_out + u64(dealt.next[i]) * H * DIM);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) row[i] = sums[dealt.next[i]];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float score = dot(key, queries[i]) * scale, g = dot(value, outs[i]);
                const float p = dealt.has(i) ? exp2_fast(score - row[i].x) : 0.f;
                const float d = dealt.has(i) ? p * (g - row[i].y) : 0.f;
                add_row(to_value, p, outs[i]);
                add_row(to_key, d, queries[i]);
            }
            dealt.advance();
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
        const float a = across_sum(to_key[c]), b = across_sum(to_value[c]);
        const int at = 8 * ((c >> 3) * LANES + (lane & (LANES - 1))) + (c & 7);
        if (group == 0) parts[warp][0][at] = a, parts[warp][1][at] = b;
    }
    __syncthreads();
    // A thread sums pairs of channels, the warps one after the other.
    for (int i = threadIdx.x; i < DIM; i += 32 * WARPS) {
        const int which = i / (DIM / 2), c = 2 * (i % (DIM / 2));
        float2 sum = make_float2(0.f, 0.f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum.x += parts[w][which][c], sum.y += parts[w][which][c + 1];
        const float by = which ? 1.f : out_scale;
        *(u32*)((which ? dv : dk) + place.row + c) = pack_bf16(sum.x * by, sum.y * by);
    }
}
