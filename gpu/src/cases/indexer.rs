//! The selection of keys, and the whole indexer.

use lightc_runtime::ops::{self, IndexerNumbers};
use lightc_runtime::{Device, Kind, Result, Tensor};

use super::chosen;
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Indexer;

const NUMBERS: IndexerNumbers =
    IndexerNumbers { base: 128.0, low: 32.0, high: 256.0, sinks: 4, limit: 256 };

/// Queries, keys, head weights, biases and the running mean.
pub(super) fn inputs(gpu: &Gpu, b: i64, t: i64) -> Result<[Tensor; 5]> {
    Ok([
        gpu.normal_bf16(&[b, t, 4, 128])?,
        gpu.normal_bf16(&[b, t, 128])?,
        gpu.normal(&[b, t, 4])?.f_sigmoid()?,
        gpu.normal(&[4])?.f_mul_scalar(0.3)?,
        Tensor::f_full([0i64; 0], 0.12, (Kind::Float, gpu.device()))?,
    ])
}

/// Scores of different nature, by name.
fn scores(gpu: &Gpu, b: i64, t: i64) -> Result<Vec<(&'static str, Tensor)>> {
    let shape = [b, t, t];
    let on = (Kind::Float, gpu.device());
    Ok(vec![
        ("normal", gpu.normal(&shape)?),
        ("few values", Tensor::f_randint(5, shape, on)?.f_mul_scalar(0.25)?),
        ("all equal", Tensor::f_full(shape, 0.25, on)?),
        ("wide range", gpu.normal(&shape)?.f_mul_scalar(8.0)?.f_exp()?),
        ("huge", gpu.normal(&shape)?.f_mul_scalar(1e38)?),
    ])
}

/// NaN, infinities and both zeros, against the processor's selection, which follows the definition.
fn wild(gpu: &Gpu, t: i64) -> Result<Verdict> {
    let which = Tensor::f_randint(40, [1, t, t], (Kind::Int64, gpu.device()))?;
    let mut score = gpu.normal(&[1, t, t])?;
    for (at, value) in
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0].into_iter().enumerate()
    {
        let special = Tensor::f_full([0i64; 0], value, (Kind::Float, gpu.device()))?;
        score = special.f_where_self(&which.f_eq(at as i64)?, &score)?;
    }
    let budget = gpu.uniform(&[1, t])?.f_mul_scalar(60.0)?;
    let found = ops::select_top(&score, &budget, 4, 50)?.f_to_device(Device::Cpu)?;
    let (score, budget) = (score.f_to_device(Device::Cpu)?, budget.f_to_device(Device::Cpu)?);
    let wanted = ops::select_top(&score, &budget, 4, 50)?;
    let n_other = found.f_ne_tensor(&wanted)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok(within(format!("select_top T={t}, NaN and infinities"), "other keys", n_other as f64, 0.0))
}

impl Case for Indexer {
    fn name(&self) -> &'static str {
        "indexer"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for (b, t) in
            chosen(gpu.small, &[(1, 1), (2, 100), (1, 333), (1, 3000), (1, 8190), (1, 8192)], |s| {
                s.1
            })
        {
            for (name, score) in scores(gpu, b, t)? {
                // From below one key to beyond the limit.
                let budget = gpu.uniform(&[b, t])?.f_mul_scalar(300.0)?.f_sub_scalar(10.0)?;
                let label = format!("selection B={b} T={t}, {name}");
                verdicts.extend(compared(&label, 1.0, &mut || {
                    ops::select_top(&score, &budget, 4, 256).map(|_| ())
                })?);
            }
            let [q, k, heed, bias, ema] = inputs(gpu, b, t)?;
            // The variance of one column is 0.
            let factor = if t == 1 { 1e6 } else { 1.0 };
            verdicts.extend(compared(&format!("indexer B={b} T={t}"), factor, &mut || {
                ops::indexer(&q, &k, &heed, &bias, &ema, NUMBERS).map(|_| ())
            })?);
        }
        verdicts.push(wild(gpu, 200)?);
        verdicts.push(wild(gpu, 333)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let t = 8192;
        let [q, k, heed, bias, ema] = inputs(gpu, 1, t)?;
        let whole =
            time(gpu, 25, &mut || ops::indexer(&q, &k, &heed, &bias, &ema, NUMBERS).map(|_| ()))?;
        let (score, budget) = (gpu.normal(&[1, t, t])?, gpu.uniform(&[1, t])?.f_mul_scalar(256.0)?);
        let alone = time(gpu, 25, &mut || ops::select_top(&score, &budget, 4, 256).map(|_| ()))?;
        let pairs = (t * t) as f64;
        let row = |name: &str, spread, flops, bytes, peers| Measured {
            name: name.to_owned(),
            shape: format!("T={t}"),
            spread,
            flops,
            bytes,
            peers,
        };
        Ok(vec![
            row(
                "indexer scores, variance, top 256",
                whole,
                34e9,
                pairs,
                &["indexer scores + top-256"],
            ),
            row("select_top of given scores", alone, 0.0, 3.0 * pairs, &[]),
        ])
    }
}
