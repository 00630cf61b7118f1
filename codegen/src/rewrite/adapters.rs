//! Has the cotangent of rows that go to their choices' weights both directly and through an adapter from one product.
//!
//! Where a [`RoutedCombine`](crate::ops::RoutedCombine) weighs `W x + L low` with `low = R x`, its gradient is, with
//! `A = W' dy` and `B = L' dy` (a prime turns a weight), both unweighed:
//!
//! ```text
//! dx       = weights * A + R' (weights * B)
//! dweights = sum of A * x + sum of B * low
//! ```
//!
//! A row has one weight, and a product is linear in its rows. So with `Z = A + R' B`, which is one sum of products,
//!
//! ```text
//! dx       = weights * Z
//! dweights = sum of Z * x
//! ```
//!
//! No product over the few columns of an adapter is left by itself, and rows as wide as x are read once. `weights * B`
//! stays where the gradient of R reads it.
//!
//! Roundings move: A, its weighed form and the product with R are not rounded to the compute precision, their sum Z is,
//! once; R takes B as it is and not weighed and rounded again; `dweights` reads x where it read `low`, which the forward
//! has rounded.

use super::{Copy, Result, declarations, fault, is_same};
use crate::ir::{Backward, Function, Module, Node, Value, ValueId, prune};
use crate::ops::{Binary, BinaryFn, Cast, Op, RoutedDot, Sum};
use lightc_dsl::ast::DType;
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

/// Rewrites the backward functions of a module.
///
/// # Errors
/// A fault of this compiler.
pub fn join_adapters(module: &mut Module) -> Result<()> {
    let old = std::mem::take(&mut module.backward);
    for backward in old {
        let forward = module.function(backward.of);
        let mut backward = backward;
        while let Some(found) = find(forward, &backward) {
            backward = rewritten(&backward, &found)?;
        }
        module.backward.push(backward);
    }
    Ok(())
}

/// The two sums that are replaced, and what the new ones are made of: values of the old function.
struct Found {
    dx: ValueId,
    dweights: ValueId,
    /// `Z`, and its arguments.
    product: RoutedDot,
    args: Vec<ValueId>,
    weights: ValueId,
    /// x in 32 bits, and its own axis.
    wide_x: ValueId,
    own: String,
}

/// A product of one term with rows of places.
struct Product<'a> {
    op: &'a RoutedDot,
    routing: &'a [ValueId],
    x: ValueId,
    w: ValueId,
}

fn product(function: &Function, value: ValueId) -> Option<Product<'_>> {
    let node = function.definition(value);
    let (Op::RoutedDot(op), [routing @ .., x, w]) = (&node.op, node.args.as_slice()) else {
        return None;
    };
    (op.over.len() == 1).then_some(Product { op, routing, x: *x, w: *w })
}

impl Product<'_> {
    fn goes_with(&self, other: &Product<'_>) -> bool {
        self.routing == other.routing && self.op.expert == other.op.expert
    }
}

/// `cast(z * weights)`, where z is a product in 32 bits.
struct Weighed<'a> {
    z: ValueId,
    /// The product as it is rounded.
    rounded: ValueId,
    product: Product<'a>,
    weights: ValueId,
}

fn weighed(body: &Function, value: ValueId) -> Option<Weighed<'_>> {
    let (Op::Cast(_), [both]) = whole(body.definition(value)) else { return None };
    let [z, weights] = factors(body, *both)?;
    let rounded = widened(body, z)?;
    let product = product(body, rounded)?;
    // A weight for each place, and nothing that gives the product more axes.
    let of_places = body.ty(weights).axes == body.ty(*product.routing.first()?).axes;
    (of_places && body.ty(value) == body.ty(rounded)).then_some(Weighed {
        z,
        rounded,
        product,
        weights,
    })
}

fn whole(node: &Node) -> (&Op, &[ValueId]) {
    (&node.op, node.args.as_slice())
}

fn factors(body: &Function, value: ValueId) -> Option<[ValueId; 2]> {
    match whole(body.definition(value)) {
        (Op::Binary(Binary { function: BinaryFn::Mul }), [a, b]) => Some([*a, *b]),
        _ => None,
    }
}

fn addends(node: &Node) -> Option<[ValueId; 2]> {
    match whole(node) {
        (Op::Binary(Binary { function: BinaryFn::Add }), [a, b]) => Some([*a, *b]),
        _ => None,
    }
}

/// What a value of 32 bits is cast from.
fn widened(body: &Function, value: ValueId) -> Option<ValueId> {
    match whole(body.definition(value)) {
        (Op::Cast(Cast { to: DType::F32 }), [from]) => Some(*from),
        _ => None,
    }
}

/// `sum over an axis of z * f32(rows)`: the axis, and the rows in 32 bits.
fn summed(body: &Function, value: ValueId, z: ValueId) -> Option<(&str, ValueId)> {
    let (Op::Sum(Sum { over }), [both]) = whole(body.definition(value)) else { return None };
    let [axis] = over.as_slice() else { return None };
    let [first, rows] = factors(body, *both)?;
    (first == z && body.ty(rows) == body.ty(z)).then_some((axis, rows))
}

fn both_ways([a, b]: [ValueId; 2]) -> [[ValueId; 2]; 2] {
    [[a, b], [b, a]]
}

fn find(forward: &Function, backward: &Backward) -> Option<Found> {
    backward.body.nodes.iter().find_map(|node| {
        let dx = *node.results.first()?;
        let mut sums = both_ways(addends(node)?).into_iter();
        sums.find_map(|[direct, through]| {
            let ways = ways(backward, dx, direct, through)?;
            found(forward, backward, dx, &ways)
        })
    })
}

/// What goes to x directly, and through an adapter.
struct Ways<'a> {
    base: Weighed<'a>,
    low: Weighed<'a>,
    /// The product of the adapter's weighed rows, back to x.
    last: Product<'a>,
}

/// The two addends of dx, where they are of one cotangent, weights and places.
fn ways(backward: &Backward, dx: ValueId, direct: ValueId, through: ValueId) -> Option<Ways<'_>> {
    let body = &backward.body;
    let (base, last) = (weighed(body, direct)?, product(body, through)?);
    let low = weighed(body, last.x)?;
    let (a, b) = (&base.product, &low.product);
    let fits = a.goes_with(b)
        && a.goes_with(&last)
        && a.x == b.x
        && base.weights == low.weights
        && body.ty(dx) == body.ty(base.rounded)
        && body.ty(dx) == body.ty(through)
        && read_only_here(backward, &base, direct);
    fits.then_some(Ways { base, low, last })
}

/// With the sum that is the weights' cotangent, where there is one.
fn found(forward: &Function, backward: &Backward, dx: ValueId, ways: &Ways<'_>) -> Option<Found> {
    let own = &backward.body.ty(dx).axes.last()?.name;
    let (dweights, wide_x) = backward.body.nodes.iter().find_map(|node| {
        let mut sums = both_ways(addends(node)?).into_iter();
        let wide_x = sums.find_map(|sum| rows_of_sum(forward, backward, ways, own, sum))?;
        Some((*node.results.first()?, wide_x))
    })?;
    let Ways { base, low, last } = ways;
    let Product { op, routing, x, w } = &base.product;
    Some(Found {
        dx,
        dweights,
        product: RoutedDot {
            expert: op.expert.clone(),
            over: [op.over.clone(), last.op.over.clone()].concat(),
        },
        args: [*routing, &[*x, *w, low.rounded, last.w]].concat(),
        weights: base.weights,
        wide_x,
        own: own.clone(),
    })
}

/// x in 32 bits, where two values are `sum of A * x` and `sum of B * low`.
fn rows_of_sum(
    forward: &Function,
    backward: &Backward,
    ways: &Ways<'_>,
    own: &str,
    [of_base, of_low]: [ValueId; 2],
) -> Option<ValueId> {
    let body = &backward.body;
    let (axis, wide_x) = summed(body, of_base, ways.base.z)?;
    let (rank, wide_low) = summed(body, of_low, ways.low.z)?;
    let (x, low) = (widened(body, wide_x)?, widened(body, wide_low)?);
    let fits = axis == own
        && ways.last.op.over == [rank]
        && body.ty(of_base) == body.ty(of_low)
        && is_product_of(forward, backward, low, x, own, &ways.last);
    fits.then_some(wide_x)
}

/// Whether the base's own product is read for dx and for the weights alone, so that none is left beside Z.
fn read_only_here(backward: &Backward, base: &Weighed<'_>, direct: ValueId) -> bool {
    let reads = |value: ValueId| {
        let args = backward.body.nodes.iter().flat_map(|node| &node.args);
        let outputs = backward.body.outputs.iter().map(|output| &output.value);
        let grads = backward.grads.iter().map(|(_, value)| value);
        args.chain(outputs).chain(grads).filter(|read| **read == value).count()
    };
    reads(base.rounded) == 1 && reads(base.z) == 2 && reads(direct) == 1
}

/// Whether `low` is what the forward made of x with the weight of `last`, which `last` turns, and of
/// nothing else.
fn is_product_of(
    forward: &Function,
    backward: &Backward,
    low: ValueId,
    x: ValueId,
    own: &str,
    last: &Product<'_>,
) -> bool {
    let Op::Saved(saved) = &backward.body.definition(low).op else { return false };
    let Some(made) = product(forward, saved.value) else { return false };
    let here = [last.routing, &[x, last.w]].concat();
    let there = [made.routing, &[made.x, made.w]].concat();
    let mut both = there.iter().zip(&here);
    made.op.expert == last.op.expert
        && made.op.over == [own]
        && there.len() == here.len()
        && both.all(|(there, here)| is_same(forward, *there, backward, *here))
}

/// A backward that is written anew, with the sums that were found made of `Z`.
struct Pass<'a> {
    old: &'a Function,
    copy: Copy,
    /// `Z` in 32 bits, from where it is read first.
    z: Option<ValueId>,
}

fn rewritten(backward: &Backward, found: &Found) -> Result<Backward> {
    let old = &backward.body;
    let mut pass = Pass { old, copy: Copy::new(declarations(old)), z: None };
    for node in &old.nodes {
        pass.node(node, found)?;
    }
    let mut body = pass.copy.to.clone();
    body.outputs = pass.copy.outputs(old)?;
    let grads = backward.grads.iter();
    let grads: Result<Vec<_>> =
        grads.map(|(index, value)| Ok((*index, pass.copy.at(*value)?))).collect();
    Ok(prune::prune_backward(Backward { body, grads: grads?, ..backward.clone() }))
}

impl Pass<'_> {
    fn node(&mut self, node: &Node, found: &Found) -> Result<()> {
        let is = |value: ValueId| node.results.first() == Some(&value);
        if is(found.dx) {
            let value = self.dx(found, node.span)?;
            return self.note(found.dx, value);
        }
        if is(found.dweights) {
            let value = self.dweights(found, node.span)?;
            return self.note(found.dweights, value);
        }
        let known = node.results.iter().all(|result| self.copy.map.contains_key(result));
        if known && !node.results.is_empty() {
            return Ok(());
        }
        self.copy.node(self.old, node, node.op.clone(), &BTreeMap::new())
    }

    fn dx(&mut self, found: &Found, span: Option<Span>) -> Result<ValueId> {
        let z = self.z(found, span)?;
        let weights = self.copy.at(found.weights)?;
        let to = self.old.ty(found.dx).dtype;
        let both = self.push(Binary { function: BinaryFn::Mul }, vec![z, weights], span)?;
        self.push(Cast { to }, vec![both], span)
    }

    fn dweights(&mut self, found: &Found, span: Option<Span>) -> Result<ValueId> {
        let z = self.z(found, span)?;
        let x = self.copy.at(found.wide_x)?;
        let both = self.push(Binary { function: BinaryFn::Mul }, vec![z, x], span)?;
        self.push(Sum { over: vec![found.own.clone()] }, vec![both], span)
    }

    fn z(&mut self, found: &Found, span: Option<Span>) -> Result<ValueId> {
        if let Some(z) = self.z {
            return Ok(z);
        }
        let args = found.args.iter().map(|arg| self.have(*arg)).collect::<Result<Vec<_>>>()?;
        let rounded = self.push(found.product.clone(), args, span)?;
        let z = self.push(Cast { to: DType::F32 }, vec![rounded], span)?;
        self.z = Some(z);
        Ok(z)
    }

    /// A value that may stand behind the first of the two sums, as the adapter's weight does: written
    /// earlier then.
    fn have(&mut self, value: ValueId) -> Result<ValueId> {
        if !self.copy.map.contains_key(&value) {
            let node = self.old.definition(value);
            for arg in &node.args {
                let _ = self.have(*arg)?;
            }
            self.copy.node(self.old, node, node.op.clone(), &BTreeMap::new())?;
        }
        self.copy.at(value)
    }

    fn push(
        &mut self,
        op: impl Into<Op>,
        args: Vec<ValueId>,
        span: Option<Span>,
    ) -> Result<ValueId> {
        self.copy.to.push1(op.into(), args, span)
    }

    fn note(&mut self, old: ValueId, new: ValueId) -> Result<()> {
        let Value { ty, name, .. } = self.old.value(old);
        let found = self.copy.to.ty(new);
        if found != ty {
            return Err(fault(format!("a joined cotangent is {found}, not {ty}")));
        }
        if let Some(name) = name {
            self.copy.to.name_value(new, name);
        }
        self.copy.map.insert(old, new);
        Ok(())
    }
}
