//! The order of work in one row.
//!
//! A sum over a whole lane is known only after every thread of the row has passed over all of its
//! elements, so a row is done in phases: each is one pass over the thread's elements, and ends with
//! the sums that the next phase needs. What a phase needs of an earlier pass it keeps in registers
//! if it was read or was dear to compute, else computes again.

use super::gather;
use super::group::{Group, Over, is_view, over};
use super::layout::Layout;
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::{Op, UnaryFn};
use lightc_dsl::ast::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Floats of a thread that may be kept from one phase to the next.
const KEPT: i64 = 72;

/// Registers of a thread that inputs without rows may take before all rows.
const HOISTED: i64 = 48;
/// The same where convolutions go from row to row, whose matrices would be read in each.
const HOISTED_BY_STEPS: i64 = 64;

/// Elements of an input in one register before all rows. It is held in pairs; only where a block goes over
/// many rows with convolutions is it certain that the compiler does not keep it unpacked.
pub(super) fn per_register(function: &Function, group: &Group, value: ValueId) -> i64 {
    let in_pairs = function.ty(value).dtype == DType::Act && group.layout.is_vector(value);
    if in_pairs && has_steps(function, group) { 2 } else { 1 }
}

/// Whether a group has convolutions.
pub(super) fn has_steps(function: &Function, group: &Group) -> bool {
    let is = |id: &NodeId| {
        matches!(
            function.node(*id).op,
            Op::CausalConv(_) | Op::CausalConvInputGrad(_) | Op::CausalConvWeightGrad(_)
        )
    };
    group.nodes.iter().any(is)
}

/// What is done in one pass over a thread's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// An input is read.
    Read(ValueId),
    /// A kept value is taken up.
    Take(ValueId),
    /// A node is computed.
    Compute(NodeId),
}

/// One phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Phase {
    /// Values that all threads of the row hold alike: computed before the pass.
    pub(super) uniform: Vec<Item>,
    /// The pass.
    pub(super) pass: Vec<Item>,
    /// Sums over the lane that are known after the pass.
    pub(super) sums: Vec<NodeId>,
    /// Sums over rows that grow in this phase.
    pub(super) grows: Vec<NodeId>,
    /// Values that are written in this phase.
    pub(super) writes: Vec<ValueId>,
}

/// All phases of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Phases {
    /// In order.
    pub(super) all: Vec<Phase>,
    /// Values that are kept between passes.
    pub(super) kept: BTreeSet<ValueId>,
    /// Inputs that do not vary by row and are read once, before all rows.
    pub(super) hoisted: BTreeSet<ValueId>,
}

/// Whether it costs more to compute a node again than to keep it.
fn is_dear(layout: &Layout, node: &Node) -> bool {
    match &node.op {
        Op::Unary(op) => !matches!(op.function, UnaryFn::Square | UnaryFn::Abs | UnaryFn::Floor),
        Op::UnaryGrad(op) => !matches!(op.function, UnaryFn::Square | UnaryFn::Abs),
        Op::Contract(op) => !op.over.is_empty(),
        Op::CausalConv(_) | Op::CausalConvInputGrad(_) | Op::Rotary(_) | Op::GatherSum(_) => true,
        _ => over(layout, node) == Some(Over::Segment),
    }
}

struct Sorter<'a> {
    function: &'a Function,
    group: &'a Group,
    made: BTreeSet<ValueId>,
    phase_of: BTreeMap<ValueId, usize>,
    /// Inputs that are read shifted in time alone, or gathered: their ops read them.
    shifted: BTreeSet<ValueId>,
    /// Values that are rounded from gathered sums.
    gathered: BTreeSet<ValueId>,
    first: BTreeMap<ValueId, usize>,
    phases: Phases,
}

impl Phases {
    /// The phases of a group.
    pub(super) fn of(function: &Function, group: &Group) -> Phases {
        let results = group.nodes.iter().flat_map(|id| function.node(*id).results.iter());
        let mut sorter = Sorter {
            function,
            group,
            made: results.copied().collect(),
            phase_of: BTreeMap::new(),
            shifted: shifted(function, group),
            gathered: gather::rounded(function, &group.nodes),
            first: BTreeMap::new(),
            phases: Phases::default(),
        };
        sorter.number();
        let mut phases = sorter.sort();
        phases.hoist(function, group);
        phases
    }

    fn hoist(&mut self, function: &Function, group: &Group) {
        let mut left = if has_steps(function, group) { HOISTED_BY_STEPS } else { HOISTED };
        let plain = |input: &&ValueId| !group.layout.apart.contains(input);
        for input in group.inputs.iter().filter(plain) {
            let held = held(&group.layout, *input) / per_register(function, group, *input);
            if group.layout.row_parts(*input).is_empty() && held <= left {
                left -= held;
                let _ = self.hoisted.insert(*input);
            }
        }
    }
}

/// Floats that a thread holds of a value in one pass, 8 to a vector.
fn held(layout: &Layout, value: ValueId) -> i64 {
    let vector = if layout.is_vector(value) { 8 } else { 1 };
    vector * layout.smalls(value).iter().product::<i64>()
}

/// Inputs that only convolutions read, each at several steps, or gathered sums.
pub(super) fn shifted(function: &Function, group: &Group) -> BTreeSet<ValueId> {
    let mut plain = BTreeSet::new();
    let mut shifted = BTreeSet::new();
    for id in &group.nodes {
        let node = function.node(*id);
        for (index, arg) in node.args.iter().enumerate() {
            let made = group.nodes.contains(&function.value(*arg).node);
            if is_shifted(&node.op, index) && !made {
                shifted.insert(*arg)
            } else {
                plain.insert(*arg)
            };
        }
    }
    shifted.difference(&plain).copied().collect()
}

/// Whether an op reads its argument by itself: at several steps, or as its index says.
pub(super) fn is_shifted(op: &Op, index: usize) -> bool {
    let conv =
        matches!(op, Op::CausalConv(_) | Op::CausalConvInputGrad(_) | Op::CausalConvWeightGrad(_));
    (conv && index == 0) || matches!(op, Op::GatherSum(_))
}

impl Sorter<'_> {
    fn layout(&self) -> &Layout {
        &self.group.layout
    }

    fn number(&mut self) {
        for id in &self.group.nodes {
            let node = self.function.node(*id);
            let known = node.args.iter().filter_map(|arg| self.phase_of.get(arg));
            let mut phase = known.copied().max().unwrap_or_default();
            if over(self.layout(), node) == Some(Over::Lane) {
                phase += 1;
            }
            for result in &node.results {
                let _ = self.phase_of.insert(*result, phase);
            }
        }
    }

    fn phase(&self, value: ValueId) -> usize {
        self.phase_of.get(&value).copied().unwrap_or_default()
    }

    fn sort(mut self) -> Phases {
        let last = self.phase_of.values().copied().max().unwrap_or_default();
        let mut uniform_done = BTreeSet::new();
        for index in 0..=last {
            let mut phase = Phase::default();
            let mut wanted: Vec<ValueId> = Vec::new();
            for id in &self.group.nodes {
                let node = self.function.node(*id);
                let (layout, over) = (self.layout(), over(self.layout(), node));
                let args = node.args.iter().map(|arg| self.phase(*arg)).max().unwrap_or_default();
                if matches!(over, Some(Over::Rows(_))) {
                    if args == index {
                        phase.grows.push(*id);
                        wanted.extend(&node.args);
                    }
                    continue;
                }
                let Some(result) = node.results.first().copied() else { continue };
                if over == Some(Over::Lane) {
                    if args == index {
                        phase.sums.push(*id);
                        wanted.extend(&node.args);
                    }
                    if self.phase(result) == index && self.group.outputs.contains(&result) {
                        phase.writes.push(result);
                    }
                    continue;
                }
                if self.phase(result) != index {
                    continue;
                }
                let flat = |arg: &ValueId| !layout.is_lane(*arg);
                if !layout.is_lane(result) && node.args.iter().all(flat) {
                    for arg in &node.args {
                        let outside = !self.made.contains(arg)
                            && !crate::rows::group::is_literal(self.function, *arg);
                        if outside && uniform_done.insert(*arg) {
                            phase.uniform.push(Item::Read(*arg));
                        }
                    }
                    phase.uniform.push(Item::Compute(*id));
                } else if !layout.is_lane(result) {
                    wanted.push(result);
                }
                if self.group.outputs.contains(&result) {
                    phase.writes.push(result);
                    wanted.push(result);
                }
            }
            // What a pass reads of inputs that do not vary over the lane is read before it.
            let mut pass = Vec::new();
            let mut seen = BTreeSet::new();
            for value in wanted {
                self.need(value, index, &mut pass, &mut seen);
            }
            for item in pass {
                match item {
                    Item::Read(value) if !self.layout().is_lane(value) => {
                        if uniform_done.insert(value) {
                            phase.uniform.push(item);
                        }
                    }
                    _ => phase.pass.push(item),
                }
            }
            self.phases.all.push(phase);
        }
        self.phases
    }

    /// Whether a value is computed before the pass, once for the row.
    fn is_uniform(&self, value: ValueId) -> bool {
        let flat = |v: &ValueId| !self.layout().is_lane(*v);
        let args = &self.function.definition(value).args;
        flat(&value) && self.made.contains(&value) && args.iter().all(flat)
    }

    /// Adds what a pass does to have a value.
    fn need(
        &mut self,
        value: ValueId,
        index: usize,
        pass: &mut Vec<Item>,
        seen: &mut BTreeSet<ValueId>,
    ) {
        let function = self.function;
        let literal = crate::rows::group::is_literal(function, value);
        let done = !self.layout().is_lane(value)
            && self.made.contains(&value)
            && (self.phase(value) < index || self.is_uniform(value));
        if literal || done || self.shifted.contains(&value) || !seen.insert(value) {
            return;
        }
        let id = function.value(value).node;
        let node = function.node(id);
        let external = !self.made.contains(&value);
        if external && !self.layout().is_lane(value) {
            // All threads of the row hold it from its first reading on.
            if self.first.insert(value, index).is_none() {
                pass.push(Item::Read(value));
            }
            return;
        }
        let keepable = external || is_dear(self.layout(), node) || self.gathered.contains(&value);
        // A sum over the lane: its row has it after the pass.
        if !external && !self.layout().is_lane(value) && self.is_sum_of_row(node) {
            return;
        }
        match self.first.get(&value) {
            Some(first) if *first < index && keepable && self.can_keep(value) => {
                let _ = self.phases.kept.insert(value);
                pass.push(Item::Take(value));
                return;
            }
            Some(_) => {}
            None => {
                let _ = self.first.insert(value, index);
            }
        }
        if external {
            pass.push(Item::Read(value));
            return;
        }
        for arg in &node.args {
            self.need(*arg, index, pass, seen);
        }
        pass.push(Item::Compute(id));
    }

    fn is_sum_of_row(&self, node: &Node) -> bool {
        let phase = node.args.iter().map(|arg| self.phase(*arg)).max().unwrap_or_default();
        over(self.layout(), node) == Some(Over::Lane)
            && node.results.first().is_some_and(|result| self.phase(*result) > phase)
    }

    fn can_keep(&self, value: ValueId) -> bool {
        if self.phases.kept.contains(&value) {
            return true;
        }
        if self.layout().row_parts(value).is_empty() {
            return false;
        }
        let cost = |v: &ValueId| {
            let half = if self.function.ty(*v).dtype == DType::Act { 1 } else { 2 };
            held(self.layout(), *v) * half / 2
        };
        let kept: i64 = self.phases.kept.iter().map(cost).sum();
        kept + cost(&value) <= KEPT
    }
}

/// The value whose elements a view shows, where it shows them in their order.
pub(super) fn seen_through(function: &Function, layout: &Layout, node: &Node) -> Option<ValueId> {
    let (arg, result) = (*node.args.first()?, *node.results.first()?);
    let order = |value: ValueId| -> Vec<super::layout::Role> {
        let leaves = layout.leaves(value).iter();
        leaves
            .filter(|l| matches!(l.role, super::layout::Role::Small(_)))
            .map(|l| l.role.clone())
            .collect()
    };
    let widening = matches!(node.op, Op::Cast(_))
        && (function.ty(arg).dtype == function.ty(result).dtype
            || (function.ty(arg).dtype == DType::Act && function.ty(result).dtype == DType::F32));
    let ordered = !matches!(node.op, Op::Permute(_)) || order(arg).len() < 2;
    ((widening || is_view(&node.op)) && ordered).then_some(arg)
}
