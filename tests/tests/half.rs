//! The tiny stages with bf16 activations, as the target sm_90a runs them, here by libtorch on the CPU:
//! every kind that emitted code meets there is met, and loss and gradients stay near those in f32.

use lightc_models::{tiny_2b::Tiny2b, tiny_5b::Tiny5b, tiny_9b::Tiny9b, tiny_120b::Tiny120b};
use lightc_runtime::config::Config;
use lightc_runtime::optimizer::Groups;
use lightc_runtime::trainer::{Setup, step};
use lightc_runtime::{Batch, Inputs, Precision, Stage, TrainState, random};
use lightc_tests::{Random, start_states, to_tensor};
use ndarray::ArrayD;
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn norm(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]).sqrt()
}

/// The norm of a difference, relative to that of what is expected.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let difference = found.to_kind(Kind::Double) - expected.to_kind(Kind::Double);
    norm(&difference) / norm(expected).max(1e-30)
}

/// How far the gradients of two runs are apart: all of them as one vector, and the worst of one
/// parameter, relative to its own norm or to a hundredth of that of all.
fn distance(stage: &dyn Stage, found: &Run, expected: &Run) -> (f64, f64, &'static str) {
    let pairs: Vec<(&str, &Tensor, &Tensor)> = (stage.params().iter())
        .zip(found.grads.iter().zip(&expected.grads))
        .filter_map(|(spec, (found, expected))| {
            Some((spec.path, found.as_ref()?, expected.as_ref()?))
        })
        .collect();
    let total = pairs.iter().map(|(_, _, e)| norm(e).powi(2)).sum::<f64>().sqrt();
    let (mut sum, mut worst) = (0.0, (0.0, ""));
    for (path, found, expected) in pairs {
        let off = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
        sum += off * off;
        let share = off / norm(expected).max(1e-2 * total);
        if share > worst.0 {
            worst = (share, path);
        }
    }
    (sum.sqrt() / total, worst.0, worst.1)
}

struct Run {
    loss: f64,
    values: Vec<Kind>,
    grads: Vec<Option<Tensor>>,
    states: Vec<Tensor>,
    carries: Vec<Tensor>,
}

/// Start values as in training, moved by a share of themselves; rounded to bf16 where that is what the
/// stage computes in, so that two kinds differ in arithmetic alone.
fn params(stage: &dyn Stage, kind: Kind, noise: f64) -> Vec<Tensor> {
    tch::manual_seed(5);
    let drawn = random::init_params(stage.params(), 3, Kind::Float, Device::Cpu).expect("draws");
    let each = stage.params().iter().zip(drawn);
    each.map(|(spec, value)| match spec.precision {
        Precision::Act => {
            let moved = &value * (value.randn_like() * noise + 1.0);
            moved.to_kind(Kind::BFloat16).to_kind(spec.precision.kind(kind))
        }
        other => value.to_kind(other.kind(kind)),
    })
    .collect()
}

/// Random bytes for every token.
fn tables(stage: &dyn Stage, random: &mut Random) -> Vec<Tensor> {
    let vocab = stage.vocab() as usize;
    let counts: Vec<usize> = (0..vocab).map(|_| random.below(17)).collect();
    let table = |table: &lightc_runtime::TableSpec| {
        let shape: Vec<usize> = table.shape.iter().map(|n| *n as usize).collect();
        let array = match table.source {
            "tokenizer.byte_codes" => {
                ArrayD::from_shape_fn(shape.clone(), |at| match at[1] < counts[at[0]] {
                    true => (random.below(256) * shape[1] + at[1]) as f64,
                    false => -1.0,
                })
            }
            _ => ArrayD::from_shape_fn(shape, |at| counts[at[0]] as f64),
        };
        to_tensor(&array, Kind::Int64)
    };
    stage.tables().iter().map(table).collect()
}

/// One forward and backward pass.
fn run(stage: &dyn Stage, kind: Kind, noise: f64, b: usize, t: usize) -> Run {
    let mut random = Random::new(11);
    let params = params(stage, kind, noise);
    let states = start_states(stage.states());
    let state_kind = Precision::F32.kind(kind);
    let states: Vec<Tensor> =
        stage.states().iter().map(|spec| to_tensor(&states[spec.path], state_kind)).collect();
    let vocab = stage.vocab() as usize;
    let tables = tables(stage, &mut random);
    let tokens = random.array(&[b, t + 2], |r| r.below(vocab) as f64);
    let width = stage.carries()[0].shape[1] as usize;
    let memory = random.array(&[b, width], Random::normal);
    let continues = ArrayD::from_shape_fn(vec![b], |at| ((at[0] + 1) % 2) as f64);
    let (tokens, continues) = (to_tensor(&tokens, Kind::Int64), to_tensor(&continues, kind));
    let carries = [to_tensor(&memory, kind)];
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
    let values = outputs.values.iter().map(|(_, value)| value.kind()).collect();
    let (next, next_carries) = (outputs.states, outputs.carries);
    let grads = stage.backward(&inputs, outputs.saved).expect("the backward runs");
    Run { loss, values, grads, states: next, carries: next_carries }
}

/// The yardstick is what moving the parameters by a unit in the last place of bf16 does in f32.
fn check(stage: &dyn Stage, b: usize, t: usize) {
    let name = stage.name();
    let expected = run(stage, Kind::Float, 0.0, b, t);
    let moved = run(stage, Kind::Float, 1.0 / 256.0, b, t);
    let found = run(stage, Kind::BFloat16, 0.0, b, t);
    let off = (found.loss - expected.loss).abs() / expected.loss.abs();
    assert!(off < 1e-2, "{name}: loss {} in bf16, {} in f32", found.loss, expected.loss);
    // The loss is taken in f32 in both.
    assert_eq!(found.values, expected.values, "{name}");
    for (spec, (found, expected)) in
        stage.params().iter().zip(found.grads.iter().zip(&expected.grads))
    {
        match (found, expected) {
            (Some(found), Some(expected)) => {
                assert_eq!(found.kind(), spec.precision.kind(Kind::BFloat16), "{}", spec.path);
                assert_eq!(found.size(), expected.size(), "{}", spec.path);
                assert!(norm(found).is_finite(), "{}", spec.path);
            }
            (None, None) => assert!(!spec.storage.learns(), "{}", spec.path),
            _ => panic!("{}: a gradient is there in one kind only", spec.path),
        }
    }
    let noise = distance(stage, &moved, &expected);
    let half = distance(stage, &found, &expected);
    println!("{name}: bf16 {half:?}, parameters moved {noise:?}");
    assert!(half.0 < 0.1 + 3.0 * noise.0, "{name}: {half:?} against {noise:?}");
    assert!(half.1 < 0.5 + 3.0 * noise.1, "{name}: {half:?} against {noise:?}");
    for ((spec, found), expected) in stage.states().iter().zip(&found.states).zip(&expected.states)
    {
        assert_eq!(found.kind(), Kind::Float, "{}", spec.path);
        let off = relative(found, expected);
        assert!(off < 5e-2, "state {} is off by {off}", spec.path);
    }
    for (found, expected) in found.carries.iter().zip(&expected.carries) {
        assert_eq!(found.kind(), Kind::BFloat16);
        let off = relative(found, expected);
        assert!(off < 5e-2, "a carry is off by {off}");
    }
}

#[test]
fn the_dense_stage_in_bf16() {
    check(&Tiny2b, 2, 70);
}

#[test]
fn the_stages_with_experts_in_bf16() {
    check(&Tiny5b, 2, 33);
    check(&Tiny9b, 1, 33);
}

#[test]
fn the_stage_with_quantized_experts_in_bf16() {
    check(&Tiny120b, 2, 17);
}

const CONFIG: &str = "\
steps = 20
seed = 3
data = { shards = \"none\", sequence_length = 34, batch = 4 }
schedule = { kind = \"cosine\", peak = 0.002, end = 0.0002 }
";

/// Losses of six steps on two batches in turn, and the state after them.
fn train(kind: Kind, micro_batch: usize, by_stage: bool) -> (Vec<f64>, TrainState) {
    let stage = &Tiny2b;
    let config = Config::parse(Path::new("half.toml"), CONFIG).expect("parses");
    let mut random = Random::new(11);
    let setup = Setup {
        seed: config.seed,
        act: kind,
        device: Device::Cpu,
        n_lanes: 4,
        micro_batch,
        adamw: config.adamw(),
        schedule: config.schedule(),
        groups: Groups::assign(stage.params(), &config.groups).expect("assigns"),
        tables: tables(stage, &mut random),
    };
    let mut state = TrainState::new(stage, setup).expect("makes");
    let batches: Vec<Batch> = (0..2)
        .map(|_| Batch {
            tokens: to_tensor(&random.array(&[4, 34], |r| r.below(2048) as f64), Kind::Int64),
            continues: Tensor::ones([4], (kind, Device::Cpu)),
            n_targets: 4 * 32,
        })
        .collect();
    let mut losses = Vec::new();
    for at in 0..6 {
        let batch = &batches[at % 2];
        let report = match by_stage {
            true => stage.train_step(&mut state, batch),
            false => step(stage, &mut state, batch),
        };
        losses.push(report.expect("steps").values[0].1);
    }
    (losses, state)
}

#[test]
fn training_in_bf16_and_in_micro_batches_follows_training_in_f32() {
    let (whole, state) = train(Kind::Float, 4, false);
    assert!(whole[5] < whole[1] - 0.05, "{whole:?}");
    let (parts, _) = train(Kind::Float, 1, false);
    for (whole, parts) in whole.iter().zip(&parts) {
        assert!((whole - parts).abs() < 1e-3, "{whole} {parts}");
    }
    for micro_batch in [4, 2] {
        let (half, of_half) = train(Kind::BFloat16, micro_batch, false);
        for (whole, half) in whole.iter().zip(&half) {
            assert!((whole - half).abs() < 2e-2 * whole, "{whole} {half}");
        }
        for (param, spec) in of_half.params().iter().zip(Tiny2b.params()) {
            assert_eq!(param.kind(), spec.precision.kind(Kind::BFloat16), "{}", spec.path);
        }
        println!("{whole:?}\n{half:?}");
    }
    // What the generated step writes out is what the runtime puts together.
    let (generated, of_generated) = train(Kind::Float, 4, true);
    assert_eq!(generated, whole);
    for (spec, (a, b)) in
        Tiny2b.params().iter().zip(state.params().iter().zip(of_generated.params()))
    {
        assert_eq!(a, b, "{}", spec.path);
    }
}
