//! Contraction of two tensors, written with one letter per axis.
//!
//! Every contraction is brought to one of two forms, so that no general
//! einsum is needed: without a summed axis it is a broadcast product, with one
//! it is a (batched) matrix product of views `[batch, rows, inner]` and
//! `[batch, inner, columns]`. Copies happen only where axes that must be one
//! are not adjacent in memory.

use tch::Tensor;

use super::support::{Named, ensure, ensure_same_kind, op_error};
use super::{permute, shape};
use crate::Result;

const OP: &str = "contract";

/// `contract(a, b, "btd,fd->btf")`: letters name the dimensions of `a`, `b`
/// and the result in order. A letter missing from the result is summed; a
/// letter of both operands and the result is batch. No letter repeats within
/// one tensor, and equal letters have equal sizes (1 does not stretch).
pub fn contract(a: &Tensor, b: &Tensor, spec: &str) -> Result<Tensor> {
    let _ = ensure_same_kind(OP, &[a, b])?;
    let letters = Letters::parse(spec)?;
    letters.check(a, b, spec)?;
    let (a, a_axes) = sum_lone(a, letters.a, letters.b, letters.out)?;
    let (b, b_axes) = sum_lone(b, letters.b, letters.a, letters.out)?;
    if inner(&a_axes, &b_axes, letters.out).is_empty() {
        return product(&a, &a_axes, &b, &b_axes, letters.out);
    }
    // Putting the operand whose own axes come first in the result on the
    // left makes the final permutation the identity in the common cases.
    let own = letters.out.iter().find(|c| !(a_axes.contains(c) && b_axes.contains(c)));
    if own.is_some_and(|c| b_axes.contains(c)) {
        matrix_product(&b, &b_axes, &a, &a_axes, letters.out)
    } else {
        matrix_product(&a, &a_axes, &b, &b_axes, letters.out)
    }
}

struct Letters<'a> {
    a: &'a [u8],
    b: &'a [u8],
    out: &'a [u8],
}

impl<'a> Letters<'a> {
    fn parse(spec: &'a str) -> Result<Letters<'a>> {
        let split = spec.split_once("->").and_then(|(ab, out)| {
            let (a, b) = ab.split_once(',')?;
            Some(Letters { a: a.as_bytes(), b: b.as_bytes(), out: out.as_bytes() })
        });
        let letters = split
            .ok_or_else(|| op_error(OP, format!("{spec:?} is not of the form \"ab,bc->ac\"")))?;
        for axes in [letters.a, letters.b, letters.out] {
            let repeats = axes.iter().enumerate().any(|(i, c)| axes[..i].contains(c));
            let plain = axes.iter().all(u8::is_ascii_alphabetic);
            ensure(plain && !repeats, OP, || format!("a doubled or odd letter in {spec:?}"))?;
        }
        let known = letters.out.iter().all(|c| letters.a.contains(c) || letters.b.contains(c));
        ensure(known, OP, || format!("a letter of the result is in no operand: {spec:?}"))?;
        Ok(letters)
    }

    fn check(&self, a: &Tensor, b: &Tensor, spec: &str) -> Result<()> {
        let (a_size, b_size) = (a.size(), b.size());
        ensure(a_size.len() == self.a.len() && b_size.len() == self.b.len(), OP, || {
            format!("{spec:?} does not fit shapes {a_size:?} and {b_size:?}")
        })?;
        for (c, n) in self.a.iter().zip(&a_size) {
            let other = self.b.iter().position(|d| d == c).map_or(*n, |at| b_size[at]);
            ensure(other == *n, OP, || {
                format!(
                    "{spec:?}: axis {} is {n} in {a_size:?} and {other} in {b_size:?}",
                    *c as char
                )
            })?;
        }
        Ok(())
    }
}

/// Sums the axes that only `x` has and the result has not.
fn sum_lone(x: &Tensor, axes: &[u8], other: &[u8], out: &[u8]) -> Result<(Tensor, Vec<u8>)> {
    let lone = |c: &u8| !other.contains(c) && !out.contains(c);
    let dims: Vec<i64> = (0..).zip(axes).filter(|(_, c)| lone(c)).map(|(dim, _)| dim).collect();
    let kept = axes.iter().copied().filter(|c| !lone(c)).collect();
    Ok((super::sum(x, &dims)?, kept))
}

fn inner(a: &[u8], b: &[u8], out: &[u8]) -> Vec<u8> {
    a.iter().copied().filter(|c| b.contains(c) && !out.contains(c)).collect()
}

/// Where each letter of `order` stands in `axes`; -1 where it does not.
fn places(order: &[u8], axes: &[u8]) -> Vec<i64> {
    order.iter().map(|c| axes.iter().position(|d| d == c).map_or(-1, |at| at as i64)).collect()
}

fn product(a: &Tensor, a_axes: &[u8], b: &Tensor, b_axes: &[u8], out: &[u8]) -> Result<Tensor> {
    let a = shape::align(a, &places(out, a_axes))?;
    let b = shape::align(b, &places(out, b_axes))?;
    a.f_mul(&b).named(OP, &[&a, &b])
}

fn matrix_product(
    a: &Tensor,
    a_axes: &[u8],
    b: &Tensor,
    b_axes: &[u8],
    out: &[u8],
) -> Result<Tensor> {
    let both = |c: &u8| a_axes.contains(c) && b_axes.contains(c);
    let batch: Vec<u8> = out.iter().copied().filter(both).collect();
    let rows: Vec<u8> = out.iter().copied().filter(|c| a_axes.contains(c) && !both(c)).collect();
    let columns: Vec<u8> = out.iter().copied().filter(|c| b_axes.contains(c) && !both(c)).collect();
    // The inner axes in the order of the larger operand, which then is a view.
    let inner = if a.numel() >= b.numel() {
        inner(a_axes, b_axes, out)
    } else {
        inner(b_axes, a_axes, out)
    };
    let left = grouped(a, a_axes, [&batch, &rows, &inner])?;
    let right = grouped(b, b_axes, [&batch, &inner, &columns])?;
    let result = if batch.is_empty() {
        left.f_squeeze_dim(0)?.f_mm(&right.f_squeeze_dim(0)?).named(OP, &[a, b])?
    } else {
        left.f_bmm(&right).named(OP, &[a, b])?
    };
    let axes = [batch, rows, columns].concat();
    let (a_size, b_size) = (a.size(), b.size());
    let size: Vec<i64> = axes
        .iter()
        .map(|c| match a_axes.iter().position(|d| d == c) {
            Some(at) => a_size[at],
            None => b_axes.iter().position(|d| d == c).map_or(1, |at| b_size[at]),
        })
        .collect();
    permute(&result.f_reshape(&size)?, &places(out, &axes))
}

/// `x` with its axes in three groups, each merged into one dimension.
fn grouped(x: &Tensor, axes: &[u8], groups: [&[u8]; 3]) -> Result<Tensor> {
    let ordered = permute(x, &places(&groups.concat(), axes))?;
    let size = ordered.size();
    let mut at = 0;
    let merged = groups.map(|group| {
        let n: i64 = size[at..at + group.len()].iter().product();
        at += group.len();
        n
    });
    Ok(ordered.f_reshape(merged)?)
}

/// The same by libtorch's einsum: the reference for tests.
pub fn contract_composite(a: &Tensor, b: &Tensor, spec: &str) -> Result<Tensor> {
    Tensor::f_einsum(spec, &[a, b], None::<i64>).named(OP, &[a, b])
}
