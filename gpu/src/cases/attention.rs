//! Attention under a mask.

use lightc_runtime::ops::{self, IndexerNumbers};
use lightc_runtime::{Kind, Result, Tensor};

use super::{chosen, indexer};
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Attention;

/// Batch, tokens, heads, the mask and the channels of a head.
type Size = (i64, i64, i64, &'static str, i64);

const SIZES: [Size; 10] = [
    (2, 100, 3, "near", 256),
    (2, 300, 2, "scattered", 64),
    (1, 500, 3, "near", 128),
    (1, 64, 2, "none", 64),
    (1, 130, 1, "causal", 128),
    (1, 1000, 2, "scattered", 256),
    (2, 641, 2, "near", 256),
    (1, 4096, 2, "causal", 128),
    (1, 8190, 1, "scattered", 256),
    (1, 8192, 1, "near", 256),
];

/// A causal mask `[b, t, t]`: everything, scattered keys, a band with rows that allow nothing, or nothing.
fn mask(gpu: &Gpu, b: i64, t: i64, kind: &str) -> Result<Tensor> {
    let at = Tensor::f_arange(t, (Kind::Int64, gpu.device()))?;
    let (rows, columns) = (at.f_unsqueeze(1)?, at.f_unsqueeze(0)?);
    let causal = columns.f_le_tensor(&rows)?.f_expand([b, t, t], false)?;
    let draw = || gpu.uniform(&[b, t, t]);
    Ok(match kind {
        "causal" => causal.f_contiguous()?,
        "none" => causal.f_zeros_like()?.f_contiguous()?,
        "scattered" => causal.f_logical_and(&draw()?.f_lt(256.0 / t.max(256) as f64)?)?,
        _ => {
            let near = rows.f_sub(&columns)?.f_lt(70)?.f_logical_or(&columns.f_lt(4)?)?;
            let seen = rows.f_remainder(11)?.f_ne(5)?;
            let chosen = draw()?.f_lt(0.5)?.f_logical_and(&near)?.f_logical_and(&seen)?;
            causal.f_logical_and(&chosen)?
        }
    })
}

fn heads(gpu: &Gpu, shape: &[i64]) -> Result<[Tensor; 4]> {
    // The queries carry the scale of the scores.
    let q = gpu.normal(shape)?.f_mul_scalar(1.0 / 16.0)?.f_to_kind(Kind::BFloat16)?;
    Ok([q, gpu.normal_bf16(shape)?, gpu.normal_bf16(shape)?, gpu.normal_bf16(shape)?])
}

/// One token attends to itself alone: the result is its value, and q and k have no gradient.
fn one_token(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let [q, k, v, dout] = heads(gpu, &[1, 1, 2, 256])?;
    let allowed = mask(gpu, 1, 1, "causal")?;
    let o = ops::masked_attention(&q, &k, &v, &allowed)?;
    let (dq, dk, dv) = ops::masked_attention_grad(&q, &k, &v, &allowed, &dout)?;
    let largest = |x: &Tensor| -> Result<f64> { Ok(x.f_abs()?.f_max()?.f_double_value(&[])?) };
    let label = |what: &str| format!("masked attention T=1: {what}");
    Ok(vec![
        within(label("o"), "differs from v by", largest(&o.f_sub(&v)?)?, 0.0),
        within(label("dv"), "differs from dout by", largest(&dv.f_sub(&dout)?)?, 0.0),
        within(label("dq"), "largest", largest(&dq)?, 1e-3),
        within(label("dk"), "largest", largest(&dk)?, 1e-3),
    ])
}

impl Case for Attention {
    fn name(&self) -> &'static str {
        "masked_attention"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = one_token(gpu)?;
        for (b, t, h, kind, channels) in chosen(gpu.small, &SIZES, |size| size.1) {
            let [q, k, v, dout] = heads(gpu, &[b, t, h, channels])?;
            let allowed = mask(gpu, b, t, kind)?;
            let label = format!("masked attention B={b} T={t} H={h} D={channels} {kind}");
            verdicts.extend(compared(&label, 1.0, &mut || {
                let _ = ops::masked_attention(&q, &k, &v, &allowed)?;
                let _ = ops::masked_attention_grad(&q, &k, &v, &allowed, &dout)?;
                Ok(())
            })?);
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (t, h, channels) = (8192, 16, 256);
        let [q, k, v, dout] = heads(gpu, &[1, t, h, channels])?;
        let [iq, ik, heed, bias, ema] = indexer::inputs(gpu, 1, t)?;
        // As many keys as there can be: every causal tile is occupied.
        let numbers = IndexerNumbers { base: 128.0, low: 256.0, high: 256.0, sinks: 4, limit: 256 };
        let (selected, _) = ops::indexer(&iq, &ik, &heed, &bias, &ema, numbers)?;
        let forward =
            time(gpu, 25, &mut || ops::masked_attention(&q, &k, &v, &selected).map(|_| ()))?;
        let both = time(gpu, 25, &mut || {
            let _ = ops::masked_attention(&q, &k, &v, &selected)?;
            ops::masked_attention_grad(&q, &k, &v, &selected, &dout).map(|_| ())
        })?;
        let flops = 2.0 * (t * t * h * channels) as f64;
        let bytes = 2.0 * (t * h * channels) as f64;
        let row = |name: &str, spread, flops, bytes, peers| Measured {
            name: name.to_owned(),
            shape: format!("T={t} H={h} D={channels}, 256 keys"),
            spread,
            flops,
            bytes,
            peers,
        };
        Ok(vec![
            row(
                "masked attention fwd",
                forward,
                flops,
                4.0 * bytes,
                &["dense causal attention fwd, d=256"],
            ),
            row(
                "masked attention fwd, then bwd",
                both,
                3.5 * flops,
                12.0 * bytes,
                &["dense causal attention fwd+bwd"],
            ),
        ])
    }
}
