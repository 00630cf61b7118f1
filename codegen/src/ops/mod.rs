//! The ops. Each family is one file; each op is one struct with, side by side: its attributes,
//! its shape rule, its meaning (f64, ndarray), its derivative, its cost, and the call that emitted
//! Rust makes for it. `docs/add-an-op.md` shows how to add one.
//!
//! The meaning given here *defines* the op. libtorch is checked against it, generated kernels
//! against libtorch.

mod attention;
mod attrs;
mod contract;
mod delta;
mod exchange;
mod expert;
mod gather;
mod hadamard;
mod index;
mod indexer;
mod loss;
mod pointwise;
mod ranks;
mod reduce;
mod routed;
mod sequence;
mod shape;
mod sinkhorn;
mod structure;
mod take;

pub use attention::{MaskedAttention, MaskedAttentionGrad, SelectTop};
pub use attrs::{Attr, Attrs};
pub use contract::Contract;
pub use delta::{GatedDeltaRule, GatedDeltaRuleGrad};
pub use exchange::{Exchange, LocalExpert};
pub use expert::{ExpertDot, ExpertDotWeightGrad};
pub use gather::{GatherSum, GatherSumGrad, Lookup, LookupGrad};
pub use hadamard::Hadamard;
pub use index::{Below, Count, IndexAffine, IndexBinary, IndexFn, Top};
pub use indexer::Indexer;
pub(crate) use indexer::LEAST_MEAN;
pub use loss::{LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropyStep};
pub use pointwise::{
    Affine, Binary, BinaryFn, Cast, Clamp, ClampGrad, Const, SizeValue, StopGradient, Unary,
    UnaryFn, UnaryGrad, Where,
};
pub use ranks::SumRanks;
pub use reduce::{LogSumExp, Mean, Sum};
pub use routed::{
    ExpertOrder, RoutedCombine, RoutedDot, RoutedDotPair, RoutedLowBack, RoutedSwiglu,
    RoutedWeightGrad, RoutedWeightGradPair,
};
pub use sequence::{
    Causal, CausalConv, CausalConvInputGrad, CausalConvWeightGrad, Position, Rotary,
};
pub use shape::{Broadcast, Concat, Merge, Pad, Permute, Pick, Place, Rename, Slice, Split};
pub use sinkhorn::{Sinkhorn, SinkhornGrad};
pub use structure::{
    Call, CallBackward, Input, ParamRef, Saved, Stack, StackBackward, StateRef, TableRef,
};
pub use take::{Take, TakeGrad};

use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId, promote};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use ndarray::ArrayD;
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::quote;
use std::collections::BTreeMap;

/// What the interpreter computes with. Whole numbers are exact below 2^53; truth is 1, falsehood 0.
pub type Array = ArrayD<f64>;

/// Why types do not fit, without a place: lowering adds the place of the expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// Diagnostic code; see `docs/errors`.
    pub code: &'static str,
    /// What is wrong, with the values that disagree.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl TypeError {
    /// An error without help.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        TypeError { code, message: message.into(), help: None }
    }

    /// Adds help.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A run-time fault of the interpreter: an index out of range, a size that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError(pub String);

impl From<ndarray::ShapeError> for EvalError {
    fn from(error: ndarray::ShapeError) -> Self {
        EvalError(error.to_string())
    }
}

/// One application of an op to arrays.
pub struct EvalCall<'a> {
    /// Arguments; `args[i]` has the axes of `arg_types[i]` in that order.
    pub args: &'a [&'a Array],
    /// Types of the arguments.
    pub arg_types: &'a [&'a Type],
    /// Types that the results must have.
    pub result_types: &'a [&'a Type],
    /// What the size names are bound to.
    pub sizes: &'a BTreeMap<String, i64>,
}

impl EvalCall<'_> {
    /// Argument `index`.
    ///
    /// # Errors
    /// If the op has fewer arguments: the verifier rules that out.
    pub fn arg(&self, index: usize) -> Result<&Array, EvalError> {
        self.args
            .get(index)
            .copied()
            .ok_or_else(|| EvalError(format!("argument {index} is missing")))
    }

    /// Type of argument `index`.
    ///
    /// # Errors
    /// As [`EvalCall::arg`].
    pub fn arg_type(&self, index: usize) -> Result<&Type, EvalError> {
        self.arg_types
            .get(index)
            .copied()
            .ok_or_else(|| EvalError(format!("argument {index} is missing")))
    }

    /// The number that a size stands for in this run.
    ///
    /// # Errors
    /// If a size name is not bound, or the number is negative.
    pub fn size(&self, size: &Size) -> Result<usize, EvalError> {
        size.evaluate(self.sizes).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
            EvalError(format!("size `{size}` has no value of zero or more in this run"))
        })
    }

    /// The shape of result `index`.
    ///
    /// # Errors
    /// As [`EvalCall::size`].
    pub fn result_shape(&self, index: usize) -> Result<Vec<usize>, EvalError> {
        let ty = self
            .result_types
            .get(index)
            .ok_or_else(|| EvalError(format!("result {index} is missing")))?;
        ty.axes.iter().map(|axis| self.size(&axis.size)).collect()
    }
}

/// What one application costs if each argument is read once and each result written once.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: Size,
    /// Elements read.
    pub elements_read: Size,
    /// Elements written.
    pub elements_written: Size,
}

impl Cost {
    /// `flops` operations, every argument read and every result written once.
    pub fn streaming(flops: Size, args: &[&Type], results: &[&Type]) -> Self {
        let total = |types: &[&Type]| {
            types
                .iter()
                .filter_map(|ty| ty.count())
                .fold(Size::default(), |sum, n| sum.checked_add(&n).unwrap_or(sum))
        };
        Cost { flops, elements_read: total(args), elements_written: total(results) }
    }

    /// `per_element` operations for each element of the first result.
    pub fn pointwise(per_element: i64, args: &[&Type], results: &[&Type]) -> Self {
        let flops = results
            .first()
            .and_then(|ty| ty.count())
            .and_then(|n| n.checked_mul(&Size::constant(per_element)))
            .unwrap_or_default();
        Cost::streaming(flops, args, results)
    }
}

/// Everything there is to know about an op.
pub trait OpDef {
    /// The word for it in IR text.
    fn mnemonic(&self) -> &'static str;

    /// Its attributes, in the order in which they are printed.
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    /// Shape rule: types of the results from those of the arguments.
    ///
    /// # Errors
    /// Why the arguments do not fit, naming the axes or sizes that disagree.
    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError>;

    /// The storage order that argument `index` must have, as axis names; `None` if the op takes
    /// any order, or if an axis that it needs is missing, which the shape rule then reports.
    /// Lowering permutes the argument to this order; the order can be the one it already has.
    ///
    /// All argument types are given because an order can depend on another argument: the parts
    /// of a `concat` lie like its first part.
    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let _ = (index, args);
        None
    }

    /// Meaning, in f64.
    ///
    /// # Errors
    /// Faults that types cannot rule out, such as an index out of range.
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError>;

    /// Derivative: one entry per argument, the cotangent of that argument given those of the
    /// results (`Vjp::dy`), or `None` where it is structurally zero. Called only if at least one
    /// result has a cotangent. The cotangent's type has the axes of the argument in its order.
    ///
    /// # Errors
    /// A rule that builds ill-typed IR: a fault of this compiler.
    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError>;

    /// Whether its results are a selection or a draw, and what belongs to it: something that a second
    /// pass over a layer takes over from the first instead of making it anew.
    fn is_replayed(&self) -> bool {
        false
    }

    /// Whether argument `index` is a weight that it also takes as 8-bit codes with the scales of their
    /// rows ([`EmitCall::scale`]), so that no such weight has to be made of them.
    fn takes_codes(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Work and compulsory traffic.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(1, args, results)
    }

    /// The Rust expression that computes it with `lightc_runtime::ops` on libtorch; a tuple if
    /// there are several results.
    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Any op.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        impl Op {
            /// Names of all kinds of op.
            pub const KINDS: &[&str] = &[$(stringify!($name),)*];

            /// The op's definition.
            pub fn def(&self) -> &dyn OpDef {
                match self { $(Op::$name(op) => op,)* }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op { Op::$name(op) }
        })*

        /// The op of a mnemonic and attributes.
        ///
        /// # Errors
        /// An unknown mnemonic, a missing or an unknown attribute, or one of the wrong kind.
        pub fn parse_op(mnemonic: &str, attrs: Attrs) -> Result<Op, String> {
            let mut attrs = attrs;
            $(if let Some(op) = $name::parse(mnemonic, &mut attrs)? {
                attrs.finish(mnemonic)?;
                return Ok(Op::$name(op));
            })*
            Err(format!("unknown op `{mnemonic}`"))
        }
    };
}

ops! {
    Input, ParamRef, StateRef, TableRef, Saved, Call, Stack, CallBackward, StackBackward,
    Const, SizeValue, Affine, Unary, UnaryGrad, Binary, Clamp, ClampGrad, Where, Cast, StopGradient,
    Sum, Mean, LogSumExp, Contract,
    Broadcast, Permute, Rename, Split, Merge, Slice, Pad, Concat, Place, Pick,
    CausalConv, CausalConvInputGrad, CausalConvWeightGrad, Rotary, Causal, Position,
    GatedDeltaRule, GatedDeltaRuleGrad, SelectTop, Indexer, MaskedAttention, MaskedAttentionGrad,
    Sinkhorn, SinkhornGrad, LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropyStep,
    GatherSum, GatherSumGrad, Lookup, LookupGrad, Take, TakeGrad,
    IndexAffine, IndexBinary, Below, Count, Top,
    ExpertDot, ExpertDotWeightGrad, Hadamard, SumRanks,
    ExpertOrder, RoutedDot, RoutedDotPair, RoutedSwiglu, RoutedCombine, RoutedWeightGrad, RoutedWeightGradPair,
    RoutedLowBack,
    Exchange, LocalExpert,
}

impl Op {
    /// How the language writes it, for messages: its mnemonic, where that is a builtin.
    pub fn written(&self) -> &'static str {
        match self.def().mnemonic() {
            "contract" => "dot",
            "add" => "+",
            "sub" => "-",
            "mul" => "*",
            "div" => "/",
            "lt" => "<",
            "le" => "<=",
            "gt" => ">",
            "ge" => ">=",
            "affine" => "+ - * /",
            "index_affine" => "+ - *",
            "index_add" => "+",
            "index_sub" => "-",
            "index_mul" => "*",
            mnemonic => mnemonic,
        }
    }
}

/// Reads an op from its mnemonic and attributes; `None` if the mnemonic is another op's.
/// Attributes that are read are taken out, so what is left over is an error.
pub trait ParseOp: Sized {
    /// See [`ParseOp`].
    ///
    /// # Errors
    /// A missing attribute or one of the wrong kind.
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String>;
}

/// Takes the only argument type.
pub(crate) fn one<'a>(what: &str, args: &[&'a Type]) -> Result<&'a Type, TypeError> {
    match args {
        [ty] => Ok(ty),
        _ => Err(arity(what, 1, args.len())),
    }
}

/// Takes exactly two argument types.
pub(crate) fn two<'a>(what: &str, args: &[&'a Type]) -> Result<(&'a Type, &'a Type), TypeError> {
    match args {
        [a, b] => Ok((a, b)),
        _ => Err(arity(what, 2, args.len())),
    }
}

/// The error for a wrong number of arguments.
pub(crate) fn arity(what: &str, wanted: usize, got: usize) -> TypeError {
    TypeError::new("E0405", format!("`{what}` takes {wanted} tensor arguments, here are {got}"))
}

/// Checks that a type is floating point.
pub(crate) fn float(what: &str, ty: &Type) -> Result<(), TypeError> {
    if ty.is_float() {
        return Ok(());
    }
    let error =
        TypeError::new("E0404", format!("`{what}` takes a floating-point value, here is {ty}"));
    Err(match ty.dtype {
        DType::Index => error.with_help("`f32(..)` makes numbers of whole numbers"),
        _ => error.with_help("`where(c, a, b)` chooses between numbers by a truth value"),
    })
}

/// The axis of that name, or the error for a wrong axis.
pub(crate) fn need_axis<'a>(what: &str, ty: &'a Type, name: &str) -> Result<&'a Axis, TypeError> {
    ty.axis(name).ok_or_else(|| {
        let names = ty.names();
        let near = lightc_dsl::names::closest(name, names.iter().map(String::as_str));
        let help = match near {
            _ if names.is_empty() => "it has no axes".to_owned(),
            Some(near) => format!("it has an axis `{near}`"),
            None => format!(
                "its axes are [{}]; name one of them, or `rename` an axis to `{name}`",
                names.join(", ")
            ),
        };
        TypeError::new("E0401", format!("`{what}` needs axis `{name}`, but the value is {ty}"))
            .with_help(help)
    })
}

/// Checks that two axes have one size.
pub(crate) fn same_size(what: &str, a: &Axis, b: &Axis) -> Result<(), TypeError> {
    if a.size == b.size {
        return Ok(());
    }
    Err(TypeError::new(
        "E0402",
        format!(
            "`{what}`: axis `{}` has size {} in one value and axis `{}` size {} in the other",
            a.name, a.size, b.name, b.size
        ),
    ))
}

/// Checks that no two axes share a name.
pub(crate) fn distinct(what: &str, axes: &[Axis]) -> Result<(), TypeError> {
    for (position, axis) in axes.iter().enumerate() {
        if axes.iter().take(position).any(|earlier| earlier.name == axis.name) {
            return Err(TypeError::new(
                "E0406",
                format!("`{what}` gives a value with two axes named `{}`", axis.name),
            )
            .with_help(format!("rename one of them: `rename(x, {0} -> other)`", axis.name)));
        }
    }
    Ok(())
}

/// The order with these axes last and all others before them as they are; `None` if one of them
/// is missing or named twice.
pub(crate) fn with_last(ty: &Type, last: &[&str]) -> Option<Vec<String>> {
    let mut order: Vec<String> =
        ty.names().into_iter().filter(|name| !last.contains(&name.as_str())).collect();
    order.extend(last.iter().map(|name| (*name).to_owned()));
    (order.len() == ty.axes.len() && last.iter().all(|name| ty.has(name))).then_some(order)
}

/// Checks that every argument lies in the storage order that the op asks for. In the language
/// order does not matter, so this can only fail on IR that was not made by lowering.
pub(crate) fn ordered(op: &dyn OpDef, args: &[&Type]) -> Result<(), TypeError> {
    for (index, ty) in args.iter().enumerate() {
        if let Some(order) = op.arg_order(index, args)
            && order != ty.names()
        {
            return Err(TypeError::new(
                "E0401",
                format!(
                    "`{}` reads its argument {index} in the order [{}], but the value is {ty}",
                    op.mnemonic(),
                    order.join(", ")
                ),
            )
            .with_help("`permute` it first"));
        }
    }
    Ok(())
}

/// Checks that the value in a role has exactly these axes in this order.
pub(crate) fn exactly(what: &str, role: &str, ty: &Type, wanted: &[Axis]) -> Result<(), TypeError> {
    if ty.axes.len() != wanted.len() || ty.axes.iter().zip(wanted).any(|(a, b)| a.name != b.name) {
        let wanted = Type::new(ty.dtype, wanted.to_vec());
        return Err(TypeError::new(
            "E0401",
            format!("`{what}` takes {role} as {wanted}, but the value is {ty}"),
        ));
    }
    ty.axes.iter().zip(wanted).try_for_each(|(a, b)| same_size(what, b, a))
}

/// The one batch axis in front of `n_named` axes.
pub(crate) fn one_batch<'a>(
    what: &str,
    ty: &'a Type,
    n_named: usize,
) -> Result<&'a Axis, TypeError> {
    match ty.axes.split_first() {
        Some((batch, rest)) if rest.len() == n_named => Ok(batch),
        _ => Err(TypeError::new(
            "E0401",
            format!("`{what}` takes one batch axis beside those it names, but the value is {ty}"),
        )
        .with_help("`merge` several batch axes into one, or add one with `broadcast`")),
    }
}

/// Checks that a type is of one precision class that is not floating point.
pub(crate) fn need_dtype(what: &str, role: &str, ty: &Type, dtype: DType) -> Result<(), TypeError> {
    if ty.dtype == dtype {
        return Ok(());
    }
    let word = crate::ir::types::dtype_word(dtype);
    Err(TypeError::new("E0404", format!("`{what}` takes {role} as {word}, but the value is {ty}")))
}

/// The dtype of joining floating-point values.
pub(crate) fn join_floats(what: &str, types: &[&Type]) -> Result<DType, TypeError> {
    let mut joined = DType::Act;
    for ty in types {
        float(what, ty)?;
        joined = promote(joined, ty.dtype).unwrap_or(joined);
    }
    Ok(joined)
}

/// A size that was computed, or the error for one that overflows.
pub(crate) fn sized(what: &str, size: Option<Size>) -> Result<Size, TypeError> {
    size.ok_or_else(|| {
        TypeError::new("E0308", format!("`{what}`: a size is over the limit of 2^63"))
    })
}

/// A product of sizes; 0 on overflow, as for all costs.
pub(crate) fn product(factors: &[&Size]) -> Size {
    factors
        .iter()
        .try_fold(Size::constant(1), |total, factor| total.checked_mul(factor))
        .unwrap_or_default()
}

/// The number of elements of a type; 0 on overflow.
pub(crate) fn count(ty: &Type) -> Size {
    ty.count().unwrap_or_default()
}

/// The size of an axis; 0 where it is missing. Only for costs.
pub(crate) fn size_of(ty: Option<&&Type>, axis: &str) -> Size {
    ty.and_then(|ty| ty.axis(axis)).map(|axis| axis.size.clone()).unwrap_or_default()
}

/// Keeps the cotangents of arguments that need one.
pub(crate) fn wanted(vjp: &Vjp<'_>, cotangents: Vec<ValueId>) -> Vec<Option<ValueId>> {
    cotangents.into_iter().enumerate().map(|(i, d)| vjp.wants(i).then_some(d)).collect()
}

/// Elements in row-major order, whatever the array's own strides are.
pub(crate) fn elements(array: &Array) -> Vec<f64> {
    array.iter().copied().collect()
}

/// An array of row-major elements.
pub(crate) fn array(shape: &[usize], elements: Vec<f64>) -> Result<Array, EvalError> {
    Ok(Array::from_shape_vec(shape.to_vec(), elements)?)
}

/// Lengths of an array that has exactly `N` axes.
pub(crate) fn lengths<const N: usize>(array: &Array) -> Result<[usize; N], EvalError> {
    array
        .shape()
        .try_into()
        .map_err(|_| EvalError(format!("an array has {} axes, not {N}", array.ndim())))
}

/// The lengths of an array with its last `N` apart: number of elements before them, and them.
pub(crate) fn split_last<const N: usize>(array: &Array) -> Result<(usize, [usize; N]), EvalError> {
    let (front, last) = array
        .shape()
        .split_last_chunk::<N>()
        .ok_or_else(|| EvalError(format!("an array has {} axes, fewer than {N}", array.ndim())))?;
    Ok((front.iter().product(), *last))
}

/// A whole number in emitted code.
pub(crate) fn number(value: i64) -> Literal {
    Literal::i64_unsuffixed(value)
}

/// Whole numbers in emitted code.
pub(crate) fn numbers(values: impl IntoIterator<Item = i64>) -> Vec<Literal> {
    values.into_iter().map(number).collect()
}

/// The call of a runtime function that takes the arguments `joined` as tensors of one kind. Where
/// their classes differ, those of class `act` are widened before, and results of class `act`
/// narrowed after. The function is called with all arguments, and with `extra` after them.
pub(crate) fn emit_joined(
    call: &EmitCall<'_>,
    name: &str,
    joined: &[usize],
    extra: TokenStream,
) -> TokenStream {
    let class = |index: &usize| call.arg_types.get(*index).map(|ty| ty.dtype);
    let mixed = joined.iter().any(|index| class(index) != joined.first().and_then(class));
    let args = (0..call.args.len()).map(|index| {
        let arg = call.arg(index);
        if mixed && joined.contains(&index) && class(&index) == Some(DType::Act) {
            quote!(&ops::to_f32(#arg, like)?)
        } else {
            arg
        }
    });
    let args = args.chain((!extra.is_empty()).then_some(extra));
    let name = Ident::new(name, Span::call_site());
    let called = quote!(ops::#name(#(#args),*)?);
    let narrow: Vec<bool> = call.result_types.iter().map(|ty| ty.dtype == DType::Act).collect();
    if !mixed || !narrow.contains(&true) {
        return called;
    }
    let like = call.kind();
    if narrow.len() == 1 {
        return quote!(ops::to_act(&#called, #like.kind())?);
    }
    let parts: Vec<Ident> =
        (0..narrow.len()).map(|i| Ident::new(&format!("wide_{i}"), Span::call_site())).collect();
    let results = parts.iter().zip(&narrow).map(|(part, narrow)| {
        if *narrow { quote!(ops::to_act(&#part, #like.kind())?) } else { quote!(#part) }
    });
    quote!({ let (#(#parts),*) = #called; (#(#results),*) })
}
