//! What each layer of a reversible stack does beside its own work: the step of its state or the inverse of
//! that, the values that layers read, and the cotangents of states.
//!
//! **Rule.** With values of bf16 on a GPU a kernel does each in one pass (`tile::fixed`), and nothing waits for the
//! device; everything else is [`super::fixed`], which is also what the kernels are compared with. States have the
//! same bits either way.

mod launch;

use lightc_numerics::fixed::Step;
use tch::{Kind, Tensor};

use super::fixed::{Force, fixed_inverse, fixed_quantize, fixed_step, fixed_value};
use super::tile;
use crate::Result;
pub use launch::{Room, StepArgs};
pub(crate) use launch::{bits_of, counted, read_as, unit, zero_count};

/// A number of elements.
#[derive(Debug)]
pub enum Count {
    /// As a number.
    Known(i64),
    /// i64 `[1]` on the device, not read yet.
    Waiting(Tensor),
}

/// What a layer did to the state that it read.
#[derive(Clone, Copy)]
pub struct Push<'a> {
    /// The state.
    pub now: &'a Tensor,
    /// Its value, as [`state_value`] gives it and the layer read it.
    pub p: &'a Tensor,
    /// What the layer gave.
    pub y: &'a Tensor,
    /// Multiplies `y - p`: a number `[]`.
    pub gate: Option<&'a Tensor>,
}

impl Push<'_> {
    fn force(&self) -> Result<Force<'_>> {
        Ok(Force { p: self.p, y: self.y, gate: gate_value(self.gate)? })
    }
}

/// A state that was made: by [`state_start`], a step, or the inverse of one.
#[derive(Debug)]
pub struct Made {
    /// The state.
    pub state: Tensor,
    /// Its value.
    pub value: Tensor,
    /// The bits that were shifted out, packed; nothing where the step shifts none.
    pub kept: Option<Tensor>,
    /// Elements beyond half of the range; an inverse counts none.
    pub beyond: Option<Count>,
}

/// The first state of a stack.
///
/// # Errors
/// `x` is not of floats.
pub fn state_start(x: &Tensor, fraction_bits: u32) -> Result<Made> {
    if tile::takes_states(x) {
        return tile::state_start(x, fraction_bits);
    }
    let (state, beyond) = fixed_quantize(x, fraction_bits)?;
    let value = fixed_value(&state, fraction_bits, x.kind())?;
    Ok(Made { state, value, kept: None, beyond: Some(Count::Known(beyond)) })
}

/// The value of a state in a floating kind: what a layer reads.
///
/// # Errors
/// `state` is not i32.
pub fn state_value(state: &Tensor, fraction_bits: u32, kind: Kind) -> Result<Tensor> {
    if tile::takes_value(state, kind) {
        return tile::state_value(state, fraction_bits);
    }
    fixed_value(state, fraction_bits, kind)
}

/// The state after `push.now`, which comes after `before`.
///
/// # Errors
/// Shapes or kinds differ.
pub fn state_step(
    step: &Step,
    fraction_bits: u32,
    before: &Tensor,
    push: &Push<'_>,
) -> Result<Made> {
    if tile::takes_states(push.y) {
        return tile::state_step(step, fraction_bits, before, push);
    }
    let stepped = fixed_step(step, before, push.now, &push.force()?)?;
    let value = fixed_value(&stepped.next, fraction_bits, push.p.kind())?;
    let beyond = Some(Count::Known(stepped.beyond));
    Ok(Made { state: stepped.next, value, kept: stepped.kept, beyond })
}

/// The state before `push.now`, given what [`state_step`] made of both; and its value, where it comes with
/// it.
///
/// # Errors
/// Shapes, kinds or the number of kept bits differ.
pub fn state_before(
    step: &Step,
    fraction_bits: u32,
    next: &Tensor,
    kept: Option<&Tensor>,
    push: &Push<'_>,
) -> Result<(Tensor, Option<Tensor>)> {
    if tile::takes_states(push.y) {
        let (state, value) = tile::state_before(step, fraction_bits, next, kept, push)?;
        return Ok((state, Some(value)));
    }
    Ok((fixed_inverse(step, next, kept, push.now, &push.force()?)?, None))
}

/// `weight gate d`, which a layer is differentiated with where `d` is the cotangent of the state that its step
/// made.
///
/// # Errors
/// libtorch's.
pub fn state_seed(d: &Tensor, weight: f64, gate: Option<&Tensor>) -> Result<Tensor> {
    if tile::takes_states(d) {
        return tile::state_seed(d, weight, gate);
    }
    Ok(d.f_mul_scalar(weight * gate_value(gate)?)?)
}

/// What [`state_cotangent`] adds up.
#[derive(Clone, Copy)]
pub struct Cotangents<'a> {
    /// Cotangent of the state after the next, and its share; none where no later step read the state.
    pub late: Option<(&'a Tensor, f64)>,
    /// Cotangent of the next state.
    pub d: &'a Tensor,
    /// Its share.
    pub share: f64,
    /// [`state_seed`] of `d`.
    pub seed: &'a Tensor,
    /// What the layer's backward made of the seed.
    pub through: &'a Tensor,
}

/// The cotangent of the state that a layer read: `late_share late + share d - seed + through`, in this order.
///
/// # Errors
/// libtorch's.
pub fn state_cotangent(
    parts: &Cotangents<'_>,
    weight: f64,
    gate: Option<&Tensor>,
) -> Result<Tensor> {
    if tile::takes_states(parts.d) && tile::takes_states(parts.through) {
        return tile::state_cotangent(parts, weight, gate);
    }
    cotangent_composite(parts)
}

/// [`state_cotangent`] composed of libtorch calls.
pub(crate) fn cotangent_composite(parts: &Cotangents<'_>) -> Result<Tensor> {
    let direct = parts.d.f_mul_scalar(parts.share)?;
    let direct = match parts.late {
        Some((late, share)) => late.f_mul_scalar(share)?.f_add(&direct)?,
        None => direct,
    };
    Ok(direct.f_sub(parts.seed)?.f_add(parts.through)?)
}

/// A gate as a number, 1 where there is none. On a GPU this waits.
pub(crate) fn gate_value(gate: Option<&Tensor>) -> Result<f64> {
    gate.map_or(Ok(1.0), |gate| Ok(gate.f_double_value(&[])?))
}
