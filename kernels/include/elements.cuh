// Arithmetic of single elements, generated from codegen/src/optimizer.rs, which defines it. Do not edit:
// `cargo xtask bless` writes it anew.
#pragma once
#include "base.cuh"

DEVICE void adamw_element(const float w, const float m, const float v, const float gradient, const float clip, const float beta1, const float rest1, const float beta2, const float rest2, const float correction1, const float correction2, const float eps, const float rate, const float keep, float& to_w, float& to_m, float& to_v) {
    const float clipped = __fmul_rn(gradient, clip);
    const float old_m = __fmul_rn(m, beta1);
    const float new_m = __fmul_rn(clipped, rest1);
    const float moment1 = __fadd_rn(old_m, new_m);
    const float old_v = __fmul_rn(v, beta2);
    const float squared = __fmul_rn(clipped, clipped);
    const float new_v = __fmul_rn(squared, rest2);
    const float moment2 = __fadd_rn(old_v, new_v);
    const float variance = divide_by(moment2, correction2);
    const float deviation = __fsqrt_rn(variance);
    const float root = __fadd_rn(deviation, eps);
    const float mean = divide_by(moment1, correction1);
    const float direction = __fdiv_rn(mean, root);
    const float change = __fmul_rn(direction, rate);
    const float kept = __fmul_rn(w, keep);
    const float weight = __fsub_rn(kept, change);
    to_w = weight;
    to_m = moment1;
    to_v = moment2;
}

DEVICE void square_element(const double gradient, double& to_square) {
    const double squared = gradient * gradient;
    to_square = squared;
}
