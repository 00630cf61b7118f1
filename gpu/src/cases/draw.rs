//! Draws of start values: those of the processor, but for neighbours where a logarithm or cosine differs in its last bit.

use lightc_numerics::draw::{Law, Stream};
use lightc_runtime::ops;
use lightc_runtime::{Error, Kind, Result, Tensor};

use super::chosen;
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Draw;

/// One element, parts of a thread's four and of a block, and several blocks.
const SIZES: [i64; 6] = [1, 3, 690, 1022, 1025, 300_007];
const LAWS: [Law; 3] = [
    Law::Normal { std: 0.02 },
    Law::Uniform { low: -1.0, high: 3.0 },
    Law::LogUniform { low: 0.0, high: 16.0 },
];
/// A seed and a path.
const OF: (u64, &str) = (42, "layers.0.feed.body.gate");

fn on_host(law: Law, n: i64, kind: Kind) -> Result<Tensor> {
    let drawn = Stream::new(OF.0, OF.1).fill(law, n.unsigned_abs() as usize);
    Ok(Tensor::f_from_slice(&drawn)?.f_to_kind(kind)?)
}

fn on_gpu(gpu: &Gpu, law: Law, n: i64, kind: Kind) -> Result<Tensor> {
    let drawn = ops::draw(law, OF, &[n], kind, gpu.device());
    let detail = || format!("no kernel draws {law:?} in {kind:?}");
    drawn.unwrap_or_else(|| Err(Error::Op { op: "draw", detail: detail() }))
}

impl Case for Draw {
    fn name(&self) -> &'static str {
        "draw"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for n in chosen(gpu.small, &SIZES, |n| *n) {
            for law in LAWS {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let label = format!("{law:?} n={n} {kind:?}");
                    let work = &mut || on_gpu(gpu, law, n, kind).map(|_| ());
                    verdicts.extend(compared(&label, 1.0, work)?);
                    let wanted = on_host(law, n, kind)?.f_to_device(gpu.device())?;
                    let other = on_gpu(gpu, law, n, kind)?.f_ne_tensor(&wanted)?;
                    let n_other = other.f_sum(Kind::Double)?.f_double_value(&[])?;
                    let most = if matches!(law, Law::Uniform { .. }) { 0.0 } else { 1.0 };
                    verdicts.push(within(label, "elements that differ", n_other, most));
                }
            }
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let n = 58 * 1024 * 4096;
        let work = &mut || on_gpu(gpu, LAWS[0], n, Kind::Float).map(|_| ());
        Ok(vec![Measured {
            name: "draw, normal".to_owned(),
            shape: format!("{n} f32"),
            spread: time(gpu, 5, work)?,
            flops: 0.0,
            bytes: 4.0 * n as f64,
            peers: &[],
        }])
    }
}
