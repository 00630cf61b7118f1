//! The schedule of a module for a GPU: generated kernels, products, tile kernels and what libtorch does, how often a step of
//! training runs each, what it moves and computes, and how long that takes by a simple model.
//!
//! The model: a launch, and the longer of memory and arithmetic, each at the rate that good kernels reach. What misses its
//! prediction by much is worth a look; see docs/performance.md.

use super::attention::{self, AttentionChoice};
use super::node_cost;
use crate::analysis::occupies;
use crate::ir::{Function, Module, Node, ValueId};
use crate::ops::Op;
use crate::rows::{Kernel, Plans, Step as Planned};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Integrator;
use lightc_dsl::size::Size;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A GPU as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Its name.
    pub name: &'static str,
    /// Bytes read and written in a second: 0.9 of what copying reaches.
    pub bytes_per_second: f64,
    /// bf16 operations of tensor cores in a second, as large products reach them.
    pub product_flops_per_second: f64,
    /// 32-bit operations in a second outside of tensor cores.
    pub row_flops_per_second: f64,
    /// Seconds of a launch.
    pub launch_seconds: f64,
}

/// Rates as docs/performance.md has measured them.
pub const H200: Machine = Machine {
    name: "H200",
    bytes_per_second: 0.9 * 4.27e12,
    product_flops_per_second: 700e12,
    row_flops_per_second: 30e12,
    launch_seconds: 3e-6,
};

/// Who computes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// A kernel that is generated from the IR.
    Row,
    /// A product of matrices.
    Product,
    /// An op with a tile kernel of `kernels/`.
    Tile,
    /// An op of libtorch.
    Library,
}

impl Work {
    /// Its word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Work::Row => "row kernel",
            Work::Product => "product",
            Work::Tile => "tile kernel",
            Work::Library => "libtorch",
        }
    }
}

/// One step of a function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceStep {
    /// The kernel's entry point, or the op with what it computes.
    pub kernel: String,
    /// The function it is of.
    pub function: String,
    /// Who computes it.
    pub work: Work,
    /// How often a step of training runs it. 0: only where states are stored.
    pub calls: i64,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Bytes read and written by one call if each is touched once; absent where a size is not known.
    pub bytes: Option<f64>,
    /// Floating-point operations of one call.
    pub flops: Option<f64>,
    /// Predicted microseconds of one call; absent where a size is not known.
    pub microseconds: Option<f64>,
    /// What bounds it: `memory`, `arithmetic`, `tensor cores` or `launch`.
    pub bound: &'static str,
    /// How it runs, if it is attention or its gradient at known sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionChoice>,
}

/// Forward and backward of a step of training on one GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceSchedule {
    /// The GPU.
    pub machine: Machine,
    /// By function, forward then backward, in the order in which they run.
    pub steps: Vec<DeviceStep>,
}

impl DeviceSchedule {
    /// Predicted milliseconds of all calls of a kind of work.
    pub fn milliseconds(&self, work: Work) -> f64 {
        let steps = self.steps.iter().filter(|step| step.work == work);
        #[allow(clippy::cast_precision_loss)] // counts of calls
        let each = steps.map(|step| step.calls as f64 * step.microseconds.unwrap_or(0.0) / 1e3);
        // The sum of none is -0.
        each.sum::<f64>() + 0.0
    }
}

/// Schedules a module that is rewritten for a GPU; `sizes` are those of the entry function.
pub fn schedule_device(
    module: &Module,
    sizes: &BTreeMap<String, i64>,
    machine: Machine,
) -> DeviceSchedule {
    let plans = Plans::of(module);
    let visits = Visits::of(module, sizes);
    let mut steps = Vec::new();
    let mut list = |function: &Function, planned: &[Planned], visit: &Visit| {
        let one = |step: &Planned| match step {
            Planned::Kernel(kernel) => {
                Some(of_kernel(function, kernel).step(function, visit, machine))
            }
            Planned::Node(id) => {
                let node = function.node(*id);
                let mut step = of_node(function, node)?.step(function, visit, machine);
                attention::choose(&mut step, function, node, &visit.sizes);
                Some(step)
            }
        };
        steps.extend(planned.iter().filter_map(one));
    };
    for ((function, planned), visit) in
        module.functions.iter().zip(&plans.forward).zip(&visits.forward)
    {
        list(function, planned, visit);
    }
    for ((backward, planned), calls) in
        module.backward.iter().zip(&plans.backward).zip(&visits.backward)
    {
        let of = visits.forward.get(backward.of.0 as usize);
        let sizes = of.map(|visit| visit.sizes.clone()).unwrap_or_default();
        list(&backward.body, planned, &Visit { calls: *calls, again: 0, sizes });
    }
    with_ends(module, &plans, &visits, machine, &mut steps);
    DeviceSchedule { machine, steps }
}

/// Adds kernels that end a layer with the step of its state or with the inverse: they run in place of the kernel
/// that makes the layer's result.
fn with_ends(
    module: &Module,
    plans: &Plans,
    visits: &Visits,
    machine: Machine,
    steps: &mut Vec<DeviceStep>,
) {
    let functions = module.functions.iter().zip(&plans.ends).zip(&visits.forward);
    for ((function, ends), visit) in functions {
        let Some(ends) = ends else { continue };
        let at = steps.iter().position(|step| step.kernel == ends.entry);
        if let Some(base) = at.and_then(|at| steps.get_mut(at)) {
            base.calls = 0;
        }
        let at = at.map_or(steps.len(), |at| at + 1);
        let both = [(&ends.inverse, visit.again), (&ends.step, visit.calls - visit.again)];
        for (kernel, calls) in both {
            let visit = Visit { calls, again: 0, sizes: visit.sizes.clone() };
            steps.insert(at, of_kernel(function, kernel).step(function, &visit, machine));
        }
    }
}

/// How often a function runs in a step of training, and its sizes.
#[derive(Clone, Debug, Default)]
struct Visit {
    calls: i64,
    /// Of these, those of the backward pass of a reversible stack.
    again: i64,
    sizes: BTreeMap<String, i64>,
}

struct Visits {
    forward: Vec<Visit>,
    backward: Vec<i64>,
}

impl Visits {
    fn of(module: &Module, sizes: &BTreeMap<String, i64>) -> Visits {
        let mut visits = Visits {
            forward: vec![Visit::default(); module.functions.len()],
            backward: vec![0; module.backward.len()],
        };
        if let Some(entry) = visits.forward.get_mut(module.entry.0 as usize) {
            *entry = Visit { calls: 1, again: 0, sizes: sizes.clone() };
        }
        let entry = module.backward.iter().position(|backward| backward.of == module.entry);
        if let Some(calls) = entry.and_then(|entry| visits.backward.get_mut(entry)) {
            *calls = 1;
        }
        // Callees come before their callers.
        for index in (0..module.backward.len()).rev() {
            visits.call_backwards(module, index);
        }
        for index in (0..module.functions.len()).rev() {
            visits.call(module, index);
        }
        visits
    }

    fn call_backwards(&mut self, module: &Module, index: usize) {
        let (Some(backward), Some(calls)) =
            (module.backward.get(index), self.backward.get(index).copied())
        else {
            return;
        };
        for node in &backward.body.nodes {
            let (callees, again) = match &node.op {
                Op::CallBackward(op) => (vec![op.backward], false),
                Op::StackBackward(op) => {
                    (op.layers.clone(), matches!(op.integrator, Integrator::Midpoint(_)))
                }
                _ => continue,
            };
            for callee in callees {
                if let Some(slot) = self.backward.get_mut(callee.0 as usize) {
                    *slot += calls;
                }
                let of = module.backward.get(callee.0 as usize).map(|callee| callee.of);
                let layer = of.and_then(|of| self.forward.get_mut(of.0 as usize));
                if let (true, Some(layer)) = (again, layer) {
                    layer.calls += calls;
                    layer.again += calls;
                }
            }
        }
    }

    fn call(&mut self, module: &Module, index: usize) {
        let (Some(function), Some(visit)) =
            (module.functions.get(index), self.forward.get(index).cloned())
        else {
            return;
        };
        for node in &function.nodes {
            let sub = match &node.op {
                Op::Call(op) => op.sub,
                Op::Stack(op) => op.sub,
                _ => continue,
            };
            let callees = function.subs.get(sub).map(|sub| sub.callees.as_slice());
            for callee in callees.unwrap_or_default() {
                let sizes = sizes_of(module.function(*callee), function, node, &visit.sizes);
                if let Some(slot) = self.forward.get_mut(callee.0 as usize) {
                    slot.calls += visit.calls;
                    slot.again += visit.again;
                    slot.sizes = sizes;
                }
            }
        }
    }
}

/// The sizes of a callee, from the shapes of what it is handed.
fn sizes_of(
    callee: &Function,
    caller: &Function,
    node: &Node,
    sizes: &BTreeMap<String, i64>,
) -> BTreeMap<String, i64> {
    let inputs: Vec<ValueId> = callee.inputs().map(|(_, value)| value).collect();
    let of = |(symbol, value, position): (String, ValueId, usize)| {
        let index = inputs.iter().position(|input| *input == value)?;
        let axes = &caller.ty(*node.args.get(index)?).axes;
        Some((symbol, axes.get(position)?.size.evaluate(sizes)?))
    };
    callee.bound_symbols().into_iter().filter_map(of).collect()
}

/// What a step moves and computes, before sizes are known.
struct Priced {
    name: String,
    work: Work,
    nodes: usize,
    bytes: Size,
    /// On tensor cores, and outside of them.
    flops: [Size; 2],
}

/// The same at known sizes.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    bytes: f64,
    product_flops: f64,
    row_flops: f64,
}

impl Machine {
    /// Seconds of a call, and what bounds it.
    fn predict(&self, amounts: Amounts) -> (f64, &'static str) {
        let work = [
            (amounts.bytes / self.bytes_per_second, "memory"),
            (amounts.product_flops / self.product_flops_per_second, "tensor cores"),
            (amounts.row_flops / self.row_flops_per_second, "arithmetic"),
        ];
        let longest = work.into_iter().max_by(|x, y| x.0.total_cmp(&y.0));
        let (seconds, bound) = longest.unwrap_or_default();
        let bound = if seconds < self.launch_seconds { "launch" } else { bound };
        (seconds + self.launch_seconds, bound)
    }
}

impl Priced {
    #[allow(clippy::cast_precision_loss)] // estimates
    fn amounts(&self, sizes: &BTreeMap<String, i64>) -> Option<Amounts> {
        let number = |size: &Size| size.evaluate(sizes).map(|n| n as f64);
        let [products, rows] = &self.flops;
        Some(Amounts {
            bytes: number(&self.bytes)?,
            product_flops: number(products)?,
            row_flops: number(rows)?,
        })
    }

    fn step(self, function: &Function, visit: &Visit, machine: Machine) -> DeviceStep {
        let amounts = self.amounts(&visit.sizes);
        let (microseconds, bound) = amounts.map_or((None, "memory"), |amounts| {
            let (seconds, bound) = machine.predict(amounts);
            (Some(seconds * 1e6), bound)
        });
        DeviceStep {
            kernel: self.name,
            function: function.name.clone(),
            work: self.work,
            calls: visit.calls,
            nodes: self.nodes,
            bytes: amounts.map(|amounts| amounts.bytes),
            flops: amounts.map(|amounts| amounts.product_flops + amounts.row_flops),
            microseconds,
            bound,
            attention: None,
        }
    }
}

fn of_kernel(function: &Function, kernel: &Kernel) -> Priced {
    let sums = kernel.sums.iter().map(|sum| &sum.value);
    let moved = kernel.group.inputs.iter().chain(&kernel.writes).chain(sums);
    let state = kernel.end.iter().filter_map(|end| {
        let each = Size::constant(end.way.element_bytes());
        function.ty(end.value).count()?.checked_mul(&each)
    });
    let flops = |on_tensor_cores: bool| {
        let nodes = kernel.group.nodes.iter().map(|id| function.node(*id));
        let chosen = nodes.filter(|node| matches!(node.op, Op::Contract(_)) == on_tensor_cores);
        total(chosen.map(|node| node_cost(function, node).flops))
    };
    Priced {
        name: kernel.entry.clone(),
        work: Work::Row,
        nodes: kernel.group.nodes.len(),
        bytes: total(moved.map(|value| bytes(function, *value)).chain(state)),
        flops: [flops(true), flops(false)],
    }
}

/// A node that is a call of its own; nothing for leaves, views and calls of functions.
fn of_node(function: &Function, node: &Node) -> Option<Priced> {
    let calls =
        matches!(node.op, Op::Call(_) | Op::Stack(_) | Op::CallBackward(_) | Op::StackBackward(_));
    if calls || !occupies(node) {
        return None;
    }
    let result = node.results.first().and_then(|value| function.value(*value).name.as_deref());
    let mnemonic = node.op.def().mnemonic();
    let work = work(&node.op);
    let flops = node_cost(function, node).flops;
    let read: BTreeSet<ValueId> = node.args.iter().copied().collect();
    Some(Priced {
        name: result.map_or(mnemonic.to_owned(), |result| format!("{mnemonic} {result}")),
        work,
        nodes: 1,
        bytes: total(read.iter().chain(&node.results).map(|value| bytes(function, *value))),
        flops: match work {
            Work::Product | Work::Tile => [flops, Size::default()],
            Work::Row | Work::Library => [Size::default(), flops],
        },
    })
}

/// Ops with kernels in `kernels/`: docs/gpu.md has the shapes that they take.
fn work(op: &Op) -> Work {
    match op {
        Op::Contract(_) => Work::Product,
        Op::GatedDeltaRule(_)
        | Op::GatedDeltaRuleGrad(_)
        | Op::SelectTop(_)
        | Op::Indexer(_)
        | Op::MaskedAttention(_)
        | Op::MaskedAttentionGrad(_)
        | Op::LinearCrossEntropy(_)
        | Op::LinearCrossEntropyGrad(_)
        | Op::LinearCrossEntropyStep(_)
        | Op::GatherSum(_)
        | Op::GatherSumGrad(_)
        | Op::Take(_)
        | Op::TakeGrad(_)
        | Op::Count(_)
        | Op::Top(_)
        | Op::Hadamard(_)
        | Op::ExpertOrder(_)
        | Op::RoutedDot(_)
        | Op::RoutedDotPair(_)
        | Op::RoutedSwiglu(_)
        | Op::RoutedCombine(_)
        | Op::RoutedWeightGrad(_)
        | Op::RoutedWeightGradPair(_)
        | Op::RoutedLowBack(_) => Work::Tile,
        _ => Work::Library,
    }
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
