//! One step, put together of its micro-batches.

use std::time::Instant;

use super::check::{Forwarded, Value};
use super::{Batch, StepReport, TrainState};
use crate::error::Result;
use crate::stage::{CarrySpec, Inputs, Precision, Stage};
use crate::watch::{Found, first_not_finite};
use crate::{Device, Tensor, cuda};

/// A part of a step, for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading tokens and bringing them to the device.
    Data,
    /// Forward passes.
    Forward,
    /// Backward passes and the sums of gradients.
    Backward,
    /// Norm, checks, and the update.
    Optimizer,
}

/// Milliseconds of the parts of one step.
#[derive(Debug)]
pub struct Parts {
    device: Device,
    last: Instant,
    ms: [f64; 4],
}

impl Parts {
    /// Begins to measure, with nothing running on the device.
    ///
    /// # Errors
    /// The driver's.
    pub fn start(device: Device) -> Result<Parts> {
        wait(device)?;
        Ok(Parts { device, last: Instant::now(), ms: [0.0; 4] })
    }

    /// What ran since the last call was this part. Waits for the device.
    ///
    /// # Errors
    /// The driver's, also for what ran before.
    pub fn end(&mut self, part: Part) -> Result<()> {
        wait(self.device)?;
        let now = Instant::now();
        if let Some(ms) = self.ms.get_mut(part as usize) {
            *ms += now.duration_since(self.last).as_secs_f64() * 1e3;
        }
        self.last = now;
        Ok(())
    }

    /// Name and milliseconds of each part, in order.
    pub fn rows(&self) -> [(&'static str, f64); 4] {
        let [data, forward, backward, optimizer] = self.ms;
        [("data", data), ("forward", forward), ("backward", backward), ("optimizer", optimizer)]
    }
}

fn wait(device: Device) -> Result<()> {
    match device {
        Device::Cuda(ordinal) => cuda::synchronize(ordinal),
        _ => Ok(()),
    }
}

/// One whole training step of a stage.
///
/// # Errors
/// Those of the stage; a number that is not finite, or a state or gradient that breaks the contract
/// of a stage, and then the state is as it was.
pub fn step(stage: &dyn Stage, train: &mut TrainState, batch: &Batch) -> Result<StepReport> {
    step_timed(stage, train, batch, None)
}

/// [`step`], with the time of its parts where a clock is given.
///
/// # Errors
/// Those of [`step`], and the driver's.
pub fn step_timed(
    stage: &dyn Stage,
    train: &mut TrainState,
    batch: &Batch,
    mut clock: Option<&mut Parts>,
) -> Result<StepReport> {
    let mut end = |part: Part| clock.as_mut().map_or(Ok(()), |clock| clock.end(part));
    let mut sums = Sums::default();
    let n_parts = train.setup.n_lanes / train.setup.micro_batch.max(1);
    for index in 0..n_parts {
        let part = MicroBatch::cut(train, batch, index, n_parts)?;
        let outputs = stage.forward(&part.inputs(train))?;
        let (forwarded, saved) = train.take_part(outputs, &part.carries)?;
        end(Part::Forward)?;
        let gradients = match stage.backward(&part.inputs(train), saved) {
            Ok(gradients) => gradients,
            // Numbers that are not finite can be why, and then they are what is to be told.
            Err(error) => return Err(train.look(&forwarded).err().unwrap_or(error)),
        };
        sums.add(train, forwarded, gradients, n_parts)?;
        end(Part::Backward)?;
    }
    let (forwarded, gradients) = sums.finish(train, n_parts)?;
    let clipped = train.clip_parts(gradients, &forwarded, n_parts)?;
    train.update(&clipped)?;
    let report = train.advance(forwarded, &clipped);
    drop(clipped);
    end(Part::Optimizer)?;
    Ok(report)
}

/// The lanes that are computed at a time.
struct MicroBatch {
    tokens: Tensor,
    continues: Tensor,
    carries: Vec<Tensor>,
}

impl MicroBatch {
    fn cut(train: &TrainState, batch: &Batch, index: usize, n_parts: usize) -> Result<Self> {
        if n_parts == 1 {
            return Ok(MicroBatch {
                tokens: batch.tokens.shallow_clone(),
                continues: batch.continues.shallow_clone(),
                carries: train.carries.iter().map(Tensor::shallow_clone).collect(),
            });
        }
        let lanes = train.setup.micro_batch as i64;
        let start = index as i64 * lanes;
        let carry = |(spec, carry): (&CarrySpec, &Tensor)| match lane_axis(spec) {
            Some(axis) => Ok(carry.f_narrow(axis, start, lanes)?),
            None => Err(train.contract(format!("the carry `{}` has no lanes", spec.name))),
        };
        Ok(MicroBatch {
            tokens: batch.tokens.f_narrow(0, start, lanes)?,
            continues: batch.continues.f_narrow(0, start, lanes)?,
            carries: train
                .info
                .carries
                .iter()
                .zip(&train.carries)
                .map(carry)
                .collect::<Result<_>>()?,
        })
    }

    fn inputs<'a>(&'a self, train: &'a TrainState) -> Inputs<'a> {
        Inputs {
            params: &train.params,
            states: &train.states,
            tables: &train.setup.tables,
            tokens: &self.tokens,
            continues: &self.continues,
            carries: &self.carries,
        }
    }
}

/// The dimension of a carry that its lanes are along.
fn lane_axis(spec: &CarrySpec) -> Option<i64> {
    spec.shape.iter().position(|size| *size < 0).map(|axis| axis as i64)
}

/// What the micro-batches of a step give together.
#[derive(Default)]
struct Sums {
    values: Vec<(&'static str, Value)>,
    states: Vec<Tensor>,
    carries: Vec<Vec<Tensor>>,
    gradients: Vec<Option<Tensor>>,
    beyond: Vec<Tensor>,
}

impl Sums {
    fn add(
        &mut self,
        train: &TrainState,
        forwarded: Forwarded,
        gradients: Vec<Option<Tensor>>,
        n_parts: usize,
    ) -> Result<()> {
        self.carries.push(forwarded.carries);
        self.beyond.extend(forwarded.beyond);
        if self.carries.len() == 1 {
            self.values = forwarded.values;
            self.states = forwarded.states;
            self.gradients = match n_parts {
                1 => gradients,
                _ => gradients.into_iter().map(|g| widened(train, g)).collect::<Result<_>>()?,
            };
            if n_parts > 1 {
                // The sums go into memory of their own: a stage can give back its inputs.
                self.states = self.states.iter().map(copy_of).collect::<Result<_>>()?;
            }
            return Ok(());
        }
        let counts = (self.values.len(), self.gradients.len());
        if counts != (forwarded.values.len(), gradients.len()) {
            return Err(train.contract("two micro-batches gave different lists".to_owned()));
        }
        for ((_, sum), (_, value)) in self.values.iter_mut().zip(forwarded.values) {
            *sum = match (&*sum, value) {
                (Value::Known(sum), Value::Known(value)) => Value::Known(sum + value),
                (Value::Waiting(sum), Value::Waiting(value)) => Value::Waiting(sum.f_add(&value)?),
                _ => return Err(train.contract("a value is read in one part only".to_owned())),
            };
        }
        for (sum, state) in self.states.iter_mut().zip(&forwarded.states) {
            let _ = sum.f_add_(state)?;
        }
        for (sum, gradient) in self.gradients.iter_mut().zip(gradients) {
            match (sum, gradient) {
                (Some(sum), Some(gradient)) => drop(sum.f_add_(&gradient)?),
                (None, None) => {}
                _ => return Err(train.contract("a gradient is there in one part only".to_owned())),
            }
        }
        Ok(())
    }

    /// Means of values and states, joined carries, and sums of gradients.
    fn finish(
        self,
        train: &TrainState,
        n_parts: usize,
    ) -> Result<(Forwarded, Vec<Option<Tensor>>)> {
        let Sums { mut values, mut states, mut carries, gradients, beyond } = self;
        if n_parts == 1 {
            let carries = carries.pop().unwrap_or_default();
            return Ok((Forwarded { values, carries, states, beyond }, gradients));
        }
        let n = n_parts as f64;
        for (_, value) in &mut values {
            *value = match &*value {
                Value::Known(sum) => Value::Known(sum / n),
                Value::Waiting(sum) => Value::Waiting(sum.f_div_scalar(n)?),
            };
        }
        for state in &mut states {
            let _ = state.f_div_scalar_(n)?;
        }
        let mut joined = Vec::new();
        for (index, spec) in train.info.carries.iter().enumerate() {
            let parts: Vec<&Tensor> = carries.iter().filter_map(|part| part.get(index)).collect();
            joined.push(Tensor::f_cat(&parts, lane_axis(spec).unwrap_or(0))?);
        }
        Ok((Forwarded { values, carries: joined, states, beyond }, gradients))
    }
}

/// A gradient in the kind that sums over micro-batches are taken in, in memory of its own.
fn widened(train: &TrainState, gradient: Option<Tensor>) -> Result<Option<Tensor>> {
    let kind = Precision::F32.kind(train.setup.act);
    let wide = |gradient: Tensor| -> Result<Tensor> {
        match gradient.f_kind()? {
            same if same == kind => copy_of(&gradient),
            _ => Ok(gradient.f_to_kind(kind)?),
        }
    };
    gradient.map(wide).transpose()
}

/// A copy in memory of its own.
fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// What a failed step does again, in words: the first op whose result is not finite. The state must
/// be as before the step.
pub(crate) fn first_bad_op(stage: &dyn Stage, train: &TrainState, batch: &Batch) -> Option<String> {
    let n_parts = train.setup.n_lanes / train.setup.micro_batch.max(1);
    for index in 0..n_parts {
        let part = MicroBatch::cut(train, batch, index, n_parts).ok()?;
        let (outputs, found) = first_not_finite(|| stage.forward(&part.inputs(train)));
        if let Some(found) = found {
            return Some(told(&found, "forward"));
        }
        let outputs = outputs.ok()?;
        let (_, found) = first_not_finite(|| stage.backward(&part.inputs(train), outputs.saved));
        if let Some(found) = found {
            return Some(told(&found, "backward"));
        }
    }
    None
}

fn told(found: &Found, pass: &str) -> String {
    let Found { op, n_before, value, inputs } = found;
    format!("`{op}` gives {value} first, after {n_before} ops of the {pass} pass, from {inputs}")
}
