//! The state of a run, and the pieces that a training step is made of.
//!
//! A generated `train_step` writes out the pieces for one micro-batch on the CPU, and a run takes it
//! where that is all there is to do. A step of several micro-batches, one on a GPU, and one whose
//! parts are timed are [`step`]'s, which puts the same pieces together.
//!
//! Everything that can fail on the numbers fails before `update`, so an error
//! leaves the state as it was before the step.
//!
//! # Micro-batches
//! A batch of `n` lanes in `k` micro-batches has lanes `i n/k .. (i + 1) n/k` in micro-batch `i`, in
//! every step, and so their carries. All micro-batches of a step read the same parameters and
//! states. Gradients are summed in f32 (f64 in runs in double) in the order of the micro-batches and
//! divided by `k`; values are averaged. The next value of a state is the mean of those that the
//! micro-batches give: for an update that is linear in means over the batch, such as a running mean,
//! that is what the whole batch would give; a controller that takes signs averages its steps.
//!
//! # One rank's share
//! Of a stage of which this is one rank's share, parameters that the ranks divide are trained as any. Of
//! all others, which every rank has whole, the first of as many parts as there are ranks is this one's: it
//! has masters and moments, and is updated; the rest of the working copy stays, as if the other ranks had
//! given back what they got. Parameters that compute in 32 bits are small, and not cut.
//!
//! # When the host reads
//! On the CPU each piece looks at its numbers at once. On a GPU nothing waits until all gradients are
//! there; then one read brings the values, the norm, and whether states and carries are finite. Only
//! where one of them is not, tensor after tensor is looked at for the first.

mod check;
mod micro;

pub(crate) use check::first_not_finite;
pub use check::{Clipped, Forwarded};
pub(crate) use micro::first_bad_op;
pub use micro::{Part, Parts, step, step_timed};

use crate::cuda::{self, Update};
use crate::error::{Error, Result, TrainError};
use crate::optimizer::{AdamW, Groups, Slot};
use crate::random;
use crate::schedule::Schedule;
use crate::stage::{CarrySpec, Inputs, Precision, Stage};
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

impl Batch {
    /// The batch on a device.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_device(self, device: Device) -> Result<Batch> {
        if device == Device::Cpu {
            return Ok(self);
        }
        Ok(Batch {
            tokens: self.tokens.f_to_device(device)?,
            continues: self.continues.f_to_device(device)?,
            ..self
        })
    }
}

/// What fixes a run apart from the stage and the data.
#[derive(Debug)]
pub struct Setup {
    /// Seed of the parameters.
    pub seed: u64,
    /// Activation kind: that of [`crate::Target::act`], or `Double` in tests.
    pub act: Kind,
    /// Where everything is.
    pub device: Device,
    /// Lanes of a batch, for the carries.
    pub n_lanes: usize,
    /// Lanes that are computed at a time; divides `n_lanes`.
    pub micro_batch: usize,
    /// The update rule.
    pub adamw: AdamW,
    /// The learning rate.
    pub schedule: Schedule,
    /// The parameter groups.
    pub groups: Groups,
    /// The tables, from [`crate::tables::tables`], on the device.
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
    /// Per parameter, at least f32; updated in place. Of a share, the flat part that is this rank's.
    pub(crate) master: Vec<Tensor>,
    /// Per parameter the number of its first elements that are this rank's, where they are not all.
    part: Vec<Option<i64>>,
    /// Per parameter, in its run kind. Shares memory with the master weight
    /// where the kinds are the same.
    params: Vec<Tensor>,
    /// Per parameter; `None` for frozen ones.
    pub(crate) moments_m: Vec<Option<Tensor>>,
    /// Per parameter; `None` for frozen ones.
    pub(crate) moments_v: Vec<Option<Tensor>>,
    pub(crate) states: Vec<Tensor>,
    pub(crate) carries: Vec<Tensor>,
    /// Whether checks wait until all gradients are there; see the module.
    pub(crate) is_deferred: bool,
}

/// The lists of a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageInfo {
    pub(crate) name: &'static str,
    pub(crate) params: &'static [crate::ParamSpec],
    pub(crate) states: &'static [crate::StateSpec],
    pub(crate) carries: &'static [CarrySpec],
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
        let mut state = TrainState::blank(stage, setup)?;
        let Setup { seed, act, device, .. } = state.setup;
        let kind = Precision::F32.kind(act);
        // Their memory is given back before the drawn ones take theirs.
        state.master.clear();
        state.master = random::init_params(state.info.params, seed, kind, device)?;
        state.refresh_params()?;
        state.keep_own_parts()?;
        Ok(state)
    }

    /// The same with parameters of zeros, which a checkpoint is read into.
    pub(crate) fn blank(stage: &dyn Stage, setup: Setup) -> Result<Self> {
        let info = StageInfo {
            name: stage.name(),
            params: stage.params(),
            states: stage.states(),
            carries: stage.carries(),
        };
        let (act, device) = (setup.act, setup.device);
        let kind = Precision::F32.kind(act);
        let zeros = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, device));
        let mut state = TrainState {
            info,
            step: 0,
            moment_updates: 0,
            grown: None,
            part: own_parts(stage),
            master: Vec::new(),
            params: Vec::new(),
            moments_m: Vec::new(),
            moments_v: Vec::new(),
            states: Vec::new(),
            carries: zero_carries(info.carries, setup.n_lanes, act, device)?,
            is_deferred: cuda::runs_on(device),
            setup,
        };
        for (spec, part) in info.params.iter().zip(state.part.clone()) {
            let at_rest = match spec.precision {
                Precision::Act | Precision::F32 => kind,
                Precision::Code | Precision::Scale => spec.precision.kind(act),
            };
            state.master.push(zeros(spec.shape, at_rest)?);
            let trained = spec.storage.learns();
            for moments in [&mut state.moments_m, &mut state.moments_v] {
                let part: Option<[i64; 1]> = part.map(|n| [n]);
                let shape = part.as_ref().map_or(spec.shape, |part| &part[..]);
                let moment = trained.then(|| zeros(shape, kind)).transpose()?;
                moments.push(moment);
            }
        }
        for spec in info.states {
            let start = Tensor::f_full(spec.shape, spec.start, (kind, device))?;
            state.states.push(start);
        }
        Ok(state)
    }

    /// Makes the working copies of the master weights, in the kinds that the stage computes in.
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

    /// Cuts the masters to what is this rank's, once the working copies are made of the whole.
    fn keep_own_parts(&mut self) -> Result<()> {
        for (master, part) in self.master.iter_mut().zip(&self.part) {
            if let Some(n) = part {
                // A copy, so that the rest is given back.
                let own = master.f_reshape([-1i64])?.f_narrow(0, 0, *n)?;
                let mut copy = own.f_empty_like()?;
                copy.f_copy_(&own)?;
                *master = copy;
            }
        }
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

    /// Where everything is.
    pub fn device(&self) -> Device {
        self.setup.device
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

    /// One AdamW update of every trained parameter, in place, and of its working copy. This is the
    /// one place that chooses how: on the CPU tensor by tensor in libtorch, on a GPU all in one
    /// kernel.
    pub fn update(&mut self, clipped: &Clipped) -> Result<()> {
        let TrainState { setup, info, master, params, part, moments_m, moments_v, .. } = self;
        let Setup { adamw, schedule, groups, act, .. } = &*setup;
        let n_updates = self.moment_updates + self.step + 1;
        // What is updated of gradients and working copies: all of it, or this rank's part.
        let own = |x: &Tensor, part: &Option<i64>| -> Result<Tensor> {
            match part {
                Some(n) => Ok(x.f_contiguous()?.f_reshape([-1i64])?.f_narrow(0, 0, *n)?),
                None => Ok(x.shallow_clone()),
            }
        };
        let mut parts = Vec::new();
        for ((gradient, param), part) in clipped.gradients.iter().zip(&*params).zip(&*part) {
            let gradient = gradient.as_ref().map(|gradient| own(gradient, part)).transpose()?;
            parts.push((gradient, own(param, part)?));
        }
        let mut fused = Vec::new();
        let slots =
            master.iter_mut().zip(moments_m).zip(moments_v).zip(&mut parts).zip(info.params);
        for ((((((master, m), v), (gradient, param)), spec), group), part) in
            slots.zip(&groups.of_param).zip(&*part)
        {
            let group = group.and_then(|group| groups.groups.get(group));
            let (Some(gradient), Some(group), Some(m), Some(v)) = (&*gradient, group, m, v) else {
                continue;
            };
            let (lr, weight_decay) =
                (schedule.lr(self.step, group.lr_multiplier), group.weight_decay);
            let kind = master.f_kind()?;
            // One that computes in the kind of its master shares its memory.
            let is_apart = spec.precision.kind(*act) != kind || part.is_some();
            let copy = is_apart.then_some(param);
            if cuda::runs_on(master.device()) {
                let (master, moment_m, moment_v) = (&*master, &*m, &*v);
                let act = copy.map(|copy| &*copy);
                fused.push(Update { master, moment_m, moment_v, gradient, act, lr, weight_decay });
                continue;
            }
            // In the master's kind first: a bf16 gradient would be rounded again.
            let scaled = gradient.f_to_kind(kind)?.f_mul_scalar(clipped.factor)?;
            let mut slot = Slot { master, moment_m: m, moment_v: v };
            adamw.update(&mut slot, &scaled, lr, weight_decay, n_updates)?;
            if let Some(copy) = copy {
                copy.f_copy_(slot.master)?;
            }
        }
        cuda::adamw(&fused, adamw, clipped.factor, n_updates)
    }

    /// Takes over states and carries and counts the step.
    pub fn advance(&mut self, forwarded: Forwarded, clipped: &Clipped) -> StepReport {
        let Setup { schedule, groups, .. } = &self.setup;
        let lr = |group: &crate::optimizer::Group| {
            (group.name.clone(), schedule.lr(self.step, group.lr_multiplier))
        };
        let lr = groups.groups.iter().map(lr).collect();
        let values = match &clipped.values {
            Some(read) => read.clone(),
            None => forwarded.known_values(),
        };
        self.states = forwarded.states;
        self.carries = forwarded.carries;
        self.step += 1;
        StepReport {
            step: self.step,
            values,
            lr,
            grad_norm: clipped.norm,
            clip_scale: clipped.scale,
        }
    }

    pub(crate) fn contract(&self, detail: String) -> Error {
        TrainError::Contract { stage: self.info.name, detail }.into()
    }
}

/// Per parameter the number of its first elements that are one rank's of a share; `None` where all are.
fn own_parts(stage: &dyn Stage) -> Vec<Option<i64>> {
    let share = stage.share();
    let part = |spec: &crate::ParamSpec| {
        let share = share.as_ref().filter(|share| !share.divided.contains(&spec.path))?;
        let ranks = i64::from(share.ranks.max(1));
        let n = spec.shape.iter().product::<i64>();
        // What computes in 32 bits is its own master, and small.
        let is_cut = spec.storage.learns() && spec.precision == Precision::Act;
        is_cut.then_some((n + ranks - 1) / ranks)
    };
    stage.params().iter().map(part).collect()
}

/// Carries of zeros for a number of lanes.
pub fn zero_carries(
    specs: &[CarrySpec],
    n_lanes: usize,
    act: Kind,
    device: Device,
) -> Result<Vec<Tensor>> {
    let zeros = |spec| Ok(Tensor::f_zeros(carry_shape(spec, n_lanes), (act, device))?);
    specs.iter().map(zeros).collect()
}

/// The shape of a carry for a number of lanes.
pub(crate) fn carry_shape(spec: &CarrySpec, n_lanes: usize) -> Vec<i64> {
    let size = |&size: &i64| if size < 0 { n_lanes as i64 } else { size };
    spec.shape.iter().map(size).collect()
}

#[cfg(test)]
mod tests;
