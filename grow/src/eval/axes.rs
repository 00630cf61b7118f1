//! Boxes of nodes that take positions of an axis, or make other axes.

use super::mode::Mode;
use super::{Context, RUN_BYTES, WASTE, dense, fill, for_each};
use crate::error::Result;
use crate::node::Node;
use crate::region::{Region, View, at, copy, strides};

/// The stated positions of an axis, each by itself or out of one read, whichever reads less.
#[allow(clippy::too_many_arguments, reason = "the place of a box has four parts")]
pub(super) fn picked<M: Mode>(
    mode: M,
    context: Context<'_>,
    of: &Node,
    region: &Region,
    axis: usize,
    positions: &[usize],
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    let inner: usize = region.len.iter().skip(axis + 1).product();
    let low = positions.iter().min().copied().unwrap_or(0);
    let high = positions.iter().max().map_or(0, |high| high + 1);
    if inner * 4 < RUN_BYTES && high - low <= positions.len() * WASTE {
        return gathered(mode, context, of, region, axis, positions, out, view);
    }
    let mut done = 0;
    while let Some(first) = positions.get(done) {
        let rest = positions.iter().skip(done).enumerate();
        let n = rest.take_while(|(i, position)| **position == first + i).count();
        let region = region.with(axis, *first, n);
        fill(mode, context, of, &region, out, &view.shifted(axis, done))?;
        done += n;
    }
    Ok(())
}

/// The stated positions of an axis out of one evaluation of the range that they span.
#[allow(clippy::too_many_arguments, reason = "the place of a box has four parts")]
pub(super) fn gathered<M: Mode>(
    mode: M,
    context: Context<'_>,
    of: &Node,
    region: &Region,
    axis: usize,
    positions: &[usize],
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    let low = positions.iter().min().copied().unwrap_or(0);
    let high = positions.iter().max().map_or(0, |high| high + 1);
    let below = region.with(axis, low, high - low);
    let found = dense(mode, context, of, &below)?;
    let from = View::dense(&below.len, mode.unit());
    let len = region.with(axis, 0, 1).len;
    for (done, position) in positions.iter().enumerate() {
        let (from, to) = (from.shifted(axis, position - low), view.shifted(axis, done));
        copy(&found, &from, out, &to, &len, mode.unit());
    }
    Ok(())
}

/// A box over the parts of an axis: one range of the axis per position of the parts before the
/// first that is not whole.
#[allow(clippy::too_many_arguments, reason = "the place of a box has four parts")]
pub(super) fn split<M: Mode>(
    mode: M,
    context: Context<'_>,
    of: &Node,
    region: &Region,
    axis: usize,
    sizes: &[usize],
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    let n_parts = sizes.len();
    let part_strides = strides(sizes);
    let mut n_outer = n_parts.saturating_sub(1);
    while n_outer > 0 && region.along(axis + n_outer) == (0, at(sizes, n_outer)) {
        n_outer -= 1;
    }
    let outer = Region {
        start: region.start.get(axis..axis + n_outer).unwrap_or_default().to_vec(),
        len: region.len.get(axis..axis + n_outer).unwrap_or_default().to_vec(),
    };
    let (first, n) = region.along(axis + n_outer);
    let inner = at(&part_strides, n_outer);
    let merged = |list: &[usize], value: usize| {
        let mut merged = list.get(..axis).unwrap_or_default().to_vec();
        merged.push(value);
        merged.extend(list.get(axis + n_parts..).unwrap_or_default());
        merged
    };
    let mut failed = None;
    for_each(&outer, |index| {
        let place: usize = index
            .iter()
            .zip(&outer.start)
            .map(|(i, s)| i + s)
            .zip(&part_strides)
            .map(|(i, s)| i * s)
            .sum();
        let below = Region {
            start: merged(&region.start, place + first * inner),
            len: merged(&region.len, n * inner),
        };
        let found = match dense(mode, context, of, &below) {
            Ok(found) => found,
            Err(error) => {
                failed = Some(error);
                return false;
            }
        };
        // The dense box, seen with the parts' axes.
        let mut len = region.len.clone();
        for (place, size) in len.iter_mut().skip(axis).take(n_outer).zip(std::iter::repeat(1)) {
            *place = size;
        }
        let offset =
            index.iter().enumerate().map(|(i, n)| n * at(&view.strides, axis + i)).sum::<usize>();
        let to = View { offset: view.offset + offset, strides: view.strides.clone() };
        copy(&found, &View::dense(&len, mode.unit()), out, &to, &len, mode.unit());
        true
    });
    failed.map_or(Ok(()), Err)
}

/// A range of a merged axis: the boxes over its parts that make it up.
#[allow(clippy::too_many_arguments, reason = "the place of a box has four parts")]
pub(super) fn merge<M: Mode>(
    mode: M,
    context: Context<'_>,
    of: &Node,
    region: &Region,
    axis: usize,
    sizes: &[usize],
    out: &mut [M::Place],
    view: &View,
) -> Result<()> {
    let (from, len) = region.along(axis);
    let mut boxes = Vec::new();
    boxes_of(from, from + len, sizes, &mut boxes);
    let part_strides = strides(sizes);
    let expanded = |list: &[usize], values: &[usize]| {
        let mut expanded = list.get(..axis).unwrap_or_default().to_vec();
        expanded.extend(values);
        expanded.extend(list.get(axis + 1..).unwrap_or_default());
        expanded
    };
    let stride = at(&view.strides, axis);
    let to_strides: Vec<usize> = part_strides.iter().map(|part| part * stride).collect();
    for ranges in boxes {
        let (start, len): (Vec<usize>, Vec<usize>) = ranges.into_iter().unzip();
        let place: usize = start.iter().zip(&part_strides).map(|(i, s)| i * s).sum();
        let below =
            Region { start: expanded(&region.start, &start), len: expanded(&region.len, &len) };
        let to = View {
            offset: view.offset + (place - from) * stride,
            strides: expanded(&view.strides, &to_strides),
        };
        fill(mode, context, of, &below, out, &to)?;
    }
    Ok(())
}

/// Cuts the row-major range `from..to` of a box of `sizes` into boxes, in order: start and length
/// per axis.
fn boxes_of(from: usize, to: usize, sizes: &[usize], boxes: &mut Vec<Vec<(usize, usize)>>) {
    let Some((_, rest)) = sizes.split_first() else { return };
    let inner: usize = rest.iter().product::<usize>().max(1);
    let mut add = |first: usize, n: usize, below: &[(usize, usize)]| {
        let mut whole = vec![(first, n)];
        whole.extend(below);
        boxes.push(whole);
    };
    let full: Vec<(usize, usize)> = rest.iter().map(|size| (0, *size)).collect();
    if rest.is_empty() {
        add(from, to - from, &[]);
        return;
    }
    let mut at = from;
    while at < to {
        let row = at / inner;
        if at.is_multiple_of(inner) && to - at >= inner {
            let n = (to - at) / inner;
            add(row, n, &full);
            at += n * inner;
            continue;
        }
        let end = to.min((row + 1) * inner);
        let mut below = Vec::new();
        boxes_of(at - row * inner, end - row * inner, rest, &mut below);
        for ranges in below {
            add(row, 1, &ranges);
        }
        at = end;
    }
}
