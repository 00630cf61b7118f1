//! One rank's share of a stage whose experts several ranks divide among them.
//!
//! Of every axis of experts that is long enough to be divided, the rank has the first `ceil(experts /
//! ranks)`. Its rows go out and come back as they would with all ranks: each row of a place is exchanged on
//! its way to the products and back. With one rank alone there is nobody to exchange with, so a row for
//! another rank's expert goes to the expert of the same number among its own, and the exchange is a
//! permutation of as many bytes in the rank's own memory. What is computed is not the stage's function, but
//! memory, traffic, kernels and work are those of one rank.

use super::{Copy, Result, declarations, fault};
use crate::ir::{Function, Module, Node, Param, Type, ValueId};
use crate::ops::{Broadcast, Exchange, ExpertDot, LocalExpert, Op};
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// One rank of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// How many ranks divide the experts, two or more.
    ranks: u32,
}

impl Share {
    /// How many ranks divide the experts.
    pub fn ranks(self) -> u32 {
        self.ranks
    }

    /// The experts that one rank has of this many; none where they are too few to be divided, so that every
    /// rank has all.
    pub fn of(self, experts: i64) -> Option<i64> {
        let ranks = i64::from(self.ranks);
        // A rank should have several: the 20 of a multi-token head stay whole on each of 8.
        (experts >= 4 * ranks).then(|| (experts + ranks - 1) / ranks)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1/{}", self.ranks)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let ranks = text.strip_prefix("1/").and_then(|ranks| ranks.parse::<u32>().ok());
        match ranks {
            Some(ranks) if (2..=1024).contains(&ranks) => Ok(Share { ranks }),
            _ => Err(format!("`{text}` is no share: write `1/8` for one of eight ranks")),
        }
    }
}

/// Rewrites a lowered module to the share of one rank; the number of parameters that became smaller.
///
/// # Errors
/// A fault of this compiler.
pub fn share(module: &mut Module, share: Share) -> Result<usize> {
    let mut n_divided = 0;
    for function in &mut module.functions {
        let divided = divided(function, share);
        if divided.is_empty() {
            continue;
        }
        n_divided += divided.len();
        let mut small = function.clone();
        for (index, (axis, own)) in &divided {
            if let Some(param) = small.params.get_mut(*index) {
                shrink(&mut param.ty, axis, *own);
            }
        }
        *function = rewrite(&small, &divided)?;
    }
    Ok(n_divided)
}

/// The parameters that experts divide: by index, the axis of the experts and how many a rank has.
fn divided(function: &Function, share: Share) -> BTreeMap<usize, (Axis, i64)> {
    let read = function.nodes.iter().filter_map(|node| match (&node.op, node.args.get(1)) {
        (Op::ExpertDot(op), Some(w)) => Some((*w, op.expert.as_str())),
        _ => None,
    });
    let found = read.filter_map(|(w, expert)| {
        let Op::ParamRef(param) = &function.definition(w).op else { return None };
        let declared: &Param = function.params.get(param.index)?;
        let axis = declared.ty.axis(expert)?;
        let own = share.of(axis.size.as_constant()?)?;
        Some((param.index, (axis.clone(), own)))
    });
    found.collect()
}

fn shrink(ty: &mut Type, axis: &Axis, own: i64) {
    for of_type in ty.axes.iter_mut().filter(|of_type| of_type.name == axis.name) {
        of_type.size = Size::constant(own);
    }
}

fn rewrite(function: &Function, divided: &BTreeMap<usize, (Axis, i64)>) -> Result<Function> {
    let none = BTreeMap::new();
    let mut pass = Pass { copy: Copy::new(declarations(function)), sent: BTreeMap::new() };
    // Values that are results of divided experts, and not sent back yet.
    let mut away: BTreeSet<ValueId> = BTreeSet::new();
    for node in &function.nodes {
        match &node.op {
            Op::ParamRef(param) if divided.contains_key(&param.index) => {
                let ty = function.params.get(param.index).map(|param| param.ty.clone());
                let ty = ty.ok_or_else(|| fault("a parameter is missing"))?;
                let new = pass.copy.to.push_typed(node.op.clone(), vec![], vec![ty], node.span);
                pass.note(function, node, new);
            }
            Op::ExpertDot(op) if is_divided(function, node, divided) => {
                let is_away = node.args.first().is_some_and(|x| away.contains(x));
                let experts = experts_of(function, node, divided)?;
                pass.product(function, node, op, experts, is_away)?;
                away.extend(&node.results);
            }
            op => {
                // A pointwise value of rows that are away is away too; whatever sums over the choices
                // needs them back.
                let stays = keeps_places(op, function, node, &away);
                if !stays {
                    for arg in node.args.iter().filter(|arg| away.contains(arg)) {
                        pass.bring_back(*arg)?;
                    }
                }
                pass.copy.node(function, node, op.clone(), &none)?;
                if stays {
                    away.extend(&node.results);
                    let ids = node.args.iter().find_map(|arg| pass.sent.get(arg).copied());
                    for result in &node.results {
                        if let Some(ids) = ids {
                            let _ = pass.sent.insert(*result, ids);
                        }
                    }
                }
            }
        }
    }
    pass.copy.finish(function)?;
    Ok(pass.copy.to)
}

fn is_divided(function: &Function, node: &Node, divided: &BTreeMap<usize, (Axis, i64)>) -> bool {
    experts_of(function, node, divided).is_ok()
}

/// Experts of all ranks, and of one.
fn experts_of(
    function: &Function,
    node: &Node,
    divided: &BTreeMap<usize, (Axis, i64)>,
) -> Result<(i64, i64)> {
    let param = node.args.get(1).map(|w| &function.definition(*w).op);
    let Some(Op::ParamRef(param)) = param else { return Err(fault("a weight is no parameter")) };
    let (axis, own) = divided.get(&param.index).ok_or_else(|| fault("a weight is whole"))?;
    let all = axis.size.as_constant().ok_or_else(|| fault("an open number of experts"))?;
    Ok((all, *own))
}

/// Whether a node that reads rows which are away works on each of them by itself.
fn keeps_places(op: &Op, function: &Function, node: &Node, away: &BTreeSet<ValueId>) -> bool {
    let reads_away = node.args.iter().any(|arg| away.contains(arg));
    let by_row = match op {
        Op::Unary(_) | Op::Affine(_) | Op::Clamp(_) | Op::Hadamard(_) => true,
        // Both sides have to be where the rows are.
        Op::Binary(_) => node.args.iter().all(|arg| away.contains(arg)),
        Op::ExpertDot(_) => true,
        _ => false,
    };
    let same = node.results.first().zip(node.args.first()).is_some_and(|(result, arg)| {
        function.ty(*result).axes.len() == function.ty(*arg).axes.len()
    });
    reads_away && by_row && same
}

struct Pass {
    copy: Copy,
    /// For each old value that is away, the ids (of all ranks) of its places, in the new function, and the
    /// number of experts; also the rows that were sent out, by the value they are of.
    sent: BTreeMap<ValueId, (ValueId, i64)>,
}

impl Pass {
    fn note(&mut self, function: &Function, node: &Node, new: Vec<ValueId>) {
        for (old, new) in node.results.iter().zip(new) {
            if let Some(name) = &function.value(*old).name {
                self.copy.to.name_value(new, name);
            }
            let _ = self.copy.map.insert(*old, new);
        }
    }

    /// A product with a divided weight: rows that are here are sent out first.
    fn product(
        &mut self,
        function: &Function,
        node: &Node,
        op: &ExpertDot,
        (all, own): (i64, i64),
        is_away: bool,
    ) -> Result<()> {
        let [x, w, ids] = *node.args.as_slice() else { return Err(fault("a product of 3")) };
        let (ids, w) = (self.copy.at(ids)?, self.copy.at(w)?);
        let x = self.copy.at(x)?;
        let x = if is_away { x } else { self.send(x, ids, all)? };
        let local = self.local(ids, own)?;
        let value = self.copy.to.push1(op.clone().into(), vec![x, w, local], node.span)?;
        self.note(function, node, vec![value]);
        for result in &node.results {
            let _ = self.sent.insert(*result, (ids, all));
        }
        Ok(())
    }

    /// The rows of x, one per place, where their experts are. What was sent before is not sent again.
    fn send(&mut self, x: ValueId, ids: ValueId, all: i64) -> Result<ValueId> {
        let to = &self.copy.to;
        let (x_type, ids_type) = (to.ty(x).clone(), to.ty(ids).clone());
        let known = to.nodes.iter().find_map(|node| {
            let Op::Exchange(_) = node.op else { return None };
            let (from, result) = (node.args.first()?, node.results.first()?);
            let source = to.definition(*from);
            let of_x = *from == x
                || matches!(source.op, Op::Broadcast(_)) && source.args.first() == Some(&x);
            (of_x && node.args.get(1) == Some(&ids)).then_some(*result)
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let own = x_type.axes.iter().filter(|axis| !ids_type.has(&axis.name)).cloned();
        let axes: Vec<Axis> = ids_type.axes.iter().cloned().chain(own).collect();
        let rows = match x_type.axes == axes {
            true => x,
            false => self.copy.to.push1(Broadcast { axes }.into(), vec![x], None)?,
        };
        self.copy.to.push1(Exchange { experts: all }.into(), vec![rows, ids], None)
    }

    /// The ids among the experts of a rank.
    fn local(&mut self, ids: ValueId, own: i64) -> Result<ValueId> {
        let op: Op = LocalExpert { experts: own }.into();
        let mut known = self.copy.to.nodes.iter();
        let known = known.find(|node| node.op == op && node.args == [ids]);
        match known.and_then(|node| node.results.first()) {
            Some(known) => Ok(*known),
            None => self.copy.to.push1(op, vec![ids], None),
        }
    }

    /// Replaces an old value that is away by its rows at home.
    fn bring_back(&mut self, old: ValueId) -> Result<()> {
        let Some((ids, experts)) = self.sent.remove(&old) else { return Ok(()) };
        let rows = self.copy.at(old)?;
        let back = self.copy.to.push1(Exchange { experts }.into(), vec![rows, ids], None)?;
        let _ = self.copy.map.insert(old, back);
        Ok(())
    }
}
