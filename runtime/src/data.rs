//! Which tokens a step reads: a pure function of the step.
//!
//! A *sequence* is `u` consecutive tokens; the next one starts `t = u - 2`
//! tokens later. Its next-token targets are tokens `1 ..= t`, so over
//! consecutive sequences every token of the stream but the first is a
//! next-token target exactly once. A *run* is `run_length` consecutive
//! sequences; the stream has `n_runs` whole ones.
//!
//! A batch has `batch` *lanes*. At step `s`, with `q = s / run_length`, lane `b`
//! reads sequence `s mod run_length` of the run at ordinal `o = q batch + b`:
//! epoch `o / n_runs`, place `o mod n_runs` in that epoch's permutation. Within
//! a run the lane goes on from its last sequence (`continues = 1`); at its start
//! the lane jumps (`continues = 0`).
//!
//! The permutation is a Feistel cipher on `[0, n_runs)` keyed by seed and epoch
//! (cycle walking brings values of the enclosing power of four back into
//! range): a full shuffle in no memory. There is no reader state, so resuming
//! needs the step and nothing else.

use crate::config::DataConfig;
use crate::error::{DataError, Result};
use crate::shards::Split;
use crate::trainer::Batch;
use crate::{Kind, Tensor};

/// Tokens of a sequence that are read only as targets.
const N_AHEAD: usize = 2;
const N_ROUNDS: usize = 6;
const CONTEXT: &str = "lightc 2026 permutation of runs";

/// Where one lane reads at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePlace {
    /// Pass over the split, from 0.
    pub epoch: u64,
    /// Sequence of the split.
    pub sequence: u64,
    /// Whether it goes on from the lane's sequence of the step before.
    pub continues: bool,
}

/// The index function of a training run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    seed: u64,
    n_lanes: u64,
    run_length: u64,
    n_runs: u64,
    sequence_length: usize,
}

impl Plan {
    /// The plan over a split. A split with no whole run is an error.
    pub fn new(split: &Split, config: &DataConfig, seed: u64) -> Result<Self> {
        let n_sequences = n_sequences(split.n_tokens(), config.sequence_length);
        if n_sequences < config.run_length {
            return Err(too_few(split, config.sequence_length, config.run_length).into());
        }
        Ok(Plan {
            seed,
            n_lanes: config.batch as u64,
            run_length: config.run_length as u64,
            n_runs: (n_sequences / config.run_length) as u64,
            sequence_length: config.sequence_length,
        })
    }

    /// Where a lane reads at a step.
    pub fn place(&self, step: u64, lane: u64) -> LanePlace {
        let in_run = step % self.run_length;
        let ordinal = step / self.run_length * self.n_lanes + lane;
        let epoch = ordinal / self.n_runs;
        let run = permute(self.seed, epoch, self.n_runs, ordinal % self.n_runs);
        LanePlace { epoch, sequence: run * self.run_length + in_run, continues: in_run > 0 }
    }

    /// The batch of a step.
    pub fn batch(&self, split: &Split, step: u64, act: Kind) -> Result<Batch> {
        let places = (0..self.n_lanes).map(|lane| {
            let place = self.place(step, lane);
            (place.sequence as usize, place.continues)
        });
        gather(split, self.sequence_length, places, act)
    }
}

/// The batches of an evaluation, each of one micro-batch: the split's sequences in order, cut into
/// one contiguous stretch per lane, so that every lane but the first sequence goes
/// on from the text before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluationPlan {
    n_lanes: usize,
    /// Number of batches.
    pub n_batches: usize,
    sequence_length: usize,
}

impl EvaluationPlan {
    /// The plan over a split, with at most `max_sequences` sequences (0: all).
    /// Sequences that fill no whole batch are left out.
    pub fn new(split: &Split, config: &DataConfig, max_sequences: usize) -> Result<Self> {
        let mut n_sequences = n_sequences(split.n_tokens(), config.sequence_length);
        if n_sequences == 0 {
            return Err(too_few(split, config.sequence_length, 1).into());
        }
        if max_sequences > 0 {
            n_sequences = n_sequences.min(max_sequences);
        }
        let n_lanes = config.micro_batch().min(n_sequences);
        let n_batches = n_sequences / n_lanes;
        Ok(EvaluationPlan { n_lanes, n_batches, sequence_length: config.sequence_length })
    }

    /// Number of lanes.
    pub fn n_lanes(&self) -> usize {
        self.n_lanes
    }

    /// Next-token targets in all batches together.
    pub fn n_targets(&self) -> usize {
        self.n_lanes * self.n_batches * (self.sequence_length - N_AHEAD)
    }

    /// One batch.
    pub fn batch(&self, split: &Split, index: usize, act: Kind) -> Result<Batch> {
        let places = (0..self.n_lanes).map(|lane| (lane * self.n_batches + index, index > 0));
        gather(split, self.sequence_length, places, act)
    }
}

fn n_sequences(n_tokens: usize, sequence_length: usize) -> usize {
    n_tokens.saturating_sub(N_AHEAD) / (sequence_length - N_AHEAD)
}

fn too_few(split: &Split, sequence_length: usize, needed: usize) -> DataError {
    let n_tokens = split.n_tokens();
    let found = n_sequences(n_tokens, sequence_length);
    DataError::TooFewTokens { split: split.name(), n_tokens, sequence_length, found, needed }
}

fn gather(
    split: &Split,
    sequence_length: usize,
    places: impl Iterator<Item = (usize, bool)>,
    act: Kind,
) -> Result<Batch> {
    let mut tokens = Vec::new();
    let mut continues = Vec::new();
    for (sequence, goes_on) in places {
        let begin = sequence * (sequence_length - N_AHEAD);
        tokens.extend(split.read(begin..begin + sequence_length));
        continues.push(f64::from(u8::from(goes_on)));
    }
    let shape = [continues.len() as i64, sequence_length as i64];
    Ok(Batch {
        tokens: Tensor::f_from_slice(&tokens)?.f_reshape(shape)?,
        continues: Tensor::f_from_slice(&continues)?.f_to_kind(act)?,
        n_targets: continues.len() * (sequence_length - N_AHEAD),
    })
}

/// The image of `index` under the permutation of `[0, n)` keyed by seed and
/// epoch.
pub fn permute(seed: u64, epoch: u64, n: u64, index: u64) -> u64 {
    if n < 2 {
        return index;
    }
    let keys = round_keys(seed, epoch);
    let half_bits = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2);
    let mut value = feistel(&keys, half_bits, index);
    while value >= n {
        value = feistel(&keys, half_bits, value);
    }
    value
}

fn round_keys(seed: u64, epoch: u64) -> [u64; N_ROUNDS] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&seed.to_le_bytes());
    hasher.update(&epoch.to_le_bytes());
    let mut bytes = [0; 8 * N_ROUNDS];
    hasher.finalize_xof().fill(&mut bytes);
    let mut keys = [0; N_ROUNDS];
    for (key, raw) in keys.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *key = u64::from_le_bytes(*raw);
    }
    keys
}

/// A permutation of `[0, 4^half_bits)`.
fn feistel(keys: &[u64; N_ROUNDS], half_bits: u32, value: u64) -> u64 {
    let mask = (1 << half_bits) - 1;
    let (mut left, mut right) = (value >> half_bits, value & mask);
    for key in keys {
        (left, right) = (right, left ^ (mix(right ^ key) & mask));
    }
    left << half_bits | right
}

/// The finisher of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::TestCorpus;

    fn plan(n_lanes: u64, run_length: u64, n_runs: u64) -> Plan {
        Plan { seed: 5, n_lanes, run_length, n_runs, sequence_length: 18 }
    }

    proptest! {
        #[test]
        fn permutations_are_permutations(seed: u64, epoch in 0u64..9, n in 1u64..300) {
            let image: BTreeSet<u64> = (0..n).map(|i| permute(seed, epoch, n, i)).collect();
            prop_assert_eq!(image.len() as u64, n);
            prop_assert!(image.iter().all(|value| *value < n));
        }
    }

    #[test]
    fn epochs_and_seeds_give_different_orders() {
        let order = |seed, epoch| (0..50).map(|i| permute(seed, epoch, 50, i)).collect::<Vec<_>>();
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_reads_every_sequence_of_every_run_once() {
        // 3 lanes, runs of 4, 10 runs: three epochs take 10 slots of 3 runs.
        let plan = plan(3, 4, 10);
        let mut per_epoch = vec![Vec::new(); 3];
        for step in 0..40 {
            for lane in 0..3 {
                let place = plan.place(step, lane);
                per_epoch[place.epoch as usize].push(place.sequence);
            }
        }
        for mut sequences in per_epoch {
            sequences.sort_unstable();
            assert_eq!(sequences, (0..40).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_lane_goes_on_where_it_says_so() {
        let plan = plan(2, 3, 7);
        for lane in 0..2 {
            for step in 1..60 {
                let (before, now) = (plan.place(step - 1, lane), plan.place(step, lane));
                assert_eq!(now.continues, step % 3 != 0);
                if now.continues {
                    assert_eq!(now.sequence, before.sequence + 1);
                }
            }
        }
    }

    #[test]
    fn batches_hold_the_text_and_every_token_is_a_target_once() {
        let corpus = TestCorpus::new().open();
        let config = TestCorpus::config().data;
        let plan = Plan::new(&corpus.train, &config, 1).expect("fits");
        let t = config.sequence_length - 2;
        let mut targets = vec![0; corpus.train.n_tokens()];
        let n_steps = plan.n_runs.div_ceil(plan.n_lanes) * plan.run_length;
        for step in 0..n_steps {
            let batch = plan.batch(&corpus.train, step, Kind::Float).expect("reads");
            assert_eq!(batch.tokens.size(), [config.batch as i64, config.sequence_length as i64]);
            for lane in 0..plan.n_lanes {
                let place = plan.place(step, lane);
                if place.epoch > 0 {
                    continue;
                }
                let begin = place.sequence as usize * t;
                let row = Vec::<i64>::try_from(batch.tokens.get(lane as i64)).expect("is a row");
                assert_eq!(row, corpus.train.read(begin..begin + config.sequence_length));
                targets[begin + 1..=begin + t].iter_mut().for_each(|count| *count += 1);
            }
        }
        let covered = (plan.n_runs * plan.run_length) as usize * t;
        assert!(targets[1..=covered].iter().all(|count| *count == 1));
        assert!(targets[covered + 1..].len() <= plan.run_length as usize * t + 1);
    }

    #[test]
    fn evaluation_reads_lanes_of_contiguous_text() {
        let corpus = TestCorpus::new().open();
        let config = TestCorpus::config().data;
        let plan = EvaluationPlan::new(&corpus.held_out, &config, 0).expect("fits");
        let t = config.sequence_length - 2;
        for index in 0..plan.n_batches {
            let batch = plan.batch(&corpus.held_out, index, Kind::Float).expect("reads");
            let expected = if index == 0 { 0.0 } else { 1.0 };
            assert_eq!(batch.continues.double_value(&[0]), expected);
            let begin = (plan.n_batches + index) * t;
            let row = Vec::<i64>::try_from(batch.tokens.get(1)).expect("is a row");
            assert_eq!(row, corpus.held_out.read(begin..begin + config.sequence_length));
        }
        let few = EvaluationPlan::new(&corpus.held_out, &config, 3).expect("fits");
        assert_eq!((few.n_lanes, few.n_batches, few.n_targets()), (3, 1, 3 * t));
    }

    #[test]
    fn a_split_that_is_too_short_is_refused() {
        let corpus = TestCorpus::new().open();
        let mut config = TestCorpus::config().data;
        config.run_length = 1_000_000;
        let error = Plan::new(&corpus.train, &config, 1).expect_err("is refused");
        insta::assert_snapshot!("too_few_tokens", error.rendered());
        config.sequence_length = 1_000_000;
        let error = EvaluationPlan::new(&corpus.held_out, &config, 0).expect_err("is refused");
        assert_eq!(error.code(), "E0916");
    }
}
