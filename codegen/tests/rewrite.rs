//! Rewrites for targets that fuse operations: they keep what a stage computes, its paths and its
//! gradients, and do what they are for.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::interp::{Store, Tensors, gradients, run};
use lightc_codegen::ir::Module;
use lightc_codegen::ops::{Array, Op};
use lightc_codegen::pipeline::{self, Compiled};
use lightc_codegen::schedule::{Target, saved_values};
use lightc_dsl::model::InitLaw;
use lightc_dsl::resolve::load_program;
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::BTreeSet;

/// Sizes of the small stages.
const SIZES: &str = "
    d = 64
    vocab = 24
    f = 16
    byte_positions = 2
    delta_heads = 2
    delta_channels = 8
    sparse_heads = 2
    sparse_channels = 8
    index_head = 2
    index_channel = 4
    budget_min = 2
    budget_max = 4
    motif = [delta, sparse]
";

/// Small stages of every kind: dense and plain, mixtures in a reversible stack, 8-bit experts with adapters.
fn stages() -> String {
    format!(
        r#"import "lightning/lightning.llm"

stage small_dense extends lightning_2b {{ {SIZES} }}

stage small_mixed extends lightning_5b {{
    {SIZES}
    expert_width = 8
}}

stage small_adapted extends lightning_120b {{
    {SIZES}
    expert_width = 8
    e = 20
    top_k = 3
    rank = 16
    router = SigmoidRouter(low: 0.02, high: 0.15)
}}
"#
    )
}

fn compile(stage: &str, target: Target) -> Compiled {
    let (program, _, diags) = load_program("main.llm", &stages(), &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    pipeline::compile_for(&program.resolve_stage(stage).unwrap(), target).unwrap()
}

struct Random(ChaCha8Rng);

impl Random {
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn array(&mut self, shape: &[usize], mut draw: impl FnMut(f64) -> f64) -> Array {
        ArrayD::from_shape_fn(shape.to_vec(), |_| draw(self.uniform()))
    }
}

fn shape(ty: &lightc_codegen::ir::Type) -> Vec<usize> {
    ty.axes.iter().map(|axis| axis.size.as_constant().unwrap() as usize).collect()
}

fn store(module: &Module, random: &mut Random) -> Store {
    let mut store = Store::default();
    for placed in module.placed_params() {
        let offset = if placed.item.init == InitLaw::Ones { 1.0 } else { 0.0 };
        let value = random.array(&shape(&placed.item.ty), |u| offset + 0.6 * (u - 0.5));
        store.params.insert(placed.path, value);
    }
    for placed in module.placed_states() {
        let value = ArrayD::from_elem(shape(&placed.item.ty), placed.item.start);
        store.states.insert(placed.path, value);
    }
    for placed in module.placed_tables() {
        let shape = shape(&placed.item.ty);
        // Two bytes a token: codes `byte * 2 + position`.
        let value = match placed.item.from.as_str() {
            "tokenizer.byte_counts" => ArrayD::from_elem(shape, 2.0),
            _ => ArrayD::from_shape_fn(shape, |at| ((at[0] * 37 % 256) * 2 + at[1]) as f64),
        };
        store.tables.insert(placed.path, value);
    }
    store
}

struct Step {
    outputs: Vec<Array>,
    updates: Tensors,
    gradients: Tensors,
}

fn step(compiled: &Compiled, store: &Store, inputs: &[Array]) -> Step {
    let done = run(&compiled.module, inputs, store).unwrap();
    let one = [ArrayD::from_elem(vec![], 1.0)];
    let gradients =
        gradients(&compiled.module, compiled.backward, &done.trace, &one, store).unwrap();
    Step { outputs: done.outputs, updates: done.updates, gradients }
}

fn largest(array: &Array) -> f64 {
    array.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

fn check_close(what: &str, wanted: &Array, got: &Array, limit: f64) {
    assert_eq!(wanted.shape(), got.shape(), "{what}");
    let error = largest(&(wanted - got));
    assert!(error.is_finite() && error <= limit * largest(wanted).max(1e-4), "{what}: {error:e}");
}

#[test]
fn a_step_is_the_same_after_all_rewrites() {
    for stage in ["small_dense", "small_mixed", "small_adapted"] {
        let mut random = Random(ChaCha8Rng::seed_from_u64(7));
        let (plain, fused) = (compile(stage, Target::Cpu), compile(stage, Target::Sm90a));
        let store = store(&plain.module, &mut random);
        let inputs = [
            random.array(&[2, 9], |u| (u * 24.0).floor()),
            random.array(&[2, 64], |u| u - 0.5),
            ArrayD::from_shape_vec(vec![2], vec![1.0, 0.0]).unwrap(),
        ];
        let (wanted, got) = (step(&plain, &store, &inputs), step(&fused, &store, &inputs));
        // Reversible states are whole numbers: another order of sums can move one by a unit.
        let limit = if stage == "small_dense" { 1e-9 } else { 1e-3 };
        for (index, (a, b)) in wanted.outputs.iter().zip(&got.outputs).enumerate() {
            check_close(&format!("{stage} output {index}"), a, b, limit);
        }
        assert_eq!(wanted.updates.len(), got.updates.len());
        for (path, a) in &wanted.updates {
            check_close(path, a, &got.updates[path], limit);
        }
        assert_eq!(wanted.gradients.len(), got.gradients.len());
        for (path, a) in &wanted.gradients {
            check_close(path, a, &got.gradients[path], 10.0 * limit);
        }
    }
}

#[test]
fn paths_and_their_order_stay() {
    for stage in ["small_dense", "small_mixed", "small_adapted"] {
        let (plain, fused) = (compile(stage, Target::Cpu), compile(stage, Target::Sm90a));
        let paths = |module: &Module| {
            let params = module.placed_params().into_iter().map(|p| p.path).collect::<Vec<_>>();
            let states = module.placed_states().into_iter().map(|p| p.path);
            let tables = module.placed_tables().into_iter().map(|p| p.path);
            (params, states.collect::<Vec<_>>(), tables.collect::<Vec<_>>())
        };
        assert_eq!(paths(&plain.module), paths(&fused.module));
    }
}

#[test]
fn a_layer_is_one_function_with_one_narrow_product_per_hyper_connection() {
    let fused = compile("small_dense", Target::Sm90a).module;
    let layers =
        fused.functions.iter().filter(|function| function.name.starts_with("DecoderLayer"));
    let mut n_layers = 0;
    for layer in layers {
        n_layers += 1;
        assert!(layer.nodes.iter().all(|node| !matches!(node.op, Op::Call(_))), "{}", layer.name);
        let narrow = layer.nodes.iter().filter(|node| {
            let stacked = |arg: &lightc_codegen::ir::ValueId| layer.ty(*arg).has("stacked");
            matches!(node.op, Op::Contract(_)) && node.args.iter().any(stacked)
        });
        assert_eq!(narrow.count(), 2, "{}", layer.name);
    }
    assert_eq!(n_layers, 2);
}

#[test]
fn text_of_a_rewritten_module_parses_back() {
    for stage in ["small_dense", "small_adapted"] {
        let module = compile(stage, Target::Sm90a).module;
        let text = lightc_codegen::ir::text::print(&module);
        let parsed = lightc_codegen::ir::text::parse(&text).unwrap();
        assert_eq!(lightc_codegen::ir::text::print(&parsed), text);
    }
}

/// Mnemonics of the nodes that belong to routed experts, in order.
fn routed(nodes: &[lightc_codegen::ir::Node]) -> Vec<String> {
    let names = nodes.iter().map(|node| match &node.op {
        Op::RoutedDot(op) => format!("routed_dot {}", op.over.join(" ")),
        Op::RoutedDotPair(op) => format!("routed_dot_pair {}", op.over),
        Op::RoutedSwiglu(op) => {
            format!("routed_swiglu {} | {}", op.gate.join(" "), op.up.join(" "))
        }
        Op::RoutedCombine(op) => format!("routed_combine {}", op.over.join(" ")),
        op => op.def().mnemonic().to_owned(),
    });
    names.filter(|name| name.starts_with("routed") || name.starts_with("expert")).collect()
}

#[test]
fn experts_are_grouped_products() {
    let module = compile("small_adapted", Target::Sm90a).module;
    let layers = |name: &str| name.starts_with("DecoderLayer");
    let forward = module.functions.iter().filter(|f| layers(&f.name));
    let forward: Vec<_> = forward.map(|f| routed(&f.nodes)).collect();
    assert_eq!(forward.len(), 2);
    for found in forward {
        let wanted = [
            "expert_order",
            "routed_dot_pair d",
            "routed_swiglu d rank | d rank",
            "routed_dot f",
            "routed_combine f rank",
        ];
        assert_eq!(found, wanted);
    }
    let backward = module.backward.iter().filter(|b| layers(&b.body.name));
    let backward: Vec<_> = backward.map(|b| routed(&b.body.nodes)).collect();
    assert_eq!(backward.len(), 2);
    for found in backward {
        let joined = found.iter().filter(|name| **name == "routed_dot f f rank rank");
        assert_eq!(joined.count(), 1, "{found:?}");
        let pairs = found.iter().filter(|name| **name == "routed_weight_grad_pair");
        assert_eq!(pairs.count(), 1, "{found:?}");
        assert!(found.iter().all(|name| !name.starts_with("expert")), "{found:?}");
    }
}

#[test]
fn wide_copies_of_narrow_values_are_not_kept() {
    let fused = compile("small_dense", Target::Sm90a).module;
    let mut kept = BTreeSet::new();
    for (index, function) in (0u32..).zip(&fused.functions) {
        for value in saved_values(&fused, lightc_codegen::ir::FuncId(index)) {
            let op = function.definition(value).op.def().mnemonic();
            let _ = kept.insert(op);
            assert!(op != "causal_conv" && op != "rotary", "{} keeps {value}", function.name);
        }
    }
    assert!(kept.contains("contract"), "{kept:?}");
}
