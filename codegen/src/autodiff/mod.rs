//! Reverse-mode derivatives as a pass over the IR.
//!
//! For every function and every set of outputs that has a cotangent, one [`Backward`] function
//! is made: it takes those cotangents, reads forward values with `saved`, and gives the cotangents
//! of the inputs and the gradients of the parameters. Each op's own rule ([`OpDef::vjp`]) says how;
//! this pass orders them, adds up where a value is used more than once, and leaves out what
//! is structurally zero. What it leaves out is what [`crate::analysis`] reports.

use crate::ir::{Backward, BackwardId, FuncId, Function, Module, NodeId, Output, Type, ValueId};
use crate::ops::{
    Binary, BinaryFn, Broadcast, Call, CallBackward, Cast, Const, Input, Op, ParamRef, Permute,
    Saved, Stack, StackBackward, StateRef, Sum, TableRef, TypeError,
};
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

/// What an op's derivative rule sees: one node of the forward, the cotangents of its results,
/// and the backward function that is being built.
pub struct Vjp<'a> {
    forward: &'a Function,
    node: NodeId,
    body: &'a mut Function,
    saved: &'a mut BTreeMap<ValueId, ValueId>,
    active: &'a [bool],
    dys: Vec<Option<ValueId>>,
}

impl Vjp<'_> {
    /// Number of arguments of the forward node.
    pub fn n_args(&self) -> usize {
        self.forward.node(self.node).args.len()
    }

    /// Cotangent of the only result.
    ///
    /// # Errors
    /// If there is none: rules are called only where there is one.
    pub fn dy(&self) -> Result<ValueId, TypeError> {
        self.dys.first().copied().flatten().ok_or_else(|| {
            TypeError::new("E0701", "a derivative rule was called without a cotangent")
        })
    }

    /// Cotangent of result `index`, where it has one.
    pub fn dy_of(&self, index: usize) -> Option<ValueId> {
        self.dys.get(index).copied().flatten()
    }

    /// Whether argument `index` depends on anything that learns or comes in; where it does not,
    /// its cotangent is not needed and a rule can leave it out.
    #[allow(clippy::indexing_slicing)]
    pub fn wants(&self, index: usize) -> bool {
        self.forward.node(self.node).args.get(index).is_some_and(|v| self.active[v.0 as usize])
    }

    /// The value of argument `index`, as the forward computed it.
    ///
    /// # Errors
    /// If the node has fewer arguments.
    pub fn arg(&mut self, index: usize) -> Result<ValueId, TypeError> {
        let value = self.arg_id(index)?;
        self.forward_value(value)
    }

    /// The value of result `index`, as the forward computed it.
    ///
    /// # Errors
    /// If the node has fewer results.
    pub fn result(&mut self, index: usize) -> Result<ValueId, TypeError> {
        let value = self.forward.node(self.node).results.get(index).copied();
        self.forward_value(value.ok_or_else(|| missing("result", index))?)
    }

    fn arg_id(&self, index: usize) -> Result<ValueId, TypeError> {
        let node = self.forward.node(self.node);
        node.args.get(index).copied().ok_or_else(|| missing("argument", index))
    }

    /// Type of argument `index`.
    ///
    /// # Errors
    /// If the node has fewer arguments.
    pub fn arg_type(&self, index: usize) -> Result<Type, TypeError> {
        Ok(self.forward.ty(self.arg_id(index)?).clone())
    }

    /// Type of a value of the backward function.
    pub fn ty(&self, value: ValueId) -> &Type {
        self.body.ty(value)
    }

    /// Adds an op with one result to the backward function.
    ///
    /// # Errors
    /// What the op's shape rule says: a fault of the rule.
    pub fn push(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Result<ValueId, TypeError> {
        let span = self.forward.node(self.node).span;
        self.body.push1(op.into(), args.to_vec(), span)
    }

    /// Adds an op with several results to the backward function.
    ///
    /// # Errors
    /// As [`Vjp::push`].
    pub fn push_many(
        &mut self,
        op: impl Into<Op>,
        args: &[ValueId],
    ) -> Result<Vec<ValueId>, TypeError> {
        let span = self.forward.node(self.node).span;
        self.body.push(op.into(), args.to_vec(), span)
    }

    /// A scalar zero of the precision class of `value`.
    ///
    /// # Errors
    /// As [`Vjp::push`].
    pub fn zero_like(&mut self, value: ValueId) -> Result<ValueId, TypeError> {
        let dtype = self.ty(value).dtype;
        self.push(Const { value: 0.0, dtype }, &[])
    }

    /// Brings a cotangent to the type of argument `index`: sums over axes the argument lacks,
    /// repeats along axes the cotangent lacks, orders the axes, narrows the precision class.
    ///
    /// # Errors
    /// As [`Vjp::push`].
    pub fn reduce_to_arg(&mut self, index: usize, d: ValueId) -> Result<ValueId, TypeError> {
        let wanted = self.arg_type(index)?;
        self.conform(d, &wanted)
    }

    /// Brings a cotangent to a type; see [`Vjp::reduce_to_arg`].
    ///
    /// # Errors
    /// As [`Vjp::push`].
    pub fn conform(&mut self, d: ValueId, wanted: &Type) -> Result<ValueId, TypeError> {
        let mut d = d;
        let extra: Vec<String> =
            self.ty(d).names().into_iter().filter(|name| !wanted.has(name)).collect();
        if !extra.is_empty() {
            d = self.push(Sum { over: extra }, &[d])?;
        }
        if self.ty(d).axes.len() < wanted.axes.len() {
            d = self.push(Broadcast { axes: wanted.axes.clone() }, &[d])?;
        }
        if self.ty(d).axes != wanted.axes {
            d = self.push(Permute { order: wanted.names() }, &[d])?;
        }
        if self.ty(d).dtype != wanted.dtype {
            d = self.push(Cast { to: wanted.dtype }, &[d])?;
        }
        Ok(d)
    }

    fn forward_value(&mut self, value: ValueId) -> Result<ValueId, TypeError> {
        if let Some(known) = self.saved.get(&value) {
            return Ok(*known);
        }
        let definition = self.forward.definition(value);
        let ty = self.forward.ty(value).clone();
        let op: Op = match &definition.op {
            Op::ParamRef(op) => op.clone().into(),
            Op::StateRef(op) => op.clone().into(),
            Op::TableRef(op) => op.clone().into(),
            Op::Const(op) => op.clone().into(),
            Op::SizeValue(op) => op.clone().into(),
            _ => Saved { value }.into(),
        };
        let results = self.body.push_typed(op, vec![], vec![ty], definition.span);
        let result = results.first().copied().ok_or_else(|| missing("result", 0))?;
        if let Some(name) = &self.forward.value(value).name {
            self.body.name_value(result, name);
        }
        self.saved.insert(value, result);
        Ok(result)
    }
}

fn missing(what: &str, index: usize) -> TypeError {
    TypeError::new("E0701", format!("{what} {index} of a node is missing"))
}

/// Why a module has no backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AutodiffError {
    /// The root block has no output of the loss's name.
    NoLoss,
    /// The result of a stack's layer does not depend on its input by a path with a derivative.
    CutLayer {
        /// The layer's function.
        layer: FuncId,
        /// The call of the stack.
        call: Option<Span>,
    },
    /// A derivative rule built ill-typed IR: a fault of this compiler.
    Rule(TypeError),
}

impl From<TypeError> for AutodiffError {
    fn from(error: TypeError) -> Self {
        AutodiffError::Rule(error)
    }
}

/// Adds the backward functions that the gradient of the entry's output `loss` needs, and returns
/// the one of the entry.
///
/// # Errors
/// See [`AutodiffError`].
pub fn differentiate(module: &mut Module, loss: &str) -> Result<BackwardId, AutodiffError> {
    let entry = module.entry;
    let function = module.function(entry);
    let seeds: Vec<bool> =
        function.outputs.iter().map(|o| o.name.as_deref() == Some(loss)).collect();
    if !seeds.contains(&true) {
        return Err(AutodiffError::NoLoss);
    }
    Pass::new(module, false).backward_of(entry, seeds)
}

/// The same for a block that is taken alone, without a loss: the entry's backward function takes a
/// cotangent for every floating-point output and gives one for every such input.
///
/// # Errors
/// See [`AutodiffError`].
pub fn differentiate_block(module: &mut Module) -> Result<BackwardId, AutodiffError> {
    let entry = module.entry;
    let function = module.function(entry);
    let seeds: Vec<bool> =
        function.outputs.iter().map(|output| function.ty(output.value).is_float()).collect();
    Pass::new(module, true).backward_of(entry, seeds)
}

/// For each function, whether it or anything it calls has a trained parameter.
fn learning_functions(module: &Module) -> Vec<bool> {
    let mut learns: Vec<bool> = Vec::new();
    for function in &module.functions {
        let own = function.params.iter().any(|p| p.storage.learns());
        let below = function
            .subs
            .iter()
            .flat_map(|sub| &sub.callees)
            .any(|callee| learns.get(callee.0 as usize) == Some(&true));
        learns.push(own || below);
    }
    learns
}

struct Pass<'m> {
    module: &'m mut Module,
    /// The entry's own inputs get a cotangent too.
    with_inputs: bool,
    learns: Vec<bool>,
    known: BTreeMap<(FuncId, Vec<bool>), BackwardId>,
}

/// A backward function while it is being built.
struct Build {
    body: Function,
    saved: BTreeMap<ValueId, ValueId>,
    cotangents: BTreeMap<ValueId, ValueId>,
    active: Vec<bool>,
}

impl Build {
    /// Adds a cotangent to what a forward value has so far.
    fn add(&mut self, value: ValueId, d: ValueId) -> Result<(), TypeError> {
        let total = match self.cotangents.get(&value) {
            Some(&before) => {
                let add = Binary { function: BinaryFn::Add };
                self.body.push1(add.into(), vec![before, d], None)?
            }
            None => d,
        };
        self.cotangents.insert(value, total);
        Ok(())
    }

    /// A value of the forward, as it was computed there.
    fn forward_value(
        &mut self,
        forward: &Function,
        node: NodeId,
        value: ValueId,
    ) -> Result<ValueId, TypeError> {
        let (body, saved, active) = (&mut self.body, &mut self.saved, &self.active);
        Vjp { forward, node, body, saved, active, dys: vec![] }.forward_value(value)
    }

    fn is_active(&self, value: ValueId) -> bool {
        self.active.get(value.0 as usize) == Some(&true)
    }
}

impl<'m> Pass<'m> {
    fn new(module: &'m mut Module, with_inputs: bool) -> Self {
        Pass { learns: learning_functions(module), module, with_inputs, known: BTreeMap::new() }
    }

    fn backward_of(&mut self, of: FuncId, seeds: Vec<bool>) -> Result<BackwardId, AutodiffError> {
        if let Some(known) = self.known.get(&(of, seeds.clone())) {
            return Ok(*known);
        }
        let forward = self.module.function(of).clone();
        let mut build = self.start(of, &forward, &seeds)?;
        for (id, node) in forward.nodes().rev() {
            self.node_backward(&forward, id, node, &mut build)?;
        }
        let backward = finish(of, &forward, seeds.clone(), build)?;
        let id = BackwardId(self.module.backward.len() as u32);
        self.module.backward.push(backward);
        self.known.insert((of, seeds), id);
        Ok(id)
    }

    /// The body with its inputs: the cotangents of the seeded outputs.
    fn start(&self, of: FuncId, forward: &Function, seeds: &[bool]) -> Result<Build, TypeError> {
        let body = Function {
            name: backward_name(forward, seeds),
            doc: Some(format!("Derivative of {}.", forward.name)),
            span: forward.span,
            ..Function::default()
        };
        let active = self.active_values(of, forward);
        let mut build = Build { body, saved: BTreeMap::new(), cotangents: BTreeMap::new(), active };
        for (output, _) in forward.outputs.iter().zip(seeds).filter(|(_, seeded)| **seeded) {
            let name = format!("d_{}", output.name.as_deref().unwrap_or("result"));
            let ty = forward.ty(output.value).clone();
            let input = Input { name: name.clone() };
            for d in build.body.push_typed(input.into(), vec![], vec![ty], forward.span) {
                build.body.name_value(d, &name);
                build.add(output.value, d)?;
            }
        }
        Ok(build)
    }

    /// Values that depend on a trained parameter or on a floating-point input.
    fn active_values(&self, of: FuncId, forward: &Function) -> Vec<bool> {
        let mut active = vec![false; forward.values.len()];
        for node in &forward.nodes {
            let below = |sub: usize| {
                let callees = forward.subs.get(sub).map(|s| s.callees.as_slice()).unwrap_or(&[]);
                callees.iter().any(|c| self.learns.get(c.0 as usize) == Some(&true))
            };
            let source = match &node.op {
                // Nothing asks for the gradient of a stage's own inputs.
                Op::Input(_) => of != self.module.entry || self.with_inputs,
                Op::ParamRef(op) => {
                    forward.params.get(op.index).is_some_and(|p| p.storage.learns())
                }
                Op::StopGradient(_) => false,
                Op::Call(Call { sub }) | Op::Stack(Stack { sub, .. }) => {
                    below(*sub) || node.args.iter().any(|a| active.get(a.0 as usize) == Some(&true))
                }
                _ => node.args.iter().any(|a| active.get(a.0 as usize) == Some(&true)),
            };
            for result in &node.results {
                if let Some(slot) = active.get_mut(result.0 as usize) {
                    *slot = source && forward.ty(*result).is_float();
                }
            }
        }
        active
    }

    fn node_backward(
        &mut self,
        forward: &Function,
        id: NodeId,
        node: &crate::ir::Node,
        build: &mut Build,
    ) -> Result<(), AutodiffError> {
        let dys: Vec<Option<ValueId>> =
            node.results.iter().map(|r| build.cotangents.get(r).copied()).collect();
        let reached = dys.iter().any(Option::is_some);
        let useful = node.results.iter().any(|r| build.is_active(*r));
        if !reached || !useful {
            return Ok(());
        }
        let dxs = match &node.op {
            Op::Input(_) | Op::ParamRef(_) | Op::StateRef(StateRef { .. }) => return Ok(()),
            Op::TableRef(TableRef { .. }) => return Ok(()),
            Op::Call(call) => self.call_backward(forward, id, node, call.sub, &dys, build)?,
            Op::Stack(stack) => self.stack_backward(forward, id, node, stack, &dys, build)?,
            op => {
                let mut vjp = Vjp {
                    forward,
                    node: id,
                    body: &mut build.body,
                    saved: &mut build.saved,
                    active: &build.active,
                    dys,
                };
                op.def().vjp(&mut vjp)?
            }
        };
        for (arg, dx) in node.args.iter().zip(dxs) {
            if let (Some(dx), true) = (dx, build.is_active(*arg)) {
                let dx = conform_to(forward, id, *arg, dx, build)?;
                build.add(*arg, dx)?;
            }
        }
        Ok(())
    }

    fn call_backward(
        &mut self,
        forward: &Function,
        id: NodeId,
        node: &crate::ir::Node,
        sub: usize,
        dys: &[Option<ValueId>],
        build: &mut Build,
    ) -> Result<Vec<Option<ValueId>>, AutodiffError> {
        let callee = callees(forward, sub)?.first().copied().unwrap_or_default();
        let seeds: Vec<bool> = dys.iter().map(Option::is_some).collect();
        let backward = self.backward_of(callee, seeds)?;
        let inputs = self.backward_at(backward).inputs.clone();
        let types = node
            .args
            .iter()
            .zip(&inputs)
            .filter(|(_, d)| d.is_some())
            .map(|(arg, _)| forward.ty(*arg).clone())
            .collect();
        let op = CallBackward { call: id, backward };
        let args = dys.iter().copied().flatten().collect();
        let results = build.body.push_typed(op.into(), args, types, node.span);
        Ok(inputs.iter().map(|d| d.and_then(|index| results.get(index).copied())).collect())
    }

    fn stack_backward(
        &mut self,
        forward: &Function,
        id: NodeId,
        node: &crate::ir::Node,
        stack: &Stack,
        dys: &[Option<ValueId>],
        build: &mut Build,
    ) -> Result<Vec<Option<ValueId>>, AutodiffError> {
        let mut layers = Vec::new();
        let penalty = dys.get(1).copied().flatten();
        for callee in callees(forward, stack.sub)? {
            let mut seeds = vec![true];
            if self.module.function(callee).outputs.len() > 1 {
                seeds.push(penalty.is_some());
            }
            let backward = self.backward_of(callee, seeds)?;
            if self.backward_at(backward).inputs.first().copied().flatten().is_none() {
                return Err(AutodiffError::CutLayer { layer: callee, call: node.span });
            }
            layers.push(backward);
        }
        let dy = match dys.first().copied().flatten() {
            Some(dy) => dy,
            None => zeros(forward, node, build)?,
        };
        let mut args = vec![dy];
        for gate in node.args.iter().skip(1) {
            args.push(build.forward_value(forward, id, *gate)?);
        }
        args.extend(penalty);
        let types = node.args.iter().map(|arg| forward.ty(*arg).clone()).collect();
        let op = StackBackward { call: id, layers, integrator: stack.integrator.clone() };
        let results = build.body.push_typed(op.into(), args, types, node.span);
        Ok(results.into_iter().map(Some).collect())
    }

    #[allow(clippy::indexing_slicing)]
    fn backward_at(&self, id: BackwardId) -> &Backward {
        &self.module.backward[id.0 as usize]
    }
}

/// The cotangent of a stack's result that only its penalties are asked about.
fn zeros(
    forward: &Function,
    node: &crate::ir::Node,
    build: &mut Build,
) -> Result<ValueId, TypeError> {
    let result = node.results.first().copied().ok_or_else(|| missing("result", 0))?;
    let ty = forward.ty(result).clone();
    let zero = Const { value: 0.0, dtype: ty.dtype };
    let zero = build.body.push1(zero.into(), vec![], node.span)?;
    build.body.push1(Broadcast { axes: ty.axes }.into(), vec![zero], node.span)
}

fn callees(forward: &Function, sub: usize) -> Result<Vec<FuncId>, TypeError> {
    let sub = forward.subs.get(sub).ok_or_else(|| missing("sub", sub))?;
    Ok(sub.callees.clone())
}

fn backward_name(forward: &Function, seeds: &[bool]) -> String {
    if seeds.iter().all(|seeded| *seeded) {
        return format!("{}.backward", forward.name);
    }
    let names: Vec<&str> = forward
        .outputs
        .iter()
        .zip(seeds)
        .filter(|(_, seeded)| **seeded)
        .map(|(output, _)| output.name.as_deref().unwrap_or("result"))
        .collect();
    format!("{}.backward_{}", forward.name, names.join("_"))
}

/// A rule may give a cotangent in another storage order or precision class than its argument's.
fn conform_to(
    forward: &Function,
    node: NodeId,
    arg: ValueId,
    dx: ValueId,
    build: &mut Build,
) -> Result<ValueId, TypeError> {
    let wanted = forward.ty(arg).clone();
    let mut vjp = Vjp {
        forward,
        node,
        body: &mut build.body,
        saved: &mut build.saved,
        active: &build.active,
        dys: vec![],
    };
    vjp.conform(dx, &wanted)
}

/// Collects what the backward gives: cotangents of inputs and gradients of parameters.
fn finish(
    of: FuncId,
    forward: &Function,
    seeds: Vec<bool>,
    mut build: Build,
) -> Result<Backward, TypeError> {
    let mut inputs = Vec::new();
    for (name, value) in forward.inputs() {
        let index = match build.cotangents.get(&value) {
            Some(&d) => {
                let output = Output { name: Some(format!("d_{name}")), value: d };
                build.body.outputs.push(output);
                Some(build.body.outputs.len() - 1)
            }
            None => None,
        };
        inputs.push(index);
    }
    let mut grads: BTreeMap<usize, ValueId> = BTreeMap::new();
    for node in &forward.nodes {
        let (Op::ParamRef(ParamRef { index }), Some(value)) = (&node.op, node.results.first())
        else {
            continue;
        };
        let Some(&d) = build.cotangents.get(value) else { continue };
        let total = match grads.get(index) {
            Some(&before) => {
                let add = Binary { function: BinaryFn::Add };
                build.body.push1(add.into(), vec![before, d], None)?
            }
            None => d,
        };
        grads.insert(*index, total);
    }
    let grads = grads.into_iter().collect();
    let backward = Backward { of, seeds, body: build.body, inputs, grads };
    Ok(crate::ir::prune::prune_backward(backward))
}
