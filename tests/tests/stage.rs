//! Whole tiny stages: emitted Rust on libtorch against the interpreter, and against
//! libtorch's own autograd on the same forward.

use lightc_codegen::interp::{self, Store, Tensors};
use lightc_codegen::ops::Array;
use lightc_models::{tiny_2b::Tiny2b, tiny_5b::Tiny5b, tiny_9b::Tiny9b, tiny_120b::Tiny120b};
use lightc_runtime::{Inputs, Stage};
use lightc_tests::{
    Random, compile_stage, largest, models, random_params, start_states, to_array, to_tensor,
    worst_difference,
};
use ndarray::ArrayD;
use tch::{Kind, Tensor};

#[derive(Clone)]
struct Example {
    store: Store,
    tokens: Array,
    memory: Array,
    continues: Array,
}

/// Random parameters, tables and tokens for `b` rows of `t` positions.
fn example(stage: &dyn Stage, seed: u64, b: usize, t: usize) -> Example {
    let mut random = Random::new(seed);
    let params = random_params(stage.params(), &mut random);
    let states = start_states(stage.states());
    let mut tables = Tensors::new();
    let vocab = stage.vocab() as usize;
    let counts: Vec<usize> = (0..vocab).map(|_| random.below(17)).collect();
    for table in stage.tables() {
        let shape: Vec<usize> = table.shape.iter().map(|n| *n as usize).collect();
        let array = match table.source {
            "tokenizer.byte_codes" => ArrayD::from_shape_fn(shape.clone(), |at| {
                if at[1] < counts[at[0]] {
                    (random.below(256) * shape[1] + at[1]) as f64
                } else {
                    -1.0
                }
            }),
            _ => ArrayD::from_shape_fn(shape, |at| counts[at[0]] as f64),
        };
        let _ = tables.insert(table.path.to_owned(), array);
    }
    let tokens = random.array(&[b, t + 2], |r| r.below(vocab) as f64);
    let width = stage.carries()[0].shape[1] as usize;
    let memory = random.array(&[b, width], Random::normal);
    let continues = ArrayD::from_shape_fn(vec![b], |at| ((at[0] + 1) % 2) as f64);
    Example { store: Store { params, states, tables }, tokens, memory, continues }
}

fn list(tensors: &Tensors, paths: impl Iterator<Item = &'static str>, kind: Kind) -> Vec<Tensor> {
    paths.map(|path| to_tensor(&tensors[path], kind)).collect()
}

/// Loss and gradients of the emitted code; `autograd` lets libtorch derive them instead.
fn emitted(
    stage: &dyn Stage,
    example: &Example,
    kind: Kind,
    autograd: bool,
) -> (f64, Vec<Option<Array>>, Vec<Array>) {
    let param = |spec: &lightc_runtime::ParamSpec| {
        let tensor = to_tensor(&example.store.params[spec.path], spec.precision.kind(kind));
        if autograd { tensor.set_requires_grad(spec.storage.learns()) } else { tensor }
    };
    let params: Vec<Tensor> = stage.params().iter().map(param).collect();
    let states = list(&example.store.states, stage.states().iter().map(|s| s.path), kind);
    let tables = list(&example.store.tables, stage.tables().iter().map(|s| s.path), Kind::Int64);
    let tokens = to_tensor(&example.tokens, Kind::Int64);
    let continues = to_tensor(&example.continues, kind);
    let carries = [to_tensor(&example.memory, kind)];
    let inputs = Inputs {
        params: &params,
        states: &states,
        tables: &tables,
        tokens: &tokens,
        continues: &continues,
        carries: &carries,
    };
    let outputs = stage.forward(&inputs).expect("the forward runs");
    let loss = outputs.values[0].1.double_value(&[]);
    let next: Vec<Array> = outputs.states.iter().map(to_array).collect();
    if autograd {
        outputs.values[0].1.backward();
        let grads = params.iter().map(|p| p.grad().defined().then(|| to_array(&p.grad())));
        return (loss, grads.collect(), next);
    }
    let grads = stage.backward(&inputs, outputs.saved).expect("the backward runs");
    (loss, grads.iter().map(|g| g.as_ref().map(to_array)).collect(), next)
}

fn interpreted(stage: &dyn Stage, example: &Example) -> (f64, Tensors, Tensors) {
    let compiled = compile_stage(&models(), "models/tiny/tiny.llm", stage.name());
    let Ok(compiled) = compiled else { panic!("the tiny stage compiles") };
    let inputs = [example.tokens.clone(), example.memory.clone(), example.continues.clone()];
    let run = interp::run(&compiled.module, &inputs, &example.store).expect("interp runs");
    let one = ArrayD::from_elem(vec![], 1.0);
    let grads =
        interp::gradients(&compiled.module, compiled.backward, &run.trace, &[one], &example.store);
    (run.outputs[0][[]], grads.expect("interp differentiates"), run.updates)
}

/// What a difference of a gradient is measured by: the tensor's largest, or a ten-thousandth of the
/// largest of all where that is more: the mix of the last layer has a gradient of about the
/// Sinkhorn's epsilon, since the mean over streams that follows does not see it.
fn gradient_scale(expected: &Array, largest_of_all: f64) -> f64 {
    largest(expected).max(1e-4 * largest_of_all)
}

/// How far a run in f32 may be off, as a multiple of what moves between runs whose parameters differ
/// by a rounding. Of 104 seeds, tensors off by more than 5e-3 reached 2.0.
const ROUNDINGS: f64 = 10.0;

/// How far each gradient moves in `RUNS` runs whose parameters differ from the example's by half a unit of
/// f32: gradients whose terms cancel lose more of their digits than others. Zero for a run in f64,
/// which is held to its tolerance alone.
fn movement_by_rounding(
    stage: &dyn Stage,
    example: &Example,
    grads: &[Option<Array>],
    kind: Kind,
) -> Vec<f64> {
    const RUNS: u64 = 3;
    let mut movements = vec![0.0f64; grads.len()];
    let runs = if kind == Kind::Double { 0 } else { RUNS };
    for run in 0..runs {
        let mut random = Random::new(run);
        let mut moved = example.clone();
        let mut half_unit =
            |value: &mut f64| *value *= 1.0 + (random.uniform() - 0.5) * 2f64.powi(-22);
        moved
            .store
            .params
            .values_mut()
            .for_each(|values| values.iter_mut().for_each(&mut half_unit));
        let others = emitted(stage, &moved, kind, false).1;
        for ((movement, grad), other) in movements.iter_mut().zip(grads).zip(&others) {
            let apart =
                grad.as_ref().zip(other.as_ref()).map_or(0.0, |(a, b)| worst_difference(a, b));
            *movement = movement.max(apart);
        }
    }
    movements
}

fn check_against_interp(stage: &dyn Stage, b: usize, t: usize, kind: Kind, tolerance: f64) {
    let example = example(stage, Random::fresh_seed(), b, t);
    let (loss, grads, states) = emitted(stage, &example, kind, false);
    let (expected, expected_grads, updates) = interpreted(stage, &example);
    assert!(((loss - expected) / expected).abs() < tolerance, "loss {loss}, interp {expected}");
    let overall = expected_grads.values().map(largest).fold(0.0, f64::max);
    let movements = movement_by_rounding(stage, &example, &grads, kind);
    for ((spec, grad), movement) in stage.params().iter().zip(&grads).zip(movements) {
        match (spec.storage.learns(), grad, expected_grads.get(spec.path)) {
            (true, Some(grad), Some(expected)) => {
                let off = worst_difference(grad, expected);
                let limit = tolerance * gradient_scale(expected, overall);
                let limit = limit.max(ROUNDINGS * movement);
                assert!(off < limit, "gradient of {} is off by {off}, limit {limit}", spec.path);
                // With one position there is nothing to decay.
                assert!(t == 1 || largest(expected) > 0.0, "{} has a zero gradient", spec.path);
            }
            (false, None, None) => {}
            (learns, grad, expected) => panic!(
                "{}: learns {learns}, emitted {}, interp {}",
                spec.path,
                grad.is_some(),
                expected.is_some()
            ),
        }
    }
    for (spec, state) in stage.states().iter().zip(&states) {
        let off = worst_difference(state, &updates[spec.path]) / largest(&updates[spec.path]);
        assert!(off < tolerance, "state {} is off by {off}", spec.path);
    }
}

#[test]
fn emitted_code_gives_loss_and_gradients_of_the_interpreter_in_f64() {
    check_against_interp(&Tiny2b, 2, 21, Kind::Double, 1e-9);
}

#[test]
fn routed_experts_give_loss_and_gradients_of_the_interpreter() {
    check_against_interp(&Tiny5b, 2, 9, Kind::Double, 1e-9);
    check_against_interp(&Tiny9b, 1, 9, Kind::Double, 1e-9);
}

#[test]
fn quantized_experts_give_loss_and_gradients_of_the_interpreter() {
    check_against_interp(&Tiny120b, 2, 9, Kind::Double, 1e-9);
}

/// The rewrites of target `sm_90a`, run on libtorch.
#[test]
fn code_for_a_gpu_gives_loss_and_gradients_of_the_interpreter() {
    check_against_interp(&lightc_models::tiny_2b_sm_90a::Tiny2b, 2, 21, Kind::Double, 1e-9);
    check_against_interp(&lightc_models::tiny_2b_sm_90a::Tiny2b, 1, 1, Kind::Double, 1e-9);
    // States of a reversible stack are whole numbers: another order of sums moves some by a unit.
    check_against_interp(&lightc_models::tiny_5b_sm_90a::Tiny5b, 2, 9, Kind::Double, 1e-4);
}

#[test]
fn emitted_code_in_f32_stays_near_the_interpreter() {
    check_against_interp(&Tiny2b, 2, 33, Kind::Float, 2e-2);
}

#[test]
fn one_position_one_row() {
    check_against_interp(&Tiny2b, 1, 1, Kind::Double, 1e-9);
}

#[test]
fn emitted_backward_gives_gradients_of_libtorch_autograd() {
    let stage = &Tiny2b;
    let example = example(stage, Random::fresh_seed(), 2, 70);
    let (loss, grads, _) = emitted(stage, &example, Kind::Double, false);
    let (expected, expected_grads, _) = emitted(stage, &example, Kind::Double, true);
    assert!((loss - expected).abs() < 1e-12, "loss {loss}, under autograd {expected}");
    let overall = expected_grads.iter().flatten().map(largest).fold(0.0, f64::max);
    for ((spec, grad), expected) in stage.params().iter().zip(&grads).zip(&expected_grads) {
        match (grad, expected) {
            (Some(grad), Some(expected)) => {
                let off = worst_difference(grad, expected) / gradient_scale(expected, overall);
                assert!(off < 1e-9, "gradient of {} is off by {off}", spec.path);
            }
            (None, _) => assert!(!spec.storage.learns(), "{}", spec.path),
            (Some(_), None) => panic!("autograd has no gradient for {}", spec.path),
        }
    }
}

#[test]
fn several_threads_give_the_same_bits_twice() {
    tch::set_num_threads(4);
    let example = example(&Tiny2b, Random::fresh_seed(), 2, 65);
    let (loss, grads, states) = emitted(&Tiny2b, &example, Kind::Float, false);
    for _ in 0..3 {
        let again = emitted(&Tiny2b, &example, Kind::Float, false);
        assert_eq!(loss.to_bits(), again.0.to_bits());
        assert_eq!(states, again.2);
        for ((spec, grad), again) in Tiny2b.params().iter().zip(&grads).zip(&again.1) {
            assert_eq!(grad, again, "gradient of {}", spec.path);
        }
    }
}

/// Eight ranks read different tokens and end every step with the same bias, load and running means.
#[test]
fn eight_ranks_keep_one_state() {
    use lightc_runtime::ranks::{threads, within};
    use std::rc::Rc;

    let start = example(&Tiny120b, 5, 1, 6);
    let run = &|tokens_seed: u64, steps: usize| -> Vec<Vec<u64>> {
        let mut own = Example { store: start.store.clone(), ..example(&Tiny120b, 5, 1, 6) };
        let mut random = Random::new(tokens_seed);
        for _ in 0..steps {
            own.tokens = random.array(&[1, 8], |r| r.below(2048) as f64);
            let (_, _, next) = emitted(&Tiny120b, &own, Kind::Float, false);
            for (spec, state) in Tiny120b.states().iter().zip(next) {
                let _ = own.store.states.insert(spec.path.to_owned(), state);
            }
        }
        let bits = |state: &Array| state.iter().map(|x| x.to_bits()).collect();
        Tiny120b.states().iter().map(|spec| bits(&own.store.states[spec.path])).collect()
    };
    let ranks: Vec<Vec<Vec<u64>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = threads(8)
            .into_iter()
            .enumerate()
            .map(|(rank, communicator)| {
                scope.spawn(move || within(Rc::new(communicator), || run(rank as u64, 3)))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a rank runs")).collect()
    });
    for (rank, states) in ranks.iter().enumerate() {
        assert_eq!(states, &ranks[0], "states of rank {rank}");
    }
    assert_ne!(ranks[0], run(0, 3), "one rank alone counts its own tokens only");
}
