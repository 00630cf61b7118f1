//! Which functions hand a tape through: what selects inside a layer that is computed twice.

use crate::ir::{FuncId, Module};
use crate::ops::Op;
use lightc_dsl::model::Integrator;
use std::collections::BTreeSet;

/// Whether a stack's states are had back in the backward pass.
pub(crate) fn is_reversible(op: &Op) -> bool {
    matches!(op, Op::Stack(stack) if stack.integrator != Integrator::Plain)
}

/// Whether any stack of the module is reversible.
pub(crate) fn has_reversible(module: &Module) -> bool {
    let mut nodes = module.functions.iter().flat_map(|function| &function.nodes);
    nodes.any(|node| is_reversible(&node.op))
}

/// The functions whose forward takes a tape: those that select, or call one that does, and that a
/// layer of a reversible stack is or calls.
pub(crate) fn tape_takers(module: &Module) -> BTreeSet<FuncId> {
    let mut selects: BTreeSet<FuncId> = BTreeSet::new();
    for (index, function) in module.functions.iter().enumerate() {
        let own = function.nodes.iter().any(|node| node.op.def().is_replayed());
        let mut below = function.subs.iter().flat_map(|sub| &sub.callees);
        if own || below.any(|callee| selects.contains(callee)) {
            let _ = selects.insert(FuncId(index as u32));
        }
    }
    let mut repeated: BTreeSet<FuncId> = BTreeSet::new();
    // Callers stand after callees, so one walk from the last function on reaches all.
    for (index, function) in module.functions.iter().enumerate().rev() {
        let all = repeated.contains(&FuncId(index as u32));
        for (sub, declared) in function.subs.iter().enumerate() {
            let stack = |op: &Op| matches!(op, Op::Stack(stack) if stack.sub == sub);
            let here = |node: &crate::ir::Node| stack(&node.op) && is_reversible(&node.op);
            if all || function.nodes.iter().any(here) {
                repeated.extend(declared.callees.iter().copied());
            }
        }
    }
    selects.intersection(&repeated).copied().collect()
}
