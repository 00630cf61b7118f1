//! Whole numbers that say positions. A negative index is *none*, such as the slot of a token that
//! takes no expert; what is computed from none is none, which is then written -1. So a number can
//! never turn an empty slot into a position.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, distinct, need_axis,
    need_dtype, one, pointwise::joined_axes, split_last, two, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::interp::align;
use crate::ir::{Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use ndarray::Zip;
use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;

/// `x * mul + add`, and -1 where that or x is negative.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexAffine {
    /// Factor.
    pub mul: i64,
    /// Added after.
    pub add: i64,
}

/// A function of two indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexFn {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
}

impl IndexFn {
    /// Every function.
    pub const ALL: [IndexFn; 3] = [IndexFn::Add, IndexFn::Sub, IndexFn::Mul];

    /// Its name in IR text and of the runtime function.
    pub fn name(self) -> &'static str {
        match self {
            IndexFn::Add => "index_add",
            IndexFn::Sub => "index_sub",
            IndexFn::Mul => "index_mul",
        }
    }

    fn value(self, a: f64, b: f64) -> f64 {
        match self {
            IndexFn::Add => a + b,
            IndexFn::Sub => a - b,
            IndexFn::Mul => a * b,
        }
    }
}

/// A function of two indices, element by element, operands meeting by axis name; -1 where an
/// operand or the result is negative.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexBinary {
    /// Which.
    pub function: IndexFn,
}

/// `x` where it is below the limit, else -1; -1 where it is negative.
#[derive(Clone, Debug, PartialEq)]
pub struct Below {
    /// The first index that is not kept.
    pub limit: Size,
}

/// Argument ids of any axes; result f32`[e]`:
///
/// `y[i] = number of places where ids = i`
///
/// Negative ids do not count. A gradient does not exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// Axis e with the number of positions.
    pub axis: Axis,
}

/// Argument score`[.., e]` in f32; result index`[.., p]`: the positions of the largest scores, the
/// largest first. Of equal scores the smaller position comes first; a score that is not a number
/// before all others. Scores in 32 bits or more: narrowed ones tie, and a tie is decided by
/// position.
///
/// No gradient: a selection is piecewise constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Top {
    /// Axis e.
    pub axis: String,
    /// Axis p with the number of positions taken.
    pub slots: Axis,
}

/// None as -1.
fn some_or_none(operands_hold: bool, value: f64) -> f64 {
    if operands_hold && value >= 0.0 { value } else { -1.0 }
}

fn index(what: &str, ty: &Type) -> Result<(), TypeError> {
    need_dtype(what, "its operand", ty, DType::Index)
        .map_err(|error| error.with_help("`index(..)` makes positions of whole numbers in f32"))
}

impl OpDef for IndexAffine {
    fn mnemonic(&self) -> &'static str {
        "index_affine"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().int("mul", self.mul).int("add", self.add)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("index_affine", args)?;
        index("index_affine", x)?;
        Ok(vec![x.clone()])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (mul, add) = (self.mul as f64, self.add as f64);
        Ok(vec![call.arg(0)?.mapv(|x| some_or_none(x >= 0.0, x * mul + add))])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::pointwise(2, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, mul, add) = (call.arg(0), super::number(self.mul), super::number(self.add));
        quote!(ops::index_affine(#x, #mul, #add)?)
    }
}

impl ParseOp for IndexAffine {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "index_affine" {
            return Ok(None);
        }
        Ok(Some(IndexAffine { mul: attrs.take_int("mul")?, add: attrs.take_int("add")? }))
    }
}

impl OpDef for IndexBinary {
    fn mnemonic(&self) -> &'static str {
        self.function.name()
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (a, b) = two(self.mnemonic(), args)?;
        index(self.mnemonic(), a)?;
        index(self.mnemonic(), b)?;
        Ok(vec![Type::new(DType::Index, joined_axes(self.mnemonic(), args)?)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let ty = call.result_types.first().ok_or_else(|| EvalError("no result".into()))?;
        let shape = call.result_shape(0)?;
        let a = align(call.arg(0)?, call.arg_type(0)?, ty, &shape)?;
        let b = align(call.arg(1)?, call.arg_type(1)?, ty, &shape)?;
        let value =
            |a: &f64, b: &f64| some_or_none(*a >= 0.0 && *b >= 0.0, self.function.value(*a, *b));
        Ok(vec![Zip::from(&a).and(&b).map_collect(value)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None, None])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (a, b) = (call.aligned(0), call.aligned(1));
        let name = Ident::new(self.mnemonic(), Span::call_site());
        quote!(ops::#name(#a, #b)?)
    }
}

impl ParseOp for IndexBinary {
    fn parse(mnemonic: &str, _: &mut Attrs) -> Result<Option<Self>, String> {
        let function = IndexFn::ALL.into_iter().find(|f| f.name() == mnemonic);
        Ok(function.map(|function| IndexBinary { function }))
    }
}

impl OpDef for Below {
    fn mnemonic(&self) -> &'static str {
        "below"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().size("limit", &self.limit)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("below", args)?;
        need_dtype("below", "its ids", x, DType::Index)?;
        Ok(vec![x.clone()])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let limit = call.size(&self.limit)? as f64;
        Ok(vec![call.arg(0)?.mapv(|x| some_or_none(x < limit, x))])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, limit) = (call.arg(0), call.size(&self.limit));
        quote!(ops::below(#ids, #limit)?)
    }
}

impl ParseOp for Below {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "below" {
            return Ok(None);
        }
        Ok(Some(Below { limit: attrs.take_size("limit")? }))
    }
}

impl OpDef for Count {
    fn mnemonic(&self) -> &'static str {
        "count"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("axis", std::slice::from_ref(&self.axis))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let ids = one("count", args)?;
        need_dtype("count", "its ids", ids, DType::Index)?;
        Ok(vec![Type::new(DType::F32, vec![self.axis.clone()])])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let mut counts = vec![0.0; call.size(&self.axis.size)?];
        for id in call.arg(0)? {
            if let Some(row) = super::gather::row_of("count", *id, counts.len(), true)?
                && let Some(count) = counts.get_mut(row)
            {
                *count += 1.0;
            }
        }
        Ok(vec![super::array(&[counts.len()], counts)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let ids = args.first().map(|ids| super::count(ids)).unwrap_or_default();
        Cost::streaming(ids, args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (ids, size) = (call.arg(0), call.size(&self.axis.size));
        quote!(ops::count(#ids, #size, like)?)
    }
}

impl ParseOp for Count {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "count" {
            return Ok(None);
        }
        Ok(Some(Count { axis: attrs.take_axis("axis")? }))
    }
}

impl OpDef for Top {
    fn mnemonic(&self) -> &'static str {
        "top"
    }

    fn is_replayed(&self) -> bool {
        true
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("axis", &self.axis).axes("slots", std::slice::from_ref(&self.slots))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let what = "top";
        let score = one(what, args)?;
        if score.dtype != DType::F32 {
            return Err(TypeError::new(
                "E0450",
                format!("`top` takes its score as f32, but the value is {score}"),
            )
            .with_help("compute the score from `f32(..)` of what it is made of"));
        }
        let axis = need_axis(what, score, &self.axis)?;
        if let (Some(n), Some(wanted)) = (axis.size.as_constant(), self.slots.size.as_constant())
            && wanted > n
        {
            return Err(TypeError::new(
                "E0402",
                format!(
                    "`top` takes {wanted} positions as axis `{}`, but axis `{}` has {n}",
                    self.slots.name, axis.name
                ),
            )
            .with_help(format!("declare `{}` with a size of {n} or less", self.slots.name)));
        }
        super::ordered(self, args)?;
        let rest = score.axes.iter().filter(|other| other.name != self.axis);
        let axes: Vec<Axis> = rest.chain(std::iter::once(&self.slots)).cloned().collect();
        distinct(what, &axes)?;
        Ok(vec![Type::new(DType::Index, axes)])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        with_last(args.get(index)?, &[&self.axis])
    }

    #[allow(clippy::cast_precision_loss)]
    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (_, [n]) = split_last(call.arg(0)?)?;
        let n_slots = call.size(&self.slots.size)?;
        if n_slots > n {
            return Err(EvalError(format!("{n_slots} positions of {n} are asked for")));
        }
        let mut taken = Vec::new();
        for score in super::elements(call.arg(0)?).chunks_exact(n.max(1)) {
            // -0 and 0 are equal, which the total order tells apart; NaN of any sign is one.
            let rank = |i: &usize| match score.get(*i) {
                Some(score) if !score.is_nan() => *score + 0.0,
                _ => f64::NAN,
            };
            let mut order: Vec<usize> = (0..n).collect();
            // A stable sort: of equal scores the smaller position stays first.
            order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
            taken.extend(order.into_iter().take(n_slots).map(|i| i as f64));
        }
        Ok(vec![super::array(&call.result_shape(0)?, taken)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Ok(vec![None])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let scores = args.first().map(|x| super::count(x)).unwrap_or_default();
        Cost::streaming(super::product(&[&scores, &Size::constant(4)]), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (score, slots) = (call.arg(0), call.size(&self.slots.size));
        quote!(ops::top(#score, #slots)?)
    }
}

impl ParseOp for Top {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "top" {
            return Ok(None);
        }
        Ok(Some(Top { axis: attrs.take_word("axis")?, slots: attrs.take_axis("slots")? }))
    }
}
