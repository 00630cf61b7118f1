//! Stacks whose states are had back in the backward pass instead of being stored.
//!
//! Generated code drives a [`Forward`] through the layers, keeps what it leaves in a [`Kept`],
//! and drives a [`Backward`] through them again, last layer first: it solves for the state before,
//! computes the layer anew with the selections of the first pass, and differentiates it. What one
//! layer saves is dropped before the next is computed, in both passes.
//!
//! Solving is in whole numbers ([`lightc_numerics::fixed`]) and so without error, as long as the
//! layer gives the same bits twice. That it did is checked at layer 0: its step, done again, must
//! give the state that it gave before. A first state that is a unit off in one element can pass, where what layer 0 gives
//! changes by that unit too; more of a difference cannot but by chance in every element.
//!
//! A layer whose last kernel can make the step is handed an [`End`]; the stack then never sees what the
//! layer gave, but for a run that stores everything.

mod backward;
mod end;
mod report;
mod tape;

pub use backward::Backward;
pub use end::End;
pub use report::{Options, Report, options, take_report, take_states, take_waiting, with_options};
pub use tape::Tape;

use std::cell::RefCell;
use std::rc::Rc;

use lightc_numerics::fixed;
use tch::Kind;

use crate::error::{Result, TrainError};
use crate::ops::{Count, Push, StepArgs, state_start, state_step};
use crate::{Error, Tensor};
use tape::Entry;

/// The integrator of a stack.
#[derive(Debug)]
pub struct Integrator {
    /// Bits of a state after the point.
    pub fraction_bits: u32,
    /// One per layer.
    pub steps: &'static [Step],
}

/// The step that one layer makes: `next = a before + (1 - a) now + weight gate force`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// `m` of `a = m / 2^k`; 0 in the first step.
    pub numerator: i64,
    /// `k`.
    pub bits: u32,
    /// Weight of the force.
    pub weight: f64,
}

impl Step {
    /// The first step: `next = now + weight gate force`.
    pub const fn first(weight: f64) -> Step {
        Step { numerator: 0, bits: 0, weight }
    }

    /// A step with `a = numerator / 2^bits`.
    pub const fn new(numerator: i64, bits: u32, weight: f64) -> Step {
        Step { numerator, bits, weight }
    }

    fn fixed(&self, fraction_bits: u32) -> fixed::Step {
        fixed::Step::new(self.numerator, self.bits, self.weight, fraction_bits)
    }

    fn a(&self) -> f64 {
        self.numerator as f64 / f64::from(1_u32 << self.bits)
    }
}

/// The forward pass of a stack.
#[derive(Debug)]
pub struct Forward {
    /// What the next layer reads.
    pub input: Tensor,
    /// What its selections go to.
    pub tape: Tape,
    integrator: &'static Integrator,
    before: Tensor,
    now: Tensor,
    mark: usize,
    beyond: Vec<Count>,
    layers: Vec<Layer>,
    stored: Option<Vec<Stored>>,
}

/// What a reconstruction of one layer needs.
#[derive(Debug)]
struct Layer {
    bits: Option<Tensor>,
    selections: Vec<Rc<Entry>>,
}

/// What a run that stores everything keeps of a layer: the state it read, and what it gave.
#[derive(Debug)]
struct Stored {
    state: Tensor,
    result: Tensor,
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct Kept {
    integrator: &'static Integrator,
    kind: Kind,
    /// The state before the last one, and the last: until the backward pass takes them, which goes on without them.
    ends: RefCell<Option<[Tensor; 2]>>,
    layers: Vec<Layer>,
    stored: Option<Vec<Stored>>,
}

impl Forward {
    /// Begins at the state of `x`; `outer` is the tape of the pass that the stack is in.
    ///
    /// # Errors
    /// libtorch's.
    pub fn start(
        integrator: &'static Integrator,
        x: &Tensor,
        outer: Option<&Tape>,
    ) -> Result<Forward> {
        let made = state_start(x, integrator.fraction_bits)?;
        let state = made.state;
        Ok(Forward {
            input: made.value,
            tape: outer.map_or_else(Tape::write, Tape::nested),
            integrator,
            before: state.shallow_clone(),
            now: state,
            mark: 0,
            beyond: made.beyond.into_iter().collect(),
            layers: Vec::new(),
            stored: options().store_everything.then(Vec::new),
        })
    }

    /// Takes what the next layer gave for [`Forward::input`]. What the layer saved comes back only
    /// in a run that stores everything.
    ///
    /// # Errors
    /// libtorch's.
    pub fn advance<S>(
        &mut self,
        result: Tensor,
        gate: Option<&Tensor>,
        saved: S,
    ) -> Result<Option<S>> {
        let saved = self.stored.is_some().then_some(saved);
        let step = step_of(self.integrator, self.layers.len())?;
        let push = Push { now: &self.now, p: &self.input, y: &result, gate };
        let bits = self.integrator.fraction_bits;
        let made = state_step(&step.fixed(bits), bits, &self.before, &push)?;
        if let Some(stored) = &mut self.stored {
            stored.push(Stored { state: self.now.shallow_clone(), result });
        } else {
            drop(result);
        }
        self.step_to(made.state, made.value, made.kept, made.beyond);
        Ok(saved)
    }

    /// What a layer that can make its step itself is to end with: in a run that stores everything with its
    /// result.
    ///
    /// # Errors
    /// If there are more layers than steps.
    pub fn end(&self) -> Result<End> {
        if self.stored.is_some() {
            return Ok(End::result());
        }
        let step = step_of(self.integrator, self.layers.len())?;
        let args = step_args(self.integrator, step, self.input.kind());
        Ok(End::step(args, &self.before, &self.now))
    }

    /// [`Forward::advance`] with what a layer gave that was handed an end.
    ///
    /// # Errors
    /// libtorch's.
    pub fn advance_to<S>(&mut self, result: Tensor, end: End, saved: S) -> Result<Option<S>> {
        if end.is_result() {
            return self.advance(result, None, saved);
        }
        let (state, kept, beyond) = end.finish()?;
        self.step_to(state, result, kept, beyond);
        Ok(None)
    }

    fn step_to(
        &mut self,
        state: Tensor,
        value: Tensor,
        bits: Option<Tensor>,
        beyond: Option<Count>,
    ) {
        self.beyond.extend(beyond);
        let selections = self.tape.since(self.mark);
        self.mark = self.tape.position();
        self.layers.push(Layer { bits, selections });
        self.before = std::mem::replace(&mut self.now, state);
        self.input = value;
    }

    /// The last state as a value, and what the backward pass needs.
    ///
    /// # Errors
    /// If there were fewer layers than steps.
    pub fn finish(self, outer: Option<&mut Tape>) -> Result<(Tensor, Kept)> {
        let (layers, steps) = (self.layers.len(), self.integrator.steps.len());
        if layers != steps {
            return Err(fault(format!("{layers} layers ran, the integrator has {steps} steps")));
        }
        if let Some(outer) = outer {
            outer.absorb(&self.tape);
        }
        let kept = Kept {
            integrator: self.integrator,
            kind: self.input.kind(),
            ends: RefCell::new(Some([self.before, self.now])),
            layers: self.layers,
            stored: self.stored,
        };
        let (known, waiting) = counts(self.beyond);
        report::wait(waiting);
        report::add(&Report {
            beyond: known,
            kept_bytes: kept.kept_bytes(),
            replay_bytes: kept.replay_bytes(),
            state_bytes: kept.state_bytes(),
        });
        Ok((self.input, kept))
    }
}

impl Kept {
    /// Bytes of kept bits.
    pub fn kept_bytes(&self) -> usize {
        self.layers.iter().filter_map(|layer| layer.bits.as_ref()).map(Tensor::numel).sum()
    }

    /// Bytes of recorded selections.
    pub fn replay_bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.selections).map(|entry| entry.bytes()).sum()
    }

    /// Bytes of states: two, or all of them in a run that stores everything. After a backward pass the two are gone.
    pub fn state_bytes(&self) -> usize {
        let stored = self.stored.as_deref().unwrap_or_default();
        let each = |stored: &Stored| stored.state.numel() + stored.result.numel();
        let ends = self.ends.borrow().iter().flatten().map(Tensor::numel).sum::<usize>();
        4 * (ends + stored.iter().map(each).sum::<usize>())
    }

    /// Flips the lowest kept bit of one element of a layer's step: what a fault of memory would do.
    ///
    /// # Errors
    /// If that step keeps no bits.
    pub fn flip_kept_bit(&mut self, layer: usize, byte: i64) -> Result<()> {
        let bits = self.layers.get_mut(layer).and_then(|layer| layer.bits.as_mut());
        let bits = bits.ok_or_else(|| fault(format!("layer {layer} keeps no bits")))?;
        crate::ops::flip_bit(bits, byte)
    }

    /// Replaces the selections of one layer by those of another: what a second pass that selects
    /// anew would risk.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn swap_selections(&mut self, layer: usize, other: usize) -> Result<()> {
        let of = |layer: usize| self.layers.get(layer).map(|layer| layer.selections.clone());
        let (Some(first), Some(second)) = (of(layer), of(other)) else {
            return Err(fault(format!("no layer {layer} or {other}")));
        };
        for (layer, selections) in [(layer, second), (other, first)] {
            if let Some(layer) = self.layers.get_mut(layer) {
                layer.selections = selections;
            }
        }
        Ok(())
    }
}

fn step_of(integrator: &'static Integrator, layer: usize) -> Result<Step> {
    let step = integrator.steps.get(layer).copied();
    step.ok_or_else(|| fault(format!("the integrator has no step for layer {layer}")))
}

/// What is known of several counts, and what is not read yet.
fn counts(all: Vec<Count>) -> (i64, Vec<Tensor>) {
    let (mut known, mut waiting) = (0, Vec::new());
    for count in all {
        match count {
            Count::Known(n) => known += n,
            Count::Waiting(n) => waiting.push(n),
        }
    }
    (known, waiting)
}

fn step_args(integrator: &Integrator, step: Step, kind: Kind) -> StepArgs {
    let bits = integrator.fraction_bits;
    StepArgs { step: step.fixed(bits), fraction_bits: bits, kind }
}

fn fault(detail: String) -> Error {
    Error::Op { op: "reversible stack", detail }
}

fn not_reconstructed(layer: usize) -> Error {
    TrainError::NotReconstructed { layer }.into()
}
