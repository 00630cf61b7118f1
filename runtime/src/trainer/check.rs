//! What is checked of a forward and a backward pass before anything changes.

use std::any::Any;

use super::TrainState;
use crate::error::{Error, Result, TrainError};
use crate::optimizer::{square_sum, square_sum_on_device};
use crate::stage::{Outputs, ParamSpec, Storage};
use crate::{Kind, Tensor};

/// A scalar of a forward pass.
#[derive(Debug)]
pub(super) enum Value {
    /// As a number.
    Known(f64),
    /// f64 on the device, not read yet.
    Waiting(Tensor),
}

/// The part of a forward pass that outlives the backward pass.
#[derive(Debug)]
pub struct Forwarded {
    pub(super) values: Vec<(&'static str, Value)>,
    pub(super) carries: Vec<Tensor>,
    pub(super) states: Vec<Tensor>,
    /// Numbers of elements of reversible states beyond their range, i64 `[]` on the device, not read yet.
    pub(super) beyond: Vec<Tensor>,
}

impl Forwarded {
    /// The values that are known.
    pub(super) fn known_values(&self) -> Vec<(&'static str, f64)> {
        let known = |(name, value): &(&'static str, Value)| match value {
            Value::Known(value) => Some((*name, *value)),
            Value::Waiting(_) => None,
        };
        self.values.iter().filter_map(known).collect()
    }
}

/// Gradients that are finite, with their global norm.
#[derive(Debug)]
pub struct Clipped {
    pub(super) gradients: Vec<Option<Tensor>>,
    /// The values, where they were not known before.
    pub(super) values: Option<Vec<(&'static str, f64)>>,
    /// What every tensor in `gradients` is multiplied by: `scale`, divided by the number of
    /// micro-batches that they are sums over.
    pub(super) factor: f64,
    /// Global norm before clipping.
    pub norm: f64,
    /// What every gradient is multiplied by: at most 1.
    pub scale: f64,
}

impl TrainState {
    /// Takes a forward pass apart. Fails where a value, state or carry is not
    /// finite or a state or carry has another shape.
    pub fn take(&self, outputs: Outputs) -> Result<(Forwarded, Box<dyn Any>)> {
        let values = self.finite_values(&outputs)?;
        let values = values.into_iter().map(|(name, value)| (name, Value::Known(value))).collect();
        let (forwarded, saved) = self.take_tensors(values, outputs, &self.carries)?;
        self.finite_tensors(&forwarded)?;
        Ok((forwarded, saved))
    }

    /// The same for a micro-batch with these carries; where checks are deferred it reads nothing.
    pub(super) fn take_part(
        &self,
        outputs: Outputs,
        carries: &[Tensor],
    ) -> Result<(Forwarded, Box<dyn Any>)> {
        if !self.is_deferred {
            let values = self.finite_values(&outputs)?;
            let known = values.into_iter().map(|(name, value)| (name, Value::Known(value)));
            let (forwarded, saved) = self.take_tensors(known.collect(), outputs, carries)?;
            self.finite_tensors(&forwarded)?;
            return Ok((forwarded, saved));
        }
        let (report, beyond) = crate::reversible::take_waiting()?;
        self.none_beyond(report.beyond)?;
        let waiting = |(name, tensor): &(&'static str, Tensor)| -> Result<(&'static str, Value)> {
            let wide = tensor.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([0i64; 0])?;
            Ok((*name, Value::Waiting(wide)))
        };
        let values = outputs.values.iter().map(waiting).collect::<Result<Vec<_>>>()?;
        let (forwarded, saved) = self.take_tensors(values, outputs, carries)?;
        Ok((Forwarded { beyond: beyond.into_iter().collect(), ..forwarded }, saved))
    }

    fn take_tensors(
        &self,
        values: Vec<(&'static str, Value)>,
        outputs: Outputs,
        carries: &[Tensor],
    ) -> Result<(Forwarded, Box<dyn Any>)> {
        let paths = self.info.states.iter().map(|spec| spec.path);
        let states = self.of_same_types("state", paths.zip(&self.states), outputs.states)?;
        let names = self.info.carries.iter().map(|spec| spec.name);
        let carries = self.of_same_types("carry", names.zip(carries), outputs.carries)?;
        Ok((Forwarded { values, carries, states, beyond: Vec::new() }, outputs.saved))
    }

    /// No state of a reversible stack has left its range.
    fn in_range(&self) -> Result<()> {
        self.none_beyond(crate::reversible::take_report()?.beyond)
    }

    fn none_beyond(&self, n_elements: i64) -> Result<()> {
        if n_elements > 0 {
            return Err(TrainError::OutOfRange { step: self.step + 1, n_elements }.into());
        }
        Ok(())
    }

    /// The values of a forward pass as numbers; the first that is not finite is
    /// an error.
    pub(crate) fn finite_values(&self, outputs: &Outputs) -> Result<Vec<(&'static str, f64)>> {
        self.in_range()?;
        let mut values = Vec::with_capacity(outputs.values.len());
        for (name, tensor) in &outputs.values {
            values.push((*name, tensor.f_double_value(&[])?));
        }
        self.finite_numbers(&values)?;
        Ok(values)
    }

    fn finite_numbers(&self, values: &[(&'static str, f64)]) -> Result<()> {
        match values.iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((name, value)) => Err(self.not_finite(format!("the value `{name}`"), *value)),
        }
    }

    fn of_same_types<'a>(
        &self,
        what: &str,
        old: impl ExactSizeIterator<Item = (&'static str, &'a Tensor)>,
        new: Vec<Tensor>,
    ) -> Result<Vec<Tensor>> {
        if old.len() != new.len() {
            let detail = format!("it has {} of kind {what}, forward gave {}", old.len(), new.len());
            return Err(self.contract(detail));
        }
        let same = |((name, old), new): ((&str, &Tensor), Tensor)| {
            self.same_type(&format!("the {what} `{name}`"), old, &new)?;
            Ok(new.f_contiguous()?)
        };
        old.zip(new).map(same).collect()
    }

    fn same_type(&self, what: &str, old: &Tensor, new: &Tensor) -> Result<()> {
        let (expected, found) = ((old.size(), old.f_kind()?), (new.size(), new.f_kind()?));
        if expected == found {
            return Ok(());
        }
        Err(self.contract(format!("{what} is {expected:?}, the generated code gave {found:?}")))
    }

    /// All states and carries of a forward pass are finite; the first that is not is an error.
    fn finite_tensors(&self, forwarded: &Forwarded) -> Result<()> {
        for (spec, state) in self.info.states.iter().zip(&forwarded.states) {
            self.finite(&format!("the state `{}`", spec.path), state)?;
        }
        for (spec, carry) in self.info.carries.iter().zip(&forwarded.carries) {
            self.finite(&format!("the carry `{}`", spec.name), carry)?;
        }
        Ok(())
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
        self.check_gradients(&gradients)?;
        let mut sum = 0.0;
        for gradient in gradients.iter().flatten() {
            sum += square_sum(gradient)?;
        }
        self.clipped(gradients, sum, 1)
    }

    /// The same for sums over `n_parts` micro-batches, and, where checks are deferred, the look at
    /// what the forward passes gave.
    pub(super) fn clip_parts(
        &self,
        gradients: Vec<Option<Tensor>>,
        forwarded: &Forwarded,
        n_parts: usize,
    ) -> Result<Clipped> {
        if !self.is_deferred {
            self.check_gradients(&gradients)?;
            let sums = gradients.iter().flatten().map(square_sum);
            let sum = sums.sum::<Result<f64>>()?;
            return self.clipped(gradients, sum, n_parts);
        }
        self.check_gradients(&gradients)?;
        // The kernels of the optimizer walk memory.
        let dense = |gradient: Option<Tensor>| gradient.map(|g| g.f_contiguous()).transpose();
        let gradients =
            gradients.into_iter().map(dense).collect::<std::result::Result<Vec<_>, _>>()?;
        let read = self.read(&gradients, forwarded)?;
        self.finite_numbers(&read.values)?;
        if !read.is_finite {
            self.finite_tensors(forwarded)?;
        }
        let clipped = self.clipped(gradients, read.square_sum, n_parts)?;
        Ok(Clipped { values: Some(read.values), ..clipped })
    }

    fn clipped(
        &self,
        gradients: Vec<Option<Tensor>>,
        square_sum: f64,
        n_parts: usize,
    ) -> Result<Clipped> {
        let norm = square_sum.sqrt() / n_parts as f64;
        if !norm.is_finite() {
            return Err(self.first_bad_gradient(&gradients, norm)?);
        }
        let scale = self.setup.adamw.clip_scale(norm);
        Ok(Clipped { gradients, values: None, factor: scale / n_parts as f64, norm, scale })
    }

    /// The error that names the first gradient with a number that is not finite. Where all are
    /// finite, their squares went beyond the range of f64.
    fn first_bad_gradient(&self, gradients: &[Option<Tensor>], norm: f64) -> Result<Error> {
        for (spec, gradient) in self.info.params.iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            if let Some(value) = first_not_finite(gradient)? {
                return Ok(self.not_finite(format!("the gradient of `{}`", spec.path), value));
            }
        }
        Ok(self.not_finite("the global norm of the gradients".to_owned(), norm))
    }

    fn check_gradients(&self, gradients: &[Option<Tensor>]) -> Result<()> {
        if gradients.len() != self.master.len() {
            let (expected, found) = (self.master.len(), gradients.len());
            return Err(
                self.contract(format!("it has {expected} parameters, backward gave {found}"))
            );
        }
        for ((spec, param), gradient) in self.info.params.iter().zip(&self.params).zip(gradients) {
            self.check_gradient(spec, param, gradient.as_ref())?;
        }
        Ok(())
    }

    fn check_gradient(
        &self,
        spec: &ParamSpec,
        param: &Tensor,
        gradient: Option<&Tensor>,
    ) -> Result<()> {
        let what = format!("the gradient of `{}`", spec.path);
        match (spec.storage, gradient) {
            (Storage::Frozen(_) | Storage::Codes(_) | Storage::Scale, None) => Ok(()),
            (Storage::Trained | Storage::Adapter, Some(gradient)) => {
                if gradient.size() != param.size() {
                    let (expected, found) = (param.size(), gradient.size());
                    return Err(self.contract(format!(
                        "`{}` has shape {expected:?}, its gradient {found:?}",
                        spec.path
                    )));
                }
                Ok(())
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

    /// Looks at what a forward pass gave, where that was deferred.
    pub(super) fn look(&self, forwarded: &Forwarded) -> Result<()> {
        if !self.is_deferred {
            return Ok(());
        }
        let read = self.read(&[], forwarded)?;
        self.finite_numbers(&read.values)?;
        if read.is_finite { Ok(()) } else { self.finite_tensors(forwarded) }
    }

    /// What a step on a device tells, in one read.
    fn read(&self, gradients: &[Option<Tensor>], forwarded: &Forwarded) -> Result<Read> {
        let mut numbers = Vec::new();
        for (_, value) in &forwarded.values {
            numbers.push(match value {
                Value::Known(value) => {
                    Tensor::f_full([0i64; 0], *value, (Kind::Double, self.setup.device))?
                }
                Value::Waiting(value) => value.shallow_clone(),
            });
        }
        let gradients: Vec<&Tensor> = gradients.iter().flatten().collect();
        numbers.push(square_sum_on_device(&gradients, self.setup.device)?);
        for count in &forwarded.beyond {
            numbers.push(count.f_to_kind(Kind::Double)?);
        }
        let mut finite = Vec::new();
        for tensor in forwarded.states.iter().chain(&forwarded.carries) {
            finite.push(tensor.f_isfinite()?.f_all()?);
        }
        if !finite.is_empty() {
            numbers.push(Tensor::f_stack(&finite, 0)?.f_all()?.f_to_kind(Kind::Double)?);
        }
        let read = Vec::<f64>::try_from(&Tensor::f_stack(&numbers, 0)?)?;
        let names = forwarded.values.iter().map(|(name, _)| *name);
        let values: Vec<(&'static str, f64)> = names.zip(read.iter().copied()).collect();
        let mut rest = read.iter().skip(values.len());
        let square_sum = rest.next().copied().unwrap_or(f64::NAN);
        let beyond: f64 = rest.by_ref().take(forwarded.beyond.len()).sum();
        #[allow(clippy::cast_possible_truncation)] // a count, exact in f64
        self.none_beyond(beyond as i64)?;
        Ok(Read { square_sum, is_finite: rest.next().is_none_or(|flag| *flag != 0.0), values })
    }

    pub(super) fn not_finite(&self, what: String, value: f64) -> Error {
        let step = self.step + 1;
        TrainError::NotFinite { step, what, value, origin: None, last_checkpoint: None }.into()
    }
}

struct Read {
    values: Vec<(&'static str, f64)>,
    square_sum: f64,
    /// Whether states and carries are.
    is_finite: bool,
}

/// The first element, row-major, that is NaN or infinite.
pub(crate) fn first_not_finite(tensor: &Tensor) -> Result<Option<f64>> {
    let flat = tensor.f_reshape([-1])?;
    let bad = flat.f_isfinite()?.f_logical_not()?.f_nonzero()?;
    if bad.size()[0] == 0 {
        return Ok(None);
    }
    let index = bad.f_int64_value(&[0, 0])?;
    Ok(Some(flat.f_double_value(&[index])?))
}
