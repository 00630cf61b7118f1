//! The schedule of a module for a target: which op runs when, what it costs, and when each value
//! is last used.
//!
//! For `cpu` every op is a call of its own, in the order of the graph; a value is dropped after
//! its last use unless a backward function reads it. Costs are symbolic in the sizes that
//! stay open.

mod attention;
mod device;
mod stacks;

pub use attention::AttentionChoice;
pub use device::{DeviceSchedule, DeviceStep, H200, Machine, Work, schedule_device};
pub use stacks::StackMemory;

use crate::ir::{BackwardId, FuncId, Function, Module, ValueId};
use crate::ops::{Cost, Op};
use lightc_dsl::size::Size;
use serde::Serialize;
use std::collections::BTreeSet;

/// What code is generated for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Target {
    /// libtorch on the CPU: every op is a call of its own.
    #[default]
    #[serde(rename = "cpu")]
    Cpu,
    /// An NVIDIA GPU of compute capability 9.0: row operations are fused into generated kernels.
    #[serde(rename = "sm_90a")]
    Sm90a,
}

impl Target {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Target::Cpu => "cpu",
            Target::Sm90a => "sm_90a",
        }
    }
}

/// One step of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Mnemonic.
    pub op: &'static str,
    /// What it computes, as in IR text.
    pub results: Vec<String>,
    /// Floating-point operations.
    pub flops: Size,
    /// Elements read and written if each is touched once.
    pub elements: Size,
    /// Values that are dropped after this step.
    pub drops: Vec<String>,
}

/// The steps of one function, forward or backward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionSchedule {
    /// Name of the function.
    pub function: String,
    /// In execution order.
    pub steps: Vec<Step>,
    /// Values that the forward keeps for its backward; empty for a backward function.
    pub saved: Vec<String>,
    /// Elements that it keeps.
    pub saved_elements: Size,
    /// Operations of this function alone, callees not counted.
    pub flops: Size,
}

/// The schedule of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// `cpu`
    pub target: &'static str,
    /// Forward functions, callees first, then backward functions.
    pub functions: Vec<FunctionSchedule>,
    /// Stacks whose states are had back in the backward pass, and what they keep for it.
    pub stacks: Vec<StackMemory>,
}

/// Values of a forward function that any of its backward functions reads, in value order.
pub fn saved_values(module: &Module, function: FuncId) -> Vec<ValueId> {
    let mut saved = BTreeSet::new();
    for backward in module.backward.iter().filter(|backward| backward.of == function) {
        for node in &backward.body.nodes {
            if let Op::Saved(op) = &node.op {
                saved.insert(op.value);
            }
        }
    }
    saved.into_iter().collect()
}

/// Schedules a differentiated module for the target `cpu`.
pub fn schedule_cpu(module: &Module) -> Schedule {
    let mut functions = Vec::new();
    for (index, function) in module.functions.iter().enumerate() {
        let saved = saved_values(module, FuncId(index as u32));
        functions.push(function_schedule(function, &saved));
    }
    for (index, backward) in module.backward.iter().enumerate() {
        let _ = BackwardId(index as u32);
        functions.push(function_schedule(&backward.body, &[]));
    }
    Schedule { target: "cpu", functions, stacks: stacks::stacks(module) }
}

fn function_schedule(function: &Function, saved: &[ValueId]) -> FunctionSchedule {
    let kept: BTreeSet<ValueId> = function
        .outputs
        .iter()
        .map(|output| output.value)
        .chain(function.updates.iter().map(|(_, value)| *value))
        .chain(saved.iter().copied())
        .collect();
    let mut last_use: Vec<Option<usize>> = vec![None; function.values.len()];
    for (position, node) in function.nodes.iter().enumerate() {
        for value in node.args.iter().chain(&node.results) {
            if let Some(slot) = last_use.get_mut(value.0 as usize) {
                *slot = Some(position);
            }
        }
    }
    let mut steps = Vec::new();
    let mut total = Size::default();
    for (position, node) in function.nodes.iter().enumerate() {
        let cost = node_cost(function, node);
        total = total.checked_add(&cost.flops).unwrap_or(total);
        let drops = (0u32..)
            .zip(&last_use)
            .filter(|(value, last)| **last == Some(position) && !kept.contains(&ValueId(*value)))
            .map(|(value, _)| ValueId(value).to_string())
            .collect();
        steps.push(Step {
            op: node.op.def().mnemonic(),
            results: node.results.iter().map(ToString::to_string).collect(),
            elements: cost.elements_read.checked_add(&cost.elements_written).unwrap_or_default(),
            flops: cost.flops,
            drops,
        });
    }
    let saved_elements = saved
        .iter()
        .filter_map(|value| function.ty(*value).count())
        .fold(Size::default(), |sum, n| sum.checked_add(&n).unwrap_or(sum));
    FunctionSchedule {
        function: function.name.clone(),
        steps,
        saved: saved.iter().map(ToString::to_string).collect(),
        saved_elements,
        flops: total,
    }
}

/// What a node costs.
pub(crate) fn node_cost(function: &Function, node: &crate::ir::Node) -> Cost {
    let args: Vec<_> = node.args.iter().map(|arg| function.ty(*arg)).collect();
    let results: Vec<_> = node.results.iter().map(|result| function.ty(*result)).collect();
    node.op.def().cost(&args, &results)
}
