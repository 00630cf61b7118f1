//! What kernels that make a state take and give, by themselves (`fixed.cu`) or at the end of a layer.

use lightc_numerics::fixed::{self, Step};
use tch::{Kind, Tensor};

use super::{Count, Made};
use crate::cuda::{self, Arg};
use crate::error::{Error, Result};
use crate::ops::fixed::{Force, fixed_value, inverse_composite, step_composite};

const OP: &str = "reversible state";

fn wrong(detail: String) -> Error {
    Error::Op { op: OP, detail }
}

/// `2^-bits`.
pub(crate) fn unit(fraction_bits: u32) -> f32 {
    1.0 / (1_u64 << fraction_bits) as f32
}

/// A number of 64 bits as kernels take it.
pub(crate) fn bits_of(value: f64) -> Arg<'static> {
    Arg::I64(value.to_bits().cast_signed())
}

/// A count as an output of a kernel that adds to it.
pub(crate) fn zero_count(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_zeros([1i64], (Kind::Int64, like.device()))?)
}

/// A count that is known, in the form of [`zero_count`].
pub(crate) fn counted(beyond: i64, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_full([1i64], beyond, (Kind::Int64, like.device()))?)
}

/// The value of a state as a layer reads it, in the kind of a reference.
pub(crate) fn read_as(state: &Tensor, (bits, read): (u32, Kind), kind: Kind) -> Result<Tensor> {
    Ok(fixed_value(state, bits, read)?.f_to_kind(kind)?)
}

/// The numbers of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepArgs {
    /// The step.
    pub step: Step,
    /// Bits of a state after the point.
    pub fraction_bits: u32,
    /// The kind in which the layer read the state.
    pub kind: Kind,
}

impl StepArgs {
    /// Numerator, bits, scale and unit.
    ///
    /// # Errors
    /// A number is beyond what a kernel takes.
    pub(crate) fn of_step(&self) -> Result<[Arg<'static>; 4]> {
        let small = |value: i64| {
            i32::try_from(value).map(Arg::I32).map_err(|_| wrong(format!("{value} in a step")))
        };
        Ok([
            small(self.step.numerator)?,
            small(i64::from(self.step.bits))?,
            bits_of(self.step.scale),
            Arg::F32(unit(self.fraction_bits)),
        ])
    }

    /// Numerator, bits, inverse modulo 2^32, scale and unit.
    ///
    /// # Errors
    /// As [`StepArgs::of_step`].
    pub(crate) fn of_inverse(&self) -> Result<[Arg<'static>; 5]> {
        let [numerator, bits, scale, unit] = self.of_step()?;
        #[allow(clippy::cast_possible_truncation)] // its low 32 bits are the inverse modulo 2^32
        let inverse = Arg::I32(self.step.inverse_numerator() as i32);
        Ok([numerator, bits, inverse, scale, unit])
    }

    /// The kept bits of a step, as many as it has.
    ///
    /// # Errors
    /// There is another number of them.
    pub(crate) fn kept_bits<'a>(
        &self,
        kept: Option<&'a Tensor>,
        now: &Tensor,
    ) -> Result<Option<&'a Tensor>> {
        let bytes = fixed::packed_len(now.numel(), self.step.bits);
        let has = kept.map_or(0, Tensor::numel);
        if has != bytes || (self.step.bits > 0 && kept.is_none()) {
            let shape = now.size();
            return Err(wrong(format!("{has} bytes of kept bits, {bytes} needed for {shape:?}")));
        }
        Ok(kept.filter(|_| self.step.bits > 0))
    }

    /// A step of the states before and now, composed of libtorch calls, as a kernel gives it.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn step_reference(
        &self,
        (before, now): (&Tensor, &Tensor),
        (y, gate): (&Tensor, f64),
        like: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let read = (self.fraction_bits, self.kind);
        let p = read_as(now, read, y.kind())?;
        let stepped = step_composite(&self.step, before, now, &Force { p: &p, y, gate })?;
        let value = read_as(&stepped.next, read, like.kind())?;
        let mut results = vec![stepped.next, value, counted(stepped.beyond, like)?];
        results.extend(stepped.kept);
        Ok(results)
    }

    /// A state before and its value, composed of libtorch calls; of the states next and now.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn inverse_reference(
        &self,
        (next, now): (&Tensor, &Tensor),
        kept: Option<&Tensor>,
        (y, gate): (&Tensor, f64),
        like: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let read = (self.fraction_bits, self.kind);
        let p = read_as(now, read, y.kind())?;
        let before = inverse_composite(&self.step, next, kept, now, &Force { p: &p, y, gate })?;
        let value = read_as(&before, read, like.kind())?;
        Ok(vec![before, value])
    }
}

/// What a kernel writes a state to.
#[derive(Debug)]
pub struct Room {
    state: Tensor,
    value: Tensor,
    kept: Option<Tensor>,
    /// None for an inverse.
    beyond: Option<Tensor>,
}

impl Room {
    /// State and value.
    pub(crate) const INVERSE_RESULTS: usize = 2;

    /// State, value, count and, where there are any, kept bits.
    pub(crate) fn step_results(step: &Step) -> usize {
        3 + usize::from(step.bits > 0)
    }

    /// For the step of a state.
    pub(crate) fn step(step: &Step, now: &Tensor) -> Result<Room> {
        let bytes = fixed::packed_len(now.numel(), step.bits) as i64;
        let kept = (step.bits > 0).then(|| cuda::empty(&[bytes], Kind::Uint8, now)).transpose()?;
        Ok(Room { kept, beyond: Some(zero_count(now)?), ..Room::inverse(now)? })
    }

    /// For the state before another.
    pub(crate) fn inverse(now: &Tensor) -> Result<Room> {
        Ok(Room {
            state: cuda::empty(&now.size(), Kind::Int, now)?,
            value: cuda::empty(&now.size(), Kind::BFloat16, now)?,
            kept: None,
            beyond: None,
        })
    }

    /// As kernels take it: state and value; of a step also kept bits, which may be null, and count.
    pub(crate) fn args(&self) -> Vec<Arg<'_>> {
        let mut all = vec![Arg::Tensor(&self.state), Arg::Tensor(&self.value)];
        if let Some(beyond) = &self.beyond {
            all.push(self.kept.as_ref().map_or(Arg::I64(0), Arg::Tensor));
            all.push(Arg::Tensor(beyond));
        }
        all
    }

    /// What was written, as [`Made::of`] takes it, and what else a kernel wrote.
    pub fn with(self, others: Vec<Tensor>) -> Vec<Tensor> {
        let mut all = vec![self.state, self.value];
        all.extend(self.beyond);
        all.extend(self.kept);
        all.extend(others);
        all
    }
}

impl Made {
    /// The results of a kernel by name: state, value, and of a step count and kept bits.
    ///
    /// # Errors
    /// There is another number of them.
    pub(crate) fn of(results: Vec<Tensor>) -> Result<Made> {
        let found = results.len();
        let mut all = results.into_iter();
        let (Some(state), Some(value)) = (all.next(), all.next()) else {
            return Err(wrong(format!("{found} results of a kernel that makes a state")));
        };
        let beyond = all.next().map(Count::Waiting);
        Ok(Made { state, value, beyond, kept: all.next() })
    }
}
