// What kernels/include/wgmma.cuh does, in C++: a lane computes what it holds of D.
#pragma once
#include "ptx.cuh"

DEVICE u64 panel_descriptor(u32 smem, u32 next_panel = 16) {
    return (u64(smem & 0x3ffff) >> 4) | (u64(next_panel >> 4) << 16) | (u64(1024 >> 4) << 32) | (u64(1) << 62);
}
DEVICE u64 advance(u64 d, u32 bytes) { return (d & 0xffffffff00000000ull) | u32(u32(d) + (bytes >> 4)); }
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { emulator::close_group(emulator::machine.now->products); }
template <int N> DEVICE void wgmma_wait() { emulator::finish_groups(emulator::machine.now->products, N); }

/// Element (`along` the other axis, `k` of 16) of an operand in shared memory with a 128-byte swizzle.
DEVICE float operand(u64 d, int along, int k, bool turned) {
    const u32 start = u32(d & 0x3fff) << 4, leading = u32(d >> 16 & 0x3fff) << 4, stride = u32(d >> 32 & 0x3fff) << 4;
    u32 at = start + (turned ? along / 64 * leading + k / 8 * stride + k % 8 * 128 + along % 64 * 2 : along / 8 * stride + along % 8 * 128 + k * 2);
    at ^= (at >> 7 & 7) << 4;
    return __uint_as_float(u32(*(const u16*)shared_at(at)) << 16);
}
/// D (+)= A B for the lane: `rows` are its two rows of A, 16 elements each.
template <int TB, int N> DEVICE void lane_product(float* d, const float (*rows)[16], u64 b, int accumulate, int lane) {
    for (int j = 0; j < N / 4; j++)
        for (int c = 0; c < 2; c++) {
            float column[16];
            for (int k = 0; k < 16; k++) column[k] = operand(b, 8 * j + lane % 4 * 2 + c, k, TB);
            for (int r = 0; r < 2; r++) {
                float sum = accumulate ? d[4 * j + 2 * r + c] : 0.f;
                for (int k = 0; k < 16; k++) sum += rows[r][k] * column[k];
                d[4 * j + 2 * r + c] = sum;
            }
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
