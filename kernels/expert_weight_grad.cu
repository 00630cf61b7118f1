// Weight gradient of routed experts: rows gathered on load, ragged contraction.
//
// Shapes   P, order, bounds as in expert_products.cu. x [ceil(P / run_x), d] bf16, dy [ceil(P / run_dy), f] bf16: place p takes
//          rows p / run_x and p / run_dy. dw [experts, f, d] bf16.
// Sizes    d and f multiples of 64; experts >= 1; P 1..2^31 - 1; every pointer 16-byte aligned. Any imbalance.
// Meaning  dw[e] = sum over the places p of expert e, in their order, of dy[p / run_dy, :]^T x[p / run_x, :]; an expert without places gets zeros.
// Numerics bf16 operands, fp32 accumulators, rounded once.
// Outputs  `=`, every byte. No atomics, no host sync: a fixed order of every sum whatever the grid.
//
//   experts_weight_grad (x, dy, order, bounds, dw, int run_x, int run_dy, int P, int experts, int d, int f)
//
// Launch   grid (G, 1, 1), G = the number of multiprocessors (any G >= 1 is right), 384 threads, EXPERTS_GRAD_SMEM.
