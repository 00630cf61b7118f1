//! Pointwise ops. Operands of several-operand ops meet *by axis name*: one operand carries all
//! axes of the result, in the order of the result; an operand that lacks an axis is repeated
//! along it.

use super::{Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, float, one, two};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::interp::align;
use crate::ir::types::dtype_word;
use crate::ir::{Type, ValueId, promote};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use ndarray::{ArrayD, Zip};
use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

/// A number. Its value does not depend on anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Const {
    /// The number.
    pub value: f64,
    /// Precision class of the result.
    pub dtype: DType,
}

/// A size as a number: `size(d)` where `d` is not bound yet, or `b` and `t` at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeValue {
    /// The size.
    pub size: Size,
}

/// `x * mul + add`
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// Factor.
    pub mul: f64,
    /// Added after.
    pub add: f64,
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryFn {
    /// e^x
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// 1 / sqrt(x)
    Rsqrt,
    /// 1 / x
    Recip,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// x * sigmoid(x)
    Silu,
    /// ln(1 + e^x), without overflow.
    Softplus,
    /// Hyperbolic tangent.
    Tanh,
    /// x * x
    Square,
    /// Largest whole number that is not larger; no gradient.
    Floor,
    /// Absolute value; derivative 0 at 0.
    Abs,
}

impl UnaryFn {
    /// Every function.
    pub const ALL: [UnaryFn; 12] = [
        UnaryFn::Exp,
        UnaryFn::Ln,
        UnaryFn::Sqrt,
        UnaryFn::Rsqrt,
        UnaryFn::Recip,
        UnaryFn::Sigmoid,
        UnaryFn::Silu,
        UnaryFn::Softplus,
        UnaryFn::Tanh,
        UnaryFn::Square,
        UnaryFn::Floor,
        UnaryFn::Abs,
    ];

    /// Its name in the language and in IR text, and that of its derivative op.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            UnaryFn::Exp => ("exp", "exp_grad"),
            UnaryFn::Ln => ("ln", "ln_grad"),
            UnaryFn::Sqrt => ("sqrt", "sqrt_grad"),
            UnaryFn::Rsqrt => ("rsqrt", "rsqrt_grad"),
            UnaryFn::Recip => ("recip", "recip_grad"),
            UnaryFn::Sigmoid => ("sigmoid", "sigmoid_grad"),
            UnaryFn::Silu => ("silu", "silu_grad"),
            UnaryFn::Softplus => ("softplus", "softplus_grad"),
            UnaryFn::Tanh => ("tanh", "tanh_grad"),
            UnaryFn::Square => ("square", "square_grad"),
            UnaryFn::Floor => ("floor", "floor_grad"),
            UnaryFn::Abs => ("abs", "abs_grad"),
        }
    }

    /// The function of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.names().0 == name)
    }

    /// Its value.
    pub fn value(self, x: f64) -> f64 {
        match self {
            UnaryFn::Exp => x.exp(),
            UnaryFn::Ln => x.ln(),
            UnaryFn::Sqrt => x.sqrt(),
            UnaryFn::Rsqrt => 1.0 / x.sqrt(),
            UnaryFn::Recip => 1.0 / x,
            UnaryFn::Sigmoid => sigmoid(x),
            UnaryFn::Silu => x * sigmoid(x),
            UnaryFn::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            UnaryFn::Tanh => x.tanh(),
            UnaryFn::Square => x * x,
            UnaryFn::Floor => x.floor(),
            UnaryFn::Abs => x.abs(),
        }
    }

    /// Its derivative.
    pub fn slope(self, x: f64) -> f64 {
        match self {
            UnaryFn::Exp => x.exp(),
            UnaryFn::Ln => 1.0 / x,
            UnaryFn::Sqrt => 0.5 / x.sqrt(),
            UnaryFn::Rsqrt => -0.5 / (x * x.sqrt()),
            UnaryFn::Recip => -1.0 / (x * x),
            UnaryFn::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
            UnaryFn::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
            UnaryFn::Softplus => sigmoid(x),
            UnaryFn::Tanh => 1.0 - x.tanh() * x.tanh(),
            UnaryFn::Square => 2.0 * x,
            UnaryFn::Floor => 0.0,
            UnaryFn::Abs if x == 0.0 => 0.0,
            UnaryFn::Abs => x.signum(),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// A function of one number, element by element.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// Which.
    pub function: UnaryFn,
}

/// `dy * f'(x)`: arguments x, dy.
#[derive(Clone, Debug, PartialEq)]
pub struct UnaryGrad {
    /// Which.
    pub function: UnaryFn,
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryFn {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// The smaller; at a tie the gradient goes to a.
    Min,
    /// The larger; at a tie the gradient goes to a.
    Max,
    /// a < b
    Less,
    /// a <= b
    LessEqual,
    /// a > b
    Greater,
    /// a >= b
    GreaterEqual,
}

impl BinaryFn {
    /// Every function.
    pub const ALL: [BinaryFn; 10] = [
        BinaryFn::Add,
        BinaryFn::Sub,
        BinaryFn::Mul,
        BinaryFn::Div,
        BinaryFn::Min,
        BinaryFn::Max,
        BinaryFn::Less,
        BinaryFn::LessEqual,
        BinaryFn::Greater,
        BinaryFn::GreaterEqual,
    ];

    /// Its name in IR text and of the runtime function.
    pub fn name(self) -> &'static str {
        match self {
            BinaryFn::Add => "add",
            BinaryFn::Sub => "sub",
            BinaryFn::Mul => "mul",
            BinaryFn::Div => "div",
            BinaryFn::Min => "min",
            BinaryFn::Max => "max",
            BinaryFn::Less => "lt",
            BinaryFn::LessEqual => "le",
            BinaryFn::Greater => "gt",
            BinaryFn::GreaterEqual => "ge",
        }
    }

    /// The function of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Whether the result is a truth value.
    pub fn is_comparison(self) -> bool {
        matches!(
            self,
            BinaryFn::Less | BinaryFn::LessEqual | BinaryFn::Greater | BinaryFn::GreaterEqual
        )
    }

    fn value(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryFn::Add => a + b,
            BinaryFn::Sub => a - b,
            BinaryFn::Mul => a * b,
            BinaryFn::Div => a / b,
            BinaryFn::Min => a.min(b),
            BinaryFn::Max => a.max(b),
            BinaryFn::Less => f64::from(a < b),
            BinaryFn::LessEqual => f64::from(a <= b),
            BinaryFn::Greater => f64::from(a > b),
            BinaryFn::GreaterEqual => f64::from(a >= b),
        }
    }
}

/// A function of two numbers, element by element, operands meeting by axis name.
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// Which.
    pub function: BinaryFn,
}

/// `x` held between two numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Clamp {
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

/// `dy` where `low <= x <= high`, else 0: arguments x, dy.
#[derive(Clone, Debug, PartialEq)]
pub struct ClampGrad {
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

/// `where(c, a, b)`: a where c is true, else b.
#[derive(Clone, Debug, PartialEq)]
pub struct Where;

/// The same numbers in another precision class.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// `act`, `f32`, or `index` for whole numbers.
    pub to: DType,
}

/// The same numbers; no gradient passes.
#[derive(Clone, Debug, PartialEq)]
pub struct StopGradient;

/// The axes of a pointwise result: those of the one operand that carries all of them.
pub(crate) fn joined_axes(
    what: &str,
    types: &[&Type],
) -> Result<Vec<lightc_dsl::model::Axis>, TypeError> {
    let carries_all = |candidate: &&&Type| {
        types.iter().all(|ty| ty.axes.iter().all(|axis| candidate.has(&axis.name)))
    };
    let Some(widest) = types.iter().find(carries_all) else {
        let lacks = |ty: &&Type| {
            let others = types.iter().flat_map(|other| &other.axes);
            let mut names: Vec<&str> = Vec::new();
            for axis in others.filter(|axis| !ty.has(&axis.name)) {
                if !names.contains(&axis.name.as_str()) {
                    names.push(&axis.name);
                }
            }
            format!("{ty} lacks `{}`", names.join("`, `"))
        };
        let shapes: Vec<String> = types.iter().map(lacks).collect();
        return Err(TypeError::new(
            "E0403",
            format!("`{what}`: no operand carries all axes: {}", shapes.join(", ")),
        )
        .with_help(
            "write `dot(a, b)` for an outer product, or `broadcast` one operand over the missing axes",
        ));
    };
    for ty in types {
        for axis in &ty.axes {
            if let Some(wide) = widest.axis(&axis.name) {
                super::same_size(what, wide, axis)?;
            }
        }
    }
    Ok(widest.axes.clone())
}

fn joined_dtype(what: &str, a: &Type, b: &Type) -> Result<DType, TypeError> {
    if a.dtype == b.dtype {
        return Ok(a.dtype);
    }
    promote(a.dtype, b.dtype).ok_or_else(|| {
        TypeError::new("E0404", format!("`{what}` joins {a} and {b}, which are of different kinds"))
            .with_help(
                "`where(c, a, b)` chooses by a truth value, `f32(..)` converts whole numbers",
            )
    })
}

impl OpDef for Const {
    fn mnemonic(&self) -> &'static str {
        "const"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().float("value", self.value).word("dtype", dtype_word(self.dtype))
    }

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
        Ok(vec![Type::scalar(self.dtype)])
    }

    fn eval(&self, _: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![ArrayD::from_elem(vec![], self.value)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let value = self.value;
        let kind = call.kind();
        match self.dtype {
            DType::F32 => quote!(ops::constant_f32(#value, #kind)?),
            DType::Index => quote!(ops::constant_index(#value, #kind)?),
            _ => quote!(ops::constant(#value, #kind)?),
        }
    }
}

impl ParseOp for Const {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "const" {
            return Ok(None);
        }
        Ok(Some(Const { value: attrs.take_float("value")?, dtype: take_dtype(attrs, "dtype")? }))
    }
}

pub(crate) fn take_dtype(attrs: &mut Attrs, name: &str) -> Result<DType, String> {
    let word = attrs.take_word(name)?;
    crate::ir::types::dtype_from_word(&word).ok_or_else(|| format!("`{word}` is not a dtype"))
}

impl OpDef for SizeValue {
    fn mnemonic(&self) -> &'static str {
        "size_value"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().size("size", &self.size)
    }

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
        Ok(vec![Type::scalar(DType::F32)])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![ArrayD::from_elem(vec![], call.size(&self.size)? as f64)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let size = call.size(&self.size);
        let kind = call.kind();
        quote!(ops::constant_f32((#size) as f64, #kind)?)
    }
}

impl ParseOp for SizeValue {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "size_value" {
            return Ok(None);
        }
        Ok(Some(SizeValue { size: attrs.take_size("size")? }))
    }
}

impl OpDef for Affine {
    fn mnemonic(&self) -> &'static str {
        "affine"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().float("mul", self.mul).float("add", self.add)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("affine", args)?;
        float("affine", x)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.mapv(|x| x * self.mul + self.add)])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        Ok(vec![Some(vjp.push(Affine { mul: self.mul, add: 0.0 }, &[dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(2, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, mul, add) = (call.arg(0), self.mul, self.add);
        quote!(ops::affine(#x, #mul, #add)?)
    }
}

impl ParseOp for Affine {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "affine" {
            return Ok(None);
        }
        Ok(Some(Affine { mul: attrs.take_float("mul")?, add: attrs.take_float("add")? }))
    }
}

fn runtime_name(name: &str) -> Ident {
    Ident::new(name, Span::call_site())
}

impl OpDef for Unary {
    fn mnemonic(&self) -> &'static str {
        self.function.names().0
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one(self.mnemonic(), args)?;
        float(self.mnemonic(), x)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.mapv(|x| self.function.value(x))])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        if self.function == UnaryFn::Floor {
            return Ok(vec![None]);
        }
        let (x, dy) = (vjp.arg(0)?, vjp.dy()?);
        Ok(vec![Some(vjp.push(UnaryGrad { function: self.function }, &[x, dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(4, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, name) = (call.arg(0), runtime_name(self.mnemonic()));
        quote!(ops::#name(#x)?)
    }
}

impl ParseOp for Unary {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        Ok(UnaryFn::from_name(mnemonic).map(|function| Unary { function }))
    }
}

impl OpDef for UnaryGrad {
    fn mnemonic(&self) -> &'static str {
        self.function.names().1
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (x, dy) = two(self.mnemonic(), args)?;
        same_axes(self.mnemonic(), x, dy)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let slope = call.arg(0)?.mapv(|x| self.function.slope(x));
        Ok(vec![slope * call.arg(1)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative(self.mnemonic()))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(6, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dy, name) = (call.arg(0), call.arg(1), runtime_name(self.mnemonic()));
        quote!(ops::#name(#x, #dy)?)
    }
}

impl ParseOp for UnaryGrad {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        let function = UnaryFn::ALL.into_iter().find(|f| f.names().1 == mnemonic);
        Ok(function.map(|function| UnaryGrad { function }))
    }
}

/// The error for differentiating a derivative.
pub(crate) fn no_second_derivative(mnemonic: &str) -> TypeError {
    TypeError::new("E0701", format!("`{mnemonic}` has no derivative: it is a derivative itself"))
}

/// Checks that two values have the same axes in the same order.
pub(crate) fn same_axes(what: &str, a: &Type, b: &Type) -> Result<(), TypeError> {
    if a.axes == b.axes {
        return Ok(());
    }
    Err(TypeError::new(
        "E0402",
        format!("`{what}` takes values of one shape, here are {a} and {b}"),
    ))
}

impl OpDef for Binary {
    fn mnemonic(&self) -> &'static str {
        self.function.name()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (a, b) = two(self.mnemonic(), args)?;
        let axes = joined_axes(self.mnemonic(), args)?;
        let dtype = joined_dtype(self.mnemonic(), a, b)?;
        if self.function.is_comparison() {
            return Ok(vec![Type::new(DType::Bool, axes)]);
        }
        float(self.mnemonic(), a)?;
        float(self.mnemonic(), b)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ty = call.result_types.first().ok_or_else(|| EvalError("no result".into()))?;
        let shape = call.result_shape(0)?;
        let a = align(call.arg(0)?, call.arg_type(0)?, ty, &shape)?;
        let b = align(call.arg(1)?, call.arg_type(1)?, ty, &shape)?;
        Ok(vec![Zip::from(&a).and(&b).map_collect(|a, b| self.function.value(*a, *b))])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        use BinaryFn::{Add, Div, Max, Min, Mul, Sub};
        let (da, db) = match self.function {
            Add => (Some(vjp.dy()?), Some(vjp.dy()?)),
            Sub => {
                let dy = vjp.dy()?;
                (Some(dy), Some(vjp.push(Affine { mul: -1.0, add: 0.0 }, &[dy])?))
            }
            Mul => self.vjp_mul(vjp)?,
            Div => self.vjp_div(vjp)?,
            Min | Max => self.vjp_choice(vjp)?,
            _ => (None, None),
        };
        let reduce = |vjp: &mut Vjp<'_>, index, d: Option<ValueId>| match d {
            Some(d) if vjp.wants(index) => vjp.reduce_to_arg(index, d).map(Some),
            _ => Ok(None),
        };
        Ok(vec![reduce(vjp, 0, da)?, reduce(vjp, 1, db)?])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (a, b) = (call.joined(0), call.joined(1));
        let name = runtime_name(self.mnemonic());
        quote!(ops::#name(#a, #b)?)
    }
}

type Pair = (Option<ValueId>, Option<ValueId>);

impl Binary {
    fn vjp_mul(&self, vjp: &mut Vjp<'_>) -> Result<Pair, TypeError> {
        let dy = vjp.dy()?;
        let mul = Binary { function: BinaryFn::Mul };
        let mut side = |wanted: usize, other: usize| -> Result<Option<ValueId>, TypeError> {
            if !vjp.wants(wanted) {
                return Ok(None);
            }
            let other = vjp.arg(other)?;
            vjp.push(mul.clone(), &[dy, other]).map(Some)
        };
        Ok((side(0, 1)?, side(1, 0)?))
    }

    fn vjp_div(&self, vjp: &mut Vjp<'_>) -> Result<Pair, TypeError> {
        let (dy, b) = (vjp.dy()?, vjp.arg(1)?);
        let da = vjp.push(Binary { function: BinaryFn::Div }, &[dy, b])?;
        if !vjp.wants(1) {
            return Ok((Some(da), None));
        }
        let y = vjp.result(0)?;
        let product = vjp.push(Binary { function: BinaryFn::Mul }, &[da, y])?;
        Ok((Some(da), Some(vjp.push(Affine { mul: -1.0, add: 0.0 }, &[product])?)))
    }

    /// Minimum and maximum: the gradient goes to the operand that was taken, to `a` at a tie.
    fn vjp_choice(&self, vjp: &mut Vjp<'_>) -> Result<Pair, TypeError> {
        let (dy, a, b) = (vjp.dy()?, vjp.arg(0)?, vjp.arg(1)?);
        let takes_a = if self.function == BinaryFn::Min {
            BinaryFn::LessEqual
        } else {
            BinaryFn::GreaterEqual
        };
        let chosen = vjp.push(Binary { function: takes_a }, &[a, b])?;
        let zero = vjp.zero_like(dy)?;
        let da = vjp.push(Where, &[chosen, dy, zero])?;
        let db = vjp.push(Where, &[chosen, zero, dy])?;
        Ok((Some(da), Some(db)))
    }
}

impl ParseOp for Binary {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        Ok(BinaryFn::from_name(mnemonic).map(|function| Binary { function }))
    }
}

impl OpDef for Clamp {
    fn mnemonic(&self) -> &'static str {
        "clamp"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().float("low", self.low).float("high", self.high)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("clamp", args)?;
        float("clamp", x)?;
        if self.low > self.high {
            return Err(TypeError::new(
                "E0405",
                format!("`clamp` has min {} above max {}", self.low, self.high),
            )
            .with_help("the smaller number is `min`"));
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.mapv(|x| x.max(self.low).min(self.high))])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (x, dy) = (vjp.arg(0)?, vjp.dy()?);
        Ok(vec![Some(vjp.push(ClampGrad { low: self.low, high: self.high }, &[x, dy])?)])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(2, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, low, high) = (call.arg(0), self.low, self.high);
        quote!(ops::clamp(#x, #low, #high)?)
    }
}

impl ParseOp for Clamp {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "clamp" {
            return Ok(None);
        }
        Ok(Some(Clamp { low: attrs.take_float("low")?, high: attrs.take_float("high")? }))
    }
}

impl OpDef for ClampGrad {
    fn mnemonic(&self) -> &'static str {
        "clamp_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().float("low", self.low).float("high", self.high)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (x, dy) = two("clamp_grad", args)?;
        same_axes("clamp_grad", x, dy)?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let inside = call.arg(0)?.mapv(|x| f64::from(self.low <= x && x <= self.high));
        Ok(vec![inside * call.arg(1)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("clamp_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(3, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dy, low, high) = (call.arg(0), call.arg(1), self.low, self.high);
        quote!(ops::clamp_grad(#x, #dy, #low, #high)?)
    }
}

impl ParseOp for ClampGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "clamp_grad" {
            return Ok(None);
        }
        Ok(Some(ClampGrad { low: attrs.take_float("low")?, high: attrs.take_float("high")? }))
    }
}

impl OpDef for Where {
    fn mnemonic(&self) -> &'static str {
        "where"
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let [condition, a, b] = args else {
            return Err(super::arity("where", 3, args.len()));
        };
        if condition.dtype != DType::Bool {
            return Err(TypeError::new(
                "E0404",
                format!("`where` takes a truth value first, here is {condition}"),
            )
            .with_help("compare with `<`, `<=`, `>` or `>=`"));
        }
        let axes = joined_axes("where", args)?;
        Ok(vec![Type::new(joined_dtype("where", a, b)?, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ty = call.result_types.first().ok_or_else(|| EvalError("no result".into()))?;
        let shape = call.result_shape(0)?;
        let aligned = |i: usize| align(call.arg(i)?, call.arg_type(i)?, ty, &shape);
        let (c, a, b) = (aligned(0)?, aligned(1)?, aligned(2)?);
        Ok(vec![
            Zip::from(&c).and(&a).and(&b).map_collect(|c, a, b| if *c != 0.0 { *a } else { *b }),
        ])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (dy, condition) = (vjp.dy()?, vjp.arg(0)?);
        let zero = vjp.zero_like(dy)?;
        let da = vjp.push(Where, &[condition, dy, zero])?;
        let db = vjp.push(Where, &[condition, zero, dy])?;
        let da = if vjp.wants(1) { Some(vjp.reduce_to_arg(1, da)?) } else { None };
        let db = if vjp.wants(2) { Some(vjp.reduce_to_arg(2, db)?) } else { None };
        Ok(vec![None, da, db])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (c, a, b) = (call.aligned(0), call.joined(1), call.joined(2));
        quote!(ops::where_(#c, #a, #b)?)
    }
}

impl ParseOp for Where {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        Ok((mnemonic == "where").then_some(Where))
    }
}

impl OpDef for Cast {
    fn mnemonic(&self) -> &'static str {
        "cast"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("to", dtype_word(self.to))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("cast", args)?;
        if x.dtype == DType::Index && self.to == DType::F32 {
            return Ok(vec![x.with_dtype(self.to)]);
        }
        if self.to == DType::Index {
            return index_of(x);
        }
        float("cast", x)?;
        if !matches!(self.to, DType::Act | DType::F32) {
            return Err(TypeError::new("E0404", "`cast` goes to act or f32"));
        }
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let x = call.arg(0)?;
        match x.iter().find(|x| self.to == DType::Index && x.fract() != 0.0) {
            Some(x) => Err(EvalError(format!("{x} is not a whole number"))),
            None => Ok(vec![x.clone()]),
        }
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        if self.to == DType::Index {
            return Ok(vec![None]);
        }
        let dy = vjp.dy()?;
        match vjp.arg_type(0)?.dtype {
            DType::Index => Ok(vec![None]),
            to => Ok(vec![Some(vjp.push(Cast { to }, &[dy])?)]),
        }
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        let kind = call.kind();
        match self.to {
            DType::F32 => quote!(ops::to_f32(#x, #kind)?),
            DType::Index => quote!(ops::to_index(#x)?),
            _ => quote!(ops::to_act(#x, #kind.kind())?),
        }
    }
}

/// Positions are whole numbers of f32: narrower ones hold them only up to 256.
fn index_of(x: &Type) -> Result<Vec<Type>, TypeError> {
    if x.dtype == DType::F32 {
        return Ok(vec![x.with_dtype(DType::Index)]);
    }
    let message = format!("`index` takes whole numbers in f32, here is {x}");
    Err(TypeError::new("E0404", message).with_help("compute them from `f32(..)`"))
}

impl ParseOp for Cast {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "cast" {
            return Ok(None);
        }
        Ok(Some(Cast { to: take_dtype(attrs, "to")? }))
    }
}

impl OpDef for StopGradient {
    fn mnemonic(&self) -> &'static str {
        "stop_gradient"
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        Ok(vec![one("stop_gradient", args)?.clone()])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        Ok(vec![call.arg(0)?.clone()])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, _: &[&Type], _: &[&Type]) -> Cost {
        Cost::default()
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let x = call.arg(0);
        quote!(Tensor::shallow_clone(#x))
    }
}

impl ParseOp for StopGradient {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        Ok((mnemonic == "stop_gradient").then_some(StopGradient))
    }
}
