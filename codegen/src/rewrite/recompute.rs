//! Has cheap values again in the backward, instead of keeping them from the forward.
//!
//! Kept are the values that exist in memory in any case, or that would be dear to compute again:
//! inputs, results of ops that are not cheap and their arguments, results of the function, and
//! reductions, which are small; of a gathered sum, what is rounded from it. All others are computed again from those, where the backward reads them;
//! a fused kernel then has them in registers.
//!
//! A recomputed value has the same bits: it is made of the same bits by the same ops.

use super::{Copy, Result, declarations};
use crate::ir::{Backward, Function, Module, Node, ValueId, prune};
use crate::ops::{Contract, Op, Saved};
use crate::rows::{is_pointwise, is_view};
use lightc_dsl::ast::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Contractions over at most so many elements are sums in registers.
const NARROW: i64 = 64;

/// Rewrites the backward functions of a module.
///
/// # Errors
/// A fault of this compiler.
pub fn recompute(module: &mut Module) -> Result<()> {
    let kept: Vec<BTreeSet<ValueId>> = module.functions.iter().map(kept_values).collect();
    let old = std::mem::take(&mut module.backward);
    for backward in old {
        let forward = module.function(backward.of);
        let none = BTreeSet::new();
        let kept = kept.get(backward.of.0 as usize).unwrap_or(&none);
        let backward = rewrite(backward, forward, kept)?;
        module.backward.push(backward);
    }
    Ok(())
}

fn rewrite(backward: Backward, forward: &Function, kept: &BTreeSet<ValueId>) -> Result<Backward> {
    let none = BTreeMap::new();
    let mut pass =
        Pass { forward, kept, copy: Copy::new(declarations(&backward.body)), had: BTreeMap::new() };
    for node in &backward.body.nodes {
        match (&node.op, node.results.first()) {
            (Op::Saved(saved), Some(result)) => {
                let value = pass.have(saved.value)?;
                pass.copy.map.insert(*result, value);
            }
            (op, Some(result)) if is_leaf(op) && !matches!(op, Op::Input(_)) => {
                // A parameter that a recomputed value also reads is one node.
                let value = pass.leaf(&backward.body, node, *result)?;
                pass.copy.map.insert(*result, value);
            }
            (op, _) => pass.copy.node(&backward.body, node, op.clone(), &none)?,
        }
    }
    let mut body = pass.copy.to.clone();
    body.outputs = pass.copy.outputs(&backward.body)?;
    let grads = backward.grads.iter();
    let grads: Result<Vec<_>> =
        grads.map(|(index, value)| Ok((*index, pass.copy.at(*value)?))).collect();
    Ok(prune::prune_backward(Backward { body, grads: grads?, ..backward }))
}

struct Pass<'a> {
    forward: &'a Function,
    kept: &'a BTreeSet<ValueId>,
    copy: Copy,
    /// Where forward values are in the backward that is written.
    had: BTreeMap<ValueId, ValueId>,
}

impl Pass<'_> {
    /// A forward value in the backward: kept, or computed again.
    fn have(&mut self, value: ValueId) -> Result<ValueId> {
        if let Some(had) = self.had.get(&value) {
            return Ok(*had);
        }
        let node = self.forward.definition(value);
        if self.kept.contains(&value) {
            let ty = self.forward.ty(value).clone();
            let new = self.copy.to.push_typed(Saved { value }.into(), vec![], vec![ty], node.span);
            for new in new {
                self.note(value, new);
            }
        } else {
            let args = node.args.iter().map(|arg| self.have(*arg)).collect::<Result<Vec<_>>>()?;
            let types = node.results.iter().map(|result| self.forward.ty(*result).clone());
            let types = types.collect();
            let new = self.copy.to.push_typed(node.op.clone(), args, types, node.span);
            for (old, new) in node.results.iter().zip(new) {
                self.note(*old, new);
            }
        }
        self.had.get(&value).copied().ok_or_else(|| super::fault("a value has no definition"))
    }

    fn note(&mut self, old: ValueId, new: ValueId) {
        if let Some(name) = &self.forward.value(old).name {
            self.copy.to.name_value(new, name);
        }
        self.had.insert(old, new);
    }

    /// A parameter, state, table or constant of the backward: the same node that recomputed values
    /// read, where one exists.
    fn leaf(&mut self, body: &Function, node: &Node, result: ValueId) -> Result<ValueId> {
        let known = self.copy.to.nodes.iter().find(|known| known.op == node.op);
        if let Some(value) = known.and_then(|known| known.results.first()) {
            return Ok(*value);
        }
        self.copy.node(body, node, node.op.clone(), &BTreeMap::new())?;
        self.copy.at(result)
    }
}

/// The values of a forward function that a backward can read without computing.
fn kept_values(function: &Function) -> BTreeSet<ValueId> {
    let mut kept = BTreeSet::new();
    kept.extend(function.outputs.iter().map(|output| output.value));
    kept.extend(function.updates.iter().map(|(_, value)| *value));
    for node in &function.nodes {
        if matches!(node.op, Op::Input(_)) || is_reduction(&node.op) {
            kept.extend(&node.results);
        } else if let (Op::GatherSum(_), [_, index]) = (&node.op, node.args.as_slice()) {
            // A table is at hand, widened where it is read.
            kept.extend(node.results.iter().map(|sum| rounded_from(function, *sum)));
            kept.insert(*index);
        } else if !is_leaf(&node.op) && !is_cheap(function, node) {
            kept.extend(&node.results);
            kept.extend(&node.args);
        }
    }
    // One memory under several shapes is kept once, as it was written.
    let mut kept: BTreeSet<ValueId> =
        kept.into_iter().map(|value| behind_views(function, value)).collect();
    // What every function has at hand is read there, not kept.
    kept.retain(|value| {
        let op = &function.definition(*value).op;
        matches!(op, Op::Input(_)) || !is_leaf(op)
    });
    kept
}

/// What is rounded to the compute precision from a sum of 32 bits that nothing else reads, element by element; else
/// the sum. A kernel has such a sum in registers alone, and what is rounded from it has half of its bytes.
fn rounded_from(function: &Function, sum: ValueId) -> ValueId {
    let mut value = sum;
    while function.ty(value).dtype != DType::Act {
        let mut readers = function.nodes.iter().filter(|node| node.args.contains(&value));
        let follows = |node: &&Node| {
            let same = |to: &ValueId| function.ty(*to).axes == function.ty(value).axes;
            is_pointwise(&node.op) && node.results.iter().all(same)
        };
        let result = match (readers.next().filter(follows), readers.next()) {
            (Some(only), None) => only.results.first().copied(),
            _ => None,
        };
        match result {
            Some(result) => value = result,
            None => return sum,
        }
    }
    value
}

/// The value whose elements, in the same order, a value has.
fn behind_views(function: &Function, value: ValueId) -> ValueId {
    let mut value = value;
    loop {
        let node = function.definition(value);
        match (&node.op, node.args.first()) {
            (Op::Rename(_) | Op::Merge(_) | Op::Split(_), Some(arg)) => value = *arg,
            _ => return value,
        }
    }
}

/// Nodes that compute nothing.
fn is_leaf(op: &Op) -> bool {
    matches!(
        op,
        Op::Input(_)
            | Op::ParamRef(_)
            | Op::StateRef(_)
            | Op::TableRef(_)
            | Op::Const(_)
            | Op::SizeValue(_)
    )
}

fn is_reduction(op: &Op) -> bool {
    matches!(op, Op::Sum(_) | Op::Mean(_) | Op::LogSumExp(_))
}

/// Whether a node costs little beside reading its arguments: elementwise, a change of shape, a few
/// neighbouring rows, a sum over a few elements.
pub fn is_cheap(function: &Function, node: &Node) -> bool {
    match &node.op {
        Op::Contract(op) => is_narrow(function, node, op),
        op => {
            let is_other = matches!(
                op,
                Op::Broadcast(_)
                    | Op::Slice(_)
                    | Op::Pad(_)
                    | Op::Place(_)
                    | Op::Pick(_)
                    | Op::CausalConv(_)
                    | Op::Rotary(_)
                    | Op::Causal(_)
                    | Op::Position(_)
                    | Op::IndexAffine(_)
                    | Op::IndexBinary(_)
                    | Op::Below(_)
            );
            is_pointwise(op) || is_view(op) || is_other || is_reduction(op)
        }
    }
}

fn is_narrow(function: &Function, node: &Node, op: &Contract) -> bool {
    let Some(arg) = node.args.first() else { return false };
    let ty = function.ty(*arg);
    let mut sizes =
        op.over.iter().map(|name| ty.axis(name).and_then(|axis| axis.size.as_constant()));
    let product = sizes.try_fold(1_i64, |product, size| product.checked_mul(size?));
    product.is_some_and(|product| product <= NARROW)
}
