//! Functions and modules: the graph itself, and the one way to build it.

use super::types::Type;
use crate::ops::{Op, TypeError};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Active, InitLaw, MemberRef, Storage};
use lightc_dsl::source::Span;
use std::fmt;

/// A value of one function. Prints as `%12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A node of one function, in execution order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A function of one module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FuncId(pub u32);

/// One application of an op. A node's arguments are defined by earlier nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// To what.
    pub args: Vec<ValueId>,
    /// What comes out, in order.
    pub results: Vec<ValueId>,
    /// The source expression it comes from; beside the data, not part of the text form.
    pub span: Option<Span>,
}

/// One SSA value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its type.
    pub ty: Type,
    /// The node that defines it.
    pub node: NodeId,
    /// The name it has in the source, where it has one.
    pub name: Option<String>,
}

/// A parameter that a function declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Last segment of its path.
    pub name: String,
    /// Precision class and storage order.
    pub ty: Type,
    /// How it starts.
    pub init: InitLaw,
    /// How it is kept.
    pub storage: Storage,
    /// How much of it one token uses; all of it where absent.
    pub active: Option<Active>,
    /// `///` text.
    pub doc: Option<String>,
    /// Where it is declared.
    pub span: Option<Span>,
}

/// A state that a function declares: read in a step, replaced after it.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Last segment of its path.
    pub name: String,
    /// Always `f32`.
    pub ty: Type,
    /// What every element starts at.
    pub start: f64,
    /// Where it is declared.
    pub span: Option<Span>,
}

/// A table of whole numbers that the runtime makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Last segment of its path.
    pub name: String,
    /// Always `index`.
    pub ty: Type,
    /// What makes it.
    pub from: String,
    /// Where it is declared.
    pub span: Option<Span>,
}

/// A sub-block, or a stack of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sub {
    /// Path segment.
    pub name: String,
    /// One callee for `sub`, one per layer for `stack` (paths `name.0`, `name.1`, ...).
    pub callees: Vec<FuncId>,
    /// Whether it is a stack: its paths carry the layer's index.
    pub is_stack: bool,
    /// Absent from inference.
    pub training_only: bool,
    /// Where it is declared.
    pub span: Option<Span>,
}

/// The name of the last output of a function that has penalties: their sum, which its caller adds
/// to what training minimises. No output of the source can have it.
pub const PENALTIES: &str = "penalties";

/// Whether a function gives penalties to its caller, as its last output.
pub fn has_penalties(function: &Function) -> bool {
    function.outputs.last().is_some_and(|output| output.name.as_deref() == Some(PENALTIES))
}

/// A named result of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `None` for a single unnamed output.
    pub name: Option<String>,
    /// The value that is returned.
    pub value: ValueId,
}

/// One block, lowered: declarations, nodes in execution order, outputs, state updates.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Function {
    /// Unique in its module; becomes the Rust type's name.
    pub name: String,
    /// `///` text of the block.
    pub doc: Option<String>,
    /// Where the block is.
    pub span: Option<Span>,
    /// Size names that stay open because the block is compiled for symbolic sizes: bound by no
    /// input. Empty in a stage.
    pub open_sizes: Vec<String>,
    /// Parameters, in declaration order.
    pub params: Vec<Param>,
    /// States, in declaration order.
    pub states: Vec<State>,
    /// Tables, in declaration order.
    pub tables: Vec<Table>,
    /// Sub-blocks, in declaration order.
    pub subs: Vec<Sub>,
    /// Parameters and subs interleaved as declared: the canonical parameter order.
    pub order: Vec<MemberRef>,
    /// In execution order.
    pub nodes: Vec<Node>,
    /// All values.
    pub values: Vec<Value>,
    /// What is returned.
    pub outputs: Vec<Output>,
    /// States and the values they take after the step: index in `states`, value.
    pub updates: Vec<(usize, ValueId)>,
}

impl Function {
    /// The value of an id of this function.
    ///
    /// Ids are only made by this function's builder or parser, so the index is in range.
    #[allow(clippy::indexing_slicing)]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &Type {
        &self.value(id).ty
    }

    /// The node of an id of this function.
    #[allow(clippy::indexing_slicing)]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The node that defines a value.
    pub fn definition(&self, id: ValueId) -> &Node {
        self.node(self.value(id).node)
    }

    /// Nodes with their ids, in execution order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i as u32), node))
    }

    /// The function's inputs in order: name and value.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, ValueId)> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Input(input) => node.results.first().map(|v| (input.name.as_str(), *v)),
            _ => None,
        })
    }

    /// Adds a node whose result types are given: for ops whose types no rule can infer
    /// (inputs, parameters, calls).
    pub fn push_typed(
        &mut self,
        op: Op,
        args: Vec<ValueId>,
        types: Vec<Type>,
        span: Option<Span>,
    ) -> Vec<ValueId> {
        let node = NodeId(self.nodes.len() as u32);
        let first = self.values.len() as u32;
        let results: Vec<ValueId> = (first..first + types.len() as u32).map(ValueId).collect();
        self.values.extend(types.into_iter().map(|ty| Value { ty, node, name: None }));
        self.nodes.push(Node { op, args, results: results.clone(), span });
        results
    }

    /// Adds a node; its result types come from the op's shape rule.
    ///
    /// # Errors
    /// What the shape rule says.
    pub fn push(
        &mut self,
        op: Op,
        args: Vec<ValueId>,
        span: Option<Span>,
    ) -> Result<Vec<ValueId>, TypeError> {
        let types: Vec<&Type> = args.iter().map(|a| self.ty(*a)).collect();
        let results = op.def().infer(&types)?;
        Ok(self.push_typed(op, args, results, span))
    }

    /// [`Function::push`] for an op with one result.
    ///
    /// # Errors
    /// What the shape rule says.
    pub fn push1(
        &mut self,
        op: Op,
        args: Vec<ValueId>,
        span: Option<Span>,
    ) -> Result<ValueId, TypeError> {
        self.push(op, args, span)?
            .first()
            .copied()
            .ok_or_else(|| TypeError::new("E0701", "an op with no result was used as a value"))
    }

    /// Names a value, unless it has a name.
    pub fn name_value(&mut self, id: ValueId, name: &str) {
        if let Some(value) = self.values.get_mut(id.0 as usize) {
            value.name.get_or_insert_with(|| name.to_owned());
        }
    }

    /// Size names that its inputs bind: every plain size name among the inputs' axes, with the
    /// first input and axis position that has it.
    pub fn bound_symbols(&self) -> Vec<(String, ValueId, usize)> {
        let mut found: Vec<(String, ValueId, usize)> = Vec::new();
        for (_, input) in self.inputs() {
            for (position, axis) in self.ty(input).axes.iter().enumerate() {
                for name in axis.size.symbols() {
                    let plain = axis.size == lightc_dsl::size::Size::symbol(name);
                    if plain && !found.iter().any(|(known, _, _)| known == name) {
                        found.push((name.to_owned(), input, position));
                    }
                }
            }
        }
        found
    }
}

/// A stage as IR: functions with callees before callers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Module {
    /// The stage.
    pub name: String,
    /// Callees before callers.
    pub functions: Vec<Function>,
    /// The root block.
    pub entry: FuncId,
    /// One per function once differentiated; see [`crate::autodiff`].
    pub backward: Vec<Backward>,
}

impl Module {
    /// The function of an id of this module.
    #[allow(clippy::indexing_slicing)]
    pub fn function(&self, id: FuncId) -> &Function {
        &self.functions[id.0 as usize]
    }

    /// The root function.
    pub fn entry_function(&self) -> &Function {
        self.function(self.entry)
    }

    /// The function of a name.
    pub fn find(&self, name: &str) -> Option<FuncId> {
        self.functions.iter().position(|f| f.name == name).map(|i| FuncId(i as u32))
    }
}

/// A backward function of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackwardId(pub u32);

/// The derivative of a function with respect to its inputs and parameters.
///
/// Its body is a [`Function`] without declarations: cotangents of the forward's outputs come in
/// as inputs, forward values through the `saved` op, parameters through the `param` op (same
/// index as in the forward).
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// The forward function.
    pub of: FuncId,
    /// Which forward outputs have a cotangent, in output order. Its true entries are the
    /// inputs of `body`.
    pub seeds: Vec<bool>,
    /// The computation. `outputs` holds the cotangents that are not structurally zero.
    pub body: Function,
    /// For each forward input: index in `body.outputs`, or `None` where the cotangent is
    /// structurally zero (or the input is not floating point).
    pub inputs: Vec<Option<usize>>,
    /// Gradient of each parameter of `of` that has one: parameter index, value.
    pub grads: Vec<(usize, ValueId)>,
}

/// The dtype of the result of mixing two float classes: the wider one. Promotion never loses;
/// narrowing is written with `act(...)`.
pub fn promote(a: DType, b: DType) -> Option<DType> {
    match (a, b) {
        (DType::Act, DType::Act) => Some(DType::Act),
        (DType::Act | DType::F32, DType::Act | DType::F32) => Some(DType::F32),
        _ => None,
    }
}
