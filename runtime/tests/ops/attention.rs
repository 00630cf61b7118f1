use lightc_runtime::{Kind, Result, Tensor, ops};

use crate::support::{
    Array, KINDS, Outcome, Rng, array_of, autograd, bools, close, differences, indices, same,
};

fn naive(q: &Array, k: &Array, v: &Array, mask: &Array) -> Array {
    let [b, t, h, c] = [q.shape[0], q.shape[1], q.shape[2], q.shape[3]];
    let (s, m) = (k.shape[1], v.shape[3]);
    let mut out = Array::zeros(&[b, t, h, m]);
    for i in indices(&[b, t, h]) {
        let (b, t, h) = (i[0], i[1], i[2]);
        let seen: Vec<usize> = (0..s).filter(|&s| mask.at(&[b, t, s]) != 0.0).collect();
        let score =
            |s: usize| -> f64 { (0..c).map(|c| q.at(&[b, t, h, c]) * k.at(&[b, s, h, c])).sum() };
        let top = seen.iter().map(|&s| score(s)).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = seen.iter().map(|&s| (score(s) - top).exp()).sum();
        for &s in &seen {
            let p = (score(s) - top).exp() / total;
            for m in 0..m {
                *out.at_mut(&[b, t, h, m]) += p * v.at(&[b, s, h, m]);
            }
        }
    }
    out
}

#[test]
fn attention_under_a_mask() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in KINDS {
        for _ in 0..4 {
            let [b, t, s, h] = [rng.size(1, 2), rng.size(1, 9), rng.size(1, 11), rng.size(1, 3)];
            let [c, m] = [rng.size(1, 6), rng.size(1, 7)];
            let q = rng.normal(&[b, t, h, c], kind);
            let k = rng.normal(&[b, s, h, c], kind);
            let v = rng.normal(&[b, s, h, m], kind);
            let dout = rng.normal(&[b, t, h, m], kind);
            // The first query sees nothing.
            let mask = Array::fill(&[b, t, s], |i| f64::from(i[1] > 0 && rng.int(0, 2) > 0));
            let [tq, tk, tv, tdout] = [&q, &k, &v, &dout].map(|x| rng.tensor(x, kind));
            let tmask = bools(&mask);
            let out = ops::masked_attention(&tq, &tk, &tv, &tmask)?;
            close("masked_attention", &out, &naive(&q, &k, &v, &mask));
            let got = ops::masked_attention_grad(&tq, &tk, &tv, &tmask, &tdout)?;
            let f = |x: &[Tensor]| -> Result<Tensor> {
                ops::masked_attention(&x[0], &x[1], &x[2], &tmask)
            };
            let auto = autograd(&[&q, &k, &v], &dout, f)?;
            for (name, got, auto) in
                [("dq", &got.0, &auto[0]), ("dk", &got.1, &auto[1]), ("dv", &got.2, &auto[2])]
            {
                close(name, got, &array_of(auto));
            }
            if kind == Kind::Double {
                let got = [&got.0, &got.1, &got.2];
                differences("attention", &mut rng, &[&q, &k, &v], &dout, &got, f)?;
            }
        }
    }
    Ok(())
}

fn naive_select(score: &Array, budget: &Array, sinks: usize, limit: usize) -> Array {
    let mut chosen = Array::zeros(&score.shape);
    for i in indices(&score.shape[..2]) {
        let t = i[1];
        let n = (budget.at(&i).floor().max(1.0) as usize).min(limit).min(t + 1);
        for _ in 0..n {
            // The best that is left: the first of the greatest.
            let mut best: Option<(f64, usize)> = None;
            for s in 0..=t {
                let value = if s < sinks { f64::INFINITY } else { score.at(&[i[0], t, s]) };
                let free = chosen.at(&[i[0], t, s]) == 0.0;
                if free && best.is_none_or(|(top, _)| value > top) {
                    best = Some((value, s));
                }
            }
            if let Some((_, s)) = best {
                *chosen.at_mut(&[i[0], t, s]) = 1.0;
            }
        }
    }
    chosen
}

#[test]
fn selection_and_its_ties() -> Outcome {
    let mut rng = Rng::fresh();
    for round in 0..24 {
        let kind = KINDS[round % 2];
        let [b, t] = [rng.size(1, 3), [1, 2, 7, 40][round % 4]];
        // Coarse scores tie often; some rounds have -inf, 0 and -0 among them.
        let grain = [1.0, 2.0, 1e6][round % 3];
        let score = rng.normal(&[b, t, t], kind).map(|x| (x * grain).round() / grain);
        let score = score.map(|x| if x < -1.5 { f64::NEG_INFINITY } else { x });
        let budget = rng.array(&[b, t], -3.0, 1.3 * t as f64, kind);
        let (sinks, limit) = (rng.size(0, 5), rng.size(0, t + 2));
        let (ts, tb) = (rng.tensor(&score, kind), rng.tensor(&budget, kind));
        let want = bools(&naive_select(&score, &budget, sinks, limit));
        let got = ops::select_top(&ts, &tb, sinks as i64, limit as i64)?;
        assert_eq!(got, want, "native, round {round}");
        let got = ops::select_top_composite(&ts, &tb, sinks as i64, limit as i64)?;
        assert_eq!(got, want, "composite, round {round}");
    }
    Ok(())
}

#[test]
fn libtorch_can_follow_the_scores() -> Outcome {
    let score = Array::fill(&[1, 3, 3], |at| at[2] as f64);
    let leaf = score.tensor(Kind::Double).set_requires_grad(true);
    let budget = Array::fill(&[1, 3], |_| 2.0).tensor(Kind::Double);
    let mask = ops::select_top(&leaf, &budget, 0, 8)?;
    let want = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0];
    same("mask", &mask, &Array { shape: vec![1, 3, 3], data: want.to_vec() }.tensor(Kind::Double));
    Ok(())
}
