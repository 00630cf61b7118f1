//! Stacks: layers one after the other, or joined by an integrator over states of fixed point.
//!
//! Every state is kept, and gradients are those of the recurrence without its rounding. That a
//! state can be had back from the next two is a matter of memory, not of meaning.

use super::{BackwardRun, Trace, call, mean_of, results, target};
use crate::interp::{Store, Tensors};
use crate::ir::{BackwardId, FuncId, Function, Module, Node, NodeId};
use crate::ops::{Array, EvalError, Stack, StackBackward};
use lightc_dsl::model::{Integrator, Midpoint};
use lightc_numerics::fixed;
use ndarray::{ArrayD, Zip};

/// A run of the layers of a stack.
pub(super) struct Layers<'a> {
    pub(super) module: &'a Module,
    pub(super) function: &'a Function,
    pub(super) path: &'a str,
    pub(super) store: &'a Store,
    pub(super) updates: &'a mut Tensors,
}

impl Layers<'_> {
    /// The result of a stack, and the trace of each layer.
    pub(super) fn run(
        &mut self,
        stack: &Stack,
        args: Vec<Array>,
    ) -> Result<(Vec<Array>, Vec<Trace>), EvalError> {
        match &stack.integrator {
            Integrator::Plain => self.plain(stack.sub, args),
            Integrator::Midpoint(midpoint) => self.midpoint(stack.sub, midpoint, &args),
        }
    }

    fn layer(
        &mut self,
        sub: usize,
        layer: usize,
        args: &[Array],
    ) -> Result<(FuncId, Trace), EvalError> {
        let (callee, below) = target(self.function, sub, layer, self.path)?;
        let trace = call(self.module, callee, &below, args, self.store, self.updates)?;
        Ok((callee, trace))
    }

    fn plain(
        &mut self,
        sub: usize,
        args: Vec<Array>,
    ) -> Result<(Vec<Array>, Vec<Trace>), EvalError> {
        let mut state = args;
        let mut traces = Vec::new();
        let mut penalties = Vec::new();
        for layer in 0..n_layers(self.function, sub) {
            let (callee, trace) = self.layer(sub, layer, &state)?;
            state = results(self.module.function(callee), &trace)?;
            penalties.extend(state.drain(1..));
            traces.push(trace);
        }
        state.extend(mean_of(&penalties));
        Ok((state, traces))
    }

    fn midpoint(
        &mut self,
        sub: usize,
        midpoint: &Midpoint,
        args: &[Array],
    ) -> Result<(Vec<Array>, Vec<Trace>), EvalError> {
        let x = args.first().ok_or_else(|| EvalError("a stack has no input".into()))?;
        let gates = gates(midpoint, args.get(1..).unwrap_or(&[]))?;
        let bits = midpoint.fraction_bits;
        let value = |state: &ArrayD<i32>| state.mapv(|state| fixed::value(state, bits));
        let mut before = x.mapv(|x| fixed::quantize(x, bits).0);
        let mut now = before.clone();
        let mut traces = Vec::new();
        let mut penalties = Vec::new();
        for (layer, gate) in gates.iter().enumerate() {
            let p = value(&now);
            let (callee, trace) = self.layer(sub, layer, std::slice::from_ref(&p))?;
            let results = results(self.module.function(callee), &trace)?;
            let y = results.first().ok_or_else(|| EvalError("a layer gives nothing".into()))?;
            let step = step(midpoint, layer);
            let mut next = before;
            Zip::from(&mut next).and(&now).and(&p).and(y).for_each(|next, now, p, y| {
                *next = step.forward(*next, *now, gate * (y - p)).next;
            });
            (before, now) = (now, next);
            penalties.extend(results.get(1).cloned());
            traces.push(trace);
        }
        Ok((std::iter::once(value(&now)).chain(mean_of(&penalties)).collect(), traces))
    }
}

fn n_layers(function: &Function, sub: usize) -> usize {
    function.subs.get(sub).map_or(0, |sub| sub.callees.len())
}

/// The step that layer `layer` makes.
fn step(midpoint: &Midpoint, layer: usize) -> fixed::Step {
    let weight = midpoint.weight(layer);
    match midpoint.steps.get(layer) {
        Some(step) if layer > 0 => {
            let numerator = i64::from(step.numerator);
            fixed::Step::new(numerator, step.bits, weight, midpoint.fraction_bits)
        }
        _ => fixed::Step::first(weight, midpoint.fraction_bits),
    }
}

/// The factor on each layer's force; 1 where there is no gate.
fn gates(midpoint: &Midpoint, args: &[Array]) -> Result<Vec<f64>, EvalError> {
    let mut given = args.iter();
    let gate = |step: &lightc_dsl::model::Step| match step.gate {
        None => Ok(1.0),
        Some(_) => {
            let gate = given.next().and_then(|gate| gate.first().copied());
            gate.ok_or_else(|| EvalError("a layer lacks its gate".into()))
        }
    };
    midpoint.steps.iter().map(gate).collect()
}

impl BackwardRun<'_> {
    /// The backward of a stack: cotangents of its input and of its gates.
    pub(super) fn stack(
        &mut self,
        declared: &Function,
        op: &StackBackward,
        forward: &Trace,
        path: &str,
        args: &[Array],
    ) -> Result<Vec<Array>, EvalError> {
        match &op.integrator {
            Integrator::Plain => {
                self.below(declared, op.call, forward, path, &op.layers, args.to_vec())
            }
            Integrator::Midpoint(midpoint) => {
                self.midpoint(declared, (op.call, &op.layers, midpoint), forward, path, args)
            }
        }
    }

    fn midpoint(
        &mut self,
        declared: &Function,
        (call, layers, midpoint): (NodeId, &[BackwardId], &Midpoint),
        forward: &Trace,
        path: &str,
        args: &[Array],
    ) -> Result<Vec<Array>, EvalError> {
        let node = declared.node(call);
        let dy = args.first().ok_or_else(|| EvalError("a stack has no cotangent".into()))?;
        let gates = gates(midpoint, args.get(1..).unwrap_or(&[]))?;
        let traces = forward.calls.get(&call).map(Vec::as_slice).unwrap_or(&[]);
        let shares = self.penalty_shares(layers);
        let share = args.get(1 + midpoint.gated().count());
        let share = share.map(|d| d * (1.0 / shares.iter().filter(|has| **has).count() as f64));
        // Cotangents of the last state and, so far, of the one before it.
        let (mut last, mut earlier) = (dy.clone(), dy.mapv(|_| 0.0));
        let mut d_gates = Vec::new();
        for (layer, (id, gate)) in layers.iter().zip(&gates).enumerate().rev() {
            let (weight, a) = (midpoint.weight(layer), step(midpoint, layer).a());
            let trace =
                traces.get(layer).ok_or_else(|| EvalError("a layer left no trace".into()))?;
            let (callee, below) = target(declared, stack_sub(node)?, layer, path)?;
            let function = self.module.function(callee);
            if midpoint.steps.get(layer).is_some_and(|step| step.gate.is_some()) {
                let results = results(function, trace)?;
                let y = results.first().ok_or_else(|| EvalError("a layer gives nothing".into()))?;
                let force = y - &input(function, trace)?;
                d_gates.push(ArrayD::from_elem(vec![], weight * (&last * &force).sum()));
            }
            let seed = last.mapv(|d| weight * gate * d);
            let mut seeds = vec![seed.clone()];
            seeds.extend(share.clone().filter(|_| shares.get(layer) == Some(&true)));
            let through = self.call(*id, trace, &below, &seeds)?;
            let through = through.first().ok_or_else(|| EvalError("a layer is cut".into()))?;
            let now = earlier + last.mapv(|d| (1.0 - a) * d) - &seed + through;
            earlier = last.mapv(|d| a * d);
            last = now;
        }
        d_gates.push(last);
        d_gates.reverse();
        Ok(d_gates)
    }
}

fn stack_sub(node: &Node) -> Result<usize, EvalError> {
    match &node.op {
        crate::ops::Op::Stack(stack) => Ok(stack.sub),
        op => Err(EvalError(format!("`{}` is not a stack", op.def().mnemonic()))),
    }
}

fn input(function: &Function, trace: &Trace) -> Result<Array, EvalError> {
    let input = function.inputs().next().map(|(_, value)| value);
    trace.value(input.ok_or_else(|| EvalError("a layer takes nothing".into()))?).cloned()
}
