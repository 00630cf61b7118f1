//! Makes grouped products of the products with chosen weights.
//!
//! In a forward: every `expert_dot` becomes a [`RoutedDot`] over one sorted list of places per ids; sums of
//! such products become one, gate and up of a SwiGLU become one pass, and a sum of products that the choices'
//! weights weigh becomes a [`RoutedCombine`], whose gradient does not need the products. In a
//! backward: cotangents that meet in one sum become one sum of products.
//!
//! Where two products are added, the rounding of each to the compute precision is left out; the sum is
//! rounded once. Weights that multiply cotangents multiply after the product instead of before it.

use super::{Copy, Result, declarations};
use crate::ir::{Backward, Function, Module, Node, Type, ValueId, prune};
use crate::ops::{
    Binary, BinaryFn, Cast, Contract, ExpertDot, ExpertOrder, Op, RoutedCombine, RoutedDot,
    RoutedSwiglu, Sum, Unary, UnaryFn,
};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use std::collections::BTreeMap;

/// Arguments of a routed product before its terms.
const ROUTING: usize = 3;

/// Rewrites the functions of a module that is not differentiated yet.
///
/// # Errors
/// A fault of this compiler.
pub fn group(module: &mut Module) -> Result<()> {
    for function in &mut module.functions {
        if !function.nodes.iter().any(|node| matches!(node.op, Op::ExpertDot(_))) {
            continue;
        }
        let mut grouped = routed(function)?;
        for rule in [add_products as Rule, swiglu, combine] {
            grouped = everywhere(grouped, rule)?;
        }
        *function = prune::prune_forward(grouped);
    }
    Ok(())
}

/// Rewrites the backward functions of a module.
///
/// # Errors
/// A fault of this compiler.
pub fn join_cotangents(module: &mut Module) -> Result<()> {
    let old = std::mem::take(&mut module.backward);
    for backward in old {
        let mut backward = backward;
        loop {
            let grads = backward.grads.iter().map(|(_, value)| *value);
            let uses = Uses::of(&backward.body, grads);
            let Some((copy, body)) = once(&backward.body, add_products, &uses)? else { break };
            let grads = backward.grads.iter();
            let grads: Result<Vec<_>> =
                grads.map(|(index, value)| Ok((*index, copy.at(*value)?))).collect();
            backward = prune::prune_backward(Backward { body, grads: grads?, ..backward });
        }
        module.backward.push(backward);
    }
    Ok(())
}

/// Every product with a chosen weight over one list of places per ids and number of experts.
fn routed(function: &Function) -> Result<Function> {
    let none = BTreeMap::new();
    let mut copy = Copy::new(declarations(function));
    let mut lists: Vec<(ValueId, Axis, [ValueId; 2])> = Vec::new();
    for node in &function.nodes {
        let (Op::ExpertDot(op), [x, w, ids]) = (&node.op, node.args.as_slice()) else {
            copy.node(function, node, node.op.clone(), &none)?;
            continue;
        };
        let expert = function.ty(*w).axis(&op.expert).cloned();
        let expert = expert
            .filter(|_| [*x, *w].into_iter().all(|value| function.ty(value).dtype == DType::Act));
        let Some(expert) = expert else {
            copy.node(function, node, node.op.clone(), &none)?;
            continue;
        };
        let (at, known) = (copy.at(*ids)?, lists.iter());
        let mut known = known.filter(|(of, axis, _)| *of == at && *axis == expert);
        let [order, bounds] = match known.next() {
            Some((_, _, lists)) => *lists,
            None => {
                let op = ExpertOrder { expert: expert.clone() };
                let made = copy.to.push(op.into(), vec![at], node.span)?;
                let [order, bounds] = made[..] else {
                    return Err(super::fault("an order of places has two results"));
                };
                lists.push((at, expert, [order, bounds]));
                [order, bounds]
            }
        };
        let ExpertDot { expert, over } = op.clone();
        let args = vec![at, order, bounds, copy.at(*x)?, copy.at(*w)?];
        let op = RoutedDot { expert, over: vec![over] };
        write_as(&mut copy, function, node, op.into(), args)?;
    }
    copy.finish(function)?;
    Ok(copy.to)
}

/// Writes an op in place of a node of one result, whose type it keeps.
fn write_as(
    copy: &mut Copy,
    function: &Function,
    node: &Node,
    op: Op,
    args: Vec<ValueId>,
) -> Result<()> {
    let value = copy.to.push1(op, args, node.span)?;
    let Some(result) = node.results.first() else { return Ok(()) };
    same_type(copy.to.ty(value), function.ty(*result))?;
    if let Some(name) = &function.value(*result).name {
        copy.to.name_value(value, name);
    }
    copy.map.insert(*result, value);
    Ok(())
}

fn same_type(new: &Type, old: &Type) -> Result<()> {
    if new == old {
        return Ok(());
    }
    Err(super::fault(format!("a grouped product is {new}, not {old}")))
}

/// What a node becomes: an op and its arguments, values of the old function, with one entry per result:
/// the old value that it is. `then` is an op that its one result still goes through.
struct Grouped {
    op: Op,
    args: Vec<ValueId>,
    then: Option<Op>,
    results: Vec<ValueId>,
}

type Rule = fn(&Function, &Node, &Uses) -> Option<Grouped>;

/// How often each value is read, by nodes, outputs and updates.
struct Uses(BTreeMap<ValueId, usize>);

impl Uses {
    fn of(function: &Function, others: impl Iterator<Item = ValueId>) -> Self {
        let mut uses = BTreeMap::new();
        let args = function.nodes.iter().flat_map(|node| node.args.iter().copied());
        let outputs = function.outputs.iter().map(|output| output.value);
        let updates = function.updates.iter().map(|(_, value)| *value);
        for value in args.chain(outputs).chain(updates).chain(others) {
            *uses.entry(value).or_default() += 1;
        }
        Uses(uses)
    }

    fn is_once(&self, value: ValueId) -> bool {
        self.0.get(&value) == Some(&1)
    }
}

fn everywhere(function: Function, rule: Rule) -> Result<Function> {
    let mut function = function;
    loop {
        let uses = Uses::of(&function, std::iter::empty());
        let Some((_, next)) = once(&function, rule, &uses)? else { return Ok(function) };
        function = prune::prune_forward(next);
    }
}

/// Applies a rule at the first node where it applies. What the node replaces is left for pruning.
fn once(function: &Function, rule: Rule, uses: &Uses) -> Result<Option<(Copy, Function)>> {
    let found = function.nodes.iter().enumerate();
    let mut found = found.filter_map(|(at, node)| Some((at, rule(function, node, uses)?)));
    let Some((at, grouped)) = found.next() else { return Ok(None) };
    let none = BTreeMap::new();
    let mut copy = Copy::new(declarations(function));
    for (index, node) in function.nodes.iter().enumerate() {
        if index != at {
            copy.node(function, node, node.op.clone(), &none)?;
            continue;
        }
        let args = grouped.args.iter().map(|arg| copy.at(*arg)).collect::<Result<Vec<_>>>()?;
        let mut results = copy.to.push(grouped.op.clone(), args, node.span)?;
        if let Some(then) = &grouped.then {
            results = copy.to.push(then.clone(), results, node.span)?;
        }
        for (old, new) in grouped.results.iter().zip(results) {
            same_type(copy.to.ty(new), function.ty(*old))?;
            if let Some(name) = &function.value(*old).name {
                copy.to.name_value(new, name);
            }
            copy.map.insert(*old, new);
        }
    }
    copy.finish(function)?;
    let body = copy.to.clone();
    Ok(Some((copy, body)))
}

/// A value that is a sum of routed products, read once.
struct Products<'a> {
    op: &'a RoutedDot,
    routing: &'a [ValueId],
    terms: &'a [ValueId],
}

fn products<'a>(function: &'a Function, uses: &Uses, value: ValueId) -> Option<Products<'a>> {
    let node = function.definition(value);
    let Op::RoutedDot(op) = &node.op else { return None };
    let (routing, terms) = node.args.split_at_checked(ROUTING)?;
    uses.is_once(value).then_some(Products { op, routing, terms })
}

impl Products<'_> {
    fn goes_with(&self, other: &Products<'_>) -> bool {
        self.routing == other.routing && self.op.expert == other.op.expert
    }
}

/// `products + products`, or each summed over the same axes, as one sum of products.
fn add_products(function: &Function, node: &Node, uses: &Uses) -> Option<Grouped> {
    let (Op::Binary(Binary { function: BinaryFn::Add }), [a, b]) = (&node.op, node.args.as_slice())
    else {
        return None;
    };
    if function.ty(*a) != function.ty(*b) {
        return None;
    }
    let (inner_a, sum_a) = behind_sum(function, uses, *a)?;
    let (inner_b, sum_b) = behind_sum(function, uses, *b)?;
    let (a, b) = (products(function, uses, inner_a)?, products(function, uses, inner_b)?);
    let fits = a.goes_with(&b) && sum_a == sum_b && function.ty(inner_a) == function.ty(inner_b);
    fits.then(|| {
        let over = [a.op.over.clone(), b.op.over.clone()].concat();
        Grouped {
            op: RoutedDot { expert: a.op.expert.clone(), over }.into(),
            args: [a.routing, a.terms, b.terms].concat(),
            then: sum_a.map(|sum| sum.clone().into()),
            results: node.results.clone(),
        }
    })
}

/// The value under a sum that is read once, and the sum.
fn behind_sum<'a>(
    function: &'a Function,
    uses: &Uses,
    value: ValueId,
) -> Option<(ValueId, Option<&'a Sum>)> {
    let node = function.definition(value);
    match (&node.op, node.args.as_slice()) {
        (Op::Sum(sum), [inner]) => uses.is_once(value).then_some((*inner, Some(sum))),
        _ => Some((value, None)),
    }
}

/// `silu(products) * products`, in one pass.
fn swiglu(function: &Function, node: &Node, uses: &Uses) -> Option<Grouped> {
    let (Op::Binary(Binary { function: BinaryFn::Mul }), [a, b]) = (&node.op, node.args.as_slice())
    else {
        return None;
    };
    [(*a, *b), (*b, *a)].into_iter().find_map(|(opened, lifted)| {
        let silu = function.definition(opened);
        let (Op::Unary(Unary { function: UnaryFn::Silu }), [gated]) =
            (&silu.op, silu.args.as_slice())
        else {
            return None;
        };
        let gate = products(function, uses, *gated)?;
        let up = products(function, uses, lifted)?;
        let one_type = function.ty(*gated) == function.ty(lifted);
        let fits = uses.is_once(opened) && gate.goes_with(&up) && one_type;
        fits.then(|| Grouped {
            op: RoutedSwiglu {
                expert: gate.op.expert.clone(),
                gate: gate.op.over.clone(),
                up: up.op.over.clone(),
            }
            .into(),
            args: [gate.routing, gate.terms, up.terms].concat(),
            then: None,
            results: [*gated, lifted].into_iter().chain(node.results.iter().copied()).collect(),
        })
    })
}

/// `act(dot(weights, f32(products), over k))`, where k is an axis of the choices.
fn combine(function: &Function, node: &Node, uses: &Uses) -> Option<Grouped> {
    let (Op::Cast(Cast { to: DType::Act }), [sum]) = (&node.op, node.args.as_slice()) else {
        return None;
    };
    let contract = function.definition(*sum);
    let (Op::Contract(Contract { over }), [a, b]) = (&contract.op, contract.args.as_slice()) else {
        return None;
    };
    let [slots] = over.as_slice() else { return None };
    [(*a, *b), (*b, *a)].into_iter().find_map(|(weights, wide)| {
        let cast = function.definition(wide);
        let (Op::Cast(Cast { to: DType::F32 }), [each]) = (&cast.op, cast.args.as_slice()) else {
            return None;
        };
        let each = products(function, uses, *each)?;
        let ids = function.ty(*each.routing.first()?);
        let weight = function.ty(weights);
        let fits = uses.is_once(*sum)
            && uses.is_once(wide)
            && weight.dtype == DType::F32
            && weight.axes == ids.axes
            && ids.axes.last().is_some_and(|axis| axis.name == *slots);
        fits.then(|| Grouped {
            op: RoutedCombine {
                expert: each.op.expert.clone(),
                over: each.op.over.clone(),
                slots: slots.clone(),
            }
            .into(),
            args: [&[weights], each.routing, each.terms].concat(),
            then: None,
            results: node.results.clone(),
        })
    })
}
