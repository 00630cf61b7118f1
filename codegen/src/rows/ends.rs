//! Kernels that end a layer of a reversible stack with the step of its state.
//!
//! What such a layer gives is read once, by the step of the stack's integrator ([`crate::ops::Stack`]). Where a row
//! kernel makes it, two more kernels of the same group are generated, which do not write it: in registers it
//! becomes the next state with its kept bits, or, in the backward pass, the state before. The same nodes in the same
//! order, and the arithmetic of `kernels/include/fixed.cuh` after them, so all bits are those of the kernel
//! that writes the result and of the step by itself.
//!
//! **Rule.** The layer is one without a gate, since a gate's cotangent reads the result. The result is of class `act`, is
//! its kernel's own and read by nothing else, neither in the function nor in its backward, and a thread holds
//! eight of its elements in a row, at a multiple of eight: kept bits then fill whole bytes.

use super::cuda::{Kernel, kernel_with};
use super::plan::Step;
use crate::ir::{FuncId, Function, Module, ValueId};
use crate::ops::Op;
use lightc_dsl::ast::DType;
use lightc_dsl::model::Integrator;
use std::collections::BTreeSet;

/// What a step is written with: elements of a thread in a row.
const EIGHT: i64 = 8;

/// An end of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The result that is not written.
    pub(crate) value: ValueId,
    /// What is made of it.
    pub(crate) way: Way,
}

/// What is made of a layer's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The next state.
    Step,
    /// The state before.
    Inverse,
}

/// The kernels of a layer that have an end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ends {
    /// The kernel in whose place they are.
    pub(crate) entry: String,
    /// With the step.
    pub(crate) step: Kernel,
    /// With its inverse.
    pub(crate) inverse: Kernel,
}

impl Way {
    /// Parameters, after what the kernel writes and before the number of rows.
    pub(super) fn params(self) -> &'static [&'static str] {
        match self {
            Way::Step => &[
                "const int* __restrict__ state_before",
                "const int* __restrict__ state_now",
                "int* __restrict__ state_next",
                "bf16* __restrict__ state_value",
                "unsigned char* __restrict__ state_kept",
                "unsigned long long* state_count",
                "const int state_numerator",
                "const int state_bits",
                "const long long state_scale",
                "const float state_unit",
            ],
            Way::Inverse => &[
                "const int* __restrict__ state_next",
                "const int* __restrict__ state_now",
                "const unsigned char* __restrict__ state_kept",
                "int* __restrict__ state_before",
                "bf16* __restrict__ state_value",
                "const int state_numerator",
                "const int state_bits",
                "const int state_inverse",
                "const long long state_scale",
                "const float state_unit",
            ],
        }
    }

    /// The declaration of what all elements share.
    pub(super) fn step(self) -> String {
        let inverse = if self == Way::Step { "0" } else { "state_inverse" };
        format!(
            "const FixedStep state_step = fixed_step_of(state_numerator, state_bits, {inverse}, state_scale, nullptr, \
             state_unit);"
        )
    }

    /// What is done with eight elements of the result, which lie from an offset on.
    pub(super) fn at(self, result: &str, offset: &str) -> String {
        match self {
            Way::Step => format!(
                "fixed_forward_at(state_step, state_before, state_now, {result}, state_next, state_value, state_kept, \
                 state_count, {offset});"
            ),
            Way::Inverse => format!(
                "fixed_reverse_at(state_step, state_next, state_now, {result}, state_kept, state_before, state_value, \
                 {offset});"
            ),
        }
    }

    /// For the head of a kernel.
    pub(super) fn says(self) -> &'static str {
        match self {
            Way::Step => "steps the state",
            Way::Inverse => "has the state back",
        }
    }

    /// Bytes that it moves for each element: two states read, one and its value written. Kept bits are left out.
    pub(crate) fn element_bytes(self) -> i64 {
        4 + 4 + 4 + 2
    }
}

impl Ends {
    /// Both kernels.
    pub(crate) fn kernels(&self) -> [&Kernel; 2] {
        [&self.step, &self.inverse]
    }
}

/// Functions that a reversible stack runs as a layer without a gate.
pub(super) fn layers(module: &Module) -> BTreeSet<FuncId> {
    let mut found = BTreeSet::new();
    for function in &module.functions {
        for node in &function.nodes {
            let Op::Stack(op) = &node.op else { continue };
            let Integrator::Midpoint(midpoint) = &op.integrator else { continue };
            let Some(sub) = function.subs.get(op.sub) else { continue };
            let free = sub.callees.iter().zip(&midpoint.steps).filter(|(_, s)| s.gate.is_none());
            found.extend(free.map(|(callee, _)| *callee));
        }
    }
    found
}

/// The kernels of a layer that have an end, where the rule allows it. `read` are values that are read after the
/// function, but for its first output.
pub(super) fn ends(function: &Function, steps: &[Step], read: &BTreeSet<ValueId>) -> Option<Ends> {
    let value = function.outputs.first()?.value;
    if read.contains(&value) || function.ty(value).dtype != DType::Act {
        return None;
    }
    let made = steps.iter().find_map(|step| match step {
        Step::Kernel(kernel) if kernel.writes.contains(&value) => Some(kernel),
        _ => None,
    })?;
    let inside = |value: ValueId| {
        let readers = function.nodes().filter(|(_, node)| node.args.contains(&value));
        readers.into_iter().all(|(id, _)| made.group.nodes.contains(&id))
    };
    let with = |way, word: &str| {
        let entry = format!("{}_{word}", made.entry);
        kernel_with(function, &made.group, &entry, Some(End { value, way }))
    };
    (inside(value) && !made.has_product && made.holds_in_a_row(value, EIGHT)).then(|| Ends {
        entry: made.entry.clone(),
        step: with(Way::Step, "step"),
        inverse: with(Way::Inverse, "inverse"),
    })
}
