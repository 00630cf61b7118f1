// Asynchronous copies: mbarriers, the bulk copy engine and its tensor form (TMA).
#pragma once
#include "base.cuh"

/// A CUtensorMap, made by the host (cuTensorMapEncodeTiled) and passed by value as __grid_constant__.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// ---- mbarrier: an object of 8 bytes in shared memory ----
DEVICE void barrier_init(u64* bar, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(bar)), "r"(arrivals) : "memory");
}
/// Makes inits visible to the copy engine; then __syncthreads().
DEVICE void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(bar)), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(bar)) : "memory");
}
DEVICE void barrier_wait(u64* bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred p;\nWAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(smem_u32(bar)), "r"(parity) : "memory");
}

/// Position in a ring of N stages: index, and the parity that flips at each turn.
template <int N> struct Ring {
    u32 at = 0, parity = 0;
    DEVICE void next() {
        if (++at == N) { at = 0; parity ^= 1; }
    }
};

// ---- the copy engine; addresses aligned to 16 bytes (tensor tiles with a 128-byte swizzle to 1024) ----
DEVICE void bulk_load(void* to, const void* from, u32 bytes, u64* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_u32(to)),
                 "l"(from), "r"(bytes), "r"(smem_u32(bar)) : "memory");
}
/// Brings a range to L2 only; a hint, so that a later ordinary load does not wait for memory.
DEVICE void bulk_prefetch(const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
DEVICE void line_prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
DEVICE void bulk_store(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(smem_u32(from)), "r"(bytes) : "memory");
}
/// Box at coordinates (x innermost) of a 4-D map; outside the tensor it reads zeros.
DEVICE void tensor_load(void* to, const TensorMap& map, int x, int y, int z, int w, u64* bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(smem_u32(to)),
                 "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_u32(bar)) : "memory");
}
/// The same box back; what lies outside the tensor is dropped.
DEVICE void tensor_store(const TensorMap& map, const void* from, int x, int y, int z, int w) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(smem_u32(from)), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until at most N groups still read their shared memory.
template <int N> DEVICE void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
template <int N> DEVICE void store_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }
/// Orders ordinary writes to shared memory before reads by the copy engine and by wgmma; each writer, then a barrier.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- boxes of 3-D maps, copies of 16 bytes, and clusters of two blocks ----
/// Box at coordinates (x innermost) of a 3-D map; outside the tensor it reads zeros.
DEVICE void tensor_load(void* to, const TensorMap& map, int x, int y, int z, u64* bar) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem_u32(to)),
                 "l"(&map), "r"(x), "r"(y), "r"(z), "r"(smem_u32(bar)) : "memory");
}
/// The same to both blocks of a cluster, at the same offsets; each block's barrier counts the bytes it gets.
DEVICE void tensor_load_both(void* to, const TensorMap& map, int x, int y, int z, u64* bar) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(smem_u32(to)),
                 "l"(&map), "r"(x), "r"(y), "r"(z), "r"(smem_u32(bar)), "h"(u16(3)) : "memory");
}
/// 16 bytes from global to shared memory, of which the first `bytes` (0 or 16) are read and the rest is zeros.
DEVICE void copy_async(u32 to, const void* from, u32 bytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
/// Arrives once all earlier copy_async of this thread are done; one of the arrivals that the barrier was made for.
DEVICE void copy_async_arrive(u64* bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_u32(bar)) : "memory");
}
DEVICE u32 cluster_rank() {
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
/// Barrier of all threads of a cluster.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Arrives at the barrier of this offset in block `rank` of the cluster. For a reader that is done: it publishes no writes
/// (an arrival that releases to the cluster waits for all memory operations of the thread).
DEVICE void barrier_arrive_at(u64* bar, u32 rank) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(smem_u32(bar)), "r"(rank) : "memory");
}
