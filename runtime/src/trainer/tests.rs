use super::*;
use crate::data::Plan;
use crate::run::Session;
use crate::stage::Outputs;
use crate::testing::{BigramStage, Poison, TestCorpus};

fn close(found: &Tensor, expected: &Tensor) {
    let difference = (found - expected).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "the largest difference is {difference}");
}

#[test]
fn the_test_stage_has_the_gradients_of_autograd() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let session = Session::open(&BigramStage::GOOD, &config).expect("opens");
    let mut state = session.fresh_state().expect("makes");
    let split = &session.corpus().train;
    let plan = Plan::new(split, &config.data, 1).expect("fits");
    let batch = plan.batch(split, 1, Kind::Float).expect("reads");
    state.carries[0] = Tensor::full_like(&state.carries[0], 0.3);
    let stage = BigramStage::GOOD;
    let outputs = stage.forward(&state.inputs(&batch)).expect("runs");
    let gradients = stage.backward(&state.inputs(&batch), outputs.saved).expect("runs");
    let leaves: Vec<Tensor> =
        state.params().iter().map(|param| param.copy().set_requires_grad(true)).collect();
    let inputs = Inputs { params: &leaves, ..state.inputs(&batch) };
    stage.forward(&inputs).expect("runs").values[0].1.backward();
    for (gradient, leaf) in gradients.iter().zip(&leaves) {
        if let Some(gradient) = gradient {
            close(gradient, &leaf.grad());
        }
    }
}

#[test]
fn a_step_moves_trained_parameters_and_no_other() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let session = Session::open(&BigramStage::GOOD, &config).expect("opens");
    let mut state = session.fresh_state().expect("makes");
    let before: Vec<Tensor> = state.params().iter().map(Tensor::copy).collect();
    let split = &session.corpus().train;
    let plan = Plan::new(split, &config.data, 1).expect("fits");
    let batch = plan.batch(split, 0, Kind::Float).expect("reads");
    let report = BigramStage::GOOD.train_step(&mut state, &batch).expect("steps");
    assert_eq!((report.step, state.step()), (1, 1));
    assert_eq!(report.lr, [("scales".to_owned(), 0.005), ("rest".to_owned(), 0.01)]);
    let moved: Vec<bool> = before.iter().zip(state.params()).map(|(a, b)| a != b).collect();
    assert_eq!(moved, [true, true, false, true]);
    assert_eq!(state.states()[0].double_value(&[]), 1.0);
    assert!(state.moments_m[2].is_none());
}

#[test]
fn numbers_that_are_not_finite_stop_the_step_before_it_changes_anything() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let poisons = [Poison::Loss(1), Poison::State(1), Poison::Carry(1), Poison::Gradient(1)];
    let mut text = String::new();
    for poison in poisons {
        let stage = BigramStage::poisoned(poison);
        let session = Session::open(&stage, &config).expect("opens");
        let mut state = session.fresh_state().expect("makes");
        let before: Vec<Tensor> = state.master.iter().map(Tensor::copy).collect();
        let split = &session.corpus().train;
        let plan = Plan::new(split, &config.data, 1).expect("fits");
        let batch = plan.batch(split, 0, Kind::Float).expect("reads");
        let error = stage.train_step(&mut state, &batch).expect_err("stops");
        text += &error.rendered();
        assert_eq!(state.master, before);
        assert_eq!(state.step(), 0);
        assert_eq!(state.states()[0].double_value(&[]), 0.0);
    }
    insta::assert_snapshot!("not_finite", text);
}

#[test]
fn generated_code_that_breaks_the_contract_is_told_apart() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let session = Session::open(&BigramStage::GOOD, &config).expect("opens");
    let state = session.fresh_state().expect("makes");
    let gradients = || -> Vec<Option<Tensor>> {
        let like = |(index, param): (usize, &Tensor)| (index != 2).then(|| param.zeros_like());
        state.params().iter().enumerate().map(like).collect()
    };
    let mut few = gradients();
    few.pop();
    let mut absent = gradients();
    absent[0] = None;
    let mut frozen = gradients();
    frozen[2] = Some(state.params()[2].zeros_like());
    let mut shape = gradients();
    shape[1] = Some(state.params()[0].zeros_like());
    let mut text = String::new();
    for bad in [few, absent, frozen, shape] {
        text += &state.clip(bad).expect_err("is refused").rendered();
    }
    let outputs = Outputs {
        values: Vec::new(),
        carries: Vec::new(),
        states: state.states().iter().map(Tensor::copy).collect(),
        saved: Box::new(()),
    };
    text += &state.take(outputs).expect_err("is refused").rendered();
    insta::assert_snapshot!("contract", text);
}

#[test]
fn the_clipped_norm_is_the_global_one() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let session = Session::open(&BigramStage::GOOD, &config).expect("opens");
    let state = session.fresh_state().expect("makes");
    let like = |(index, param): (usize, &Tensor)| (index != 2).then(|| param.ones_like());
    let gradients = state.params().iter().enumerate().map(like).collect();
    let clipped = state.clip(gradients).expect("clips");
    let n_elements = 300.0 * 8.0 * 2.0 + 8.0;
    assert_eq!(clipped.norm, f64::sqrt(n_elements));
    assert_eq!(clipped.scale, 1.0 / f64::sqrt(n_elements));
}

#[test]
fn a_state_beyond_its_range_stops_the_step_before_it_changes_anything() {
    use crate::reversible::{Forward, Integrator, take_report};
    static INTEGRATOR: Integrator = Integrator { fraction_bits: 20, steps: &[] };
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let stage = BigramStage::GOOD;
    let session = Session::open(&stage, &config).expect("opens");
    let mut state = session.fresh_state().expect("makes");
    let before: Vec<Tensor> = state.master.iter().map(Tensor::copy).collect();
    let split = &session.corpus().train;
    let plan = Plan::new(split, &config.data, 1).expect("fits");
    let batch = plan.batch(split, 0, Kind::Float).expect("reads");
    let _ = take_report();
    let far = Tensor::from_slice(&[1.0f32, 2000.0, -1e9, f32::NAN]);
    let stack = Forward::start(&INTEGRATOR, &far, None).expect("starts");
    let _ = stack.finish(None).expect("ends");
    let error = stage.train_step(&mut state, &batch).expect_err("stops");
    assert_eq!(error.code(), "E1120");
    assert!(error.to_string().contains("3 elements"), "{error}");
    assert_eq!(state.master, before);
    // What was told once is not told again.
    let _ = stage.train_step(&mut state, &batch).expect("steps");
}

/// A count that waits on a device is read with the other numbers of the step, and stops it all the same.
#[test]
fn a_count_that_was_not_read_stops_the_step_too() {
    use crate::reversible::{Forward, Integrator, Step, take_report};
    static INTEGRATOR: Integrator = Integrator { fraction_bits: 20, steps: &[Step::first(1.0)] };
    let corpus = TestCorpus::new();
    let mut config = corpus.own_config();
    config.data.micro_batch = Some(2);
    let stage = BigramStage::GOOD;
    let session = Session::open(&stage, &config).expect("opens");
    let mut state = session.fresh_state().expect("makes");
    state.is_deferred = true;
    let before: Vec<Tensor> = state.master.iter().map(Tensor::copy).collect();
    let split = &session.corpus().train;
    let plan = Plan::new(split, &config.data, 1).expect("fits");
    let batch = plan.batch(split, 0, Kind::Float).expect("reads");
    let _ = take_report().expect("a report");
    // As a kernel does it that ends a layer: the count stays a tensor.
    let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
    let y = Tensor::from_slice(&[1.5f32, 3000.0, f32::NAN]);
    let mut stack = Forward::start(&INTEGRATOR, &x, None).expect("starts");
    let mut end = stack.end().expect("an end");
    let made = end.reference(&end.inputs(&[]), vec![y], &x).expect("steps");
    let [value] = <[Tensor; 1]>::try_from(end.take(made).expect("a state")).expect("one");
    assert_eq!(value.double_value(&[0]), 1.5);
    let _ = stack.advance_to(value, end, ()).expect("goes on");
    let _ = stack.finish(None).expect("ends");
    let error = step(&stage, &mut state, &batch).expect_err("stops");
    assert_eq!(error.code(), "E1120");
    assert!(error.to_string().contains("2 elements"), "{error}");
    assert_eq!(state.master, before);
    let _ = step(&stage, &mut state, &batch).expect("steps");
}

/// Five steps in micro-batches of some lanes.
fn five_steps(micro_batch: usize, is_deferred: bool) -> (TrainState, StepReport) {
    let corpus = TestCorpus::new();
    let mut config = corpus.own_config();
    config.data.micro_batch = Some(micro_batch);
    let stage = BigramStage::GOOD;
    let session = Session::open(&stage, &config).expect("opens");
    let mut state = session.fresh_state().expect("makes");
    state.is_deferred = is_deferred;
    let split = &session.corpus().train;
    let plan = Plan::new(split, &config.data, 1).expect("fits");
    let mut last = None;
    for at in 0..5 {
        let batch = plan.batch(split, at, Kind::Float).expect("reads");
        last = Some(step(&stage, &mut state, &batch).expect("steps"));
    }
    (state, last.expect("a step"))
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let (whole, report) = five_steps(4, false);
    for micro_batch in [1, 2] {
        let (parts, of_parts) = five_steps(micro_batch, false);
        let lists = [
            (&whole.master, &parts.master),
            (&whole.params, &parts.params),
            (&whole.states, &parts.states),
            (&whole.carries, &parts.carries),
        ];
        for (whole, parts) in lists {
            assert_eq!(whole.len(), parts.len());
            whole.iter().zip(parts).for_each(|(whole, parts)| close(parts, whole));
        }
        assert!((report.grad_norm - of_parts.grad_norm).abs() < 1e-6);
        assert!((report.values[0].1 - of_parts.values[0].1).abs() < 1e-6);
        assert_ne!(parts.carries[0], parts.carries[0].zeros_like());
    }
}

#[test]
fn one_read_at_the_end_tells_the_same() {
    for micro_batch in [2, 4] {
        let (at_once, report) = five_steps(micro_batch, false);
        let (deferred, of_deferred) = five_steps(micro_batch, true);
        assert_eq!(at_once.master, deferred.master);
        assert_eq!(report, of_deferred);
    }
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    for poison in [Poison::Loss(1), Poison::State(1), Poison::Carry(1), Poison::Gradient(1)] {
        let stage = BigramStage::poisoned(poison);
        let session = Session::open(&stage, &config).expect("opens");
        let split = &session.corpus().train;
        let plan = Plan::new(split, &config.data, 1).expect("fits");
        let batch = plan.batch(split, 0, Kind::Float).expect("reads");
        let told = |is_deferred: bool| {
            let mut state = session.fresh_state().expect("makes");
            state.is_deferred = is_deferred;
            let before: Vec<Tensor> = state.master.iter().map(Tensor::copy).collect();
            let error = step(&stage, &mut state, &batch).expect_err("stops");
            assert_eq!(state.master, before);
            error.rendered()
        };
        assert_eq!(told(true), told(false), "{poison:?}");
    }
}

/// In bf16 the working copies follow the f32 masters.
#[test]
fn working_copies_follow_their_masters() {
    let corpus = TestCorpus::new();
    let config = corpus.own_config();
    let stage = BigramStage::GOOD;
    let session = Session::open(&stage, &config).expect("opens");
    let setup = Setup { act: Kind::BFloat16, ..session.setup().expect("sets up") };
    let mut state = TrainState::new(&stage, setup).expect("makes");
    let before = state.params[0].copy();
    let copies = |state: &TrainState| {
        for ((master, param), spec) in state.master.iter().zip(&state.params).zip(stage.params()) {
            assert_eq!(master.kind(), Kind::Float, "{}", spec.path);
            assert_eq!(param.kind(), spec.precision.kind(Kind::BFloat16), "{}", spec.path);
            assert_eq!(param, &master.to_kind(param.kind()), "{}", spec.path);
        }
    };
    copies(&state);
    let gradient = |spec: &crate::ParamSpec| {
        let kind = spec.precision.kind(Kind::BFloat16);
        spec.storage.learns().then(|| Tensor::ones(spec.shape, (kind, Device::Cpu)))
    };
    let clipped = state.clip(stage.params().iter().map(gradient).collect()).expect("clips");
    state.update(&clipped).expect("updates");
    copies(&state);
    assert_ne!(state.params[0], before);
}
