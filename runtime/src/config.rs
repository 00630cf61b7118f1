//! The training configuration: TOML, every key known, every default written
//! down.
//!
//! [`Config::load`] refuses unknown keys, unknown words and numbers out of
//! range, with line and column. Defaults are those of the fields below; a run
//! writes the configuration with all of them filled in to
//! `config.resolved.toml`, which loads to the same configuration.

mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, Result};
use crate::optimizer::AdamW;
use crate::schedule::{Decay, Schedule, Shape};
use place::Source;

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Optimizer updates of the whole run; the schedule ends there. Required.
    pub steps: u64,
    /// Seed of parameters and data order. Required.
    pub seed: u64,
    /// CPU threads of libtorch. Sums depend on it in the last bits, so it is
    /// part of the run. Default 2.
    #[serde(default = "defaults::threads")]
    pub threads: u32,
    /// Where batches come from.
    pub data: DataConfig,
    /// The update rule.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate.
    pub schedule: ScheduleConfig,
    /// Parameter groups; the first that matches a path decides. Default: one
    /// group `all` with `match = ["**"]`.
    #[serde(default = "defaults::groups")]
    pub groups: Vec<GroupConfig>,
    /// Held-out loss.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// Saving.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is measured.
    #[serde(default)]
    pub metrics: MetricsConfig,
}

/// Table `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder made by `prepare`; relative paths start at the configuration's
    /// folder. Required.
    pub shards: PathBuf,
    /// BLAKE3 of the tokenizer that the shards must have. Default: whichever
    /// they have, which a run then writes down here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Accept a tokenizer with fewer ids than the stage. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unused_ids: bool,
    /// Tokens per sequence, `u`; the model sees `u - 2` positions. Required.
    pub sequence_length: usize,
    /// Sequences per step. Required.
    pub batch: usize,
    /// Sequences that are computed at a time; their gradients are summed. Divides `batch`. Default:
    /// `batch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Consecutive sequences that a lane reads before it jumps. Default 8.
    #[serde(default = "defaults::run_length")]
    pub run_length: usize,
}

impl DataConfig {
    /// Sequences that are computed at a time.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch)
    }

    /// How many times per step.
    pub fn n_micro_batches(&self) -> usize {
        self.batch / self.micro_batch().max(1)
    }
}

/// Table `optimizer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Default `adamw`, the only one.
    pub kind: OptimizerKind,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.95.
    pub beta2: f64,
    /// Default 1e-10.
    pub eps: f64,
    /// Largest global gradient norm. Default 1.0.
    pub clip_norm: f64,
}

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// [`AdamW`].
    Adamw,
}

/// Table `schedule`; see [`crate::schedule`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// `cosine` or `wsd`. Required.
    pub kind: ScheduleKind,
    /// Rate after the warmup. Required.
    pub peak: f64,
    /// Rate at the end. Required.
    pub end: f64,
    /// Default 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Rate at step 0 of the warmup. Default 0.0.
    #[serde(default)]
    pub warmup_from: f64,
    /// Share of the steps after warmup at the peak. Required for `wsd`, refused
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_fraction: Option<f64>,
    /// `cosine` or `linear`. For `wsd` only; default `cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<Decay>,
}

/// The kind of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Warmup and half a cosine.
    Cosine,
    /// Warmup, stable, decay.
    Wsd,
}

/// One entry of `groups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Unique name, used in the metrics. Required.
    pub name: String,
    /// Patterns over parameter paths; see [`crate::optimizer::matches`].
    /// Required.
    #[serde(rename = "match")]
    pub patterns: Vec<String>,
    /// Factor on the schedule. Default 1.0.
    #[serde(default = "defaults::lr_multiplier")]
    pub lr_multiplier: f64,
    /// Decoupled weight decay. Default 0.0.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Table `evaluation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Steps between evaluations; there is always one at the start and one at
    /// the end. Default 100.
    pub interval: u64,
    /// Largest number of held-out sequences; 0 takes all. Default 0.
    pub max_sequences: usize,
}

/// Table `checkpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; there is always one at the end. Default 100.
    pub interval: u64,
    /// Checkpoints kept. Default 3.
    pub keep_last: usize,
}

/// Table `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Steps between those whose parts are timed, for which the program waits for the device after
    /// each part. Default 0: none.
    pub profile_interval: u64,
    /// The rate that MFU is a share of, in 10^12 operations per second. Default: that of the GPU,
    /// where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
}

mod defaults {
    use super::{CheckpointConfig, EvaluationConfig, GroupConfig, OptimizerConfig, OptimizerKind};

    pub(super) fn threads() -> u32 {
        2
    }
    pub(super) fn run_length() -> usize {
        8
    }
    pub(super) fn lr_multiplier() -> f64 {
        1.0
    }
    pub(super) fn groups() -> Vec<GroupConfig> {
        vec![GroupConfig {
            name: "all".to_owned(),
            patterns: vec!["**".to_owned()],
            lr_multiplier: 1.0,
            weight_decay: 0.0,
        }]
    }

    impl Default for OptimizerConfig {
        fn default() -> Self {
            OptimizerConfig {
                kind: OptimizerKind::Adamw,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-10,
                clip_norm: 1.0,
            }
        }
    }
    impl Default for EvaluationConfig {
        fn default() -> Self {
            EvaluationConfig { interval: 100, max_sequences: 0 }
        }
    }
    impl Default for CheckpointConfig {
        fn default() -> Self {
            CheckpointConfig { interval: 100, keep_last: 3 }
        }
    }
}

impl Config {
    /// Reads and checks a configuration file. `data.shards` comes back joined
    /// to the file's folder.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Config::parse(path, &text)?;
        let dir = path.parent().unwrap_or(Path::new(""));
        config.data.shards = dir.join(&config.data.shards);
        Ok(config)
    }

    /// Checks a configuration's text; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> std::result::Result<Self, ConfigError> {
        let source = Source::new(path, text);
        let mut config: Config = source.deserialize()?;
        check(&config, &source)?;
        if config.schedule.kind == ScheduleKind::Wsd {
            config.schedule.decay.get_or_insert(Decay::Cosine);
        }
        let _ = config.data.micro_batch.get_or_insert(config.data.batch);
        Ok(config)
    }

    /// The configuration with every default filled in, as TOML.
    pub fn resolved(&self) -> String {
        // The types have no map with keys that TOML lacks, so this cannot fail.
        let body = toml::to_string(self).unwrap_or_default();
        format!("# Written by the run: the configuration with every default filled in.\n{body}")
    }

    /// The update rule.
    pub fn adamw(&self) -> AdamW {
        let OptimizerConfig { kind: OptimizerKind::Adamw, beta1, beta2, eps, clip_norm } =
            self.optimizer;
        AdamW { beta1, beta2, eps, clip_norm }
    }

    /// The learning rate.
    pub fn schedule(&self) -> Schedule {
        let ScheduleConfig { kind, peak, end, warmup_steps, warmup_from, stable_fraction, decay } =
            self.schedule;
        let shape = match kind {
            ScheduleKind::Cosine => Shape::Cosine,
            ScheduleKind::Wsd => Shape::Wsd {
                stable_fraction: stable_fraction.unwrap_or(1.0),
                decay: decay.unwrap_or(Decay::Cosine),
            },
        };
        Schedule {
            shape,
            n_steps: self.steps,
            n_warmup_steps: warmup_steps,
            warmup_from,
            peak,
            end,
        }
    }

    /// Every setting that changes what the run computes, by dotted key. The
    /// shards are not among them (their digests are checked), nor are intervals
    /// of evaluation and saving, what is measured, and a micro-batch that is the batch.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut shaping = self.clone();
        shaping.data.shards = PathBuf::new();
        shaping.data.tokenizer = None;
        shaping.evaluation = EvaluationConfig::default();
        shaping.checkpoint = CheckpointConfig::default();
        shaping.metrics = MetricsConfig::default();
        shaping.data.micro_batch = self.data.micro_batch.filter(|n| *n != self.data.batch);
        let mut settings = BTreeMap::new();
        if let Ok(value) = toml::Value::try_from(&shaping) {
            flatten("", &value, &mut settings);
        }
        settings.retain(|key, _| {
            key != "data.shards"
                && !key.starts_with("evaluation.")
                && !key.starts_with("checkpoint.")
                && !key.starts_with("metrics.")
        });
        settings
    }
}

fn flatten(prefix: &str, value: &toml::Value, settings: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&join(prefix, key), value, settings);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&join(prefix, &index.to_string()), value, settings);
            }
        }
        other => {
            settings.insert(prefix.to_owned(), other.to_string());
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The rules that types do not say.
fn check(config: &Config, source: &Source<'_>) -> std::result::Result<(), ConfigError> {
    let positive = "at least 1";
    let data = &config.data;
    source.require("steps", config.steps, config.steps >= 1, positive)?;
    let threads = (1..=1024).contains(&config.threads);
    source.require("threads", config.threads, threads, "between 1 and 1024")?;
    let length = data.sequence_length;
    source.require("data.sequence_length", length, length >= 3, "at least 3")?;
    source.require("data.batch", data.batch, data.batch >= 1, positive)?;
    let micro = data.micro_batch();
    let wanted = format!("a divisor of `data.batch`, which is {}", data.batch);
    let good = micro >= 1 && data.batch.is_multiple_of(micro);
    source.require("data.micro_batch", micro, good, &wanted)?;
    source.require("data.run_length", data.run_length, data.run_length >= 1, positive)?;
    let interval = config.evaluation.interval;
    source.require("evaluation.interval", interval, interval >= 1, positive)?;
    let CheckpointConfig { interval, keep_last } = config.checkpoint;
    source.require("checkpoint.interval", interval, interval >= 1, positive)?;
    source.require("checkpoint.keep_last", keep_last, keep_last >= 1, positive)?;
    if let Some(peak) = config.metrics.peak_tflops {
        let good = peak > 0.0 && peak.is_finite();
        source.require("metrics.peak_tflops", peak, good, "finite and above 0")?;
    }
    check_optimizer(&config.optimizer, source)?;
    check_schedule(config, source)?;
    check_groups(&config.groups, source)
}

fn check_optimizer(
    optimizer: &OptimizerConfig,
    source: &Source<'_>,
) -> std::result::Result<(), ConfigError> {
    let OptimizerConfig { kind: _, beta1, beta2, eps, clip_norm } = *optimizer;
    for (key, beta) in [("optimizer.beta1", beta1), ("optimizer.beta2", beta2)] {
        let good = (0.0..1.0).contains(&beta);
        source.require(key, beta, good, "at least 0 and below 1")?;
    }
    let above = |value: f64| value > 0.0 && value.is_finite();
    source.require("optimizer.eps", eps, above(eps), "finite and above 0")?;
    source.require("optimizer.clip_norm", clip_norm, above(clip_norm), "finite and above 0")
}

fn check_schedule(config: &Config, source: &Source<'_>) -> std::result::Result<(), ConfigError> {
    let schedule = &config.schedule;
    let rates = [
        ("schedule.peak", schedule.peak),
        ("schedule.end", schedule.end),
        ("schedule.warmup_from", schedule.warmup_from),
    ];
    for (key, rate) in rates {
        let good = rate >= 0.0 && rate.is_finite();
        source.require(key, rate, good, "finite and at least 0")?;
    }
    let warmup = schedule.warmup_steps;
    let wanted = format!("at most `steps`, which is {}", config.steps);
    source.require("schedule.warmup_steps", warmup, warmup <= config.steps, &wanted)?;
    match (schedule.kind, schedule.stable_fraction) {
        (ScheduleKind::Cosine, None) if schedule.decay.is_none() => Ok(()),
        (ScheduleKind::Cosine, stable) => {
            let key = if stable.is_some() { "stable_fraction" } else { "decay" };
            Err(source.not_for_kind(&format!("schedule.{key}"), "cosine"))
        }
        (ScheduleKind::Wsd, None) => Err(source.missing("schedule", "stable_fraction")),
        (ScheduleKind::Wsd, Some(share)) => {
            let good = (0.0..=1.0).contains(&share);
            source.require("schedule.stable_fraction", share, good, "between 0 and 1")
        }
    }
}

fn check_groups(
    groups: &[GroupConfig],
    source: &Source<'_>,
) -> std::result::Result<(), ConfigError> {
    source.require("groups", groups.len(), !groups.is_empty(), "a list of at least one group")?;
    for (index, group) in groups.iter().enumerate() {
        let key = |name: &str| format!("groups.{index}.{name}");
        let (multiplier, decay) = (group.lr_multiplier, group.weight_decay);
        let good = |value: f64| value >= 0.0 && value.is_finite();
        let wanted = "finite and at least 0";
        source.require(&key("lr_multiplier"), multiplier, good(multiplier), wanted)?;
        source.require(&key("weight_decay"), decay, good(decay), wanted)?;
        let n_patterns = group.patterns.len();
        source.require(&key("match"), n_patterns, n_patterns > 0, "a list of patterns")?;
        if groups.iter().take(index).any(|earlier| earlier.name == group.name) {
            let place = source.place_of(&key("name"));
            return Err(ConfigError::DoubledGroup { place, name: group.name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
