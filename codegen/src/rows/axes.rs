//! Which parts of a value's axes are one and the same, over a set of nodes.
//!
//! Merging and splitting axes is a matter of names: `w = n d` is the pair (n, d) in a row. So every
//! axis of every value that a set of nodes touches is written as a list of *parts*, the same list
//! wherever ops make two axes meet, and an axis is cut into parts as soon as something is known of
//! one of them.

use crate::ir::{Function, Node, NodeId, Type, ValueId};
use crate::ops::Op;
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// A part of axes: an index in [`Axes`]. Two axes that meet have equal parts.
pub(super) type Part = usize;

/// Parts of all values that some nodes touch.
pub(super) struct Axes {
    parent: Vec<usize>,
    size: Vec<Size>,
    cut: Vec<Option<Vec<usize>>>,
    of: BTreeMap<ValueId, Vec<usize>>,
}

impl Axes {
    /// The parts that these nodes imply; `None` where two axes of different sizes would have to be
    /// one, which is no fault of the graph: a fusion that looks at fewer nodes has no such conflict.
    pub(super) fn of(function: &Function, nodes: &[NodeId]) -> Option<Axes> {
        let mut axes =
            Axes { parent: Vec::new(), size: Vec::new(), cut: Vec::new(), of: BTreeMap::new() };
        for id in nodes {
            let node = function.node(*id);
            for value in node.args.iter().chain(&node.results) {
                axes.declare(*value, function.ty(*value));
            }
            axes.meet(function, node)?;
        }
        Some(axes)
    }

    fn declare(&mut self, value: ValueId, ty: &Type) {
        if !self.of.contains_key(&value) {
            let classes = ty.axes.iter().map(|axis| self.fresh(axis.size.clone())).collect();
            let _ = self.of.insert(value, classes);
        }
    }

    fn fresh(&mut self, size: Size) -> usize {
        self.parent.push(self.parent.len());
        self.size.push(size);
        self.cut.push(None);
        self.parent.len() - 1
    }

    fn root(&self, mut class: usize) -> usize {
        while let Some(parent) = self.parent.get(class).copied().filter(|p| *p != class) {
            class = parent;
        }
        class
    }

    /// The uncut parts of a class, outermost first. Parts of size 1 are left out: they say nothing.
    fn leaves(&self, class: usize) -> Vec<Part> {
        let root = self.root(class);
        match self.cut.get(root) {
            Some(Some(parts)) => parts.iter().flat_map(|part| self.leaves(*part)).collect(),
            _ if self.part_size(root).as_constant() == Some(1) => Vec::new(),
            _ => vec![root],
        }
    }

    /// The size of a part.
    #[allow(clippy::indexing_slicing)] // parts are made by `fresh`
    pub(super) fn part_size(&self, part: Part) -> &Size {
        &self.size[part]
    }

    /// The parts of each axis of a value, outermost first.
    pub(super) fn parts(&self, value: ValueId) -> Vec<Vec<Part>> {
        let classes = self.of.get(&value).map(Vec::as_slice).unwrap_or_default();
        classes.iter().map(|class| self.leaves(*class)).collect()
    }

    #[allow(clippy::indexing_slicing)] // classes are made by `fresh`
    fn cut(&mut self, part: Part, first: i64) -> Option<()> {
        let whole = self.size[part].as_constant()?;
        if first <= 1 || whole % first != 0 {
            return None;
        }
        let outer = self.fresh(Size::constant(first));
        let inner = self.fresh(Size::constant(whole / first));
        self.cut[part] = Some(vec![outer, inner]);
        Some(())
    }

    /// Makes two rows of classes one.
    #[allow(clippy::indexing_slicing)] // classes are made by `fresh`
    fn unify(&mut self, a: &[usize], b: &[usize]) -> Option<()> {
        loop {
            let left: Vec<Part> = a.iter().flat_map(|class| self.leaves(*class)).collect();
            let right: Vec<Part> = b.iter().flat_map(|class| self.leaves(*class)).collect();
            let pair = left.iter().zip(&right).find(|(l, r)| l != r);
            let Some((&l, &r)) = pair else {
                return (left.len() == right.len()).then_some(());
            };
            if self.size[l] == self.size[r] {
                self.parent[r] = l;
                continue;
            }
            let (x, y) = (self.size[l].as_constant()?, self.size[r].as_constant()?);
            if x > y { self.cut(l, y)? } else { self.cut(r, x)? }
        }
    }

    fn class(&self, function: &Function, value: ValueId, axis: &str) -> Option<usize> {
        let position = function.ty(value).position(axis)?;
        self.of.get(&value)?.get(position).copied()
    }

    /// Axes of one name are one, except those named in `apart`.
    fn by_name(&mut self, function: &Function, node: &Node, apart: &[&str]) -> Option<()> {
        let values: Vec<ValueId> = node.args.iter().chain(&node.results).copied().collect();
        for (index, value) in values.iter().enumerate() {
            for axis in &function.ty(*value).axes {
                let name = axis.name.as_str();
                if apart.contains(&name) {
                    continue;
                }
                let earlier = values.iter().take(index);
                let found = earlier.filter_map(|v| self.class(function, *v, name)).next();
                let own = self.class(function, *value, name);
                if let (Some(found), Some(own)) = (found, own) {
                    self.unify(&[found], &[own])?;
                }
            }
        }
        Some(())
    }

    fn meet(&mut self, function: &Function, node: &Node) -> Option<()> {
        let arg = node.args.first().copied();
        let result = node.results.first().copied();
        match &node.op {
            Op::Rename(_) => {
                let (from, to) = (self.of.get(&arg?)?.clone(), self.of.get(&result?)?.clone());
                from.iter().zip(&to).try_for_each(|(a, b)| self.unify(&[*a], &[*b]))
            }
            Op::Split(op) => {
                let whole = self.class(function, arg?, &op.axis)?;
                let into = op.into.iter().map(|axis| self.class(function, result?, &axis.name));
                let into: Vec<usize> = into.collect::<Option<_>>()?;
                self.unify(&[whole], &into)?;
                let made: Vec<&str> = op.into.iter().map(|axis| axis.name.as_str()).collect();
                self.by_name(function, node, &[&made[..], &[op.axis.as_str()]].concat())
            }
            Op::Merge(op) => {
                let parts = op.axes.iter().map(|name| self.class(function, arg?, name));
                let parts: Vec<usize> = parts.collect::<Option<_>>()?;
                let whole = self.class(function, result?, &op.into)?;
                self.unify(&[whole], &parts)?;
                let mut apart: Vec<&str> = op.axes.iter().map(String::as_str).collect();
                apart.push(&op.into);
                self.by_name(function, node, &apart)
            }
            // The rows of a table and the slots of an index are the op's own.
            Op::GatherSum(op) => self.by_name(function, node, &[&op.rows, &op.slots]),
            _ => self.by_name(function, node, &[]),
        }
    }
}
