// What kernels/include/wgmma.cuh does, in C++: a lane computes what it holds of D.
#pragma once
#include "ptx.cuh"

DEVICE u64 panel_descriptor(u32 at, u32 next_panel = 16) {
    return (u64(at & 0x3ffff) >> 4) | (u64(next_panel >> 4) << 16) | (u64(1024 >> 4) << 32) | (u64(1) << 62);
}
DEVICE u64 advance(u64 d, u32 bytes) { return (d & 0xffffffff00000000ull) | u32(u32(d) + (bytes >> 4)); }
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { emulator::close_group(emulator::machine.now->products); }
template <int N> DEVICE void wgmma_wait() { emulator::finish_groups(emulator::machine.now->products, N); }

/// Where element `k` of 16 of row or column `along` of an operand is, under its 128-byte swizzle.
DEVICE u32 operand_at(u64 d, int along, int k, bool turned) {
    const u32 start = u32(d & 0x3fff) << 4, leading = u32(d >> 16 & 0x3fff) << 4, stride = u32(d >> 32 & 0x3fff) << 4;
    const u32 at = start + (turned ? along / 64 * leading + k / 8 * stride + k % 8 * 128 + along % 64 * 2 : along / 8 * stride + along % 8 * 128 + k * 2);
    return at ^ (at >> 7 & 7) << 4;
}
DEVICE float operand(u64 d, int along, int k, bool turned) {
    return __uint_as_float(u32(*(const u16*)shared_at(operand_at(d, along, k, turned))) << 16);
}
/// D (+)= A B for a lane: `rows` are its two rows of A, 16 elements each. In the order of k for each element.
template <int TB, int N> DEVICE void lane_product(float* d, const float (*rows)[16], u64 b, int accumulate, int lane) {
    constexpr int COLUMNS = N / 2;
    float columns[16][COLUMNS];
    for (int c = 0; c < COLUMNS; c += 2) {
        const int along = 8 * (c / 2) + lane % 4 * 2;
        if (TB) {
            for (int k = 0; k < 16; k++) {
                const u32 pair = *(const u32*)shared_at(operand_at(b, along, k, true));
                columns[k][c] = low_half(pair), columns[k][c + 1] = high_half(pair);
            }
        } else {
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < 16; k += 8) {
                    const u16* const eight = (const u16*)shared_at(operand_at(b, along + i, k, false));
                    for (int e = 0; e < 8; e++) columns[k + e][c + i] = __uint_as_float(u32(eight[e]) << 16);
                }
        }
    }
    for (int r = 0; r < 2; r++) {
        float sums[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) sums[c] = accumulate ? d[c / 2 * 4 + 2 * r + c % 2] : 0.f;
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < COLUMNS; c++) sums[c] += rows[r][k] * columns[k][c];
        for (int c = 0; c < COLUMNS; c++) d[c / 2 * 4 + 2 * r + c % 2] = sums[c];
    }
}
template <int TA = 0, int TB = 0, int N> DEVICE void wgmma_ss(float (&d)[N], u64 a, u64 b, int accumulate) {
    static_assert(N == 16 || N == 32 || N == 64 || N == 128);
    const int lane = emulator::lane(), first = emulator::machine.now->thread / 32 % 4 * 16 + lane / 4;
    float* const to = d;
    emulator::issue_in(emulator::machine.now->products, [=] {
        float rows[2][16];
        for (int r = 0; r < 2; r++)
            for (int k = 0; k < 16; k++) rows[r][k] = operand(a, first + 8 * r, k, TA);
        lane_product<TB, N>(to, rows, b, accumulate, lane);
    });
}
template <int TB = 0, int N> DEVICE void wgmma_rs(float (&d)[N], const u32* a, u64 b, int accumulate) {
    static_assert(N == 16 || N == 32 || N == 64 || N == 128);
    struct Rows { float at[2][16]; } rows;
    const emulator::Meeting& all = emulator::meet(~0u, Fragments{{a[0], a[1], a[2], a[3]}, {}});
    const int lane = emulator::lane();
    for (int k = 0; k < 16; k++)
        for (int r = 0; r < 2; r++) {
            const u32 pair = emulator::given<Fragments>(all, lane / 4 * 4 + k % 8 / 2).a[r + k / 8 * 2];
            rows.at[r][k] = k % 2 ? high_half(pair) : low_half(pair);
        }
    float* const to = d;
    emulator::issue_in(emulator::machine.now->products, [=] { lane_product<TB, N>(to, rows.at, b, accumulate, lane); });
}
/// Byte `k` of 32 of row or column `along` of an operand.
DEVICE int operand_byte(u64 d, int along, int k) {
    const u32 start = u32(d & 0x3fff) << 4, stride = u32(d >> 32 & 0x3fff) << 4, at = start + along / 8 * stride + along % 8 * 128 + k;
    return *(const signed char*)shared_at(at ^ (at >> 7 & 7) << 4);
}
/// D (+)= A B for a lane: `rows` are its two rows of A, 32 bytes each.
template <int N> DEVICE void lane_bytes(int* d, const int (*rows)[32], u64 b, int accumulate, int lane) {
    for (int c = 0; c < N; c++) {
        const int along = 8 * (c / 2) + lane % 4 * 2 + c % 2;
        int column[32];
        for (int k = 0; k < 32; k++) column[k] = operand_byte(b, along, k);
        for (int r = 0; r < 2; r++) {
            int& sum = d[c / 2 * 4 + 2 * r + c % 2];
            if (!accumulate) sum = 0;
            for (int k = 0; k < 32; k++) sum += rows[r][k] * column[k];
        }
    }
}
template <int N> DEVICE void wgmma_bytes(int (&d)[N], u64 a, u64 b, int accumulate) {
    const int lane = emulator::lane(), first = emulator::machine.now->thread / 32 % 4 * 16 + lane / 4;
    int* const to = d;
    emulator::issue_in(emulator::machine.now->products, [=] {
        int rows[2][32];
        for (int r = 0; r < 2; r++)
            for (int k = 0; k < 32; k++) rows[r][k] = operand_byte(a, first + 8 * r, k);
        lane_bytes<N / 2>(to, rows, b, accumulate, lane);
    });
}
template <int N> DEVICE void wgmma_bytes(int (&d)[N], const u32* a, u64 b, int accumulate) {
    struct Rows { int at[2][32]; } rows;
    const emulator::Meeting& all = emulator::meet(~0u, Fragments{{a[0], a[1], a[2], a[3]}, {}});
    const int lane = emulator::lane();
    for (int k = 0; k < 32; k++)
        for (int r = 0; r < 2; r++)
            rows.at[r][k] = (signed char)(emulator::given<Fragments>(all, lane / 4 * 4 + k % 16 / 4).a[r + k / 16 * 2] >> k % 4 * 8);
    int* const to = d;
    emulator::issue_in(emulator::machine.now->products, [=] { lane_bytes<N / 2>(to, rows.at, b, accumulate, lane); });
}
