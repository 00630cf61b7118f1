//! Tile kernels of `kernels/*.cu`, launched.
//!
//! **Rule.** An op takes its tile kernel where its tensors are on a GPU, and its kinds and shapes are ones
//! that the kernel has: each `takes` below states them, and activations are bf16 unless it says otherwise. Everything else runs on libtorch.
//! Inputs that are not contiguous are copied. Which of the two runs is then a matter of
//! [`crate::cuda::Mode`] alone.

mod attention;
mod attention_gather;
mod combine;
mod delta;
mod draw;
mod fixed;
mod gather;
mod hadamard;
mod indexer;
mod loss;
mod low;
mod quantize;
mod routed;
mod routing;

pub(super) use attention::{attention, attention_grad, form_of, takes_attention};
pub(super) use combine::{takes_weigh, weigh};
pub(super) use delta::{delta_rule, delta_rule_grad, takes_delta_rule};
pub use draw::draw;
pub(super) use fixed::{
    pack_bools, state_before, state_cotangent, state_seed, state_start, state_step, state_value,
    takes_bits, takes_states, takes_value, unpack_bools,
};
pub(super) use gather::{gather, gather_grad, takes_gather};
pub(super) use hadamard::{hadamard, takes_hadamard};
pub(super) use indexer::{index, select, takes_index, takes_select};
pub(super) use loss::{Loss, cross_entropy, takes_cross_entropy};
pub(super) use low::{low, low_back, low_grad, takes_low, takes_low_back, takes_low_grad};
pub(super) use quantize::{
    dequantize, merge, quantize, takes_dequantize, takes_merge, takes_quantize,
};
pub(super) use routed::{
    dot as routed_dot, swiglu as routed_swiglu, takes_weight_grad, weight_grad,
};
pub(super) use routing::{
    Walk, count, order, take_rows, take_rows_grad, takes_order, takes_top, top,
};

use crate::error::Result;
use crate::{Error, Kind, Tensor};

/// Limits of tile kernels whose errors are not those of their results' kinds, by entry name.
///
/// Sums of bf16 products that cancel lose more than a bf16 result; a loss keeps the rounding of its
/// logits; a selection from scores that are rounded differs where two scores are nearly equal.
pub(crate) const LIMITS: &[(&str, f64)] = &[
    ("gdn_forward", 1.5e-2),
    ("gdn_backward", 4e-2),
    ("attention_forward", 1e-2),
    ("attention_backward_keys", 2e-2),
    ("gathered_grad_keys", 2e-2),
    ("indexer_select", 1e-4),
    ("lce_rows", 1e-2),
];

/// The bytes of one panel: 64 rows of 64 bf16.
const PANEL: i64 = 8192;

fn ceil(value: i64, unit: i64) -> i64 {
    (value + unit - 1) / unit
}

/// A size as a kernel's grid or `int` takes it.
fn int<T: TryFrom<i64>>(op: &'static str, value: i64) -> Result<T> {
    T::try_from(value)
        .map_err(|_| Error::Op { op, detail: format!("a size of {value} is beyond the kernel's") })
}

fn contiguous(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_contiguous()?)
}

/// Contiguous, and at an address that 16 divides: a part of a tensor need not be.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = x.f_contiguous()?;
    if x.data_ptr().addr().is_multiple_of(16) {
        return Ok(x);
    }
    let mut own = x.f_empty_like()?;
    own.f_copy_(&x)?;
    Ok(own)
}

/// Stands for the activation kind in [`crate::cuda::either`] where it does not matter to a kernel: its work is exact, or in
/// the kinds of its inputs.
fn exact(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty([0i64], (Kind::BFloat16, x.device()))?)
}

/// Scratch of a kernel.
fn bytes(n_bytes: i64, like: &Tensor) -> Result<Tensor> {
    crate::cuda::empty(&[n_bytes], Kind::Uint8, like)
}

/// The results of a way, as many as there are names.
fn take<const N: usize>(op: &'static str, results: Vec<Tensor>) -> Result<[Tensor; N]> {
    let found = results.len();
    results
        .try_into()
        .map_err(|_| Error::Op { op, detail: format!("{found} results, {N} are expected") })
}

/// The argument at a position of a way's arguments.
fn at<'a>(args: &[&'a Tensor], position: usize) -> Result<&'a Tensor> {
    args.get(position).copied().ok_or_else(|| Error::Op {
        op: "tile",
        detail: format!("{} arguments, number {position} is read", args.len()),
    })
}
