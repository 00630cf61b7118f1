//! Has the gradients of a fused loss from its forward.
//!
//! The loss and its gradient both need the logits, which are a product of their own and too large to
//! keep. Where a training step needs both, the forward gives the gradients for a cotangent of 1 beside the
//! loss, and the backward multiplies them by the cotangent, which is one number: three products in place
//! of four.

use super::{Result, fault, is_same, renumber_saved};
use crate::ir::{Backward, FuncId, Function, Module, NodeId, Type, Value, ValueId, prune};
use crate::ops::{
    Binary, BinaryFn, Cast, LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropyStep, Op,
    Saved,
};
use std::collections::BTreeMap;

/// Rewrites the losses of a differentiated module.
///
/// # Errors
/// A fault of this compiler.
pub fn share_logits(module: &mut Module) -> Result<()> {
    let mut backwards = std::mem::take(&mut module.backward);
    for backward in &mut backwards {
        let function = module.functions.get_mut(backward.of.0 as usize);
        let function = function.ok_or_else(|| fault("a backward of no function"))?;
        while let Some((at, forward)) = next_pair(backward, function) {
            let gradients = with_gradients(function, forward)?;
            scale_gradients(backward, function, at, gradients)?;
        }
    }
    for (id, function) in (0..).map(FuncId).zip(&mut module.functions) {
        let numbers = renumber(function)?;
        renumber_saved(&mut backwards, id, &numbers)?;
    }
    module.backward = backwards.into_iter().map(prune::prune_backward).collect();
    Ok(())
}

/// Numbers the values of a function as they are defined; where each has gone.
fn renumber(function: &mut Function) -> Result<BTreeMap<ValueId, ValueId>> {
    let mut copy = super::Copy::new(super::declarations(function));
    for node in &function.nodes {
        copy.node(function, node, node.op.clone(), &BTreeMap::new())?;
    }
    copy.finish(function)?;
    *function = copy.to;
    Ok(copy.map)
}

/// A gradient in a backward, and the loss in the forward that it is of.
fn next_pair(backward: &Backward, function: &Function) -> Option<(usize, NodeId)> {
    backward.body.nodes.iter().enumerate().find_map(|(at, node)| {
        let Op::LinearCrossEntropyGrad(grad) = &node.op else { return None };
        let same = |id: &NodeId| {
            let loss = function.node(*id);
            let Op::LinearCrossEntropy(op) = &loss.op else { return false };
            let args = loss.args.iter().zip(&node.args);
            is_of(grad, op) && args.clone().all(|(a, b)| is_same(function, *a, backward, *b))
        };
        let found = function.nodes().map(|(id, _)| id).find(same)?;
        Some((at, found))
    })
}

fn is_of(grad: &LinearCrossEntropyGrad, loss: &LinearCrossEntropy) -> bool {
    grad.channel == loss.channel && grad.vocab == loss.vocab && grad.softcap == loss.softcap
}

/// Makes a loss give its gradients too; the values they are.
fn with_gradients(function: &mut Function, id: NodeId) -> Result<[ValueId; 2]> {
    let node = function.node(id).clone();
    let Op::LinearCrossEntropy(loss) = node.op else { return Err(fault("not a loss")) };
    let [h, w, _] = *node.args.as_slice() else { return Err(fault("a loss of three arguments")) };
    let types = [function.ty(h).clone(), function.ty(w).clone()];
    let first = function.values.len() as u32;
    let gradients = [ValueId(first), ValueId(first + 1)];
    function.values.extend(types.map(|ty: Type| Value { ty, node: id, name: None }));
    let node = function.nodes.get_mut(id.0 as usize).ok_or_else(|| fault("a node is missing"))?;
    node.results.extend(gradients);
    let LinearCrossEntropy { channel, vocab, softcap } = loss;
    node.op = LinearCrossEntropyStep { channel, vocab, softcap }.into();
    Ok(gradients)
}

/// Replaces the gradient at a node of the backward by the forward's, times the cotangent.
fn scale_gradients(
    backward: &mut Backward,
    function: &Function,
    at: usize,
    gradients: [ValueId; 2],
) -> Result<()> {
    let old = backward.body.clone();
    let none = BTreeMap::new();
    let mut copy = super::Copy::new(super::declarations(&old));
    for (index, node) in old.nodes.iter().enumerate() {
        if index != at {
            copy.node(&old, node, node.op.clone(), &none)?;
            continue;
        }
        let cotangent = node.args.get(3).ok_or_else(|| fault("a gradient has no cotangent"))?;
        let mut cotangent = copy.at(*cotangent)?;
        for (result, value) in node.results.iter().zip(gradients) {
            let ty = function.ty(value).clone();
            if copy.to.ty(cotangent).dtype != ty.dtype {
                cotangent =
                    copy.to.push1(Cast { to: ty.dtype }.into(), vec![cotangent], node.span)?;
            }
            let kept = copy.to.push_typed(Saved { value }.into(), vec![], vec![ty], node.span);
            let mul = Binary { function: BinaryFn::Mul };
            let args = kept.into_iter().chain([cotangent]).collect();
            let scaled = copy.to.push1(mul.into(), args, node.span)?;
            copy.map.insert(*result, scaled);
        }
    }
    let mut body = copy.to.clone();
    body.outputs = copy.outputs(&old)?;
    for (_, value) in &mut backward.grads {
        *value = copy.at(*value)?;
    }
    backward.body = body;
    Ok(())
}
