"""Writes wgmma.cuh: the register lists of the wide instructions are too long to keep by hand."""
HEAD = '''// Written by gen_wgmma.py; edit that.
//
// wgmma: D[64 x N] (+)= A[64 x 16] B[16 x N] by one warpgroup, bf16 operands, fp32 accumulators.
// B, and A unless it is in registers, are panels in shared memory (mma.cuh) named by a descriptor.
// TA / TB = 0: the contraction runs along the 128 bytes of a panel row ("K-major");
// TA / TB = 1: it runs down the rows of the panel ("MN-major").
// `wgmma_bytes` contracts 32 signed bytes in place of 16 bf16, both operands K-major, and counts in 32 bits.
#pragma once
#include "base.cuh"

/// Descriptor of a panel, 128-byte swizzle. K-major: 8-row groups 1024 bytes apart; step the
/// contraction by 16 with + 32 bytes. MN-major: `next_panel` bytes between panels of 64 columns;
/// step the contraction by 16 rows with + 2048 bytes.
DEVICE u64 panel_descriptor(u32 smem, u32 next_panel = 16) {
    return (u64(smem & 0x3ffff) >> 4) | (u64(next_panel >> 4) << 16) | (u64(1024 >> 4) << 32) | (u64(1) << 62);
}
/// The same descriptor `bytes` (a multiple of 16) further on. With a constant it costs one uniform addition,
/// where a fresh descriptor costs a chain of five that is as long as a narrow wgmma.
DEVICE u64 advance(u64 d, u32 bytes) { return (d & 0xffffffff00000000ull) | u32(u32(d) + (bytes >> 4)); }
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most N committed groups are unfinished.
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
'''
def gen(n):
    r = n // 2
    regs = ", ".join(f"%{i}" for i in range(r))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
    name = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16"
    return f'''
template <int TA = 0, int TB = 0> DEVICE void wgmma_ss(float (&d)[{r}], u64 a, u64 b, int accumulate) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+2}, 0;\\n"
                 "{name} {{{regs}}}, %{r}, %{r+1}, p, 1, 1, %{r+3}, %{r+4};\\n}}\\n"
                 : {outs}
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB));
}}
template <int TB = 0> DEVICE void wgmma_rs(float (&d)[{r}], const u32* a, u64 b, int accumulate) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+5}, 0;\\n"
                 "{name} {{{regs}}}, {{%{r}, %{r+1}, %{r+2}, %{r+3}}}, %{r+4}, p, 1, 1, %{r+6};\\n}}\\n"
                 : {outs}
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TB));
}}
'''
def gen_bytes(n):
    r = n // 2
    regs = ", ".join(f"%{i}" for i in range(r))
    outs = ", ".join(f'"+r"(d[{i}])' for i in range(r))
    return f'''
DEVICE void wgmma_bytes(int (&d)[{r}], u64 a, u64 b, int accumulate) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+2}, 0;\\n"
                 "wgmma.mma_async.sync.aligned.m64n{n}k32.s32.s8.s8 {{{regs}}}, %{r}, %{r+1}, p;\\n}}\\n"
                 : {outs}
                 : "l"(a), "l"(b), "r"(accumulate));
}}
DEVICE void wgmma_bytes(int (&d)[{r}], const u32* a, u64 b, int accumulate) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+5}, 0;\\n"
                 "wgmma.mma_async.sync.aligned.m64n{n}k32.s32.s8.s8 {{{regs}}}, {{%{r}, %{r+1}, %{r+2}, %{r+3}}}, %{r+4}, p;\\n}}\\n"
                 : {outs}
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}}
'''
with open("wgmma.cuh", "w") as f:
    f.write(HEAD + "".join(gen(n) for n in (32, 64, 128, 256)) + gen_bytes(128))
