//! Takes the norm out of narrow contractions.
//!
//! `dot(weight * (x * r), phi)`, where `r` does not depend on the summed axis, is
//! `r * dot(x, weight * phi)`. Narrow contractions that read one norm become one: their matrices are
//! stacked. So the norm of a hyper-connection, 16384 wide, is never written to memory: one product
//! reads the streams themselves.
//!
//! The roundings of the normed value to the compute precision move to the scaled matrix and to the
//! result; the precision of what is computed is the same.

use super::{Copy, Result, declarations, fault};
use crate::ir::{Function, Module, Node, Type, ValueId};
use crate::ops::{
    Binary, BinaryFn, Cast, Concat, Contract, Merge, Op, Permute, Rename, Slice, Split,
};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// Outputs of a contraction that is narrow, at most.
const MAX_OUTPUTS: i64 = 64;
/// Elements that it sums, at least: below, nothing is gained.
const MIN_SUMMED: i64 = 256;

/// The axis of the stacked matrices.
const STACKED: &str = "stacked";

/// Rewrites every function of a module that is not differentiated yet.
///
/// # Errors
/// A fault of this compiler.
pub fn fold(module: &mut Module) -> Result<()> {
    for function in &mut module.functions {
        let groups = groups(function);
        if !groups.is_empty() {
            *function = crate::ir::prune::prune_forward(rewrite(function, &groups)?);
        }
    }
    Ok(())
}

/// A value that is a norm: `weight * act(f32(x) * scale)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Norm {
    x: ValueId,
    scale: ValueId,
    weight: ValueId,
    /// The summed axis as `x` and `weight` name it.
    axis: String,
}

/// Contractions over one norm: their nodes, each with its matrix and what the axis is called there.
struct Group {
    norm: Norm,
    members: Vec<Member>,
}

struct Member {
    node: usize,
    matrix: ValueId,
    over: String,
}

fn groups(function: &Function) -> Vec<Group> {
    let mut found: BTreeMap<(ValueId, Norm), Vec<Member>> = BTreeMap::new();
    for (index, node) in function.nodes.iter().enumerate() {
        let Op::Contract(op) = &node.op else { continue };
        let ([over], [a, b]) = (op.over.as_slice(), node.args.as_slice()) else { continue };
        for (u, matrix) in [(*a, *b), (*b, *a)] {
            let is_param = matches!(function.definition(matrix).op, Op::ParamRef(_));
            if !is_param || !is_narrow(function.ty(matrix), over) {
                continue;
            }
            if let Some(norm) = norm_of(function, u, over) {
                let member = Member { node: index, matrix, over: over.clone() };
                found.entry((u, norm)).or_default().push(member);
                break;
            }
        }
    }
    found.into_iter().map(|((_, norm), members)| Group { norm, members }).collect()
}

/// Whether a matrix has few outputs per summed element, all of known size.
fn is_narrow(matrix: &Type, over: &str) -> bool {
    let size = |axis: &Axis| axis.size.as_constant();
    let outputs = matrix.axes.iter().filter(|axis| axis.name != over);
    let outputs = outputs.map(size).try_fold(1_i64, |product, n| product.checked_mul(n?));
    let summed = matrix.axis(over).and_then(size);
    outputs.is_some_and(|n| n <= MAX_OUTPUTS) && summed.is_some_and(|n| n >= MIN_SUMMED)
}

fn norm_of(function: &Function, u: ValueId, over: &str) -> Option<Norm> {
    let (u, axis) = behind_renames(function, u, over)?;
    let (unit, weight) = product(function, u, |weight| {
        weight.axes.len() == 1 && weight.has(&axis) && weight.dtype == DType::Act
    })?;
    let Op::Cast(Cast { to: DType::Act }) = function.definition(unit).op else { return None };
    let scaled = *function.definition(unit).args.first()?;
    let (wide, scale) = product(function, scaled, |scale| !scale.has(&axis))?;
    let Op::Cast(Cast { to: DType::F32 }) = function.definition(wide).op else { return None };
    let x = *function.definition(wide).args.first()?;
    Some(Norm { x, scale, weight, axis })
}

/// The value before renamings of the summed axis, and the axis's name there.
fn behind_renames(function: &Function, u: ValueId, over: &str) -> Option<(ValueId, String)> {
    let (mut u, mut axis) = (u, over.to_owned());
    while let Op::Rename(op) = &function.definition(u).op {
        if op.to != axis {
            return None;
        }
        axis.clone_from(&op.from);
        u = *function.definition(u).args.first()?;
    }
    Some((u, axis))
}

/// The factors of a product, the one of the wanted type second.
fn product(
    function: &Function,
    value: ValueId,
    wanted: impl Fn(&Type) -> bool,
) -> Option<(ValueId, ValueId)> {
    let node = function.definition(value);
    let Op::Binary(Binary { function: BinaryFn::Mul }) = node.op else { return None };
    let [a, b] = *node.args.as_slice() else { return None };
    if wanted(function.ty(b)) {
        return Some((a, b));
    }
    wanted(function.ty(a)).then_some((b, a))
}

fn rewrite(function: &Function, groups: &[Group]) -> Result<Function> {
    let none = BTreeMap::new();
    let mut copy = Copy::new(declarations(function));
    for (index, node) in function.nodes.iter().enumerate() {
        let first = |group: &&Group| group.members.first().is_some_and(|m| m.node == index);
        if let Some(group) = groups.iter().find(first) {
            write_group(&mut copy, function, group)?;
        }
        let replaced = groups.iter().flat_map(|group| &group.members).any(|m| m.node == index);
        // A group brings its matrices along.
        let known = node.results.first().is_some_and(|result| copy.map.contains_key(result));
        if !replaced && !known {
            copy.node(function, node, node.op.clone(), &none)?;
        }
    }
    copy.finish(function)?;
    Ok(copy.to)
}

/// Writes one product in place of the members of a group.
fn write_group(copy: &mut Copy, function: &Function, group: &Group) -> Result<()> {
    let norm = &group.norm;
    let (x, scale, weight) = (copy.at(norm.x)?, copy.at(norm.scale)?, copy.at(norm.weight)?);
    let mut parts = Vec::new();
    let mut ranges = Vec::new();
    let mut start = Size::constant(0);
    for member in &group.members {
        if !copy.map.contains_key(&member.matrix) {
            let node = function.definition(member.matrix);
            copy.node(function, node, node.op.clone(), &BTreeMap::new())?;
        }
        let matrix = copy.at(member.matrix)?;
        let part = stacked_part(&mut copy.to, matrix, weight, member, norm)?;
        let size = copy.to.ty(part).axis(STACKED).map(|axis| axis.size.clone());
        let end = size.and_then(|size| start.checked_add(&size));
        let end = end.ok_or_else(|| fault("a stacked matrix has no size"))?;
        ranges.push((start, end.clone()));
        start = end;
        parts.push(part);
    }
    let to = &mut copy.to;
    let stacked = match parts.as_slice() {
        [one] => *one,
        _ => {
            let concat = Concat { axis: STACKED.to_owned(), to: STACKED.to_owned() };
            to.push1(concat.into(), parts, None)?
        }
    };
    let contract = Contract { over: vec![norm.axis.clone()] };
    let span = group.members.first().and_then(|member| function.nodes.get(member.node)?.span);
    let dot = to.push1(contract.into(), vec![x, stacked], span)?;
    let wide = to.push1(Cast { to: DType::F32 }.into(), vec![dot], span)?;
    let scaled = to.push1(mul(), vec![wide, scale], span)?;
    let narrow = to.push1(Cast { to: DType::Act }.into(), vec![scaled], span)?;
    for (member, (start, end)) in group.members.iter().zip(ranges) {
        let Some(node) = function.nodes.get(member.node) else { continue };
        let value = unstacked(
            to,
            narrow,
            (start, end),
            function,
            node,
            function.ty(member.matrix),
            &member.over,
        )?;
        if let Some(result) = node.results.first() {
            if let Some(name) = &function.value(*result).name {
                to.name_value(value, name);
            }
            copy.map.insert(*result, value);
        }
    }
    Ok(())
}

fn mul() -> Op {
    Binary { function: BinaryFn::Mul }.into()
}

/// `weight * matrix` as `[stacked, axis]`.
fn stacked_part(
    to: &mut Function,
    matrix: ValueId,
    weight: ValueId,
    member: &Member,
    norm: &Norm,
) -> Result<ValueId> {
    let mut part = matrix;
    let mut order: Vec<String> = to.ty(part).names();
    order.retain(|name| *name != member.over);
    let outputs = order.clone();
    order.push(member.over.clone());
    if to.ty(part).names() != order {
        part = to.push1(Permute { order }.into(), vec![part], None)?;
    }
    if member.over != norm.axis {
        let rename = Rename { from: member.over.clone(), to: norm.axis.clone() };
        part = to.push1(rename.into(), vec![part], None)?;
    }
    part = to.push1(mul(), vec![part, weight], None)?;
    match outputs.as_slice() {
        [one] => {
            let rename = Rename { from: one.clone(), to: STACKED.to_owned() };
            to.push1(rename.into(), vec![part], None)
        }
        _ => {
            let merge = Merge { axes: outputs, into: STACKED.to_owned() };
            to.push1(merge.into(), vec![part], None)
        }
    }
}

/// A member's result out of the stacked one, of the type that it had.
fn unstacked(
    to: &mut Function,
    narrow: ValueId,
    (start, end): (Size, Size),
    function: &Function,
    node: &Node,
    matrix: &Type,
    over: &str,
) -> Result<ValueId> {
    let slice = Slice { axis: STACKED.to_owned(), start, end, to: STACKED.to_owned() };
    let mut value = to.push1(slice.into(), vec![narrow], node.span)?;
    let outputs: Vec<Axis> = matrix.axes.iter().filter(|axis| axis.name != over).cloned().collect();
    value = match outputs.as_slice() {
        [one] => {
            let rename = Rename { from: STACKED.to_owned(), to: one.name.clone() };
            to.push1(rename.into(), vec![value], node.span)?
        }
        _ => {
            let split = Split { axis: STACKED.to_owned(), into: outputs };
            to.push1(split.into(), vec![value], node.span)?
        }
    };
    let wanted = node.results.first().map(|result| function.ty(*result));
    let wanted = wanted.ok_or_else(|| fault("a contraction has no result"))?;
    if to.ty(value).names() != wanted.names() {
        value = to.push1(Permute { order: wanted.names() }.into(), vec![value], node.span)?;
    }
    if to.ty(value) == wanted {
        return Ok(value);
    }
    Err(fault(format!("a folded contraction is {}, not {wanted}", to.ty(value))))
}
