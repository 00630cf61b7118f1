//! Integrators in the interpreter: the recurrence, its derivative, and what a schedule says.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::interp::{self, Store, Tensors};
use lightc_codegen::ir::{Module, text, verify::verify};
use lightc_codegen::pipeline::{Compiled, compile};
use lightc_codegen::schedule::schedule_cpu;
use lightc_dsl::diag;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::MapLoader;
use ndarray::ArrayD;

/// A layer with its residual, a stack of four that is joined, and the same four written out.
const SOURCE: &str = "
block Turn(d) {
    axis e = d
    param weight[e, d] ~ normal(0.5)
    param bias[d] ~ normal(0.1)

    forward(x[b, d]) -> [b, d] {
        x + tanh(rename(dot(x, weight, over d), e -> d) + bias)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how

    forward(x[b, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y * y + y, over (b, d))
    }
}

block Written(d, a1: number, a2: number, a3: number) {
    sub l0 = Turn()
    sub l1 = Turn()
    sub l2 = Turn()
    sub l3 = Turn()
    param g1[] ~ ones
    param g3[] ~ ones

    forward(x[b, d]) -> (loss[]) {
        p1 = x + 0.125 * (l0(x) - x)
        p2 = a1 * x + (1 - a1) * p1 + g1 * 0.5 * (l1(p1) - p1)
        p3 = a2 * p1 + (1 - a2) * p2 + 0.5 * (l2(p2) - p2)
        y = a3 * p2 + (1 - a3) * p3 + g3 * 0.5 * (l3(p3) - p3)
        mean(y * y * y + y, over (b, d))
    }
}

stage joined {
    d     = 3
    how   = midpoint(
        h: 1/4, a: [1, 1/2, 3/4, 1], gates: [none, 1, none, -1/2], fraction_bits: 29)
    model = Tower()
}

stage written {
    d     = 3
    a1    = 0.5
    a2    = 0.75
    a3    = 1
    model = Written()
}

stage coarse extends joined {
    how = midpoint(h: 1/4, a: 1/2, fraction_bits: 6)
}
";

fn compiled(stage: &str) -> Compiled {
    let (program, sources, diags) = load_program("main.llm", SOURCE, &MapLoader::default());
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    let model = program.resolve_stage(stage).unwrap();
    compile(&model).unwrap_or_else(|d| panic!("{}", diag::render(&d, &sources, false)))
}

fn array(shape: &[usize], seed: f64) -> ArrayD<f64> {
    let mut index = 0.0;
    ArrayD::from_shape_fn(shape.to_vec(), |_| {
        index += 1.0;
        0.4 * (seed + 1.7 * index).sin()
    })
}

/// Parameters by path, as a stack of `layers` has them.
fn params() -> Tensors {
    let mut params = Tensors::new();
    for layer in 0..4 {
        let seed = f64::from(layer);
        let _ = params.insert(format!("layers.{layer}.weight"), array(&[3, 3], seed));
        let _ = params.insert(format!("layers.{layer}.bias"), array(&[3], 10.0 + seed));
    }
    for (layer, gate) in [(1, 0.8), (3, -0.6)] {
        let _ = params.insert(format!("layers.{layer}.gate"), ArrayD::from_elem(vec![], gate));
    }
    params
}

/// The paths of the block that is written out.
fn written_path(path: &str) -> String {
    match path {
        "layers.1.gate" => "g1".to_owned(),
        "layers.3.gate" => "g3".to_owned(),
        path => path.replacen("layers.", "l", 1),
    }
}

fn run(compiled: &Compiled, params: Tensors) -> (f64, Tensors) {
    let store = Store { params, ..Store::default() };
    let run = interp::run(&compiled.module, &[array(&[2, 3], 5.0)], &store).unwrap();
    let one = ArrayD::from_elem(vec![], 1.0);
    let grads =
        interp::gradients(&compiled.module, compiled.backward, &run.trace, &[one], &store).unwrap();
    (run.outputs[0][[]], grads)
}

#[test]
fn gradients_are_those_of_the_recurrence_that_is_written_out() {
    let (loss, grads) = run(&compiled("joined"), params());
    let renamed = params().into_iter().map(|(path, array)| (written_path(&path), array)).collect();
    let (expected, wanted) = run(&compiled("written"), renamed);
    assert!((loss - expected).abs() < 1e-8, "{loss}, written out {expected}");
    assert_eq!(grads.len(), wanted.len());
    for (path, grad) in &grads {
        let wanted = &wanted[&written_path(path)];
        let off = (grad - wanted).iter().fold(0.0_f64, |m, d| m.max(d.abs()));
        assert!(off < 1e-7, "{path} is off by {off}");
        assert!(grad.iter().any(|g| g.abs() > 1e-4), "{path}");
    }
}

#[test]
fn gradients_are_central_differences() {
    let joined = compiled("joined");
    let (_, grads) = run(&joined, params());
    // Wide steps: a loss is known to the last of 29 bits.
    let eps = 1e-3;
    for (path, grad) in &grads {
        let moved = |by: f64| {
            let mut params = params();
            if let Some(x) = params.get_mut(path).and_then(|array| array.iter_mut().next()) {
                *x += by;
            }
            run(&joined, params).0
        };
        let slope = (moved(eps) - moved(-eps)) / (2.0 * eps);
        let first = *grad.iter().next().unwrap();
        assert!((slope - first).abs() < 2e-5, "{path}: {first}, differences give {slope}");
    }
}

#[test]
fn states_are_multiples_of_the_last_bit() {
    let mut params = params();
    params.retain(|path, _| !path.ends_with("gate"));
    let coarse = compiled("coarse");
    let store = Store { params, ..Store::default() };
    let run = interp::run(&coarse.module, &[array(&[2, 3], 5.0)], &store).unwrap();
    let entry = coarse.module.entry_function();
    let mut found = 0;
    for (_, node) in entry.nodes() {
        if node.op.def().mnemonic() == "stack" {
            for x in run.trace.value(node.results[0]).unwrap() {
                assert_eq!((x * 64.0).fract(), 0.0);
                found += 1;
            }
        }
    }
    assert_eq!(found, 6);
}

#[test]
fn the_text_form_holds_the_integrator_and_the_verifier_reads_it() {
    let joined = compiled("joined").module;
    let printed = text::print(&joined);
    assert!(
        printed.contains("gates: [none] * 1 + [1.0] * 1 + [none] * 1 + [-0.5] * 1"),
        "{printed}"
    );
    assert_eq!(text::parse(&printed).map(|m| text::print(&m)), Ok(printed.clone()));
    let broken =
        |from: &str, to: &str| -> Module { text::parse(&printed.replace(from, to)).unwrap() };
    let fewer = broken(
        "a: [1] * 1 + [1/2] * 1 + [3/4] * 1 + [1] * 1, gates: [none] * 1 + ",
        "a: [1/2] * 3, gates: ",
    );
    assert!(verify(&fewer).iter().any(|v| v.message.contains("one step for each of 4 layers")));
    let ungated = broken(", gates: [none] * 1 + [1.0] * 1 + [none] * 1 + [-0.5] * 1", "");
    assert!(verify(&ungated).iter().any(|v| v.message.contains("its gates are not")));
}

#[test]
fn the_schedule_counts_states_bits_and_selections() {
    let schedule = schedule_cpu(&compiled("joined").module);
    let [stack] = schedule.stacks.as_slice() else { panic!("{:?}", schedule.stacks) };
    assert_eq!((stack.stack.as_str(), stack.layers), ("layers", 4));
    assert_eq!(stack.state_bytes.to_string(), "24*b");
    // 1, 2 and 0 bits of three elements a row.
    assert_eq!(stack.kept_bits.to_string(), "9*b");
    assert_eq!(stack.replay_bits.to_string(), "0");
}
