use std::collections::BTreeMap;

use lightc_runtime::{Kind, ops};

use crate::support::{Array, KINDS, Outcome, Rng, autograd, close, indices, same};

/// The definition, over every letter.
fn naive(a: &Array, b: &Array, spec: &str) -> Array {
    let (inputs, out) = spec.split_once("->").unwrap_or_default();
    let (a_axes, b_axes) = inputs.split_once(',').unwrap_or_default();
    let mut size = BTreeMap::new();
    for (axes, x) in [(a_axes, a), (b_axes, b)] {
        size.extend(axes.chars().zip(x.shape.iter().copied()));
    }
    let letters: Vec<char> = size.keys().copied().collect();
    let place = |axes: &str, at: &[usize]| -> Vec<usize> {
        axes.chars().filter_map(|c| letters.iter().position(|d| *d == c).map(|i| at[i])).collect()
    };
    let shape: Vec<usize> = out.chars().map(|c| size[&c]).collect();
    let mut result = Array::zeros(&shape);
    for at in indices(&size.values().copied().collect::<Vec<_>>()) {
        *result.at_mut(&place(out, &at)) += a.at(&place(a_axes, &at)) * b.at(&place(b_axes, &at));
    }
    result
}

fn check(rng: &mut Rng, spec: &str, kind: Kind) -> Outcome {
    let (inputs, _) = spec.split_once("->").unwrap_or_default();
    let (a_axes, b_axes) = inputs.split_once(',').unwrap_or_default();
    let mut size = BTreeMap::new();
    for c in inputs.chars() {
        let _ = size.entry(c).or_insert_with(|| rng.size(1, 4));
    }
    let shape = |axes: &str| axes.chars().map(|c| size[&c]).collect::<Vec<usize>>();
    let a = rng.normal(&shape(a_axes), kind);
    let b = rng.normal(&shape(b_axes), kind);
    let (ta, tb) = (rng.tensor(&a, kind), rng.tensor(&b, kind));
    let got = ops::contract(&ta, &tb, spec)?;
    close(spec, &got, &naive(&a, &b, spec));
    same(spec, &got, &ops::contract_composite(&ta, &tb, spec)?);
    Ok(())
}

#[test]
fn common_patterns() -> Outcome {
    let mut rng = Rng::fresh();
    let specs = [
        "btd,fd->btf",
        "btf,fd->btd",
        "btf,btd->fd",
        "bthk,bshk->bths",
        "bths,bshm->bthm",
        "btsj,btjd->btsd",
        "btsd,bts->btd",
        "bts,btd->btsd",
        "btsd,btd->bts",
        "btd,d->bt",
        "bt,d->btd",
        "bt,d->dtb",
        "d,d->",
        ",->",
        "b,->b",
        ",ab->ba",
        "abc,cab->abc",
        "ab,ab->ba",
        "ab,cd->",
        "ab,bc->b",
        "abc,d->d",
        "abcd,dcbe->ae",
        "ab,b->",
        "abc,bd->cd",
    ];
    for spec in specs {
        for kind in KINDS {
            check(&mut rng, spec, kind)?;
        }
    }
    Ok(())
}

/// A random subset of letters in random order.
fn draw(rng: &mut Rng, from: &str, keep: u64) -> String {
    let mut letters: Vec<char> = from.chars().filter(|_| rng.next() % 100 < keep).collect();
    for i in (1..letters.len()).rev() {
        letters.swap(i, rng.size(0, i));
    }
    letters.into_iter().collect()
}

#[test]
fn random_specs() -> Outcome {
    let mut rng = Rng::fresh();
    for round in 0..400 {
        let (a, b) = (draw(&mut rng, "abcdef", 55), draw(&mut rng, "abcdef", 55));
        let all: String = "abcdef".chars().filter(|&c| a.contains(c) || b.contains(c)).collect();
        let spec = format!("{a},{b}->{}", draw(&mut rng, &all, 55));
        check(&mut rng, &spec, KINDS[round % 2])?;
    }
    Ok(())
}

#[test]
fn empty_axes_sum_to_zero() -> Outcome {
    let a = Array::zeros(&[2, 0]).tensor(Kind::Double);
    let b = Array::zeros(&[0, 3]).tensor(Kind::Double);
    close("empty", &ops::contract(&a, &b, "ab,bc->ac")?, &Array::zeros(&[2, 3]));
    Ok(())
}

#[test]
fn libtorch_differentiates_it() -> Outcome {
    let mut rng = Rng::fresh();
    let (a, b) = (rng.normal(&[2, 3, 4], Kind::Double), rng.normal(&[5, 4], Kind::Double));
    let dy = rng.normal(&[2, 3, 5], Kind::Double);
    let got = autograd(&[&a, &b], &dy, |x| ops::contract(&x[0], &x[1], "btd,fd->btf"))?;
    close("a", &got[0], &naive(&dy, &b, "btf,fd->btd"));
    close("b", &got[1], &naive(&dy, &a, "btf,btd->fd"));
    Ok(())
}
