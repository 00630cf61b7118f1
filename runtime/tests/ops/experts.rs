use lightc_numerics::hadamard::Hadamard;
use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, array_of, autograd, close, indices, integers, same,
};

/// Lengths of a mixture, awkward ones first: one row, one slot, one expert.
const SHAPES: [[usize; 6]; 5] = [
    [1, 1, 1, 1, 1, 1],
    [1, 1, 3, 4, 2, 5],
    [2, 5, 1, 3, 4, 1],
    [2, 3, 2, 1, 3, 4],
    [3, 37, 4, 9, 16, 24],
];

/// Ids of `[b, t, p]`: any, all on one expert, none at all.
fn some_ids(rng: &mut Rng, shape: &[usize], e: usize, which: usize) -> Array {
    let one = rng.int(0, e as i64 - 1) as f64;
    Array::fill(shape, |_| match which {
        0 => rng.int(-2, e as i64 - 1) as f64,
        1 => one,
        _ => -1.0,
    })
}

#[test]
fn expert_products() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for ([b, t, p, e, f, d], which) in SHAPES.into_iter().flat_map(|s| [(s, 0), (s, 1), (s, 2)])
        {
            let (x, w) = (rng.normal(&[b, t, d], kind), rng.normal(&[e, f, d], kind));
            let ids = some_ids(&mut rng, &[b, t, p], e, which);
            let dy = rng.normal(&[b, t, p, f], kind);
            let mut want = Array::zeros(&[b, t, p, f]);
            let (mut dx, mut dw) = (Array::zeros(&[b, t, d]), Array::zeros(&[e, f, d]));
            for at in indices(&[b, t, p, f, d]) {
                let [i, j, s, c, k] = at[..] else { unreachable!() };
                let id = ids.at(&[i, j, s]);
                if id >= 0.0 {
                    let (weight, row) = ([id as usize, c, k], [i, j, k]);
                    *want.at_mut(&[i, j, s, c]) += w.at(&weight) * x.at(&row);
                    *dx.at_mut(&row) += w.at(&weight) * dy.at(&[i, j, s, c]);
                    *dw.at_mut(&weight) += x.at(&row) * dy.at(&[i, j, s, c]);
                }
            }
            let (tx, tw, ti) = (rng.tensor(&x, kind), rng.tensor(&w, kind), integers(&ids));
            let tdy = rng.tensor(&dy, kind);
            close("expert_dot", &ops::expert_dot(&tx, &tw, &ti)?, &want);
            let grad = ops::expert_dot_weight_grad(&tx, &tdy, &ti, e as i64)?;
            close("weight grad", &grad, &dw);
            let turned = tw.transpose(1, 2);
            let spread = ops::expert_dot(&tdy, &turned, &ti)?;
            close("input grad", &ops::sum(&spread, &[2])?, &dx);
            // x that has the slots itself.
            let own = tx.unsqueeze(2).expand([b as i64, t as i64, p as i64, d as i64], false);
            close("own slots", &ops::expert_dot(&own, &tw, &ti)?, &want);
            same("own slots grad", &ops::expert_dot_weight_grad(&own, &tdy, &ti, e as i64)?, &grad);

            if ids.data.iter().all(|id| *id < 0.0) {
                // The result depends on nothing: libtorch has no gradients to give.
                continue;
            }
            let run = |x: &[Tensor]| -> Result<Tensor> { ops::expert_dot(&x[0], &x[1], &ti) };
            let auto = autograd(&[&x, &w], &dy, run)?;
            close("autograd x", &auto[0].to_kind(kind), &dx);
            close("autograd w", &auto[1].to_kind(kind), &dw);
        }
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_where_a_row_stands() -> Outcome {
    // The same rows in another order go to the same experts: one product each of the same shape.
    let mut rng = Rng::fresh();
    let (x, w) = (rng.normal(&[40, 8], Kind::Float), rng.normal(&[3, 5, 8], Kind::Float));
    let ids = some_ids(&mut rng, &[40], 3, 0);
    let (x, w, ids) = (x.tensor(Kind::Float), w.tensor(Kind::Float), integers(&ids));
    let first = ops::expert_dot(&x, &w, &ids)?;
    assert!(first.equal(&ops::expert_dot(&x, &w, &ids)?));
    let back = ops::expert_dot(&x.flip([0]), &w, &ids.flip([0]))?.flip([0]);
    same("flipped", &back, &first);
    Ok(())
}

#[test]
fn the_largest_in_order() -> Outcome {
    let mut rng = Rng::fresh();
    for (rows, e, p) in [(1, 1, 1), (7, 5, 5), (9, 64, 3), (40, 460, 12)] {
        // Few values, so that most of them tie.
        let score = Array::fill(&[rows, e], |_| rng.int(-2, 2) as f64);
        let want = Array::fill(&[rows, p], |at| {
            let mut order: Vec<usize> = (0..e).collect();
            order.sort_by(|&i, &j| score.at(&[at[0], j]).total_cmp(&score.at(&[at[0], i])));
            order[at[1]] as f64
        });
        for kind in KINDS {
            let got = ops::top(&rng.tensor(&score, kind), p as i64)?;
            assert_eq!(got.kind(), Kind::Int64);
            close("top", &got, &want);
        }
    }
    let odd = Tensor::from_slice(&[1.0f32, f32::INFINITY, f32::NAN, -0.0, 0.0, f32::NEG_INFINITY]);
    assert_eq!(array_of(&ops::top(&odd, 6)?).data, [2.0, 1.0, 0.0, 3.0, 4.0, 5.0]);
    Ok(())
}

#[test]
fn values_at_an_index() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for (b, e, p, d) in [(1, 1, 1, 1), (4, 5, 3, 1), (3, 1, 2, 6), (20, 33, 12, 4)] {
            let x = rng.normal(&[b, e, d], kind);
            let which = rng.size(0, 2);
            let ids = some_ids(&mut rng, &[b, p], e, which);
            let dy = rng.normal(&[b, p, d], kind);
            let mut want = Array::zeros(&[b, p, d]);
            let mut dx = Array::zeros(&[b, e, d]);
            for at in indices(&[b, p, d]) {
                let id = ids.at(&at[..2]);
                if id >= 0.0 {
                    let from = [at[0], id as usize, at[2]];
                    *want.at_mut(&at) = x.at(&from);
                    *dx.at_mut(&from) += dy.at(&at);
                }
            }
            let (tx, ti, tdy) = (rng.tensor(&x, kind), integers(&ids), rng.tensor(&dy, kind));
            close("take", &ops::take(&tx, &ti, 1)?, &want);
            close("take_grad", &ops::take_grad(&ti, &tdy, 1, e as i64)?, &dx);
            let followed = tdy.detach().set_requires_grad(true);
            let composed = ops::take_grad(&ti, &followed, 1, e as i64)?;
            close("composed", &composed.detach(), &dx);
            let auto = autograd(&[&x], &dy, |x| ops::take(&x[0], &ti, 1))?;
            close("autograd", &auto[0].to_kind(kind), &dx);
        }
    }
    // No axes meet; whole numbers and truth values are taken too.
    let x = Tensor::from_slice(&[7i64, 8, 9]);
    let ids = Tensor::from_slice(&[2i64, -1, 0, 0]).reshape([2, 2]);
    assert_eq!(array_of(&ops::take(&x, &ids, 0)?).data, [9.0, 0.0, 7.0, 7.0]);
    let truth = ops::take(&x.gt(7), &ids, 0)?;
    assert_eq!((truth.kind(), array_of(&truth).data), (Kind::Bool, vec![1.0, 0.0, 0.0, 0.0]));
    Ok(())
}

#[test]
fn counts_and_arithmetic() -> Outcome {
    let ids = Tensor::from_slice(&[0i64, 3, 19, -1, -9, 3]);
    let of = |x: Tensor| array_of(&x).data;
    let like = Tensor::from_slice(&[0.0f32]);
    let counts = ops::count(&ids, 20, &like)?;
    assert_eq!(counts.kind(), Kind::Float);
    assert_eq!(counts.sum(Kind::Float).double_value(&[]), 4.0);
    assert_eq!(of(counts.narrow(0, 0, 4)), [1.0, 0.0, 0.0, 2.0]);
    let none = Tensor::from_slice(&[-1i64]);
    assert_eq!(of(ops::count(&none, 2, &like)?), [0.0, 0.0]);
    assert_eq!(of(ops::below(&ids, 19)?), [0.0, 3.0, -1.0, -1.0, -1.0, 3.0]);
    assert_eq!(of(ops::index_affine(&ids, 6, 5)?), [5.0, 23.0, 119.0, -1.0, -1.0, 23.0]);
    assert_eq!(of(ops::index_affine(&ids, 1, -3)?), [-1.0, 0.0, 16.0, -1.0, -1.0, 0.0]);
    let one = Tensor::from(1i64);
    assert_eq!(of(ops::index_add(&ids, &one)?), [1.0, 4.0, 20.0, -1.0, -1.0, 4.0]);
    assert_eq!(of(ops::index_sub(&ids, &one)?), [-1.0, 2.0, 18.0, -1.0, -1.0, 2.0]);
    assert_eq!(of(ops::index_mul(&ids, &none)?), [-1.0; 6]);
    let whole = ops::to_index(&Tensor::from_slice(&[2.0f32, -1.0]))?;
    assert_eq!((whole.kind(), of(whole)), (Kind::Int64, vec![2.0, -1.0]));
    Ok(())
}

#[test]
fn turned_rows() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for shape in [&[1][..], &[3, 2], &[2, 5, 64], &[7, 1024]] {
            let x = rng.normal(shape, kind);
            let n = shape[shape.len() - 1];
            let turn = Hadamard::new(42, n).ok_or("no turn")?;
            let (mut want, mut back) = (x.clone(), x.clone());
            turn.apply(&mut want.data);
            turn.undo(&mut back.data);
            let tensor = rng.tensor(&x, kind);
            let y = ops::hadamard(&tensor, 42, false)?;
            close("hadamard", &y, &want);
            close("inverse", &ops::hadamard(&tensor, 42, true)?, &back);
            close("composite", &ops::hadamard_composite(&tensor, 42, false)?, &want);
            close("composite inverse", &ops::hadamard_composite(&tensor, 42, true)?, &back);
            close("undone", &ops::hadamard(&y, 42, true)?, &x);
            let dy = rng.normal(shape, kind);
            let grad = ops::hadamard(&dy.tensor(kind), 42, true)?;
            let auto = autograd(&[&x], &dy, |x| ops::hadamard(&x[0], 42, false))?;
            same("autograd", &auto[0].to_kind(kind), &grad);
        }
    }
    let narrow = Tensor::ones([64], (Kind::BFloat16, lightc_runtime::Device::Cpu));
    assert_eq!(ops::hadamard(&narrow, 1, false)?.kind(), Kind::BFloat16);
    Ok(())
}

#[test]
fn logarithms_of_sums() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        let x = rng.array(&[3, 4, 5], -40.0, 40.0, kind);
        let want = Array::fill(&[4], |at| {
            let all = indices(&[3, 5]).into_iter().map(|i| x.at(&[i[0], at[0], i[1]]).exp());
            all.sum::<f64>().ln()
        });
        close("logsumexp", &ops::logsumexp(&rng.tensor(&x, kind), &[2, 0])?, &want);
    }
    let large = Tensor::from_slice(&[1000.0f32, 1000.0]);
    assert!((ops::logsumexp(&large, &[0])?.double_value(&[]) - 1000.6931).abs() < 1e-3);
    let none = Tensor::from_slice(&[f32::NEG_INFINITY, f32::NEG_INFINITY]);
    assert_eq!(ops::logsumexp(&none, &[0])?.double_value(&[]), f64::NEG_INFINITY);
    Ok(())
}
