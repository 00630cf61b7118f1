//! Has two narrow products of the same rows from one op, whose kernel reads the rows once.
//!
//! Two products of one term each become a [`RoutedDotPair`] where they read the same rows at the same places and sum
//! over the same axis, and both weights have 16 columns, as the adapters of gate and up have. Two gradients of weights
//! become a [`RoutedWeightGradPair`] where their rows on the side of the summed axis are the same, at the same places,
//! and those on the other side have 16 columns: they are the gradients of such weights. Others stay: kernels take pairs of
//! 16 columns alone, and wider products take more time for arithmetic than for their rows.
//!
//! A product and a gradient become a [`RoutedLowBack`] where both read the same rows, one for each place, and what stands
//! beside them has 16 columns: the cotangents of gate and up are read so, with an adapter's weight for the cotangent of its narrow
//! rows, and with these rows for the gradient of that weight. What is in a pair stays there: that saves as much.
//!
//! A pair stands where the first of the two stood. So what the second alone reads must be there by then: made before,
//! or a parameter or a kept value, which is named earlier. Values keep their names and, of a forward, what backward
//! functions keep are the same ones; each is rounded as before.

use super::{Copy, Result, declarations, renumber_saved};
use crate::ir::{FuncId, Function, Module, Node, ValueId};
use crate::ops::{
    Op, RoutedDot, RoutedDotPair, RoutedLowBack, RoutedWeightGrad, RoutedWeightGradPair,
};
use lightc_dsl::model::Axis;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Columns that the kernels of pairs take (`runtime/src/ops/tile/low.rs`).
const COLUMNS: i64 = 16;

/// Rewrites the functions of a differentiated module, forward and backward.
///
/// # Errors
/// A fault of this compiler.
pub fn pair(module: &mut Module) -> Result<()> {
    for (id, function) in (0..).map(FuncId).zip(&mut module.functions) {
        if let Some(copy) = paired(function)? {
            renumber_saved(&mut module.backward, id, &copy.map)?;
            *function = copy.to;
        }
    }
    for backward in &mut module.backward {
        if let Some(copy) = paired(&backward.body)? {
            for (_, value) in &mut backward.grads {
                *value = copy.at(*value)?;
            }
            backward.body = copy.to;
        }
    }
    Ok(())
}

/// A narrow product, or a gradient of one.
struct Narrow {
    /// The op of two of them.
    pair: Op,
    /// Ids, order, bounds and the rows that the other must have too.
    shared: [ValueId; 4],
    /// What it reads alone.
    own: ValueId,
    result: ValueId,
    span: Option<Span>,
}

fn narrow(function: &Function, node: &Node) -> Option<Narrow> {
    let ([ids, order, bounds, a, b], [result]) = (node.args.as_slice(), node.results.as_slice())
    else {
        return None;
    };
    let axes = &function.ty(*result).axes;
    let (pair, columns, rows, own) = match &node.op {
        Op::RoutedDot(RoutedDot { expert, over }) => {
            let (expert, over) = (expert.clone(), over.first()?.clone());
            (RoutedDotPair { expert, over }.into(), axes.last()?, a, b)
        }
        Op::RoutedWeightGrad(RoutedWeightGrad { expert }) => {
            let expert = expert.clone();
            (RoutedWeightGradPair { expert }.into(), axes.get(1)?, b, a)
        }
        _ => return None,
    };
    let shared = [*ids, *order, *bounds, *rows];
    let found = Narrow { pair, shared, own: *own, result: *result, span: node.span };
    (columns.size.as_constant() == Some(COLUMNS)).then_some(found)
}

impl Narrow {
    fn goes_with(&self, other: &Narrow) -> bool {
        self.pair == other.pair && self.shared == other.shared
    }

    /// The node of both, of which `self` comes first.
    fn with(self, other: &Narrow) -> Node {
        Node {
            op: self.pair,
            args: self.shared.into_iter().chain([self.own, other.own]).collect(),
            results: vec![self.result, other.result],
            span: self.span,
        }
    }
}

/// Nodes of two products each, by the position of the first; their arguments and results are values of the
/// old function.
fn pairs(function: &Function) -> BTreeMap<usize, Node> {
    let mut pairs = BTreeMap::new();
    let mut alone: Vec<(usize, Narrow)> = Vec::new();
    for (at, node) in function.nodes.iter().enumerate() {
        let Some(second) = narrow(function, node) else { continue };
        let fits = |(first_at, first): &(usize, Narrow)| {
            first.goes_with(&second) && can_be_read(function, second.own, *first_at)
        };
        match alone.iter().position(fits) {
            Some(position) => {
                let (first_at, first) = alone.remove(position);
                let _ = pairs.insert(first_at, first.with(&second));
            }
            None => alone.push((at, second)),
        }
    }
    pairs
}

/// What one of a product and a gradient has.
enum Role {
    Product { expert: String, over: String },
    Gradient { expert: Axis },
}

/// A product with an adapter's weight, or the gradient of such a weight, whose rows are of single places.
struct Side {
    role: Role,
    /// Ids, order, bounds and the rows that the other must have too.
    shared: [ValueId; 4],
    /// What it reads alone.
    own: ValueId,
    result: ValueId,
    span: Option<Span>,
}

fn side(function: &Function, node: &Node) -> Option<Side> {
    let ([ids, order, bounds, rows, own], [result]) =
        (node.args.as_slice(), node.results.as_slice())
    else {
        return None;
    };
    let of_places = |rows| function.ty(rows).axes.len() == function.ty(*ids).axes.len() + 1;
    let columns = function.ty(*result).axes.last()?.size.as_constant();
    let role = match &node.op {
        Op::RoutedDot(RoutedDot { expert, over }) => {
            let (expert, over) = (expert.clone(), over.first()?.clone());
            // As the kernel reads it, the weight has its 16 columns innermost.
            let turned = function.ty(*own).axes.last()?.name != over;
            turned.then_some(Role::Product { expert, over })?
        }
        Op::RoutedWeightGrad(RoutedWeightGrad { expert }) => {
            of_places(*own).then_some(Role::Gradient { expert: expert.clone() })?
        }
        _ => return None,
    };
    let shared = [*ids, *order, *bounds, *rows];
    let found = Side { role, shared, own: *own, result: *result, span: node.span };
    (columns == Some(COLUMNS) && of_places(*rows)).then_some(found)
}

impl Side {
    /// The node of both, of which `self` comes first; none where they do not go together.
    fn with(&self, second: &Side) -> Option<Node> {
        let (product, gradient) = match self.role {
            Role::Product { .. } => (self, second),
            Role::Gradient { .. } => (second, self),
        };
        let (Role::Product { expert: of_product, over }, Role::Gradient { expert }) =
            (&product.role, &gradient.role)
        else {
            return None;
        };
        let op = RoutedLowBack { expert: expert.clone(), over: over.clone() };
        let args = self.shared.into_iter().chain([gradient.own, product.own]).collect();
        let results = vec![product.result, gradient.result];
        let node = Node { op: op.into(), args, results, span: self.span };
        (self.shared == second.shared && *of_product == expert.name).then_some(node)
    }
}

/// Adds to pairs the nodes of a product and a gradient, as [`pairs`] gives them.
fn add_low_backs(function: &Function, pairs: &mut BTreeMap<usize, Node>) {
    let taken: BTreeSet<ValueId> =
        pairs.values().flat_map(|node| node.results.iter().copied()).collect();
    let mut alone: Vec<(usize, Side)> = Vec::new();
    for (at, node) in function.nodes.iter().enumerate() {
        let Some(second) = side(function, node) else { continue };
        if taken.contains(&second.result) {
            continue;
        }
        let both = alone.iter().enumerate().find_map(|(position, (first_at, first))| {
            let readable = can_be_read(function, second.own, *first_at);
            Some((position, *first_at, first.with(&second).filter(|_| readable)?))
        });
        match both {
            Some((position, first_at, node)) => {
                let _ = (alone.remove(position), pairs.insert(first_at, node));
            }
            None => alone.push((at, second)),
        }
    }
}

/// Whether a node at position `at` can read a value: it is made before, or a parameter or a kept value.
fn can_be_read(function: &Function, value: ValueId, at: usize) -> bool {
    let made_at = function.value(value).node.0 as usize;
    made_at < at || matches!(function.definition(value).op, Op::ParamRef(_) | Op::Saved(_))
}

/// The function with its pairs; none where it has none.
fn paired(function: &Function) -> Result<Option<Copy>> {
    let mut pairs = pairs(function);
    add_low_backs(function, &mut pairs);
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut copy = Copy::new(declarations(function));
    for (at, node) in function.nodes.iter().enumerate() {
        let pair = pairs.get(&at);
        for arg in pair.iter().flat_map(|pair| &pair.args) {
            once(&mut copy, function, function.definition(*arg))?;
        }
        once(&mut copy, function, pair.unwrap_or(node))?;
    }
    copy.finish(function)?;
    Ok(Some(copy))
}

/// Writes a node whose results are not there yet.
fn once(copy: &mut Copy, function: &Function, node: &Node) -> Result<()> {
    let known = node.results.first().is_some_and(|result| copy.map.contains_key(result));
    if known { Ok(()) } else { copy.node(function, node, node.op.clone(), &BTreeMap::new()) }
}
