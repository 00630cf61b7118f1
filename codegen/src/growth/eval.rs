//! What rules mean: their values on arrays. The executor's streamed evaluation is tested against
//! this.

use super::rule::{Rule, RuleKind};
use super::{GrowthMap, TargetRule};
use crate::interp::Tensors;
use crate::ops::{Array, EvalError};
use lightc_dsl::size::Size;
use lightc_numerics::draw::{Law, Stream};
use lightc_numerics::hadamard::Hadamard;
use ndarray::{ArrayD, Axis, IxDyn, concatenate};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, EvalError>;

/// Where rules read: source tensors by path, open sizes by name, and the seed of draws.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Source parameters and states, or ports, by path.
    pub tensors: &'a Tensors,
    /// Values of open sizes.
    pub sizes: &'a BTreeMap<String, i64>,
    /// The map's.
    pub seed: u64,
}

/// All target parameters and states.
///
/// # Errors
/// A source tensor is missing or has another shape.
pub fn grow(
    map: &GrowthMap,
    params: &Tensors,
    states: &Tensors,
    sizes: &BTreeMap<String, i64>,
) -> Result<(Tensors, Tensors)> {
    let make = |rules: &[TargetRule], tensors: &Tensors| {
        let sources = Sources { tensors, sizes, seed: map.seed };
        let made = rules.iter().map(|r| Ok((r.path.clone(), value(&r.rule, sources)?)));
        made.collect::<Result<Tensors>>()
    };
    Ok((make(&map.params, params)?, make(&map.states, states)?))
}

/// The values of one rule.
///
/// # Errors
/// As [`grow`].
pub fn value(rule: &Rule, from: Sources<'_>) -> Result<Array> {
    let shape = shape(rule, from)?;
    let array = kind(rule, &shape, from)?;
    if array.shape() == shape {
        return Ok(array);
    }
    Err(EvalError(format!("a rule gives shape {:?} for {}", array.shape(), rule.ty)))
}

fn length(size: &Size, from: Sources<'_>) -> Result<usize> {
    let value = size.evaluate(from.sizes).and_then(|n| usize::try_from(n).ok());
    value.ok_or_else(|| EvalError(format!("size {size} has no value")))
}

fn shape(rule: &Rule, from: Sources<'_>) -> Result<Vec<usize>> {
    rule.ty.axes.iter().map(|axis| length(&axis.size, from)).collect()
}

fn position(rule: &Rule, axis: &str) -> Result<usize> {
    rule.ty.position(axis).ok_or_else(|| EvalError(format!("{} has no axis `{axis}`", rule.ty)))
}

fn kind(rule: &Rule, shape: &[usize], from: Sources<'_>) -> Result<Array> {
    let filled = |law: Law, key: &str| {
        let n = shape.iter().product();
        array(shape, Stream::new(from.seed, key).fill(law, n))
    };
    match &rule.kind {
        RuleKind::Source { path } => {
            let found = from.tensors.get(path);
            found.cloned().ok_or_else(|| EvalError(format!("the source has no `{path}`")))
        }
        RuleKind::Fill { value } => Ok(ArrayD::from_elem(IxDyn(shape), *value)),
        RuleKind::Draw { law, key } => filled(*law, key),
        RuleKind::Scale { of, factor } => {
            let factor = factor.evaluate(from.sizes);
            let factor = factor.ok_or_else(|| EvalError("a factor has no value".into()))?;
            Ok(value(of, from)? * factor)
        }
        RuleKind::Add { left, right } => Ok(value(left, from)? + value(right, from)?),
        RuleKind::Concat { parts, axis } => {
            let at = Axis(position(rule, axis)?);
            let parts = parts.iter().map(|part| value(part, from)).collect::<Result<Vec<_>>>()?;
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(at, &views).map_err(|error| EvalError(error.to_string()))
        }
        RuleKind::Tile { of, axis } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            let n = of.shape().get(at).copied().unwrap_or(1);
            Ok(of.select(Axis(at), &indices(shape, at, |i| i % n)))
        }
        RuleKind::Interleave { of, axis } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            let n = of.shape().get(at).copied().unwrap_or(1);
            let times = shape.get(at).copied().unwrap_or(1) / n.max(1);
            Ok(of.select(Axis(at), &indices(shape, at, |i| i / times.max(1))))
        }
        RuleKind::Repeat { of, axis } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            let one = of.insert_axis(Axis(at));
            let all = one.broadcast(IxDyn(shape));
            all.map(|view| view.to_owned()).ok_or_else(|| EvalError("a repeat does not fit".into()))
        }
        RuleKind::Slice { of, axis, start } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            let start = length(start, from)?;
            take(&of, at, &indices(shape, at, |i| start + i))
        }
        RuleKind::Select { of, axis, positions } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            let positions: Vec<usize> = positions.iter().map(|p| *p as usize).collect();
            take(&of, at, &positions)
        }
        RuleKind::Subset { of, axis, each, key } => {
            subset(rule, &value(of, from)?, axis, each.as_deref(), key, shape, from.seed)
        }
        RuleKind::Redraw { of, axis, keep, each, key, values } => {
            let of = value(of, from)?;
            let choice = Choice { axis, each: each.as_deref(), key, keep: length(keep, from)? };
            redraw(rule, of, &choice, values, from.seed)
        }
        RuleKind::Noise { of, factor, key } => {
            let of = value(of, from)?;
            let std = factor * moments(of.iter().copied()).1;
            Ok(of + filled(Law::Normal { std }, key)?)
        }
        RuleKind::Permute { of } => {
            let order = rule.ty.axes.iter().map(|axis| position(of, &axis.name));
            let order = order.collect::<Result<Vec<usize>>>()?;
            Ok(value(of, from)?.permuted_axes(order).as_standard_layout().into_owned())
        }
        RuleKind::Rename { of, .. } => value(of, from),
        RuleKind::Split { of, .. } | RuleKind::Merge { of, .. } => {
            array(shape, value(of, from)?.iter().copied().collect())
        }
        RuleKind::Rotate { of, axis, seed } => {
            let (of, at) = (value(of, from)?, position(rule, axis)?);
            rotate(of, at, *seed)
        }
    }
}

fn array(shape: &[usize], values: Vec<f64>) -> Result<Array> {
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|error| EvalError(error.to_string()))
}

fn indices(shape: &[usize], at: usize, f: impl Fn(usize) -> usize) -> Vec<usize> {
    (0..shape.get(at).copied().unwrap_or(0)).map(f).collect()
}

fn take(of: &Array, at: usize, positions: &[usize]) -> Result<Array> {
    let length = of.shape().get(at).copied().unwrap_or(0);
    match positions.iter().find(|p| **p >= length) {
        Some(p) => Err(EvalError(format!("position {p} of an axis of {length}"))),
        None => Ok(of.select(Axis(at), positions)),
    }
}

/// The first `n` positions of the permutation of `0 .. length` that a stream gives.
fn chosen(seed: u64, key: &str, length: usize, n: usize) -> Vec<usize> {
    let order = Stream::new(seed, key).permutation(length);
    order.into_iter().take(n).map(|position| position as usize).collect()
}

fn subset(
    rule: &Rule,
    of: &Array,
    axis: &str,
    each: Option<&str>,
    key: &str,
    shape: &[usize],
    seed: u64,
) -> Result<Array> {
    let at = position(rule, axis)?;
    let n = shape.get(at).copied().unwrap_or(0);
    let Some(each) = each else {
        let length = of.shape().get(at).copied().unwrap_or(0);
        return Ok(of.select(Axis(at), &chosen(seed, key, length, n)));
    };
    let outer = position(rule, each)?;
    // The source lacks `each`: its axis stands one further to the front there.
    let inner = if outer < at { at - 1 } else { at };
    let length = of.shape().get(inner).copied().unwrap_or(0);
    let parts: Vec<Array> = (0..shape.get(outer).copied().unwrap_or(0))
        .map(|e| of.select(Axis(inner), &chosen(seed, &format!("{key}.{e}"), length, n)))
        .collect();
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    ndarray::stack(Axis(outer), &views).map_err(|error| EvalError(error.to_string()))
}

struct Choice<'a> {
    axis: &'a str,
    each: Option<&'a str>,
    key: &'a str,
    keep: usize,
}

/// New values are draw `i` of their stream, where `i` is the element's index in the whole tensor,
/// with mean and standard deviation of all entries that are replaced.
fn redraw(
    rule: &Rule,
    mut of: Array,
    choice: &Choice<'_>,
    values: &str,
    seed: u64,
) -> Result<Array> {
    let at = position(rule, choice.axis)?;
    let outer = choice.each.map(|each| position(rule, each)).transpose()?;
    let length = |axis: usize| of.shape().get(axis).copied().unwrap_or(0);
    let keep = |key: &str| {
        let mut kept = vec![false; length(at)];
        for position in chosen(seed, key, length(at), choice.keep) {
            if let Some(place) = kept.get_mut(position) {
                *place = true;
            }
        }
        kept
    };
    let kept: Vec<Vec<bool>> = match outer {
        None => vec![keep(choice.key)],
        Some(outer) => (0..length(outer)).map(|e| keep(&format!("{}.{e}", choice.key))).collect(),
    };
    let is_kept = |index: &IxDyn| {
        let part = outer.map_or(0, |outer| index[outer]);
        kept.get(part).and_then(|kept| kept.get(index[at])).copied().unwrap_or(false)
    };
    let replaced = of.indexed_iter().filter(|(index, _)| !is_kept(index)).map(|(_, v)| *v);
    let (mean, std) = moments(replaced);
    let draws = Stream::new(seed, values).fill(Law::Normal { std: 1.0 }, of.len());
    for ((index, value), draw) in of.indexed_iter_mut().zip(draws) {
        if !is_kept(&index) {
            *value = mean + std * draw;
        }
    }
    Ok(of)
}

/// Mean and standard deviation; both 0 of nothing.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    let variance = values.map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

fn rotate(mut of: Array, at: usize, seed: u64) -> Result<Array> {
    let n = of.shape().get(at).copied().unwrap_or(0);
    let turn = i64::try_from(seed).ok().and_then(|seed| Hadamard::new(seed, n));
    let turn =
        turn.ok_or_else(|| EvalError(format!("a turn over {n} positions: no power of two")))?;
    for mut lane in of.lanes_mut(Axis(at)) {
        let mut row = lane.to_vec();
        turn.apply(&mut row);
        lane.assign(&ndarray::Array1::from(row));
    }
    Ok(of)
}
