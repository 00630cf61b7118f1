//! What a step of a stage takes, as the compiler counts it: memory by class, and the operations of
//! its model.
//!
//! Generated code holds the counts as polynomials in the lanes of a micro-batch and the tokens of a
//! sequence, so that a program can say what a configuration takes before it allocates anything.

use crate::config::Config;
use crate::stage::{Precision, Stage};
use crate::{Kind, cuda, error::Result, reversible};

/// `factor micro_batch^batch sequence^sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Coefficient.
    pub factor: i64,
    /// Power of the lanes of a micro-batch.
    pub batch: u32,
    /// Power of the tokens of a sequence.
    pub sequence: u32,
}

/// A sum of terms.
pub type Polynomial = &'static [Term];

/// The counts of a stage.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Bytes per class, in the order of a ledger. Of several polynomials the largest counts: they
    /// are the moments of a step that can hold most.
    pub bytes: &'static [(&'static str, &'static [Polynomial])],
    /// The same for a run that stores the states of reversible stacks; of a stage without such stacks
    /// nothing.
    pub stored_bytes: &'static [(&'static str, &'static [Polynomial])],
    /// Floating-point operations of the contractions of one forward pass over a micro-batch.
    pub forward_flops: Polynomial,
}

pub use lightc_numerics::memory::RESERVE_BYTES;

/// The value of a polynomial; where it is negative, 0.
pub fn value(polynomial: &[Term], micro_batch: usize, sequence: usize) -> f64 {
    let term = |term: &Term| {
        let powers = libm::pow(micro_batch as f64, f64::from(term.batch))
            * libm::pow(sequence as f64, f64::from(term.sequence));
        term.factor as f64 * powers
    };
    polynomial.iter().map(term).sum::<f64>().max(0.0)
}

/// Bytes by class, for one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Class and bytes.
    pub rows: Vec<(&'static str, u64)>,
}

impl Ledger {
    /// The ledger of a stage under a configuration, with its reversible stacks run in one of their ways; nothing
    /// for code that has no counts.
    pub fn of(stage: &dyn Stage, config: &Config, ways: &reversible::Options) -> Option<Ledger> {
        let footprint = stage.footprint()?;
        let bytes = match (ways.store_everything, footprint.stored_bytes) {
            (false, _) | (true, []) => footprint.bytes,
            (true, stored) => stored,
        };
        let (lanes, sequence) = (config.data.micro_batch(), config.data.sequence_length);
        let mut rows: Vec<(&'static str, u64)> = Vec::new();
        for (class, candidates) in bytes {
            let bytes = candidates.iter().map(|p| value(p, lanes, sequence)).fold(0.0, f64::max);
            rows.push((*class, bytes as u64));
        }
        if config.data.n_micro_batches() > 1 {
            rows.push(("accumulated gradients", accumulated_bytes(stage)));
        }
        rows.push(("reserve", RESERVE_BYTES));
        Some(Ledger { rows })
    }

    /// All classes.
    pub fn total(&self) -> u64 {
        self.rows.iter().map(|(_, bytes)| bytes).sum()
    }

    /// A line per class that holds something, and one for the sum.
    pub fn text(&self) -> String {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let mut text = String::new();
        for (class, bytes) in self.rows.iter().filter(|(_, bytes)| *bytes > 0) {
            text += &format!("  {class:<22} {:>8.3} GB\n", gigabytes(*bytes));
        }
        text + &format!("  {:<22} {:>8.3} GB", "total", gigabytes(self.total()))
    }
}

/// Bytes of the f32 sums of gradients over micro-batches.
fn accumulated_bytes(stage: &dyn Stage) -> u64 {
    let width = Precision::F32.kind(Kind::BFloat16).elt_size_in_bytes() as u64;
    let learning = stage.params().iter().filter(|spec| spec.storage.learns());
    let elements = learning.map(|spec| spec.shape.iter().product::<i64>().max(0) as u64);
    width * elements.sum::<u64>()
}

/// Model floating-point operations of a step: three times those of the forward's contractions, since
/// the backward of a product is two of the same size. What is computed again does not count.
pub fn step_flops(stage: &dyn Stage, config: &Config) -> Option<f64> {
    let footprint = stage.footprint()?;
    let (lanes, sequence) = (config.data.micro_batch(), config.data.sequence_length);
    let forward = value(footprint.forward_flops, lanes, sequence);
    Some(3.0 * forward * config.data.n_micro_batches() as f64)
}

/// The dense bf16 rate of GPUs that are known by name, in operations per second. The figures are the
/// vendor's, at the highest clock of the SXM board.
pub fn peak_flops(name: &str) -> Option<f64> {
    let known = [("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H200", 989e12)];
    let known = known.into_iter().find(|(part, _)| name.contains(part));
    known.map(|(_, flops)| flops)
}

/// Bytes of a GPU that are not free.
///
/// # Errors
/// The driver's.
pub fn used_bytes(gpu: usize) -> Result<u64> {
    let (free, total) = cuda::memory(gpu)?;
    Ok(total.saturating_sub(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials() {
        let term = |factor, batch, sequence| Term { factor, batch, sequence };
        let p = [term(3, 0, 0), term(2, 1, 1), term(-1, 1, 0)];
        assert_eq!(value(&p, 4, 10), 3.0 + 80.0 - 4.0);
        assert_eq!(value(&[term(-5, 0, 0)], 1, 1), 0.0);
        assert_eq!(value(&[term(2, 1, 2)], 1, 8192), 2.0 * 8192.0 * 8192.0);
    }

    #[test]
    fn rates_of_known_boards() {
        assert_eq!(peak_flops("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak_flops("NVIDIA H200"), Some(989e12));
        assert_eq!(peak_flops("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak_flops("NVIDIA A100-SXM4-80GB"), None);
    }
}
