//! Two narrow products of the same rows, two narrow gradients with the same rows, and a product and a gradient of them,
//! from one pass over these.
//!
//! Each gives what two ops give, [`RoutedDot`] or [`RoutedWeightGrad`], and is defined by these.
//! [`crate::rewrite::pairs`] makes them, behind differentiation.

use super::{ROUTING, emit_routing, emit_term};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use crate::ops::pointwise::no_second_derivative;
use crate::ops::{
    Array, Attrs, Cost, EvalCall, EvalError, Op, OpDef, ParseOp, RoutedDot, RoutedWeightGrad,
    TypeError, arity, ordered,
};
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// The position of the rows that both read.
const ROWS: usize = ROUTING;
/// The positions of what each reads alone.
const OWN: [usize; 2] = [ROUTING + 1, ROUTING + 2];

/// Arguments ids, order and bounds, rows x and two weights; results are the [`RoutedDot`] of x with each weight.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedDotPair {
    /// Axis e.
    pub expert: String,
    /// The summed axis.
    pub over: String,
}

/// Arguments ids, order and bounds, rows b and two a; results are the [`RoutedWeightGrad`] of each a with b.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedWeightGradPair {
    /// Axis e with its size.
    pub expert: Axis,
}

/// Arguments ids, order and bounds, rows x, narrow rows b and a weight `[e, over, r]`; results are the [`RoutedDot`] of x
/// with the weight, and the [`RoutedWeightGrad`] of x with b.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedLowBack {
    /// Axis e with its size.
    pub expert: Axis,
    /// The summed axis.
    pub over: String,
}

/// Two ops, each with where its arguments stand.
type Two = [(Op, [usize; 5]); 2];

impl RoutedDotPair {
    fn two(&self) -> Two {
        let one = RoutedDot { expert: self.expert.clone(), over: vec![self.over.clone()] };
        OWN.map(|own| (one.clone().into(), [0, 1, 2, ROWS, own]))
    }
}

impl RoutedWeightGradPair {
    fn two(&self) -> Two {
        let one = RoutedWeightGrad { expert: self.expert.clone() };
        OWN.map(|own| (one.clone().into(), [0, 1, 2, own, ROWS]))
    }
}

impl RoutedLowBack {
    fn two(&self) -> Two {
        let [narrow, weight] = OWN;
        let dot = RoutedDot { expert: self.expert.name.clone(), over: vec![self.over.clone()] };
        let grad = RoutedWeightGrad { expert: self.expert.clone() };
        [(dot.into(), [0, 1, 2, ROWS, weight]), (grad.into(), [0, 1, 2, ROWS, narrow])]
    }
}

/// The elements of `all` that one of the two has.
fn chosen<T: Copy>(all: &[T], places: [usize; 5]) -> Vec<T> {
    places.iter().filter_map(|at| all.get(*at).copied()).collect()
}

fn infer(what: &str, two: &Two, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let wanted = ROUTING + 3;
    if args.len() != wanted {
        return Err(arity(what, wanted, args.len()));
    }
    let [first, second] =
        two.each_ref().map(|(one, places)| one.def().infer(&chosen(args, *places)));
    Ok([first?, second?].concat())
}

/// As the first of the two that has the argument wants it.
fn arg_order(two: &Two, index: usize, args: &[&Type]) -> Option<Vec<String>> {
    two.iter().find_map(|(one, places)| {
        let at = places.iter().position(|at| *at == index)?;
        one.def().arg_order(at, &chosen(args, *places))
    })
}

fn eval(two: &Two, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
    let each = |((one, places), result): (&(Op, [usize; 5]), &&Type)| {
        one.def().eval(&EvalCall {
            args: &chosen(call.args, *places),
            arg_types: &chosen(call.arg_types, *places),
            result_types: &[*result],
            sizes: call.sizes,
        })
    };
    let results: Result<Vec<_>, _> = two.iter().zip(call.result_types).map(each).collect();
    Ok(results?.concat())
}

/// Operations of both; what both read is read once.
fn cost(two: &Two, args: &[&Type], results: &[&Type]) -> Cost {
    let flops = two.iter().zip(results).fold(Size::default(), |sum, ((one, places), result)| {
        let own = one.def().cost(&chosen(args, *places), &[*result]).flops;
        sum.checked_add(&own).unwrap_or_default()
    });
    Cost::streaming(flops, args, results)
}

impl OpDef for RoutedDotPair {
    fn mnemonic(&self) -> &'static str {
        "routed_dot_pair"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().word("expert", &self.expert).word("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        infer(self.mnemonic(), &self.two(), args)
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        arg_order(&self.two(), index, args)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        eval(&self.two(), call)
    }

    /// There is none: autodiff sees the two products.
    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let message = "`routed_dot_pair` has no derivative: it is made behind differentiation";
        Err(TypeError::new("E0701", message.to_owned()))
    }

    fn takes_codes(&self, index: usize) -> bool {
        OWN.contains(&index)
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        cost(&self.two(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let routing = emit_routing(call, 0);
        let [first, second] = OWN.map(|own| emit_term(call, [ROWS, own], &self.over));
        quote!(ops::routed_dot_pair(#routing, #first, #second)?)
    }
}

impl OpDef for RoutedWeightGradPair {
    fn mnemonic(&self) -> &'static str {
        "routed_weight_grad_pair"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().axes("expert", std::slice::from_ref(&self.expert))
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        infer(self.mnemonic(), &self.two(), args)
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        arg_order(&self.two(), index, args)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        eval(&self.two(), call)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative(self.mnemonic()))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        cost(&self.two(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (routing, experts) = (emit_routing(call, 0), call.size(&self.expert.size));
        let (b, [first, second]) = (call.arg(ROWS), OWN.map(|own| call.arg(own)));
        quote!(ops::routed_weight_grad_pair(#routing, #b, [#first, #second], #experts)?)
    }
}

impl OpDef for RoutedLowBack {
    fn mnemonic(&self) -> &'static str {
        "routed_low_back"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().axes("expert", std::slice::from_ref(&self.expert));
        attrs.word("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let results = infer(self.mnemonic(), &self.two(), args)?;
        ordered(self, args)?;
        Ok(results)
    }

    /// The weight stands turned, as the kernel reads it.
    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        let [_, weight] = OWN;
        if index != weight {
            return arg_order(&self.two(), index, args);
        }
        let mut order = vec![self.expert.name.clone(), self.over.clone()];
        let w = args.get(index)?;
        order.extend(
            w.axes
                .iter()
                .map(|axis| axis.name.clone())
                .filter(|name| *name != self.expert.name && *name != self.over),
        );
        (order.len() == w.axes.len()).then_some(order)
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        eval(&self.two(), call)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative(self.mnemonic()))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        cost(&self.two(), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (routing, experts) = (emit_routing(call, 0), call.size(&self.expert.size));
        let (x, [small, w]) = (call.arg(ROWS), OWN.map(|own| call.arg(own)));
        quote!(ops::routed_low_back(#routing, #x, #small, #w, #experts)?)
    }
}

impl ParseOp for RoutedDotPair {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_dot_pair" {
            return Ok(None);
        }
        Ok(Some(RoutedDotPair {
            expert: attrs.take_word("expert")?,
            over: attrs.take_word("over")?,
        }))
    }
}

impl ParseOp for RoutedWeightGradPair {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_weight_grad_pair" {
            return Ok(None);
        }
        Ok(Some(RoutedWeightGradPair { expert: attrs.take_axis("expert")? }))
    }
}

impl ParseOp for RoutedLowBack {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "routed_low_back" {
            return Ok(None);
        }
        Ok(Some(RoutedLowBack {
            expert: attrs.take_axis("expert")?,
            over: attrs.take_word("over")?,
        }))
    }
}
