use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{Array, KINDS, Outcome, Rng, autograd, close, differences, poison, same};

const EPS: f64 = 1e-6;

fn naive(x: &Array, iterations: usize, eps: f64) -> Array {
    let rank = x.shape.len();
    let (rows, columns) = (x.shape[rank - 2], x.shape[rank - 1]);
    let mut out = x.clone();
    for matrix in out.data.chunks_mut(rows * columns) {
        for row in matrix.chunks_mut(columns) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|x| *x = (*x - max).exp());
        }
        let (mut u, mut v) = (vec![1.0; rows], vec![1.0 / columns as f64; columns]);
        for _ in 0..iterations {
            for s in 0..rows {
                let sum: f64 = (0..columns).map(|j| matrix[s * columns + j] * v[j]).sum();
                u[s] = 1.0 / (sum + eps);
            }
            for j in 0..columns {
                let sum: f64 = (0..rows).map(|s| matrix[s * columns + j] * u[s]).sum();
                v[j] = 1.0 / (sum + eps);
            }
        }
        for s in 0..rows {
            for j in 0..columns {
                matrix[s * columns + j] *= u[s] * v[j];
            }
        }
    }
    out
}

/// The same in libtorch calls, with the maximum taken by `max`: another
/// derivative.
fn stepwise(x: &Tensor, iterations: i64, eps: f64) -> Tensor {
    let n = x.size()[x.dim() - 1] as f64;
    let kernel = (x - x.max_dim(-1, true).0).exp();
    let mut u = Tensor::ones([1], (x.kind(), x.device()));
    let mut v = Tensor::full([1], 1.0 / n, (x.kind(), x.device()));
    for _ in 0..iterations {
        u = ((&kernel * &v).sum_dim_intlist(-1, true, None::<Kind>) + eps).reciprocal();
        v = ((&kernel * &u).sum_dim_intlist(-2, true, None::<Kind>) + eps).reciprocal();
    }
    kernel * u * v
}

#[test]
fn forward_and_gradient() -> Outcome {
    let mut rng = Rng::fresh();
    let shapes: [&[usize]; 5] = [&[4, 4], &[2, 9, 4, 4], &[33, 3, 5], &[1, 1, 1], &[16, 6, 2]];
    for shape in shapes {
        for (iterations, eps) in [(20, EPS), (0, EPS), (1, 0.1), (3, 1e-3)] {
            for kind in KINDS {
                let x = rng.array(shape, -3.0, 3.0, kind);
                let dy = rng.normal(shape, kind);
                let (tx, tdy) = (rng.tensor(&x, kind), rng.tensor(&dy, kind));
                poison(&tx);
                let y = ops::sinkhorn(&tx, iterations, eps)?;
                close("native", &y, &naive(&x, iterations as usize, eps));
                same("composite", &ops::sinkhorn_composite(&tx, iterations, eps)?, &y);
                if kind == Kind::Float {
                    let wide = ops::sinkhorn_grad(
                        &x.tensor(Kind::Double),
                        &dy.tensor(Kind::Double),
                        iterations,
                        eps,
                    )?;
                    let got = ops::sinkhorn_grad(&tx, &tdy, iterations, eps)?;
                    close("f32 gradient", &got, &crate::support::array_of(&wide));
                    continue;
                }
                let got = ops::sinkhorn_grad(&tx, &tdy, iterations, eps)?;
                let composite = ops::sinkhorn_grad_composite(&tx, &tdy, iterations, eps)?;
                let f = |x: &[Tensor]| -> Result<Tensor> { ops::sinkhorn(&x[0], iterations, eps) };
                let auto = autograd(&[&x], &dy, |x| Ok(stepwise(&x[0], iterations, eps)))?;
                same("autograd", &got, &auto[0]);
                same("composite gradient", &composite, &auto[0]);
                same("autograd of the op", &autograd(&[&x], &dy, f)?[0], &auto[0]);
                differences("sinkhorn", &mut rng, &[&x], &dy, &[&got], f)?;
            }
        }
    }
    Ok(())
}

#[test]
fn equal_maxima_give_to_the_first() -> Outcome {
    let mut rng = Rng::fresh();
    // With eps this large the row maximum has a gradient of its own.
    let x = rng.normal(&[20, 4, 4], Kind::Double).map(|x| x.round());
    let dy = rng.normal(&[20, 4, 4], Kind::Double);
    let (tx, tdy) = (x.tensor(Kind::Double), dy.tensor(Kind::Double));
    let got = ops::sinkhorn_grad(&tx, &tdy, 2, 0.5)?;
    same("composite", &ops::sinkhorn_grad_composite(&tx, &tdy, 2, 0.5)?, &got);
    same("autograd", &autograd(&[&x], &dy, |x| Ok(stepwise(&x[0], 2, 0.5)))?[0], &got);
    Ok(())
}
