// The machine that kernels run on where there is no GPU: threads of a block are fibers on one thread of the processor.
//
// One block runs at a time (two, where they are a cluster). A fiber runs until it waits: at a barrier, for the lanes of its
// warp, or for a copy. What a GPU leaves open is decided in two ways, by turns from launch to launch, so that a kernel whose result
// depends on it gives other bits the second time:
//
//   eager   threads and blocks in rising order; copies and wgmma happen where they are issued
//   late    falling order; they happen when nothing else can go on, the last issued first, or when they are waited for
//
// Shared memory of a block is set to 0xff before the block starts, so what is read before it is written is a NaN.
// A launch that cannot go on, or meets __trap(), ends with a message.
#pragma once
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <ucontext.h>
#include <vector>

namespace emulator {

constexpr int MOST_THREADS = 1024, MOST_BLOCKS = 2, SHARED_BYTES = 256 * 1024, STACK_BYTES = 128 * 1024, WARP = 32;

/// Dynamic shared memory of the block whose threads run.
alignas(1024) static unsigned char shared[SHARED_BYTES];

struct Index { int x, y, z; };

/// What lanes of a warp give each other: each puts its part in, and when all have come everyone reads all.
struct Meeting {
    uint64_t in[WARP][4], out[WARP][4];
    uint32_t arrived = 0, turn = 0;
};
struct Gate { int arrived = 0; uint32_t turn = 0; };
using Action = std::function<void()>;
/// Copies or products of one thread that it waits for by counting groups.
struct Groups {
    std::vector<Action> open;
    std::deque<std::vector<Action>> closed;
};

struct Block {
    Index at;
    int rank, alive;
    std::map<std::pair<int, uint32_t>, Meeting> meetings;
    std::map<int, Gate> gates;
    std::vector<unsigned char> kept;  // its shared memory while another block of its cluster runs
};
struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool begun = false, done = false;
    int thread = 0;
    Block* block = nullptr;
    /// Whether it waits still, where it does.
    bool (*waits)(void*) = nullptr;
    void* waits_for = nullptr;
    Groups copies, stores, products;
};

struct Machine {
    bool late = false;
    Index grid, threads;
    int shared_bytes = 0, n_blocks = 1;
    Block blocks[MOST_BLOCKS];
    std::vector<Fiber> fibers;
    std::vector<unsigned char> stacks;
    std::function<void()> body;
    Fiber* now = nullptr;
    Block* loaded = nullptr;
    Gate cluster;
    uint64_t progress = 0;
    std::deque<std::pair<Block*, Action>> under_way;
    ucontext_t creator;
    jmp_buf scheduler, end;
    char failure[512] = "";
};
static Machine machine;

[[noreturn]] static void fail(const char* format, ...) {
    va_list list;
    va_start(list, format);
    const int n = snprintf(machine.failure, sizeof machine.failure, "thread %d of block (%d, %d, %d): ", machine.now ? machine.now->thread : -1,
                           machine.now ? machine.now->block->at.x : 0, machine.now ? machine.now->block->at.y : 0, machine.now ? machine.now->block->at.z : 0);
    vsnprintf(machine.failure + n, sizeof machine.failure - n, format, list);
    va_end(list);
    _longjmp(machine.end, 1);
}

/// Lets the others run, as long as `waits`.
template <class F> static inline void wait_while(F waits) {
    if (!waits()) return;
    Fiber& own = *machine.now;
    own.waits = [](void* waits) { return (*(F*)waits)(); }, own.waits_for = &waits;
    if (!_setjmp(own.at)) _longjmp(machine.scheduler, 1);
    own.waits = nullptr;
}

static inline Block& block() { return *machine.now->block; }
static inline int lane() { return machine.now->thread % WARP; }
static inline uint32_t lanes_alive() {
    const int first = machine.now->thread / WARP * WARP, n = machine.threads.x - first < WARP ? machine.threads.x - first : WARP;
    const Fiber* const warp = &machine.fibers[block().rank * machine.threads.x + first];
    uint32_t alive = 0;
    for (int i = 0; i < n; i++) alive |= uint32_t(!warp[i].done) << i;
    return alive;
}

/// The lanes of `mask` meet; each gives up to 32 bytes and gets what all gave.
template <class T> static inline const Meeting& meet(uint32_t mask, const T& mine) {
    static_assert(sizeof(T) <= sizeof(Meeting::in[0]));
    if (!(mask >> lane() & 1)) fail("a lane that is not of mask %08x meets the lanes of it", mask);
    Meeting& m = block().meetings[{machine.now->thread / WARP, mask}];
    const uint32_t turn = m.turn;
    memcpy(m.in[lane()], &mine, sizeof(T));
    m.arrived |= 1u << lane();
    machine.progress++;
    const bool all_alive = block().alive == machine.threads.x && machine.threads.x % WARP == 0;
    const uint32_t needed = all_alive ? mask : mask & lanes_alive();
    if ((m.arrived & needed) == needed) {
        memcpy(m.out, m.in, sizeof m.in);
        m.arrived = 0, m.turn++;
    }
    wait_while([&] { return m.turn == turn; });
    return m;
}
template <class T> static inline T given(const Meeting& m, int lane) {
    T x;
    memcpy(&x, m.out[lane & (WARP - 1)], sizeof(T));
    return x;
}

static inline void gate(Gate& g, int n) {
    const uint32_t turn = g.turn;
    machine.progress++;
    if (++g.arrived >= n) g.arrived = 0, g.turn++;
    wait_while([&] { return g.turn == turn; });
}
static inline void block_barrier(int id, int threads) { gate(block().gates[id], threads); }

/// Something that happens later, unless this launch is eager.
static inline void issue(Action action) {
    if (!machine.late) return action();
    machine.under_way.push_back({machine.now->block, std::move(action)});
}
static inline void issue_in(Groups& groups, Action action) {
    if (!machine.late) return action();
    groups.open.push_back(std::move(action));
}
static inline void close_group(Groups& groups) {
    groups.closed.push_back(std::move(groups.open));
    groups.open.clear();
}
static inline void finish_groups(Groups& groups, int but) {
    while ((int)groups.closed.size() > but) {
        for (Action& action : groups.closed.front()) action();
        groups.closed.pop_front();
    }
}

/// Makes a block's shared memory the one that `shared` is.
static inline void load_block(Block* to) {
    if (machine.loaded == to) return;
    if (machine.loaded) memcpy(machine.loaded->kept.data(), shared, machine.shared_bytes);
    memcpy(shared, to->kept.data(), machine.shared_bytes);
    machine.loaded = to;
}
/// Where a place in `shared` is for a block of this cluster.
static inline void* of_block(Block& other, const void* place) {
    if (machine.loaded == &other) return const_cast<void*>(place);
    return other.kept.data() + ((const unsigned char*)place - shared);
}

static void fiber_main() {
    machine.body();
    Fiber& own = *machine.now;
    close_group(own.copies), finish_groups(own.copies, 0);
    close_group(own.stores), finish_groups(own.stores, 0);
    if (!own.products.closed.empty() || !own.products.open.empty()) fail("ends with products that it has not waited for");
    own.done = true;
    machine.progress++;
    Block& b = *own.block;
    b.alive--;
    // Who waits for all threads waits for those that are left.
    Gate& all = b.gates[0];
    if (all.arrived > 0 && all.arrived >= b.alive) all.arrived = 0, all.turn++;
    const int warp = own.thread / WARP;
    const uint32_t alive = lanes_alive();
    for (auto& [key, m] : b.meetings)
        if (key.first == warp && m.arrived && (m.arrived & (key.second & alive)) == (key.second & alive)) {
            memcpy(m.out, m.in, sizeof m.in);
            m.arrived = 0, m.turn++;
        }
    _longjmp(machine.scheduler, 1);
}

static inline void resume(Fiber& fiber) {
    if (fiber.done) return;
    load_block(fiber.block);
    if (fiber.waits && fiber.waits(fiber.waits_for)) return;
    machine.now = &fiber;
    if (_setjmp(machine.scheduler)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
}

static void run_cluster(int first_x, int y, int z) {
    const int n = machine.threads.x * machine.n_blocks;
    machine.cluster = Gate{};
    machine.under_way.clear();
    machine.loaded = nullptr;
    for (int b = 0; b < machine.n_blocks; b++) {
        Block& own = machine.blocks[b];
        own = Block{{first_x + b, y, z}, b, machine.threads.x, {}, {}, {}};
        own.kept.assign(machine.shared_bytes, 0xff);
    }
    for (int i = 0; i < n; i++) {
        Fiber& f = machine.fibers[i];
        f.begun = f.done = false;
        f.waits = nullptr;
        f.thread = i % machine.threads.x;
        f.block = &machine.blocks[i / machine.threads.x];
        f.copies = f.stores = f.products = Groups{};
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = &machine.stacks[(size_t)i * STACK_BYTES], f.start.uc_stack.ss_size = STACK_BYTES, f.start.uc_link = nullptr;
        makecontext(&f.start, fiber_main, 0);
    }
    for (;;) {
        const uint64_t before = machine.progress;
        bool any = false;
        for (int i = 0; i < n; i++) {
            Fiber& f = machine.fibers[machine.late ? n - 1 - i : i];
            any |= !f.done;
            resume(f);
        }
        if (!any) break;
        if (machine.progress != before) continue;
        if (machine.under_way.empty()) {
            machine.now = nullptr;
            for (int i = 0; i < n && !machine.now; i++) if (!machine.fibers[i].done) machine.now = &machine.fibers[i];
            fail("nothing can go on: this thread, and perhaps others, wait for what does not come");
        }
        auto [owner, action] = std::move(machine.under_way.back());
        machine.under_way.pop_back();
        load_block(owner);
        action();
        machine.progress++;
    }
    machine.now = nullptr;
    while (!machine.under_way.empty()) {
        auto [owner, action] = std::move(machine.under_way.back());
        machine.under_way.pop_back();
        load_block(owner);
        action();
    }
}

/// Runs a kernel over a grid; 0, or 1 with a message in `machine.failure`.
static int run_grid(int x, int y, int z, int threads, int shared_bytes, int cluster, bool late, std::function<void()> body) {
    if (threads > MOST_THREADS || shared_bytes > SHARED_BYTES || x % cluster != 0 || cluster > MOST_BLOCKS) {
        snprintf(machine.failure, sizeof machine.failure, "a launch of %d threads, %d bytes and clusters of %d of %d blocks", threads, shared_bytes, cluster, x);
        return 1;
    }
    machine.late = late;
    machine.grid = {x, y, z}, machine.threads = {threads, 1, 1};
    machine.n_blocks = cluster, machine.shared_bytes = shared_bytes, machine.body = std::move(body);
    const size_t n = (size_t)threads * cluster;
    if (machine.fibers.size() < n) machine.fibers = std::vector<Fiber>(n), machine.stacks.resize(n * STACK_BYTES);
    for (Fiber& f : machine.fibers) f.done = true, f.block = nullptr;
    machine.failure[0] = 0;
    if (_setjmp(machine.end)) return 1;
    const long total = (long)x / cluster * y * z;
    for (long i = 0; i < total; i++) {
        const long at = late ? total - 1 - i : i;
        run_cluster(int(at % (x / cluster)) * cluster, int(at / (x / cluster) % y), int(at / (x / cluster) / y));
    }
    return 0;
}

/// Calls a kernel with the values that `arguments` points to, as the driver does.
template <class... A, size_t... I>
static int run_kernel(void (*kernel)(A...), void** arguments, const int* launch, int cluster, std::index_sequence<I...>) {
    return run_grid(launch[0], launch[1], launch[2], launch[3], launch[4], cluster, launch[5] != 0,
                    [=] { kernel(*(std::remove_reference_t<A>*)arguments[I]...); });
}
template <class... A> static int run_kernel(void (*kernel)(A...), void** arguments, const int* launch, int cluster) {
    return run_kernel(kernel, arguments, launch, cluster, std::index_sequence_for<A...>{});
}

}  // namespace emulator

#define EXPORTED extern "C" __attribute__((visibility("default"), used))
/// `launch`: grid x, y, z, threads, bytes of dynamic shared memory, whether late.
#define EMULATED(NAME, CLUSTER) \
    EXPORTED int emulated_##NAME(void** arguments, const int* launch) { return emulator::run_kernel(NAME, arguments, launch, CLUSTER); }
EXPORTED const char* emulated_failure() { return emulator::machine.failure; }
