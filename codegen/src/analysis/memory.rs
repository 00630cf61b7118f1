//! The memory of one GPU in training, by storage class and layout. `docs/memory.md` has the
//! formulae and what is assumed.
//!
//! Tensors at rest are counted exactly from the declarations. What is live within a step is an
//! estimate from the graph: every value of a forward or backward function occupies memory from
//! the node that makes it to its last use, nothing is fused, and views occupy nothing.

use crate::ir::paths::Placed;
use crate::ir::{BackwardId, FuncId, Function, Module, NodeId, Type, ValueId};
use crate::ops::{Op, Stack};
use crate::schedule::saved_values;
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Integrator, Storage};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What the ledger is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// GPUs that train one copy of the stage.
    pub gpus: u64,
    /// Sequences per GPU and step.
    pub micro_batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
}

/// Bytes per GPU by storage class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    /// Trained and frozen parameters.
    pub parameters: u64,
    /// Codes and scales.
    pub quantized_base: u64,
    /// Adapters.
    pub adapters: u64,
    /// Of parameters and adapters.
    pub gradients: u64,
    /// fp32 master and two moments.
    pub optimizer: u64,
    /// States of stacks (or what plain ones keep for their backward), of the model, and carries.
    pub states: u64,
    /// Low bits that inverse steps need.
    pub kept_bits: u64,
    /// Selections that a recomputed layer reuses.
    pub replay: u64,
    /// Most that is live within a step besides all of the above.
    pub workspace: u64,
}

impl Classes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Name and bytes, in order.
    pub fn rows(&self) -> [(&'static str, u64); 9] {
        [
            ("parameters", self.parameters),
            ("quantized base", self.quantized_base),
            ("adapters", self.adapters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("states", self.states),
            ("kept bits", self.kept_bits),
            ("replay", self.replay),
            ("workspace", self.workspace),
        ]
    }
}

/// One way to spread a stage over GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// `plain`, `zero_1` or `expert_parallel`.
    pub name: &'static str,
    /// Bytes of the GPU that has most.
    pub bytes: Classes,
    /// All of them.
    pub total: u64,
}

/// The memory of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// The stage.
    pub stage: String,
    /// What it is for.
    pub setup: Setup,
    /// Every layout.
    pub layouts: Vec<Layout>,
}

type Sizes = BTreeMap<String, i64>;

/// The ledger of a differentiated module whose parameters have bound sizes; `None` if a size is
/// open that neither the batch nor the sequence binds, or a number overflows.
pub fn memory(module: &Module, backward: BackwardId, setup: Setup) -> Option<Ledger> {
    let root = module.entry_function();
    let sizes = root_sizes(root, setup)?;
    let mut walk = Walk { module, known: BTreeMap::new() };
    let states = walk.stacks(module.entry, &sizes)?;
    let peak = walk.forward(module.entry, &sizes)?;
    let back = walk.backward(backward, &sizes)?;
    let mut live = Classes {
        states: states.states + at_rest(module)? + carries(root, &sizes)?,
        kept_bits: states.kept_bits,
        replay: states.replay,
        workspace: peak.max(back),
        ..Classes::default()
    };
    let mut layouts = Vec::new();
    for name in ["plain", "zero_1", "expert_parallel"] {
        let rest = parameters(module, name, setup.gpus.max(1))?;
        live.parameters = rest.parameters;
        live.quantized_base = rest.quantized_base;
        live.adapters = rest.adapters;
        live.gradients = rest.gradients;
        live.optimizer = rest.optimizer;
        layouts.push(Layout { name, bytes: live, total: live.total() });
    }
    Some(Ledger { stage: module.name.clone(), setup, layouts })
}

/// Batch and sequence as the axes of `tokens`; of a stage without tokens, as its first input's.
fn root_sizes(root: &Function, setup: Setup) -> Option<Sizes> {
    let named = root.inputs().find(|(name, _)| *name == "tokens");
    let (_, tokens) = named.or_else(|| root.inputs().next())?;
    let mut sizes = Sizes::new();
    let values = [setup.micro_batch, setup.seq];
    for (axis, value) in root.ty(tokens).axes.iter().zip(values) {
        for symbol in axis.size.symbols() {
            sizes.insert(symbol.to_owned(), i64::try_from(value).ok()?);
        }
    }
    Some(sizes)
}

fn width(dtype: DType) -> u64 {
    match dtype {
        DType::Act => 2,
        DType::F32 | DType::Index => 4,
        DType::Bool => 1,
    }
}

fn bytes_of(ty: &Type, sizes: &Sizes) -> Option<u64> {
    let count = u64::try_from(ty.count()?.evaluate(sizes)?).ok()?;
    count.checked_mul(width(ty.dtype))
}

/// Bytes of the parameters of one GPU under a layout.
fn parameters(module: &Module, layout: &str, gpus: u64) -> Option<Classes> {
    let mut sum = Classes::default();
    for placed in module.placed_params() {
        let count = u64::try_from(placed.item.ty.count()?.as_constant()?).ok()?;
        let experts = (layout == "expert_parallel").then(|| experts(&placed)).flatten();
        // The GPU that has most holds the rounded-up share of the experts.
        let here = match experts {
            Some(experts) => count / experts.max(1) * experts.div_ceil(gpus),
            None => count,
        };
        let row = placed.item.ty.axes.last().and_then(|axis| axis.size.as_constant());
        let value = here.checked_mul(width(placed.item.ty.dtype))?;
        match placed.item.storage {
            Storage::Quantized(_) => {
                sum.quantized_base += here + 4 * (here / u64::try_from(row?).ok()?.max(1));
                continue;
            }
            Storage::Frozen(_) => {
                sum.parameters += value;
                continue;
            }
            Storage::Trained => sum.parameters += value,
            Storage::Adapter => sum.adapters += value,
        }
        sum.gradients += value;
        // A parameter that computes in 32 bits is its own master.
        let per_element = if placed.item.ty.dtype == DType::F32 { 8 } else { 12 };
        let whole = here.checked_mul(per_element)?;
        let is_local = layout == "plain" || experts.is_some();
        sum.optimizer += if is_local { whole } else { whole.div_ceil(gpus) };
    }
    Some(sum)
}

/// How many experts a parameter has: the axis of which only some positions work per token.
fn experts(placed: &Placed<'_, crate::ir::Param>) -> Option<u64> {
    let active = placed.item.active.as_ref()?;
    u64::try_from(placed.item.ty.axis(&active.of)?.size.as_constant()?).ok()
}

/// Bytes of the model's own states.
fn at_rest(module: &Module) -> Option<u64> {
    let none = Sizes::new();
    module.placed_states().iter().map(|placed| bytes_of(&placed.item.ty, &none)).sum()
}

/// Bytes of what one step hands to the next: inputs that are also outputs.
fn carries(root: &Function, sizes: &Sizes) -> Option<u64> {
    let is_output = |name: &str| root.outputs.iter().any(|o| o.name.as_deref() == Some(name));
    let carried = root.inputs().filter(|(name, _)| is_output(name));
    carried.map(|(_, value)| bytes_of(root.ty(value), sizes)).sum()
}

/// What stacks hold between forward and backward.
#[derive(Clone, Copy, Default)]
struct Held {
    states: u64,
    kept_bits: u64,
    replay: u64,
}

/// Sums and peaks over the functions of a module, by function and sizes.
struct Walk<'m> {
    module: &'m Module,
    known: BTreeMap<(bool, u32, Sizes), u64>,
}

/// The sizes of a callee from the types of the arguments of a call.
fn callee_sizes(
    callee: &Function,
    caller: &Function,
    args: &[ValueId],
    sizes: &Sizes,
) -> Option<Sizes> {
    let inputs: Vec<ValueId> = callee.inputs().map(|(_, value)| value).collect();
    let mut bound = Sizes::new();
    for (name, input, position) in callee.bound_symbols() {
        let arg = args.get(inputs.iter().position(|value| *value == input)?)?;
        let axis = caller.ty(*arg).axes.get(position)?;
        bound.insert(name, axis.size.evaluate(sizes)?);
    }
    Some(bound)
}

impl Walk<'_> {
    /// Callees of a node with their sizes; `None` for a node that calls nothing.
    fn callees(
        &self,
        function: &Function,
        node: &crate::ir::Node,
        sizes: &Sizes,
    ) -> Option<Vec<(FuncId, Sizes)>> {
        let sub = match &node.op {
            Op::Call(op) => op.sub,
            Op::Stack(op) => op.sub,
            _ => return Some(Vec::new()),
        };
        let callees = &function.subs.get(sub)?.callees;
        let each = callees.iter().map(|id| {
            let callee = self.module.function(*id);
            Some((*id, callee_sizes(callee, function, &node.args, sizes)?))
        });
        each.collect()
    }

    /// What the stacks in a function hold between forward and backward.
    fn stacks(&self, id: FuncId, sizes: &Sizes) -> Option<Held> {
        let function = self.module.function(id);
        let mut sum = Held::default();
        for node in &function.nodes {
            let callees = self.callees(function, node, sizes)?;
            if let (Op::Stack(op), Some(state)) = (&node.op, node.args.first()) {
                let own = self.held(op, function.ty(*state), sizes, &callees)?;
                sum.states += own.states;
                sum.kept_bits += own.kept_bits;
                sum.replay += own.replay;
            }
            for (callee, sizes) in callees {
                let below = self.stacks(callee, &sizes)?;
                sum.states += below.states;
                sum.kept_bits += below.kept_bits;
                sum.replay += below.replay;
            }
        }
        Some(sum)
    }

    /// What one stack holds: a plain one keeps what the backward of every layer reads; a reversible
    /// one its last two states in 32 bits, the kept bits of its steps, and selections.
    fn held(
        &self,
        op: &Stack,
        state: &Type,
        sizes: &Sizes,
        layers: &[(FuncId, Sizes)],
    ) -> Option<Held> {
        let Some(bits) = kept_bits(op) else {
            let saved = layers.iter().map(|(layer, sizes)| self.saved(*layer, sizes));
            return Some(Held { states: saved.sum::<Option<u64>>()?, ..Held::default() });
        };
        let count = u64::try_from(state.count()?.evaluate(sizes)?).ok()?;
        let replay = layers.iter().map(|(layer, sizes)| self.replay(*layer, sizes));
        Some(Held {
            states: 2 * 4 * count,
            kept_bits: bits.iter().map(|bits| (count * bits).div_ceil(8)).sum(),
            replay: replay.sum::<Option<u64>>()?,
        })
    }

    /// Bytes that the forward of a function keeps for its backward, with what its callees keep.
    /// What stacks hold is counted by [`Walk::held`].
    fn saved(&self, id: FuncId, sizes: &Sizes) -> Option<u64> {
        let function = self.module.function(id);
        let mut sum = 0;
        for value in saved_values(self.module, id) {
            if occupies(function.definition(value)) {
                sum += bytes_of(function.ty(value), sizes)?;
            }
        }
        for node in function.nodes.iter().filter(|node| matches!(node.op, Op::Call(_))) {
            for (callee, sizes) in self.callees(function, node, sizes)? {
                sum += self.saved(callee, &sizes)?;
            }
        }
        Some(sum)
    }

    /// Bytes of the selections of a function and its callees: results of ops that choose.
    fn replay(&self, id: FuncId, sizes: &Sizes) -> Option<u64> {
        let function = self.module.function(id);
        let mut sum = 0;
        for node in &function.nodes {
            if matches!(node.op, Op::Top(_) | Op::SelectTop(_)) {
                for result in &node.results {
                    let ty = function.ty(*result);
                    if !ty.is_float() {
                        sum += bytes_of(ty, sizes)?;
                    }
                }
            }
            for (callee, sizes) in self.callees(function, node, sizes)? {
                sum += self.replay(callee, &sizes)?;
            }
        }
        Some(sum)
    }

    /// The peak of a forward function: its own live values, what finished calls keep, and the peak
    /// of the call that runs.
    fn forward(&mut self, id: FuncId, sizes: &Sizes) -> Option<u64> {
        let key = (false, id.0, sizes.clone());
        if let Some(known) = self.known.get(&key) {
            return Some(*known);
        }
        let module = self.module;
        let function = module.function(id);
        let kept: BTreeSet<ValueId> = saved_values(module, id).into_iter().collect();
        let last = last_uses(function, &kept);
        let (mut live, mut peak) = (0, 0);
        for (position, node) in function.nodes.iter().enumerate() {
            if occupies(node) {
                live += made(function, node, sizes)?;
            }
            let callees = self.callees(function, node, sizes)?;
            let is_stack = matches!(node.op, Op::Stack(_));
            let is_plain = matches!(&node.op, Op::Stack(op) if kept_bits(op).is_none());
            let mut inside = 0;
            for (callee, below) in &callees {
                let own = self.forward(*callee, below)?;
                // What the layers of a plain stack keep is among its states.
                let own =
                    if is_plain { own.saturating_sub(self.saved(*callee, below)?) } else { own };
                inside = inside.max(own);
            }
            peak = peak.max(live + inside);
            if !is_stack {
                for (callee, below) in &callees {
                    live += self.saved(*callee, below)?;
                }
            }
            live -= dropped(function, &last, position, sizes)?.min(live);
        }
        self.known.insert(key, peak);
        Some(peak)
    }

    /// The peak of a backward function: what the forward has kept, its own live values, and the
    /// peak of the call that runs, whose kept values are among those of the forward.
    fn backward(&mut self, id: BackwardId, sizes: &Sizes) -> Option<u64> {
        let key = (true, id.0, sizes.clone());
        if let Some(known) = self.known.get(&key) {
            return Some(*known);
        }
        let module = self.module;
        let backward = module.backward.get(id.0 as usize)?;
        let (body, forward) = (&backward.body, module.function(backward.of));
        let grads: BTreeSet<ValueId> = backward.grads.iter().map(|(_, value)| *value).collect();
        let outputs = body.outputs.iter().map(|output| output.value);
        // Gradients of parameters have a class of their own.
        let kept: BTreeSet<ValueId> = outputs.filter(|value| !grads.contains(value)).collect();
        let last = last_uses(body, &kept);
        let base = self.saved(backward.of, sizes)?;
        let (mut live, mut peak) = (0, 0);
        for (position, node) in body.nodes.iter().enumerate() {
            if occupies(node) && !node.results.iter().all(|value| grads.contains(value)) {
                live += made(body, node, sizes)?;
            }
            let inside = self.inside_backward(node, forward, sizes)?;
            peak = peak.max(live + inside);
            live -= dropped(body, &last, position, sizes)?.min(live);
        }
        let peak = base + peak;
        self.known.insert(key, peak);
        Some(peak)
    }

    /// Peak of what a node of a backward function calls, beyond what the forward has kept.
    fn inside_backward(
        &mut self,
        node: &crate::ir::Node,
        forward: &Function,
        sizes: &Sizes,
    ) -> Option<u64> {
        let (call, layers): (NodeId, &[BackwardId]) = match &node.op {
            Op::CallBackward(op) => (op.call, std::slice::from_ref(&op.backward)),
            Op::StackBackward(op) => (op.call, &op.layers),
            _ => return Some(0),
        };
        let node = forward.node(call);
        let callees = self.callees(forward, node, sizes)?;
        let is_reversible = matches!(&node.op, Op::Stack(op) if kept_bits(op).is_some());
        let mut inside = 0;
        for (layer, (callee, below)) in layers.iter().zip(&callees) {
            let own = self.backward(*layer, below)?;
            let saved = self.saved(*callee, below)?;
            // A reversible stack runs the layer again first, and holds what that keeps only now.
            let own = match is_reversible {
                true => own.max(self.forward(*callee, below)?),
                false => own.saturating_sub(saved),
            };
            inside = inside.max(own);
        }
        Some(inside)
    }
}

/// Low bits kept per step of a reversible stack; `None` for a plain one.
fn kept_bits(op: &Stack) -> Option<Vec<u64>> {
    let Integrator::Midpoint(midpoint) = &op.integrator else { return None };
    // The first step is a bootstrap, which keeps nothing.
    Some(midpoint.steps.iter().skip(1).map(|step| u64::from(step.bits)).collect())
}

/// Whether a node's results take memory of their own: leaves are counted elsewhere, and views share
/// the memory of what they are made of.
fn occupies(node: &crate::ir::Node) -> bool {
    !matches!(
        node.op,
        Op::Input(_)
            | Op::ParamRef(_)
            | Op::StateRef(_)
            | Op::TableRef(_)
            | Op::Saved(_)
            | Op::Const(_)
            | Op::SizeValue(_)
            | Op::StopGradient(_)
            | Op::Broadcast(_)
            | Op::Permute(_)
            | Op::Rename(_)
            | Op::Split(_)
            | Op::Merge(_)
            | Op::Slice(_)
            | Op::Pick(_)
    )
}

fn made(function: &Function, node: &crate::ir::Node, sizes: &Sizes) -> Option<u64> {
    node.results.iter().map(|value| bytes_of(function.ty(*value), sizes)).sum()
}

/// Per value the position of its last use, also through views; `None` for what stays.
fn last_uses(function: &Function, kept: &BTreeSet<ValueId>) -> Vec<Option<usize>> {
    // The value whose memory a value shares.
    let mut owner: Vec<u32> = (0..function.values.len() as u32).collect();
    let mut last: Vec<Option<usize>> = vec![None; function.values.len()];
    let mut stays: BTreeSet<u32> = BTreeSet::new();
    for (position, node) in function.nodes.iter().enumerate() {
        if let (false, Some(of)) = (occupies(node), node.args.first()) {
            let of = owner.get(of.0 as usize).copied().unwrap_or(of.0);
            for result in &node.results {
                owner.iter_mut().skip(result.0 as usize).take(1).for_each(|place| *place = of);
            }
        }
        for value in node.args.iter().chain(&node.results) {
            let of = owner.get(value.0 as usize).copied().unwrap_or(value.0);
            last.iter_mut().skip(of as usize).take(1).for_each(|place| *place = Some(position));
        }
    }
    let outputs = function.outputs.iter().map(|output| output.value);
    let updates = function.updates.iter().map(|(_, value)| *value);
    for value in kept.iter().copied().chain(outputs).chain(updates) {
        stays.extend(owner.get(value.0 as usize).copied());
    }
    for value in stays {
        last.iter_mut().skip(value as usize).take(1).for_each(|place| *place = None);
    }
    last
}

fn dropped(
    function: &Function,
    last: &[Option<usize>],
    position: usize,
    sizes: &Sizes,
) -> Option<u64> {
    let here = (0u32..).zip(last).filter(|(_, last)| **last == Some(position));
    let values = here.map(|(value, _)| ValueId(value));
    let real = values.filter(|value| occupies(function.definition(*value)));
    real.map(|value| bytes_of(function.ty(value), sizes)).sum()
}
