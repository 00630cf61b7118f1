//! The interpreter: the meaning of the IR, in f64. Slow and plain on purpose.
//!
//! [`run`] evaluates a module's forward and keeps every value in a [`Trace`]; [`gradients`] runs
//! the backward functions over such a trace.

mod stack;

use crate::ir::paths::{join, sub_path};
use crate::ir::{BackwardId, FuncId, Function, Module, NodeId, Type, ValueId};
use crate::ops::{Array, EvalCall, EvalError, Op};
use std::collections::BTreeMap;

/// Tensors by path.
pub type Tensors = BTreeMap<String, Array>;

/// What a run reads besides its inputs.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Parameters by path.
    pub params: Tensors,
    /// States by path: values before the step.
    pub states: Tensors,
    /// Tables by path.
    pub tables: Tensors,
}

/// Every value of one run of a function, and of the functions that it called.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    values: Vec<Option<Array>>,
    calls: BTreeMap<NodeId, Vec<Trace>>,
    sizes: BTreeMap<String, i64>,
}

impl Trace {
    /// A value of the function that was run.
    ///
    /// # Errors
    /// If the value was not computed.
    pub fn value(&self, id: ValueId) -> Result<&Array, EvalError> {
        self.values
            .get(id.0 as usize)
            .and_then(Option::as_ref)
            .ok_or_else(|| EvalError(format!("{id} has no value")))
    }

    fn set(&mut self, id: ValueId, array: Array) {
        if let Some(slot) = self.values.get_mut(id.0 as usize) {
            *slot = Some(array);
        }
    }
}

/// One call of a function in a run, or one stack: where it stands in the tree, and its values.
#[derive(Clone, Debug)]
pub struct Visit<'t> {
    /// Path of the instance, empty for the entry; of a stack its own, without a layer.
    pub path: String,
    /// The function that ran; of a stack the one that holds it.
    pub function: FuncId,
    /// Its values.
    pub trace: &'t Trace,
    /// The node that joins the layers, for a stack.
    pub stack: Option<NodeId>,
}

impl Visit<'_> {
    /// What it was called with, in the order of its inputs.
    ///
    /// # Errors
    /// If the trace is of another module.
    pub fn inputs(&self, module: &Module) -> Result<Vec<Array>, EvalError> {
        let function = module.function(self.function);
        match self.stack {
            Some(node) => arguments(self.trace, &function.node(node).args),
            None => function.inputs().map(|(_, v)| self.trace.value(v).cloned()).collect(),
        }
    }

    /// What it returned.
    ///
    /// # Errors
    /// If the trace is of another module.
    pub fn outputs(&self, module: &Module) -> Result<Vec<Array>, EvalError> {
        let function = module.function(self.function);
        match self.stack {
            Some(node) => arguments(self.trace, &function.node(node).results),
            None => results(function, self.trace),
        }
    }
}

/// All calls of a run in the order in which they ended, the entry last.
pub fn visits<'t>(module: &Module, trace: &'t Trace) -> Vec<Visit<'t>> {
    let mut found = visits_and_stacks(module, trace);
    found.retain(|visit| visit.stack.is_none());
    found
}

/// As [`visits`], and each stack after its layers.
pub fn visits_and_stacks<'t>(module: &Module, trace: &'t Trace) -> Vec<Visit<'t>> {
    let mut found = Vec::new();
    visit(module, module.entry, String::new(), trace, &mut found);
    found
}

fn visit<'t>(
    module: &Module,
    id: FuncId,
    path: String,
    trace: &'t Trace,
    found: &mut Vec<Visit<'t>>,
) {
    let function = module.function(id);
    for (node, traces) in &trace.calls {
        let (sub, is_stack) = match &function.node(*node).op {
            Op::Call(op) => (op.sub, false),
            Op::Stack(op) => (op.sub, true),
            _ => continue,
        };
        for (layer, trace) in traces.iter().enumerate() {
            if let Ok((callee, below)) = target(function, sub, layer, &path) {
                visit(module, callee, below, trace, found);
            }
        }
        if let (true, Some(sub)) = (is_stack, function.subs.get(sub)) {
            let (path, stack) = (join(&path, &sub.name), Some(*node));
            found.push(Visit { path, function: id, trace, stack });
        }
    }
    found.push(Visit { path, function: id, trace, stack: None });
}

/// Runs one function as if it stood at a path: its parameters are those below that path.
///
/// # Errors
/// As [`run`].
pub fn run_at(
    module: &Module,
    function: FuncId,
    path: &str,
    inputs: &[Array],
    store: &Store,
) -> Result<Run, EvalError> {
    let mut updates = Tensors::new();
    let trace = call(module, function, path, inputs, store, &mut updates)?;
    let outputs = results(module.function(function), &trace)?;
    Ok(Run { outputs, updates, trace })
}

/// A finished forward run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Results of the entry, in order.
    pub outputs: Vec<Array>,
    /// States after the step, by path; only those that are updated.
    pub updates: Tensors,
    /// All values, for [`gradients`].
    pub trace: Trace,
}

/// Runs the entry of a module on `inputs`, in the order of its inputs.
///
/// # Errors
/// A tensor is missing or has the wrong shape; an index is out of range.
pub fn run(module: &Module, inputs: &[Array], store: &Store) -> Result<Run, EvalError> {
    let mut updates = Tensors::new();
    let trace = call(module, module.entry, "", inputs, store, &mut updates)?;
    let outputs = results(module.entry_function(), &trace)?;
    Ok(Run { outputs, updates, trace })
}

fn results(function: &Function, trace: &Trace) -> Result<Vec<Array>, EvalError> {
    function.outputs.iter().map(|output| trace.value(output.value).cloned()).collect()
}

fn call(
    module: &Module,
    id: FuncId,
    path: &str,
    inputs: &[Array],
    store: &Store,
    updates: &mut Tensors,
) -> Result<Trace, EvalError> {
    let function = module.function(id);
    let sizes = bind_sizes(function, inputs)?;
    let mut trace =
        Trace { values: vec![None; function.values.len()], calls: BTreeMap::new(), sizes };
    let mut remaining = inputs.iter();
    for (node_id, node) in function.nodes() {
        let arrays = match &node.op {
            Op::Input(_) => {
                let array = remaining.next().ok_or_else(|| EvalError("too few inputs".into()))?;
                vec![array.clone()]
            }
            Op::ParamRef(op) => vec![fetch(
                &store.params,
                path,
                function.params.get(op.index).map(|p| (&p.name, &p.ty)),
                &trace.sizes,
            )?],
            Op::StateRef(op) => vec![fetch(
                &store.states,
                path,
                function.states.get(op.index).map(|s| (&s.name, &s.ty)),
                &trace.sizes,
            )?],
            Op::TableRef(op) => vec![fetch(
                &store.tables,
                path,
                function.tables.get(op.index).map(|t| (&t.name, &t.ty)),
                &trace.sizes,
            )?],
            Op::Call(op) => {
                let args = arguments(&trace, &node.args)?;
                let (callee, below) = target(function, op.sub, 0, path)?;
                let inner = call(module, callee, &below, &args, store, updates)?;
                let outputs = results(module.function(callee), &inner)?;
                trace.calls.insert(node_id, vec![inner]);
                outputs
            }
            Op::Stack(op) => {
                let args = arguments(&trace, &node.args)?;
                let mut layers = stack::Layers { module, function, path, store, updates };
                let (outputs, traces) = layers.run(op, args)?;
                trace.calls.insert(node_id, traces);
                outputs
            }
            op => evaluate(op, function, &trace, &node.args, &node.results)?,
        };
        for (result, array) in node.results.iter().zip(arrays) {
            check_shape(function.ty(*result), &array, &trace.sizes)?;
            trace.set(*result, array);
        }
    }
    for (index, value) in &function.updates {
        let name = function.states.get(*index).map_or("", |state| state.name.as_str());
        updates.insert(join(path, name), trace.value(*value)?.clone());
    }
    Ok(trace)
}

/// The mean of the penalties that the layers of a stack have, if any has one.
fn mean_of(penalties: &[Array]) -> Option<Array> {
    let (first, rest) = penalties.split_first()?;
    let total = rest.iter().fold(first.clone(), |total, penalty| total + penalty);
    Some(total * (1.0 / penalties.len() as f64))
}

/// Binds size names to the lengths of the inputs' axes.
fn bind_sizes(function: &Function, inputs: &[Array]) -> Result<BTreeMap<String, i64>, EvalError> {
    let mut sizes: BTreeMap<String, i64> = BTreeMap::new();
    let values: Vec<ValueId> = function.inputs().map(|(_, value)| value).collect();
    for (symbol, value, position) in function.bound_symbols() {
        let index = values.iter().position(|v| *v == value);
        let length =
            index.and_then(|i| inputs.get(i)).and_then(|a| a.shape().get(position).copied());
        let length = length.ok_or_else(|| EvalError(format!("no input has axis `{symbol}`")))?;
        sizes.insert(symbol, length as i64);
    }
    Ok(sizes)
}

fn check_shape(ty: &Type, array: &Array, sizes: &BTreeMap<String, i64>) -> Result<(), EvalError> {
    let wanted: Vec<Option<i64>> = ty.axes.iter().map(|axis| axis.size.evaluate(sizes)).collect();
    let has: Vec<Option<i64>> = array.shape().iter().map(|n| Some(*n as i64)).collect();
    if wanted == has {
        return Ok(());
    }
    Err(EvalError(format!("an array of shape {:?} stands for {ty}", array.shape())))
}

fn fetch(
    tensors: &Tensors,
    path: &str,
    declared: Option<(&String, &Type)>,
    sizes: &BTreeMap<String, i64>,
) -> Result<Array, EvalError> {
    let (name, ty) = declared.ok_or_else(|| EvalError("an undeclared tensor is read".into()))?;
    let path = join(path, name);
    let array = tensors.get(&path).ok_or_else(|| EvalError(format!("`{path}` has no value")))?;
    check_shape(ty, array, sizes).map_err(|e| EvalError(format!("`{path}`: {}", e.0)))?;
    Ok(array.clone())
}

fn target(
    function: &Function,
    sub: usize,
    layer: usize,
    path: &str,
) -> Result<(FuncId, String), EvalError> {
    let sub =
        function.subs.get(sub).ok_or_else(|| EvalError("an undeclared sub is called".into()))?;
    let callee = sub.callees.get(layer).copied();
    let callee = callee.ok_or_else(|| EvalError(format!("`{}` has no layer {layer}", sub.name)))?;
    Ok((callee, sub_path(path, sub, layer)))
}

fn arguments(trace: &Trace, args: &[ValueId]) -> Result<Vec<Array>, EvalError> {
    args.iter().map(|arg| trace.value(*arg).cloned()).collect()
}

fn evaluate(
    op: &Op,
    function: &Function,
    trace: &Trace,
    args: &[ValueId],
    results: &[ValueId],
) -> Result<Vec<Array>, EvalError> {
    let arrays: Result<Vec<&Array>, EvalError> = args.iter().map(|arg| trace.value(*arg)).collect();
    let arg_types: Vec<&Type> = args.iter().map(|arg| function.ty(*arg)).collect();
    let result_types: Vec<&Type> = results.iter().map(|r| function.ty(*r)).collect();
    let call = EvalCall {
        args: &arrays?,
        arg_types: &arg_types,
        result_types: &result_types,
        sizes: &trace.sizes,
    };
    op.def().eval(&call).map_err(|e| EvalError(format!("`{}`: {}", op.def().mnemonic(), e.0)))
}

/// Gradients of the entry's parameters by path, given the backward function made by
/// [`crate::autodiff::differentiate`], the trace of a run, and the cotangents of the seeded
/// outputs in order. A trained parameter that no gradient reaches has no entry.
///
/// # Errors
/// As [`run`].
pub fn gradients(
    module: &Module,
    backward: BackwardId,
    trace: &Trace,
    seeds: &[Array],
    store: &Store,
) -> Result<Tensors, EvalError> {
    let mut grads = Tensors::new();
    let mut pass = BackwardRun { module, store, grads: &mut grads };
    pass.call(backward, trace, "", seeds)?;
    Ok(grads)
}

struct BackwardRun<'a> {
    module: &'a Module,
    store: &'a Store,
    grads: &'a mut Tensors,
}

impl BackwardRun<'_> {
    fn call(
        &mut self,
        id: BackwardId,
        forward: &Trace,
        path: &str,
        seeds: &[Array],
    ) -> Result<Vec<Array>, EvalError> {
        let module = self.module;
        let backward = module
            .backward
            .get(id.0 as usize)
            .ok_or_else(|| EvalError("an unknown backward function is called".into()))?;
        let declared = module.function(backward.of);
        let body = &backward.body;
        let mut trace = Trace {
            values: vec![None; body.values.len()],
            calls: BTreeMap::new(),
            sizes: forward.sizes.clone(),
        };
        let mut remaining = seeds.iter();
        for node in &body.nodes {
            let arrays = match &node.op {
                Op::Input(_) => {
                    let seed = remaining.next();
                    vec![seed.ok_or_else(|| EvalError("too few cotangents".into()))?.clone()]
                }
                Op::Saved(op) => vec![forward.value(op.value)?.clone()],
                Op::ParamRef(op) => vec![fetch(
                    &self.store.params,
                    path,
                    declared.params.get(op.index).map(|p| (&p.name, &p.ty)),
                    &trace.sizes,
                )?],
                Op::StateRef(op) => vec![fetch(
                    &self.store.states,
                    path,
                    declared.states.get(op.index).map(|s| (&s.name, &s.ty)),
                    &trace.sizes,
                )?],
                Op::TableRef(op) => vec![fetch(
                    &self.store.tables,
                    path,
                    declared.tables.get(op.index).map(|t| (&t.name, &t.ty)),
                    &trace.sizes,
                )?],
                Op::CallBackward(op) => {
                    let args = arguments(&trace, &node.args)?;
                    self.below(declared, op.call, forward, path, &[op.backward], args)?
                }
                Op::StackBackward(op) => {
                    let args = arguments(&trace, &node.args)?;
                    self.stack(declared, op, forward, path, &args)?
                }
                op => evaluate(op, body, &trace, &node.args, &node.results)?,
            };
            for (result, array) in node.results.iter().zip(arrays) {
                check_shape(body.ty(*result), &array, &trace.sizes)?;
                trace.set(*result, array);
            }
        }
        for (index, value) in &backward.grads {
            let name = declared.params.get(*index).map_or("", |param| param.name.as_str());
            self.add(join(path, name), trace.value(*value)?);
        }
        results(body, &trace)
    }

    /// Runs the backward functions of a call or stack of the forward, last layer first.
    fn below(
        &mut self,
        declared: &Function,
        call: NodeId,
        forward: &Trace,
        path: &str,
        layers: &[BackwardId],
        args: Vec<Array>,
    ) -> Result<Vec<Array>, EvalError> {
        let (sub, is_stack) = match &declared.node(call).op {
            Op::Call(op) => (op.sub, false),
            Op::Stack(op) => (op.sub, true),
            other => {
                let mnemonic = other.def().mnemonic();
                return Err(EvalError(format!("`{mnemonic}` is not a call")));
            }
        };
        let traces = forward.calls.get(&call).map(Vec::as_slice).unwrap_or(&[]);
        let mut cotangents = args;
        let shares = if is_stack { self.penalty_shares(layers) } else { Vec::new() };
        let n_shares = shares.iter().filter(|share| **share).count();
        let share = is_stack.then(|| cotangents.drain(1..).next()).flatten();
        let share = share.map(|d| d * (1.0 / n_shares as f64));
        for (layer, backward) in layers.iter().enumerate().rev() {
            if shares.get(layer) == Some(&true) {
                cotangents.extend(share.clone());
            }
            let (_, below) = target(declared, sub, layer, path)?;
            let trace = traces.get(layer);
            let trace = trace.ok_or_else(|| EvalError("a call left no trace".into()))?;
            cotangents = self.call(*backward, trace, &below, &cotangents)?;
        }
        Ok(cotangents)
    }

    /// Which layers have a penalty whose cotangent they take: each gets its share of that of the
    /// mean.
    fn penalty_shares(&self, layers: &[BackwardId]) -> Vec<bool> {
        let seeded = |id: &BackwardId| {
            let backward = self.module.backward.get(id.0 as usize);
            backward.is_some_and(|b| b.seeds.get(1) == Some(&true))
        };
        layers.iter().map(seeded).collect()
    }

    fn add(&mut self, path: String, gradient: &Array) {
        match self.grads.get_mut(&path) {
            Some(total) => *total += gradient,
            None => {
                self.grads.insert(path, gradient.clone());
            }
        }
    }
}

/// Arranges an array with the axes of `from` for pointwise use in the shape of `to`: axes are
/// matched by name, axes that `from` lacks are repeated.
///
/// # Errors
/// If an axis of `from` is not in `to`, or a length differs.
pub fn align(array: &Array, from: &Type, to: &Type, shape: &[usize]) -> Result<Array, EvalError> {
    let mut order = Vec::new();
    for axis in &to.axes {
        if let Some(position) = from.position(&axis.name) {
            order.push(position);
        }
    }
    if order.len() != from.axes.len() {
        return Err(EvalError(format!("{from} does not align to {to}")));
    }
    let mut view = array.view().permuted_axes(order);
    for (position, axis) in to.axes.iter().enumerate() {
        if !from.has(&axis.name) {
            view = view.insert_axis(ndarray::Axis(position));
        }
    }
    let repeated = view
        .broadcast(shape.to_vec())
        .ok_or_else(|| EvalError(format!("{from} has not the lengths of {to}")))?;
    Ok(repeated.to_owned())
}
