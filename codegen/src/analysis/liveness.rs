//! Gradient liveness: every parameter that is declared to learn must be reached by a path of
//! non-zero derivative from the loss.
//!
//! A backward function lists exactly the parameters whose gradient is not structurally zero, so
//! the analysis walks the backward functions from the entry's and looks what is missing. For what
//! is missing it follows the parameter forward to the op that passes nothing back.

use crate::ir::{Backward, BackwardId, FuncId, Function, Module, Param, ValueId, paths};
use crate::ops::{Op, Unary, UnaryFn};
use lightc_dsl::diag::Diag;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Paths of all parameters that get a gradient from the given backward function of the entry.
pub fn gradient_paths(module: &Module, entry: BackwardId) -> BTreeSet<String> {
    let mut alive = BTreeSet::new();
    visit(module, entry, "", &mut alive);
    alive
}

fn visit(module: &Module, id: BackwardId, path: &str, alive: &mut BTreeSet<String>) {
    let Some(backward) = module.backward.get(id.0 as usize) else { return };
    let forward = module.function(backward.of);
    for (index, _) in &backward.grads {
        alive.extend(forward.params.get(*index).map(|p| paths::join(path, &p.name)));
    }
    for (sub, layer, below) in calls(backward, forward) {
        if let Some(sub) = forward.subs.get(sub) {
            visit(module, below, &paths::sub_path(path, sub, layer), alive);
        }
    }
}

/// Calls of a backward function: sub, layer, backward function of the callee.
fn calls(backward: &Backward, forward: &Function) -> Vec<(usize, usize, BackwardId)> {
    let mut found = Vec::new();
    for node in &backward.body.nodes {
        let (call, layers) = match &node.op {
            Op::CallBackward(op) => (op.call, vec![op.backward]),
            Op::StackBackward(op) => (op.call, op.layers.clone()),
            _ => continue,
        };
        let sub = match forward.nodes.get(call.0 as usize).map(|node| &node.op) {
            Some(Op::Call(op)) => op.sub,
            Some(Op::Stack(op)) => op.sub,
            _ => continue,
        };
        found.extend(layers.into_iter().enumerate().map(|(layer, id)| (sub, layer, id)));
    }
    found
}

/// One diagnostic per declaration of a trained parameter that no gradient reaches at some path.
pub fn dead_parameters(module: &Module, entry: BackwardId) -> Vec<Diag> {
    let alive = gradient_paths(module, entry);
    let mut dead: BTreeMap<(FuncId, usize), Vec<String>> = BTreeMap::new();
    for placed in module.placed_params() {
        if placed.item.storage.learns() && !alive.contains(&placed.path) {
            dead.entry((placed.function, placed.index)).or_default().push(placed.path);
        }
    }
    // Functions made from one declaration report once.
    let mut by_place: BTreeMap<Option<Span>, (FuncId, usize, Vec<String>)> = BTreeMap::new();
    for ((function, index), found) in dead {
        let span = param(module, function, index).and_then(|p| p.span);
        by_place.entry(span).or_insert_with(|| (function, index, Vec::new())).2.extend(found);
    }
    by_place.into_values().filter_map(|(f, i, found)| diagnostic(module, f, i, &found)).collect()
}

fn param(module: &Module, function: FuncId, index: usize) -> Option<&Param> {
    module.function(function).params.get(index)
}

fn diagnostic(module: &Module, function: FuncId, index: usize, found: &[String]) -> Option<Diag> {
    let declared = param(module, function, index)?;
    let span = declared.span.or(module.function(function).span)?;
    let first = found.first()?;
    let others = match found.len() {
        1 => String::new(),
        2 => " (and at 1 other path)".to_owned(),
        n => format!(" (and at {} other paths)", n - 1),
    };
    let mut diag = Diag::error(
        "E0501",
        format!("no gradient reaches trained parameter `{first}`{others}"),
        span,
        "declared to learn, but the loss does not depend on it differentiably",
    )
    .with_help(format!(
        "let the loss depend on `{}`, or declare it `frozen \"reason\"`",
        declared.name
    ));
    match cut_place(module, function, index) {
        Some((place, mnemonic)) => {
            diag = diag.with_related(place, format!("`{mnemonic}` passes no gradient"));
        }
        None => {
            let entry = module.entry_function();
            let name = format!("nothing that `{}` minimises uses it", entry.name);
            diag.related
                .extend(entry.span.map(|span| lightc_dsl::diag::Label { span, text: name }));
        }
    }
    Some(diag)
}

/// The first op, following uses from the parameter, that passes nothing back.
fn cut_place(module: &Module, function: FuncId, index: usize) -> Option<(Span, &'static str)> {
    let forward = module.function(function);
    let starts = forward.nodes.iter().filter_map(|node| match &node.op {
        Op::ParamRef(op) if op.index == index => node.results.first().copied(),
        _ => None,
    });
    cut_after(module, starts.map(|value| (function, value)).collect())
}

/// What is wrong where a layer of a stack passes no gradient on.
pub fn cut_layer(module: &Module, layer: FuncId, call: Option<Span>) -> Option<Diag> {
    let forward = module.function(layer);
    let mut diag = Diag::error(
        "E0502",
        format!(
            "layer `{}` passes no gradient to its input, so nothing below it would learn",
            forward.name
        ),
        forward.span.or(call)?,
        "its result does not depend on its input differentiably",
    )
    .with_help("let the layer's result depend on its input, as a residual path does");
    if let Some(call) = call {
        diag = diag.with_related(call, "a layer of this stack");
    }
    let inputs = forward.inputs().map(|(_, value)| (layer, value)).collect();
    Some(match cut_after(module, inputs) {
        Some((place, mnemonic)) => {
            diag.with_related(place, format!("`{mnemonic}` passes no gradient"))
        }
        None => diag,
    })
}

/// The first op, following uses of the values, that passes nothing back.
fn cut_after(module: &Module, mut queue: Vec<(FuncId, ValueId)>) -> Option<(Span, &'static str)> {
    let mut seen: BTreeSet<(FuncId, ValueId)> = queue.iter().copied().collect();
    let mut next = 0;
    while let Some((function, value)) = queue.get(next).copied() {
        next += 1;
        let forward = module.function(function);
        for node in forward.nodes.iter().filter(|node| node.args.contains(&value)) {
            if cuts(forward, node) {
                if let Some(span) = node.span {
                    return Some((span, node.op.written()));
                }
                continue;
            }
            // A call hands the value to the callee and its result back: the result is what counts.
            for result in &node.results {
                if seen.insert((function, *result)) {
                    queue.push((function, *result));
                }
            }
        }
        if forward.outputs.iter().any(|output| output.value == value) {
            for found in call_results(module, function) {
                if seen.insert(found) {
                    queue.push(found);
                }
            }
        }
    }
    None
}

fn cuts(forward: &Function, node: &crate::ir::Node) -> bool {
    let floor = Unary { function: UnaryFn::Floor };
    matches!(node.op, Op::StopGradient(_))
        || node.op == Op::Unary(floor)
        || node.results.iter().all(|result| !forward.ty(*result).is_float())
}

/// Results of every call of a function, in its callers.
fn call_results(module: &Module, callee: FuncId) -> Vec<(FuncId, ValueId)> {
    let mut found = Vec::new();
    for (index, function) in module.functions.iter().enumerate() {
        for node in &function.nodes {
            let sub = match &node.op {
                Op::Call(op) => op.sub,
                Op::Stack(op) => op.sub,
                _ => continue,
            };
            let calls = function.subs.get(sub).is_some_and(|sub| sub.callees.contains(&callee));
            if calls {
                found.extend(node.results.iter().map(|r| (FuncId(index as u32), *r)));
            }
        }
    }
    found
}
