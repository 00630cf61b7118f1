use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{Array, KINDS, Outcome, Rng, autograd, close};

type Forward = fn(&Tensor) -> Result<Tensor>;
type Backward = fn(&Tensor, &Tensor) -> Result<Tensor>;

struct Unary {
    name: &'static str,
    op: Forward,
    grad: Option<Backward>,
    value: fn(f64) -> f64,
    slope: fn(f64) -> f64,
    low: f64,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

type Real = fn(f64) -> f64;
type Row = (&'static str, Forward, Option<Backward>, Real, Real, f64);

fn unary() -> Vec<Unary> {
    let all: [Row; 12] = [
        ("exp", ops::exp, Some(ops::exp_grad), f64::exp, f64::exp, -3.0),
        ("ln", ops::ln, Some(ops::ln_grad), f64::ln, |x| 1.0 / x, 0.2),
        ("sqrt", ops::sqrt, Some(ops::sqrt_grad), f64::sqrt, |x| 0.5 / x.sqrt(), 0.2),
        (
            "rsqrt",
            ops::rsqrt,
            Some(ops::rsqrt_grad),
            |x| x.powf(-0.5),
            |x| -0.5 * x.powf(-1.5),
            0.2,
        ),
        ("recip", ops::recip, Some(ops::recip_grad), |x| 1.0 / x, |x| -x.powi(-2), 0.2),
        (
            "sigmoid",
            ops::sigmoid,
            Some(ops::sigmoid_grad),
            sigmoid,
            |x| sigmoid(x) * sigmoid(-x),
            -9.0,
        ),
        (
            "silu",
            ops::silu,
            Some(ops::silu_grad),
            |x| x * sigmoid(x),
            |x| sigmoid(x) + x * sigmoid(x) * sigmoid(-x),
            -9.0,
        ),
        (
            "softplus",
            ops::softplus,
            Some(ops::softplus_grad),
            |x| x.max(0.0) + (-x.abs()).exp().ln_1p(),
            sigmoid,
            -40.0,
        ),
        ("tanh", ops::tanh, Some(ops::tanh_grad), f64::tanh, |x| 1.0 - x.tanh().powi(2), -3.0),
        ("square", ops::square, Some(ops::square_grad), |x| x * x, |x| 2.0 * x, -3.0),
        ("floor", ops::floor, None, f64::floor, |_| 0.0, -5.0),
        ("abs", ops::abs, Some(ops::abs_grad), f64::abs, f64::signum, -3.0),
    ];
    all.into_iter()
        .map(|(name, op, grad, value, slope, low)| Unary { name, op, grad, value, slope, low })
        .collect()
}

#[test]
fn unary_ops_and_gradients() -> Outcome {
    let mut rng = Rng::fresh();
    for case in unary() {
        for kind in KINDS {
            let shape = [rng.size(1, 5), rng.size(1, 7), 3];
            let x = rng.array(&shape, case.low, case.low.abs().max(4.0), kind);
            let dy = rng.normal(&shape, kind);
            let (tx, tdy) = (rng.tensor(&x, kind), rng.tensor(&dy, kind));
            close(case.name, &(case.op)(&tx)?, &x.map(case.value));
            let Some(grad) = case.grad else { continue };
            let got = grad(&tx, &tdy)?;
            let want = Array::fill(&shape, |at| dy.at(at) * (case.slope)(x.at(at)));
            close(&format!("{}_grad", case.name), &got, &want);
            if kind == Kind::Double {
                let auto = autograd(&[&x], &dy, |x| (case.op)(&x[0]))?;
                crate::support::same(case.name, &got, &auto[0]);
            }
        }
    }
    Ok(())
}

#[test]
fn abs_has_no_slope_at_zero() -> Outcome {
    let x = Tensor::from_slice(&[0.0, -0.0, 2.0]);
    let dy = Tensor::from_slice(&[3.0, 3.0, 3.0]);
    assert_eq!(Vec::<f64>::try_from(ops::abs_grad(&x, &dy)?)?, [0.0, 0.0, 3.0]);
    Ok(())
}

#[test]
fn softplus_far_from_zero() -> Outcome {
    let x = Tensor::from_slice(&[-800.0, -30.0, 20.5, 800.0]);
    let want = [0.0, (-30.0f64).exp(), 20.5 + (-20.5f64).exp(), 800.0];
    let got = Vec::<f64>::try_from(ops::softplus(&x)?)?;
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-12 * want, "{got} {want}");
    }
    Ok(())
}

#[test]
fn binary_ops_broadcast() -> Outcome {
    type Binary = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor>, fn(f64, f64) -> f64);
    let all: [Binary; 10] = [
        ("add", ops::add, |a, b| a + b),
        ("sub", ops::sub, |a, b| a - b),
        ("mul", ops::mul, |a, b| a * b),
        ("div", ops::div, |a, b| a / b),
        ("min", ops::min, f64::min),
        ("max", ops::max, f64::max),
        ("lt", ops::lt, |a, b| f64::from(a < b)),
        ("le", ops::le, |a, b| f64::from(a <= b)),
        ("gt", ops::gt, |a, b| f64::from(a > b)),
        ("ge", ops::ge, |a, b| f64::from(a >= b)),
    ];
    let mut rng = Rng::fresh();
    for (name, op, value) in all {
        for kind in KINDS {
            let [i, j] = [rng.size(1, 5), rng.size(1, 6)];
            // Halves, so that equal values occur.
            let a = rng.array(&[i, j], 1.0, 4.0, kind).map(|x| (2.0 * x).round() / 2.0);
            let b = rng.array(&[j], 1.0, 4.0, kind).map(|x| (2.0 * x).round() / 2.0);
            let (ta, tb) = (rng.tensor(&a, kind), rng.tensor(&b, kind));
            let want = Array::fill(&[i, j], |at| value(a.at(at), b.at(&at[1..])));
            close(name, &op(&ta, &tb)?, &want);
            let want = Array::fill(&[i, j], |at| value(b.at(&at[1..]), a.at(at)));
            close(name, &op(&tb, &ta)?, &want);
        }
    }
    Ok(())
}

#[test]
fn affine_clamp_where_and_constants() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        let x = rng.normal(&[4, 5], kind);
        let dy = rng.normal(&[4, 5], kind);
        let (tx, tdy) = (rng.tensor(&x, kind), rng.tensor(&dy, kind));
        for (mul, add) in [(2.5, -0.75), (1.0, 3.0), (-2.0, 0.0), (1.0, 0.0), (0.0, 1.0)] {
            close("affine", &ops::affine(&tx, mul, add)?, &x.map(|x| x * mul + add));
        }
        let (lo, hi) = (-0.5, 0.75);
        close("clamp", &ops::clamp(&tx, lo, hi)?, &x.map(|x| x.clamp(lo, hi)));
        let want =
            Array::fill(&[4, 5], |at| if (lo..=hi).contains(&x.at(at)) { dy.at(at) } else { 0.0 });
        close("clamp_grad", &ops::clamp_grad(&tx, &tdy, lo, hi)?, &want);
        let edge = Tensor::from_slice(&[lo, hi]).to_kind(kind);
        let at_edge = ops::clamp_grad(&edge, &edge, lo, hi)?;
        assert_eq!(Vec::<f64>::try_from(at_edge.to_kind(Kind::Double))?, [lo, hi]);
        let c = ops::lt(&tx, &tdy)?;
        let want = Array::fill(&[4, 5], |at| x.at(at).min(dy.at(at)));
        close("where", &ops::where_(&c, &tx, &tdy)?, &want);
        assert_eq!(ops::constant(0.5, &tx)?.kind(), kind);
        close("full", &ops::full(0.5, &[2, 3], &tx)?, &Array::zeros(&[2, 3]).map(|_| 0.5));
        assert_eq!(ops::to_f32(&tx, &tx)?.kind(), kind);
        assert_eq!(ops::to_f32(&c, &tx)?.kind(), kind);
        let bf16 = tx.to_kind(Kind::BFloat16);
        assert_eq!(ops::to_f32(&bf16, &bf16)?.kind(), Kind::Float);
        assert_eq!(ops::to_act(&tx, Kind::BFloat16)?.kind(), Kind::BFloat16);
    }
    Ok(())
}
