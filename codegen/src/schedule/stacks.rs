//! What the reversible stacks of a module keep from the forward to the backward pass.

use crate::ir::{FuncId, Function, Module, Node};
use crate::ops::{Op, Stack};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Integrator, Midpoint};
use lightc_dsl::size::Size;
use lightc_numerics::fixed;
use serde::Serialize;
use std::collections::BTreeMap;

/// One reversible stack. Nothing else of its layers is kept: one layer at a time is computed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StackMemory {
    /// The function that holds it.
    pub function: String,
    /// Its name there.
    pub stack: String,
    /// Layers.
    pub layers: usize,
    /// Bytes of the two states that are kept.
    pub state_bytes: Size,
    /// Bits that steps shift out, packed.
    pub kept_bits: Size,
    /// Bits of selections that are made once and replayed.
    pub replay_bits: Size,
}

/// The reversible stacks of a module, callees first.
pub(super) fn stacks(module: &Module) -> Vec<StackMemory> {
    let selections = selections(module);
    let mut found = Vec::new();
    for function in &module.functions {
        for node in &function.nodes {
            let Op::Stack(Stack { sub, integrator: Integrator::Midpoint(midpoint) }) = &node.op
            else {
                continue;
            };
            let Some(sub) = function.subs.get(*sub) else { continue };
            let count = node.args.first().and_then(|x| function.ty(*x).count()).unwrap_or_default();
            let times = |n: u32| count.checked_mul(&Size::constant(n.into())).unwrap_or_default();
            found.push(StackMemory {
                function: function.name.clone(),
                stack: sub.name.clone(),
                layers: sub.callees.len(),
                state_bytes: times(2 * 4),
                kept_bits: times(packed_bits(midpoint)),
                replay_bits: sum(sub
                    .callees
                    .iter()
                    .filter_map(|callee| of_callee(module, &selections, *callee, function, node))),
            });
        }
    }
    found
}

/// Bits per element that the steps of a stack keep; the first keeps none.
fn packed_bits(midpoint: &Midpoint) -> u32 {
    midpoint.steps.iter().skip(1).map(|step| fixed::packed_width(step.bits)).sum()
}

/// Bits of selections that each function makes, callees included, in its own size names.
fn selections(module: &Module) -> Vec<Size> {
    let mut known: Vec<Size> = Vec::new();
    for function in &module.functions {
        let each = |node: &Node| {
            let callees = match &node.op {
                Op::Call(op) => function.subs.get(op.sub).map(|sub| sub.callees.as_slice()),
                Op::Stack(op) => function.subs.get(op.sub).map(|sub| sub.callees.as_slice()),
                op if op.def().is_replayed() => return sum(own_bits(function, node)),
                _ => None,
            };
            let callees = callees.unwrap_or_default().iter();
            sum(callees.filter_map(|callee| of_callee(module, &known, *callee, function, node)))
        };
        let total = sum(function.nodes.iter().map(each));
        known.push(total);
    }
    known
}

/// Bits that a tape keeps of each result.
fn own_bits(function: &Function, node: &Node) -> impl Iterator<Item = Size> {
    node.results.iter().filter_map(|result| {
        let ty = function.ty(*result);
        let bits = if ty.dtype == DType::Bool { 1 } else { 32 };
        ty.count()?.checked_mul(&Size::constant(bits))
    })
}

/// A callee's bits in the caller's sizes.
fn of_callee(
    module: &Module,
    known: &[Size],
    callee: FuncId,
    caller: &Function,
    node: &Node,
) -> Option<Size> {
    let size = known.get(callee.0 as usize)?;
    let function = module.function(callee);
    let inputs: Vec<_> = function.inputs().map(|(_, value)| value).collect();
    let mut bindings = BTreeMap::new();
    for (symbol, value, position) in function.bound_symbols() {
        let index = inputs.iter().position(|input| *input == value)?;
        let arg = caller.ty(*node.args.get(index)?);
        let _ = bindings.insert(symbol, arg.axes.get(position)?.size.clone());
    }
    Some(size.substitute(&bindings))
}

fn sum(sizes: impl Iterator<Item = Size>) -> Size {
    sizes.fold(Size::default(), |sum, size| sum.checked_add(&size).unwrap_or(sum))
}
