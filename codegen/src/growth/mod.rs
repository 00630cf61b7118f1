//! Growth: maps from the parameters, states and moments of one stage to those of another, and what
//! they do to the function.

mod apply;
mod codes;
mod decide;
pub mod eval;
mod expr;
mod measure;
mod numbers;
mod part;
mod pattern;
mod prove;
mod resolve;
mod rule;
mod settings;
mod tree;
mod trial;

pub use decide::{Counterexample, Decision, Verdict, decide};
pub use measure::{Change, Measured, Routing, Shares};
pub use part::Parted;
pub use prove::{Verdict as Proof, proof_rules, prove};
pub use rule::{Factor, Rule, RuleKind};

use crate::ir::Type;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::resolve::{FormalValues, MapDef, Program, Sizes};
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
    /// At which sizes both are.
    pub sizes: Sizes,
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
    /// Inputs of the target that are not the source's of the same name.
    pub inputs: Vec<Port>,
    /// Outputs of the target that are not the source's of the same name.
    pub outputs: Vec<Port>,
}

/// How an input or output of the target follows from those of the source: the sources of the rule
/// are ports. A single unnamed output is `result`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    /// Name of the target's port.
    pub name: String,
    /// Its value.
    pub rule: Rule,
}

/// A map between stages at their own sizes: what the executor runs.
///
/// # Errors
/// All that is wrong with the map, or with one of its stages.
pub fn bound(program: &Program, name: &str) -> Result<GrowthMap, Vec<Diag>> {
    at(program, name, Sizes::Bound)
}

/// A map at the stated sizes: those of the stages, of their probes, or symbolic ones.
///
/// # Errors
/// As [`bound`].
pub fn at(program: &Program, name: &str, sizes: Sizes) -> Result<GrowthMap, Vec<Diag>> {
    let def = program.map(name).ok_or_else(|| vec![unknown_map(program, name)])?;
    Ok(resolve::resolve(program, def, sizes, &FormalValues::new())?.map)
}

/// A map between blocks at stated sizes of its formals.
///
/// # Errors
/// As [`bound`].
pub fn with_formals(
    program: &Program,
    def: &MapDef,
    values: &FormalValues,
) -> Result<GrowthMap, Vec<Diag>> {
    Ok(resolve::resolve(program, def, Sizes::Bound, values)?.map)
}

fn unknown_map(program: &Program, name: &str) -> Diag {
    let place = lightc_dsl::source::Span { source: program.root(), start: 0, end: 0 };
    let message = format!("there is no growth map `{name}`");
    let diag = Diag::error(codes::UNKNOWN_MAP, message, place, "in this file or its imports");
    let names = program.maps().iter().map(|map| map.ast.name.name.as_str());
    match lightc_dsl::names::closest(name, names.clone()) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => {
            let names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
            diag.with_help(match names.is_empty() {
                true => "the file defines no map: write `grow name: stage -> stage { ... }`".into(),
                false => format!("maps: {}", names.join(", ")),
            })
        }
    }
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
