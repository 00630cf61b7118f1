// Rings of stages in shared memory that asynchronous copies fill (ptx.cuh has barriers and copies).
#pragma once
#include "base.cuh"

/// Position in a ring of N stages: index, and the parity that flips at each turn.
template <int N> struct Ring {
    u32 at = 0, parity = 0;
    DEVICE void next() {
        if (++at == N) { at = 0; parity ^= 1; }
    }
};
