//! What an op does not accept is an error that names the op.

use lightc_runtime::{Device, Error, Kind, Result, Tensor, ops};

fn refused<T>(op: &str, result: Result<T>) {
    match result {
        Err(error @ Error::Op { .. }) => {
            let text = error.to_string();
            assert!(text.starts_with(&format!("{op}: ")), "{text}");
            assert!(text.lines().count() == 1, "{text}");
        }
        Err(other) => panic!("{op}: {other}"),
        Ok(_) => panic!("{op} took it"),
    }
}

fn of(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

fn wide(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

fn ids(values: &[i64]) -> Tensor {
    Tensor::from_slice(values)
}

#[test]
fn pointwise_and_shape() {
    let x = of(&[2, 3]);
    refused("add", ops::add(&x, &of(&[4])));
    refused("silu_grad", ops::silu_grad(&x, &of(&[4])));
    refused("where", ops::where_(&x, &x, &x));
    refused("clamp", ops::clamp(&x, 1.0, 0.0));
    refused("to_act", ops::to_act(&x, Kind::Int64));
    refused("full", ops::full(0.0, &[-1], &x));
    refused("length", ops::length(&x, 2));
    refused("align", ops::align(&x, &[0]));
    refused("align", ops::align(&x, &[0, 0]));
    refused("align", ops::align(&x, &[0, 1, 2]));
    refused("broadcast", ops::broadcast(&x, &[0, 1], &[2, 4]));
    refused("broadcast", ops::broadcast(&x, &[0, 1], &[2]));
    refused("permute", ops::permute(&x, &[0, -1]));
    refused("split", ops::split(&x, 1, &[2, 2]));
    refused("split", ops::split(&x, 2, &[1]));
    refused("merge", ops::merge(&x, 1, 2));
    refused("merge", ops::merge(&x, 0, 0));
    refused("slice", ops::slice(&x, 1, 2, 4));
    refused("slice", ops::slice(&x, 1, 2, 1));
    refused("pad", ops::pad(&x, 0, -1, 0));
    refused("concat", ops::concat(&[], 0));
    refused("concat", ops::concat(&[&x, &of(&[2, 4])], 0));
    refused("concat", ops::concat(&[&x, &wide(&[2, 3])], 0));
    refused("place", ops::place(&x, 0, 3, 3));
    refused("pick", ops::pick(&x, 0, 2));
    refused("sum", ops::sum(&x, &[2]));
    refused("mean", ops::mean(&x, &[1, 1]));
}

#[test]
fn contractions() {
    let x = of(&[2, 3]);
    for spec in ["ab", "ab,bc", "aa,bc->a", "ab,bc->ad", "abc,bc->a", "a b,bc->a"] {
        refused("contract", ops::contract(&x, &of(&[3, 4]), spec));
    }
    refused("contract", ops::contract(&x, &of(&[1, 4]), "ab,bc->ac"));
    refused("contract", ops::contract(&x, &wide(&[3, 4]), "ab,bc->ac"));
}

#[test]
fn sequences() {
    let x = of(&[2, 3, 4]);
    refused("causal_conv", ops::causal_conv(&x, &of(&[3, 4])));
    refused("causal_conv", ops::causal_conv(&of(&[3, 4]), &of(&[4, 4])));
    refused("causal_conv_input_grad", ops::causal_conv_input_grad(&x, &wide(&[4, 4])));
    refused("causal_conv_weight_grad", ops::causal_conv_weight_grad(&x, &of(&[2, 3, 5]), 4));
    refused("rotary", ops::rotary(&of(&[2, 3, 5]), 1, 1e4, false));
    refused("rotary", ops::rotary(&x, 2, 1e4, false));
    refused("rotary", ops::rotary(&x, 1, 0.0, false));
    refused("causal", ops::causal(-1, 2, &x));
    let (q, v, g) = (of(&[1, 2, 3, 4]), of(&[1, 2, 3, 5]), of(&[1, 2, 3]));
    refused("gated_delta_rule", ops::gated_delta_rule(&q, &v, &v, &g, &g));
    refused("gated_delta_rule", ops::gated_delta_rule(&q, &q, &v, &g, &wide(&[1, 2, 3])));
    refused("gated_delta_rule_grad", ops::gated_delta_rule_grad(&q, &q, &v, &g, &g, &q));
}

#[test]
fn attention_sinkhorn_and_loss() {
    let (q, v) = (of(&[1, 2, 3, 4]), of(&[1, 2, 3, 5]));
    let mask = ops::causal(2, 2, &q).map(|mask| mask.unsqueeze(0));
    let Ok(mask) = mask else { panic!("causal") };
    refused("masked_attention", ops::masked_attention(&q, &v, &v, &mask));
    refused("masked_attention", ops::masked_attention(&q, &q, &v, &of(&[1, 2, 2])));
    refused("masked_attention_grad", ops::masked_attention_grad(&q, &q, &v, &mask, &q));
    refused("select_top", ops::select_top(&of(&[1, 2, 3]), &of(&[1, 2]), 0, 1));
    refused("select_top", ops::select_top(&of(&[1, 2, 2]), &of(&[1, 3]), 0, 1));
    refused("select_top", ops::select_top(&of(&[1, 2, 2]), &of(&[1, 2]), 0, -1));
    refused("sinkhorn", ops::sinkhorn(&of(&[4]), 20, 1e-6));
    refused("sinkhorn", ops::sinkhorn(&of(&[4, 0]), 20, 1e-6));
    refused("sinkhorn_grad", ops::sinkhorn_grad(&of(&[4, 4]), &of(&[4, 5]), 20, 1e-6));
    let (h, w) = (of(&[2, 3]), of(&[5, 3]));
    let loss = |h: &Tensor, targets: &[i64]| ops::linear_cross_entropy(h, &w, &ids(targets), 0.0);
    refused("linear_cross_entropy", loss(&of(&[2, 4]), &[0, 0]));
    refused("linear_cross_entropy", loss(&h, &[0]));
    refused("linear_cross_entropy", loss(&h, &[0, 5]));
    refused("linear_cross_entropy", loss(&h, &[0, -1]));
    let targets = ids(&[0, 1]);
    refused(
        "linear_cross_entropy_grad",
        ops::linear_cross_entropy_grad(&h, &w, &targets, &of(&[1]), 0.0),
    );
}

#[test]
fn indices_outside_the_table() {
    let w = of(&[3, 2]);
    let index = |value| ids(&[0, value]).reshape([1, 1, 2]);
    refused("gather_sum", ops::gather_sum(&w, &index(3)));
    refused("gather_sum", ops::gather_sum_composite(&w, &index(i64::MAX)));
    refused("gather_sum", ops::gather_sum(&w, &of(&[1, 1, 2])));
    refused("gather_sum_grad", ops::gather_sum_grad(&index(3), &of(&[1, 1, 2]), 3));
    refused("gather_sum_grad", ops::gather_sum_grad(&index(1), &of(&[1, 2, 2]), 3));
    refused("lookup", ops::lookup(&w, &ids(&[3])));
    refused("lookup", ops::lookup(&w, &ids(&[-1])));
    refused("lookup_grad", ops::lookup_grad(&ids(&[3]), &of(&[1, 2]), 3));
    refused("lookup_grad", ops::lookup_grad(&ids(&[0]), &of(&[2, 2]), 3));
}

#[test]
fn routed_products() {
    use ops::{Routing, Term};
    let chosen = ids(&[0, 3, -1, 3]).reshape([2, 2]);
    for bad in [4, i64::MAX] {
        refused("expert_order", ops::expert_order(&ids(&[0, bad]), 4));
    }
    refused("expert_order", ops::expert_order(&of(&[2]), 4));
    refused("expert_order", ops::expert_order(&chosen, -1));
    let (order, bounds) = ops::expert_order(&chosen, 4).expect("sorts");
    let routing = Routing { ids: &chosen, order: &order, bounds: &bounds };
    let (x, w) = (of(&[2, 3]), of(&[4, 5, 3]));
    let (codes, scale) = (w.to_kind(Kind::Int8), of(&[4, 5]));
    let good = Term::plain(&x, &w);
    let dot = |terms: &[Term<'_>]| refused("routed_dot", ops::routed_dot(&routing, terms));
    dot(&[]);
    dot(&[Term::plain(&x, &of(&[4, 5, 4]))]);
    dot(&[Term::plain(&x, &of(&[3, 5, 3]))]);
    dot(&[Term::plain(&x, &of(&[5, 3]))]);
    dot(&[Term::plain(&of(&[4, 3]), &w)]);
    dot(&[Term::plain(&of(&[]), &w)]);
    dot(&[Term::plain(&x, &wide(&[4, 5, 3]))]);
    dot(&[Term::plain(&x, &codes)]);
    dot(&[Term::plain(&x, &w).scaled(&scale)]);
    dot(&[Term::plain(&x, &codes).scaled(&of(&[4, 3]))]);
    dot(&[Term::plain(&x, &codes).scaled(&codes)]);
    dot(&[Term::turned(&x, &w)]);
    dot(&[good, Term::plain(&of(&[2, 2, 2]), &of(&[4, 6, 2]))]);
    dot(&[good, Term::plain(&of(&[2, 2, 2]), &of(&[3, 5, 2]))]);
    for wrong in [
        Routing { ids: &x, ..routing },
        Routing { order: &bounds, ..routing },
        Routing { bounds: &order, ..routing },
    ] {
        refused("routed_dot", ops::routed_dot(&wrong, &[good]));
        refused("routed_weight_grad", ops::routed_weight_grad(&wrong, &x, &of(&[2, 2, 5]), 4));
    }
    let narrow = of(&[4, 6, 3]);
    let other = [Term::plain(&x, &narrow)];
    refused("routed_swiglu", ops::routed_swiglu(&routing, &[good], &other));
    refused("routed_swiglu", ops::routed_swiglu(&routing, &[good], &[]));
    refused("routed_swiglu_hidden", ops::routed_swiglu_hidden(&routing, &other, &[good]));
    let grad = |x: &Tensor, dy: &Tensor, e: i64| {
        refused("routed_weight_grad", ops::routed_weight_grad(&routing, x, dy, e));
    };
    grad(&x, &of(&[2, 2, 5]), 5);
    grad(&x, &wide(&[2, 2, 5]), 4);
    grad(&of(&[3, 3]), &of(&[2, 2, 5]), 4);
    grad(&x, &of(&[2, 3, 5]), 4);
    grad(&x, &of(&[]), 4);
    let pair = ops::routed_weight_grad_pair;
    let good_dy = of(&[2, 2, 5]);
    refused("routed_weight_grad", pair(&routing, &x, [&good_dy, &of(&[2, 3, 5])], 4));
    let back =
        |x: &Tensor, small: &Tensor, w: &Tensor| ops::routed_low_back(&routing, x, small, w, 4);
    refused("routed_dot", back(&good_dy, &x, &of(&[4, 6, 3])));
    refused("routed_weight_grad", back(&good_dy, &of(&[2, 3, 5]), &of(&[4, 5, 3])));
    refused("routed_dot", ops::routed_dot_pair(&routing, good, Term::plain(&x, &of(&[4, 5, 4]))));
}

#[test]
fn merged_adapters() {
    let (codes, scale) = (of(&[2, 5, 3]).to_kind(Kind::Int8), of(&[2, 5]));
    let (left, right) = (of(&[2, 5, 4]), of(&[2, 4, 3]));
    let merge = |codes: &Tensor, scale: &Tensor, left: &Tensor, right: &Tensor| {
        refused("merge_adapter", ops::merge_adapter(codes, scale, left, right));
    };
    merge(&of(&[2, 5, 3]), &scale, &left, &right);
    merge(&codes, &codes, &left, &right);
    merge(&codes, &of(&[2, 3]), &left, &right);
    merge(&codes, &scale, &of(&[2, 4, 4]), &right);
    merge(&codes, &scale, &left, &of(&[2, 3, 3]));
    merge(&codes, &scale, &left, &wide(&[2, 4, 3]));
    merge(&codes, &scale, &left, &right.ones_like().multiply_scalar(f64::NAN));
    let huge = left.full_like(f64::from(f32::MAX));
    merge(&codes, &scale, &huge, &right.ones_like());
}

#[test]
fn indexes_and_experts() {
    let (x, w) = (of(&[2, 3]), of(&[4, 5, 3]));
    refused("expert_dot", ops::expert_dot(&x, &w, &ids(&[0, 4])));
    refused("expert_dot", ops::expert_dot(&x, &w, &ids(&[0])));
    refused("expert_dot", ops::expert_dot(&x, &w, &x));
    refused("expert_dot", ops::expert_dot(&of(&[2, 4]), &w, &ids(&[0, 1])));
    refused("expert_dot", ops::expert_dot(&wide(&[2, 3]), &w, &ids(&[0, 1])));
    let grad = ops::expert_dot_weight_grad;
    refused("expert_dot_weight_grad", grad(&x, &of(&[2, 5]), &ids(&[0, 4]), 4));
    refused("expert_dot_weight_grad", grad(&x, &of(&[3, 5]), &ids(&[0, 1]), 4));
    refused("top", ops::top(&x, 4));
    refused("top", ops::top(&ids(&[1]), 1));
    refused("take", ops::take(&x, &ids(&[2]), 0));
    refused("take", ops::take(&x, &ids(&[0, 3]), 1));
    refused("take", ops::take(&x, &ids(&[0, 1, 2]), 1));
    refused("take", ops::take(&x, &ids(&[0]), 2));
    refused("take_grad", ops::take_grad(&ids(&[0, 1]), &of(&[3]), 1, 2));
    refused("take_grad", ops::take_grad(&ids(&[0, 2]), &of(&[2]), 1, 2));
    refused("count", ops::count(&ids(&[0, 2]), 2, &x));
    refused("below", ops::below(&x, 2));
    refused("index_add", ops::index_add(&ids(&[1]), &x));
    refused("index", ops::to_index(&Tensor::from_slice(&[0.5f32])));
    refused("index", ops::to_index(&Tensor::from_slice(&[f32::NAN])));
    refused("hadamard", ops::hadamard(&x, 42, false));
    refused("hadamard", ops::hadamard(&ids(&[1, 2]), 42, false));
    refused("logsumexp", ops::logsumexp(&x, &[2]));
}

#[test]
fn eight_bits() {
    use lightc_numerics::int8::Format;
    let (codes, scale) = (of(&[2, 3]).to_kind(Kind::Int8), of(&[2]));
    refused("quantize", ops::quantize(&Tensor::from_slice(&[1.0f32, f32::NAN]), Format::Int8));
    refused("quantize", ops::quantize(&ids(&[1]), Format::Int8));
    refused("dequantize", ops::dequantize(&of(&[2, 3]), &scale, &scale));
    refused("dequantize", ops::dequantize(&codes, &of(&[3]), &scale));
    refused("dequantize", ops::dequantize(&codes, &wide(&[2]), &scale));
    refused("dequantize", ops::dequantize(&codes, &scale, &ids(&[1])));
    refused("dequantize_quantiles", ops::dequantize_quantiles(&codes, &of(&[3]), &scale));
}
