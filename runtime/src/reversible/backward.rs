//! The backward pass of a stack: states had back, layers computed again and differentiated.

use std::rc::Rc;

use super::tape::Entry;
use super::{End, Kept, Step, Stored, Tape, fault, not_reconstructed, report, step_args, step_of};
use crate::ops::{
    Cotangents, Push, state_before, state_cotangent, state_seed, state_step, state_value,
};
use crate::{Result, Tensor};

/// The backward pass of a stack.
#[derive(Debug)]
pub struct Backward<'a> {
    kept: &'a Kept,
    /// The state after that of the layer at hand.
    next: Tensor,
    /// The state that the layer at hand read.
    now: Tensor,
    /// The value of `now`, where it came with it.
    value: Option<Tensor>,
    /// Cotangent of `next`.
    d_next: Tensor,
    /// Cotangent of the state after `next`, and its share in that of `now`.
    late: Option<(Tensor, f64)>,
    /// Layers to come.
    remaining: usize,
}

impl<'a> Backward<'a> {
    /// Begins at the last state, with the cotangent of its value. The states go as the pass goes: there is one pass.
    ///
    /// # Errors
    /// There has been one.
    pub fn start(kept: &'a Kept, d: &Tensor) -> Result<Backward<'a>> {
        let ends = kept.ends.take();
        let [now, next] =
            ends.ok_or_else(|| fault("a second backward pass of one forward".into()))?;
        report::record_state(&next);
        Ok(Backward {
            kept,
            next,
            now,
            value: None,
            d_next: d.shallow_clone(),
            late: None,
            remaining: kept.layers.len(),
        })
    }

    /// The backward of the next layer towards the first. `stored` is what the layer saved in a run
    /// that stores everything; otherwise `forward` computes it anew.
    ///
    /// # Errors
    /// Those of the layer; and where the reconstruction is not what the forward pass had.
    pub fn layer<S>(
        &mut self,
        stored: Option<&S>,
        forward: impl FnOnce(&Tensor, &mut Tape) -> Result<(Tensor, S)>,
        backward: impl FnOnce(&S, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let _ = self.any_layer(None, stored, forward, backward)?;
        Ok(())
    }

    /// The same for a layer with a gate, whose cotangent it gives.
    ///
    /// # Errors
    /// As [`Backward::layer`].
    pub fn gated_layer<S>(
        &mut self,
        gate: &Tensor,
        stored: Option<&S>,
        forward: impl FnOnce(&Tensor, &mut Tape) -> Result<(Tensor, S)>,
        backward: impl FnOnce(&S, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let d_gate = self.any_layer(Some(gate), stored, forward, backward)?;
        d_gate.ok_or_else(|| fault("a gate has no cotangent".into()))
    }

    /// [`Backward::layer`] of a layer that is handed an end.
    ///
    /// # Errors
    /// As [`Backward::layer`].
    pub fn ended_layer<S>(
        &mut self,
        stored: Option<&S>,
        forward: impl FnOnce(&Tensor, &mut Tape, &mut End) -> Result<(Tensor, S)>,
        backward: impl FnOnce(&S, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        if stored.is_some() {
            let forward = |p: &Tensor, tape: &mut Tape| forward(p, tape, &mut End::result());
            return self.layer(stored, forward, backward);
        }
        let (layer, step, p) = self.begin()?;
        let mut end = self.end(layer, step)?;
        let mut tape = Tape::read(self.selections(layer));
        let (value, saved) = forward(&p, &mut tape, &mut end)?;
        drop(p);
        if !tape.is_used_up() {
            return Err(not_reconstructed(layer));
        }
        let (state, _, _) = end.finish()?;
        let before = if layer > 0 {
            self.value = Some(value);
            Some(state)
        } else {
            self.is_next(&state)?;
            None
        };
        let seed = state_seed(&self.d_next, step.weight, None)?;
        let through = backward(&saved, &seed)?;
        self.step_back(step, None, (&seed, &through), before)
    }

    /// What the layer at hand is to end with in its second pass: the state before, or, where there is none, its
    /// step again.
    fn end(&self, layer: usize, step: Step) -> Result<End> {
        let args = step_args(self.kept.integrator, step, self.kept.kind);
        if layer == 0 {
            return Ok(End::step(args, &self.now, &self.now));
        }
        let kept = self.kept.layers.get(layer).and_then(|layer| layer.bits.as_ref());
        End::inverse(args, &self.next, &self.now, kept)
    }

    /// The next layer towards the first, its step, and the value that it read.
    fn begin(&mut self) -> Result<(usize, Step, Tensor)> {
        let layer =
            self.remaining.checked_sub(1).ok_or_else(|| fault("one layer too many".into()))?;
        self.remaining = layer;
        report::record_state(&self.now);
        let integrator = self.kept.integrator;
        let p = match self.value.take() {
            Some(value) => value,
            None => state_value(&self.now, integrator.fraction_bits, self.kept.kind)?,
        };
        Ok((layer, step_of(integrator, layer)?, p))
    }

    fn any_layer<S>(
        &mut self,
        gate: Option<&Tensor>,
        stored: Option<&S>,
        forward: impl FnOnce(&Tensor, &mut Tape) -> Result<(Tensor, S)>,
        backward: impl FnOnce(&S, &Tensor) -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let (layer, step, p) = self.begin()?;
        let (y, again) = match stored {
            Some(_) => (self.stored(layer)?.result.shallow_clone(), None),
            None => {
                let mut tape = Tape::read(self.selections(layer));
                let (y, saved) = forward(&p, &mut tape)?;
                if !tape.is_used_up() {
                    return Err(not_reconstructed(layer));
                }
                (y, Some(saved))
            }
        };
        let now = self.now.shallow_clone();
        let push = Push { now: &now, p: &p, y: &y, gate };
        let before = self.state_before(layer, step, &push)?;
        let seed = state_seed(&self.d_next, step.weight, gate)?;
        let d_gate = gate.map(|gate| self.gate_cotangent(step, &push, gate)).transpose()?;
        drop((p, y, now));
        let saved = stored.or(again.as_ref());
        let through = backward(saved.ok_or_else(|| fault("a layer saved nothing".into()))?, &seed)?;
        self.step_back(step, gate, (&seed, &through), before)?;
        Ok(d_gate)
    }

    /// The cotangent of the stack's input.
    ///
    /// # Errors
    /// If layers are left.
    pub fn finish(self) -> Result<Tensor> {
        match self.remaining {
            0 => Ok(self.d_next),
            n => Err(fault(format!("{n} layers are left"))),
        }
    }

    fn selections(&self, layer: usize) -> Vec<Rc<Entry>> {
        self.kept.layers.get(layer).map(|layer| layer.selections.clone()).unwrap_or_default()
    }

    fn stored(&self, layer: usize) -> Result<&'a Stored> {
        let stored = self.kept.stored.as_ref().and_then(|stored| stored.get(layer));
        stored.ok_or_else(|| fault(format!("layer {layer} was not stored")))
    }

    /// The state before the one that the layer read; for layer 0 there is none, and its step is done again in
    /// place of undone.
    fn state_before(
        &mut self,
        layer: usize,
        step: Step,
        push: &Push<'_>,
    ) -> Result<Option<Tensor>> {
        let bits = self.kept.integrator.fraction_bits;
        let fixed = step.fixed(bits);
        if self.kept.stored.is_some() {
            let before = layer.checked_sub(1).map(|before| self.stored(before)).transpose()?;
            return Ok(before.map(|stored| stored.state.shallow_clone()));
        }
        if layer > 0 {
            let kept = self.kept.layers.get(layer).and_then(|layer| layer.bits.as_ref());
            let (before, value) = state_before(&fixed, bits, &self.next, kept, push)?;
            self.value = value;
            return Ok(Some(before));
        }
        self.is_next(&state_step(&fixed, bits, push.now, push)?.state)?;
        Ok(None)
    }

    /// The first step, done again, must give what it gave: one look at the device in a stack.
    fn is_next(&self, again: &Tensor) -> Result<()> {
        if again.f_equal(&self.next)? { Ok(()) } else { Err(not_reconstructed(0)) }
    }

    fn gate_cotangent(&self, step: Step, push: &Push<'_>, gate: &Tensor) -> Result<Tensor> {
        let wide = crate::Precision::F32.kind(gate.kind());
        let made = push.y.f_to_kind(wide)?.f_sub(&push.p.f_to_kind(wide)?)?;
        let felt = self.d_next.f_to_kind(wide)?.f_mul(&made)?.f_sum(wide)?;
        Ok(felt.f_mul_scalar(step.weight)?.f_to_kind(gate.kind())?.f_reshape(gate.size())?)
    }

    /// `late + (1 - a) d_next - seed + through`, in this order, is the cotangent of the state that the layer
    /// read, where `late` is what the step after it has of it; `a d_next` goes to the state before.
    fn step_back(
        &mut self,
        step: Step,
        gate: Option<&Tensor>,
        (seed, through): (&Tensor, &Tensor),
        before: Option<Tensor>,
    ) -> Result<()> {
        let late = self.late.take();
        let parts = Cotangents {
            late: late.as_ref().map(|(late, share)| (late, *share)),
            d: &self.d_next,
            share: 1.0 - step.a(),
            seed,
            through,
        };
        let d_now = state_cotangent(&parts, step.weight, gate)?;
        let d_next = std::mem::replace(&mut self.d_next, d_now);
        if let Some(before) = before {
            self.late = Some((d_next, step.a()));
            self.next = std::mem::replace(&mut self.now, before);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reversible::{Forward, Integrator};
    use crate::{Device, Kind};

    static NO_LAYERS: Integrator = Integrator { fraction_bits: 20, steps: &[] };

    /// The states go as the pass goes, so there is no second one.
    #[test]
    fn a_forward_pass_has_one_backward_pass() {
        let x = Tensor::f_ones([1, 2, 3], (Kind::Float, Device::Cpu)).expect("ones");
        let forward = Forward::start(&NO_LAYERS, &x, None).expect("starts");
        let (value, kept) = forward.finish(None).expect("ends");
        assert_eq!((value, kept.state_bytes()), (x.shallow_clone(), 2 * 4 * 6));
        let d = Backward::start(&kept, &x).and_then(Backward::finish).expect("passes");
        assert_eq!((d, kept.state_bytes()), (x.shallow_clone(), 0));
        let error = Backward::start(&kept, &x).expect_err("has no states").to_string();
        assert!(error.contains("a second backward pass"), "{error}");
    }
}
