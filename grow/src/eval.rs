//! Evaluates a box of a rule's elements, pulling what it needs from the source.
//!
//! Structural rules move no data of their own: each passes a box of what it is made of and the
//! place where those elements go, so that a copied tensor is read straight to where it is
//! written from. Arithmetic happens in f64 on dense boxes, and is rounded once, where it goes to a
//! buffer of stored elements.

use crate::error::Result;
use crate::node::{Keeps, Kind, Lazy, Moments, Node, Rest};
use crate::number;
use crate::region::{Region, View, at, copy, strides};
use lightc_numerics::draw::{Law, Stream};
use lightc_numerics::int8::{Format, Levels, quantize, value};
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

/// What elements are evaluated to.
trait Mode: Copy {
    /// What a buffer is made of.
    type Place: Copy + Default;
    /// Places per element.
    fn unit(self) -> usize;
    /// Whether a tensor's raw elements are what is wanted.
    fn takes_raw(self, dtype: Dtype) -> bool;
    /// Raw elements to places.
    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [Self::Place]);
    /// Reads straight into places, where a place is a byte.
    fn bytes(out: &mut [Self::Place]) -> Option<&mut [u8]>;
    /// Computed values to places.
    fn encode(self, values: Vec<f64>) -> Vec<Self::Place>;
}

/// Raw elements of a dtype.
#[derive(Clone, Copy)]
struct Raw(Dtype);

/// Values.
#[derive(Clone, Copy)]
struct Values;

impl Mode for Raw {
    type Place = u8;

    fn unit(self) -> usize {
        number::width(self.0)
    }

    fn takes_raw(self, dtype: Dtype) -> bool {
        dtype == self.0
    }

    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [u8]) {
        let mut values = vec![0.0; bytes.len() / number::width(dtype)];
        number::read(dtype, bytes, &mut values);
        number::write(self.0, &values, out);
    }

    fn bytes(out: &mut [u8]) -> Option<&mut [u8]> {
        Some(out)
    }

    fn encode(self, values: Vec<f64>) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * self.unit()];
        number::write(self.0, &values, &mut bytes);
        bytes
    }
}

impl Mode for Values {
    type Place = f64;

    fn unit(self) -> usize {
        1
    }

    fn takes_raw(self, _: Dtype) -> bool {
        false
    }

    fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
        number::read(dtype, bytes, out);
    }

    fn bytes(_: &mut [f64]) -> Option<&mut [u8]> {
        None
    }

    fn encode(self, values: Vec<f64>) -> Vec<f64> {
        values
    }
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

/// The stated positions of an axis, each by itself or out of one read, whichever reads less.
#[allow(clippy::too_many_arguments, reason = "the place of a box has four parts")]
fn picked<M: Mode>(
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
fn gathered<M: Mode>(
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
fn split<M: Mode>(
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
fn merge<M: Mode>(
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

/// A box of an arithmetic node, dense.
fn compute(context: Context<'_>, node: &Node, region: &Region) -> Result<Vec<f64>> {
    match &node.kind {
        Kind::Fill(value) => Ok(vec![*value; region.n_elements()]),
        Kind::Draw { law, key } => Ok(drawn(context.seed, key, *law, &node.shape, region)),
        Kind::Scale { of, factor } => {
            let mut found = values(context, of, region)?;
            found.iter_mut().for_each(|value| *value *= factor);
            Ok(found)
        }
        Kind::Add(left, right) => {
            let mut found = values(context, left, region)?;
            let other = values(context, right, region)?;
            found.iter_mut().zip(other).for_each(|(value, other)| *value += other);
            Ok(found)
        }
        Kind::Keep { of, keeps, rest } => keep(context, of, keeps, rest, region),
        Kind::Noise { of, factor, key, moments } => {
            let std = moments_of(context, of, moments, None)?.std;
            let mut found = values(context, of, region)?;
            let law = Law::Normal { std: 1.0 };
            let noise = drawn(context.seed, key, law, &node.shape, region);
            let each = found.iter_mut().zip(noise);
            each.for_each(|(value, noise)| *value += factor * std * noise);
            Ok(found)
        }
        Kind::Rotate { of, axis, turn } => {
            along_axis(context, of, *axis, region, |line| turn.apply(line))
        }
        Kind::Codes { of, format } => Ok(codes(&rows(context, of, region)?, *format, region)),
        Kind::Scales { of, format } => {
            let mut wide = region.clone();
            wide.start.push(0);
            wide.len.push(1);
            Ok(scales(&rows(context, of, &wide)?, *format))
        }
        Kind::Dequantize { codes, scales, format } => {
            let last = region.len.len().saturating_sub(1);
            let codes = values(context, codes, region)?;
            let scales = values(context, scales, &region.without(last))?;
            let n = at(&node.shape, last);
            let levels = (*format == Format::Quantile8).then(|| Levels::of_length(n));
            let per_row = at(&region.len, last).max(1);
            let rows = codes.chunks(per_row).zip(scales);
            let each = rows.flat_map(|(codes, scale)| {
                let value = |code: &f64| value(*code as i8, scale as f32, levels.as_deref());
                codes.iter().map(value).collect::<Vec<f64>>()
            });
            // As the runtime reads it: rounded to f32.
            Ok(each.map(|value| f64::from(value as f32)).collect())
        }
        Kind::Mean { of, axis } => along_axis(context, of, *axis, region, |line| {
            let mean = line.iter().sum::<f64>() / line.len() as f64;
            line.fill(mean);
        }),
        _ => values(context, node, region),
    }
}

/// Whole rows of the last axis, in f32: what is quantized.
struct Rows {
    n: usize,
    values: Vec<f32>,
}

/// The whole rows that a box has a part of.
fn rows(context: Context<'_>, of: &Node, region: &Region) -> Result<Rows> {
    let last = of.shape.len().saturating_sub(1);
    let n = at(&of.shape, last).max(1);
    let found = values(context, of, &region.with(last, 0, n))?;
    Ok(Rows { n, values: found.into_iter().map(|value| value as f32).collect() })
}

/// The codes of a box. Where a row has none, its scale says so.
fn codes(rows: &Rows, format: Format, region: &Region) -> Vec<f64> {
    let (start, len) = region.along(region.len.len().saturating_sub(1));
    let each = rows.values.chunks(rows.n).flat_map(|row| match quantize(format, row, rows.n) {
        Ok(quantized) => quantized.codes,
        Err(_) => vec![0; rows.n],
    });
    let all: Vec<f64> = each.map(f64::from).collect();
    let parts = all.chunks(rows.n).flat_map(|row| row.iter().skip(start).take(len).copied());
    parts.collect()
}

/// The scale of each row; NaN where a row has none.
fn scales(rows: &Rows, format: Format) -> Vec<f64> {
    let scale = |row: &[f32]| {
        let quantized = quantize(format, row, rows.n).ok();
        quantized.and_then(|q| q.scales.first().copied()).map_or(f64::NAN, f64::from)
    };
    rows.values.chunks(rows.n).map(scale).collect()
}

/// Elements of a stream, which is indexed by the row-major position in the whole.
fn drawn(seed: u64, key: &str, law: Law, shape: &[usize], region: &Region) -> Vec<f64> {
    let mut stream = Stream::new(seed, key);
    let mut values = Vec::with_capacity(region.n_elements());
    region.runs(shape, |position, n| values.extend(stream.range(law, position, n)));
    values
}

/// Evaluates a box with the whole of one axis, changes each line along it, and cuts the box out.
fn along_axis(
    context: Context<'_>,
    of: &Node,
    axis: usize,
    region: &Region,
    change: impl Fn(&mut [f64]),
) -> Result<Vec<f64>> {
    let size = at(&of.shape, axis);
    let (start, len) = region.along(axis);
    let whole = region.with(axis, 0, size);
    let found = values(context, of, &whole)?;
    let stride: usize = region.len.iter().skip(axis + 1).product();
    let n_outer: usize = region.len.iter().take(axis).product();
    let mut out = vec![0.0; region.n_elements()];
    let mut line = vec![0.0; size];
    for outer in 0..n_outer {
        for inner in 0..stride {
            let from = found.iter().skip(outer * size * stride + inner).step_by(stride.max(1));
            line.iter_mut().zip(from).for_each(|(place, value)| *place = *value);
            change(&mut line);
            let to = out.iter_mut().skip(outer * len * stride + inner).step_by(stride.max(1));
            to.zip(line.iter().skip(start).take(len)).for_each(|(place, value)| *place = *value);
        }
    }
    Ok(out)
}

fn keep(
    context: Context<'_>,
    of: &Node,
    keeps: &Keeps,
    rest: &Rest,
    region: &Region,
) -> Result<Vec<f64>> {
    let mut found = values(context, of, region)?;
    let other = match rest {
        Rest::Zero => vec![0.0; found.len()],
        Rest::Drawn { key, moments } => {
            let Moments { mean, std } = moments_of(context, of, moments, Some(keeps))?;
            let law = Law::Normal { std: 1.0 };
            let normal = drawn(context.seed, key, law, &of.shape, region);
            normal.into_iter().map(|value| mean + std * value).collect()
        }
    };
    let mut places = found.iter_mut().zip(other);
    for_each(region, |index| {
        if let Some((value, other)) = places.next()
            && !is_kept(keeps, region, index)
        {
            *value = other;
        }
        true
    });
    Ok(found)
}

fn is_kept(keeps: &Keeps, region: &Region, index: &[usize]) -> bool {
    let position = |axis: usize| at(&region.start, axis) + at(index, axis);
    let list = keeps.kept.get(keeps.each.map_or(0, position));
    list.and_then(|list| list.get(position(keeps.axis))).copied().unwrap_or(true)
}

/// Mean and standard deviation, of all elements or of those that are not kept, in two passes in
/// row-major order.
fn moments_of(
    context: Context<'_>,
    of: &Node,
    moments: &Lazy,
    keeps: Option<&Keeps>,
) -> Result<Moments> {
    if let Some(moments) = moments.get() {
        return Ok(*moments);
    }
    let mut n = 0u64;
    let mut sum = 0.0;
    pass(context, of, keeps, &mut |value| {
        n += 1;
        sum += value;
    })?;
    let mean = if n == 0 { 0.0 } else { sum / n as f64 };
    let mut squares = 0.0;
    pass(context, of, keeps, &mut |value| squares += (value - mean) * (value - mean))?;
    let std = if n == 0 { 0.0 } else { (squares / n as f64).sqrt() };
    Ok(*moments.get_or_init(|| Moments { mean, std }))
}

fn pass(
    context: Context<'_>,
    of: &Node,
    keeps: Option<&Keeps>,
    take: &mut dyn FnMut(f64),
) -> Result<()> {
    for region in blocks(&of.shape, PASS) {
        let found = values(context, of, &region)?;
        let mut found = found.iter();
        for_each(&region, |index| {
            if let Some(value) = found.next()
                && keeps.is_none_or(|keeps| !is_kept(keeps, &region, index))
            {
                take(*value);
            }
            true
        });
    }
    Ok(())
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
