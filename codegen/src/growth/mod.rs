//! Growth: maps from the parameters, states and moments of one stage to those of another, and what
//! they do to the function.

mod prove;
mod rule;

pub use prove::{Verdict, proof_rules, prove};
pub use rule::{Factor, Rule, RuleKind};

use crate::ir::Type;
use lightc_dsl::model::StageModel;
use lightc_dsl::source::Span;
use serde::Serialize;

/// A map that is total: every parameter and state of the target has exactly one rule, and every
/// tensor of the source is used or dropped by name.
#[derive(Clone, Debug)]
pub struct GrowthMap {
    /// Its name.
    pub name: String,
    /// `///` text.
    pub doc: Option<String>,
    /// Where its name stands.
    pub span: Span,
    /// The stage that is grown.
    pub source: StageModel,
    /// The stage that comes out.
    pub target: StageModel,
    /// What the author says that it does to the function.
    pub claim: Claim,
    /// Seed of all draws.
    pub seed: u64,
    /// One per parameter of the target, in its canonical order.
    pub params: Vec<TargetRule>,
    /// One per state of the target.
    pub states: Vec<TargetRule>,
    /// Source tensors that go nowhere: path and reason.
    pub drops: Vec<(String, String)>,
    /// Settings that differ between the stages, each acknowledged: what, from, to, reason.
    pub settings: Vec<SettingChange>,
}

/// What a map is said to do to the function.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "claim")]
pub enum Claim {
    /// For every input, all weights and all sizes, the target computes what the source computes.
    Exactly,
    /// On probes, outputs differ by at most this, relative to the largest.
    Within {
        /// The bound.
        bound: f64,
    },
    /// The function changes, for this reason.
    Changes {
        /// The author's.
        reason: String,
    },
}

/// What becomes of the optimizer's moments of one target parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "moments")]
pub enum Moments {
    /// They start at 0, for this reason.
    Reset {
        /// The author's.
        reason: String,
    },
    /// The rule is applied to the source's moments; the second moment takes squared factors, and
    /// what is filled or drawn has moments 0.
    Follow,
}

/// The rule of one target tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetRule {
    /// Path in the target stage.
    pub path: String,
    /// Its type there.
    pub ty: Type,
    /// Where its values come from; same axes as `ty`.
    pub rule: Rule,
    /// What becomes of its moments.
    pub moments: Moments,
}

/// A setting that differs between source and target, and that the map acknowledges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingChange {
    /// Such as `rope_base`, or `layers.integrator`.
    pub name: String,
    /// In the source stage.
    pub from: String,
    /// In the target stage.
    pub to: String,
    /// The author's reason.
    pub reason: String,
}
