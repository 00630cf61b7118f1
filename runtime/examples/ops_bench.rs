//! Milliseconds per op at the shapes of the tiny stage (f32, CPU).
//!
//! `cargo run --release -p lightc-runtime --example ops_bench [filter]`

use std::time::Instant;

use lightc_runtime::{Device, Kind, Result, Tensor, ops};

const B: i64 = 8;
const T: i64 = 128;
const D: i64 = 64;
const H: i64 = 4;
const K: i64 = 32;
const V: i64 = 2048;
const N: i64 = 4;

fn random(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?)
}

/// Fastest and median of 30 runs after 5, printed. On a machine with other work
/// the fastest says more.
fn time<R>(name: &str, op: impl Fn() -> Result<R>) -> Result<()> {
    if std::env::args().nth(1).is_some_and(|filter| !name.contains(&filter)) {
        return Ok(());
    }
    let mut all = Vec::new();
    for run in 0..35 {
        let start = Instant::now();
        let _result = op()?;
        if run >= 5 {
            all.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    all.sort_by(f64::total_cmp);
    println!("{name:40} {:8.3} {:8.3}", all[0], all[all.len() / 2]);
    Ok(())
}

fn main() -> Result<()> {
    println!("b={B} t={T} d={D} h={H} k={K} v={V} n={N}, {} threads", tch::get_num_threads());
    pointwise()?;
    contractions()?;
    sequence()?;
    delta()?;
    attention()?;
    sinkhorn()?;
    experts()?;
    loss_and_gather()
}

fn pointwise() -> Result<()> {
    let x = random(&[B, T, N, D])?;
    let y = random(&[B, T, N, D])?;
    time("affine", || ops::affine(&x, 2.0, 1.0))?;
    time("silu", || ops::silu(&x))?;
    time("silu_grad", || ops::silu_grad(&x, &y))?;
    time("softplus", || ops::softplus(&x))?;
    time("mul", || ops::mul(&x, &y))?;
    time("sum over d", || ops::sum(&x, &[3]))?;
    time("sum over b t", || ops::sum(&x, &[0, 1]))?;
    time("mean over d", || ops::mean(&x, &[3]))
}

fn contractions() -> Result<()> {
    let x = random(&[B, T, D])?;
    let w = random(&[2 * D, D])?;
    let y = random(&[B, T, 2 * D])?;
    let streams = random(&[B, T, N, D])?;
    let mix = random(&[B, T, N, N])?;
    let pre = random(&[B, T, N])?;
    time("contract btd,fd->btf", || ops::contract(&x, &w, "btd,fd->btf"))?;
    time("contract btf,fd->btd", || ops::contract(&y, &w, "btf,fd->btd"))?;
    time("contract btf,btd->fd", || ops::contract(&y, &x, "btf,btd->fd"))?;
    time("contract btsj,btjd->btsd", || ops::contract(&mix, &streams, "btsj,btjd->btsd"))?;
    time("contract btsd,btjd->btsj", || ops::contract(&streams, &streams, "btsd,btjd->btsj"))?;
    time("contract btsd,bts->btd", || ops::contract(&streams, &pre, "btsd,bts->btd"))?;
    time("contract bts,btd->btsd", || ops::contract(&pre, &x, "bts,btd->btsd"))?;
    time("contract btsd,btd->bts", || ops::contract(&streams, &x, "btsd,btd->bts"))
}

fn sequence() -> Result<()> {
    let x = random(&[B, T, H * K])?;
    let w = random(&[H * K, 4])?;
    time("causal_conv", || ops::causal_conv(&x, &w))?;
    time("causal_conv composite", || ops::causal_conv_composite(&x, &w))?;
    time("causal_conv_input_grad", || ops::causal_conv_input_grad(&x, &w))?;
    time("causal_conv_weight_grad", || ops::causal_conv_weight_grad(&x, &x, 4))?;
    let x = random(&[B, T, H, K])?;
    time("rotary", || ops::rotary(&x, 1, 1e4, false))?;
    time("rotary composite", || ops::rotary_composite(&x, 1, 1e4, false))
}

fn delta() -> Result<()> {
    let q = random(&[B, T, H, K])?.f_mul_scalar((K as f64).powf(-0.5))?;
    let k = random(&[B, T, H, K])?.f_mul_scalar((K as f64).powf(-0.5))?;
    let v = random(&[B, T, H, K])?;
    let g = random(&[B, T, H])?.f_abs()?.f_neg()?;
    let beta = random(&[B, T, H])?.f_sigmoid()?;
    let dout = random(&[B, T, H, K])?;
    time("gated_delta_rule", || ops::gated_delta_rule(&q, &k, &v, &g, &beta))?;
    time("gated_delta_rule composite", || ops::gated_delta_rule_composite(&q, &k, &v, &g, &beta))?;
    time("gated_delta_rule_grad", || ops::gated_delta_rule_grad(&q, &k, &v, &g, &beta, &dout))?;
    time("gated_delta_rule_grad composite", || {
        ops::gated_delta_rule_grad_composite(&q, &k, &v, &g, &beta, &dout)
    })
}

fn attention() -> Result<()> {
    let q = random(&[B, T, H, K])?;
    let v = random(&[B, T, H, K])?;
    let score = random(&[B, T, T])?;
    let budget = random(&[B, T])?.f_abs()?.f_mul_scalar(40.0)?;
    let mask = ops::select_top(&score, &budget, 4, 256)?;
    time("select_top", || ops::select_top(&score, &budget, 4, 256))?;
    time("select_top composite", || ops::select_top_composite(&score, &budget, 4, 256))?;
    time("masked_attention", || ops::masked_attention(&q, &q, &v, &mask))?;
    time("masked_attention_grad", || ops::masked_attention_grad(&q, &q, &v, &mask, &v))
}

fn sinkhorn() -> Result<()> {
    let x = random(&[B, T, N, N])?;
    let dy = random(&[B, T, N, N])?;
    time("sinkhorn", || ops::sinkhorn(&x, 20, 1e-6))?;
    time("sinkhorn composite", || ops::sinkhorn_composite(&x, 20, 1e-6))?;
    time("sinkhorn_grad", || ops::sinkhorn_grad(&x, &dy, 20, 1e-6))?;
    time("sinkhorn_grad composite", || ops::sinkhorn_grad_composite(&x, &dy, 20, 1e-6))
}

/// Two of 20 experts per token, with the experts of the tiny stage.
fn experts() -> Result<()> {
    const E: i64 = 20;
    let x = random(&[B, T, D])?;
    let w = random(&[E, D, D])?;
    let score = random(&[B, T, E])?;
    let ids = ops::top(&score, 2)?;
    let dy = ops::expert_dot(&x, &w, &ids)?;
    time("top 2 of 20", || ops::top(&score, 2))?;
    time("take p=2", || ops::take(&score, &ids, 2))?;
    time("count", || ops::count(&ids, E, &x))?;
    time("expert_dot p=2 e=20", || ops::expert_dot(&x, &w, &ids))?;
    time("expert_dot input grad", || ops::expert_dot(&dy, &w.f_transpose(1, 2)?, &ids))?;
    time("expert_dot_weight_grad", || ops::expert_dot_weight_grad(&x, &dy, &ids, E))?;
    time("hadamard", || ops::hadamard(&x, 42, false))?;
    time("hadamard composite", || ops::hadamard_composite(&x, 42, false))?;
    let (codes, scale) = ops::quantize(&w, lightc_numerics::int8::Format::Int8)?;
    time("dequantize", || ops::dequantize(&codes, &scale, &x))
}

fn loss_and_gather() -> Result<()> {
    let h = random(&[B, T, D])?;
    let w = random(&[V, D])?;
    let targets = Tensor::f_randint(V, [B, T], (Kind::Int64, Device::Cpu))?;
    let one = ops::constant(1.0, &h)?;
    time("linear_cross_entropy", || ops::linear_cross_entropy(&h, &w, &targets, 15.0))?;
    time("linear_cross_entropy_grad", || {
        ops::linear_cross_entropy_grad(&h, &w, &targets, &one, 15.0)
    })?;
    let index = Tensor::f_randint(V, [B, T, 16], (Kind::Int64, Device::Cpu))?;
    time("gather_sum p=16", || ops::gather_sum(&w, &index))?;
    time("gather_sum composite p=16", || ops::gather_sum_composite(&w, &index))?;
    time("gather_sum_grad p=16", || ops::gather_sum_grad(&index, &h, V))?;
    time("lookup", || ops::lookup(&w, &targets))?;
    time("lookup_grad", || ops::lookup_grad(&targets, &h, V))
}
