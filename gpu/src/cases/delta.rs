//! The gated delta rule.

use lightc_runtime::{Kind, Result, Tensor, ops};

use super::chosen;
use crate::bench::time;
use crate::check::compared;
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Delta;

/// Decays of the log gate: of a normal draw times this, or nearly none where it is 0.
type Size = (i64, i64, i64, f64);

const SIZES: [Size; 8] = [
    (1, 1, 2, 1.0),
    (2, 100, 3, 1.0),
    (1, 64, 1, 1.0),
    (1, 8190, 2, 1.0),
    (1, 1000, 2, 0.0),
    (1, 4096, 1, 0.0),
    (1, 1024, 2, 40.0),
    (1, 8192, 4, 1.0),
];

fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_div(&x.f_square()?.f_sum_dim_intlist(&[-1i64][..], true, None::<Kind>)?.f_sqrt()?)?)
}

/// q, k, v, log decay, write strength and the gradient of the result.
fn inputs(gpu: &Gpu, (b, t, h, decay): Size) -> Result<[Tensor; 6]> {
    let shape = [b, t, h, 128];
    let act = |x: Tensor| x.f_to_kind(Kind::BFloat16);
    let q = act(unit(&gpu.normal(&shape)?)?)?;
    let mut k = unit(&gpu.normal(&shape)?)?;
    let g = if decay == 0.0 {
        // Long memory and keys that resemble each other: the hard case of the triangular inverse.
        let common = unit(&gpu.normal(&[b, 1, h, 128])?)?;
        k = unit(&k.f_mul_scalar(0.5)?.f_add(&common)?)?;
        gpu.uniform(&[b, t, h])?.f_mul_scalar(-1e-3)?
    } else {
        gpu.normal(&[b, t, h])?.f_mul_scalar(decay)?.f_log_sigmoid()?
    };
    let (v, dout) = (gpu.normal_bf16(&shape)?, gpu.normal_bf16(&shape)?);
    Ok([q, act(k)?, v, g, gpu.uniform(&[b, t, h])?, dout])
}

impl Case for Delta {
    fn name(&self) -> &'static str {
        "gated_delta_rule"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for size in chosen(gpu.small, &SIZES, |size| size.1) {
            let (b, t, h, decay) = size;
            let [q, k, v, g, beta, dout] = inputs(gpu, size)?;
            // One token is single dot products, whose sums can cancel; nearly equal keys cancel too.
            let factor = if t == 1 {
                8.0
            } else if decay == 0.0 {
                3.0
            } else {
                1.0
            };
            let label = format!("gated delta rule B={b} T={t} H={h} decay {decay}");
            verdicts.extend(compared(&label, factor, &mut || {
                let _ = ops::gated_delta_rule(&q, &k, &v, &g, &beta)?;
                let _ = ops::gated_delta_rule_grad(&q, &k, &v, &g, &beta, &dout)?;
                Ok(())
            })?);
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (b, t, h) = (1, 8192, 32);
        let [q, k, v, g, beta, dout] = inputs(gpu, (b, t, h, 1.0))?;
        let forward =
            time(gpu, 25, &mut || ops::gated_delta_rule(&q, &k, &v, &g, &beta).map(|_| ()))?;
        let both = time(gpu, 25, &mut || {
            let _ = ops::gated_delta_rule(&q, &k, &v, &g, &beta)?;
            ops::gated_delta_rule_grad(&q, &k, &v, &g, &beta, &dout).map(|_| ())
        })?;
        let heads = (2 * b * t * h * 128) as f64;
        let row = |name: &str, spread, flops, tensors, peers| Measured {
            name: name.to_owned(),
            shape: format!("B={b} T={t} H={h}"),
            spread,
            flops,
            bytes: tensors * heads,
            peers,
        };
        Ok(vec![
            row("gated delta rule fwd", forward, 47e9, 4.0, &["gated delta rule fwd ("]),
            row(
                "gated delta rule fwd, then bwd",
                both,
                185e9,
                12.0,
                &["gated delta rule fwd+bwd ("],
            ),
        ])
    }
}
