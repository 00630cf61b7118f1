// What each function of kernels/include/ptx.cuh does, in C++.
#pragma once
#include "cuda.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 bf16;

#define DEVICE inline

/// A tensor as the copy engine sees it; made by kernels/src/emulator.rs.
struct alignas(64) TensorMap {
    u64 address, element_bytes, size[4], box[4], swizzle_bytes, unused[5];
};
static_assert(sizeof(TensorMap) == 128, "as large as a CUtensorMap");

#define smem (emulator::block().shared)
// Addresses of static shared memory wrap around 2^32 and back.
DEVICE u32 smem_u32(const void* p) { return u32((const u8*)p - smem); }
DEVICE u8* shared_at(u32 at) { return smem + int(at); }

// ---- arithmetic ----
DEVICE u32 bf16_of(float x) {
    const u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE float low_half(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE u32 pack_bf16(float lo, float hi) { return bf16_of(lo) | bf16_of(hi) << 16; }
/// Subnormal numbers are zeros to these instructions.
DEVICE float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
DEVICE float exp2_fast(float x) { return flushed(exp2f(flushed(x))); }
DEVICE float rcp_fast(float x) { return flushed(1.f / flushed(x)); }
DEVICE u32 to_tf32(float x) { return x != x ? 0x7fffffffu : (__float_as_uint(x) + 0x1000u) & 0xffffe000u; }
DEVICE void keep_packed(uint4&) {}

// ---- loads and stores ----
DEVICE uint4 load_early(const void* from) { return *(const uint4*)from; }
DEVICE u32 load_early_word(const void* from) { return *(const u32*)from; }
DEVICE uint4 load_far(const void* from) { return *(const uint4*)from; }
DEVICE float4 load_global(const float* from) { return *(const float4*)from; }
DEVICE uint2 load_global(const bf16* from) { return *(const uint2*)from; }
DEVICE void store_global(float* to, const float4& v) { *(float4*)to = v; }
DEVICE void store_global(bf16* to, const uint2& v) { *(uint2*)to = v; }
DEVICE void store_if(bool yes, void* to, const uint4& v) {
    if (yes) *(uint4*)to = v;
}
DEVICE u32 load_shared(u32 at) { return *(const u32*)shared_at(at); }
DEVICE void store_shared(u32 at, u32 x) { *(u32*)shared_at(at) = x; }

// ---- fragments of a warp ----
DEVICE void ldmatrix_any(u32* r, u32 at, bool turned) {
    const emulator::Meeting& all = emulator::meet(~0u, at);
    const int lane = emulator::lane(), row = lane / 4, column = lane % 4 * 2;
    u32 from[32];
    for (int i = 0; i < 32; i++) from[i] = emulator::given<u32>(all, i);
    for (int m = 0; m < 4; m++) {
        const auto element = [&](int row, int column) { return u32(((const u16*)shared_at(from[8 * m + row]))[column]); };
        r[m] = turned ? element(column, row) | element(column + 1, row) << 16 : element(row, column) | element(row, column + 1) << 16;
    }
    // Nobody writes what others have yet to read.
    emulator::meet(~0u, 0);
}
DEVICE void stmatrix_any(u32 at, const u32* r, bool turned) {
    const emulator::Meeting& all = emulator::meet(~0u, at);
    const int lane = emulator::lane(), row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
        const auto element = [&](int row, int column) -> u16& { return ((u16*)shared_at(emulator::given<u32>(all, 8 * m + row)))[column]; };
        (turned ? element(column, row) : element(row, column)) = u16(r[m]);
        (turned ? element(column + 1, row) : element(row, column + 1)) = u16(r[m] >> 16);
    }
}
DEVICE void ldmatrix(u32 (&r)[4], u32 at) { ldmatrix_any(r, at, false); }
DEVICE void ldmatrix_trans(u32* r, u32 at) { ldmatrix_any(r, at, true); }
DEVICE void stmatrix(u32 at, const u32* r) { stmatrix_any(at, r, false); }
DEVICE void stmatrix_trans(u32 at, const u32* r) { stmatrix_any(at, r, true); }
struct Fragments { u32 a[4], b[2]; };
DEVICE void mma_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const emulator::Meeting& all = emulator::meet(~0u, Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    const int lane = emulator::lane(), g = lane / 4, t = lane % 4;
    const auto tf32 = [](u32 x) { return __uint_as_float(x & 0xffffe000u); };
    for (int i = 0; i < 4; i++) {
        const int column = t * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const Fragments left = emulator::given<Fragments>(all, g * 4 + k % 4), right = emulator::given<Fragments>(all, column * 4 + k % 4);
            c[i] += tf32(left.a[i / 2 + k / 4 * 2]) * tf32(right.b[k / 4]);
        }
    }
}
DEVICE void mma_bf16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const emulator::Meeting& all = emulator::meet(~0u, Fragments{{a0, a1, a2, a3}, {b0, b1}});
    const int lane = emulator::lane(), g = lane / 4, t = lane % 4;
    const auto half = [](u32 pair, int at) { return at % 2 ? high_half(pair) : low_half(pair); };
    for (int i = 0; i < 4; i++) {
        const int column = t * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const int part = k % 8 / 2;
            const Fragments left = emulator::given<Fragments>(all, g * 4 + part), right = emulator::given<Fragments>(all, column * 4 + part);
            c[i] += half(left.a[i / 2 + k / 8 * 2], k) * half(right.b[k / 8], k);
        }
    }
}

// ---- barriers and registers of a block ----
DEVICE void named_barrier(int id, int threads) { emulator::block_barrier(id, threads); }
template <int N> DEVICE void registers_raise() {}
template <int N> DEVICE void registers_drop() {}

// ---- mbarrier ----
struct Phase {
    u64 expected : 12, missing : 12, parity : 1, is_set : 1;
    int64_t bytes : 38;
};
static_assert(sizeof(Phase) == 8, "an mbarrier has 8 bytes");
DEVICE void phase_changed(Phase* p) {
    if (p->missing == 0 && p->bytes == 0) p->parity ^= 1, p->missing = p->expected;
    emulator::machine.progress++;
}
DEVICE void phase_arrive(Phase* p) {
    if (p->missing == 0) emulator::fail("an mbarrier for %d arrivals gets one more", int(p->expected));
    p->missing--;
    phase_changed(p);
}
DEVICE void phase_bytes(Phase* p, int bytes) { p->bytes += bytes, phase_changed(p); }
DEVICE void barrier_init(u64* bar, u32 arrivals) {
    Phase p{};
    p.expected = p.missing = arrivals;
    memcpy(bar, &p, 8);
}
DEVICE void barrier_init_done() {}
DEVICE void barrier_expect(u64* bar, u32 bytes) { ((Phase*)bar)->bytes += bytes, phase_arrive((Phase*)bar); }
DEVICE void barrier_arrive(u64* bar) { phase_arrive((Phase*)bar); }
DEVICE void barrier_wait(u64* bar, u32 parity) {
    emulator::wait_while([=] { return ((volatile Phase*)bar)->parity == (parity & 1); });
}

// ---- the copy engine ----
DEVICE void bulk_load(void* to, const void* from, u32 bytes, u64* bar) {
    emulator::issue([=] { memcpy(to, from, bytes), phase_bytes((Phase*)bar, -int(bytes)); });
}
DEVICE void bulk_store(void* to, const void* from, u32 bytes) {
    emulator::issue_in(emulator::machine.now->stores, [=] { memcpy(to, from, bytes); });
}
/// Calls `f(shared offset, address)` for each element of the box that starts at `shared`; no address outside the tensor.
template <class F> static inline void each_of_box(const TensorMap& map, u32 shared, const int (&corner)[4], F f) {
    const u64 n = map.element_bytes;
    u32 at = 0;
    for (u64 w = 0; w < map.box[3]; w++) for (u64 z = 0; z < map.box[2]; z++) for (u64 y = 0; y < map.box[1]; y++) for (u64 x = 0; x < map.box[0]; x++) {
        const long long place[4] = {(long long)(corner[0] + x), (long long)(corner[1] + y), (long long)(corner[2] + z), (long long)(corner[3] + w)};
        u64 address = 0, stride = n;
        bool inside = true;
        for (int i = 0; i < 4; i++) {
            inside = inside && place[i] >= 0 && u64(place[i]) < map.size[i];
            address += place[i] * stride, stride *= map.size[i];
        }
        u32 to = shared + at;
        to ^= map.swizzle_bytes == 128 ? (to >> 7 & 7) << 4 : map.swizzle_bytes == 64 ? (to >> 7 & 3) << 4 : 0;
        f(to, inside ? (u8*)(map.address + address) : nullptr);
        at += n;
    }
}
DEVICE u32 box_bytes(const TensorMap& map) { return u32(map.element_bytes * map.box[0] * map.box[1] * map.box[2] * map.box[3]); }
DEVICE void load_box(emulator::Block& of, const TensorMap& map, u32 to, int x, int y, int z, int w) {
    each_of_box(map, to, {x, y, z, w}, [&](u32 at, const u8* from) {
        void* const place = emulator::of_block(of, shared_at(at));
        if (from) memcpy(place, from, map.element_bytes);
        else memset(place, 0, map.element_bytes);
    });
}
DEVICE void tensor_load(void* to, const TensorMap& map, int x, int y, int z, int w, u64* bar) {
    emulator::Block* const own = &emulator::block();
    emulator::issue([=] { load_box(*own, map, smem_u32(to), x, y, z, w), phase_bytes((Phase*)bar, -int(box_bytes(map))); });
}
DEVICE void tensor_load(void* to, const TensorMap& map, int x, int y, int z, u64* bar) { tensor_load(to, map, x, y, z, 0, bar); }
DEVICE void tensor_load_both(void* to, const TensorMap& map, int x, int y, int z, u64* bar) {
    for (int b = 0; b < emulator::machine.n_blocks; b++) {
        emulator::Block* const there = &emulator::machine.blocks[b];
        emulator::issue([=] {
            load_box(*there, map, smem_u32(to), x, y, z, 0);
            phase_bytes((Phase*)emulator::of_block(*there, bar), -int(box_bytes(map)));
        });
    }
}
DEVICE void tensor_store(const TensorMap& map, const void* from, int x, int y, int z, int w) {
    emulator::issue_in(emulator::machine.now->stores, [=] {
        each_of_box(map, smem_u32(from), {x, y, z, w}, [&](u32 at, u8* to) {
            if (to) memcpy(to, shared_at(at), map.element_bytes);
        });
    });
}
DEVICE void store_commit() { emulator::close_group(emulator::machine.now->stores); }
template <int N> DEVICE void store_wait_read() { emulator::finish_groups(emulator::machine.now->stores, N); }
template <int N> DEVICE void store_wait() { emulator::finish_groups(emulator::machine.now->stores, N); }
DEVICE void fence_async() {}

// ---- copies of 16 bytes, and clusters of two blocks ----
DEVICE void copy_async(u32 to, const void* from, u32 bytes = 16) {
    emulator::issue_in(emulator::machine.now->copies, [=] {
        u8 part[16] = {};
        if (bytes) memcpy(part, from, bytes);
        memcpy(shared_at(to), part, 16);
    });
}
DEVICE void copy_async(u32 to, const void* from, bool real) { copy_async(to, from, real ? 16u : 0u); }
DEVICE void copy_async_commit() { emulator::close_group(emulator::machine.now->copies); }
template <int N> DEVICE void copy_async_wait() { emulator::finish_groups(emulator::machine.now->copies, N); }
DEVICE void copy_async_arrive(u64* bar) {
    std::vector<emulator::Action> copies = std::move(emulator::machine.now->copies.open);
    emulator::machine.now->copies.open.clear();
    emulator::issue([=] {
        for (const emulator::Action& copy : copies) copy();
        phase_arrive((Phase*)bar);
    });
}
DEVICE u32 cluster_rank() { return emulator::block().rank; }
DEVICE void cluster_sync() { emulator::gate(emulator::machine.cluster, emulator::machine.threads.x * emulator::machine.n_blocks); }
DEVICE void barrier_arrive_at(u64* bar, u32 rank) { phase_arrive((Phase*)emulator::of_block(emulator::machine.blocks[rank], bar)); }
