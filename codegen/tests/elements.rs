//! The optimizer's arithmetic as IR: what it means, and the device functions that are generated from it.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use lightc_codegen::interp::{Store, run};
use lightc_codegen::ir::verify;
use lightc_codegen::ops::Array;
use lightc_codegen::optimizer::{ADAMW, SQUARE, header, module};
use ndarray::ArrayD;
use std::path::Path;

fn list(values: &[f64]) -> Array {
    ArrayD::from_shape_vec(vec![values.len()], values.to_vec()).unwrap()
}

fn scalar(value: f64) -> Array {
    ArrayD::from_elem(vec![], value)
}

#[test]
fn functions_are_ir() {
    for source in [ADAMW, SQUARE] {
        let module = module(source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
        assert_eq!(verify::verify(&module), [], "{source}");
    }
}

/// Three elements by hand: moments from 0, so that corrections make them the gradient and its square.
#[test]
fn a_first_update_goes_by_the_sign_of_the_gradient() {
    let gradients = [4.0, -0.5, 0.0];
    let zero = list(&[0.0; 3]);
    let (beta1, beta2, rate, decay, clip) = (0.5, 0.75, 0.125, 0.5, 0.5);
    let scalars = [
        clip,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 - beta1,
        1.0 - beta2,
        0.0,
        rate,
        1.0 - rate * decay,
    ];
    // The last gradient is 0, and with it root: eps keeps that finite.
    let mut inputs = vec![list(&[1.0, 1.0, 1.0]), zero.clone(), zero, list(&gradients)];
    inputs.extend(scalars.map(scalar));
    inputs[11] = scalar(2f64.powi(-60));
    let outputs = run(&module(ADAMW).unwrap(), &inputs, &Store::default()).unwrap().outputs;
    let near = |x: &Array, want: [f64; 3]| {
        assert!(
            x.iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-12),
            "{x} is not {want:?}"
        );
    };
    near(&outputs[0], [0.9375 - 0.125, 0.9375 + 0.125, 0.9375]);
    near(&outputs[1], [1.0, -0.125, 0.0]);
    near(&outputs[2], [1.0, 0.015625, 0.0]);
    assert_eq!(outputs[3].len(), 3);
}

#[test]
fn generated_device_functions_are_those_of_the_ir() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/include/elements.cuh");
    let wanted = header().unwrap();
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == wanted, "{} is not up to date: `cargo xtask bless`\n{wanted}", path.display());
}
