//! Between the runtime's flat lists of tensors and the nested structs of generated code.
//!
//! A generated block has a struct `Tensors<T>` that is built from a [`Source`] and given back to
//! a [`Sink`], both in canonical order. What `T` is says what the struct holds: `&Tensor` for the
//! weights of a step, `Option<Tensor>` for gradients and next states.

use std::any::Any;
use std::slice::Iter;

use crate::Tensor;
use crate::error::{Error, Result};
use crate::stage::Inputs;

fn mismatch(detail: String) -> Error {
    Error::Op { op: "stage", detail }
}

/// Gives tensors in canonical order, each kind from a list of its own.
pub trait Source<T> {
    /// The next parameter.
    fn param(&mut self) -> Result<T>;
    /// The next state.
    fn state(&mut self) -> Result<T>;
    /// The next table.
    fn table(&mut self) -> Result<T>;
}

/// Takes tensors in canonical order.
pub trait Sink<T> {
    /// Takes the next parameter.
    fn param(&mut self, value: T);
    /// Takes the next state.
    fn state(&mut self, value: T);
    /// Takes the next table.
    fn table(&mut self, value: T);
}

/// The tensors of a step.
pub struct FlatSource<'a> {
    params: Iter<'a, Tensor>,
    states: Iter<'a, Tensor>,
    tables: Iter<'a, Tensor>,
}

impl<'a> FlatSource<'a> {
    /// Reads the lists of `inputs` from their start.
    pub fn new(inputs: &Inputs<'a>) -> Self {
        FlatSource {
            params: inputs.params.iter(),
            states: inputs.states.iter(),
            tables: inputs.tables.iter(),
        }
    }
}

fn next<'a>(list: &mut Iter<'a, Tensor>, what: &'static str) -> Result<&'a Tensor> {
    list.next().ok_or_else(|| mismatch(format!("the list of {what} is too short for the stage")))
}

impl<'a> Source<&'a Tensor> for FlatSource<'a> {
    fn param(&mut self) -> Result<&'a Tensor> {
        next(&mut self.params, "parameters")
    }

    fn state(&mut self) -> Result<&'a Tensor> {
        next(&mut self.states, "states")
    }

    fn table(&mut self) -> Result<&'a Tensor> {
        next(&mut self.tables, "tables")
    }
}

/// Nothing yet: what gradients and next states start as.
pub struct Empty;

impl Source<Option<Tensor>> for Empty {
    fn param(&mut self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn state(&mut self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn table(&mut self) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// Collects the gradients of all parameters.
#[derive(Default)]
pub struct ParamGrads(Vec<Option<Tensor>>);

impl ParamGrads {
    /// What `give` hands over, in canonical order.
    pub fn collect(give: impl FnOnce(&mut ParamGrads)) -> Vec<Option<Tensor>> {
        let mut sink = ParamGrads::default();
        give(&mut sink);
        sink.0
    }
}

impl Sink<Option<Tensor>> for ParamGrads {
    fn param(&mut self, value: Option<Tensor>) {
        self.0.push(value);
    }

    fn state(&mut self, _: Option<Tensor>) {}

    fn table(&mut self, _: Option<Tensor>) {}
}

/// Collects the next value of every state; one that no statement updates keeps its value.
pub struct FlatStates(Vec<Option<Tensor>>);

impl FlatStates {
    /// What `give` hands over, in canonical order.
    ///
    /// # Errors
    /// If the stage and `inputs` disagree on the number of states.
    pub fn collect(inputs: &Inputs<'_>, give: impl FnOnce(&mut FlatStates)) -> Result<Vec<Tensor>> {
        let mut sink = FlatStates(Vec::new());
        give(&mut sink);
        if sink.0.len() != inputs.states.len() {
            return Err(mismatch(format!(
                "the stage has {} states, the run {}",
                sink.0.len(),
                inputs.states.len()
            )));
        }
        let pairs = sink.0.into_iter().zip(inputs.states);
        Ok(pairs.map(|(next, now)| next.unwrap_or_else(|| now.shallow_clone())).collect())
    }
}

impl Sink<Option<Tensor>> for FlatStates {
    fn param(&mut self, _: Option<Tensor>) {}

    fn state(&mut self, value: Option<Tensor>) {
        self.0.push(value);
    }

    fn table(&mut self, _: Option<Tensor>) {}
}

/// Adds to a gradient, in the order of the calls.
///
/// # Errors
/// If the shapes differ.
pub fn accumulate(total: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    *total = Some(match total.take() {
        Some(before) => before.f_add(&gradient)?,
        None => gradient,
    });
    Ok(())
}

/// Carry `index` of a step.
///
/// # Errors
/// If the run has fewer carries than the stage.
pub fn carry<'a>(inputs: &Inputs<'a>, index: usize) -> Result<&'a Tensor> {
    inputs.carries.get(index).ok_or_else(|| mismatch(format!("the run has no carry {index}")))
}

/// What a forward kept, as its own type.
///
/// # Errors
/// If it is another stage's.
pub fn downcast<S: 'static>(saved: Box<dyn Any>) -> Result<Box<S>> {
    saved
        .downcast::<S>()
        .map_err(|_| mismatch("the saved values are not those of this stage's forward".to_owned()))
}
