//! A function of single elements as a device function: every value is one number of its own place.
//!
//! For kernels whose skeleton is written by hand, such as the optimizer's over a table of tensors: what they compute is
//! IR, and interp says what it means. Each operation is rounded by itself, so the bits are those of the operations one by
//! one, which no compiler may fuse.

use super::express::{exact, number, rounded};
use super::group::is_literal;
use super::text::Text;
use crate::ir::{Function, Node, ValueId};
use crate::ops::{BinaryFn, Op};
use lightc_dsl::ast::DType;

/// The numbers that a device function computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 32 bits.
    Float,
    /// 64 bits.
    Double,
}

impl Number {
    fn word(self) -> &'static str {
        match self {
            Number::Float => "float",
            Number::Double => "double",
        }
    }
}

/// The CUDA text of a function whose nodes are pointwise, as a device function of one element: its inputs in order, then
/// a reference for each output. An output that rounds another to the compute precision is left out: that is how its
/// kernel stores the other.
///
/// # Errors
/// A node that is not an operation on numbers of 32 bits, or an output without a name: a fault of the function.
pub fn element_function(function: &Function, entry: &str, kind: Number) -> Result<String, String> {
    let name = |value: ValueId| match &function.value(value).name {
        Some(name) => name.clone(),
        None => format!("v{}", value.0),
    };
    let word = kind.word();
    let outputs: Vec<(&str, ValueId)> = function
        .outputs
        .iter()
        .filter(|output| !is_rounding(function, output.value))
        .map(|output| {
            let named = output.name.as_deref();
            Ok((named.ok_or_else(|| format!("an output of {entry} has no name"))?, output.value))
        })
        .collect::<Result<_, String>>()?;
    let inputs = function.inputs().map(|(name, _)| format!("const {word} {name}"));
    let results = outputs.iter().map(|(name, _)| format!("{word}& to_{name}"));
    let params: Vec<String> = inputs.chain(results).collect();
    let mut text = Text::default();
    text.open(format!("DEVICE void {entry}({})", params.join(", ")));
    for (_, node) in function.nodes() {
        let Some(result) = node.results.first().copied() else { continue };
        if matches!(node.op, Op::Input(_))
            || is_literal(function, result)
            || is_rounding(function, result)
        {
            continue;
        }
        let args: Vec<String> = node
            .args
            .iter()
            .map(|arg| match &function.definition(*arg).op {
                Op::Const(op) => number(op.value),
                _ => name(*arg),
            })
            .collect();
        let mnemonic = node.op.def().mnemonic();
        let computed = match kind {
            Number::Float if divides_by_shared(function, node) => {
                Some(format!("divide_by({})", args.join(", ")))
            }
            Number::Float => rounded(&node.op, &args),
            Number::Double => exact(&node.op, &args),
        };
        let computed = computed.ok_or_else(|| format!("{entry} has a node of `{mnemonic}`"))?;
        text.line(format!("const {word} {} = {computed};", name(result)));
    }
    for (output, value) in outputs {
        text.line(format!("to_{output} = {};", name(value)));
    }
    text.close();
    Ok(text.finish())
}

/// Whether a node divides elements by a number that all of them share.
fn divides_by_shared(function: &Function, node: &Node) -> bool {
    let divides = matches!(&node.op, Op::Binary(op) if op.function == BinaryFn::Div);
    divides && node.args.get(1).is_some_and(|by| function.ty(*by).axes.is_empty())
}

/// Whether a value is another in the compute precision.
fn is_rounding(function: &Function, value: ValueId) -> bool {
    matches!(function.definition(value).op, Op::Cast(_)) && function.ty(value).dtype == DType::Act
}
