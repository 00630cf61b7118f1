//! Which nodes of a function become one kernel.

use super::cuda::{Kernel, kernel};
use super::gather::is_gather;
use super::group::{Group, Readers, is_free_view, is_known, is_literal, is_view, row_elements};
use super::panel::{self, Panel};
use super::product::{self, Product};
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::Op;
use std::collections::{BTreeMap, BTreeSet};

/// Most tensors that a kernel reads or writes.
pub(super) const TENSORS: usize = 24;
/// Elements of a row from which on an input is worth reading once for two groups.
pub(super) const SHARED: i64 = 1024;
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

impl Step {
    /// The values that it reads.
    pub(crate) fn reads(&self, function: &Function) -> Vec<ValueId> {
        match self {
            Step::Node(id) => function.node(*id).args.clone(),
            Step::Kernel(kernel) => kernel.group.inputs.clone(),
        }
    }

    /// The values that it makes.
    pub(crate) fn makes(&self, function: &Function) -> Vec<ValueId> {
        match self {
            Step::Node(id) => function.node(*id).results.clone(),
            Step::Kernel(kernel) => {
                let sums = kernel.sums.iter().map(|sum| sum.value);
                kernel.writes.iter().copied().chain(sums).collect()
            }
        }
    }
}

/// The steps of a function in the order in which they run. Values in `kept` are read after it.
pub(crate) fn plan(function: &Function, kept: BTreeSet<ValueId>, prefix: &str) -> Vec<Step> {
    let mut planner = Planner {
        function,
        readers: Readers::of(function, kept),
        groups: Vec::new(),
        owner: vec![None; function.nodes.len()],
        built: Vec::new(),
        copies: BTreeMap::new(),
        panels: BTreeMap::new(),
        products: BTreeMap::new(),
    };
    planner.find_panels();
    planner.grow();
    planner.join_numbers();
    planner.join_tiny();
    planner.trim();
    planner.copy();
    planner.find_products();
    planner.steps(prefix)
}

pub(super) struct Planner<'f> {
    pub(super) function: &'f Function,
    pub(super) readers: Readers,
    /// Nodes of each group; empty where a group has been joined to another.
    pub(super) groups: Vec<Vec<NodeId>>,
    owner: Vec<Option<usize>>,
    /// The groups as kernels see them.
    built: Vec<Option<Group>>,
    /// Nodes of other groups that a group computes again.
    pub(super) copies: BTreeMap<usize, BTreeSet<NodeId>>,
    /// Groups that are a narrow product.
    pub(super) panels: BTreeMap<usize, Panel>,
    /// Wide products that groups make; their nodes are owned by these groups and not among them.
    products: BTreeMap<usize, Product>,
}

impl Planner<'_> {
    pub(super) fn owner(&self, id: NodeId) -> Option<usize> {
        self.owner.get(id.0 as usize).copied().flatten()
    }

    fn group(&self, nodes: &[NodeId]) -> Option<Group> {
        Group::of(self.function, nodes.to_vec(), &self.readers)
    }

    pub(super) fn built(&self, index: usize) -> Option<&Group> {
        self.built.get(index).and_then(Option::as_ref)
    }

    fn set(&mut self, index: usize, nodes: Vec<NodeId>) {
        for id in &nodes {
            if let Some(owner) = self.owner.get_mut(id.0 as usize) {
                *owner = Some(index);
            }
        }
        self.built.resize(self.groups.len().max(self.built.len()), None);
        if let Some(built) = self.built.get_mut(index) {
            *built = Group::of(self.function, nodes.clone(), &self.readers);
        }
        if let Some(group) = self.groups.get_mut(index) {
            *group = nodes;
        }
    }

    fn find_panels(&mut self) {
        for (id, _) in self.function.nodes() {
            let fits = |nodes: &[NodeId]| {
                nodes.iter().all(|id| self.owner(*id).is_none()) && self.is_acyclic(nodes)
            };
            let Some(panel) = Panel::of(self.function, &self.readers, id, &fits) else { continue };
            let index = self.groups.len();
            self.groups.push(Vec::new());
            self.set(index, panel.nodes.clone());
            if let Some(built) = self.built.get_mut(index) {
                *built = Some(panel.group(self.function, &self.readers));
            }
            let _ = self.panels.insert(index, panel);
        }
    }

    /// Has groups make wide products that they alone read.
    fn find_products(&mut self) {
        for (id, _) in self.function.nodes() {
            let product = Product::of(self.function, id).filter(|_| self.owner(id).is_none());
            let Some(product) = product else { continue };
            let Some(home) = self.only_reader(product.result) else { continue };
            let nodes = self.groups.get(home).cloned().unwrap_or_default();
            let fits = !self.panels.contains_key(&home)
                && !self.products.contains_key(&home)
                && self.final_group(home).is_some_and(|group| {
                    group.inputs.len() + group.outputs.len() < TENSORS
                        && product.fits(self.function, &group)
                })
                && self.is_acyclic(&[nodes, vec![id]].concat());
            if fits {
                if let Some(owner) = self.owner.get_mut(id.0 as usize) {
                    *owner = Some(home);
                }
                let _ = self.products.insert(home, product);
            }
        }
    }

    /// The group that alone reads a value.
    fn only_reader(&self, value: ValueId) -> Option<usize> {
        let readers = self.readers.nodes(value);
        let home = self.owner(*readers.first()?)?;
        let copied = self.copies.iter().filter(|(index, _)| **index != home);
        let mut elsewhere = copied.flat_map(|(_, nodes)| nodes);
        let alone = readers.iter().all(|id| self.owner(*id) == Some(home))
            && !elsewhere.any(|id| readers.contains(id))
            && !self.readers.is_kept(value);
        alone.then_some(home)
    }

    /// The nodes of a group, with the product that it makes.
    fn all_of(&self, index: usize) -> Vec<NodeId> {
        let product = self.products.get(&index).map(|product| product.node);
        self.groups.get(index).into_iter().flatten().copied().chain(product).collect()
    }

    fn grow(&mut self) {
        for (id, node) in self.function.nodes() {
            if self.owner(id).is_some() {
                continue;
            }
            if !is_known(self.function, node)
                || matches!(node.op, Op::Const(_) | Op::SizeValue(_))
                || self.is_unread_table(node)
                || self.is_sent_view(node)
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
        let Some(present) = self.built(index) else { return false };
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
        let narrow = |index: usize| self.built(index).is_some_and(Group::is_narrow);
        if b.is_empty() || narrow(home) != narrow(other) {
            return;
        }
        let nodes = [a.clone(), b.clone()].concat();
        if self.may_be_one(&nodes) {
            self.set(home, nodes);
            self.set(other, Vec::new());
        }
    }

    /// Has groups that gather compute the numbers of their rows, if nothing else reads these: the threads of a row wait
    /// for its index in any case, and a launch is saved.
    fn join_numbers(&mut self) {
        let gathers = |planner: &Self, index: usize| {
            let nodes = planner.groups.get(index).into_iter().flatten();
            nodes.into_iter().any(|id| is_gather(planner.function, *id))
        };
        for home in 0..self.groups.len() {
            for other in 0..self.groups.len() {
                if gathers(self, home) && self.are_numbers_for(other, home) {
                    let all = [home, other].map(|index| self.groups.get(index).cloned());
                    let nodes: Vec<NodeId> = all.into_iter().flatten().flatten().collect();
                    if self.may_be_one(&nodes) {
                        self.set(home, nodes);
                        self.set(other, Vec::new());
                    }
                }
            }
        }
    }

    /// Whether a group has one element of each value in a row, and another alone reads what it gives.
    fn are_numbers_for(&self, index: usize, reader: usize) -> bool {
        let Some(group) = self.built(index).filter(|group| group.is_narrow()) else { return false };
        let read_there = |value: &ValueId| {
            let mut readers = self.readers.nodes(*value).iter();
            !self.readers.is_kept(*value)
                && readers.all(|id| [Some(index), Some(reader)].contains(&self.owner(*id)))
        };
        let nodes = group.nodes.iter().map(|id| self.function.node(*id));
        let mut values = nodes.flat_map(|node| node.args.iter().chain(&node.results));
        values.all(|value| row_elements(&group.layout, *value) <= REPEATED)
            && group.outputs.iter().all(read_there)
    }

    /// Joins groups that have nothing to read or write in common but are small.
    fn join_tiny(&mut self) {
        let tiny = |planner: &Self, index: usize| {
            let group = planner.built(index).filter(|group| {
                let mut values = group.inputs.iter().chain(&group.outputs);
                values.all(|value| row_elements(&group.layout, *value) <= TINY)
            });
            group.map(|group| (group.layout.slots.clone(), group.layout.rows.clone()))
        };
        for home in 0..self.groups.len() {
            for other in home + 1..self.groups.len() {
                let (Some(a), Some(b)) = (self.groups.get(home), self.groups.get(other)) else {
                    continue;
                };
                if a.is_empty() || b.is_empty() {
                    continue;
                }
                let left = tiny(self, home);
                if left.is_some() && left == tiny(self, other) {
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
            let all = owner.map_or(vec![id], |index| self.all_of(index));
            for member in all {
                let _ = seen.insert(member);
                for source in self.sources(member) {
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
        let args = self.readers.args(self.function, id);
        args.into_iter().map(|arg| self.function.value(arg).node)
    }

    /// Whether a node widens a table that kernels alone read, as it is stored.
    fn is_unread_table(&self, node: &Node) -> bool {
        matches!(node.op, Op::Cast(_))
            && node.results.iter().all(|result| self.readers.is_unread(*result))
    }

    /// Whether a node repeats rows for nothing but an exchange, which takes a view of them.
    fn is_sent_view(&self, node: &Node) -> bool {
        let mut readers = node.results.iter().flat_map(|result| self.readers.nodes(*result));
        let kept = node.results.iter().any(|result| self.readers.is_kept(*result));
        matches!(node.op, Op::Broadcast(_))
            && !kept
            && readers.all(|id| matches!(self.function.node(*id).op, Op::Exchange(_)))
    }

    /// Leaves out views at the edge of a group: outside they cost nothing.
    fn trim(&mut self) {
        for index in 0..self.groups.len() {
            while let Some(group) = self.built(index).cloned() {
                let rest_of = |edge: NodeId| -> Vec<NodeId> {
                    group.nodes.iter().copied().filter(|id| *id != edge).collect()
                };
                let edge = group.nodes.iter().copied().find(|id| {
                    let node = self.function.node(*id);
                    let free = is_view(&node.op) && !matches!(node.op, Op::Permute(_));
                    let read = |value: &ValueId| {
                        self.readers.nodes(*value).iter().any(|r| group.nodes.contains(r))
                    };
                    let outer = node.args.iter().all(|arg| group.inputs.contains(arg))
                        || !node.results.iter().any(read);
                    let rest = rest_of(*id);
                    free && outer && (rest.is_empty() || self.group(&rest).is_some())
                });
                let Some(edge) = edge else { break };
                let rest = rest_of(edge);
                if let Some(owner) = self.owner.get_mut(edge.0 as usize) {
                    *owner = None;
                }
                self.set(index, rest);
            }
        }
    }

    /// All nodes that a group computes, in order.
    pub(super) fn members(&self, index: usize) -> Vec<NodeId> {
        let own = self.groups.get(index).into_iter().flatten();
        let copies = self.copies.get(&index).into_iter().flatten();
        let all: BTreeSet<NodeId> = own.chain(copies).copied().collect();
        all.into_iter().collect()
    }

    /// Whether a value is read by anything that has no copy of its node.
    pub(super) fn is_read_outside(&self, value: ValueId, home: usize) -> bool {
        let made = self.function.value(value).node;
        let foreign = |reader: &NodeId| {
            let mut readers = (0..self.groups.len()).filter(|index| {
                self.owner(*reader) == Some(*index)
                    || self.copies.get(index).is_some_and(|copies| copies.contains(reader))
            });
            let alone = self.owner(*reader).is_none();
            let has = |index: usize| {
                index == home || self.copies.get(&index).is_some_and(|all| all.contains(&made))
            };
            alone || readers.any(|index| !has(index))
        };
        self.readers.is_kept(value) || self.readers.nodes(value).iter().any(foreign)
    }

    /// A group with what it computes again; it writes only what is its own.
    pub(super) fn final_group(&self, index: usize) -> Option<Group> {
        if self.panels.contains_key(&index) {
            return self.built(index).cloned();
        }
        let own = |value: ValueId| self.owner(self.function.value(value).node) == Some(index);
        let outside = |value: ValueId| own(value) && self.is_read_outside(value, index);
        Group::with(self.function, self.members(index), &outside)
    }

    fn steps(&self, prefix: &str) -> Vec<Step> {
        let mut ready: BTreeMap<usize, (Option<Group>, Vec<NodeId>)> = BTreeMap::new();
        for (id, node) in self.function.nodes() {
            let left_out =
                self.is_inlined(node.results.first().copied()) || self.is_unread_table(node);
            if self.owner(id).is_none() && !left_out {
                let _ = ready.insert(id.0 as usize, (None, vec![id]));
            }
        }
        for (index, nodes) in self.groups.iter().enumerate() {
            let Some(first) = nodes.iter().min() else { continue };
            match self.final_group(index) {
                Some(group) => {
                    let product = self.products.get(&index);
                    let group = product.map_or(group.clone(), |product| product.joined(&group));
                    let _ = ready.insert(first.0 as usize, (Some(group), nodes.clone()));
                }
                // Never so: a set of nodes is only taken up where one kernel can compute it.
                None => {
                    ready.extend(nodes.iter().map(|id| (id.0 as usize, (None, vec![*id]))));
                }
            }
        }
        // A step runs as soon as what it reads is there; of several the one that comes first in
        // the graph.
        let mut done: BTreeSet<ValueId> = BTreeSet::new();
        let mut steps = Vec::new();
        let mut number = 0;
        while !ready.is_empty() {
            let next = ready.iter().find(|(_, (group, nodes))| {
                let args: Vec<ValueId> = match group {
                    Some(group) => group.inputs.clone(),
                    None => {
                        nodes.iter().flat_map(|id| self.function.node(*id).args.clone()).collect()
                    }
                };
                args.iter().all(|arg| done.contains(arg) || self.is_inlined(Some(*arg)))
            });
            let Some(key) = next.map(|(key, _)| *key) else { break };
            let Some((group, nodes)) = ready.remove(&key) else { break };
            let Some(group) = group else {
                for id in nodes {
                    done.extend(self.function.node(id).results.iter().copied());
                    steps.push(Step::Node(id));
                }
                continue;
            };
            let entry = format!("{prefix}_k{number}");
            number += 1;
            let owner = nodes.first().and_then(|id| self.owner(*id));
            let panel = owner.and_then(|index| self.panels.get(&index));
            let product = owner.and_then(|index| self.products.get(&index));
            let made = match (panel, product) {
                (Some(panel), _) => panel::kernel(self.function, panel, &group, &entry),
                (None, Some(product)) => product::kernel(self.function, product, &group, &entry),
                (None, None) => kernel(self.function, &group, &entry),
            };
            steps.push(Step::Kernel(Box::new(made)));
            done.extend(group.outputs.iter().copied());
            // Views of what it wrote.
            let mut shown: BTreeSet<ValueId> = BTreeSet::new();
            for id in nodes.iter().collect::<BTreeSet<_>>().into_iter().rev() {
                let node = self.function.node(*id);
                let Some(result) = node.results.first().copied() else { continue };
                let index = self.owner(*id).unwrap_or_default();
                let needed = self.is_read_outside(result, index) || shown.contains(&result);
                if is_free_view(&node.op) && needed && !group.outputs.contains(&result) {
                    shown.extend(node.args.iter().copied());
                    let _ = shown.insert(result);
                }
            }
            for id in nodes.iter().collect::<BTreeSet<_>>() {
                let node = self.function.node(*id);
                let Some(result) = node.results.first().copied() else { continue };
                if is_free_view(&node.op) && shown.contains(&result) && !done.contains(&result) {
                    let _ = done.insert(result);
                    steps.push(Step::Node(*id));
                }
            }
        }
        steps
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
