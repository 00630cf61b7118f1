//! The prover: decides `preserves exactly` by equality saturation.
//!
//! Both stages are read as terms over named axes ([`term`]); the target's parameters are replaced
//! by their rules. The claim holds if every output of the target is equal to that of the source,
//! for every input, all weights and all sizes that are left open. Terms are put into an e-graph
//! ([`graph`]), where rules ([`rules`]) add what they are equal to until the two outputs meet, or
//! nothing new comes. A proof that is found is taken from the e-graph and every step of it is
//! checked again. Functions are proved pair by pair ([`relate`]).
//!
//! What is proved is what the interpreter means, over the real numbers: inputs and weights are
//! finite, sizes are 1 or more, and rounding is not looked at. *Unknown* means only that no proof
//! was found; why, and where, is said.

mod facts;
mod graph;
mod read;
mod relate;
mod rules;
mod scale;
mod term;

use super::{GrowthMap, Port, Rule};
use crate::ir::{Function, Module};
use serde::Serialize;
use std::collections::BTreeMap;

/// What the prover says of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// The target computes what the source computes.
    Proved {
        /// The rules of the proof, and how often each is used.
        rules: Vec<(String, usize)>,
    },
    /// No proof was found.
    Unknown {
        /// Why.
        why: String,
        /// Path in the target, and the block there.
        place: String,
    },
}

/// Where a proof got stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    place: String,
    why: String,
}

impl Gap {
    fn new(path: &str, function: &Function, why: String) -> Gap {
        let place = match path.is_empty() {
            true => format!("`{}`", function.name),
            false => format!("`{path}` (`{}`)", function.name),
        };
        Gap { place, why }
    }
}

/// The rules of a map by target path.
struct Maps<'a> {
    rules: BTreeMap<&'a str, &'a Rule>,
    inputs: &'a [Port],
    outputs: &'a [Port],
}

impl<'a> Maps<'a> {
    fn new(map: &'a GrowthMap) -> Self {
        let all = map.params.iter().chain(&map.states);
        let rules = all.map(|rule| (rule.path.as_str(), &rule.rule)).collect();
        Maps { rules, inputs: &map.inputs, outputs: &map.outputs }
    }

    /// What the map says of an input.
    fn input(&self, name: &str) -> Option<&'a Rule> {
        self.inputs.iter().find(|port| port.name == name).map(|port| &port.rule)
    }

    /// What the map says of an output.
    fn output(&self, name: &str) -> Option<&'a Rule> {
        self.outputs.iter().find(|port| port.name == name).map(|port| &port.rule)
    }

    fn rule(&self, path: &str) -> Option<&'a Rule> {
        self.rules.get(path).copied()
    }

    /// The rules of tensors below a path.
    fn below<'s>(&'s self, base: &'s str) -> impl Iterator<Item = (&'a str, &'a Rule)> + 's {
        let inside = move |path: &str| {
            base.is_empty() || path.strip_prefix(base).is_some_and(|rest| rest.starts_with('.'))
        };
        self.rules.iter().map(|(path, rule)| (*path, *rule)).filter(move |(path, _)| inside(path))
    }
}

/// Decides whether the grown target computes what the source computes. The modules are those of
/// the map's stages, lowered; sizes that they leave open are symbols of the proof.
///
/// The same arguments give the same verdict: limits count terms, not time.
pub fn prove(map: &GrowthMap, source: &Module, target: &Module) -> Verdict {
    let maps = Maps::new(map);
    let mut prover = relate::Prover::new(source, target, &maps);
    match prover.root() {
        Ok(()) => {
            let rules = prover.used.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
            Verdict::Proved { rules }
        }
        Err(Gap { place, why }) => Verdict::Unknown { why, place },
    }
}

/// The rules that proofs are made of: name, and why each holds.
pub fn proof_rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    rules::RULES.iter().map(|rule| (rule.name, rule.why))
}

#[cfg(test)]
mod tests;
