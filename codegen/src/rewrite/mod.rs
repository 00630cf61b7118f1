//! Rewrites of a module for targets that fuse operations. They keep what it computes over the real
//! numbers; where a rewrite moves a rounding, it says so.
//!
//! | pass | on | does |
//! |---|---|---|
//! | [`inline`](mod@inline) | lowered module | writes calls out, so that a layer is one function |
//! | [`fold`](mod@fold) | the same | takes the scale of a norm out of narrow contractions that read it |
//! | [`share`](mod@share) | lowered module | has one rank's share of the experts |
//! | [`experts`](mod@experts) | the same, then the differentiated one | makes grouped products of products with chosen weights |
//! | [`indexer`](mod@indexer) | the same | puts one op in place of the ops of an indexer |
//! | [`bounds`](mod@bounds) | the same | writes at each attention what its mask can hold |
//! | [`loss`](mod@loss) | differentiated module | has the gradients of a fused loss from its forward |
//! | [`adapters`](mod@adapters) | the same | joins the cotangents of rows that a weight and its adapter read |
//! | [`pairs`](mod@pairs) | the same | has two narrow products of the same rows, or one and a gradient, from one pass over these |
//! | [`recompute`](mod@recompute) | the same | has cheap values again in the backward instead of keeping them |

pub mod adapters;
pub mod bounds;
pub mod experts;
pub mod fold;
pub mod indexer;
pub mod inline;
pub mod loss;
pub mod pairs;
pub mod recompute;
pub mod share;

use crate::ir::{Backward, FuncId, Function, Node, Output, Type, ValueId};
use crate::ops::{Attr, Op, TypeError, parse_op};
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// A fault of a rewrite: IR that no rule accepts.
pub type Result<T> = std::result::Result<T, TypeError>;

fn fault(message: impl Into<String>) -> TypeError {
    TypeError::new("E0701", format!("compiler fault: {}", message.into()))
}

/// A function that is written anew, node by node, from another.
struct Copy {
    /// What has been written; declarations are taken over by the caller.
    to: Function,
    /// Where each value of the old function is in the new one.
    map: BTreeMap<ValueId, ValueId>,
}

impl Copy {
    fn new(to: Function) -> Self {
        Copy { to, map: BTreeMap::new() }
    }

    fn at(&self, value: ValueId) -> Result<ValueId> {
        let found = self.map.get(&value).copied();
        found.ok_or_else(|| fault(format!("{value} is read before it is written")))
    }

    /// Writes a node of `from` with another op and the old results' types, sizes substituted.
    fn node(
        &mut self,
        from: &Function,
        node: &Node,
        op: Op,
        bindings: &BTreeMap<String, Size>,
    ) -> Result<()> {
        let args = node.args.iter().map(|arg| self.at(*arg)).collect::<Result<Vec<_>>>()?;
        let types = node.results.iter().map(|result| from.ty(*result).substitute(bindings));
        let types = types.collect();
        let results = self.to.push_typed(op, args, types, node.span);
        for (old, new) in node.results.iter().zip(results) {
            if let Some(name) = &from.value(*old).name {
                self.to.name_value(new, name);
            }
            self.map.insert(*old, new);
        }
        Ok(())
    }

    /// Ends a function as the old one ends: with its outputs and updates.
    fn finish(&mut self, from: &Function) -> Result<()> {
        self.to.outputs = self.outputs(from)?;
        for (state, value) in &from.updates {
            let value = self.at(*value)?;
            self.to.updates.push((*state, value));
        }
        Ok(())
    }

    fn outputs(&self, from: &Function) -> Result<Vec<Output>> {
        let outputs = from.outputs.iter();
        outputs.map(|o| Ok(Output { name: o.name.clone(), value: self.at(o.value)? })).collect()
    }
}

/// The declarations of a function without its body.
fn declarations(function: &Function) -> Function {
    Function {
        nodes: Vec::new(),
        values: Vec::new(),
        outputs: Vec::new(),
        updates: Vec::new(),
        ..function.clone()
    }
}

/// Has the backward functions of a function name its values as they are numbered now.
fn renumber_saved(
    backward: &mut [Backward],
    of: FuncId,
    numbers: &BTreeMap<ValueId, ValueId>,
) -> Result<()> {
    let own = backward.iter_mut().filter(|backward| backward.of == of);
    for node in own.flat_map(|backward| &mut backward.body.nodes) {
        if let Op::Saved(saved) = &mut node.op {
            let number = numbers.get(&saved.value).copied();
            saved.value = number.ok_or_else(|| fault("a kept value is missing"))?;
        }
    }
    Ok(())
}

/// Whether a value of a backward is a value of its forward.
fn is_same(function: &Function, forward: ValueId, backward: &Backward, value: ValueId) -> bool {
    match &backward.body.definition(value).op {
        Op::Saved(saved) => saved.value == forward,
        Op::ParamRef(param) => function.definition(forward).op == Op::ParamRef(param.clone()),
        _ => false,
    }
}

/// An op with the size names in its attributes replaced.
fn with_sizes(op: &Op, bindings: &BTreeMap<String, Size>) -> Result<Op> {
    let mut attrs = op.def().attrs();
    let mut changed = false;
    for (_, attr) in &mut attrs.0 {
        match attr {
            Attr::Size(size) => {
                changed = true;
                *size = size.substitute(bindings);
            }
            Attr::Axes(axes) => {
                changed = true;
                for axis in axes {
                    axis.size = axis.size.substitute(bindings);
                }
            }
            _ => {}
        }
    }
    if !changed {
        return Ok(op.clone());
    }
    parse_op(op.def().mnemonic(), attrs).map_err(fault)
}

/// Renames the axes of a value, in place, to the names of `wanted`, which has as many.
fn rename_axes(function: &mut Function, value: ValueId, wanted: &[Axis]) -> Result<ValueId> {
    let mut value = value;
    let names: Vec<String> = wanted.iter().map(|axis| axis.name.clone()).collect();
    // An axis that is in the way steps aside first.
    for (position, name) in names.iter().enumerate() {
        let ty: &Type = function.ty(value);
        let Some(other) = ty.position(name) else { continue };
        if other != position {
            let aside = format!("{name}_aside");
            let op = crate::ops::Rename { from: name.clone(), to: aside };
            value = function.push1(op.into(), vec![value], None)?;
        }
    }
    for (position, name) in names.into_iter().enumerate() {
        let from = function.ty(value).axes.get(position).map(|axis| axis.name.clone());
        let from = from.ok_or_else(|| fault("a value has too few axes to be renamed"))?;
        if from != name {
            let op = crate::ops::Rename { from, to: name };
            value = function.push1(op.into(), vec![value], None)?;
        }
    }
    Ok(value)
}
