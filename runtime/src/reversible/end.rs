//! How a layer ends: with its result, or with the step that the stack makes of it.

use super::fault;
use crate::cuda::{Arg, Kernel};
use crate::ops::states::{Count, Made, Room, StepArgs};
use crate::{Result, Tensor};

/// What the forward of a layer is asked to end with. A layer whose last kernel can make the step itself, or
/// the inverse of a step, is handed one; what it gives in place of its result is then the value of the
/// state that was made, and the rest is here.
#[derive(Debug)]
pub struct End {
    way: Way,
    /// What was made, less its value.
    made: Option<(Tensor, Option<Tensor>, Option<Count>)>,
}

#[derive(Debug)]
enum Way {
    Result,
    Step { args: StepArgs, before: Tensor, now: Tensor },
    Inverse { args: StepArgs, next: Tensor, now: Tensor, kept: Option<Tensor> },
}

impl End {
    /// The result itself.
    pub fn result() -> End {
        End { way: Way::Result, made: None }
    }

    /// The state after `now`, which comes after `before`, where the layer reads the value of `now` in a kind.
    pub(super) fn step(args: StepArgs, before: &Tensor, now: &Tensor) -> End {
        let (before, now) = (before.shallow_clone(), now.shallow_clone());
        End { way: Way::Step { args, before, now }, made: None }
    }

    /// The state before `now`, of which the layer's step made `next`.
    pub(super) fn inverse(
        args: StepArgs,
        next: &Tensor,
        now: &Tensor,
        kept: Option<&Tensor>,
    ) -> Result<End> {
        let kept = args.kept_bits(kept, now)?.map(Tensor::shallow_clone);
        let (next, now) = (next.shallow_clone(), now.shallow_clone());
        Ok(End { way: Way::Inverse { args, next, now, kept }, made: None })
    }

    /// Whether the result is wanted.
    pub fn is_result(&self) -> bool {
        matches!(self.way, Way::Result)
    }

    /// Of two kernels the one that is wanted.
    pub fn kernel(&self, step: &'static Kernel, inverse: &'static Kernel) -> &'static Kernel {
        match self.way {
            Way::Result | Way::Step { .. } => step,
            Way::Inverse { .. } => inverse,
        }
    }

    /// The inputs of a kernel with the states after them.
    pub fn inputs<'a>(&'a self, inputs: &[&'a Tensor]) -> Vec<&'a Tensor> {
        let mut all = inputs.to_vec();
        match &self.way {
            Way::Result => {}
            Way::Step { before, now, .. } => all.extend([before, now]),
            Way::Inverse { next, now, kept, .. } => {
                all.extend([next, now]);
                all.extend(kept);
            }
        }
        all
    }

    fn pair<T>(states: &[T]) -> Result<[&T; 2]> {
        match states {
            [first, second, ..] => Ok([first, second]),
            _ => Err(fault(format!("{} states, two are needed", states.len()))),
        }
    }

    /// Room for what a kernel makes of the states that are its last inputs.
    ///
    /// # Errors
    /// libtorch's.
    pub fn room(&self, states: &[Tensor]) -> Result<Room> {
        let [_, now] = End::pair(states)?;
        match &self.way {
            Way::Result => Err(fault("a result is wanted, not a state".into())),
            Way::Step { args, .. } => Room::step(&args.step, now),
            Way::Inverse { .. } => Room::inverse(now),
        }
    }

    /// The arguments of the end: after what a kernel writes, before the number of rows.
    ///
    /// # Errors
    /// A number is beyond what the kernel takes.
    pub fn args<'a>(&self, states: &'a [Tensor], room: &'a Room) -> Result<Vec<Arg<'a>>> {
        let pair = End::pair(states)?.map(Arg::Tensor);
        let mut all = pair.to_vec();
        match &self.way {
            Way::Result => {}
            Way::Step { args, .. } => {
                all.extend(room.args());
                all.extend(args.of_step()?);
            }
            Way::Inverse { args, .. } => {
                all.push(states.get(2).map_or(Arg::I64(0), Arg::Tensor));
                all.extend(room.args());
                all.extend(args.of_inverse()?);
            }
        }
        Ok(all)
    }

    /// What a kernel makes, composed of libtorch calls: `made` are the layer's result and what else the kernel
    /// writes, `states` its last inputs.
    ///
    /// # Errors
    /// libtorch's.
    pub fn reference(
        &self,
        states: &[&Tensor],
        made: Vec<Tensor>,
        like: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let [first, now] = End::pair(states)?;
        let mut made = made.into_iter();
        let y = made.next().ok_or_else(|| fault("a layer gave no result".into()))?;
        let mut all = match &self.way {
            Way::Result => return Err(fault("a result is wanted, not a state".into())),
            Way::Step { args, .. } => args.step_reference((first, now), (&y, 1.0), like)?,
            Way::Inverse { args, .. } => {
                let kept = states.get(2).copied();
                args.inverse_reference((first, now), kept, (&y, 1.0), like)?
            }
        };
        all.extend(made);
        Ok(all)
    }

    /// Takes what a kernel made, and gives the value of the state with what else it wrote.
    ///
    /// # Errors
    /// It made something else.
    pub fn take(&mut self, results: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let n_own = match &self.way {
            Way::Result => 0,
            Way::Step { args, .. } => Room::step_results(&args.step),
            Way::Inverse { .. } => Room::INVERSE_RESULTS,
        };
        let mut own = results;
        let others = own.split_off(n_own.min(own.len()));
        let made = Made::of(own)?;
        self.made = Some((made.state, made.kept, made.beyond));
        let mut all = vec![made.value];
        all.extend(others);
        Ok(all)
    }

    /// The state that was made, with kept bits and the count of a step.
    pub(super) fn finish(self) -> Result<(Tensor, Option<Tensor>, Option<Count>)> {
        self.made.ok_or_else(|| fault("a layer did not make the state".into()))
    }
}
