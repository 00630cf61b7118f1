//! Attention under a mask, over tiles and with gathered keys.

use lightc_runtime::ops::{self, AttentionForm, IndexerNumbers, MaskBound};
use lightc_runtime::{Kind, Result, Tensor};

use super::{chosen, indexer};
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Attention;

/// Batch, tokens, heads, the mask and the channels of a head.
type Size = (i64, i64, i64, &'static str, i64);

const SIZES: [Size; 16] = [
    (2, 100, 3, "near", 256),
    (2, 300, 2, "scattered", 64),
    (1, 500, 3, "near", 128),
    (1, 64, 2, "none", 64),
    (1, 130, 1, "causal", 128),
    (1, 1000, 2, "scattered", 256),
    (2, 641, 2, "near", 256),
    (1, 200, 2, "full", 64),
    (2, 330, 2, "both ways", 128),
    (1, 449, 2, "later", 256),
    (2, 150, 2, "gaps", 64),
    (1, 640, 1, "gaps", 256),
    (1, 4095, 2, "full", 128),
    (1, 4096, 2, "causal", 128),
    (1, 8190, 1, "scattered", 256),
    (1, 8192, 1, "near", 256),
];

/// Those that are run with gathered keys; the bound is the most that a query of the mask has.
const GATHERED: [Size; 13] = [
    (1, 1, 2, "causal", 128),
    (2, 100, 3, "near", 256),
    (2, 300, 2, "scattered", 64),
    (1, 500, 3, "near", 128),
    (1, 64, 2, "none", 64),
    (1, 130, 1, "causal", 128),
    (1, 171, 2, "full", 64),
    (2, 150, 2, "gaps", 256),
    (1, 449, 1, "later", 128),
    (1, 641, 1, "both ways", 256),
    (1, 4096, 2, "both ways", 128),
    (1, 8190, 2, "scattered", 256),
    (2, 8192, 1, "near", 64),
];

/// What a mask of this kind is claimed to be: the tiles' gradient lays itself out by it.
fn claimed(kind: &str) -> MaskBound {
    let causal = ["near", "scattered", "none", "causal"].contains(&kind);
    MaskBound { causal, most_keys: None }
}

/// The claim, with the most keys of a query.
fn counted(kind: &str, mask: &Tensor) -> Result<MaskBound> {
    let most = mask.f_sum_dim_intlist(-1, false, Kind::Int64)?.f_max()?.f_int64_value(&[])?;
    Ok(MaskBound { most_keys: u32::try_from(most.max(1)).ok(), ..claimed(kind) })
}

/// A mask `[b, t, t]`. Causal: everything (`causal`), `scattered` keys, a band with rows that allow nothing (`near`), or
/// nothing (`none`). Not causal: `full`, keys scattered `both ways`, scattered keys that are all `later`, and scattered
/// ones with `gaps`: two tiles of rows without a key, every 11th row without one, and two tiles of keys that no query sees.
fn mask(gpu: &Gpu, b: i64, t: i64, kind: &str) -> Result<Tensor> {
    let at = Tensor::f_arange(t, (Kind::Int64, gpu.device()))?;
    let (rows, columns) = (at.f_unsqueeze(1)?, at.f_unsqueeze(0)?);
    let causal = columns.f_le_tensor(&rows)?.f_expand([b, t, t], false)?;
    let draw = || gpu.uniform(&[b, t, t]);
    Ok(match kind {
        "causal" => causal.f_contiguous()?,
        "none" => causal.f_zeros_like()?.f_contiguous()?,
        "full" => causal.f_ones_like()?.f_contiguous()?,
        "both ways" => draw()?.f_lt(256.0 / t.max(512) as f64)?,
        "later" => causal.f_logical_not()?.f_logical_and(&draw()?.f_lt(0.4)?)?,
        "gaps" => {
            let inside = |at: &Tensor| at.f_floor_divide_scalar(64)?.f_remainder(2)?.f_eq(0);
            let seen = rows.f_remainder(11)?.f_ne(5)?;
            let open = inside(&rows)?.f_logical_and(&inside(&columns)?)?.f_logical_and(&seen)?;
            draw()?.f_lt(0.3)?.f_logical_and(&open)?
        }
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
fn one_token(gpu: &Gpu, form: AttentionForm) -> Result<Vec<Verdict>> {
    let [q, k, v, dout] = heads(gpu, &[1, 1, 2, 256])?;
    let allowed = mask(gpu, 1, 1, "causal")?;
    let bound = counted("causal", &allowed)?;
    let o = ops::masked_attention_by(form, &q, &k, &v, &allowed, bound)?;
    let (dq, dk, dv) = ops::masked_attention_grad_by(form, [&q, &k, &v, &allowed, &dout], bound)?;
    let largest = |x: &Tensor| -> Result<f64> { Ok(x.f_abs()?.f_max()?.f_double_value(&[])?) };
    let label = |what: &str| format!("masked attention by {} T=1: {what}", form.word());
    Ok(vec![
        within(label("o"), "differs from v by", largest(&o.f_sub(&v)?)?, 0.0),
        within(label("dv"), "differs from dout by", largest(&dv.f_sub(&dout)?)?, 0.0),
        within(label("dq"), "largest", largest(&dq)?, 1e-3),
        within(label("dk"), "largest", largest(&dk)?, 1e-3),
    ])
}

/// Both directions of every size against the reference.
fn both_directions(gpu: &Gpu, form: AttentionForm, sizes: &[Size]) -> Result<Vec<Verdict>> {
    let mut verdicts = one_token(gpu, form)?;
    for (b, t, h, kind, channels) in chosen(gpu.small, sizes, |size| size.1) {
        let [q, k, v, dout] = heads(gpu, &[b, t, h, channels])?;
        let allowed = mask(gpu, b, t, kind)?;
        let bound = match form {
            AttentionForm::Tiles => claimed(kind),
            AttentionForm::Gather => counted(kind, &allowed)?,
        };
        let word = form.word();
        let label = format!("masked attention by {word} B={b} T={t} H={h} D={channels} {kind}");
        verdicts.extend(compared(&label, 1.0, &mut || {
            let _ = ops::masked_attention_by(form, &q, &k, &v, &allowed, bound)?;
            let _ = ops::masked_attention_grad_by(form, [&q, &k, &v, &allowed, &dout], bound)?;
            Ok(())
        })?);
    }
    Ok(verdicts)
}

/// A causal mask of a causal kind, of which nothing is claimed.
fn unclaimed(gpu: &Gpu) -> Result<Vec<Verdict>> {
    let [q, k, v, dout] = heads(gpu, &[1, 260, 2, 128])?;
    let allowed = mask(gpu, 1, 260, "causal")?;
    compared("masked attention by tiles, a causal mask without a claim", 1.0, &mut || {
        let _ = ops::masked_attention(&q, &k, &v, &allowed)?;
        let _ = ops::masked_attention_grad(&q, &k, &v, &allowed, &dout)?;
        Ok(())
    })
}

/// Up to 256 keys of each query at random, up to itself: `[1, t, t]`.
fn selected_at_random(gpu: &Gpu, t: i64) -> Result<Tensor> {
    let last = Tensor::f_arange(t, (Kind::Int64, gpu.device()))?.f_reshape([1, t, 1])?;
    let any = Tensor::f_randint(1 << 40, [1, t, 256], (Kind::Int64, gpu.device()))?;
    let keys = any.f_remainder_tensor(&last.f_add_scalar(1)?)?;
    let none = Tensor::f_zeros([1, t, t], (Kind::Bool, gpu.device()))?;
    Ok(none.f_scatter_value(-1, &keys, 1)?)
}

/// Both forms where the rule has them gathered.
fn long(gpu: &Gpu) -> Result<Vec<Measured>> {
    let (t, h, channels) = (65536, 4, 256);
    let [q, k, v, dout] = heads(gpu, &[1, t, h, channels])?;
    let mask = selected_at_random(gpu, t)?;
    let bound = MaskBound { causal: true, most_keys: Some(256) };
    let pairs = (t * 256 * h * channels) as f64;
    let own = 2.0 * (t * h * channels) as f64;
    let mut rows = Vec::new();
    for form in [AttentionForm::Gather, AttentionForm::Tiles] {
        let forward = time(gpu, 11, &mut || {
            ops::masked_attention_by(form, &q, &k, &v, &mask, bound).map(|_| ())
        })?;
        let backward = time(gpu, 11, &mut || {
            let inputs = [&q, &k, &v, &mask, &dout];
            ops::masked_attention_grad_by(form, inputs, bound).map(|_| ())
        })?;
        let directions = [("fwd", forward, 4.0, 4.0), ("bwd", backward, 16.0, 7.0)];
        for (direction, spread, flops, arrays) in directions {
            rows.push(Measured {
                name: format!("attention by {} {direction}", form.word()),
                shape: format!("T={t} H={h} D={channels}, 256 keys"),
                spread,
                flops: flops * pairs,
                bytes: arrays * own + (t * t) as f64,
                peers: &[],
            });
        }
    }
    Ok(rows)
}

impl Case for Attention {
    fn name(&self) -> &'static str {
        "masked_attention"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = both_directions(gpu, AttentionForm::Tiles, &SIZES)?;
        verdicts.extend(unclaimed(gpu)?);
        verdicts.extend(both_directions(gpu, AttentionForm::Gather, &GATHERED)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (t, h, channels) = (8192, 16, 256);
        let [q, k, v, dout] = heads(gpu, &[1, t, h, channels])?;
        let [iq, ik, heed, bias, ema] = indexer::inputs(gpu, 1, t)?;
        // As many keys as there can be: every causal tile is occupied.
        let numbers = IndexerNumbers { base: 128.0, low: 256.0, high: 256.0, sinks: 4, limit: 256 };
        let (selected, _) = ops::indexer(&iq, &ik, &heed, &bias, &ema, numbers)?;
        let bound = MaskBound { causal: true, most_keys: Some(256) };
        let forward = time(gpu, 25, &mut || {
            ops::masked_attention_within(&q, &k, &v, &selected, bound).map(|_| ())
        })?;
        let both = time(gpu, 25, &mut || {
            let _ = ops::masked_attention_within(&q, &k, &v, &selected, bound)?;
            ops::masked_attention_grad_within(&q, &k, &v, &selected, &dout, bound).map(|_| ())
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
        let mut rows = vec![
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
        ];
        rows.extend(long(gpu)?);
        Ok(rows)
    }
}
