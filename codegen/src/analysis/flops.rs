//! The floating-point operations of a model, by which a run measures how well it uses a device.

use super::memory::{bound, callee_sizes, root_sizes, unshifted};
use crate::ir::{FuncId, Module};
use crate::ops::Op;
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// Operations of the contractions of one forward pass over a micro-batch, over [`super::BATCH`] and
/// [`super::SEQUENCE`]: products with parameters, products of values, the delta rule, attention (over
/// all pairs of positions, also those that a mask leaves out) and the loss's product. A product and a
/// sum are two operations. Row operations do not count. `None` if a size stays open or a number
/// overflows.
pub fn contraction_flops(module: &Module) -> Option<Size> {
    let sizes = root_sizes(module.entry_function())?;
    Some(unshifted(&of_function(module, module.entry, &sizes)?))
}

fn of_function(module: &Module, id: FuncId, sizes: &BTreeMap<String, Size>) -> Option<Size> {
    let function = module.function(id);
    let mut total = Size::default();
    for node in &function.nodes {
        let own = match &node.op {
            Op::Contract(_)
            | Op::ExpertDot(_)
            | Op::RoutedDot(_)
            | Op::RoutedDotPair(_)
            | Op::RoutedSwiglu(_)
            | Op::RoutedCombine(_)
            | Op::GatedDeltaRule(_)
            | Op::MaskedAttention(_)
            | Op::LinearCrossEntropy(_) => {
                bound(&crate::schedule::node_cost(function, node).flops, sizes)?
            }
            // The product and its two gradients, of which the backward's are counted with it.
            Op::LinearCrossEntropyStep(_) => {
                let all = bound(&crate::schedule::node_cost(function, node).flops, sizes)?;
                all.exact_div(&Size::constant(3))?
            }
            _ => Size::default(),
        };
        total = total.checked_add(&own)?;
        let sub = match &node.op {
            Op::Call(op) => op.sub,
            Op::Stack(op) => op.sub,
            _ => continue,
        };
        for callee in &function.subs.get(sub)?.callees {
            let below = callee_sizes(module.function(*callee), function, &node.args, sizes)?;
            total = total.checked_add(&of_function(module, *callee, &below)?)?;
        }
    }
    Some(total)
}
