// Products of routed experts whose weights are int8 codes. The weights are the left operand here: a warpgroup turns its codes into
// bf16 fragments in registers, and the gathered rows are the right operand, so nothing is written back to shared memory.
//
// A tile is 256 columns x 128 rows; a warpgroup has 2 x 64 columns (swiglu: 64 of gate and the same 64 of up). An accumulator holds,
// for column g or g + 8 of its warp's 16 (g = lane / 4), rows 8 j + 2 (lane % 4) + {0, 1}. Turned, the codes of two neighbouring
// columns come together, and g stands for column 2 g, g + 8 for 2 g + 1.
#pragma once
#include "experts_tiles.cuh"

constexpr int INT8_STAGES = 5;
constexpr int CODE_BYTES = COLUMNS * DEPTH, SCALE_BYTES = DEPTH / 2 * 8, INT8_STAGE_BYTES = A_BYTES + CODE_BYTES;
constexpr int EXPERTS_INT8_SMEM = INT8_STAGES * (INT8_STAGE_BYTES + SCALE_BYTES) + 2 * ROWS * 128 + TABLE_BYTES + 2 * INT8_STAGES * 8;
static_assert(EXPERTS_INT8_SMEM == 200032, "the launch states it");

/// Two codes to a 64th of them in bf16, exactly: code + 128 as the bits of a subnormal bf16, times 2^127, less 2.
/// `codes` has its signs flipped; `select` takes the two, each to the low half of a bf16.
DEVICE u32 widen(u32 codes, u32 select) { return multiply_add(__byte_perm(codes, 0, select), 0x7f007f00u, 0xc000c000u); }

/// 64 times two scales as the sum of two bf16 each, good to 2^-17: x the higher parts, y the lower.
DEVICE uint2 split_scales(float2 s) {
    s.x *= 64.f, s.y *= 64.f;
    const u32 high = pack_bf16(s.x, s.y);
    return make_uint2(high, pack_bf16(s.x - bf16_lo(high), s.y - bf16_hi(high)));
}

/// 64 columns x 128 rows of a warpgroup to rows of `to` [.., n]. `pair(i, e)`: as `value` packs for its two orders below;
/// lane l of warp w gives the index of row 32 w + l (-1: none).
template <bool TURNED_ORDER, class F> DEVICE void store_columns(u8* staging, int part, bf16* to, int row, int n, int column, F value) {
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    const u32 at = smem_u32(staging);
    if (TURNED_ORDER) {
        const u32 mine = at + 2 * (lane & 3) * 128 + (lane >> 2 & 3) * 4;
        const int chunk = 2 * warp + (lane >> 4);
#pragma unroll
        for (int j = 0; j < 16; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                store_shared(mine + (8 * j + e) * 128 + ((chunk ^ (2 * (lane & 3) + e)) << 4), pack_bf16(value(4 * j + e), value(4 * j + 2 + e)));
    } else {
        const int matrix = lane >> 3, r = lane & 7;
        const u32 mine = at + ((matrix >> 1) * 8 + r) * 128 + (((2 * warp + (matrix & 1)) ^ r) << 4);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            u32 f[4];
#pragma unroll
            for (int q = 0; q < 4; q++) f[q] = pack_bf16(value(8 * j + 2 * q), value(8 * j + 2 * q + 1));
            stmatrix_trans(mine + j * 2048, f);
        }
    }
    named_barrier(1 + part, 128);
    const int chunk = lane & 7;
    const bool inside = column + chunk * 8 < n;
    to += column + chunk * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = 4 * i + (lane >> 3), index = __shfl_sync(~0u, row, r);
        const uint4 v = *(const uint4*)(staging + (32 * warp + r) * 128 + ((chunk ^ (r & 7)) << 4));
        store_if(inside && index >= 0, to + u64(u32(index)) * n, v);
    }
    named_barrier(1 + part, 128);
}

template <Form FORM>
DEVICE void products_int8(const TensorMap& w0, const TensorMap& w1, const TensorMap& low_map0, const TensorMap& low_map1, const bf16* x0, const bf16* x1,
                          const bf16* low0, const bf16* low1, const float* scale0, const float* scale1, const i64* order, const i64* bounds,
                          bf16* y0, bf16* y1, bf16* y2, int run, int P, int experts, int k, int n)
{
    // A stage: 64 of the contraction, of rows and of codes; turned, scales of 32 pairs besides.
    u8* scales = smem + INT8_STAGES * INT8_STAGE_BYTES;
    u8* staging = scales + INT8_STAGES * SCALE_BYTES;
    int* prefix = (int*)(staging + 2 * ROWS * 128);
    u64 *full = (u64*)(prefix + TABLE_BYTES / 4), *empty = full + INT8_STAGES;

    const int tid = threadIdx.x & 127, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, group = warp >> 2;
    const int wide_columns = FORM == SWIGLU ? COLUMNS / 2 : COLUMNS, columns = (n + wide_columns - 1) / wide_columns;
    const int terms = FORM == TURNED && x1 ? 2 : 1, steps = k / DEPTH, wide = terms * steps;
    // A low term takes two stages, for each has room for half of its weights.
    const int lows = low0 ? (FORM == TURNED ? 2 * terms : 2) : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < INT8_STAGES; i++) {
            barrier_init(&full[i], 128 + 1 + (FORM == TURNED));  // copies of the rows, the copy engine, and the warp with the scales
            barrier_init(&empty[i], 8);
        }
        barrier_init_done();
    }
    if (warp == 1) count_tiles<1>(prefix, bounds, experts);
    __syncthreads();
    List<1> list(prefix, bounds, experts, columns, wide_columns);
    Ring<INT8_STAGES> ring;

    if (group == 0) {
        registers_drop<56>();
        const int chunk = tid & 7, row = tid >> 3;  // of rows row, row + 16, ..
        const u32 to = smem_u32(smem) + panel_chunk(row, chunk);
        const u32 chunks = u32(k) >> 3;
        const Divisor of_run(run);
        u32 ahead[8];
        auto fetch = [&](const Tile& tile) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (row + 16 * i < tile.rows) ahead[i] = load_early_word(order + tile.first + row + 16 * i);
        };
        // Two boxes of half of the columns each; boxes of low weights take twice the room and come one (turned: two) to a stage.
        auto load_codes = [&](const TensorMap& m0, const TensorMap& m1, const Tile& tile, int depth) {
            u8* at = smem + ring.at * INT8_STAGE_BYTES + A_BYTES;
            u64* bar = &full[ring.at];
            barrier_expect(bar, CODE_BYTES);
            if (FORM == TURNED) {
#pragma unroll
                for (int p = 0; p < 4; p++) tensor_load(at + p * (CODE_BYTES / 4), m0, tile.column + 64 * p, depth, tile.expert, bar);
            } else {
                tensor_load(at, m0, depth, tile.column, tile.expert, bar);
                tensor_load(at + CODE_BYTES / 2, FORM == SWIGLU ? m1 : m0, depth, tile.column + (FORM == SWIGLU ? 0 : 128), tile.expert, bar);
            }
        };
        auto load_low = [&](const TensorMap& map, const Tile& tile, int half) {
            u8* at = smem + ring.at * INT8_STAGE_BYTES + A_BYTES;
            u64* bar = &full[ring.at];
            barrier_expect(bar, CODE_BYTES);
            if (FORM == TURNED) {
#pragma unroll
                for (int p = 0; p < 2; p++) tensor_load(at + p * PANEL, map, tile.column + 128 * half + 64 * p, 0, tile.expert, bar);
            } else tensor_load(at, map, 0, tile.column + (FORM == SWIGLU ? 0 : 128 * half), tile.expert, bar);
        };
        float2 scale_ahead = make_float2(0.f, 0.f);
        auto fetch_scales = [&](const Tile& tile, int s) {  // of the second warp
            const float* scale = s >= steps ? scale1 + (s - steps) * DEPTH : scale0 + s * DEPTH;
            scale_ahead = *(const float2*)(scale + u64(tile.expert) * k + 2 * lane);
        };
        Tile tile, following;
        bool more = list.next(following);
        if (more) {
            fetch(following);
            if (FORM == TURNED && warp == 1) fetch_scales(following, 0);
        }
        while (more) {
            tile = following;
            u32 place[8], from[8];
#pragma unroll
            for (int i = 0; i < 8; i++) place[i] = ahead[i], from[i] = of_run(place[i]) * chunks + chunk;  // in units of 16 bytes
            more = list.next(following);
            if (more) fetch(following);
            const u8* x = (const u8*)x0;
            for (int s = 0; s < wide; s++, x += 128) {
                const bool second = FORM == TURNED && s >= steps;
                if (FORM == TURNED && s == steps) x = (const u8*)x1;
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                if (tid == 0) load_codes(second ? w1 : w0, w1, tile, (second ? s - steps : s) * DEPTH);
                const u32 a = to + ring.at * INT8_STAGE_BYTES;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (row + 16 * i < tile.rows) copy_async(a + i * 2048, x + u64(from[i]) * 16);
                copy_async_arrive(&full[ring.at]);
                if (FORM == TURNED && warp == 1) {
                    *(uint2*)(scales + ring.at * SCALE_BYTES + lane * 8) = split_scales(scale_ahead);
                    __syncwarp();
                    if (lane == 0) barrier_arrive(&full[ring.at]);
                    if (s + 1 < wide) fetch_scales(tile, s + 1);
                    else if (more) fetch_scales(following, 0);
                }
                ring.next();
            }
            for (int l = 0; l < lows; l++) {
                barrier_wait(&empty[ring.at], ring.parity ^ 1);
                const bool second = FORM == SWIGLU ? l : l >> 1;
                if (tid == 0) load_low(second ? low_map1 : low_map0, tile, l & 1);
                const bf16* low = second ? low1 : low0;
                const u32 a = to + ring.at * INT8_STAGE_BYTES;
                if (chunk < 2)
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (row + 16 * i < tile.rows) copy_async(a + i * 2048, low + u64(place[i]) * 16 + chunk * 8);
                copy_async_arrive(&full[ring.at]);
                if (FORM == TURNED && tid == 32) barrier_arrive(&full[ring.at]);
                ring.next();
            }
        }
    } else {
        registers_raise<224>();
        const int part = group - 1, g = lane >> 2, t = lane & 3, w = warp & 3;
        const u64 b_desc = panel_descriptor(smem_u32(smem));
        const u32 base = smem_u32(smem) + A_BYTES;
        // Codes lie in lines of 64 with the 16-byte chunks of line r permuted by xor with r / 2 % 4.
        // Plain: this lane's two codes of chunk i, half h, line 64 m + 8 b are at lines + (chunk_at[i]) + 8 h + 512 b + m * next.
        const u32 lines = base + ((FORM == SWIGLU ? 64 : 128) * part + 16 * w + g) * 64 + 2 * t, next = FORM == SWIGLU ? 8192 : 4096;
        u32 chunk_at[4];
#pragma unroll
        for (int i = 0; i < 4; i++) chunk_at[i] = (i ^ (g >> 1 & 3)) << 4;
        // Turned: this lane's line of the four 8 x 16 matrices of half a stage.
        const u32 matrices = base + 2 * part * (CODE_BYTES / 4) + lane * 64 + ((w ^ (lane >> 1 & 3)) << 4);
        u8* my_staging = staging + part * ROWS * 128;
        float acc[2][64];
        u32 even[16], odd[16];  // fragments of the first and second half of a stage: [chunk][m][4]

        // Fragments of chunks 2 half and 2 half + 1 of the stage at ring.at.
        auto turn = [&](u32 (&to)[16], int half) {
            const u32 stage = ring.at * INT8_STAGE_BYTES;
            if (FORM == TURNED) {
                u32 codes[2][4];
                uint2 scale[4];
#pragma unroll
                for (int m = 0; m < 2; m++) ldmatrix_trans(codes[m], matrices + stage + m * (CODE_BYTES / 4) + half * 2048);
                const u32 scales_at = smem_u32(scales) + ring.at * SCALE_BYTES + half * 128 + t * 8;
#pragma unroll
                for (int q = 0; q < 4; q++) scale[q] = load_shared_pair(scales_at + q * 32);
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int q = 0; q < 4; q++) {
                        const u32 c = codes[m][q] ^ 0x80808080u;
#pragma unroll
                        for (int b = 0; b < 2; b++) {
                            const u32 x = widen(c, b ? 0x4341 : 0x4240);
                            to[(q >> 1) * 8 + m * 4 + (q & 1) * 2 + b] = multiply_add(x, scale[q].x, multiply(x, scale[q].y));
                        }
                    }
            } else {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int m = 0; m < 2; m++)
#pragma unroll
                        for (int h = 0; h < 2; h++)
#pragma unroll
                            for (int b = 0; b < 2; b++)
                                to[i * 8 + m * 4 + 2 * h + b] = load_shared_half(lines + stage + m * next + chunk_at[2 * half + i] + 8 * h + 512 * b);
#pragma unroll
                for (int i = 0; i < 16; i++) to[i] = widen(to[i] ^ 0x8080u, 0x4140);
            }
        };
        auto multiply_half = [&](const u32 (&a)[16], int half, int accumulate) {
            const u64 b = advance(b_desc, ring.at * INT8_STAGE_BYTES + half * 64);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int m = 0; m < 2; m++) wgmma_rs(acc[m], a + i * 8 + m * 4, advance(b, i * 32), accumulate | i);
            wgmma_commit();
        };
        auto release = [&](u32 stage) {
            if (lane == 0) barrier_arrive(&empty[stage]);
        };
        Tile tile, following;
        bool more = list.next(following);
        while (more) {
            tile = following;
            int place = -1;
            float scale[2][2];
            if (32 * w + lane < tile.rows) place = int(load_early_word(order + tile.first + 32 * w + lane));
            if (FORM != TURNED)
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        const int column = tile.column + (FORM == SWIGLU ? 64 * part : 128 * part + 64 * m) + 16 * w + g + 8 * b;
                        scale[m][b] = column < n ? 64.f * (FORM == SWIGLU && m ? scale1 : scale0)[u64(tile.expert) * n + column] : 0.f;
                    }
            u32 before = 0;
            for (int s = 0; s < wide; s++, ring.next()) {
                barrier_wait(&full[ring.at], ring.parity);
                fence_async();  // the rows were written by ordinary copies
                turn(even, 0);
                multiply_half(even, 0, s > 0);
                if (s > 0) {
                    wgmma_wait<1>();
                    release(before);
                } else more = list.next(following);  // while the tensor cores work
                turn(odd, 1);
                multiply_half(odd, 1, 1);
                wgmma_wait<1>();
                before = ring.at;
            }
            wgmma_wait<0>();
            release(before);
            if (FORM != TURNED)
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int i = 0; i < 64; i++) acc[m][i] *= scale[m][i >> 1 & 1];
            for (int l = 0; l < lows; l++, ring.next()) {
                barrier_wait(&full[ring.at], ring.parity);
                fence_async();
                // SWIGLU: a stage for each side; else one for each half of the columns, which are one warpgroup's.
                if (FORM == SWIGLU || (l & 1) == part) {
                    const u32 at = base + ring.at * INT8_STAGE_BYTES;
                    u32 a[2][4];
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        if (FORM == TURNED) {  // right [16, 64 columns]: pairs of columns of four rows
                            u32 pairs[4];
#pragma unroll
                            for (int q = 0; q < 4; q++) {
                                const int r = 2 * t + (q & 1) + 8 * (q >> 1);
                                pairs[q] = load_shared(at + m * PANEL + panel_at(r, 16 * w + 2 * g));
                            }
#pragma unroll
                            for (int q = 0; q < 4; q++) a[m][q] = __byte_perm(pairs[q & 2], pairs[(q & 2) + 1], q & 1 ? 0x7632 : 0x5410);
                        } else {
                            const int r = (FORM == SWIGLU ? 64 * part : 64 * m) + 16 * w + (lane & 15);
                            ldmatrix(a[m], at + panel_chunk(r, lane >> 4));
                        }
                    }
                    const u64 b = advance(b_desc, ring.at * INT8_STAGE_BYTES);
                    wgmma_fence();
                    if (FORM == SWIGLU) {
                        if (l == 0) wgmma_rs(acc[0], a[0], b, 1);
                        else wgmma_rs(acc[1], a[1], b, 1);
                    } else {
                        wgmma_rs(acc[0], a[0], b, 1);
                        wgmma_rs(acc[1], a[1], b, 1);
                    }
                    wgmma_commit();
                    wgmma_wait<0>();
                }
                __syncwarp();
                release(ring.at);
            }
            if (FORM == SWIGLU) {
                const int column = tile.column + 64 * part;
                if (y1) {
                    store_columns<false>(my_staging, part, y1, place, n, column, [&](int i) { return acc[0][i]; });
                    store_columns<false>(my_staging, part, y2, place, n, column, [&](int i) { return acc[1][i]; });
                }
                store_columns<false>(my_staging, part, y0, place, n, column, [&](int i) { return silu(acc[0][i]) * acc[1][i]; });
            } else {
#pragma unroll
                for (int m = 0; m < 2; m++)
                    store_columns<FORM == TURNED>(my_staging, part, y0, place, n, tile.column + 128 * part + 64 * m, [&](int i) { return acc[m][i]; });
            }
        }
        zero_unrouted(y0, FORM == SWIGLU ? y1 : nullptr, y2, order, bounds[experts], P, n, part * 4 + w);
    }
}
