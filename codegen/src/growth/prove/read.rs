//! Reads ops and growth rules as terms.

use super::super::{Rule, RuleKind};
use super::graph::Tree;
use super::scale::Scale;
use super::term::{Axes, Head, Kind, Ty};
use crate::ir::Type;
use crate::ops::{self, Attr, Attrs, Op, UnaryFn};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

/// Size names and what they stand for at this call.
pub(crate) type Sizes = BTreeMap<String, Size>;

/// An op with the size names of its function replaced.
pub(crate) fn bound(op: &Op, sizes: &Sizes) -> Option<Op> {
    if sizes.is_empty() {
        return Some(op.clone());
    }
    let mut changed = false;
    let mut attrs = Attrs::default();
    for (name, attr) in op.def().attrs().0 {
        let attr = match attr {
            Attr::Size(size) => {
                changed = true;
                Attr::Size(size.substitute(sizes))
            }
            Attr::Axes(axes) => {
                changed = true;
                let axis = |a: Axis| Axis { size: a.size.substitute(sizes), name: a.name };
                Attr::Axes(axes.into_iter().map(axis).collect())
            }
            other => other,
        };
        attrs = attrs.with(&name, attr);
    }
    match changed {
        true => ops::parse_op(op.def().mnemonic(), attrs).ok(),
        false => Some(op.clone()),
    }
}

fn factor(value: f64) -> Option<Tree> {
    Some(Tree::leaf(Head::fill(Scale::number(value)?, Axes::new())))
}

fn mul(a: Tree, b: Tree) -> Tree {
    Tree::Node(Head::Mul, vec![a, b])
}

fn sum(over: &[String], x: Tree) -> Tree {
    Tree::one(Head::Sum(over.iter().cloned().collect::<BTreeSet<_>>()), x)
}

fn renamed(x: Tree, from: &str, to: &str) -> Tree {
    match from == to {
        true => x,
        false => Tree::one(Head::Rename { from: from.to_owned(), to: to.to_owned() }, x),
    }
}

/// A value whose axes are `from`, in order, with those of `to` in their place. Names that are taken
/// while others still have them go by way of names that no source can have.
pub(crate) fn under(x: Tree, from: &[String], to: &[String]) -> Tree {
    let moves: Vec<(&String, &String)> = from.iter().zip(to).filter(|(a, b)| a != b).collect();
    let crosses = moves.iter().any(|(_, to)| from.contains(to));
    if !crosses {
        return moves.into_iter().fold(x, |x, (from, to)| renamed(x, from, to));
    }
    let away = moves.iter().fold(x, |x, (from, to)| renamed(x, from, &format!("~{to}")));
    moves.iter().fold(away, |x, (_, to)| renamed(x, &format!("~{to}"), to))
}

fn zeros(ty: &Ty, axis: &str, size: &Size) -> Option<Tree> {
    let mut ty = ty.clone();
    ty.axes.insert(axis.to_owned(), size.clone());
    Some(Tree::leaf(Head::Fill { value: Scale::zero(), ty }))
}

/// An op with one result (or the result of that number) on arguments of these types, as a term.
pub(crate) fn op(op: &Op, result: usize, args: &[Tree], types: &[Ty]) -> Option<Tree> {
    let general = || {
        let op = match op {
            // Where a new axis lies in storage does not matter here.
            Op::Place(place) => ops::Place { position: 0, ..place.clone() }.into(),
            other => other.clone(),
        };
        Some(Tree::Node(Head::Op { key: super::term::OpKey::new(op), result }, args.to_vec()))
    };
    match (op, args, types) {
        (Op::Permute(_) | Op::StopGradient(_), [x], _) => Some(x.clone()),
        (Op::Cast(cast), [x], [ty]) if Kind::of(cast.to) == ty.kind => Some(x.clone()),
        // Whole numbers as numbers: in which precision does not matter.
        (Op::Cast(cast), [_], _) if Kind::of(cast.to) == Kind::Float => {
            Some(Tree::Node(Head::op(ops::Cast { to: DType::F32 }), args.to_vec()))
        }
        (Op::Const(constant), [], _) if Kind::of(constant.dtype) == Kind::Float => {
            factor(constant.value)
        }
        (Op::SizeValue(value), [], _) => match Scale::size(&value.size, 2) {
            Some(scale) => Some(Tree::leaf(Head::fill(scale, Axes::new()))),
            None => general(),
        },
        (Op::Affine(affine), [x], _) => {
            let scaled = match affine.mul == 1.0 {
                true => x.clone(),
                false => mul(factor(affine.mul)?, x.clone()),
            };
            match affine.add == 0.0 {
                true => Some(scaled),
                false => Some(Tree::Node(Head::Add, vec![scaled, factor(affine.add)?])),
            }
        }
        (Op::Binary(binary), [a, b], [a_ty, _]) if a_ty.kind == Kind::Float => {
            use crate::ops::BinaryFn::{Add, Div, Mul, Sub};
            match binary.function {
                Add => Some(Tree::Node(Head::Add, args.to_vec())),
                Mul => Some(mul(a.clone(), b.clone())),
                Sub => {
                    let minus = mul(factor(-1.0)?, b.clone());
                    Some(Tree::Node(Head::Add, vec![a.clone(), minus]))
                }
                Div => {
                    let recip = Head::op(ops::Unary { function: UnaryFn::Recip });
                    Some(mul(a.clone(), Tree::one(recip, b.clone())))
                }
                _ => general(),
            }
        }
        (Op::Contract(contract), [a, b], _) => {
            let product = mul(a.clone(), b.clone());
            Some(if contract.over.is_empty() { product } else { sum(&contract.over, product) })
        }
        (Op::Sum(op), [x], _) => Some(sum(&op.over, x.clone())),
        (Op::Mean(op), [x], [ty]) => {
            let share = op.over.iter().try_fold(Scale::one(), |total, axis| {
                Some(total.times(&Scale::size(ty.axes.get(axis)?, -2)?))
            })?;
            Some(mul(Tree::leaf(Head::fill(share, Axes::new())), sum(&op.over, x.clone())))
        }
        (Op::Broadcast(broadcast), [x], [ty]) => {
            let new = broadcast.axes.iter().filter(|axis| !ty.has(&axis.name));
            let axes: Axes = new.map(|axis| (axis.name.clone(), axis.size.clone())).collect();
            match (ty.kind, axes.is_empty()) {
                (_, true) => Some(x.clone()),
                (Kind::Float, false) => {
                    Some(mul(Tree::leaf(Head::fill(Scale::one(), axes)), x.clone()))
                }
                _ => {
                    let mut sorted = broadcast.axes.clone();
                    sorted.sort();
                    Some(Tree::Node(Head::op(ops::Broadcast { axes: sorted }), args.to_vec()))
                }
            }
        }
        (Op::Rename(op), [x], _) => Some(renamed(x.clone(), &op.from, &op.to)),
        (Op::Split(op), [x], _) => {
            let head = Head::Split { axis: op.axis.clone(), into: op.into.clone() };
            Some(Tree::one(head, x.clone()))
        }
        (Op::Merge(op), [x], _) => {
            let head = Head::Merge { axes: op.axes.clone(), into: op.into.clone() };
            Some(Tree::one(head, x.clone()))
        }
        (Op::Slice(op), [x], _) => {
            let len = op.end.checked_sub(&op.start)?;
            let head = Head::Slice { axis: op.axis.clone(), start: op.start.clone(), len };
            Some(renamed(Tree::one(head, x.clone()), &op.axis, &op.to))
        }
        (Op::Pad(op), [x], [ty]) if ty.kind == Kind::Float => {
            let none = Size::default();
            let mut parts = Vec::new();
            if op.before != none {
                parts.push(zeros(ty, &op.axis, &op.before)?);
            }
            parts.push(x.clone());
            if op.after != none {
                parts.push(zeros(ty, &op.axis, &op.after)?);
            }
            let whole = Tree::Node(Head::Concat(op.axis.clone()), parts);
            Some(renamed(whole, &op.axis, &op.to))
        }
        (Op::Concat(op), _, _) => {
            let whole = Tree::Node(Head::Concat(op.axis.clone()), args.to_vec());
            Some(renamed(whole, &op.axis, &op.to))
        }
        _ => general(),
    }
}

/// A growth rule as a term; `name` names the leaf of a source tensor.
pub(crate) fn rule(rule: &Rule, name: &dyn Fn(&str) -> String) -> Option<Tree> {
    let inner = |of: &Rule| self::rule(of, name);
    let ty = Ty::of(&rule.ty);
    match &rule.kind {
        RuleKind::Source { path } => Some(Tree::leaf(Head::Leaf { name: name(path), ty })),
        RuleKind::Fill { value } => {
            Some(Tree::leaf(Head::Fill { value: Scale::number(*value)?, ty }))
        }
        RuleKind::Scale { of, factor } => {
            let scale = Head::fill(Scale::factor(factor)?, Axes::new());
            Some(mul(Tree::leaf(scale), inner(of)?))
        }
        RuleKind::Add { left, right } => {
            Some(Tree::Node(Head::Add, vec![inner(left)?, inner(right)?]))
        }
        RuleKind::Concat { parts, axis } => {
            let parts: Option<Vec<Tree>> = parts.iter().map(inner).collect();
            Some(Tree::Node(Head::Concat(axis.clone()), parts?))
        }
        RuleKind::Tile { of, axis } => repeated(rule, of, axis, true, inner(of)?),
        RuleKind::Interleave { of, axis } => repeated(rule, of, axis, false, inner(of)?),
        RuleKind::Repeat { of, axis } => {
            let size = ty.axes.get(axis)?.clone();
            let ones = Head::fill(Scale::one(), Axes::from([(axis.clone(), size)]));
            Some(mul(Tree::leaf(ones), inner(of)?))
        }
        RuleKind::Slice { of, axis, start } => {
            let len = ty.axes.get(axis)?.clone();
            let head = Head::Slice { axis: axis.clone(), start: start.clone(), len };
            Some(Tree::one(head, inner(of)?))
        }
        RuleKind::Permute { of } => inner(of),
        RuleKind::Rename { of, from, to } => Some(renamed(inner(of)?, from, to)),
        RuleKind::Split { of, from, to } => {
            let part = |name: &String| rule.ty.axis(name).cloned();
            let into: Option<Vec<Axis>> = to.iter().map(part).collect();
            Some(Tree::one(Head::Split { axis: from.clone(), into: into? }, inner(of)?))
        }
        RuleKind::Merge { of, from, to } => {
            let head = Head::Merge { axes: from.clone(), into: to.clone() };
            Some(Tree::one(head, inner(of)?))
        }
        // Values that nothing is known of, the same for the same rule.
        RuleKind::Draw { .. }
        | RuleKind::Select { .. }
        | RuleKind::Subset { .. }
        | RuleKind::Redraw { .. }
        | RuleKind::Noise { .. }
        | RuleKind::Rotate { .. } => {
            let mut paths = BTreeSet::new();
            rule.sources(&mut paths);
            let name = format!("{} {:?}", rule.ty, rule.kind);
            Some(Tree::leaf(Head::Leaf { name, ty }))
        }
    }
}

/// A repetition along an axis: the axis merged from a new one along which all is equal and the
/// one that is repeated.
fn repeated(rule: &Rule, of: &Rule, axis: &str, tile: bool, x: Tree) -> Option<Tree> {
    let (size, once) = (&rule.ty.axis(axis)?.size, &of.ty.axis(axis)?.size);
    let times = size.exact_div(once)?;
    let (copy, original) = (format!("{axis}'copy"), format!("{axis}'of"));
    let ones = Head::fill(Scale::one(), Axes::from([(copy.clone(), times)]));
    let spread = mul(Tree::leaf(ones), renamed(x, axis, &original));
    let axes = if tile { vec![copy, original] } else { vec![original, copy] };
    Some(Tree::one(Head::Merge { axes, into: axis.to_owned() }, spread))
}

/// A type with size names replaced.
pub(crate) fn bound_ty(ty: &Type, sizes: &Sizes) -> Ty {
    Ty::of(&ty.substitute(sizes))
}

/// `source` followed by zeros along axes, to the sizes of `wanted`: the one way in which a grown
/// value can differ in type from the value that it stands for. Gives the axes.
pub(crate) fn padded(source: Tree, from: &Ty, wanted: &Ty) -> Option<(Tree, Vec<String>)> {
    if from.kind != wanted.kind || !from.axes.keys().eq(wanted.axes.keys()) {
        return None;
    }
    let (mut tree, mut ty, mut axes) = (source, from.clone(), Vec::new());
    for (axis, size) in &wanted.axes {
        let has = ty.axes.get(axis)?.clone();
        if has == *size {
            continue;
        }
        let more = size.checked_sub(&has)?;
        if more.terms().any(|(_, coefficient)| coefficient < 0) || ty.kind != Kind::Float {
            return None;
        }
        tree = Tree::Node(Head::Concat(axis.clone()), vec![tree, zeros(&ty, axis, &more)?]);
        ty.axes.insert(axis.clone(), size.clone());
        axes.push(axis.clone());
    }
    Some((tree, axes))
}
