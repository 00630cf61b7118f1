//! What each kernel of a module moves and computes, and how long that takes on a GPU of a simple model.

use super::report::Plans;
use crate::ir::{Function, Module, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes per second that a kernel reads and writes: 0.9 of what copying reaches on an H200.
const BANDWIDTH: f64 = 0.9 * 4.27e12;
/// 32-bit operations per second outside of tensor cores.
const OPERATIONS: f64 = 30e12;
/// Seconds of a launch.
const LAUNCH: f64 = 3e-6;

/// One kernel of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub kernel: String,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Number of rows, symbolic in open sizes.
    pub rows: Size,
    /// Elements of a lane; 1 where a thread has a row to itself.
    pub lane: i64,
    /// Bytes read and written.
    pub bytes: Size,
    /// Floating-point operations.
    pub flops: Size,
    /// Predicted microseconds at the given sizes; absent where one of them is not given.
    pub microseconds: Option<f64>,
    /// What bounds it: `memory`, `arithmetic` or `launch`.
    pub bound: &'static str,
}

/// The kernels of a module with their cost; times are for these sizes.
pub fn schedule_table(module: &Module, sizes: &BTreeMap<String, i64>) -> Vec<Row> {
    let plans = Plans::of(module);
    let rows = plans.kernels(module).chain(plans.ended(module)).map(|(function, kernel)| {
        let sums = kernel.sums.iter().map(|sum| &sum.value);
        let moved = kernel.group.inputs.iter().chain(&kernel.writes).chain(sums);
        let state = kernel.end.iter().filter_map(|end| {
            let each = Size::constant(end.way.element_bytes());
            function.ty(end.value).count()?.checked_mul(&each)
        });
        let bytes = total(moved.map(|value| bytes(function, *value)).chain(state));
        let flops = total(kernel.group.nodes.iter().map(|id| {
            let node = function.node(*id);
            let args: Vec<_> = node.args.iter().map(|arg| function.ty(*arg)).collect();
            let results: Vec<_> = node.results.iter().map(|r| function.ty(*r)).collect();
            node.op.def().cost(&args, &results).flops
        }));
        let (microseconds, bound) = predict(&bytes, &flops, sizes);
        Row {
            kernel: kernel.entry.clone(),
            nodes: kernel.group.nodes.len(),
            rows: kernel.rows(),
            lane: kernel.group.layout.lane(),
            bytes,
            flops,
            microseconds,
            bound,
        }
    });
    rows.collect()
}

fn total(sizes: impl Iterator<Item = Size>) -> Size {
    sizes.fold(Size::default(), |sum, size| sum.checked_add(&size).unwrap_or(sum))
}

fn bytes(function: &Function, value: ValueId) -> Size {
    let ty = function.ty(value);
    let each = match ty.dtype {
        DType::Act => 2,
        DType::F32 => 4,
        DType::Index => 8,
        DType::Bool => 1,
    };
    ty.count().and_then(|n| n.checked_mul(&Size::constant(each))).unwrap_or_default()
}

#[allow(clippy::cast_precision_loss)] // estimates
fn predict(
    bytes: &Size,
    flops: &Size,
    sizes: &BTreeMap<String, i64>,
) -> (Option<f64>, &'static str) {
    let (Some(bytes), Some(flops)) = (bytes.evaluate(sizes), flops.evaluate(sizes)) else {
        return (None, "memory");
    };
    let (memory, arithmetic) = (bytes as f64 / BANDWIDTH, flops as f64 / OPERATIONS);
    let bound = if LAUNCH > memory.max(arithmetic) {
        "launch"
    } else if memory >= arithmetic {
        "memory"
    } else {
        "arithmetic"
    };
    (Some((memory.max(arithmetic) + LAUNCH) * 1e6), bound)
}
