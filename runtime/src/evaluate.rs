//! Held-out loss, and what it is compared with.

use serde::Serialize;

use crate::config::Config;
use crate::data::EvaluationPlan;
use crate::error::Result;
use crate::shards::Corpus;
use crate::stage::{Inputs, Stage};
use crate::trainer::{TrainState, zero_carries};

/// The value that an evaluation averages.
const NTP: &str = "ntp";

/// The held-out loss of a state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean next-token loss, in nats per token.
    pub ntp: f64,
    /// The same per byte of text, in bits: the split's mean bytes per token
    /// stand for those of the tokens evaluated.
    pub bits_per_byte: f64,
    /// Targets that it is the mean over.
    pub n_targets: usize,
}

/// The mean next-token loss over the held-out split. Carries start at zero and
/// go along each lane; states are read and not changed.
pub fn evaluate(
    stage: &dyn Stage,
    state: &TrainState,
    corpus: &Corpus,
    config: &Config,
) -> Result<Evaluation> {
    let split = &corpus.held_out;
    let plan = EvaluationPlan::new(split, &config.data, config.evaluation.max_sequences)?;
    let mut carries = zero_carries(stage.carries(), plan.n_lanes(), state.act(), state.device())?;
    let mut sum = 0.0;
    for index in 0..plan.n_batches {
        let batch = plan.batch(split, index, state.act())?.to_device(state.device())?;
        let inputs = Inputs { carries: &carries, ..state.inputs_without_carries(&batch) };
        let outputs = stage.forward(&inputs)?;
        let values = state.finite_values(&outputs)?;
        let ntp = values.iter().find(|(name, _)| *name == NTP);
        let (_, ntp) =
            ntp.ok_or_else(|| state.contract(format!("forward gave no value `{NTP}`")))?;
        sum += ntp;
        carries = outputs.carries;
    }
    let ntp = sum / plan.n_batches as f64;
    let bits_per_byte = ntp / std::f64::consts::LN_2 / split.bytes_per_token();
    Ok(Evaluation { ntp, bits_per_byte, n_targets: plan.n_targets() })
}

/// What a model that knows only how often each token occurs would reach, in
/// nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Unigram {
    /// Entropy of the whole corpus' own token frequencies.
    pub corpus_entropy: f64,
    /// Cross entropy of the held-out tokens under the train split's
    /// frequencies, each count raised by one so that no token has none.
    pub held_out: f64,
}

/// Both unigram figures of a corpus.
pub fn unigram(corpus: &Corpus) -> Unigram {
    let vocab = corpus.tokenizer.n_ids();
    let train = corpus.train.histogram(vocab);
    let held_out = corpus.held_out.histogram(vocab);
    let all: Vec<u64> = train.iter().zip(&held_out).map(|(a, b)| a + b).collect();
    let raised: Vec<u64> = train.iter().map(|count| count + 1).collect();
    Unigram {
        corpus_entropy: cross_entropy(&all, &all),
        held_out: cross_entropy(&held_out, &raised),
    }
}

/// Mean of `-ln q` over the tokens counted in `of`, with `q` proportional to
/// `under`.
fn cross_entropy(of: &[u64], under: &[u64]) -> f64 {
    let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (n_of, n_under) = (total(of), total(under));
    let term = |(of, under): (&u64, &u64)| *of as f64 * libm::log(*under as f64 / n_under);
    let terms = of.iter().zip(under).filter(|(of, _)| **of > 0).map(term);
    -terms.sum::<f64>() / n_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropies() {
        let uniform = cross_entropy(&[5, 5, 5, 5], &[1, 1, 1, 1]);
        assert!((uniform - 4f64.ln()).abs() < 1e-12);
        assert_eq!(cross_entropy(&[3, 0], &[1, 0]), 0.0);
        let skewed = cross_entropy(&[1, 1], &[3, 1]);
        assert!((skewed + 0.5 * (0.75f64.ln() + 0.25f64.ln())).abs() < 1e-12);
    }
}
