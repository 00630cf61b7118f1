//! Mixtures of experts as the interpreter runs them: counts of the lineage, derivatives of routed and
//! quantized experts, penalties, and the balancer of the sigmoid router.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::analysis::{Count, param_table};
use lightc_codegen::interp::{Store, Tensors, gradients, run};
use lightc_codegen::ir::Module;
use lightc_codegen::ops::Array;
use lightc_codegen::pipeline::{self, Compiled};
use lightc_dsl::model::{InitLaw, Storage};
use lightc_dsl::resolve::load_program;
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

// Counts ----------------------------------------------------------------------------------------

/// Stored without and with the multi-token head, active likewise, as in the specification.
const LEDGER: [(&str, [i64; 4]); 4] = [
    ("lightning_2b", [1_490_253_946, 1_653_102_772, 1_490_253_946, 1_653_102_772]),
    ("lightning_5b", [3_504_175_394, 3_918_764_401, 1_692_236_066, 1_880_332_657]),
    ("lightning_9b", [7_904_769_746, 8_319_358_753, 3_374_921_426, 3_563_018_017]),
    ("lightning_120b", [118_670_439_746, 119_085_028_733, 5_927_548_226, 6_241_473_917]),
];

/// Compiling is the check of liveness: every trained parameter of each stage has a gradient.
#[test]
fn counts_of_the_lineage_are_those_of_the_specification() {
    let library = common::library();
    for (stage, wanted) in LEDGER {
        let compiled = common::compile_stage(&library, "lightning/lightning.llm", stage);
        let table = param_table(&compiled.ok().unwrap().module).unwrap();
        let (stored, active) = (table.stored, table.active);
        let counts = [stored.without_mtp, stored.with_mtp, active.without_mtp, active.with_mtp];
        assert_eq!(counts, wanted, "{stage}");
        let adapters = match stage {
            "lightning_120b" => Count { with_mtp: 2_265_907_200, without_mtp: 2_260_992_000 },
            _ => Count::default(),
        };
        assert_eq!(table.adapters, adapters, "{stage}");
    }
}

#[test]
fn every_tiny_stage_learns_with_all_that_is_trained() {
    let library = common::library();
    for stage in ["tiny_2b", "tiny_5b", "tiny_9b", "tiny_120b"] {
        let compiled = common::compile_stage(&library, "tiny/tiny.llm", stage);
        assert!(compiled.is_ok(), "{stage}");
    }
}

// Derivatives -----------------------------------------------------------------------------------

struct Random(ChaCha8Rng);

impl Random {
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn array(&mut self, shape: &[usize], mut draw: impl FnMut(&mut Self) -> f64) -> Array {
        ArrayD::from_shape_fn(shape.to_vec(), |_| draw(self))
    }
}

fn random(seed: u64) -> Random {
    Random(ChaCha8Rng::seed_from_u64(seed))
}

fn compile(source: &str, stage: &str) -> Compiled {
    let (program, _, diags) = load_program("main.llm", source, &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    pipeline::compile(&program.resolve_stage(stage).unwrap()).unwrap()
}

/// Parameters wide enough that every path carries weight.
fn params(module: &Module, random: &mut Random) -> Tensors {
    let value = |placed: &lightc_codegen::ir::paths::Placed<'_, lightc_codegen::ir::Param>,
                 random: &mut Random| {
        let shape: Vec<usize> =
            placed.item.ty.axes.iter().map(|a| a.size.as_constant().unwrap() as usize).collect();
        let offset = if placed.item.init == InitLaw::Ones { 1.0 } else { 0.0 };
        random.array(&shape, |r| offset + 0.5 * r.normal())
    };
    module.placed_params().iter().map(|p| (p.path.clone(), value(p, random))).collect()
}

fn states(module: &Module) -> Tensors {
    let start = |placed: &lightc_codegen::ir::paths::Placed<'_, lightc_codegen::ir::State>| {
        let axes = &placed.item.ty.axes;
        let shape: Vec<usize> =
            axes.iter().map(|a| a.size.as_constant().unwrap() as usize).collect();
        (placed.path.clone(), ArrayD::from_elem(shape, placed.item.start))
    };
    module.placed_states().iter().map(start).collect()
}

/// Compares each gradient with central differences along random directions.
fn check_gradients(compiled: &Compiled, inputs: &[Array], store: &Store, random: &mut Random) {
    let loss = |store: &Store| run(&compiled.module, inputs, store).unwrap().outputs[0][[]];
    let trace = run(&compiled.module, inputs, store).unwrap().trace;
    let one = ArrayD::from_elem(vec![], 1.0);
    let grads = gradients(&compiled.module, compiled.backward, &trace, &[one], store).unwrap();
    for placed in compiled.module.placed_params() {
        let path = &placed.path;
        if !placed.item.storage.learns() {
            assert!(!grads.contains_key(path), "{path} does not learn");
            continue;
        }
        let gradient = &grads[path];
        let direction = random.array(gradient.shape(), Random::normal);
        let step = 1e-6;
        let along = |sign: f64| {
            let mut moved = store.clone();
            *moved.params.get_mut(path).unwrap() += &(&direction * (sign * step));
            loss(&moved)
        };
        let measured = (along(1.0) - along(-1.0)) / (2.0 * step);
        let derived = (gradient * &direction).sum();
        let scale = measured.abs().max(derived.abs()).max(1e-6);
        assert!(
            (measured - derived).abs() / scale < 1e-4,
            "{path}: derived {derived}, measured {measured}"
        );
        assert!(derived != 0.0, "{path} has a zero gradient");
    }
}

/// Quantized experts on a stream that is itself a parameter, so that its gradient is seen.
const TQP: &str = r#"import "std/tqp.llm"

block Probe(b, t, d, e, f, top_k, rank) {
    param x[b, t, d] ~ normal(1)
    sub experts = TqpExperts()

    forward(
        ids[b, t, top_k]: index, weights[b, t, top_k]: f32, wanted[b, t, d]
    ) -> (loss[]) {
        mean(square(experts(x, ids, weights) - wanted), over (b, t, d))
    }
}

stage probe {
    b     = 2
    t     = 5
    d     = 8
    e     = 4
    f     = 16
    top_k = 2
    rank  = 3
    model = Probe()
}
"#;

/// Slots of three experts, some of them empty; the fourth expert is never picked.
fn slots(random: &mut Random) -> Vec<Array> {
    let ids = random.array(&[2, 5, 2], |r| (r.uniform() * 4.0).floor() - 1.0);
    let weights = random.array(&[2, 5, 2], Random::uniform);
    vec![ids, weights, random.array(&[2, 5, 8], Random::normal)]
}

#[test]
fn gradients_of_adapters_and_input_are_those_of_the_loss() {
    let compiled = compile(TQP, "probe");
    for seed in 0..3 {
        let mut random = random(seed);
        let store = Store { params: params(&compiled.module, &mut random), ..Store::default() };
        let inputs = slots(&mut random);
        check_gradients(&compiled, &inputs, &store, &mut random);
    }
}

/// The same equations with a base that is trained: what the quantized base passes to adapters and
/// input is all of it.
#[test]
fn a_quantized_base_passes_the_gradient_of_a_dense_one() {
    let (quantized, dense) = (compile(TQP, "probe"), compile_with_dense_base());
    let mut random = random(7);
    let store = Store { params: params(&quantized.module, &mut random), ..Store::default() };
    let inputs = slots(&mut random);
    let grads = [&quantized, &dense].map(|compiled| {
        let run = run(&compiled.module, &inputs, &store).unwrap();
        let one = ArrayD::from_elem(vec![], 1.0);
        let grads =
            gradients(&compiled.module, compiled.backward, &run.trace, &[one], &store).unwrap();
        (run.outputs, grads)
    });
    let [(loss, quantized_grads), (dense_loss, dense_grads)] = grads;
    assert_eq!(loss, dense_loss);
    assert_eq!(quantized_grads.len() + 3, dense_grads.len(), "gate, up and down have none");
    for (path, gradient) in &quantized_grads {
        assert_eq!(gradient, &dense_grads[path], "{path}");
    }
}

fn compile_with_dense_base() -> Compiled {
    let text = std::fs::read_to_string(common::root().join("models/std/tqp.llm")).unwrap();
    let library = common::library().with("std/tqp.llm", text.replace(" quantized int8", ""));
    let (program, _, _) = load_program("main.llm", TQP, &library);
    let compiled = pipeline::compile(&program.resolve_stage("probe").unwrap()).unwrap();
    let quantized = |storage: &Storage| matches!(storage, Storage::Quantized(_));
    assert!(!compiled.module.placed_params().iter().any(|p| quantized(&p.item.storage)));
    compiled
}

/// Routed experts with the router's own gradients, penalties through a stack, and their mean.
const ROUTED: &str = r#"import "std/moe.llm"

block Keep(b, t, d, inner: block) {
    sub body = inner

    forward(x[b, t, d]) -> [b, t, d] {
        x + body(x)
    }
}

block Probe(b, t, d, motif: blocks) {
    param x[b, t, d] ~ normal(1)
    stack layers = Keep(inner: m) for m in motif

    forward(wanted[b, t, d]) -> (loss[], aux[]) {
        y = layers(x)
        aux = penalties()
        (f32(mean(square(y - wanted), over (b, t, d))) + aux, aux)
    }
}

stage probe {
    b     = 2
    t     = 7
    d     = 6
    e     = 5
    f     = 4
    top_k = 2

    experts = MixtureOfExperts(shared: SwiGlu(), routed: Experts(), router: SoftmaxRouter(nulls: 5))
    motif   = [experts, SwiGlu(), experts]
    model   = Probe()
}

stage grouped extends probe {
    e       = 15
    top_k   = 4
    groups  = 5
    experts = MixtureOfExperts(
        shared: SwiGlu(), routed: Experts(),
        router: GroupedRouter(g: groups, clones: 3, group_k: 2, clone_k: 2, nulls: 5))
}
"#;

#[test]
fn gradients_of_routers_and_penalties_are_those_of_the_loss() {
    for stage in ["probe", "grouped"] {
        let compiled = compile(ROUTED, stage);
        for seed in 0..2 {
            let mut random = random(seed);
            let store = Store { params: params(&compiled.module, &mut random), ..Store::default() };
            let inputs = [random.array(&[2, 7, 6], Random::normal)];
            check_gradients(&compiled, &inputs, &store, &mut random);
        }
    }
}

/// While the clones of a group are equal, which of them is picked does not matter.
#[test]
fn equal_clones_give_what_their_source_gives() {
    let (source, grown) = (compile(ROUTED, "probe"), compile(ROUTED, "grouped"));
    let mut random = random(11);
    let base = params(&source.module, &mut random);
    let mut clones = params(&grown.module, &mut random);
    for (path, array) in &mut clones {
        let from = path.replace("router.group.", "router.");
        if path.contains(".routed.") {
            let one = &base[&from];
            for (index, mut slice) in array.outer_iter_mut().enumerate() {
                slice.assign(&one.index_axis(ndarray::Axis(0), index % 5));
            }
        } else if let Some(same) = base.get(&from) {
            array.assign(same);
        }
    }
    let inputs = [random.array(&[2, 7, 6], Random::normal)];
    let outputs = [(&source, base), (&grown, clones)].map(|(compiled, params)| {
        run(&compiled.module, &inputs, &Store { params, ..Store::default() }).unwrap().outputs
    });
    let [source, grown] = outputs;
    for (source, grown) in source.iter().zip(&grown) {
        assert!((source[[]] - grown[[]]).abs() < 1e-12 * source[[]].abs(), "{source} {grown}");
    }
}

// The balancer ----------------------------------------------------------------------------------

fn stream(band: &str) -> String {
    format!(
        r#"import "std/router.llm"

block Stream(d, e, top_k) {{
    sub router = SigmoidRouter({band})

    forward(x[b, t, d]) -> (ids[b, t, top_k]: index, weights[b, t, top_k]: f32) {{
        ids, weights = router(x)
        (ids, weights)
    }}
}}

stage stream {{
    d     = 8
    e     = 16
    top_k = 2
    model = Stream()
}}
"#
    )
}

/// Shares of the experts in the picks of `n` steps, lowest first.
fn shares(module: &Module, store: &mut Store, n: usize, random: &mut Random) -> Vec<f64> {
    let mut counts = [0.0; 16];
    for _ in 0..n {
        // Every position points much the same way: without a bias, few experts take all.
        let x = ArrayD::from_shape_fn(vec![1, 64, 8], |at| {
            let towards = if at[2] == 0 { 1.5 } else { 0.0 };
            towards + 0.7 * random.normal()
        });
        let run = run(module, &[x], store).unwrap();
        run.outputs[0].iter().for_each(|id| counts[*id as usize] += 1.0);
        store.states.extend(run.updates);
    }
    let total: f64 = counts.iter().sum();
    let mut shares: Vec<f64> = counts.iter().map(|count| count / total).collect();
    shares.sort_by(f64::total_cmp);
    shares
}

#[test]
fn the_controller_evens_the_load_of_a_skewed_stream() {
    let source = stream("low: 0.03, high: 0.12");
    let (program, _, diags) = load_program("main.llm", &source, &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    let module = pipeline::lower(&program.resolve_stage("stream").unwrap()).unwrap();
    let mut random = random(3);
    let params = params(&module, &mut random);
    let mut store = Store { params, states: states(&module), ..Store::default() };
    let before = shares(&module, &mut store.clone(), 20, &mut random);
    let _ = shares(&module, &mut store, 1200, &mut random);
    let after = shares(&module, &mut store, 200, &mut random);
    println!("share of the least and the most used of 16 experts; even load is 0.0625");
    println!("before {:.4} {:.4}", before[0], before[15]);
    println!("after  {:.4} {:.4}", after[0], after[15]);
    assert!(before[0] < 0.01 && before[15] > 0.12, "the stream is skewed: {before:?}");
    assert!(after[0] > 0.05 && after[15] < 0.075, "the load is even: {after:?}");
}

#[test]
fn a_band_without_even_load_is_an_error() {
    // The published band, for 460 experts.
    let source = stream("low: 0.02, high: 0.15").replace("e     = 16", "e     = 460");
    let (program, sources, diags) = load_program("main.llm", &source, &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    let found = program.resolve_stage("stream").unwrap_err();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].code, "E0240");
    let text = lightc_dsl::diag::render(&found, &sources, false);
    assert!(text.contains("9.2 < 1"), "{text}");
}
