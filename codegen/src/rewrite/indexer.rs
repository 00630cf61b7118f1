//! Puts one op in place of the ops that an indexer of sparse attention is written with.
//!
//! What is found is the composition that [`Indexer`] states, with every number and axis as it asks, any
//! order of the two arguments of a product, a sum or a maximum, and whatever widened the queries and keys.
//! The composition stays where anything differs, and where the op would compute less: values in
//! between must be read by the composition alone, and the variance, which has a gradient there and none
//! here, by nothing that an output of the function depends on.
//!
//! Scores are computed from the same products; sums over channels, heads and keys are in the order of
//! the op.

use super::{Copy, Result, declarations, fault};
use crate::ir::{Function, Module, Node, NodeId, ValueId};
use crate::ops::{
    Affine, Binary, BinaryFn, Cast, Causal, Clamp, Const, Contract, Indexer, LEAST_MEAN, Mean, Op,
    Permute, SelectTop, Unary, UnaryFn,
};
use lightc_dsl::ast::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Rewrites every function of a module that is not differentiated yet; the number of indexers found.
///
/// # Errors
/// A fault of this compiler.
pub fn indexers(module: &mut Module) -> Result<usize> {
    let mut n = 0;
    for function in &mut module.functions {
        let found = found(function);
        if !found.is_empty() {
            n += found.len();
            *function = crate::ir::prune::prune_forward(rewrite(function, &found)?);
        }
    }
    Ok(n)
}

/// An indexer as it is written.
struct Found {
    op: Indexer,
    args: [ValueId; 5],
    selected: ValueId,
    variance: ValueId,
}

/// The values of a composition, gathered while it is matched.
struct Match<'f> {
    function: &'f Function,
    /// Values that only the composition may read.
    inner: BTreeSet<ValueId>,
}

fn found(function: &Function) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for node in &function.nodes {
        let Op::SelectTop(select) = &node.op else { continue };
        let mut matched = Match { function, inner: BTreeSet::new() };
        let Some(one) = matched.indexer(select, node) else { continue };
        let inner = &matched.inner;
        if is_closed(function, inner, &one) && is_for_states_alone(function, one.variance) {
            found.push(one);
        }
    }
    found
}

impl<'f> Match<'f> {
    /// The node of a value of the composition.
    fn node(&mut self, value: ValueId) -> &'f Node {
        let _ = self.inner.insert(value);
        self.function.definition(value)
    }

    fn unary(&mut self, value: ValueId, wanted: UnaryFn) -> Option<ValueId> {
        let node = self.node(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Unary(Unary { function }), [x]) if *function == wanted => Some(*x),
            _ => None,
        }
    }

    fn binary(&mut self, value: ValueId, wanted: BinaryFn) -> Option<[ValueId; 2]> {
        let node = self.node(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Binary(Binary { function }), [a, b]) if *function == wanted => Some([*a, *b]),
            _ => None,
        }
    }

    /// The argument of a multiplication by a number, and the number.
    fn scaled(&mut self, value: ValueId) -> Option<(ValueId, f64)> {
        let node = self.node(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Affine(Affine { mul, add }), [x]) if *add == 0.0 => Some((*x, *mul)),
            _ => None,
        }
    }

    fn mean(&mut self, value: ValueId, axis: &str) -> Option<ValueId> {
        let node = self.node(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Mean(Mean { over }), [x]) if *over == [axis] => Some(*x),
            _ => None,
        }
    }

    /// The operands of a contraction over one axis, and the axis.
    fn contraction(&mut self, value: ValueId) -> Option<([ValueId; 2], String)> {
        let node = self.node(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Contract(Contract { over }), [a, b]) => match over.as_slice() {
                [axis] => Some(([*a, *b], axis.clone())),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_number(&self, value: ValueId, wanted: f64) -> bool {
        let op = &self.function.definition(value).op;
        matches!(op, Op::Const(Const { value, .. }) if *value == wanted)
    }

    /// A value before its widening.
    fn narrow(&self, value: ValueId) -> ValueId {
        let node = self.function.definition(value);
        match (&node.op, node.args.as_slice()) {
            (Op::Cast(Cast { to: DType::F32 }), [x]) => *x,
            _ => value,
        }
    }

    fn indexer(&mut self, select: &SelectTop, node: &Node) -> Option<Found> {
        let ([score, budget], [selected]) = (node.args.as_slice(), node.results.as_slice()) else {
            return None;
        };
        let (query, key) = (&select.query, &select.key);
        let (q, k, heed, bias, [head, channel]) = self.score(*score, query, key)?;
        let (variance, ema, [base, low, high]) = self.budget(*budget)?;
        self.variance(variance, *score, query, key)?;
        // The op gives both, so others may read them.
        for value in [*selected, variance] {
            let _ = self.inner.remove(&value);
        }
        let op = Indexer {
            query: query.clone(),
            key: key.clone(),
            head,
            channel,
            base,
            low,
            high,
            sinks: select.sinks,
            limit: select.limit,
        };
        Some(Found { op, args: [q, k, heed, bias, ema], selected: *selected, variance })
    }

    /// `heed . sigmoid(q . k / sqrt(c) + bias)`: its parts, and the axes that it sums.
    #[allow(clippy::type_complexity)]
    fn score(
        &mut self,
        score: ValueId,
        query: &str,
        key: &str,
    ) -> Option<(ValueId, ValueId, ValueId, ValueId, [String; 2])> {
        let function = self.function;
        let (parts, head) = self.contraction(score)?;
        let [heed, opened] = parts_by(parts, |value| !function.ty(value).has(key))?;
        let biased = self.unary(opened, UnaryFn::Sigmoid)?;
        let terms = self.binary(biased, BinaryFn::Add)?;
        let [bias, matched] = parts_by(terms, |value| function.ty(value).names() == [&*head])?;
        let (product, scale) = self.scaled(matched)?;
        let (sides, channel) = self.contraction(product)?;
        let [k, q] = parts_by(sides, |value| function.ty(value).has(key))?;
        let size = function.ty(k).axis(&channel)?.size.as_constant()?;
        let is_scale = (scale * (size as f64).sqrt() - 1.0).abs() < 1e-12;
        // Each part varies over what the op lets it, and in 32 bits.
        let wide = [score, opened, product, heed, bias];
        let is_wide = wide.iter().all(|value| function.ty(*value).dtype == DType::F32);
        let names =
            |value: ValueId| function.ty(value).names().into_iter().collect::<BTreeSet<_>>();
        let mut batch = names(score);
        let has_pair = batch.remove(query) && batch.remove(key);
        let of = |axes: &[&str]| -> BTreeSet<String> {
            batch.iter().cloned().chain(axes.iter().map(|axis| (*axis).to_owned())).collect()
        };
        let fits = has_pair
            && batch.len() == 1
            && names(q) == of(&[query, &head, &channel])
            && names(k) == of(&[key, &channel])
            && names(heed) == of(&[query, &head]);
        let (q, k) = (self.narrow(q), self.narrow(k));
        (is_scale && is_wide && fits).then_some((q, k, heed, bias, [head, channel]))
    }

    /// `clamp(floor(base variance / max(ema, 1e-6)), low, high)`: variance, ema and the numbers.
    fn budget(&mut self, budget: ValueId) -> Option<(ValueId, ValueId, [f64; 3])> {
        let node = self.node(budget);
        let (Op::Clamp(Clamp { low, high }), [wanted]) = (&node.op, node.args.as_slice()) else {
            return None;
        };
        let (low, high, wanted) = (*low, *high, *wanted);
        let ratio = self.unary(wanted, UnaryFn::Floor)?;
        let [scaled, mean] = self.binary(ratio, BinaryFn::Div)?;
        let (variance, base) = self.scaled(scaled)?;
        let sides = self.binary(mean, BinaryFn::Max)?;
        let [least, ema] = [sides, [sides[1], sides[0]]]
            .into_iter()
            .find(|[least, _]| self.is_number(*least, LEAST_MEAN))?;
        let _ = least;
        let is_state = matches!(self.function.definition(ema).op, Op::StateRef(_));
        let is_one = self.function.ty(ema).axes.is_empty();
        (is_state && is_one).then_some((variance, ema, [base, low, high]))
    }

    /// `mean(square(past - mean(past, over s)), over s)` of `past = where(causal, score, 0)`.
    fn variance(
        &mut self,
        variance: ValueId,
        score: ValueId,
        query: &str,
        key: &str,
    ) -> Option<()> {
        let square = self.mean(variance, key)?;
        let centred = self.unary(square, UnaryFn::Square)?;
        let [past, mean] = self.binary(centred, BinaryFn::Sub)?;
        if self.mean(mean, key)? != past {
            return None;
        }
        let node = self.node(past);
        let (Op::Where(_), [condition, inside, outside]) = (&node.op, node.args.as_slice()) else {
            return None;
        };
        let causal = match &self.function.definition(*condition).op {
            Op::Causal(Causal { query: q, key: k }) => q.name == query && k.name == key,
            _ => false,
        };
        (causal && *inside == score && self.is_number(*outside, 0.0)).then_some(())
    }
}

/// Two values, the one that is wanted first; `None` if both or neither is.
fn parts_by([a, b]: [ValueId; 2], wanted: impl Fn(ValueId) -> bool) -> Option<[ValueId; 2]> {
    match (wanted(a), wanted(b)) {
        (true, false) => Some([a, b]),
        (false, true) => Some([b, a]),
        _ => None,
    }
}

/// Whether nothing but the composition reads what is inside it.
fn is_closed(function: &Function, inner: &BTreeSet<ValueId>, one: &Found) -> bool {
    let own: BTreeSet<ValueId> =
        inner.iter().copied().chain([one.selected, one.variance]).collect();
    let is_own = |node: &Node| node.results.iter().all(|result| own.contains(result));
    let read = |node: &Node| node.args.iter().any(|arg| inner.contains(arg));
    let leaves = function.outputs.iter().any(|output| inner.contains(&output.value))
        || function.updates.iter().any(|(_, value)| inner.contains(value));
    !leaves && function.nodes.iter().all(|node| is_own(node) || !read(node))
}

/// Whether no output of a function depends on a value, but by a selection, which has no gradient.
fn is_for_states_alone(function: &Function, value: ValueId) -> bool {
    let mut reached = BTreeSet::from([value]);
    for node in &function.nodes {
        let selects = node.op.def().is_replayed();
        if !selects && node.args.iter().any(|arg| reached.contains(arg)) {
            reached.extend(&node.results);
        }
    }
    function.outputs.iter().all(|output| !reached.contains(&output.value))
}

fn rewrite(function: &Function, all: &[Found]) -> Result<Function> {
    let none = BTreeMap::new();
    let mut copy = Copy::new(declarations(function));
    for (id, node) in function.nodes() {
        // The variance is the first of the two results, and comes after all arguments but the state.
        if let Some(one) = all.iter().find(|one| function.value(one.variance).node == id) {
            write(&mut copy, function, one, id)?;
        }
        let known = |result: &ValueId| copy.map.contains_key(result);
        if node.results.is_empty() || !node.results.iter().all(known) {
            copy.node(function, node, node.op.clone(), &none)?;
        }
    }
    copy.finish(function)?;
    Ok(copy.to)
}

fn write(copy: &mut Copy, function: &Function, one: &Found, at: NodeId) -> Result<()> {
    let [.., ema] = one.args;
    if !copy.map.contains_key(&ema) {
        let node = function.definition(ema);
        copy.node(function, node, node.op.clone(), &BTreeMap::new())?;
    }
    let span = function.node(at).span;
    let mut args = one.args.iter().map(|arg| copy.at(*arg)).collect::<Result<Vec<_>>>()?;
    let op = Op::from(one.op.clone());
    for index in 0..args.len() {
        let types: Vec<_> = args.iter().map(|arg| copy.to.ty(*arg).clone()).collect();
        let order = op.def().arg_order(index, &types.iter().collect::<Vec<_>>());
        if let (Some(arg), Some(order)) = (args.get_mut(index), order)
            && copy.to.ty(*arg).names() != order
        {
            *arg = copy.to.push1(Permute { order }.into(), vec![*arg], span)?;
        }
    }
    let results = copy.to.push(op, args, span)?;
    let [selected, variance] = *results.as_slice() else {
        return Err(fault("an indexer has two results"));
    };
    for (old, new) in [(one.selected, selected), (one.variance, variance)] {
        if copy.to.ty(new) != function.ty(old) {
            return Err(fault(format!(
                "an indexer gives {}, not {}",
                copy.to.ty(new),
                function.ty(old)
            )));
        }
        if let Some(name) = &function.value(old).name {
            copy.to.name_value(new, name);
        }
        let _ = copy.map.insert(old, new);
    }
    Ok(())
}
