//! Products of routed experts as targets with a grouped kernel take them: sums of products with a
//! chosen weight, in which every product is one pass over rows that a list of places names.
//!
//! No block writes them: [`crate::rewrite::experts`] makes them of [`super::ExpertDot`] and what is
//! around it. A **place** is one element of the ids; places keep their order in every value, and only the list
//! of [`ExpertOrder`] is sorted by expert.

mod combine;
mod dot;
mod order;
mod pair;
mod swiglu;
mod weight_grad;

pub use combine::RoutedCombine;
pub use dot::RoutedDot;
pub use order::ExpertOrder;
pub use pair::{RoutedDotPair, RoutedLowBack, RoutedWeightGradPair};
pub use swiglu::RoutedSwiglu;
pub use weight_grad::RoutedWeightGrad;

use super::expert::check_rows;
use super::{
    Array, EvalCall, EvalError, ExpertDot, OpDef, TypeError, arity, exactly, need_axis, need_dtype,
    product, same_size, size_of,
};
use crate::emit::EmitCall;
use crate::ir::Type;
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// Arguments that say where rows go: ids, their order and its bounds.
const ROUTING: usize = 3;

/// The axis of the sorted list of places.
const PLACES: &str = "places";
/// The axis of the list of first places.
const BOUNDS: &str = "bounds";

/// The types of the two results of [`ExpertOrder`].
fn order_types(ids: &Type, expert: &Axis) -> Result<[Type; 2], TypeError> {
    let one = Size::constant(1);
    let places = ids.axes.iter().try_fold(one.clone(), |n, axis| n.checked_mul(&axis.size));
    let bounds = expert.size.checked_add(&one);
    let list = |name: &str, size: Option<Size>| {
        let size = super::sized("expert_order", size)?;
        Ok(Type::new(DType::Index, vec![Axis { name: name.to_owned(), size }]))
    };
    Ok([list(PLACES, places)?, list(BOUNDS, bounds)?])
}

/// Checks ids, order and bounds at the front of `args`, and gives the ids.
fn routing<'a>(what: &str, args: &[&'a Type], expert: &Axis) -> Result<&'a Type, TypeError> {
    let [ids, order, bounds, ..] = args else { return Err(arity(what, ROUTING, args.len())) };
    need_dtype(what, "its ids", ids, DType::Index)?;
    let [places, ends] = order_types(ids, expert)?;
    need_dtype(what, "its order", order, DType::Index)?;
    exactly(what, "the order of its places", order, &places.axes)?;
    need_dtype(what, "its bounds", bounds, DType::Index)?;
    exactly(what, "the bounds of its places", bounds, &ends.axes)?;
    Ok(ids)
}

/// One product of a sum, as types: rows x`[batch, over]` and a weight `[e, free, over]`, or turned
/// `[e, over, free]`.
struct Term<'a> {
    x: &'a Type,
    w: &'a Type,
    over: &'a str,
}

/// Pairs the arguments behind the routing with the axes they sum.
fn terms<'a>(
    what: &str,
    args: &[&'a Type],
    over: &'a [String],
) -> Result<Vec<Term<'a>>, TypeError> {
    if over.is_empty() || args.len() != 2 * over.len() {
        return Err(arity(what, 2 * over.len().max(1), args.len()));
    }
    let pairs = args.chunks_exact(2).zip(over);
    let terms = pairs.filter_map(|(pair, over)| match pair {
        [x, w] => Some(Term { x, w, over }),
        _ => None,
    });
    Ok(terms.collect())
}

impl Term<'_> {
    /// The axis of the weight that is neither the expert nor summed.
    fn free(&self, expert: &str) -> Option<&Axis> {
        self.w.axes.iter().find(|axis| axis.name != expert && axis.name != self.over)
    }

    /// Whether the weight lies with its summed axis before its free one.
    fn is_turned(&self) -> bool {
        self.w.axes.last().is_some_and(|axis| axis.name != self.over)
    }

    fn check(&self, what: &str, expert: &str, ids: &Type) -> Result<&Axis, TypeError> {
        check_rows(what, self.x, ids, self.over)?;
        let over = need_axis(what, self.w, self.over)?;
        same_size(what, need_axis(what, self.x, self.over)?, over)?;
        let free = self.free(expert).filter(|_| {
            self.w.axes.len() == 3 && self.w.axes.first().is_some_and(|axis| axis.name == expert)
        });
        free.ok_or_else(|| {
            let (w, over) = (self.w, self.over);
            TypeError::new(
                "E0401",
                format!("`{what}` takes a weight [{expert}, {over} and one more], not {w}"),
            )
        })
    }

    /// The order of x: batch as in `ids`, then the summed axis.
    fn x_order(&self, ids: &[String]) -> Option<Vec<String>> {
        let mut order: Vec<String> =
            ids.iter().filter(|name| self.x.has(name) && **name != self.over).cloned().collect();
        order.push(self.over.to_owned());
        (self.x.has(self.over) && order.len() == self.x.axes.len()).then_some(order)
    }
}

/// The free axis and the precision class of a sum of products, all of one class.
fn sum_of<'a>(
    what: &str,
    terms: &'a [Term<'a>],
    expert: &str,
    ids: &Type,
) -> Result<(&'a Axis, DType), TypeError> {
    check_runs(what, terms, ids)?;
    let mut found: Option<(&Axis, DType)> = None;
    for term in terms {
        let free = term.check(what, expert, ids)?;
        for ty in [term.x, term.w] {
            super::float(what, ty)?;
            let (first, dtype) = *found.get_or_insert((free, ty.dtype));
            if ty.dtype != dtype {
                let message =
                    format!("`{what}` takes values of one class, here are {} and {ty}", term.x);
                return Err(TypeError::new("E0404", message));
            }
            if first.name != free.name {
                let message = format!(
                    "`{what}` adds products along `{}` and along `{}`",
                    first.name, free.name
                );
                return Err(TypeError::new("E0401", message));
            }
            same_size(what, first, free)?;
        }
    }
    found.ok_or_else(|| arity(what, ROUTING + 2, ROUTING))
}

/// The axis of the experts, from the first weight.
fn expert_axis(what: &str, args: &[&Type], expert: &str) -> Result<Axis, TypeError> {
    let w = args.get(1).ok_or_else(|| arity(what, 2, args.len()))?;
    need_axis(what, w, expert).cloned()
}

/// The order of argument `index` of a list of terms.
fn term_order(terms: &[Term<'_>], index: usize, ids: &Type) -> Option<Vec<String>> {
    let term = terms.get(index / 2)?;
    if index.is_multiple_of(2) { term.x_order(&ids_order(terms, ids)) } else { None }
}

/// The order of the ids: the more x have an axis, the earlier it comes. So the rows of each x are runs of
/// places, if what one x has another has too.
fn ids_order(terms: &[Term<'_>], ids: &Type) -> Vec<String> {
    let lacking = |name: &String| terms.iter().filter(|term| !term.x.has(name)).count();
    let mut order = ids.names();
    order.sort_by_key(lacking);
    order
}

/// Checks that the axes of the ids that each x lacks are the last ones.
fn check_runs(what: &str, terms: &[Term<'_>], ids: &Type) -> Result<(), TypeError> {
    for term in terms {
        let lacks = ids.axes.iter().map(|axis| !term.x.has(&axis.name));
        if !lacks.is_sorted() {
            let message = format!(
                "`{what}` reads rows {} by places {ids}: axes that the rows lack come before others",
                term.x
            );
            return Err(TypeError::new("E0401", message));
        }
    }
    Ok(())
}

/// Operations of a sum of products into `result`.
fn terms_cost(result: &Size, terms: &[Term<'_>]) -> Size {
    let total = terms
        .iter()
        .map(|term| product(&[result, &size_of(Some(&term.w), term.over), &Size::constant(2)]));
    total.fold(Size::default(), |sum, own| sum.checked_add(&own).unwrap_or_default())
}

/// The sum of products in f64, as arrays of the ids' axes and the free one.
fn eval_sum(
    call: &EvalCall<'_>,
    ids: usize,
    from: usize,
    over: &[String],
    expert: &str,
) -> Result<Array, EvalError> {
    let mut sum: Option<Array> = None;
    for (position, over) in over.iter().enumerate() {
        let (x, w) = (from + 2 * position, from + 2 * position + 1);
        let (ids_type, w_type) = (call.arg_type(ids)?, call.arg_type(w)?);
        let term = Term { x: call.arg_type(x)?, w: w_type, over };
        let free = term.free(expert).cloned();
        let free = free.ok_or_else(|| EvalError(format!("no free axis in {w_type}")))?;
        let (mut weight, mut lying) = (call.arg(w)?.clone(), w_type.clone());
        if term.is_turned() {
            weight.swap_axes(1, 2);
            lying.axes.swap(1, 2);
        }
        let result = Type::new(w_type.dtype, [ids_type.axes.clone(), vec![free]].concat());
        let op = ExpertDot { expert: expert.to_owned(), over: over.clone() };
        let own = op.eval(&EvalCall {
            args: &[call.arg(x)?, &weight, call.arg(ids)?],
            arg_types: &[term.x, &lying, ids_type],
            result_types: &[&result],
            sizes: call.sizes,
        })?;
        let own = own.into_iter().next().ok_or_else(|| EvalError("no product".into()))?;
        sum = Some(match sum {
            Some(before) => before + own,
            None => own,
        });
    }
    sum.ok_or_else(|| EvalError("a sum without a product".into()))
}

/// `&ops::Routing { .. }` of the arguments from `from` on.
fn emit_routing(call: &EmitCall<'_>, from: usize) -> TokenStream {
    let (ids, order, bounds) = (call.arg(from), call.arg(from + 1), call.arg(from + 2));
    quote!(&ops::Routing { ids: #ids, order: #order, bounds: #bounds })
}

/// Whether argument `index` is the weight of a term, terms starting at `from`.
fn is_weight(index: usize, from: usize) -> bool {
    index >= from && (index - from) % 2 == 1
}

/// `&[ops::Term::plain(x, w), ..]` of the arguments from `from` on.
fn emit_terms(call: &EmitCall<'_>, from: usize, over: &[String]) -> TokenStream {
    let terms = (from..).step_by(2).zip(over).map(|(at, over)| emit_term(call, [at, at + 1], over));
    quote!(&[#(#terms),*])
}

/// `ops::Term::plain(x, w)` of the arguments at two positions.
fn emit_term(call: &EmitCall<'_>, [at, of]: [usize; 2], over: &str) -> TokenStream {
    let (x, w) = (call.arg(at), call.arg(of));
    let last = call.arg_types.get(of).and_then(|w| w.axes.last());
    let turned = last.is_some_and(|axis| axis.name != over);
    let term =
        if turned { quote!(ops::Term::turned(#x, #w)) } else { quote!(ops::Term::plain(#x, #w)) };
    match call.scale(of) {
        Some(scale) => quote!(#term.scaled(#scale)),
        None => term,
    }
}
