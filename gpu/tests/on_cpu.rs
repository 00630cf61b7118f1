//! Stages as a GPU gets them, on libtorch on the processor: there the composition of every kernel runs, so
//! this says that what is emitted around the kernels fits together, and that reversible stacks replay
//! their selections.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use lightc_gpu::stages;
use lightc_runtime::config::Config;
use lightc_runtime::optimizer::{AdamW, Group, Groups};
use lightc_runtime::reversible::{Options, take_report, with_options};
use lightc_runtime::run::{self, RunOptions, Start};
use lightc_runtime::schedule::{Schedule, Shape};
use lightc_runtime::trainer::{self, Batch, Setup, TrainState};
use lightc_runtime::{Device, Inputs, Kind, Precision, Stage, Storage, Tensor, random};

/// Positions, of which no chunk is a divisor.
const POSITIONS: i64 = 21;

struct Data {
    params: Vec<Tensor>,
    states: Vec<Tensor>,
    tables: Vec<Tensor>,
    carries: Vec<Tensor>,
    tokens: Tensor,
    continues: Tensor,
}

fn data(stage: &dyn Stage) -> Data {
    let on = |kind| (kind, Device::Cpu);
    tch::manual_seed(5);
    let params = random::init_params(stage.params(), 7, Kind::Float, Device::Cpu).unwrap();
    let states = stage.states().iter().map(|s| Tensor::full(s.shape, s.start, on(Kind::Float)));
    let tables = stage.tables().iter().map(|table| match *table.shape {
        // One byte a token.
        [vocab, positions] => {
            let codes = Tensor::full([vocab, positions], -1, on(Kind::Int64));
            let bytes = Tensor::arange(vocab, on(Kind::Int64)).remainder(256) * positions;
            codes.select(1, 0).copy_(&bytes);
            codes
        }
        _ => Tensor::ones(table.shape, on(Kind::Int64)),
    });
    let carries = stage.carries().iter().map(|carry| {
        let shape: Vec<i64> = carry.shape.iter().map(|n| if *n < 0 { 1 } else { *n }).collect();
        Tensor::randn(shape, on(Kind::Float))
    });
    Data {
        params,
        states: states.collect(),
        tables: tables.collect(),
        carries: carries.collect(),
        tokens: Tensor::randint(stage.vocab(), [1, POSITIONS + 2], on(Kind::Int64)),
        continues: Tensor::ones([1], on(Kind::Float)),
    }
}

/// The loss and the gradients.
fn step(stage: &dyn Stage, data: &Data, store_everything: bool) -> (f64, Vec<Option<Tensor>>) {
    let inputs = Inputs {
        params: &data.params,
        states: &data.states,
        tables: &data.tables,
        tokens: &data.tokens,
        continues: &data.continues,
        carries: &data.carries,
    };
    let options = Options { store_everything, record_states: false };
    let done = with_options(options, || {
        let outputs = stage.forward(&inputs).unwrap();
        let loss = outputs.values.first().unwrap().1.double_value(&[]);
        (loss, stage.backward(&inputs, outputs.saved).unwrap())
    });
    let _ = take_report();
    done
}

#[test]
fn mixtures_learn_everywhere_and_have_their_states_back() {
    let all: [&dyn Stage; 2] = [&stages::narrow_5b::Narrow5b, &stages::narrow_120b::Narrow120b];
    for stage in all {
        let data = data(stage);
        let (loss, gradients) = step(stage, &data, false);
        assert!(loss.is_finite() && loss > 0.0, "{}: {loss}", stage.name());
        for (spec, gradient) in stage.params().iter().zip(&gradients) {
            let learns = spec.storage.learns();
            assert_eq!(learns, gradient.is_some(), "{} {}", stage.name(), spec.path);
            let Some(gradient) = gradient else { continue };
            assert_eq!(gradient.size(), spec.shape, "{}", spec.path);
            assert!(bool::try_from(gradient.isfinite().all()).unwrap(), "{}", spec.path);
            let is_adapter = matches!(spec.storage, Storage::Adapter);
            assert!(!is_adapter || gradient.abs().max().double_value(&[]) > 0.0, "{}", spec.path);
        }
        let (stored_loss, stored) = step(stage, &data, true);
        assert_eq!(loss.to_bits(), stored_loss.to_bits());
        for ((spec, a), b) in stage.params().iter().zip(&gradients).zip(&stored) {
            assert_eq!(a, b, "{} {}", stage.name(), spec.path);
        }
    }
}

#[test]
fn a_share_says_what_is_divided() {
    let share = stages::narrow_120b::Narrow120b.share().unwrap();
    assert_eq!(share.ranks, 8);
    assert!(share.divided.iter().all(|path| path.contains(".routed.")), "{:?}", share.divided);
    // Nine of each of eight layers; the multi-token head has its experts whole.
    assert_eq!(share.divided.len(), 72);
    let params = stages::narrow_120b::Narrow120b.params();
    let codes =
        params.iter().filter(|spec| spec.path.ends_with("layers.0.feed.body.routed.gate.codes"));
    assert_eq!(codes.map(|spec| spec.shape.to_vec()).collect::<Vec<_>>(), [[8, 128, 512]]);
    assert!(stages::narrow_5b::Narrow5b.share().is_none());
}

/// Of what every rank has, one rank of eight updates its eighth; of what ranks divide, all that it has.
#[test]
fn a_rank_updates_what_is_its_own() {
    let stage: &dyn Stage = &stages::narrow_120b::Narrow120b;
    let divided = stage.share().unwrap().divided;
    let Data { tables, tokens, continues, .. } = data(stage);
    let group = Group { name: "all".to_owned(), lr_multiplier: 1.0, weight_decay: 0.1 };
    let of_param = stage.params().iter().map(|spec| spec.storage.learns().then_some(0)).collect();
    let setup = Setup {
        seed: 3,
        act: Kind::Float,
        device: Device::Cpu,
        n_lanes: 1,
        micro_batch: 1,
        adamw: AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-10, clip_norm: 1.0 },
        schedule: Schedule {
            shape: Shape::Cosine,
            n_steps: 10,
            n_warmup_steps: 0,
            warmup_from: 0.0,
            peak: 1e-2,
            end: 1e-3,
        },
        groups: Groups { groups: vec![group], of_param },
        tables,
    };
    let mut state = TrainState::new(stage, setup).unwrap();
    let before: Vec<Tensor> = state.params().iter().map(Tensor::copy).collect();
    let batch = Batch { tokens, continues, n_targets: POSITIONS as usize };
    let report = trainer::step(stage, &mut state, &batch).unwrap();
    assert!(report.grad_norm > 0.0);
    for ((spec, old), new) in stage.params().iter().zip(&before).zip(state.params()) {
        let changed = old.ne_tensor(new).reshape([-1]);
        let n = changed.numel() as i64;
        let is_cut = spec.storage.learns()
            && spec.precision == Precision::Act
            && !divided.contains(&spec.path);
        let own = match (spec.storage.learns(), is_cut) {
            (false, _) => 0,
            (true, false) => n,
            (true, true) => (n + 7) / 8,
        };
        let rest = changed.narrow(0, own, n - own).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(rest, 0, "{} is another rank's from {own} on", spec.path);
        // Adam moves what has a gradient; decay moves what is not 0.
        if is_cut && n >= 4096 && !spec.path.contains("embed") {
            let moved = changed.narrow(0, 0, own).sum(Kind::Int64).int64_value(&[]);
            assert!(2 * moved > own, "{}: {moved} of {own}", spec.path);
        }
    }
}

/// A share is told to save nothing before anything is read or made.
#[test]
fn a_share_writes_no_checkpoint() {
    let out = std::env::temp_dir().join("a share writes no checkpoint");
    let text = include_str!("../../configs/lightning_120b_share.toml");
    let config = Config::parse(Path::new("configs/lightning_120b_share.toml"), text).unwrap();
    let stop = AtomicBool::new(false);
    let begins = [Start::New, Start::Latest];
    for (start, no_checkpoints) in begins.into_iter().zip([false, true]) {
        let options = RunOptions { start, no_checkpoints, ..RunOptions::new(&out) };
        let error = run::train(&stages::narrow_120b::Narrow120b, &config, &options, &stop);
        let error = error.unwrap_err();
        assert_eq!(error.code(), "E1109");
        insta::assert_snapshot!("share_checkpoint", error.rendered());
    }
    assert!(!out.exists());
}
