//! Evaluates a box of a rule's elements, pulling what it needs from the source.
//!
//! Structural rules move no data of their own: each passes a box of what it is made of and the
//! place where those elements go, so that a copied tensor is read straight to where it is
//! written from. Arithmetic happens in f64 on dense boxes, and is rounded once, where it goes to a
//! buffer of stored elements.

mod axes;
mod compute;
mod mode;

use crate::error::Result;
use crate::node::{Kind, Node};
use crate::number;
use crate::region::{Region, View, at, copy, strides};
use axes::{gathered, merge, picked, split};
use compute::compute;
use mode::{Mode, Raw, Values};
use safetensors::Dtype;

/// Positions are followed one by one where at least this many bytes lie together at each.
const RUN_BYTES: usize = 4096;
/// How many times more than wanted may be read to read it at once.
const WASTE: usize = 8;
/// Most bytes of a source tensor that are read at once.
const READ_BYTES: usize = 4 << 20;
/// Elements per block of a pass over a whole rule.
const PASS: usize = 1 << 18;

/// The tensors of the source.
pub(crate) trait Tensors: Sync {
    /// Size per axis.
    fn shape(&self, tensor: usize) -> &[usize];
    /// Element type.
    fn dtype(&self, tensor: usize) -> Dtype;
    /// Fills a buffer with the raw elements from byte `offset` on.
    fn read(&self, tensor: usize, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// What every evaluation needs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) tensors: &'a dyn Tensors,
    /// Seed of all draws.
    pub(crate) seed: u64,
}

/// The elements of a box as they are stored, row-major.
pub(crate) fn raw(
    context: Context<'_>,
    node: &Node,
    region: &Region,
    dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let view = View::dense(&region.len, number::width(dtype));
    fill(Raw(dtype), context, node, region, out, &view)
}

/// The elements of a box as values, row-major.
pub(crate) fn values(context: Context<'_>, node: &Node, region: &Region) -> Result<Vec<f64>> {
    dense(Values, context, node, region)
}

fn dense<M: Mode>(
    mode: M,
    context: Context<'_>,
    node: &Node,
    region: &Region,
) -> Result<Vec<M::Place>> {
    let mut out = vec![M::Place::default(); region.n_elements() * mode.unit()];
    fill(mode, context, node, region, &mut out, &View::dense(&region.len, mode.unit()))?;
    Ok(out)
}

/// Puts a box of a node's elements where `view` says.
fn fill<M: Mode>(
    mode: M,
    context: Context<'_>,
    node: &Node,
    region: &Region,
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    if region.n_elements() == 0 {
        return Ok(());
    }
    match &node.kind {
        Kind::Source(tensor) => source(mode, context, *tensor, region, out, view),
        Kind::Slice { of, axis, start } => {
            let (from, len) = region.along(*axis);
            fill(mode, context, of, &region.with(*axis, from + start, len), out, view)
        }
        Kind::Concat { parts, axis } => {
            let (from, len) = region.along(*axis);
            let mut begin = 0;
            for part in parts {
                let end = begin + at(&part.shape, *axis);
                let (low, high) = (from.max(begin), (from + len).min(end));
                if low < high {
                    let region = region.with(*axis, low - begin, high - low);
                    fill(mode, context, part, &region, out, &view.shifted(*axis, low - from))?;
                }
                begin = end;
            }
            Ok(())
        }
        Kind::Tile { of, axis } => {
            let (from, len) = region.along(*axis);
            let size = at(&of.shape, *axis).max(1);
            let mut done = 0;
            while done < len {
                let begin = (from + done) % size;
                let n = (size - begin).min(len - done);
                let region = region.with(*axis, begin, n);
                fill(mode, context, of, &region, out, &view.shifted(*axis, done))?;
                done += n;
            }
            Ok(())
        }
        Kind::Interleave { of, axis, times } => {
            let (from, len) = region.along(*axis);
            let positions: Vec<usize> = (from..from + len).map(|i| i / times).collect();
            gathered(mode, context, of, region, *axis, &positions, out, view)
        }
        Kind::Repeat { of, axis } => {
            let (_, len) = region.along(*axis);
            let below = region.without(*axis);
            let found = dense(mode, context, of, &below)?;
            let from = View::dense(&below.len, mode.unit());
            for position in 0..len {
                let to = view.shifted(*axis, position).without(*axis);
                copy(&found, &from, out, &to, &below.len, mode.unit());
            }
            Ok(())
        }
        Kind::Pick { of, axis, positions } => {
            let (from, len) = region.along(*axis);
            let positions = positions.get(from..from + len).unwrap_or_default();
            picked(mode, context, of, region, *axis, positions, out, view)
        }
        Kind::PickEach { of, axis, each, positions } => {
            let (first, n) = region.along(*each);
            let (from, len) = region.along(*axis);
            let below = region.without(*each);
            let inner = if axis > each { axis - 1 } else { *axis };
            for position in 0..n {
                let list = positions.get(first + position).map(Vec::as_slice).unwrap_or_default();
                let list = list.get(from..from + len).unwrap_or_default();
                let to = view.shifted(*each, position).without(*each);
                picked(mode, context, of, &below, inner, list, out, &to)?;
            }
            Ok(())
        }
        Kind::Permute { of, order } => {
            let mut below = region.clone();
            let mut to = view.clone();
            for (axis, of_axis) in order.iter().enumerate() {
                let (start, len) = region.along(axis);
                below = below.with(*of_axis, start, len);
                if let Some(stride) = to.strides.get_mut(*of_axis) {
                    *stride = at(&view.strides, axis);
                }
            }
            fill(mode, context, of, &below, out, &to)
        }
        Kind::Split { of, axis, n_parts } => {
            let sizes = node.shape.get(*axis..axis + n_parts).unwrap_or_default();
            split(mode, context, of, region, *axis, sizes, out, view)
        }
        Kind::Merge { of, axis, n_parts } => {
            let sizes = of.shape.get(*axis..axis + n_parts).unwrap_or_default();
            merge(mode, context, of, region, *axis, sizes, out, view)
        }
        _ => {
            let computed = mode.encode(compute(context, node, region)?);
            let from = View::dense(&region.len, mode.unit());
            copy(&computed, &from, out, view, &region.len, mode.unit());
            Ok(())
        }
    }
}

/// A box of a source tensor.
fn source<M: Mode>(
    mode: M,
    context: Context<'_>,
    tensor: usize,
    region: &Region,
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    let (shape, dtype) = (context.tensors.shape(tensor), context.tensors.dtype(tensor));
    let width = number::width(dtype);
    let strides = strides(shape);
    let unit = mode.unit();
    let is_straight = |n_outer: usize| {
        let len = region.len.get(n_outer..).unwrap_or_default();
        let to = view.strides.get(n_outer..).unwrap_or_default();
        mode.takes_raw(dtype)
            && span(&region.len, &strides, n_outer) == len.iter().product::<usize>()
            && same_strides(len, to, &View::dense(len, unit).strides)
    };
    // The axes before `n_outer` are followed one position at a time; the rest is read at once.
    let mut n_outer = 0;
    while n_outer + 1 < shape.len() && !is_straight(n_outer) {
        let span = span(&region.len, &strides, n_outer) * width;
        let wanted = region.len.iter().skip(n_outer).product::<usize>() * width;
        if span <= READ_BYTES && span <= wanted * WASTE {
            break;
        }
        n_outer += 1;
    }
    let is_straight = is_straight(n_outer);
    let inner_len = region.len.get(n_outer..).unwrap_or_default();
    let outer = Region {
        start: region.start.get(..n_outer).unwrap_or_default().to_vec(),
        len: region.len.get(..n_outer).unwrap_or_default().to_vec(),
    };
    let span = span(&region.len, &strides, n_outer);
    let inner_start: usize =
        region.start.iter().zip(&strides).skip(n_outer).map(|(i, s)| i * s).sum();
    let n_wanted: usize = inner_len.iter().product();
    let inner_strides = strides.get(n_outer..).unwrap_or_default();
    let out_strides = view.strides.get(n_outer..).unwrap_or_default();
    let mut bytes = vec![0; if is_straight { 0 } else { span * width }];
    let mut places = vec![M::Place::default(); if is_straight { 0 } else { span * mode.unit() }];
    let from = View {
        offset: 0,
        strides: inner_strides.iter().map(|stride| stride * mode.unit()).collect(),
    };
    let mut failed = None;
    for_each(&outer, |index| {
        let place: usize = index
            .iter()
            .zip(&outer.start)
            .map(|(i, s)| i + s)
            .zip(&strides)
            .map(|(i, s)| i * s)
            .sum();
        let offset = ((place + inner_start) * width) as u64;
        let target: usize = view.offset
            + index.iter().zip(&view.strides).map(|(i, stride)| i * stride).sum::<usize>();
        if is_straight {
            let range = target..target + n_wanted * mode.unit();
            if let Some(buffer) = out.get_mut(range).and_then(M::bytes) {
                return context
                    .tensors
                    .read(tensor, offset, buffer)
                    .map_err(|e| failed = Some(e))
                    .is_ok();
            }
        }
        if let Err(error) = context.tensors.read(tensor, offset, &mut bytes) {
            failed = Some(error);
            return false;
        }
        mode.decode(dtype, &bytes, &mut places);
        let to = View { offset: target, strides: out_strides.to_vec() };
        copy(&places, &from, out, &to, inner_len, mode.unit());
        true
    });
    failed.map_or(Ok(()), Err)
}

/// Elements from the first to the last of a box over the axes from `n_outer` on.
fn span(len: &[usize], strides: &[usize], n_outer: usize) -> usize {
    1 + len.iter().zip(strides).skip(n_outer).map(|(n, s)| (n.max(&1) - 1) * s).sum::<usize>()
}

fn same_strides(len: &[usize], a: &[usize], b: &[usize]) -> bool {
    len.iter().zip(a).zip(b).all(|((n, a), b)| *n == 1 || a == b)
}

/// Calls `f` with every index of a box, counted from its start, until it says no.
fn for_each(region: &Region, mut f: impl FnMut(&[usize]) -> bool) {
    let mut index = vec![0; region.len.len()];
    loop {
        if !f(&index) {
            return;
        }
        let mut axis = index.len();
        loop {
            let Some(next) = axis.checked_sub(1) else { return };
            axis = next;
            let Some(place) = index.get_mut(axis) else { return };
            if *place + 1 < at(&region.len, axis) {
                *place += 1;
                break;
            }
            *place = 0;
        }
    }
}

/// Boxes of at most `n_elements` elements (but at least one row of the last axis or its part), each
/// a row-major run of the whole, in order.
pub(crate) fn blocks(shape: &[usize], n_elements: usize) -> impl Iterator<Item = Region> {
    let shape = shape.to_vec();
    let strides = strides(&shape);
    // The axis that is cut; those before it are followed one position at a time.
    let cut = strides.iter().position(|stride| *stride <= n_elements.max(1)).unwrap_or(0);
    let size = shape.get(cut).copied().unwrap_or(1);
    let per_block = (n_elements / at(&strides, cut).max(1)).clamp(1, size.max(1));
    let n_blocks = size.div_ceil(per_block);
    let n_outer: usize = shape.iter().take(cut).product();
    (0..n_outer * n_blocks).map(move |block| {
        let (mut outer, part) = (block / n_blocks, block % n_blocks);
        let mut region = Region::whole(&shape);
        for axis in (0..cut.min(shape.len())).rev() {
            let size = at(&shape, axis).max(1);
            region = region.with(axis, outer % size, 1);
            outer /= size;
        }
        if shape.is_empty() {
            return region;
        }
        let start = part * per_block;
        region.with(cut, start, per_block.min(size - start))
    })
}

#[cfg(test)]
#[path = "eval_tests.rs"]
mod tests;
