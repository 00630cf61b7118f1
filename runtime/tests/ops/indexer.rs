use lightc_runtime::ops::{self, IndexerNumbers};
use lightc_runtime::{Device, Kind, Tensor};

use crate::support::{Array, Outcome, Rng};

const NUMBERS: IndexerNumbers =
    IndexerNumbers { base: 6.0, low: 1.0, high: 5.0, sinks: 1, limit: 5 };

/// Score and variance as they are written down.
fn naive(q: &Array, k: &Array, heed: &Array, bias: &Array) -> (Array, Array) {
    let [b, t, heads, c] = [q.shape[0], q.shape[1], q.shape[2], q.shape[3]];
    let (mut score, mut variance) = (Array::zeros(&[b, t, t]), Array::zeros(&[b, t]));
    for b in 0..b {
        for row in 0..t {
            for s in 0..t {
                for i in 0..heads {
                    let dot: f64 = (0..c).map(|c| q.at(&[b, row, i, c]) * k.at(&[b, s, c])).sum();
                    let open = 1.0 / (1.0 + (-(dot / (c as f64).sqrt() + bias.at(&[i]))).exp());
                    *score.at_mut(&[b, row, s]) += heed.at(&[b, row, i]) * open;
                }
            }
            let past: Vec<f64> =
                (0..t).map(|s| if s <= row { score.at(&[b, row, s]) } else { 0.0 }).collect();
            let mean = past.iter().sum::<f64>() / t as f64;
            let spread = past.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            *variance.at_mut(&[b, row]) = spread / t as f64;
        }
    }
    (score, variance)
}

#[test]
fn scores_variance_budget_and_selection() -> Outcome {
    let mut rng = Rng::fresh();
    let (b, t, heads, c) = (2, 11, 3, 4);
    let q = rng.normal(&[b, t, heads, c], Kind::Double);
    let k = rng.normal(&[b, t, c], Kind::Double);
    let heed = rng.array(&[b, t, heads], 0.0, 1.0, Kind::Double);
    let bias = rng.normal(&[heads], Kind::Double);
    let (score, variance) = naive(&q, &k, &heed, &bias);
    let ema = Tensor::full([0i64; 0], 0.1, (Kind::Double, Device::Cpu));
    let of = |x: &Array| x.tensor(Kind::Double);
    let (selected, found) = ops::indexer(&of(&q), &of(&k), &of(&heed), &of(&bias), &ema, NUMBERS)?;
    let off = (&found - of(&variance)).abs().max().double_value(&[]);
    assert!(off < 1e-12, "{off}");
    let budget = (of(&variance) * 6.0 / 0.1).floor().clamp(1.0, 5.0);
    assert!(selected.equal(&ops::select_top(&of(&score), &budget, 1, 5)?));
    let sizes = selected.sum_dim_intlist(&[-1i64][..], false, Kind::Int64);
    assert!(sizes.min().int64_value(&[]) >= 1 && sizes.max().int64_value(&[]) <= 5);
    Ok(())
}
