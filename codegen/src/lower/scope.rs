//! Size expressions inside forward bodies.

use crate::ops::TypeError;
use lightc_dsl::ast::{BinaryOp, Expr, ExprKind};
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// Evaluates a size expression: axis names, whole numbers, `+ - * /`.
pub(super) fn size_of(expr: &Expr, axes: &BTreeMap<String, Size>) -> Result<Size, TypeError> {
    let overflow = || {
        TypeError::new("E0308", "the size is over the limit of 2^63")
            .with_help("use smaller numbers or fewer factors")
    };
    match &expr.kind {
        ExprKind::Number { value, text } => whole(*value, text),
        ExprKind::Name(name) => axes.get(name).cloned().ok_or_else(|| unknown_axis(name, axes)),
        ExprKind::Negate(inner) => {
            Size::constant(0).checked_sub(&size_of(inner, axes)?).ok_or_else(overflow)
        }
        ExprKind::Binary(op, left, right) => {
            let (left, right) = (size_of(left, axes)?, size_of(right, axes)?);
            match op {
                BinaryOp::Add => left.checked_add(&right).ok_or_else(overflow),
                BinaryOp::Sub => left.checked_sub(&right).ok_or_else(overflow),
                BinaryOp::Mul => left.checked_mul(&right).ok_or_else(overflow),
                BinaryOp::Div => left.exact_div(&right).ok_or_else(|| {
                    TypeError::new("E0306", format!("size {left} does not divide by {right}"))
                        .with_help(
                            "every term of the size has to hold the divisor, whatever the names \
                             stand for",
                        )
                }),
                _ => Err(not_a_size()),
            }
        }
        ExprKind::Call { .. } | ExprKind::List(_) => Err(not_a_size()),
    }
}

fn not_a_size() -> TypeError {
    TypeError::new("E0405", "this is not a size")
        .with_help("a size is made of axis names, whole numbers and `+ - * /`")
}

#[allow(clippy::cast_possible_truncation)]
fn whole(value: f64, text: &str) -> Result<Size, TypeError> {
    if value.fract() != 0.0 {
        let error = TypeError::new("E0306", format!("a size is a whole number, here is {text}"));
        return Err(error.with_help("a size counts positions: write a whole number"));
    }
    // Every whole number up to 2^53 is one f64 and no other.
    if value.abs() > 9_007_199_254_740_992.0 {
        let error = TypeError::new("E0308", format!("the size {text} is over the limit of 2^53"));
        return Err(error.with_help("write a smaller number"));
    }
    Ok(Size::constant(value as i64))
}

/// The error for an axis name that is not in scope.
pub(super) fn unknown_axis(name: &str, axes: &BTreeMap<String, Size>) -> TypeError {
    let known: Vec<&str> = axes.keys().map(String::as_str).collect();
    TypeError::new("E0407", unknown_axis_message(name)).with_help(format!(
        "axes in scope: {}; declare one with `axis {name} = ...`",
        known.join(", ")
    ))
}

/// The message of [`unknown_axis`].
pub(super) fn unknown_axis_message(name: &str) -> String {
    format!("axis `{name}` is not in scope")
}
