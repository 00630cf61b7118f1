//! Boxes of arithmetic nodes.

use super::{Context, PASS, blocks, for_each, values};
use crate::error::Result;
use crate::node::{Keeps, Kind, Lazy, Moments, Node, Rest};
use crate::region::{Region, at};
use lightc_numerics::draw::{Law, Stream};
use lightc_numerics::int8::{Format, Levels, quantize, value};

/// A box of an arithmetic node, dense.
pub(super) fn compute(context: Context<'_>, node: &Node, region: &Region) -> Result<Vec<f64>> {
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
pub(super) fn drawn(seed: u64, key: &str, law: Law, shape: &[usize], region: &Region) -> Vec<f64> {
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
