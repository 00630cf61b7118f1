use lightc_runtime::{Kind, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, autograd, bools, close, differences, indices, poison, same,
};

fn naive_conv(x: &Array, w: &Array) -> Array {
    let taps = w.shape[1];
    Array::fill(&x.shape, |i| {
        (0..taps)
            .filter(|tap| i[1] + tap + 1 >= taps)
            .map(|tap| w.at(&[i[2], tap]) * x.at(&[i[0], i[1] + tap + 1 - taps, i[2]]))
            .sum()
    })
}

/// `(dx, dw)` by scattering every term of the definition.
fn naive_conv_grad(x: &Array, w: &Array, dy: &Array) -> (Array, Array) {
    let (mut dx, mut dw) = (Array::zeros(&x.shape), Array::zeros(&w.shape));
    let taps = w.shape[1];
    for i in indices(&x.shape) {
        for tap in (0..taps).filter(|tap| i[1] + tap + 1 >= taps) {
            let source = [i[0], i[1] + tap + 1 - taps, i[2]];
            *dx.at_mut(&source) += w.at(&[i[2], tap]) * dy.at(&i);
            *dw.at_mut(&[i[2], tap]) += x.at(&source) * dy.at(&i);
        }
    }
    (dx, dw)
}

#[test]
fn causal_convolution() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for (t, taps) in [(1, 4), (2, 4), (7, 4), (9, 1), (5, 3), (300, 4)] {
            let shape = [rng.size(1, 3), t, rng.size(1, 19)];
            let (x, dy) = (rng.normal(&shape, kind), rng.normal(&shape, kind));
            let w = rng.normal(&[shape[2], taps], kind);
            let (tx, tdy) = (rng.tensor(&x, kind), rng.tensor(&dy, kind));
            let tw = rng.tensor(&w, kind);
            poison(&tx);
            let y = ops::causal_conv(&tx, &tw)?;
            close("causal_conv", &y, &naive_conv(&x, &w));
            same("causal_conv composite", &ops::causal_conv_composite(&tx, &tw)?, &y);
            let (dx, dw) = naive_conv_grad(&x, &w, &dy);
            close("input grad", &ops::causal_conv_input_grad(&tdy, &tw)?, &dx);
            let got = ops::causal_conv_weight_grad(&tx, &tdy, taps as i64)?;
            close("weight grad", &got, &dw);
            if kind == Kind::Double {
                // Leaves that libtorch follows take the composed forms.
                let auto = autograd(&[&x, &w], &dy, |x| ops::causal_conv(&x[0], &x[1]))?;
                close("autograd x", &auto[0], &dx);
                close("autograd w", &auto[1], &dw);
                let followed = tdy.detach().set_requires_grad(true);
                close("composed", &ops::causal_conv_input_grad(&followed, &tw)?.detach(), &dx);
                let composed = ops::causal_conv_weight_grad(&tx, &followed, taps as i64)?;
                close("composed", &composed.detach(), &dw);
            }
        }
    }
    Ok(())
}

fn naive_rotary(x: &Array, time: usize, base: f64, inverse: bool) -> Array {
    let width = x.shape[x.shape.len() - 1];
    Array::fill(&x.shape, |i| {
        let (last, p) = (i.len() - 1, i[time] as f64);
        let pair = i[last] / 2;
        let angle = p * base.powf(-2.0 * pair as f64 / width as f64);
        let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
        let element = |offset: usize| {
            let mut at = i.to_vec();
            at[last] = 2 * pair + offset;
            x.at(&at)
        };
        if i[last] % 2 == 0 {
            element(0) * cos - element(1) * sin
        } else {
            element(0) * sin + element(1) * cos
        }
    })
}

#[test]
fn rotary_positions() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for (time, rank) in [(1, 4), (0, 2), (2, 4), (1, 3), (0, 4)] {
            for base in [10_000.0, 500.0] {
                let mut shape: Vec<usize> = (0..rank).map(|_| rng.size(1, 9)).collect();
                shape[rank - 1] = 2 * rng.size(1, 9);
                let x = rng.normal(&shape, kind);
                let tx = rng.tensor(&x, kind);
                poison(&tx);
                let y = ops::rotary(&tx, time as i64, base, false)?;
                close("rotary", &y, &naive_rotary(&x, time, base, false));
                let back = ops::rotary(&tx, time as i64, base, true)?;
                close("inverse", &back, &naive_rotary(&x, time, base, true));
                close("there and back", &ops::rotary(&y, time as i64, base, true)?, &x);
                same("composite", &ops::rotary_composite(&tx, time as i64, base, false)?, &y);
                if kind == Kind::Double {
                    let auto =
                        autograd(&[&x], &x, |x| ops::rotary(&x[0], time as i64, base, false))?;
                    same("the inverse is the gradient", &auto[0], &back);
                    differences("rotary", &mut rng, &[&x], &x, &[&back], |x| {
                        ops::rotary(&x[0], time as i64, base, false)
                    })?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn masks_and_positions() -> Outcome {
    let like = Array::zeros(&[1]).tensor(Kind::Float);
    let want = Array::fill(&[3, 5], |at| f64::from(at[1] <= at[0]));
    assert_eq!(ops::causal(3, 5, &like)?, bools(&want));
    let position = ops::position(4, &like)?;
    assert_eq!(position.kind(), Kind::Float);
    close("position", &position, &Array::fill(&[4], |at| at[0] as f64));
    assert_eq!(ops::position(4, &like.to_kind(Kind::Double))?.kind(), Kind::Double);
    Ok(())
}
