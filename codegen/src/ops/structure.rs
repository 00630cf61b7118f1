//! Leaves and calls: ops whose types come from declarations and other functions, not from a
//! shape rule. The interpreter, autodiff and emit treat each of them by itself.

use super::{Array, Attr, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{BackwardId, NodeId, Type, ValueId};
use lightc_dsl::model::Integrator;
use proc_macro2::TokenStream;
use quote::quote;

/// An input of the function: in a backward function, a cotangent.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its name.
    pub name: String,
}

/// A parameter of the function; in a backward function, of its forward.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamRef {
    /// Index in the function's parameters.
    pub index: usize,
}

/// A state's value before the step.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRef {
    /// Index in the function's states.
    pub index: usize,
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRef {
    /// Index in the function's tables.
    pub index: usize,
}

/// In a backward function: a value of the forward, as it was computed there.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The forward value.
    pub value: ValueId,
}

/// Runs a sub-block on its own parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Index in the function's subs.
    pub sub: usize,
}

/// Runs all layers of a stack, joined by its integrator. Arguments are the value that layer 0 reads
/// and the gate of each layer that has one; the result is the last state.
///
/// With an integrator other than `plain`, states are whole numbers of 32 bits, rounding of a state
/// or a force has the derivative of the identity, and `lightc_numerics::fixed` says what a step is.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Index in the function's subs.
    pub sub: usize,
    /// How the layers are joined.
    pub integrator: Integrator,
}

/// In a backward function: the backward of a call of the forward. Arguments are the cotangents
/// that `backward` takes; results those it gives. Adds the callee's parameter gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct CallBackward {
    /// The forward's call node.
    pub call: NodeId,
    /// The callee's backward function.
    pub backward: BackwardId,
}

/// In a backward function: the backward of a stack, last layer first. Arguments are the cotangent
/// of the stack's result, its gates, and the cotangent of its penalty where that has one; results
/// are the cotangents of its input and of the gates.
#[derive(Clone, Debug, PartialEq)]
pub struct StackBackward {
    /// The forward's stack node.
    pub call: NodeId,
    /// The backward function of each layer, first layer first.
    pub layers: Vec<BackwardId>,
    /// As in the forward.
    pub integrator: Integrator,
}

macro_rules! structural {
    ($($name:ident, $mnemonic:literal, ($($field:ident: $kind:ident),*);)*) => {
        $(
            impl OpDef for $name {
                fn mnemonic(&self) -> &'static str {
                    $mnemonic
                }

                fn attrs(&self) -> Attrs {
                    let mut attrs = Attrs::default();
                    $(attrs = attrs.with(stringify!($field), structural!(@print $kind, self.$field));)*
                    attrs
                }

                fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
                    Err(TypeError::new(
                        "E0701",
                        concat!("`", $mnemonic, "` has its types from a declaration, not from a rule"),
                    ))
                }

                fn eval(&self, _: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
                    Err(EvalError(concat!("`", $mnemonic, "` is not a computation").to_owned()))
                }

                fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
                    Ok(vec![None; vjp.n_args()])
                }

                fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
                    Cost::default()
                }

                fn emit_cpu(&self, _: &EmitCall<'_>) -> TokenStream {
                    quote!()
                }
            }

            impl ParseOp for $name {
                fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
                    if mnemonic != $mnemonic {
                        return Ok(None);
                    }
                    Ok(Some($name { $($field: structural!(@take $kind, attrs, stringify!($field)),)* }))
                }
            }
        )*
    };
    (@print text, $field:expr) => { Attr::Text($field.clone()) };
    (@print integrator, $field:expr) => { Attr::Text($field.to_string()) };
    (@print index, $field:expr) => { Attr::Int($field as i64) };
    (@print value, $field:expr) => { Attr::Int(i64::from($field.0)) };
    (@print node, $field:expr) => { Attr::Int(i64::from($field.0)) };
    (@print backward, $field:expr) => { Attr::Int(i64::from($field.0)) };
    (@print backwards, $field:expr) => {
        Attr::Words($field.iter().map(|b| b.0.to_string()).collect())
    };
    (@take integrator, $attrs:ident, $name:expr) => { $attrs.take_text($name)?.parse()? };
    (@take text, $attrs:ident, $name:expr) => { $attrs.take_text($name)? };
    (@take index, $attrs:ident, $name:expr) => { $attrs.take_index($name)? as usize };
    (@take value, $attrs:ident, $name:expr) => { ValueId($attrs.take_index($name)?) };
    (@take node, $attrs:ident, $name:expr) => { NodeId($attrs.take_index($name)?) };
    (@take backward, $attrs:ident, $name:expr) => { BackwardId($attrs.take_index($name)?) };
    (@take backwards, $attrs:ident, $name:expr) => {
        $attrs
            .take_words($name)?
            .iter()
            .map(|word| word.parse().map(BackwardId).map_err(|e| format!("`{word}`: {e}")))
            .collect::<Result<Vec<_>, String>>()?
    };
}

structural! {
    Input, "input", (name: text);
    ParamRef, "param", (index: index);
    StateRef, "state", (index: index);
    TableRef, "table", (index: index);
    Saved, "saved", (value: value);
    Call, "call", (sub: index);
    Stack, "stack", (sub: index, integrator: integrator);
    CallBackward, "call_backward", (call: node, backward: backward);
    StackBackward, "stack_backward", (call: node, layers: backwards, integrator: integrator);
}
