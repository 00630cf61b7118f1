//! The exact maps on the tiny lineage, as they are used: a stage trains on real text and writes a
//! checkpoint, the growth executor makes the next stage's from it, and that one computes the same
//! at every position and trains on from there.
//!
//! Bounds. The maps to experts and to more layers add exact zeros and swap states, so every bit of
//! every logit stays. The map to clones gives an expert's weight to two clones in halves, and a
//! position adds four terms where it added two: sums in another order. What that changes in 64 bits
//! is far below half of a state's last bit, `2^-21`, and rounded away: every bit stays there too. In
//! 32 bits a state can come out as its neighbour, which is 8 units of the last place of 1: logits and
//! losses stay within [`ULPS_32`] units of the last place of the largest.

use lightc_checkpoint::Checkpoint;
use lightc_codegen::growth::{self, GrowthMap};
use lightc_codegen::ir::Module;
use lightc_codegen::{emit, pipeline};
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::Loader;
use lightc_grow::plan::Side;
use lightc_grow::{Options, Plan, Receipt};
use lightc_models::{tiny_2b_midpoint, tiny_5b, tiny_9b, tiny_9b_exact, tiny_120b_exact};
use lightc_runtime::checkpoint::{Strictness, open_any};
use lightc_runtime::config::Config;
use lightc_runtime::data;
use lightc_runtime::run::Session;
use lightc_runtime::{Inputs, Kind, Stage, Tensor};
use lightc_tests::{models, prepare, root, run};
use std::any::Any;
use std::path::{Path, PathBuf};

const SOURCE: &str = "models/tiny/tiny.llm";

/// By how much logits and losses may be off in 32 bits where sums run in another order, in units of
/// the last place of the largest of them.
const ULPS_32: f64 = 64.0;

/// A stage of the lineage.
#[derive(Clone, Copy)]
struct Member {
    stage: &'static dyn Stage,
    config: &'static str,
    /// The hidden state of every position, from what its forward pass keeps.
    hidden: fn(Box<dyn Any>) -> Tensor,
}

macro_rules! member {
    ($module:ident, $name:ident, $config:literal) => {
        Member {
            stage: &$module::$name,
            config: $config,
            hidden: |saved| {
                let saved = saved.downcast::<$module::language_model::Saved>();
                saved.expect("it is of this stage").hidden.shallow_clone()
            },
        }
    };
}

const SEED: Member = member!(tiny_2b_midpoint, Tiny2bMidpoint, "tiny_2b");
const EXPERTS: Member = member!(tiny_5b, Tiny5b, "tiny_5b");
const DEEP: Member = member!(tiny_9b_exact, Tiny9bExact, "tiny_9b");
const PUBLISHED: Member = member!(tiny_9b, Tiny9b, "tiny_9b");
const CLONES: Member = member!(tiny_120b_exact, Tiny120bExact, "tiny_9b");

/// What is allowed between a source and its target.
#[derive(Clone, Copy, PartialEq)]
enum Allowed {
    /// Every bit is the same.
    Nothing,
    /// Sums run in another order, which in 32 bits can be seen.
    OtherOrder,
}

/// A folder with shards, configurations and runs.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        prepare(SEED.stage, folder.path());
        let place = Place { folder };
        for config in ["tiny_2b", "tiny_5b", "tiny_9b"] {
            place.configure(config);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("the path is UTF-8").to_owned()
    }

    /// The configuration of the demo with smaller batches and shorter evaluations.
    fn configure(&self, name: &str) {
        let config = std::fs::read_to_string(root().join(format!("configs/{name}.toml")));
        let config = config
            .expect("the configuration is readable")
            .replace("../out/demo/shards", "shards")
            .replace("\nbatch = 8\n", "\nbatch = 2\n")
            .replace("max_sequences = 64", "max_sequences = 2");
        assert!(config.contains("\nbatch = 2\n"), "the configuration still has the line");
        std::fs::write(self.path(&format!("{name}.toml")), config).expect("it is written");
    }

    fn config(&self, member: Member) -> Config {
        Config::load(&self.path(&format!("{}.toml", member.config))).expect("it is right")
    }

    /// Trains a run of its own for some steps, from a checkpoint if there is one.
    fn train(&self, member: Member, config: Member, from: Option<&str>, out: &str, steps: u64) {
        let config = self.text(&format!("{}.toml", config.config));
        let (out, steps) = (self.text(out), steps.to_string());
        let mut words = vec!["train", "--config", &config, "--out", &out, "--steps", &steps];
        let from = from.map(|from| self.text(from));
        if let Some(from) = &from {
            words.extend(["--from", from]);
        }
        run(member.stage, &words);
    }

    /// Values of the first step of a run, before its update.
    fn first_step(&self, run: &str) -> serde_json::Value {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl"));
        let text = text.expect("the run has metrics");
        let rows = text.lines().map(|line| serde_json::from_str(line).expect("a row is JSON"));
        let mut steps = rows.filter(|row: &serde_json::Value| row["kind"] == "step");
        steps.next().expect("the run has a step")
    }
}

/// What a stage computes from a checkpoint on a batch of text.
struct Computed {
    /// Logits of every position as the loss reads them, `[b, t, vocab]`.
    logits: Tensor,
    /// Next-token and multi-token loss.
    losses: [f64; 2],
}

/// Runs a stage with the tensors of a checkpoint on two sequences of held-out text.
fn compute(place: &Place, member: Member, path: &Path, kind: Kind) -> Computed {
    let config = place.config(member);
    let session = Session::open(member.stage, &config).expect("the corpus fits");
    let strictness = Strictness { source: true, run: false, settings: false };
    let checkpoint = open_any(path).expect("it opens");
    let state = session.restored_state(&checkpoint, strictness).expect("it is of the stage");
    let split = &session.corpus().held_out;
    let plan = data::Plan::new(split, &config.data, 7).expect("there is text");
    let batch = plan.batch(split, 0, kind).expect("there is text");
    let as_kind = |tensor: &Tensor| match tensor.kind() {
        Kind::Float => tensor.to_kind(kind),
        _ => tensor.shallow_clone(),
    };
    let params: Vec<Tensor> = state.params().iter().map(as_kind).collect();
    let states: Vec<Tensor> = state.states().iter().map(as_kind).collect();
    let carries: Vec<Tensor> =
        state.carries().iter().map(|c| c.zeros_like().to_kind(kind)).collect();
    let inputs = Inputs {
        params: &params,
        states: &states,
        tables: state.tables(),
        tokens: &batch.tokens,
        continues: &batch.continues,
        carries: &carries,
    };
    let outputs = member.stage.forward(&inputs).expect("the forward runs");
    let value = |name: &str| {
        let found = outputs.values.iter().find(|(known, _)| *known == name);
        found.expect("the stage has the value").1.double_value(&[])
    };
    let losses = [value("ntp"), value("mtp")];
    let head = member.stage.params().iter().position(|spec| spec.path == "lm_head");
    let hidden = (member.hidden)(outputs.saved);
    let logits = hidden.matmul(&params[head.expect("the stage has a head")].tr());
    Computed { logits: (logits / 15.0).tanh() * 15.0, losses }
}

/// The plan of a map, as `lightc grow` makes it.
fn plan(map: &str) -> Plan {
    let loader = models();
    let (name, text) = loader.load("", SOURCE).expect("the source is known");
    let (program, sources, diags) = load_program(&name, &text, &loader);
    assert!(diags.is_empty(), "{diags:?}");
    let map: GrowthMap = growth::bound(&program, map).expect("the map is right");
    let [source, target] =
        [&map.source, &map.target].map(|model| pipeline::lower(model).expect("it lowers"));
    let side = |module: &Module| Side {
        stage: module.name.clone(),
        source_hash: emit::source_digest(&sources),
        is_strict: true,
        integrators: module.integrators(),
    };
    let sides = (side(&source), side(&target));
    Plan::new(&map, (&source, &target), sides).expect("the plan fits")
}

fn grow(map: &str, from: &Path, to: &Path) -> Receipt {
    let report = lightc_grow::grow(&plan(map), from, to, &Options::new("test"), &|_| ());
    report.expect("it grows").receipt
}

/// How far two tensors are apart, in units of the last place of the largest value.
fn ulps(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes differ");
    let digits = if a.kind() == Kind::Double { 52 } else { 23 };
    let largest = a.abs().max().double_value(&[]);
    let unit = 2f64.powi(largest.log2().floor() as i32 - digits);
    let [a, b] = [a, b].map(|x| x.to_kind(Kind::Double));
    (a - b).abs().max().double_value(&[]) / unit
}

/// Compares a source with the target that was grown from it.
fn check_same(source: &Computed, target: &Computed, allowed: Allowed, what: &str) {
    let kind = source.logits.kind();
    let bound = match (allowed, kind) {
        (Allowed::OtherOrder, Kind::Float) => ULPS_32,
        _ => 0.0,
    };
    let apart = ulps(&source.logits, &target.logits);
    let n = source.logits.numel();
    println!("{what}, {kind:?}: {n} logits are at most {apart} units of the last place apart");
    assert!(source.logits.isfinite().all().int64_value(&[]) == 1, "{what}");
    assert!(apart <= bound, "{what}, {kind:?}: {apart} units, and {bound} are allowed");
    for (name, (a, b)) in ["ntp", "mtp"].iter().zip(source.losses.iter().zip(&target.losses)) {
        let [x, y] = [a, b].map(|loss| Tensor::from_slice(&[*loss]).to_kind(kind));
        let apart = ulps(&x, &y);
        println!("{what}, {kind:?}: {name} is {a} and {b}");
        assert!(apart <= bound, "{what}, {kind:?}: {name} is {a} and {b}, {apart} units apart");
    }
}

/// What a map was given is not what initialization makes: every tensor that learns has moved, and
/// none is the same everywhere.
fn check_trained(member: Member, checkpoint: &Checkpoint, n_steps: u64) {
    assert_eq!(checkpoint.manifest().head.step, n_steps);
    for spec in member.stage.params().iter().filter(|spec| spec.storage.learns()) {
        let tensor = checkpoint.tensor("params.safetensors", spec.path).expect("it is there");
        let (first, rest) = tensor.bytes.split_at(4);
        let alike = rest.chunks(4).all(|value| value == first);
        let start = match spec.init {
            lightc_runtime::Init::Zeros => Some(0.0_f32),
            lightc_runtime::Init::Ones => Some(1.0),
            lightc_runtime::Init::Constant(value) => Some(value as f32),
            _ => None,
        };
        let moved = start.is_none_or(|start| first != start.to_le_bytes());
        assert!((rest.is_empty() || !alike) && moved, "{} is as it began", spec.path);
    }
}

/// Grows, compares at every position, and trains the target on.
fn step(
    place: &Place,
    (source, from): (Member, &str),
    map: &str,
    (target, to): (Member, &str),
    allowed: Allowed,
    n_steps: u64,
) {
    let grown = format!("{to}.grown");
    let receipt = grow(map, &place.path(from), &place.path(&grown));
    assert_eq!(receipt.map, map);
    for kind in [Kind::Float, Kind::Double] {
        let before = compute(place, source, &place.path(from), kind);
        let after = compute(place, target, &place.path(&grown), kind);
        check_same(&before, &after, allowed, map);
    }
    place.train(target, target, Some(&grown), to, n_steps);
    // The source's loss on the same first batch, under the same settings.
    let on = format!("{from}.on");
    place.train(source, source, Some(from), &on, 1);
    let (expected, found) = (place.first_step(&on), place.first_step(to));
    for name in ["ntp", "mtp"] {
        println!("{map}: {name} of the first step is {} and {}", expected[name], found[name]);
        let [a, b] = [&expected[name], &found[name]].map(|x| x.as_f64().expect("a number"));
        let [x, y] = [a, b].map(|loss| Tensor::from_slice(&[loss as f32]));
        let bound = if allowed == Allowed::Nothing { 0.0 } else { ULPS_32 };
        assert!(ulps(&x, &y) <= bound, "{map}: {name} of the first step is {a} and {b}");
    }
}

#[test]
fn exact_maps_keep_every_logit_and_the_loss_of_the_first_step() {
    use Allowed::{Nothing, OtherOrder};
    let place = Place::new();
    let trained = |member: Member, run: &str, n_steps: u64| {
        check_trained(member, &open_any(&place.path(run)).expect("it opens"), n_steps);
    };
    place.train(SEED, SEED, None, "seed", 12);
    trained(SEED, "seed", 12);
    step(&place, (SEED, "seed"), "tiny_dense_to_moe_exact", (EXPERTS, "experts"), Nothing, 8);
    trained(EXPERTS, "experts", 8);
    step(&place, (EXPERTS, "experts"), "tiny_depth_exact", (DEEP, "deep"), Nothing, 8);
    trained(DEEP, "deep", 8);
    step(&place, (DEEP, "deep"), "tiny_clones_exact", (CLONES, "clones"), OtherOrder, 2);

    // The same comparison sees a map that changes the function.
    let _ = grow("tiny_depth", &place.path("experts"), &place.path("published"));
    let before = compute(&place, EXPERTS, &place.path("experts"), Kind::Float);
    let after = compute(&place, PUBLISHED, &place.path("published"), Kind::Float);
    let apart = ulps(&before.logits, &after.logits);
    assert!(apart > 1000.0 * ULPS_32, "{apart}");
    assert_ne!(before.losses, after.losses);
}

#[test]
fn units_of_the_last_place_are_those_of_the_largest_value() {
    let a = Tensor::from_slice(&[0.1_f32, -3.0]);
    let b = Tensor::from_slice(&[0.1_f32, -3.0_f32.next_up()]);
    assert_eq!(ulps(&a, &a), 0.0);
    assert_eq!(ulps(&a, &b), 1.0);
    let wide = |x: f64| Tensor::from_slice(&[x]);
    assert_eq!(ulps(&wide(3.0), &wide(3.0_f64.next_up())), 1.0);
}
