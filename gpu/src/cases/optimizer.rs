//! AdamW and sums of squares over many tensors.

use lightc_runtime::cuda::{self, Arg, Kernel, Module, Update};
use lightc_runtime::optimizer::{AdamW, Slot, square_sum};
use lightc_runtime::{Kind, Result, Tensor};

use crate::bench::time;
use crate::check::within;
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Optimizer;

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip_norm: 1.0 };
/// Around the sizes of a vector of four and of a block, with none.
const SIZES: [i64; 8] = [1, 3, 4, 8191, 8192, 8193, 0, 100_003];

static DIVISION: Module = Module {
    name: "division.cu",
    source: r#"#include "base.cuh"
extern "C" __global__ void divided(const float* x, const float* y, int* other, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    const float found = divide_by(x[i], y[i]), want = __fdiv_rn(x[i], y[i]);
    other[i] = __float_as_uint(found) != __float_as_uint(want) && !(found != found && want != want);
}
"#,
};
static DIVIDED: Kernel = Kernel {
    module: &DIVISION,
    entry: "divided",
    origin: "the optimizer's divisions",
    threads: 256,
    shared_bytes: 0,
};

struct Parameter {
    master: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    act: Option<Tensor>,
    lr: f64,
    decay: f64,
}

impl Parameter {
    fn new(gpu: &Gpu, at: usize, n: i64) -> Result<Parameter> {
        let gradient = gpu.normal(&[n])?.f_mul_scalar(0.01)?;
        // Half of the gradients are narrow, and half of those parameters have a copy.
        let narrow = at.is_multiple_of(2);
        let kind = if narrow { Kind::BFloat16 } else { Kind::Float };
        let act = Tensor::f_empty([n], (Kind::BFloat16, gpu.device()))?;
        Ok(Parameter {
            master: gpu.normal(&[n])?,
            m: gpu.normal(&[n])?.f_mul_scalar(0.01)?,
            v: gpu.uniform(&[n])?.f_mul_scalar(1e-4)?,
            gradient: gradient.f_to_kind(kind)?,
            act: (at % 4 < 2).then_some(act),
            lr: 1e-3 * (1 + at) as f64,
            decay: 0.1 * (at % 3) as f64,
        })
    }

    fn copied(&self) -> Result<Parameter> {
        let copy = |x: &Tensor| -> Result<Tensor> {
            let mut copy = x.f_empty_like()?;
            copy.f_copy_(x)?;
            Ok(copy)
        };
        Ok(Parameter {
            master: copy(&self.master)?,
            m: copy(&self.m)?,
            v: copy(&self.v)?,
            gradient: copy(&self.gradient)?,
            act: self.act.as_ref().map(copy).transpose()?,
            ..*self
        })
    }

    fn update(&self) -> Update<'_> {
        Update {
            master: &self.master,
            moment_m: &self.m,
            moment_v: &self.v,
            gradient: &self.gradient,
            act: self.act.as_ref(),
            lr: self.lr,
            weight_decay: self.decay,
        }
    }
}

/// The largest difference, relative to the largest element.
fn off(x: &Tensor, y: &Tensor) -> Result<f64> {
    if x.numel() == 0 {
        return Ok(0.0);
    }
    let largest = |x: &Tensor| -> Result<f64> { Ok(x.f_abs()?.f_max()?.f_double_value(&[])?) };
    Ok(largest(&x.f_sub(y)?)? / largest(y)?.max(1e-30))
}

fn check_update(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let (clip, n_updates) = (0.625, 7);
    let given: Vec<Parameter> = SIZES
        .iter()
        .enumerate()
        .map(|(at, n)| Parameter::new(gpu, at, *n))
        .collect::<Result<_>>()?;
    let run = || -> Result<Vec<Parameter>> {
        let copies: Vec<Parameter> = given.iter().map(Parameter::copied).collect::<Result<_>>()?;
        let updates: Vec<Update<'_>> = copies.iter().map(Parameter::update).collect();
        cuda::adamw(&updates, &ADAMW, clip, n_updates)?;
        drop(updates);
        Ok(copies)
    };
    let (first, second) = (run()?, run()?);
    let (mut error, mut act_error, mut other) = (0f64, 0f64, 0f64);
    for ((x, y), start) in first.iter().zip(&second).zip(&given) {
        let mut want = start.copied()?;
        let gradient = want.gradient.f_to_kind(Kind::Float)?.f_mul_scalar(clip)?;
        let mut slot =
            Slot { master: &mut want.master, moment_m: &mut want.m, moment_v: &mut want.v };
        ADAMW.update(&mut slot, &gradient, start.lr, start.decay, n_updates)?;
        for (x, want) in [(&x.master, &want.master), (&x.m, &want.m), (&x.v, &want.v)] {
            error = error.max(off(x, want)?);
        }
        if let Some(act) = &x.act {
            act_error = act_error.max(off(act, &x.master.f_to_kind(Kind::BFloat16)?)?);
        }
        for (x, y) in [(&x.master, &y.master), (&x.m, &y.m), (&x.v, &y.v)] {
            other += if x.f_equal(y)? { 0.0 } else { 1.0 };
        }
    }
    Ok(vec![
        within("adamw, 8 parameters", "off from libtorch by", error, 5e-7),
        within("adamw, bf16 copies", "off from the rounded weights by", act_error, 0.0),
        within("adamw, run again", "tensors with other bits", other, 0.0),
    ])
}

/// Quotients of any numbers, zeros, subnormal and infinite ones and NaN among them, by numbers around 1 and by those that are beyond the
/// range of the short way: each has the bits of a division.
fn check_division(gpu: &Gpu) -> Result<Verdict> {
    let n = 1i64 << 18;
    let on = (Kind::Int64, gpu.device());
    let bits = Tensor::f_randint_low(-(1i64 << 31), 1i64 << 31, [n], on)?.f_to_kind(Kind::Int)?;
    // Both zeros, which no draw gives.
    let _ = bits.f_narrow(0, 0, 1000)?.f_fill_(0)?;
    let _ = bits.f_narrow(0, 1000, 1000)?.f_fill_(i64::from(i32::MIN))?;
    let x = bits.f_view_dtype(Kind::Float)?;
    let exponent = gpu.uniform(&[n])?.f_mul_scalar(50.0)?.f_sub_scalar(25.0)?;
    let wide = exponent.f_exp2()?;
    let near = gpu.uniform(&[n])?.f_add_scalar(1e-3)?;
    let y = near.f_where_self(&gpu.uniform(&[n])?.f_lt(0.5)?, &wide)?;
    let other = cuda::empty(&[n], Kind::Int, &x)?;
    let args = [&[&x, &y, &other].map(Arg::Tensor)[..], &[Arg::I32(n as i32)]].concat();
    cuda::launch(&DIVIDED, [(n as u32).div_ceil(256), 1, 1], &args)?;
    let n_other = other.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok(within("262144 divisions", "quotients with other bits", n_other as f64, 0.0))
}

fn check_squares(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let tensors: Vec<Tensor> = SIZES
        .iter()
        .enumerate()
        .map(|(at, n)| Ok(Parameter::new(gpu, at, *n)?.gradient))
        .collect::<Result<_>>()?;
    let refs: Vec<&Tensor> = tensors.iter().collect();
    let (first, second) = (cuda::square_sums(&refs)?, cuda::square_sums(&refs)?);
    let mut error = 0f64;
    for (at, tensor) in tensors.iter().enumerate() {
        let (found, want) = (first.f_double_value(&[at as i64])?, square_sum(tensor)?);
        error = error.max((found - want).abs() / want.max(1e-300));
    }
    let other = if first.f_equal(&second)? { 0.0 } else { 1.0 };
    let nan = Tensor::f_full([9000], f64::NAN, (Kind::BFloat16, gpu.device()))?;
    let found = cuda::square_sums(&[&tensors[0], &nan])?;
    let finite = found.f_isfinite()?.f_to_kind(Kind::Int64)?;
    let kept = (finite.f_int64_value(&[0])? - 1).abs() + finite.f_int64_value(&[1])?;
    Ok(vec![
        within("square sums, 8 tensors", "off from f64 by", error, 1e-12),
        within("square sums, run again", "tensors with other bits", other, 0.0),
        within("square sums, a NaN", "sums that hide it", kept as f64, 0.0),
    ])
}

impl Case for Optimizer {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = check_update(gpu)?;
        verdicts.push(check_division(gpu)?);
        verdicts.extend(check_squares(gpu)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let n = 1i64 << 30;
        let zeros = |kind| Tensor::f_zeros([n], (kind, gpu.device()));
        let (master, m, v) = (zeros(Kind::Float)?, zeros(Kind::Float)?, zeros(Kind::Float)?);
        let mut measured = Vec::new();
        for (kind, name) in
            [(Kind::Float, "f32 gradient"), (Kind::BFloat16, "bf16 gradient and copy")]
        {
            let gradient = zeros(kind)?;
            let act = if kind == Kind::BFloat16 { Some(zeros(kind)?) } else { None };
            let update = [Update {
                master: &master,
                moment_m: &m,
                moment_v: &v,
                gradient: &gradient,
                act: act.as_ref(),
                lr: 1e-4,
                weight_decay: 0.1,
            }];
            let spread = time(gpu, 8, &mut || cuda::adamw(&update, &ADAMW, 1.0, 3))?;
            let squares = time(gpu, 8, &mut || cuda::square_sums(&[&gradient]).map(|_| ()))?;
            let width = if kind == Kind::Float { 4.0 } else { 2.0 };
            measured.push(Measured {
                name: "adamw".to_owned(),
                shape: format!("n=2^30, {name}"),
                spread,
                flops: 0.0,
                bytes: 28.0 * n as f64,
                peers: if kind == Kind::Float { &["AdamW fp32 1.07e9"] } else { &[] },
            });
            measured.push(Measured {
                name: "sum of squares".to_owned(),
                shape: format!("n=2^30, {kind:?}"),
                spread: squares,
                flops: 0.0,
                bytes: width * n as f64,
                peers: &[],
            });
        }
        Ok(measured)
    }
}
