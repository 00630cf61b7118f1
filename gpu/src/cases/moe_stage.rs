//! Whole stages of routed experts: every kernel of a real step, and states that are had back with the
//! selections of the forward replayed.

use lightc_runtime::{Result, Stage};

use super::stage::{Data, both_ways, had_back, kernel_rows, on_libtorch, op_rows, same_bits};
use super::{chosen, of_size};
use crate::check::{compared, finished};
use crate::{Case, Gpu, Measured, Verdict, stages};

/// Mixtures: of trained experts, and one rank's share of 8-bit experts with adapters.
pub(super) struct Mixtures;

/// Positions of the reduced stages.
const LENGTHS: [i64; 2] = [190, 63];
/// Positions of a sequence of 4096 tokens, and of one of 8192.
const FULL: i64 = 4094;
const LONG: i64 = 8190;

impl Case for Mixtures {
    fn name(&self) -> &'static str {
        "mixtures"
    }

    fn stages(&self, small: bool) -> Vec<&'static dyn Stage> {
        of_size(
            small,
            &[&stages::narrow_5b::Narrow5b, &stages::narrow_120b::Narrow120b],
            &[&stages::lightning_5b::Lightning5b, &stages::lightning_120b::Lightning120b],
        )
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        let narrow: [&dyn Stage; 2] =
            [&stages::narrow_5b::Narrow5b, &stages::narrow_120b::Narrow120b];
        for stage in narrow {
            // The short one alone where the processor runs the kernels: each takes minutes.
            let lengths = chosen(gpu.small, &LENGTHS, |t| *t);
            for t in lengths.into_iter().filter(|t| !gpu.emulated || *t < 100) {
                let data = Data::new(gpu, stage, t)?;
                let label = format!("{} T={t}", stage.name());
                verdicts.extend(compared(&label, 4.0, &mut || data.step(stage).map(|_| ()))?);
                verdicts.push(had_back(stage, &data, &label)?);
                verdicts.extend(on_libtorch(stage, &data, &label)?);
            }
        }
        if gpu.small {
            return Ok(verdicts);
        }
        // Not LONG: two steps and their states, stored and had back, are in memory together.
        let full: [&dyn Stage; 2] =
            [&stages::lightning_5b::Lightning5b, &stages::lightning_120b::Lightning120b];
        for stage in full {
            let label = format!("{} T={FULL}", stage.name());
            verdicts.extend(finished(&label, || {
                let data = Data::new(gpu, stage, FULL)?;
                let twice = same_bits(&label, stage, &data.step(stage)?, &data.step(stage)?)?;
                Ok(vec![twice, had_back(stage, &data, &label)?])
            }));
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let mut measured = Vec::new();
        let full: [(&dyn Stage, i64); 2] = [
            (&stages::lightning_5b::Lightning5b, FULL),
            (&stages::lightning_120b::Lightning120b, LONG),
        ];
        for (stage, t) in full {
            let data = Data::new(gpu, stage, t)?;
            measured.extend(both_ways(gpu, stage, &data, &format!("T={t}"))?);
            measured.extend(kernel_rows(stage, &data)?);
            measured.extend(op_rows(stage, &data)?);
        }
        Ok(measured)
    }
}
