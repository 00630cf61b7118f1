// Wide products of routed experts, forward and input gradient: rows gathered on load, results written at their place.
//
// Shapes   P places; order [P] i64, bounds [experts + 1] i64 (`expert_order`: places of expert e are
//          order[bounds[e] .. bounds[e + 1]], places without an expert come after bounds[experts]).
//          x [ceil(P / run), k] bf16: place p takes row p / run. Wide weights bf16, or int8 codes with fp32 scales of
//          their rows: plain [experts,n,k], scale [experts,n]; turned [experts,k,n], scale [experts,k].
//          Low terms, optional: low [P,16] bf16 with left [experts,n,16] (plain) or right [experts,16,n] (turned), bf16.
//          Outputs [P,n] bf16.
// Sizes    k and n multiples of 64; experts 1..512; P 1..2^31 - 1; every pointer 16-byte aligned. Any imbalance.
// Meaning  experts_dot            y[p,n] = sum_k x[p / run,k] w[e,n,k] (scale[e,n]) + sum_r low[p,r] left[e,n,r]
//          experts_dot_turned     y[p,n] = sum over one or two terms of sum_k x[p / run,k] (scale[e,k]) w[e,k,n]
//                                 + sum_r low[p,r] right[e,r,n]
//          experts_swiglu         gated and lifted as experts_dot of two weights; hidden = silu(gated) lifted
//          A place without an expert gets zeros. NaN in a row stays in the results of its places.
// Numerics bf16 operands, fp32 accumulators, each output rounded once; hidden is computed from the fp32 sums. Codes are exact
//          in bf16: plain, the scale multiplies the accumulator; turned, scale * code is rounded to bf16 once.
// Outputs  `=`, every byte. No atomics, no host sync: a fixed order of every sum whatever the grid.
//
// Entry points, arguments in order. A TensorMap is by value; every pointer may be given as the 8 bytes of an i64, and 0 where it says null.
//
//   experts_dot             (map w, map left, x, low, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_int8        (map w, map left, x, low, scale, order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned      (map w0, map w1, map right0, map right1, x0, x1, low0, low1,
//                            order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_dot_turned_int8 (map w0, map w1, map right0, map right1, x0, x1, low0, low1, scale0, scale1,
//                            order, bounds, y, int run, int P, int experts, int k, int n)
//   experts_swiglu          (map gate, map up, map left_gate, map left_up, x, low_gate, low_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//   experts_swiglu_int8     (map gate, map up, map left_gate, map left_up, x, low_gate, low_up, scale_gate, scale_up,
//                            order, bounds, hidden, gated, lifted, int run, int P, int experts, int k, int n)
//
//   x1 null: one term (w1, right1, scale1 are then not read; give w0, right0 again). Both terms have the same k and run.
//   low null: no low term (any map in its place, for instance w). Of two lows both are given or neither; of one term low1 is null.
//   gated and lifted: both given, or both null and then not written.
//
// Maps     rank 3, interleave none, L2 promotion 256 bytes, out of range zeros, element strides 1; dimensions innermost first:
//          w, gate, up bf16 plain      (k, n, experts)   box (64, 128, 1), 128-byte swizzle
//          w bf16 turned               (n, k, experts)   box (64, 64, 1), 128-byte swizzle
//          w, gate, up int8 plain      (k, n, experts)   box (64, 128, 1), no swizzle, CU_TENSOR_MAP_DATA_TYPE_UINT8
//          w int8 turned               (n, k, experts)   box (64, 64, 1), no swizzle, CU_TENSOR_MAP_DATA_TYPE_UINT8
//          left                        (16, n, experts)  box (64, 128, 1), 128-byte swizzle, bf16 (the box is wider than the tensor)
//          right                       (n, 16, experts)  box (64, 64, 1), 128-byte swizzle, bf16 (the box is higher)
//
// Launch   grid (G, 1, 1), G even, the number of multiprocessors or one less (any even G >= 2 is right); the cluster of 2 is in the
//          code. bf16: 384 threads, EXPERTS_SMEM dynamic shared memory; int8: 512 threads, EXPERTS_INT8_SMEM.
