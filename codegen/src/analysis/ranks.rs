//! States that would differ between data-parallel ranks: every rank sees its own part of the
//! batch, so what a state becomes goes through `sum_ranks`, or ranks drift apart in silence.

use crate::ir::{Function, Module, ValueId};
use crate::ops::Op;
use lightc_dsl::diag::Diag;
use std::collections::BTreeSet;

/// The code of its diagnostics.
const CODE: &str = "E0654";

/// One diagnostic per update of a state that reads the batch of one rank.
pub fn rank_dependent_states(module: &Module) -> Vec<Diag> {
    // Callees come before callers.
    let mut depends: Vec<Vec<bool>> = Vec::new();
    let mut diags = Vec::new();
    for function in &module.functions {
        let local = local_values(function, &depends);
        for (index, value) in &function.updates {
            if local.contains(value)
                && let Some(state) = function.states.get(*index)
            {
                diags.extend(diagnostic(function, *value, &state.name, state.span));
            }
        }
        depends.push(function.outputs.iter().map(|o| local.contains(&o.value)).collect());
    }
    lightc_dsl::diag::normalize(&mut diags);
    diags
}

fn diagnostic(
    function: &Function,
    value: ValueId,
    state: &str,
    declared: Option<lightc_dsl::source::Span>,
) -> Option<Diag> {
    let place = function.definition(value).span.or(declared).or(function.span)?;
    let diag = Diag::error(
        CODE,
        format!("state `{state}` would differ between ranks: its update reads one rank's batch"),
        place,
        "depends on the batch of one rank",
    );
    let diag = match declared {
        Some(span) => diag.with_related(span, "the state"),
        None => diag,
    };
    let help = "sum what is counted over all ranks: `sum_ranks(x) / sum_ranks(1)`";
    Some(diag.with_help(help).into_warning())
}

/// Values that follow from an input of the function without a sum over ranks. Inputs are taken as
/// parts of a batch; parameters and states are the same on all ranks.
fn local_values(function: &Function, callees: &[Vec<bool>]) -> BTreeSet<ValueId> {
    let mut local = BTreeSet::new();
    for (_, node) in function.nodes() {
        let reads = node.args.iter().any(|arg| local.contains(arg));
        let results: Vec<bool> = match &node.op {
            Op::Input(_) => vec![true; node.results.len()],
            Op::SumRanks(_) => vec![false; node.results.len()],
            Op::Call(op) => called(function, op.sub, callees, reads, node.results.len()),
            Op::Stack(op) => called(function, op.sub, callees, reads, node.results.len()),
            _ => vec![reads; node.results.len()],
        };
        for (result, is_local) in node.results.iter().zip(results) {
            if is_local {
                local.insert(*result);
            }
        }
    }
    local
}

/// Which results of a call are local: those that any of the callees makes from its inputs.
fn called(
    function: &Function,
    sub: usize,
    callees: &[Vec<bool>],
    reads: bool,
    n: usize,
) -> Vec<bool> {
    let targets = function.subs.get(sub).map_or(&[][..], |sub| &sub.callees);
    let any = |i: usize| {
        targets
            .iter()
            .any(|t| callees.get(t.0 as usize).and_then(|o| o.get(i)).copied() != Some(false))
    };
    (0..n).map(|i| reads && any(i)).collect()
}
