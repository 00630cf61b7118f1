//! Small modules as IR text, and their gradients in the interpreter.

use lightc_codegen::autodiff::differentiate;
use lightc_codegen::interp::{Store, Tensors, gradients, run};
use lightc_codegen::ir::{BackwardId, Module, text, verify};
use lightc_codegen::ops::Array;
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A module of IR text that the verifier accepts.
pub(crate) fn parsed(source: &str) -> Module {
    let module = text::parse(source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    assert_eq!(verify::verify(&module), [], "{source}");
    module
}

/// The text with edits, each of which is at one place.
pub(crate) fn changed(source: &str, edits: &[(&str, &str)]) -> String {
    let mut source = source.to_owned();
    for (from, to) in edits {
        assert_eq!(source.matches(from).count(), 1, "{from}\n{source}");
        source = source.replace(from, to);
    }
    source
}

/// The same with the derivative of its output `loss`.
pub(crate) fn differentiated(source: &str) -> (Module, BackwardId) {
    let mut module = parsed(source);
    let backward = differentiate(&mut module, "loss").unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(verify::verify(&module), []);
    (module, backward)
}

/// Numbers of a seed.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// Between 0 and 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Elements made of numbers between 0 and 1.
    pub(crate) fn array(&mut self, shape: &[usize], mut draw: impl FnMut(f64) -> f64) -> Array {
        ArrayD::from_shape_fn(shape.to_vec(), |_| draw(self.uniform()))
    }
}

/// [`Random`] of a seed.
pub(crate) fn random(seed: u64) -> Random {
    Random(ChaCha8Rng::seed_from_u64(seed))
}

/// Parameters between -1 and 1.
pub(crate) fn store(module: &Module, random: &mut Random) -> Store {
    let mut store = Store::default();
    for placed in module.placed_params() {
        let axes = &placed.item.ty.axes;
        let shape: Vec<usize> =
            axes.iter().map(|axis| axis.size.as_constant().unwrap() as usize).collect();
        let _ = store.params.insert(placed.path, random.array(&shape, |u| 2.0 * u - 1.0));
    }
    store
}

/// Gradients of the loss.
pub(crate) fn grads(
    module: &Module,
    backward: BackwardId,
    inputs: &[Array],
    store: &Store,
) -> Tensors {
    let trace = run(module, inputs, store).unwrap().trace;
    let one = [ArrayD::from_elem(vec![], 1.0)];
    gradients(module, backward, &trace, &one, store).unwrap()
}

/// Fails where gradients differ by more than rounding in f64.
pub(crate) fn check_equal(what: &str, wanted: &Tensors, got: &Tensors) {
    assert_eq!(wanted.len(), got.len(), "{what}");
    let largest = |array: &Array| array.iter().fold(0.0, |all: f64, x| all.max(x.abs()));
    for (path, a) in wanted {
        let error = largest(&(a - &got[path]));
        assert!(error <= 1e-12 * largest(a).max(1e-3), "{what}, {path}: {error:e}");
    }
}
