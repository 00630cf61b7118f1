use lightc_runtime::{Kind, Tensor, ops};

use crate::support::{Array, KINDS, Outcome, Rng, array_of, autograd, close};

/// `[2, 3, 5]` or so, all elements different.
fn counted(rng: &mut Rng) -> (Array, Vec<usize>) {
    let shape = vec![rng.size(1, 4), rng.size(2, 5), rng.size(1, 6)];
    let mut next = 0.0;
    (
        Array::fill(&shape, |_| {
            next += 1.0;
            next
        }),
        shape,
    )
}

#[test]
fn moves_of_elements() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        let (x, n) = counted(&mut rng);
        let t = rng.tensor(&x, kind);
        let check = |name, got: &Tensor, shape: &[usize], f: &dyn Fn(&[usize]) -> f64| {
            close(name, got, &Array::fill(shape, f));
        };
        assert_eq!(ops::length(&t, 1)?, n[1] as i64);
        check("align", &ops::align(&t, &[2, -1, 0, 1, -1])?, &[n[2], 1, n[0], n[1], 1], &|i| {
            x.at(&[i[2], i[3], i[0]])
        });
        let sizes = [4, n[2] as i64, n[0] as i64, 2, n[1] as i64];
        let shape: Vec<usize> = sizes.iter().map(|&n| n as usize).collect();
        check("broadcast", &ops::broadcast(&t, &[-1, 2, 0, -1, 1], &sizes)?, &shape, &|i| {
            x.at(&[i[2], i[4], i[1]])
        });
        check("permute", &ops::permute(&t, &[1, 2, 0])?, &[n[1], n[2], n[0]], &|i| {
            x.at(&[i[2], i[0], i[1]])
        });
        check("merge", &ops::merge(&t, 1, 2)?, &[n[0], n[1] * n[2]], &|i| {
            x.at(&[i[0], i[1] / n[2], i[1] % n[2]])
        });
        check("merge all", &ops::merge(&t, 0, 3)?, &[n[0] * n[1] * n[2]], &|i| x.data[i[0]]);
        let flat = ops::merge(&t, 0, 2)?;
        check("split", &ops::split(&flat, 0, &[n[0] as i64, n[1] as i64])?, &n, &|i| x.at(i));
        check("slice", &ops::slice(&t, 1, 1, n[1] as i64)?, &[n[0], n[1] - 1, n[2]], &|i| {
            x.at(&[i[0], i[1] + 1, i[2]])
        });
        check("pad", &ops::pad(&t, 1, 2, 1)?, &[n[0], n[1] + 3, n[2]], &|i| {
            if (2..n[1] + 2).contains(&i[1]) { x.at(&[i[0], i[1] - 2, i[2]]) } else { 0.0 }
        });
        let u = ops::affine(&t, -1.0, 0.0)?;
        check("concat", &ops::concat(&[&t, &u, &t], 2)?, &[n[0], n[1], 3 * n[2]], &|i| {
            let sign = if (n[2]..2 * n[2]).contains(&i[2]) { -1.0 } else { 1.0 };
            sign * x.at(&[i[0], i[1], i[2] % n[2]])
        });
        for dim in 0..4usize {
            let mut shape = n.clone();
            shape.insert(dim, 3);
            check("place", &ops::place(&t, dim as i64, 1, 3)?, &shape, &|i| {
                let mut at = i.to_vec();
                if at.remove(dim) == 1 { x.at(&at) } else { 0.0 }
            });
        }
        check("pick", &ops::pick(&t, 1, 1)?, &[n[0], n[2]], &|i| x.at(&[i[0], 1, i[1]]));
    }
    Ok(())
}

#[test]
fn sums_and_means() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        let n = [rng.size(1, 4), rng.size(1, 5), rng.size(1, 6)];
        let x = rng.normal(&n, kind);
        let t = rng.tensor(&x, kind);
        let mut over = Array::zeros(&[n[1]]);
        for i in crate::support::indices(&n) {
            *over.at_mut(&[i[1]]) += x.at(&i);
        }
        close("sum", &ops::sum(&t, &[0, 2])?, &over);
        close("sum of nothing", &ops::sum(&t, &[])?, &x);
        close("mean", &ops::mean(&t, &[2, 0])?, &over.map(|sum| sum / (n[0] * n[2]) as f64));
        close("mean of nothing", &ops::mean(&t, &[])?, &x);
        assert_eq!(ops::sum(&t, &[0, 1, 2])?.size(), [0i64; 0]);
    }
    Ok(())
}

#[test]
fn libtorch_differentiates_them() -> Outcome {
    let x = Array::fill(&[2, 3], |at| at[1] as f64);
    let dy = Array::fill(&[4, 2, 5], |at| (at[0] + 10 * at[2]) as f64);
    let gradient = autograd(&[&x], &dy, |x| {
        let placed = ops::place(&ops::pad(&x[0], 1, 1, 1)?, 0, 2, 4)?;
        ops::permute(&placed, &[0, 1, 2])
    })?;
    let want = Array::fill(&[2, 3], |at| dy.at(&[2, at[0], at[1] + 1]));
    close("gradient", &gradient[0], &want);
    let bits = ops::concat(&[&Tensor::from_slice(&[1i64, 2]), &Tensor::from_slice(&[3i64])], 0)?;
    assert_eq!((bits.kind(), array_of(&bits).data), (Kind::Int64, vec![1.0, 2.0, 3.0]));
    Ok(())
}
