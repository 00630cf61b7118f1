use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, array_of, autograd, close, indices, integers, poison, same,
};

#[test]
fn gathered_sums() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for [b, t, p, rows, d] in
            [[2, 5, 3, 7, 4], [1, 1, 1, 1, 1], [2, 3, 0, 4, 2], [3, 70, 9, 33, 64]]
        {
            let w = rng.normal(&[rows, d], kind);
            let index = Array::fill(&[b, t, p], |_| rng.int(-2, rows as i64 - 1) as f64);
            let dy = rng.normal(&[b, t, d], kind);
            let (tw, ti, tdy) = (rng.tensor(&w, kind), integers(&index), rng.tensor(&dy, kind));
            let (mut want, mut dw) = (Array::zeros(&[b, t, d]), Array::zeros(&[rows, d]));
            for i in indices(&[b, t, p]) {
                let row = index.at(&i);
                for c in (0..d).filter(|_| row >= 0.0) {
                    *want.at_mut(&[i[0], i[1], c]) += w.at(&[row as usize, c]);
                    *dw.at_mut(&[row as usize, c]) += dy.at(&[i[0], i[1], c]);
                }
            }
            poison(&tdy);
            close("gather_sum", &ops::gather_sum(&tw, &ti)?, &want);
            close("composite", &ops::gather_sum_composite(&tw, &ti)?, &want);
            close("int32", &ops::gather_sum(&tw, &ti.to_kind(Kind::Int))?, &want);
            close("grad", &ops::gather_sum_grad(&ti, &tdy, rows as i64)?, &dw);
            let followed = tdy.detach().set_requires_grad(true);
            let composed = ops::gather_sum_grad(&ti, &followed, rows as i64)?;
            close("composed grad", &composed.detach(), &dw);
            let f = |x: &[Tensor]| -> Result<Tensor> { ops::gather_sum(&x[0], &ti) };
            close("autograd", &autograd(&[&w], &dy, f)?[0].to_kind(kind), &dw);
        }
    }
    Ok(())
}

#[test]
fn looked_up_rows() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for inner in [&[][..], &[5][..], &[2, 3][..]] {
            let rows = rng.size(1, 9);
            let table = rng.normal(&[&[rows], inner].concat(), kind);
            let ids = Array::fill(&[3, 4], |_| rng.int(0, rows as i64 - 1) as f64);
            let (tt, ti) = (rng.tensor(&table, kind), integers(&ids));
            let shape = [&[3, 4], inner].concat();
            let row_of = |at: &[usize]| [&[ids.at(&at[..2]) as usize], &at[2..]].concat();
            let got = ops::lookup(&tt, &ti)?;
            close("lookup", &got, &Array::fill(&shape, |at| table.at(&row_of(at))));
            let dy = rng.normal(&shape, kind);
            let mut want = Array::zeros(&table.shape);
            for at in indices(&shape) {
                *want.at_mut(&row_of(&at)) += dy.at(&at);
            }
            let tdy = rng.tensor(&dy, kind);
            close("lookup_grad", &ops::lookup_grad(&ti, &tdy, rows as i64)?, &want);
            let followed = tdy.detach().set_requires_grad(true);
            let composed = ops::lookup_grad(&ti, &followed, rows as i64)?;
            same("composed", &composed.detach(), &want.tensor(kind));
            let auto = autograd(&[&table], &dy, |x| ops::lookup(&x[0], &ti))?;
            close("autograd", &auto[0].to_kind(kind), &want);
        }
    }
    Ok(())
}

#[test]
fn index_tables() -> Outcome {
    let table = Tensor::from_slice(&[7i64, 8, 9]);
    let got = ops::lookup(&table, &Tensor::from_slice(&[2i64, 0]))?;
    assert_eq!((got.kind(), array_of(&got).data), (Kind::Int64, vec![9.0, 7.0]));
    Ok(())
}
