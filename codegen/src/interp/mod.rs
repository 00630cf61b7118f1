//! The interpreter: the meaning of the IR, in f64. Slow and plain on purpose.

use crate::ir::Type;
use crate::ops::{Array, EvalError};

/// Arranges an array with the axes of `from` for pointwise use in the shape of `to`: axes are
/// matched by name, axes that `from` lacks are repeated.
///
/// # Errors
/// If an axis of `from` is not in `to`, or a length differs.
pub fn align(array: &Array, from: &Type, to: &Type, shape: &[usize]) -> Result<Array, EvalError> {
    let mut order = Vec::new();
    for axis in &to.axes {
        if let Some(position) = from.position(&axis.name) {
            order.push(position);
        }
    }
    if order.len() != from.axes.len() {
        return Err(EvalError(format!("{from} does not align to {to}")));
    }
    let mut view = array.view().permuted_axes(order);
    for (position, axis) in to.axes.iter().enumerate() {
        if !from.has(&axis.name) {
            view = view.insert_axis(ndarray::Axis(position));
        }
    }
    let repeated = view
        .broadcast(shape.to_vec())
        .ok_or_else(|| EvalError(format!("{from} has not the lengths of {to}")))?;
    Ok(repeated.to_owned())
}
