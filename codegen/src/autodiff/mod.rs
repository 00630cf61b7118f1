//! Reverse-mode derivatives as a pass over the IR.
//!
//! For every function and every set of outputs that has a cotangent, one [`Backward`] function
//! is made: it takes those cotangents, reads forward values with `saved`, and gives the cotangents
//! of the inputs and the gradients of the parameters. Each op's own rule ([`OpDef::vjp`]) says how;
//! this pass orders them, adds up where a value is used more than once, and leaves out what
//! is structurally zero. What it leaves out is what [`crate::analysis`] reports.

use crate::ir::{
    Backward, BackwardId, FuncId, Function, Module, NodeId, Output, Type, ValueId,
};
use crate::ops::{
    Affine, Binary, BinaryFn, Broadcast, Call, CallBackward, Cast, Const, Input, Op, ParamRef,
    Permute, Saved, Stack, StackBackward, StateRef, Sum, TableRef, TypeError,
};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Storage;
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
        self.dys
            .first()
            .copied()
            .flatten()
            .ok_or_else(|| TypeError::new("E0701", "a derivative rule was called without a cotangent"))
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
