use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, array_of, autograd, close, differences, integers,
};

fn naive(h: &Array, w: &Array, targets: &Array, softcap: f64) -> f64 {
    let (classes, d) = (w.shape[0], w.shape[1]);
    let (mut sum, mut counted) = (0.0, 0.0);
    for (row, &target) in targets.data.iter().enumerate() {
        if target == -100.0 {
            continue;
        }
        let z: Vec<f64> = (0..classes)
            .map(|v| {
                let z: f64 = (0..d).map(|d_| h.data[row * d + d_] * w.at(&[v, d_])).sum();
                if softcap > 0.0 { softcap * (z / softcap).tanh() } else { z }
            })
            .collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        sum += lse - z[target as usize];
        counted += 1.0;
    }
    if counted > 0.0 { sum / counted } else { 0.0 }
}

#[test]
fn cross_entropy_and_gradients() -> Outcome {
    let mut rng = Rng::fresh();
    // Then a lone row of many classes, and rows enough for several chunks.
    for [b, t, d, v] in
        [[1, 1, 1, 1], [2, 5, 7, 11], [3, 4, 2, 30], [1, 1, 3, 150_000], [2, 75, 2, 9000]]
    {
        for kind in KINDS {
            for softcap in [0.0, 1.5] {
                let h = rng.normal(&[b, t, d], kind);
                let w = rng.normal(&[v, d], kind);
                let targets = Array::fill(&[b, t], |_| {
                    if rng.int(0, 3) == 0 { -100.0 } else { rng.int(0, v as i64 - 1) as f64 }
                });
                let (th, tw, tt) = (rng.tensor(&h, kind), rng.tensor(&w, kind), integers(&targets));
                let loss = ops::linear_cross_entropy(&th, &tw, &tt, softcap)?;
                let want = naive(&h, &w, &targets, softcap);
                close("loss", &loss, &Array { shape: vec![], data: vec![want] });
                let dloss = rng.array(&[], 0.5, 2.0, kind);
                let (dh, dw) =
                    ops::linear_cross_entropy_grad(&th, &tw, &tt, &dloss.tensor(kind), softcap)?;
                let f = |x: &[Tensor]| -> Result<Tensor> {
                    ops::linear_cross_entropy(&x[0], &x[1], &tt, softcap)
                };
                let auto = autograd(&[&h, &w], &dloss, f)?;
                close("dh", &dh, &array_of(&auto[0]));
                close("dw", &dw, &array_of(&auto[1]));
                if kind == Kind::Double && v < 100 {
                    differences("loss", &mut rng, &[&h, &w], &dloss, &[&dh, &dw], f)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_to_predict() -> Outcome {
    let h = Array::fill(&[2, 3], |_| 1.0).tensor(Kind::Double);
    let w = Array::fill(&[5, 3], |_| 1.0).tensor(Kind::Double);
    let targets = Tensor::from_slice(&[-100i64, -100]);
    assert_eq!(ops::linear_cross_entropy(&h, &w, &targets, 15.0)?.double_value(&[]), 0.0);
    let one = ops::constant(1.0, &h)?;
    let (dh, dw) = ops::linear_cross_entropy_grad(&h, &w, &targets, &one, 15.0)?;
    close("dh", &dh, &Array::zeros(&[2, 3]));
    close("dw", &dw, &Array::zeros(&[5, 3]));
    let (none, no_targets) = (h.narrow(0, 0, 0), targets.narrow(0, 0, 0));
    assert_eq!(ops::linear_cross_entropy(&none, &w, &no_targets, 0.0)?.double_value(&[]), 0.0);
    let (dh, _) = ops::linear_cross_entropy_grad(&none, &w, &no_targets, &one, 0.0)?;
    assert_eq!(dh.size(), [0, 3]);
    Ok(())
}

#[test]
fn loss_and_gradients_in_one_call_are_those_of_two() -> Outcome {
    let mut rng = Rng::fresh();
    let h = rng.normal(&[3, 4, 5], Kind::Float).tensor(Kind::Float);
    let w = rng.normal(&[7, 5], Kind::Float).tensor(Kind::Float);
    let targets =
        Tensor::from_slice(&[0i64, 6, -100, 2, 3, 3, -100, 1, 5, 4, 0, 6]).reshape([3, 4]);
    let (loss, dh, dw) = ops::linear_cross_entropy_step(&h, &w, &targets, 1.5)?;
    assert!(loss.equal(&ops::linear_cross_entropy(&h, &w, &targets, 1.5)?));
    let one = Tensor::from(1f32);
    let (want_dh, want_dw) = ops::linear_cross_entropy_grad(&h, &w, &targets, &one, 1.5)?;
    assert!(dh.equal(&want_dh) && dw.equal(&want_dw));
    Ok(())
}
