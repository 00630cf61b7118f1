//! The state of a run, and the pieces that a generated training step is made
//! of.
//!
//! A generated `train_step` calls [`step`], or writes out its six lines.
//!
//! Everything that can fail on the numbers fails before `update`, so an error
//! leaves the state as it was before the step.

use std::any::Any;

use crate::error::{Error, Result, TrainError};
use crate::optimizer::{AdamW, Groups, Slot, square_sum};
use crate::random;
use crate::schedule::Schedule;
use crate::stage::{CarrySpec, Inputs, Outputs, Precision, Stage, Storage};
use crate::{Device, Kind, Tensor};

/// What a step reads besides the state.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, i64 `[b, u]`.
    pub tokens: Tensor,
    /// Activation kind `[b]`; see [`Inputs::continues`].
    pub continues: Tensor,
    /// Next-token targets in the batch.
    pub n_targets: usize,
}

/// What fixes a run apart from the stage and the data.
#[derive(Debug)]
pub struct Setup {
    /// Seed of the parameters.
    pub seed: u64,
    /// Activation kind: `Float`, or `Double` in tests.
    pub act: Kind,
    /// Lanes of a batch, for the carries.
    pub n_lanes: usize,
    /// The update rule.
    pub adamw: AdamW,
    /// The learning rate.
    pub schedule: Schedule,
    /// The parameter groups.
    pub groups: Groups,
    /// The tables, from [`crate::tables::tables`].
    pub tables: Vec<Tensor>,
}

/// The state of a run between two steps.
#[derive(Debug)]
pub struct TrainState {
    pub(crate) info: StageInfo,
    pub(crate) setup: Setup,
    pub(crate) step: u64,
    /// Updates that the moments have seen before step 0.
    pub(crate) moment_updates: u64,
    /// The growth that the run began with.
    pub(crate) grown: Option<lightc_checkpoint::Grown>,
    /// Per parameter, at least f32; updated in place.
    pub(crate) master: Vec<Tensor>,
    /// Per parameter, in its run kind. Shares memory with the master weight
    /// where the kinds are the same.
    params: Vec<Tensor>,
    /// Per parameter; `None` for frozen ones.
    pub(crate) moments_m: Vec<Option<Tensor>>,
    /// Per parameter; `None` for frozen ones.
    pub(crate) moments_v: Vec<Option<Tensor>>,
    pub(crate) states: Vec<Tensor>,
    pub(crate) carries: Vec<Tensor>,
}

/// The lists of a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageInfo {
    pub(crate) name: &'static str,
    pub(crate) params: &'static [crate::ParamSpec],
    pub(crate) states: &'static [crate::StateSpec],
    pub(crate) carries: &'static [CarrySpec],
}

/// The part of a forward pass that outlives the backward pass.
#[derive(Debug)]
pub struct Forwarded {
    values: Vec<(&'static str, f64)>,
    carries: Vec<Tensor>,
    states: Vec<Tensor>,
}

/// Gradients that are finite, with their global norm.
#[derive(Debug)]
pub struct Clipped {
    gradients: Vec<Option<Tensor>>,
    /// Global norm before clipping.
    pub norm: f64,
    /// What every gradient is multiplied by: at most 1.
    pub scale: f64,
}

/// What a step tells.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Updates done, this one included.
    pub step: u64,
    /// The stage's values (`loss`, `ntp`, `mtp`), before the update.
    pub values: Vec<(&'static str, f64)>,
    /// Learning rate per group, as used by this update.
    pub lr: Vec<(String, f64)>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// What clipping multiplied the gradients by.
    pub clip_scale: f64,
}

impl TrainState {
    /// The state before the first step: parameters drawn from the seed,
    /// moments and carries zero, states at their start.
    pub fn new(stage: &dyn Stage, setup: Setup) -> Result<Self> {
        let info = StageInfo {
            name: stage.name(),
            params: stage.params(),
            states: stage.states(),
            carries: stage.carries(),
        };
        let kind = Precision::F32.kind(setup.act);
        let zeros = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, Device::Cpu));
        let mut state = TrainState {
            info,
            step: 0,
            moment_updates: 0,
            grown: None,
            master: Vec::new(),
            params: Vec::new(),
            moments_m: Vec::new(),
            moments_v: Vec::new(),
            states: Vec::new(),
            carries: zero_carries(info.carries, setup.n_lanes, setup.act)?,
            setup,
        };
        state.master = random::init_params(info.params, state.setup.seed, kind)?;
        for spec in info.params {
            let trained = spec.storage.learns();
            for moments in [&mut state.moments_m, &mut state.moments_v] {
                let moment = trained.then(|| zeros(spec.shape, kind)).transpose()?;
                moments.push(moment);
            }
        }
        for spec in info.states {
            let start = Tensor::f_full(spec.shape, spec.start, (kind, Device::Cpu))?;
            state.states.push(start);
        }
        state.refresh_params()?;
        Ok(state)
    }

    /// Casts the master weights to the kinds that the stage computes in.
    pub(crate) fn refresh_params(&mut self) -> Result<()> {
        let act = self.setup.act;
        let cast = |(master, spec): (&Tensor, &crate::ParamSpec)| {
            let kind = spec.precision.kind(act);
            if master.f_kind()? == kind {
                return Ok(master.shallow_clone());
            }
            Ok(master.f_to_kind(kind)?)
        };
        self.params = self.master.iter().zip(self.info.params).map(cast).collect::<Result<_>>()?;
        Ok(())
    }

    /// Updates done: the position of schedule, data and randomness.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The activation kind.
    pub fn act(&self) -> Kind {
        self.setup.act
    }

    /// The parameters, in their run kinds and the order of the stage.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// The states, in the order of the stage.
    pub fn states(&self) -> &[Tensor] {
        &self.states
    }

    /// The carries, in the order of the stage.
    pub fn carries(&self) -> &[Tensor] {
        &self.carries
    }

    /// The tables, in the order of the stage.
    pub fn tables(&self) -> &[Tensor] {
        &self.setup.tables
    }

    /// What forward and backward read.
    pub fn inputs<'a>(&'a self, batch: &'a Batch) -> Inputs<'a> {
        Inputs { carries: &self.carries, ..self.inputs_without_carries(batch) }
    }

    /// The same with other carries, for evaluation.
    pub(crate) fn inputs_without_carries<'a>(&'a self, batch: &'a Batch) -> Inputs<'a> {
        Inputs {
            params: &self.params,
            states: &self.states,
            tables: &self.setup.tables,
            tokens: &batch.tokens,
            continues: &batch.continues,
            carries: &[],
        }
    }

    /// Takes a forward pass apart. Fails where a value, state or carry is not
    /// finite or a state or carry has another shape.
    pub fn take(&self, outputs: Outputs) -> Result<(Forwarded, Box<dyn Any>)> {
        let values = self.finite_values(&outputs)?;
        let states = self.info.states.iter().map(|spec| spec.path).zip(&self.states);
        let states = self.checked("state", states, outputs.states)?;
        let carries = self.info.carries.iter().map(|spec| spec.name).zip(&self.carries);
        let carries = self.checked("carry", carries, outputs.carries)?;
        Ok((Forwarded { values, carries, states }, outputs.saved))
    }

    /// The values of a forward pass as numbers; the first that is not finite is
    /// an error.
    pub(crate) fn finite_values(&self, outputs: &Outputs) -> Result<Vec<(&'static str, f64)>> {
        let n_elements = crate::reversible::take_report().beyond;
        if n_elements > 0 {
            return Err(TrainError::OutOfRange { step: self.step + 1, n_elements }.into());
        }
        let mut values = Vec::with_capacity(outputs.values.len());
        for (name, tensor) in &outputs.values {
            let value = tensor.f_double_value(&[])?;
            if !value.is_finite() {
                return Err(self.not_finite(format!("the value `{name}`"), value));
            }
            values.push((*name, value));
        }
        Ok(values)
    }

    fn checked<'a>(
        &self,
        what: &str,
        old: impl ExactSizeIterator<Item = (&'static str, &'a Tensor)>,
        new: Vec<Tensor>,
    ) -> Result<Vec<Tensor>> {
        if old.len() != new.len() {
            let detail = format!("it has {} of kind {what}, forward gave {}", old.len(), new.len());
            return Err(self.contract(detail));
        }
        old.zip(new)
            .map(|((name, old), new)| {
                self.same_type(&format!("the {what} `{name}`"), old, &new)?;
                self.finite(&format!("the {what} `{name}`"), &new)?;
                Ok(new.f_contiguous()?)
            })
            .collect()
    }

    fn same_type(&self, what: &str, old: &Tensor, new: &Tensor) -> Result<()> {
        let (expected, found) = ((old.size(), old.f_kind()?), (new.size(), new.f_kind()?));
        if expected == found {
            return Ok(());
        }
        Err(self.contract(format!("{what} is {expected:?}, the generated code gave {found:?}")))
    }

    fn finite(&self, what: &str, tensor: &Tensor) -> Result<()> {
        match first_not_finite(tensor)? {
            None => Ok(()),
            Some(value) => Err(self.not_finite(what.to_owned(), value)),
        }
    }

    /// Checks that the gradients are finite and of the right shapes, and finds
    /// their global norm and the factor of clipping.
    pub fn clip(&self, gradients: Vec<Option<Tensor>>) -> Result<Clipped> {
        if gradients.len() != self.master.len() {
            let (expected, found) = (self.master.len(), gradients.len());
            return Err(
                self.contract(format!("it has {expected} parameters, backward gave {found}"))
            );
        }
        let mut sum = 0.0;
        for ((spec, param), gradient) in self.info.params.iter().zip(&self.params).zip(&gradients) {
            sum += self.check_gradient(spec, param, gradient.as_ref())?;
        }
        let norm = sum.sqrt();
        let scale = self.setup.adamw.clip_scale(norm);
        Ok(Clipped { gradients, norm, scale })
    }

    /// The sum of squares of a gradient, which is finite.
    fn check_gradient(
        &self,
        spec: &crate::ParamSpec,
        param: &Tensor,
        gradient: Option<&Tensor>,
    ) -> Result<f64> {
        let what = format!("the gradient of `{}`", spec.path);
        match (spec.storage, gradient) {
            (Storage::Frozen(_) | Storage::Codes(_) | Storage::Scale, None) => Ok(0.0),
            (Storage::Trained | Storage::Adapter, Some(gradient)) => {
                if gradient.size() != param.size() {
                    let (expected, found) = (param.size(), gradient.size());
                    return Err(self.contract(format!(
                        "`{}` has shape {expected:?}, its gradient {found:?}",
                        spec.path
                    )));
                }
                self.finite(&what, gradient)?;
                square_sum(gradient)
            }
            (Storage::Codes(_) | Storage::Scale, Some(_)) => {
                Err(self.contract(format!("{what} exists, but it is quantized")))
            }
            (Storage::Trained | Storage::Adapter, None) => {
                Err(self.contract(format!("{what} is absent")))
            }
            (Storage::Frozen(reason), Some(_)) => {
                Err(self.contract(format!("{what} exists, but it is frozen: {reason}")))
            }
        }
    }

    /// One AdamW update of every trained parameter, in place.
    pub fn update(&mut self, clipped: &Clipped) -> Result<()> {
        let Setup { adamw, schedule, groups, .. } = &self.setup;
        for (index, gradient) in clipped.gradients.iter().enumerate() {
            let group = groups.of_param[index].map(|group| &groups.groups[group]);
            let moments = (&mut self.moments_m[index], &mut self.moments_v[index]);
            let (Some(gradient), Some(group), (Some(moment_m), Some(moment_v))) =
                (gradient, group, moments)
            else {
                continue;
            };
            let mut slot = Slot { master: &mut self.master[index], moment_m, moment_v };
            let scaled = gradient.f_mul_scalar(clipped.scale)?;
            let lr = schedule.lr(self.step, group.lr_multiplier);
            let n_updates = self.moment_updates + self.step + 1;
            adamw.update(&mut slot, &scaled, lr, group.weight_decay, n_updates)?;
        }
        self.refresh_params()
    }

    /// Takes over states and carries and counts the step.
    pub fn advance(&mut self, forwarded: Forwarded, clipped: &Clipped) -> StepReport {
        let Setup { schedule, groups, .. } = &self.setup;
        let lr = |group: &crate::optimizer::Group| {
            (group.name.clone(), schedule.lr(self.step, group.lr_multiplier))
        };
        let lr = groups.groups.iter().map(lr).collect();
        self.states = forwarded.states;
        self.carries = forwarded.carries;
        self.step += 1;
        StepReport {
            step: self.step,
            values: forwarded.values,
            lr,
            grad_norm: clipped.norm,
            clip_scale: clipped.scale,
        }
    }

    fn not_finite(&self, what: String, value: f64) -> Error {
        TrainError::NotFinite { step: self.step + 1, what, value, last_checkpoint: None }.into()
    }

    pub(crate) fn contract(&self, detail: String) -> Error {
        TrainError::Contract { stage: self.info.name, detail }.into()
    }
}

/// One whole training step of a stage.
pub fn step(stage: &dyn Stage, train: &mut TrainState, batch: &Batch) -> Result<StepReport> {
    let outputs = stage.forward(&train.inputs(batch))?;
    let (forwarded, saved) = train.take(outputs)?;
    let gradients = stage.backward(&train.inputs(batch), saved)?;
    let clipped = train.clip(gradients)?;
    train.update(&clipped)?;
    Ok(train.advance(forwarded, &clipped))
}

/// Carries of zeros for a number of lanes.
pub fn zero_carries(specs: &[CarrySpec], n_lanes: usize, act: Kind) -> Result<Vec<Tensor>> {
    specs
        .iter()
        .map(|spec| Ok(Tensor::f_zeros(carry_shape(spec, n_lanes), (act, Device::Cpu))?))
        .collect()
}

/// The shape of a carry for a number of lanes.
pub(crate) fn carry_shape(spec: &CarrySpec, n_lanes: usize) -> Vec<i64> {
    let size = |&size: &i64| if size < 0 { n_lanes as i64 } else { size };
    spec.shape.iter().map(size).collect()
}

/// The first element, row-major, that is NaN or infinite.
fn first_not_finite(tensor: &Tensor) -> Result<Option<f64>> {
    let flat = tensor.f_reshape([-1])?;
    let bad = flat.f_isfinite()?.f_logical_not()?.f_nonzero()?;
    if bad.size()[0] == 0 {
        return Ok(None);
    }
    let index = bad.f_int64_value(&[0, 0])?;
    Ok(Some(flat.f_double_value(&[index])?))
}

#[cfg(test)]
mod tests;
