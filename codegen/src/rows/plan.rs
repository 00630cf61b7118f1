//! Which nodes of a function become one kernel.

use super::cuda::{Kernel, kernel};
use super::group::{Group, Readers, is_known, is_literal, is_view, row_elements};
use crate::ir::{Function, NodeId, ValueId};
use crate::ops::Op;
use std::collections::{BTreeMap, BTreeSet};

/// Most tensors that a kernel reads or writes.
const TENSORS: usize = 24;
/// Elements of a row from which on an input is worth reading once for two groups.
const SHARED: i64 = 1024;
/// Unrolled elements of a value without lanes that is computed in all threads of a row.
const REPEATED: i64 = 1;
/// Groups whose rows have no more elements than this cost a launch and little else.
const TINY: i64 = 64;

/// One step of a function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A node by itself.
    Node(NodeId),
    /// A generated kernel.
    Kernel(Box<Kernel>),
}

/// The steps of a function in the order in which they run. Values in `kept` are read after it.
pub(crate) fn plan(function: &Function, kept: BTreeSet<ValueId>, prefix: &str) -> Vec<Step> {
    let mut planner = Planner {
        function,
        readers: Readers::of(function, kept),
        groups: Vec::new(),
        owner: vec![None; function.nodes.len()],
    };
    planner.grow();
    planner.join_tiny();
    planner.trim();
    planner.steps(prefix)
}

struct Planner<'f> {
    function: &'f Function,
    readers: Readers,
    /// Nodes of each group; empty where a group has been joined to another.
    groups: Vec<Vec<NodeId>>,
    owner: Vec<Option<usize>>,
}

impl Planner<'_> {
    fn owner(&self, id: NodeId) -> Option<usize> {
        self.owner.get(id.0 as usize).copied().flatten()
    }

    fn group(&self, nodes: &[NodeId]) -> Option<Group> {
        Group::of(self.function, nodes.to_vec(), &self.readers)
    }

    fn set(&mut self, index: usize, nodes: Vec<NodeId>) {
        for id in &nodes {
            if let Some(owner) = self.owner.get_mut(id.0 as usize) {
                *owner = Some(index);
            }
        }
        if let Some(group) = self.groups.get_mut(index) {
            *group = nodes;
        }
    }

    fn grow(&mut self) {
        for (id, node) in self.function.nodes() {
            if !is_known(self.function, node) || matches!(node.op, Op::Const(_) | Op::SizeValue(_))
            {
                continue;
            }
            let Some(alone) = self.group(&[id]) else { continue };
            let candidates = self.candidates(&alone);
            let mut home = None;
            for index in candidates {
                let Some(nodes) = self.groups.get(index).cloned() else { continue };
                match home {
                    None => {
                        if self.may_join(&alone, index) {
                            self.set(index, [nodes, vec![id]].concat());
                            home = Some(index);
                        }
                    }
                    Some(home) if home != index => self.join(home, index),
                    Some(_) => {}
                }
            }
            if home.is_none() {
                self.groups.push(Vec::new());
                self.set(self.groups.len() - 1, vec![id]);
            }
        }
    }

    /// Groups that a node would save traffic with: those of its arguments, then those that read
    /// one of its long arguments too.
    fn candidates(&self, alone: &Group) -> Vec<usize> {
        let mut found = Vec::new();
        let long = |value: &ValueId| row_elements(&alone.layout, *value) >= SHARED;
        for input in &alone.inputs {
            found.extend(self.owner(self.function.value(*input).node));
        }
        let rows = |value: &ValueId| !alone.layout.row_parts(*value).is_empty();
        for input in alone.inputs.iter().filter(|v| long(v) && rows(v)) {
            for reader in self.readers.nodes(*input) {
                found.extend(self.owner(*reader));
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|index| seen.insert(*index));
        found
    }

    fn may_join(&self, alone: &Group, index: usize) -> bool {
        let Some(nodes) = self.groups.get(index) else { return false };
        let Some(present) = self.group(nodes) else { return false };
        if present.is_narrow() && !alone.is_narrow() {
            return false;
        }
        if alone.is_narrow() && !present.is_narrow() {
            let results = alone.nodes.iter().flat_map(|id| &self.function.node(*id).results);
            let args = alone.nodes.iter().flat_map(|id| &self.function.node(*id).args);
            let mut all = results.chain(args).filter(|value| !is_literal(self.function, **value));
            if !all.all(|value| row_elements(&alone.layout, *value) <= REPEATED) {
                return false;
            }
        }
        self.may_be_one(&[nodes.clone(), alone.nodes.clone()].concat())
    }

    fn may_be_one(&self, nodes: &[NodeId]) -> bool {
        let Some(group) = self.group(nodes) else { return false };
        group.inputs.len() + group.outputs.len() <= TENSORS && self.is_acyclic(nodes)
    }

    fn join(&mut self, home: usize, other: usize) {
        let (Some(a), Some(b)) = (self.groups.get(home), self.groups.get(other)) else { return };
        let narrow = |nodes: &[NodeId]| self.group(nodes).is_some_and(|group| group.is_narrow());
        if b.is_empty() || narrow(a) != narrow(b) {
            return;
        }
        let nodes = [a.clone(), b.clone()].concat();
        if self.may_be_one(&nodes) {
            self.set(home, nodes);
            self.set(other, Vec::new());
        }
    }

    /// Joins groups that have nothing to read or write in common but are small.
    fn join_tiny(&mut self) {
        let tiny = |planner: &Self, nodes: &[NodeId]| {
            planner.group(nodes).filter(|group| {
                let mut values = group.inputs.iter().chain(&group.outputs);
                values.all(|value| row_elements(&group.layout, *value) <= TINY)
            })
        };
        for home in 0..self.groups.len() {
            for other in home + 1..self.groups.len() {
                let (Some(a), Some(b)) = (self.groups.get(home), self.groups.get(other)) else {
                    continue;
                };
                if a.is_empty() || b.is_empty() {
                    continue;
                }
                let (Some(left), Some(right)) = (tiny(self, a), tiny(self, b)) else { continue };
                if left.layout.slots == right.layout.slots && left.layout.rows == right.layout.rows
                {
                    self.join(home, other);
                }
            }
        }
    }

    /// Whether there is an order of steps in which these nodes are one.
    fn is_acyclic(&self, nodes: &[NodeId]) -> bool {
        let inside: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let merged: BTreeSet<usize> = nodes.iter().filter_map(|id| self.owner(*id)).collect();
        // From what is read outside back to a node inside.
        let mut stack: Vec<NodeId> = Vec::new();
        let mut seen: BTreeSet<NodeId> = BTreeSet::new();
        for id in nodes {
            stack.extend(self.sources(*id).filter(|source| !inside.contains(source)));
        }
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            let owner = self.owner(id).filter(|owner| !merged.contains(owner));
            let own = [id];
            let all: &[NodeId] = match owner {
                Some(index) => self.groups.get(index).map_or(&own[..], Vec::as_slice),
                None => &own,
            };
            for member in all {
                let _ = seen.insert(*member);
                for source in self.sources(*member) {
                    if inside.contains(&source) {
                        return false;
                    }
                    stack.push(source);
                }
            }
        }
        true
    }

    fn sources(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.function.node(id).args.iter().map(|arg| self.function.value(*arg).node)
    }

    /// Leaves out views at the edge of a group: outside they cost nothing.
    fn trim(&mut self) {
        for index in 0..self.groups.len() {
            loop {
                let Some(nodes) = self.groups.get(index).filter(|nodes| !nodes.is_empty()) else {
                    break;
                };
                let Some(group) = self.group(nodes) else { break };
                let edge = group.nodes.iter().copied().find(|id| {
                    let node = self.function.node(*id);
                    let free = is_view(&node.op) && !matches!(node.op, Op::Permute(_));
                    let read = |value: &ValueId| {
                        self.readers.nodes(*value).iter().any(|r| group.nodes.contains(r))
                    };
                    free && (node.args.iter().all(|arg| group.inputs.contains(arg))
                        || !node.results.iter().any(read))
                });
                let rest: Vec<NodeId> = match edge {
                    Some(edge) => group.nodes.iter().copied().filter(|id| *id != edge).collect(),
                    None => break,
                };
                if let Some(edge) = edge
                    && let Some(owner) = self.owner.get_mut(edge.0 as usize)
                {
                    *owner = None;
                }
                self.set(index, rest);
            }
        }
    }

    fn steps(&self, prefix: &str) -> Vec<Step> {
        let mut ready: BTreeMap<usize, (Option<usize>, Vec<NodeId>)> = BTreeMap::new();
        for (id, node) in self.function.nodes() {
            if self.owner(id).is_none() && !self.is_inlined(node.results.first().copied()) {
                let _ = ready.insert(id.0 as usize, (None, vec![id]));
            }
        }
        for (index, nodes) in self.groups.iter().enumerate() {
            if let Some(first) = nodes.iter().min() {
                let _ = ready.insert(first.0 as usize, (Some(index), nodes.clone()));
            }
        }
        // A step runs as soon as what it reads is there; of several the one that comes first in
        // the graph.
        let mut done: BTreeSet<NodeId> = BTreeSet::new();
        let mut steps = Vec::new();
        let mut number = 0;
        while !ready.is_empty() {
            let next = ready.iter().find(|(_, (_, nodes))| {
                nodes.iter().flat_map(|id| self.sources(*id)).all(|source| {
                    done.contains(&source)
                        || nodes.contains(&source)
                        || self.is_inlined_node(source)
                })
            });
            let Some(key) = next.map(|(key, _)| *key) else { break };
            let Some((owner, nodes)) = ready.remove(&key) else { break };
            done.extend(nodes.iter().copied());
            match (owner, self.group(&nodes)) {
                (Some(_), Some(group)) => {
                    let entry = format!("{prefix}_k{number}");
                    number += 1;
                    steps.push(Step::Kernel(Box::new(kernel(self.function, &group, &entry))));
                }
                _ => steps.extend(nodes.into_iter().map(Step::Node)),
            }
        }
        steps
    }

    fn is_inlined_node(&self, id: NodeId) -> bool {
        self.is_inlined(self.function.node(id).results.first().copied())
    }

    /// Whether a value is a number that kernels alone read.
    fn is_inlined(&self, value: Option<ValueId>) -> bool {
        value.is_some_and(|value| {
            let readers = self.readers.nodes(value);
            is_literal(self.function, value)
                && !readers.is_empty()
                && !self.readers.is_kept(value)
                && readers.iter().all(|reader| self.owner(*reader).is_some())
        })
    }
}
