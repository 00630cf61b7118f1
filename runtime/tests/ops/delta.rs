use lightc_runtime::{Kind, Tensor, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, autograd, close, close_to, differences, poison, same,
};

/// `q, k, v, g, beta, dout`.
struct Case {
    inputs: [Array; 5],
    dout: Array,
}

impl Case {
    /// Keys of about unit length, as in the model, so that f32 stays near f64.
    fn draw(rng: &mut Rng, [b, t, h, k, m]: [usize; 5], decay: f64, kind: Kind) -> Case {
        let unit = 1.7 / (k as f64).sqrt();
        let inputs = [
            rng.array(&[b, t, h, k], -unit, unit, kind),
            rng.array(&[b, t, h, k], -unit, unit, kind),
            rng.normal(&[b, t, h, m], kind),
            rng.array(&[b, t, h], decay, 0.0, kind),
            rng.array(&[b, t, h], 0.0, 1.0, kind),
        ];
        Case { inputs, dout: rng.normal(&[b, t, h, m], kind) }
    }

    fn tensors(&self, rng: &mut Rng, kind: Kind) -> ([Tensor; 5], Tensor) {
        (self.inputs.each_ref().map(|x| rng.tensor(x, kind)), rng.tensor(&self.dout, kind))
    }

    /// The recurrence as it is written.
    fn naive(&self) -> Array {
        let [q, k, v, g, beta] = &self.inputs;
        let [b, t, h, n_keys] = [q.shape[0], q.shape[1], q.shape[2], q.shape[3]];
        let m = v.shape[3];
        let mut out = Array::zeros(&v.shape);
        for (b, h) in (0..b).flat_map(|b| (0..h).map(move |h| (b, h))) {
            let mut state = Array::zeros(&[n_keys, m]);
            for t in 0..t {
                let decay = g.at(&[b, t, h]).exp();
                for x in &mut state.data {
                    *x *= decay;
                }
                for j in 0..m {
                    let read: f64 =
                        (0..n_keys).map(|i| state.at(&[i, j]) * k.at(&[b, t, h, i])).sum();
                    let error = beta.at(&[b, t, h]) * (v.at(&[b, t, h, j]) - read);
                    for i in 0..n_keys {
                        *state.at_mut(&[i, j]) += k.at(&[b, t, h, i]) * error;
                    }
                    *out.at_mut(&[b, t, h, j]) =
                        (0..n_keys).map(|i| state.at(&[i, j]) * q.at(&[b, t, h, i])).sum();
                }
            }
        }
        out
    }
}

fn rule(x: &[Tensor]) -> lightc_runtime::Result<Tensor> {
    ops::gated_delta_rule(&x[0], &x[1], &x[2], &x[3], &x[4])
}

/// The recurrence in libtorch calls, one step at a time: another derivative.
fn stepwise(x: &[Tensor]) -> Tensor {
    let [q, k, v, g, beta] = [0, 1, 2, 3, 4].map(|i| &x[i]);
    let (size, m) = (q.size(), v.size()[3]);
    let mut state = Tensor::zeros([size[0], size[2], size[3], m], (q.kind(), q.device()));
    let mut outs = Vec::new();
    for t in 0..size[1] {
        let at = |x: &Tensor| x.select(1, t).unsqueeze(-1);
        state = &state * at(g).exp().unsqueeze(-1);
        let read = (&state * at(k)).sum_dim_intlist(-2, false, None::<Kind>);
        let error = (v.select(1, t) - read) * at(beta);
        state = &state + at(k) * error.unsqueeze(-2);
        outs.push((&state * at(q)).sum_dim_intlist(-2, false, None::<Kind>));
    }
    Tensor::stack(&outs, 1)
}

const SHAPES: [[usize; 5]; 7] = [
    [1, 1, 1, 1, 1],
    [2, 1, 3, 5, 4],
    [2, 64, 2, 8, 33],
    [1, 65, 2, 6, 32],
    [1, 300, 1, 7, 40],
    [3, 33, 2, 16, 5],
    [2, 130, 1, 9, 70],
];

#[test]
fn agrees_with_the_recurrence() -> Outcome {
    let mut rng = Rng::fresh();
    for shape in SHAPES {
        for decay in [0.0, -0.1, -20.0] {
            for kind in KINDS {
                let case = Case::draw(&mut rng, shape, decay, kind);
                let (x, _) = case.tensors(&mut rng, kind);
                poison(&x[2]);
                let want = case.naive();
                close("native", &rule(&x)?, &want);
                let composite = ops::gated_delta_rule_composite(&x[0], &x[1], &x[2], &x[3], &x[4])?;
                close("chunked", &composite, &want);
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_agree_with_libtorch_and_differences() -> Outcome {
    let mut rng = Rng::fresh();
    for shape in SHAPES {
        for decay in [-0.1, -20.0] {
            let case = Case::draw(&mut rng, shape, decay, Kind::Double);
            let (x, dout) = case.tensors(&mut rng, Kind::Double);
            let native = ops::gated_delta_rule_grad(&x[0], &x[1], &x[2], &x[3], &x[4], &dout)?;
            let native = [native.0, native.1, native.2, native.3, native.4];
            let chunked =
                ops::gated_delta_rule_grad_composite(&x[0], &x[1], &x[2], &x[3], &x[4], &dout)?;
            let chunked = [chunked.0, chunked.1, chunked.2, chunked.3, chunked.4];
            let inputs = case.inputs.each_ref();
            let by_step = autograd(&inputs, &case.dout, |x| Ok(stepwise(x)))?;
            // Leaves that libtorch follows take the chunked form.
            let by_chunk = autograd(&inputs, &case.dout, rule)?;
            for i in 0..5 {
                let name = ["dq", "dk", "dv", "dg", "dbeta"][i];
                same(&format!("native {name} {shape:?} {decay}"), &native[i], &by_step[i]);
                same(&format!("chunked {name} {shape:?} {decay}"), &chunked[i], &by_step[i]);
                same(&format!("autograd {name} {shape:?} {decay}"), &by_chunk[i], &by_step[i]);
            }
            differences("delta", &mut rng, &inputs, &case.dout, &native.each_ref(), rule)?;
        }
    }
    Ok(())
}

#[test]
fn f32_gradients_stay_near_f64() -> Outcome {
    let mut rng = Rng::fresh();
    let case = Case::draw(&mut rng, [2, 100, 2, 32, 32], -0.5, Kind::Float);
    let run = |kind| {
        let x = case.inputs.each_ref().map(|x| x.tensor(kind));
        let dout = case.dout.tensor(kind);
        ops::gated_delta_rule_grad(&x[0], &x[1], &x[2], &x[3], &x[4], &dout)
    };
    let (narrow, wide) = (run(Kind::Float)?, run(Kind::Double)?);
    let want = crate::support::array_of;
    close_to("dq", &narrow.0, &want(&wide.0), 1e-5);
    close_to("dk", &narrow.1, &want(&wide.1), 1e-5);
    close_to("dv", &narrow.2, &want(&wide.2), 1e-5);
    close_to("dg", &narrow.3, &want(&wide.3), 1e-5);
    close_to("dbeta", &narrow.4, &want(&wide.4), 1e-5);
    Ok(())
}

#[test]
fn a_decay_of_minus_infinity_forgets() -> Outcome {
    let mut rng = Rng::fresh();
    let mut case = Case::draw(&mut rng, [1, 9, 1, 4, 3], -0.1, Kind::Double);
    case.inputs[3].data[5] = f64::NEG_INFINITY;
    let (x, dout) = case.tensors(&mut rng, Kind::Double);
    close("forgets", &rule(&x)?, &case.naive());
    let g = ops::gated_delta_rule_grad(&x[0], &x[1], &x[2], &x[3], &x[4], &dout)?;
    for x in [&g.0, &g.1, &g.2, &g.3, &g.4] {
        assert!(x.isfinite().all().int64_value(&[]) == 1, "finite gradients");
    }
    Ok(())
}

/// Narrow heads with a decay and a write strength of 32 bits: computed in 32 bits, and each result has the
/// kind of its input.
#[test]
fn a_wide_decay_beside_narrow_heads() -> Outcome {
    let mut rng = Rng::fresh();
    let case = Case::draw(&mut rng, [2, 9, 2, 4, 3], -0.5, Kind::BFloat16);
    let narrow = case.inputs.each_ref().map(|x| x.tensor(Kind::BFloat16));
    let dout = case.dout.tensor(Kind::BFloat16);
    let wide = narrow.each_ref().map(|x| x.to_kind(Kind::Float));
    let [q, k, v, ..] = &narrow;
    let [wq, wk, wv, g, beta] = &wide;
    let o = ops::gated_delta_rule(q, k, v, g, beta)?;
    let want = ops::gated_delta_rule(wq, wk, wv, g, beta)?;
    assert!(o.kind() == Kind::BFloat16 && o.equal(&want.to_kind(Kind::BFloat16)));
    let (dq, dk, dv, dg, dbeta) = ops::gated_delta_rule_grad(q, k, v, g, beta, &dout)?;
    let want = ops::gated_delta_rule_grad(wq, wk, wv, g, beta, &dout.to_kind(Kind::Float))?;
    for (x, want) in [(&dq, &want.0), (&dk, &want.1), (&dv, &want.2)] {
        assert!(x.kind() == Kind::BFloat16 && x.equal(&want.to_kind(Kind::BFloat16)));
    }
    assert!(dg.equal(&want.3) && dbeta.equal(&want.4));
    assert!(ops::gated_delta_rule(q, k, v, &g.to_kind(Kind::Double), beta).is_err());
    Ok(())
}
