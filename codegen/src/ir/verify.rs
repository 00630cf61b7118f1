//! Checks a module and lists everything that is wrong with it.
//!
//! Invariants, in the order in which they are checked:
//!
//! 1. Callees come before callers, so there is no recursion; the entry exists.
//! 2. Function names are unique, and so are the names of a function's parameters, states,
//!    tables and subs.
//! 3. Every declared parameter and sub is in `order` exactly once, and nothing else is.
//!    A quantized parameter is `act` and has an axis; active positions are those of one of the
//!    parameter's axes.
//! 4. Nodes define each value exactly once; every argument is defined by an earlier node.
//! 5. The types of a node's results are those that the op's shape rule infers; those of inputs
//!    are free, those of parameters, states and tables are the declared ones.
//! 6. No type has an axis twice.
//! 7. A call gives the callee's inputs arguments of fitting precision class, number of axes and
//!    sizes, and has the callee's output types under the size names that the arguments bind.
//! 8. Layers of a stack give what they take, and perhaps a penalty; the stack then gives the mean
//!    of the penalties that its layers have. Its integrator has a step per layer, and it has a
//!    gate, one number, for each layer that the integrator says has one.
//! 9. Every size name in a type is bound by an input of the function (backward functions: of
//!    the forward).
//! 10. Outputs and updates are defined values; an update has its state's type; no state is
//!     updated twice.
//! 11. Backward functions: seeds match the forward's outputs; inputs are their cotangents, of the
//!     outputs' types; `saved` has the type of the forward value; cotangents have the types of the
//!     forward's inputs, gradients those of their parameters; only trained parameters have one;
//!     calls into backward functions stand for calls of the forward to the same callee; there is
//!     one entry per input, and no parameter has two gradients.
//!
//! Values that are not defined (4, 10) make types unreadable: where there are such, everything
//! that is wrong with definitions is listed, and nothing about types.

use super::graph::{Backward, FuncId, Function, Module, NodeId, ValueId};
use super::types::Type;
use crate::ops::{Op, Stack, StackBackward};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Integrator, MemberRef, Storage};
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The function that has it, and the node's text where it is in one.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// All violations of a module; none for a good one.
pub fn verify(module: &Module) -> Vec<Violation> {
    let mut check = Check { module, violations: Vec::new(), place: "module".into() };
    check.module();
    check.violations
}

struct Check<'m> {
    module: &'m Module,
    violations: Vec<Violation>,
    place: String,
}

impl Check<'_> {
    fn fail(&mut self, message: impl Into<String>) {
        self.violations.push(Violation { place: self.place.clone(), message: message.into() });
    }

    fn module(&mut self) {
        let module = self.module;
        if module.functions.get(module.entry.0 as usize).is_none() {
            self.fail(format!("entry {} is not a function", module.entry.0));
            return;
        }
        let names: Vec<&str> = module.functions.iter().map(|f| f.name.as_str()).collect();
        self.unique("function", &names);
        for (index, function) in module.functions.iter().enumerate() {
            self.place = format!("@{}", function.name);
            self.declarations(function, index);
        }
        if self.definitions() {
            self.types_of_all();
        }
    }

    /// Checks that every value that is read is defined; whether it is so everywhere.
    fn definitions(&mut self) -> bool {
        let module = self.module;
        let mut sound = true;
        for function in &module.functions {
            let updated = function.updates.iter().map(|(index, value)| {
                let state = function.states.get(*index).map_or("?", |state| &state.name);
                (format!("the update of `{state}`"), *value)
            });
            sound &= self.defined(function, updated.collect());
        }
        for backward in &module.backward {
            let forward = module.functions.get(backward.of.0 as usize);
            let grads = backward.grads.iter().map(|(index, value)| {
                let param = forward.and_then(|forward| forward.params.get(*index));
                (format!("the gradient of `{}`", param.map_or("?", |param| &param.name)), *value)
            });
            sound &= self.defined(&backward.body, grads.collect());
        }
        sound
    }

    fn types_of_all(&mut self) {
        let module = self.module;
        for function in &module.functions {
            self.place = format!("@{}", function.name);
            self.body(function, None);
            self.updates(function);
        }
        for backward in &module.backward {
            self.place = format!("@{}", backward.body.name);
            self.backward(backward);
        }
    }

    fn unique(&mut self, what: &str, names: &[&str]) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.fail(format!("{what} `{name}` is defined twice"));
            }
        }
    }

    fn declarations(&mut self, function: &Function, index: usize) {
        let params: Vec<&str> = function.params.iter().map(|p| p.name.as_str()).collect();
        let states = function.states.iter().map(|s| s.name.as_str());
        let tables = function.tables.iter().map(|t| t.name.as_str());
        let subs = function.subs.iter().map(|s| s.name.as_str());
        let names: Vec<&str> = params.into_iter().chain(states).chain(tables).chain(subs).collect();
        self.unique("member", &names);
        let mut listed: Vec<MemberRef> = function.order.clone();
        listed.sort_by_key(|member| match member {
            MemberRef::Param(i) => (0, *i),
            MemberRef::Sub(i) => (1, *i),
        });
        let wanted: Vec<MemberRef> = (0..function.params.len())
            .map(MemberRef::Param)
            .chain((0..function.subs.len()).map(MemberRef::Sub))
            .collect();
        if listed != wanted {
            self.fail("`order` does not list every parameter and sub exactly once");
        }
        for param in &function.params {
            self.storage(param);
        }
        for sub in &function.subs {
            for callee in &sub.callees {
                if callee.0 as usize >= index {
                    self.fail(format!(
                        "sub `{}` calls a function that does not come before",
                        sub.name
                    ));
                }
            }
        }
    }

    /// Quantized parameters have rows of activations; active positions are of a known axis.
    fn storage(&mut self, param: &super::Param) {
        let quantized = matches!(param.storage, Storage::Quantized(_));
        if quantized && (param.ty.dtype != DType::Act || param.ty.axes.is_empty()) {
            self.fail(format!("`{}` is {} and cannot be quantized", param.name, param.ty));
        }
        if let Some(active) = &param.active
            && !param.ty.has(&active.of)
        {
            self.fail(format!("`{}` has no axis `{}` to be active in", param.name, active.of));
        }
    }

    /// Checks that nodes define each value once and read earlier ones, and that outputs and the
    /// `others` are defined; whether all is so.
    fn defined(&mut self, function: &Function, others: Vec<(String, ValueId)>) -> bool {
        let before = self.violations.len();
        let place = format!("@{}", function.name);
        let mut defined = vec![false; function.values.len()];
        for (id, node) in function.nodes() {
            self.place = format!("{place} node {} `{}`", id.0, node.op.def().mnemonic());
            for arg in &node.args {
                if defined.get(arg.0 as usize) != Some(&true) {
                    self.fail(format!("{arg} is used before it is defined"));
                }
            }
            for result in &node.results {
                match defined.get_mut(result.0 as usize) {
                    Some(slot) if !*slot => *slot = true,
                    _ => {
                        self.fail(format!("{result} is defined twice or does not exist"));
                        continue;
                    }
                }
                if function.value(*result).node != id {
                    self.fail(format!("{result} names another node as its definition"));
                }
            }
        }
        self.place = place;
        if defined.contains(&false) {
            self.fail("a value is defined by no node");
        }
        let outputs = function.outputs.iter().map(|o| (format!("output {}", o.value), o.value));
        for (what, value) in outputs.chain(others) {
            if defined.get(value.0 as usize) != Some(&true) {
                self.fail(format!("{what} is not defined"));
            }
        }
        self.violations.len() == before
    }

    /// Checks types. `forward` is given for a backward body.
    fn body(&mut self, function: &Function, forward: Option<&Function>) {
        let place = self.place.clone();
        for (id, node) in function.nodes() {
            let mnemonic = node.op.def().mnemonic();
            self.place = format!("{place} node {} `{mnemonic}`", id.0);
            for result in &node.results {
                self.axes_once(function.ty(*result));
            }
            self.types(function, forward, id);
        }
        self.place = place;
        self.sizes_bound(function, forward);
    }

    fn axes_once(&mut self, ty: &Type) {
        let mut seen = BTreeSet::new();
        for axis in &ty.axes {
            if !seen.insert(&axis.name) {
                self.fail(format!("type {ty} has axis `{}` twice", axis.name));
            }
        }
    }

    fn types(&mut self, function: &Function, forward: Option<&Function>, id: NodeId) {
        let node = function.node(id);
        let declared = forward.unwrap_or(function);
        let results: Vec<&Type> = node.results.iter().map(|r| function.ty(*r)).collect();
        let args: Vec<&Type> = node.args.iter().map(|a| function.ty(*a)).collect();
        let fixed = |ty: Option<&Type>| ty.cloned().map(|ty| vec![ty]);
        let wanted: Option<Vec<Type>> = match &node.op {
            Op::Input(_) => fixed(results.first().copied()),
            Op::ParamRef(op) => fixed(declared.params.get(op.index).map(|p| &p.ty)),
            Op::StateRef(op) => fixed(declared.states.get(op.index).map(|s| &s.ty)),
            Op::TableRef(op) => fixed(declared.tables.get(op.index).map(|t| &t.ty)),
            Op::Saved(op) => {
                let known = (op.value.0 as usize) < declared.values.len() && forward.is_some();
                fixed(known.then(|| declared.ty(op.value)))
            }
            Op::Call(op) => self.call_types(function, op.sub, 0, &args),
            Op::Stack(op) => self.stack_types(function, op, &args),
            Op::CallBackward(op) => self.backward_types(forward, op.call, &[op.backward], &args),
            Op::StackBackward(op) => self.stack_backward_types(forward, op, &args),
            op => match op.def().infer(&args) {
                Ok(types) => Some(types),
                Err(error) => {
                    self.fail(error.message);
                    return;
                }
            },
        };
        let Some(wanted) = wanted else {
            self.fail("refers to something that is not declared, or does not fit it");
            return;
        };
        let has: Vec<Type> = results.into_iter().cloned().collect();
        if !same_types(&wanted, &has, &node.op) {
            let text = |types: &[Type]| {
                types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            self.fail(format!("has result {}, its rule says {}", text(&has), text(&wanted)));
        }
    }

    /// Types of a call's results: the callee's, with size names bound by the arguments.
    fn call_types(
        &mut self,
        function: &Function,
        sub: usize,
        layer: usize,
        args: &[&Type],
    ) -> Option<Vec<Type>> {
        let callee = *function.subs.get(sub)?.callees.get(layer)?;
        let callee = self.module.functions.get(callee.0 as usize)?;
        let inputs: Vec<ValueId> = callee.inputs().map(|(_, value)| value).collect();
        if inputs.len() != args.len() {
            return None;
        }
        let mut bindings: BTreeMap<String, Size> = BTreeMap::new();
        for (symbol, value, position) in callee.bound_symbols() {
            let index = inputs.iter().position(|input| *input == value)?;
            bindings.insert(symbol, args.get(index)?.axes.get(position)?.size.clone());
        }
        for (input, arg) in inputs.iter().zip(args) {
            let wanted = callee.ty(*input).substitute(&bindings);
            let sizes = |ty: &Type| ty.axes.iter().map(|a| a.size.clone()).collect::<Vec<_>>();
            if wanted.dtype != arg.dtype || sizes(&wanted) != sizes(arg) {
                self.fail(format!("argument {arg} does not fit input {wanted}"));
            }
        }
        Some(callee.outputs.iter().map(|o| callee.ty(o.value).substitute(&bindings)).collect())
    }

    fn stack_types(
        &mut self,
        function: &Function,
        stack: &Stack,
        args: &[&Type],
    ) -> Option<Vec<Type>> {
        let sub = stack.sub;
        let layers = function.subs.get(sub)?.callees.len();
        let ty = (*args.first()?).clone();
        let gates = args.get(1..)?;
        if let Integrator::Midpoint(midpoint) = &stack.integrator
            && (midpoint.steps.len() != layers || !ty.is_float())
        {
            self.fail(format!("its integrator has not one step for each of {layers} layers"));
        }
        let gate = Type::scalar(DType::F32);
        if gates.len() != stack.integrator.gated().len() || gates.iter().any(|ty| **ty != gate) {
            self.fail("its gates are not one number per layer that has one");
        }
        let mut penalty = None;
        for layer in 0..layers {
            let mut types = self.call_types(function, sub, layer, &[&ty])?;
            if types.len() > 1 {
                penalty = types.pop();
            }
            let call = Op::Call(crate::ops::Call { sub });
            if !same_types(&types, std::slice::from_ref(&ty), &call) {
                self.fail(format!("layer {layer} does not give what it takes"));
            }
        }
        if penalty.as_ref().is_some_and(|ty| *ty != Type::scalar(DType::F32)) {
            self.fail("the penalty of a layer is not one f32");
        }
        Some(std::iter::once(ty).chain(penalty).collect())
    }

    fn stack_backward_types(
        &mut self,
        forward: Option<&Function>,
        op: &StackBackward,
        args: &[&Type],
    ) -> Option<Vec<Type>> {
        let node = forward?.nodes.get(op.call.0 as usize)?;
        let Op::Stack(stack) = &node.op else { return None };
        let n_gates = op.integrator.gated().len();
        if stack.integrator != op.integrator || n_gates + 1 != node.args.len() {
            self.fail("its integrator and gates are not those of the forward's stack");
        }
        let (first, rest) = args.split_first()?;
        let (gates, penalty) = rest.split_at_checked(n_gates)?;
        let cotangents: Vec<&Type> =
            std::iter::once(*first).chain(penalty.iter().copied()).collect();
        let mut types = self.backward_types(forward, op.call, &op.layers, &cotangents)?;
        types.truncate(1);
        types.extend(gates.iter().map(|ty| (*ty).clone()));
        Some(types)
    }

    fn backward_types(
        &mut self,
        forward: Option<&Function>,
        call: NodeId,
        layers: &[super::BackwardId],
        args: &[&Type],
    ) -> Option<Vec<Type>> {
        let forward = forward?;
        let node = forward.nodes.get(call.0 as usize)?;
        let (sub, is_stack) = match &node.op {
            Op::Call(op) => (op.sub, false),
            Op::Stack(op) => (op.sub, true),
            _ => return None,
        };
        let callees: &[FuncId] = &forward.subs.get(sub)?.callees;
        if callees.len() != layers.len() {
            return None;
        }
        // A stack of no layers gives what it takes.
        let unchanged = || args.iter().map(|ty| (*ty).clone()).collect();
        let mut results = callees.is_empty().then(unchanged);
        for (callee, layer) in callees.iter().zip(layers) {
            let backward = self.module.backward.get(layer.0 as usize)?;
            if backward.of != *callee {
                return None;
            }
            let seeded = node.results.iter().zip(&backward.seeds).filter(|(_, seeded)| **seeded);
            let wanted: Vec<&Type> = seeded.map(|(result, _)| forward.ty(*result)).collect();
            // A layer without a penalty has no use for the cotangent of the stack's.
            let given = if is_stack { args.get(..wanted.len()) } else { Some(args) };
            if given != Some(wanted.as_slice()) {
                self.fail("its arguments are not the cotangents of the call's results");
            }
            let inputs = node.args.iter().zip(&backward.inputs).filter(|(_, d)| d.is_some());
            results = Some(inputs.map(|(arg, _)| forward.ty(*arg).clone()).collect());
        }
        results
    }

    fn sizes_bound(&mut self, function: &Function, forward: Option<&Function>) {
        let bound = forward.unwrap_or(function).bound_symbols();
        let mut known: BTreeSet<String> = bound.into_iter().map(|(name, _, _)| name).collect();
        known.extend(forward.unwrap_or(function).open_sizes.iter().cloned());
        let mut unbound: BTreeSet<String> = BTreeSet::new();
        for value in &function.values {
            for axis in &value.ty.axes {
                let free = axis.size.symbols().filter(|name| !known.contains(*name));
                unbound.extend(free.map(str::to_owned));
            }
        }
        for name in unbound {
            self.fail(format!("size name `{name}` is bound by no input"));
        }
    }

    fn updates(&mut self, function: &Function) {
        let mut seen = BTreeSet::new();
        for (index, value) in &function.updates {
            let Some(state) = function.states.get(*index) else {
                self.fail(format!("an update names state {index}, which does not exist"));
                continue;
            };
            if !seen.insert(*index) {
                self.fail(format!("state `{}` is updated twice", state.name));
            }
            if *function.ty(*value) != state.ty {
                self.fail(format!("state `{}` gets a value of another type", state.name));
            }
        }
    }

    fn backward(&mut self, backward: &Backward) {
        let Some(forward) = self.module.functions.get(backward.of.0 as usize) else {
            self.fail("its forward does not exist");
            return;
        };
        self.body(&backward.body, Some(forward));
        let body = &backward.body;
        let seeded = forward.outputs.iter().zip(&backward.seeds).filter(|(_, seeded)| **seeded);
        let wanted: Vec<&Type> = seeded.map(|(output, _)| forward.ty(output.value)).collect();
        let has: Vec<&Type> = body.inputs().map(|(_, value)| body.ty(value)).collect();
        if backward.seeds.len() != forward.outputs.len() || wanted != has {
            self.fail("its inputs are not the cotangents of the seeded outputs");
        }
        self.cotangents(backward, forward);
        self.gradients(backward, forward);
    }

    fn cotangents(&mut self, backward: &Backward, forward: &Function) {
        let (has, wanted) = (backward.inputs.len(), forward.inputs().count());
        if has != wanted {
            self.fail(format!("it speaks of {has} inputs, its forward has {wanted}"));
        }
        for ((name, value), index) in forward.inputs().zip(&backward.inputs) {
            let Some(index) = *index else { continue };
            match backward.body.outputs.get(index) {
                Some(output) if backward.body.ty(output.value) != forward.ty(value) => {
                    self.fail(format!("the cotangent of input `{name}` has another type than it"));
                }
                Some(_) => {}
                None => self.fail(format!(
                    "the cotangent of input `{name}` is result {index}, which does not exist"
                )),
            }
        }
    }

    fn gradients(&mut self, backward: &Backward, forward: &Function) {
        let mut seen = BTreeSet::new();
        for (index, value) in &backward.grads {
            let Some(param) = forward.params.get(*index) else {
                self.fail("a gradient names a parameter that does not exist");
                continue;
            };
            if !seen.insert(*index) {
                self.fail(format!("`{}` has two gradients", param.name));
            }
            if !param.storage.learns() {
                self.fail(format!("`{}` does not learn, but has a gradient", param.name));
            } else if param.ty != *backward.body.ty(*value) {
                self.fail(format!("the gradient of `{}` has another type than it", param.name));
            }
        }
    }
}

/// Calls keep the caller's axis names, so only classes and sizes are compared there.
fn same_types(wanted: &[Type], has: &[Type], op: &Op) -> bool {
    if !matches!(op, Op::Call(_)) {
        return wanted == has;
    }
    let plain = |types: &[Type]| -> Vec<(String, Vec<Size>)> {
        let dtype = |ty: &Type| super::types::dtype_word(ty.dtype).to_owned();
        types
            .iter()
            .map(|ty| (dtype(ty), ty.axes.iter().map(|axis| axis.size.clone()).collect()))
            .collect()
    };
    plain(wanted) == plain(has)
}
