//! Drops nodes whose results nothing uses, and renumbers values densely.

use super::graph::{Backward, Function, Node, NodeId, Output, Value, ValueId};
use crate::ops::Op;
use std::collections::BTreeMap;

/// Drops what neither an output, an update nor a parameter gradient needs. Calls into backward
/// functions stay: they add parameter gradients.
pub fn prune_backward(backward: Backward) -> Backward {
    let Backward { of, seeds, body, inputs, grads } = backward;
    let roots: Vec<ValueId> = grads.iter().map(|(_, value)| *value).collect();
    let (body, renamed) = prune(body, &roots);
    let grads = grads
        .into_iter()
        .filter_map(|(index, value)| renamed.get(&value).map(|v| (index, *v)))
        .collect();
    Backward { of, seeds, body, inputs, grads }
}

/// Drops what no output and no update needs.
pub fn prune_forward(function: Function) -> Function {
    prune(function, &[]).0
}

fn prune(function: Function, roots: &[ValueId]) -> (Function, BTreeMap<ValueId, ValueId>) {
    let keep = needed_nodes(&function, roots);
    let mut renamed: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut values: Vec<Value> = Vec::new();
    let mut nodes: Vec<Node> = Vec::new();
    for (index, node) in function.nodes.iter().enumerate() {
        if keep.get(index) != Some(&true) {
            continue;
        }
        let id = NodeId(nodes.len() as u32);
        let mut results = Vec::new();
        for result in &node.results {
            let new = ValueId(values.len() as u32);
            values.push(Value { node: id, ..function.value(*result).clone() });
            renamed.insert(*result, new);
            results.push(new);
        }
        let args = node.args.iter().filter_map(|a| renamed.get(a).copied()).collect();
        nodes.push(Node { op: node.op.clone(), args, results, span: node.span });
    }
    let renamed_to = |value: &ValueId| renamed.get(value).copied();
    let outputs = function
        .outputs
        .iter()
        .filter_map(|o| renamed_to(&o.value).map(|value| Output { name: o.name.clone(), value }))
        .collect();
    let updates =
        function.updates.iter().filter_map(|(s, v)| renamed_to(v).map(|v| (*s, v))).collect();
    (Function { nodes, values, outputs, updates, ..function }, renamed)
}

fn needed_nodes(function: &Function, roots: &[ValueId]) -> Vec<bool> {
    let mut keep = vec![false; function.nodes.len()];
    let mark = |keep: &mut Vec<bool>, value: ValueId| {
        if let Some(slot) = keep.get_mut(function.value(value).node.0 as usize) {
            *slot = true;
        }
    };
    let outputs = function.outputs.iter().map(|o| o.value);
    let updates = function.updates.iter().map(|(_, v)| *v);
    for value in outputs.chain(updates).chain(roots.iter().copied()) {
        mark(&mut keep, value);
    }
    for (id, node) in function.nodes().rev() {
        let fixed = matches!(node.op, Op::Input(_) | Op::CallBackward(_) | Op::StackBackward(_));
        if fixed && let Some(slot) = keep.get_mut(id.0 as usize) {
            *slot = true;
        }
        if keep.get(id.0 as usize) == Some(&true) {
            for arg in &node.args {
                mark(&mut keep, *arg);
            }
        }
    }
    keep
}
