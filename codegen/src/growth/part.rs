//! Where the runs of a source and its target part: the first block that returns something else
//! although it is given the same.
//!
//! A block whose input differs already is not the place, however far its result is off. So each
//! block of the target is run again on what the source's block was given. The states of a midpoint
//! rule are rounded: what a stack returns under another integrator is compared above that.

use super::decide::{EQUAL, difference, worst_pair};
use super::measure::function_at;
use super::tree::Side;
use super::trial::{Compared, Trial, same_place};
use crate::interp::{self, Visit};
use crate::ir::paths::join;
use crate::ops::{Array, EvalError};
use lightc_dsl::model::{Integrator, SubKind};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// How far the layers of a stack carry the rounding of its states, in units of their last bit.
const CARRIED: f64 = 1024.0;

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parted {
    /// Path of the block or stack, the same in both stages; empty for the root.
    pub path: String,
    /// The block in the source, or how the stack joins its layers there.
    pub source_block: String,
    /// The same in the target.
    pub target_block: String,
    /// A value that it returns in the source.
    pub source: f64,
    /// And in the target.
    pub target: f64,
    /// The largest difference over the largest value.
    pub difference: f64,
}

/// The first place, in the order in which calls and stacks ended, that makes a difference. `worst`
/// is the output of the root that differs.
pub(super) fn parted(
    source: &Side,
    target: &Side,
    trial: &Trial,
    worst: &Compared,
) -> Result<Parted, EvalError> {
    let search = Search { source, target, trial, stacks: differing_stacks(source, target) };
    // A difference as small as rounding counts where there is no larger one.
    for rounding in [search.rounding(), EQUAL] {
        if let Some(found) = search.first(rounding)? {
            return Ok(found);
        }
    }
    Ok(found("", search.blocks(""), worst))
}

/// How a stack joins its layers in the source and in the target.
type Joined = (Integrator, Integrator);

struct Search<'a> {
    source: &'a Side,
    target: &'a Side,
    trial: &'a Trial,
    /// Stacks that are not the same in both, by path.
    stacks: BTreeMap<String, Joined>,
}

impl Search<'_> {
    /// Difference below which values of other integrators may only be rounded otherwise.
    fn rounding(&self) -> f64 {
        let bits = self.stacks.values().flat_map(|(a, b)| [a, b]).filter_map(|how| match how {
            Integrator::Plain => None,
            Integrator::Midpoint(midpoint) => Some(midpoint.fraction_bits),
        });
        bits.min().map_or(EQUAL, |bits| CARRIED * f64::from(bits).exp2().recip())
    }

    fn first(&self, rounding: f64) -> Result<Option<Parted>, EvalError> {
        let (from, to) = (&self.source.module, &self.target.module);
        // A block that is called again has its calls in order.
        let mut calls: BTreeMap<String, VecDeque<Visit<'_>>> = BTreeMap::new();
        for visit in interp::visits_and_stacks(from, &self.trial.source.trace) {
            calls.entry(visit.path.clone()).or_default().push_back(visit);
        }
        for visit in interp::visits_and_stacks(to, &self.trial.target.trace) {
            let other = calls.get_mut(&visit.path).and_then(VecDeque::pop_front);
            let Some(other) = other.filter(|_| !visit.path.is_empty()) else { continue };
            let parts = match visit.stack {
                Some(_) => self.stack_parts(&other, &visit, rounding)?,
                None => self.call_parts(&other, &visit, rounding)?,
            };
            if let Some(compared) = parts {
                let names = match visit.stack {
                    Some(_) => self.joined(&visit.path),
                    None => self.blocks(&visit.path),
                };
                return Ok(Some(found(&visit.path, names, &compared)));
            }
        }
        Ok(None)
    }

    /// A stack makes a difference of its own only if it has other layers or joins them otherwise.
    fn stack_parts(
        &self,
        from: &Visit<'_>,
        to: &Visit<'_>,
        rounding: f64,
    ) -> Result<Option<Compared>, EvalError> {
        let outer = to.path.rsplit_once('.').map_or("", |(outer, _)| outer);
        if !self.stacks.contains_key(&to.path) || !same_place(self.source, self.target, outer) {
            return Ok(None);
        }
        let from = from.outputs(&self.source.module)?;
        Ok(beyond(rounding, &from, &to.outputs(&self.target.module)?))
    }

    fn call_parts(
        &self,
        from: &Visit<'_>,
        to: &Visit<'_>,
        rounding: f64,
    ) -> Result<Option<Compared>, EvalError> {
        let path = to.path.as_str();
        if !same_place(self.source, self.target, path) {
            return Ok(None);
        }
        let returned = from.outputs(&self.source.module)?;
        let bound = if self.holds_stack(path) { rounding } else { EQUAL };
        let Some(apart) = beyond(bound, &returned, &to.outputs(&self.target.module)?) else {
            return Ok(None);
        };
        let inputs = from.inputs(&self.source.module)?;
        if shapes(&inputs) != shapes(&to.inputs(&self.target.module)?) {
            // It cannot be given the same: what it returned has to do.
            return Ok(Some(apart).filter(|apart| difference(apart) > rounding));
        }
        let (module, store) = (&self.target.module, &self.trial.target_store);
        let Some(function) = function_at(self.target, path) else { return Ok(None) };
        let again = interp::run_at(module, function, path, &inputs, store)?;
        Ok(beyond(bound, &returned, &again.outputs))
    }

    /// A stack that joins its layers otherwise is below.
    fn holds_stack(&self, path: &str) -> bool {
        let below =
            |stack: &String| stack.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        self.stacks.keys().any(below)
    }

    fn blocks(&self, path: &str) -> (String, String) {
        let block = |side: &Side| side.instance(path).map_or(String::new(), |i| i.block.clone());
        (block(self.source), block(self.target))
    }

    fn joined(&self, path: &str) -> (String, String) {
        let text = |side: &Side, how: &Integrator| match side.layers(path).unwrap_or(0) {
            1 => format!("1 layer joined by {how}"),
            n => format!("{n} layers joined by {how}"),
        };
        match self.stacks.get(path) {
            Some((from, to)) => (text(self.source, from), text(self.target, to)),
            None => (String::new(), String::new()),
        }
    }
}

/// The outputs that differ most, if that is beyond a bound.
fn beyond(bound: f64, source: &[Array], target: &[Array]) -> Option<Compared> {
    let pairs = source.iter().zip(target).filter(|(a, b)| a.shape() == b.shape());
    let compared = pairs.map(|(a, b)| {
        let (source, target) = (a.clone(), b.clone());
        Compared { name: String::new(), source, target }
    });
    compared
        .filter(|compared| difference(compared) > bound)
        .max_by(|a, b| difference(a).total_cmp(&difference(b)))
}

fn shapes(arrays: &[Array]) -> Vec<&[usize]> {
    arrays.iter().map(|array| array.shape()).collect()
}

fn found(path: &str, blocks: (String, String), compared: &Compared) -> Parted {
    let (source, target) = worst_pair(compared);
    Parted {
        path: path.to_owned(),
        source_block: blocks.0,
        target_block: blocks.1,
        source,
        target,
        difference: difference(compared),
    }
}

/// Stacks at the same place that have another number of layers, or join them otherwise.
fn differing_stacks(source: &Side, target: &Side) -> BTreeMap<String, Joined> {
    let mut from = integrators(source);
    let mut found = BTreeMap::new();
    for (path, to) in integrators(target) {
        if let Some(from) = from.remove(&path)
            && (from != to || source.layers(&path) != target.layers(&path))
        {
            found.insert(path, (from, to));
        }
    }
    found
}

/// How the layers of each stack are joined, by path.
fn integrators(side: &Side) -> BTreeMap<String, Integrator> {
    let mut found = BTreeMap::new();
    for (path, place) in &side.nodes {
        for sub in &side.model.instance(place.instance).subs {
            if matches!(sub.kind, SubKind::Stack(_)) {
                found.insert(join(path, &sub.name), sub.integrator.clone());
            }
        }
    }
    found
}
