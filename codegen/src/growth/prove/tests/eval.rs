//! Values of terms, by the interpreter's ops: what rules are tested against.

use super::super::graph::{Shape, Tree};
use super::super::read;
use super::super::term::{Head, Ty, arranged, joined};
use super::Draws;
use crate::growth::Rule;
use crate::ir::Type;
use crate::ops::{Array, EvalCall};
use ndarray::Axis as Dim;
use std::collections::BTreeMap;

/// A type and an array with its axes in name order.
pub(super) type Value = (Ty, Array);

/// What size names stand for.
pub(super) type Bound = BTreeMap<String, i64>;

/// An array with the axes of a value in another order.
pub(super) fn stored(value: &Value, order: &[String]) -> Array {
    let names: Vec<&String> = value.0.axes.keys().collect();
    let positions: Vec<usize> =
        order.iter().map(|name| names.iter().position(|n| *n == name).unwrap()).collect();
    value.1.view().permuted_axes(positions).as_standard_layout().into_owned()
}

/// A stored array as a value.
pub(super) fn unordered(ty: &Type, array: &Array, _: &Bound) -> Value {
    let value = Ty::of(ty);
    let positions: Vec<usize> = value.axes.keys().map(|name| ty.position(name).unwrap()).collect();
    let array = array.view().permuted_axes(positions).as_standard_layout().into_owned();
    (value, array)
}

/// The value of a growth rule, given source tensors by path; draws are random.
pub(super) fn rule(
    rule: &Rule,
    sources: &BTreeMap<String, Value>,
    sizes: &Bound,
    draws: &mut Draws,
) -> Value {
    let tree = read::rule(rule, &|path| format!("source {path}")).unwrap();
    let mut leaf = |name: &str, ty: &Ty| match name.strip_prefix("source ") {
        Some(path) => sources[path].clone(),
        None => draws.array(ty, sizes),
    };
    let (_, array) = tree_value(&tree, &mut leaf, sizes).unwrap();
    (Ty::of(&rule.ty), array)
}

fn tree_value(
    tree: &Tree,
    leaf: &mut dyn FnMut(&str, &Ty) -> Value,
    sizes: &Bound,
) -> Option<Value> {
    match tree {
        Tree::Var(_) => None,
        Tree::Node(Head::Leaf { name, ty }, _) => Some(leaf(name, ty)),
        Tree::Node(head, children) => {
            let children: Option<Vec<Value>> =
                children.iter().map(|child| tree_value(child, leaf, sizes)).collect();
            apply(head, &children?, sizes)
        }
    }
}

/// The value of one side of an equation.
pub(super) fn shape_value(shape: &Shape, vars: &[Value], sizes: &Bound) -> Option<Value> {
    match shape {
        Shape::Var(index) => vars.get(*index as usize).cloned(),
        Shape::Node(head, children) => {
            let children: Option<Vec<Value>> =
                children.iter().map(|child| shape_value(child, vars, sizes)).collect();
            apply(head, &children?, sizes)
        }
    }
}

fn lengths(ty: &Ty, sizes: &Bound) -> Option<Vec<usize>> {
    ty.axes.values().map(|size| usize::try_from(size.evaluate(sizes)?).ok()).collect()
}

/// An array with the axes of a wider type.
fn spread(value: &Value, wide: &Ty, sizes: &Bound) -> Option<Array> {
    let shape = lengths(wide, sizes)?;
    let mut view = value.1.view();
    for (position, name) in wide.axes.keys().enumerate() {
        if !value.0.has(name) {
            view = view.insert_axis(Dim(position));
        }
    }
    Some(view.broadcast(shape)?.to_owned())
}

/// Reads an array whose axes lie in the order of `names` as a value of type `ty`.
fn sorted(array: Array, names: &[String], ty: Ty) -> Value {
    let positions: Vec<usize> =
        ty.axes.keys().map(|name| names.iter().position(|n| n == name).unwrap()).collect();
    let array = array.permuted_axes(positions).as_standard_layout().into_owned();
    (ty, array)
}

/// A head on values.
#[allow(clippy::too_many_lines, reason = "one arm per head")]
fn apply(head: &Head, children: &[Value], sizes: &Bound) -> Option<Value> {
    let types: Vec<&Ty> = children.iter().map(|(ty, _)| ty).collect();
    let ty = head.infer(&types)?;
    let names = |value: &Value| value.0.axes.keys().cloned().collect::<Vec<String>>();
    match head {
        Head::Leaf { .. } => None,
        Head::Fill { value, .. } => {
            let shape = lengths(&ty, sizes)?;
            Some((ty, Array::from_elem(shape, value.value(sizes)?)))
        }
        Head::Add | Head::Mul => {
            let a = spread(&children[0], &ty, sizes)?;
            let b = spread(&children[1], &ty, sizes)?;
            Some((ty, if *head == Head::Add { a + b } else { a * b }))
        }
        Head::Sum(over) => {
            let mut array = children[0].1.clone();
            for (position, name) in names(&children[0]).iter().enumerate().rev() {
                if over.contains(name) {
                    array = array.sum_axis(Dim(position));
                }
            }
            Some((ty, array))
        }
        Head::Concat(axis) => {
            let position = ty.axes.keys().position(|name| name == axis)?;
            let views: Vec<_> = children.iter().map(|(_, array)| array.view()).collect();
            Some((ty, ndarray::concatenate(Dim(position), &views).ok()?))
        }
        Head::Rename { from, to } => {
            let mut order = names(&children[0]);
            order.iter_mut().filter(|name| *name == from).for_each(|name| name.clone_from(to));
            Some(sorted(children[0].1.clone(), &order, ty))
        }
        Head::Split { axis, into } => {
            let (mut order, mut shape) = (Vec::new(), Vec::new());
            for (name, length) in names(&children[0]).into_iter().zip(children[0].1.shape()) {
                if name == *axis {
                    for part in into {
                        order.push(part.name.clone());
                        shape.push(part.size.evaluate(sizes)? as usize);
                    }
                } else {
                    order.push(name);
                    shape.push(*length);
                }
            }
            let array = children[0].1.clone().into_shape_with_order(shape).ok()?;
            Some(sorted(array, &order, ty))
        }
        Head::Merge { axes, into } => {
            let rest: Vec<String> =
                names(&children[0]).into_iter().filter(|name| !axes.contains(name)).collect();
            let order: Vec<String> = axes.iter().chain(&rest).cloned().collect();
            let array = stored(&children[0], &order);
            let mut shape = vec![array.shape().iter().take(axes.len()).product::<usize>()];
            shape.extend(array.shape().iter().skip(axes.len()));
            let merged: Vec<String> = std::iter::once(into.clone()).chain(rest).collect();
            Some(sorted(array.into_shape_with_order(shape).ok()?, &merged, ty))
        }
        Head::Slice { axis, start, len } => {
            let position = ty.axes.keys().position(|name| name == axis)?;
            let start = start.evaluate(sizes)? as isize;
            let end = start + len.evaluate(sizes)? as isize;
            let slice = ndarray::Slice::from(start..end);
            Some((ty, children[0].1.slice_axis(Dim(position), slice).to_owned()))
        }
        Head::Op { key, result } => {
            let (arg_types, arrays): (Vec<Type>, Vec<Array>) = if head.is_pointwise() {
                let wide = |child: &Value| {
                    let ty = joined(child.0.kind, &types)?;
                    Some((ty.stored(), spread(child, &ty, sizes)?))
                };
                children.iter().map(wide).collect::<Option<Vec<_>>>()?.into_iter().unzip()
            } else {
                let arranged = arranged(&key.op, &types);
                let arrays =
                    children.iter().zip(&arranged).map(|(c, t)| stored(c, &t.names())).collect();
                (arranged, arrays)
            };
            let refs: Vec<&Type> = arg_types.iter().collect();
            let results = key.op.def().infer(&refs).ok()?;
            let call = EvalCall {
                args: &arrays.iter().collect::<Vec<_>>(),
                arg_types: &refs,
                result_types: &results.iter().collect::<Vec<_>>(),
                sizes,
            };
            let arrays = key.op.def().eval(&call).ok()?;
            Some(unordered(&results[*result], &arrays[*result], sizes))
        }
        Head::Quantize(bits) => {
            let whole = |x: f64| {
                lightc_numerics::fixed::value(lightc_numerics::fixed::quantize(x, *bits).0, *bits)
            };
            Some((ty, children[0].1.mapv(whole)))
        }
        // Without the rounding, for which a test of its own stands.
        Head::Step(step) => {
            let a = f64::from(step.numerator) / f64::from(1 << step.bits);
            let of = |index: usize| spread(&children[index], &ty, sizes);
            let (before, now, gate, force) = (of(0)?, of(1)?, of(2)?, of(3)?);
            let push = (force - &now) * gate * f64::from_bits(step.weight);
            Some((ty, before * a + now * (1.0 - a) + push))
        }
    }
}
