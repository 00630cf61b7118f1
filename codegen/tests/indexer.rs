//! The rewrite that finds indexers: where it does, where it must not, and that both forms are equal.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::interp::{Store, run};
use lightc_codegen::ir::{Module, text, verify};
use lightc_codegen::ops::{Array, Op};
use lightc_codegen::pipeline::compile_for;
use lightc_codegen::rewrite::indexer::indexers;
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::Loader;
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// An indexer as a block writes it, its selection and a state that follows its variance.
const WRITTEN: &str = "\
module main entry @Main

func @Main {
  param bias: f32[i=2] ~ zeros() frozen \"fixed\"
  state ema: f32[] = 1.0
  %0.q = input name=\"q\" () : act[b, t, i=2, c=4]
  %1.k = input name=\"k\" () : act[b, s=t, c=4]
  %2.heed = input name=\"heed\" () : f32[b, t, i=2]
  %3 = cast to=f32 (%0) : f32[b, t, i=2, c=4]
  %4 = cast to=f32 (%1) : f32[b, s=t, c=4]
  %5 = contract over=[c] (%3, %4) : f32[b, t, i=2, s=t]
  %6 = affine mul=0.5 add=0.0 (%5) : f32[b, t, i=2, s=t]
  %7.bias = param index=0 () : f32[i=2]
  %8 = add (%6, %7) : f32[b, t, i=2, s=t]
  %9 = sigmoid (%8) : f32[b, t, i=2, s=t]
  %10.score = contract over=[i] (%2, %9) : f32[b, t, s=t]
  %11 = causal query=<t> key=<s=t> () : bool[t, s=t]
  %12 = const value=0.0 dtype=f32 () : f32[]
  %13.past = where (%11, %10, %12) : f32[b, t, s=t]
  %14 = mean over=[s] (%13) : f32[b, t]
  %15 = sub (%13, %14) : f32[b, t, s=t]
  %16 = square (%15) : f32[b, t, s=t]
  %17.variance = mean over=[s] (%16) : f32[b, t]
  %18 = affine mul=3.0 add=0.0 (%17) : f32[b, t]
  %19.ema = state index=0 () : f32[]
  %20 = const value=1e-6 dtype=f32 () : f32[]
  %21 = max (%19, %20) : f32[]
  %22 = div (%18, %21) : f32[b, t]
  %23 = floor (%22) : f32[b, t]
  %24.budget = clamp low=2.0 high=5.0 (%23) : f32[b, t]
  %25.selected = select_top query=t key=s sinks=1 limit=5 (%10, %24) : bool[b, t, s=t]
  %26.spread = mean over=[b, t] (%17) : f32[]
  update ema = %26
  return %25
}
";

fn parsed(source: &str) -> Module {
    let module = text::parse(source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    assert_eq!(verify::verify(&module), [], "{source}");
    module
}

/// How many are found; what comes of it is valid.
fn found(source: &str) -> usize {
    let mut module = parsed(source);
    let n = indexers(&mut module).unwrap();
    assert_eq!(verify::verify(&module), []);
    let count = |wanted: fn(&Op) -> bool| {
        module.functions.iter().flat_map(|f| &f.nodes).filter(|node| wanted(&node.op)).count()
    };
    assert_eq!(count(|op| matches!(op, Op::Indexer(_))), n);
    assert_eq!(count(|op| matches!(op, Op::SelectTop(_))), 1 - n);
    n
}

fn changed(edits: &[(&str, &str)]) -> String {
    let mut source = WRITTEN.to_owned();
    for (from, to) in edits {
        assert_eq!(source.matches(from).count(), 1, "{from}");
        source = source.replace(from, to);
    }
    source
}

#[test]
fn the_composition_becomes_one_op() {
    let mut module = parsed(WRITTEN);
    assert_eq!(indexers(&mut module).unwrap(), 1);
    let written = text::print(&module);
    let fused = "%5.selected, %6.variance = indexer query=t key=s head=i channel=c base=3.0 low=2.0 \
                 high=5.0 sinks=1 limit=5 (%0, %1, %2, %3, %4) : bool[b, t, s=t], f32[b, t]\n  \
                 %7.spread = mean over=[b, t] (%6) : f32[]\n  update ema = %7\n  return %5\n";
    assert!(written.contains(fused), "{written}");
    assert_eq!(text::print(&parsed(&written)), written);
    assert_eq!(module.functions[0].nodes.len(), 7);
}

#[test]
fn the_order_of_arguments_and_axes_does_not_matter() {
    for edits in [
        &[("max (%19, %20)", "max (%20, %19)")][..],
        &[
            (
                "%5 = contract over=[c] (%3, %4) : f32[b, t, i=2, s=t]\n  \
             %6 = affine mul=0.5 add=0.0 (%5) : f32[b, t, i=2, s=t]",
                "%5 = contract over=[c] (%4, %3) : f32[b, s=t, t, i=2]\n  \
             %6 = affine mul=0.5 add=0.0 (%5) : f32[b, s=t, t, i=2]",
            ),
            (
                "%8 = add (%6, %7) : f32[b, t, i=2, s=t]\n  %9 = sigmoid (%8) : f32[b, t, i=2, s=t]",
                "%8 = add (%6, %7) : f32[b, s=t, t, i=2]\n  %9 = sigmoid (%8) : f32[b, s=t, t, i=2]",
            ),
        ],
        // Queries and keys that are wide already.
        &[
            ("\"q\" () : act[", "\"q\" () : f32["),
            ("cast to=f32 (%0)", "affine mul=2.0 add=0.0 (%0)"),
        ],
    ] {
        assert_eq!(found(&changed(edits)), 1, "{edits:?}");
    }
}

#[test]
fn what_differs_stays_as_it_is_written() {
    let differs: &[&[(&str, &str)]] = &[
        // Numbers.
        &[("mul=0.5 add=0.0", "mul=0.25 add=0.0")],
        &[("mul=0.5 add=0.0", "mul=0.5 add=0.1")],
        &[("mul=3.0 add=0.0", "mul=3.0 add=1.0")],
        &[("value=1e-6", "value=1e-5")],
        &[("value=0.0 dtype", "value=-1.0 dtype")],
        // Functions.
        &[("sigmoid (%8)", "tanh (%8)")],
        &[("square (%15)", "abs (%15)")],
        &[("floor (%22)", "square (%22)")],
        &[("max (%19, %20)", "min (%19, %20)")],
        &[("add (%6, %7)", "sub (%6, %7)")],
        &[("sub (%13, %14)", "add (%13, %14)")],
        &[("div (%18, %21)", "mul (%18, %21)")],
        // Operands.
        &[("where (%11, %10, %12)", "where (%11, %12, %10)")],
        &[("mean over=[s] (%13)", "mean over=[s] (%10)")],
        &[("(%10, %24)", "(%13, %24)")],
        &[("affine mul=3.0 add=0.0 (%17)", "affine mul=3.0 add=0.0 (%14)")],
        &[
            ("causal query=<t> key=<s=t>", "causal query=<s=t> key=<t>"),
            (": bool[t, s=t]\n  %12", ": bool[s=t, t]\n  %12"),
        ],
        // A mean over what is no state.
        &[("%19.ema = state index=0 ()", "%19.ema = const value=1.0 dtype=f32 ()")],
        // Precision: the op's scores are 32-bit.
        &[
            (
                "%10.score = contract over=[i] (%2, %9) : f32[",
                "%10.score = contract over=[i] (%2, %9) : act[",
            ),
            ("sigmoid (%8) : f32[", "cast to=act (%8) : act["),
            ("%2.heed = input name=\"heed\" () : f32[", "%2.heed = input name=\"heed\" () : act["),
        ],
        // Others read what is between, or the variance for what has a gradient.
        &[("return %25", "return selected: %25, score: %10")],
        &[("return %25", "return selected: %25, match: %6")],
        &[("return %25", "return selected: %25, variance: %17")],
        &[("return %25", "return selected: %25, spread: %26")],
        &[("return %25", "return selected: %25, budget: %24")],
        &[("update ema = %26", "%27 = mean over=[b, t] (%24) : f32[]\n  update ema = %27")],
    ];
    assert_eq!(found(WRITTEN), 1);
    for edits in differs {
        let source = changed(edits);
        assert_eq!(found(&source), 0, "{edits:?}");
    }
}

fn array(random: &mut ChaCha8Rng, shape: &[usize]) -> Array {
    ArrayD::from_shape_fn(shape.to_vec(), |_| {
        4.0 * (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 2.0
    })
}

#[test]
fn both_forms_are_equal() {
    let written = parsed(WRITTEN);
    let mut fused = written.clone();
    assert_eq!(indexers(&mut fused).unwrap(), 1);
    let mut left_out = 0.0;
    for seed in 0..20 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (b, t) = (1 + seed as usize % 3, [1, 2, 7, 19][seed as usize % 4]);
        let inputs = [&[b, t, 2, 4][..], &[b, t, 4], &[b, t, 2]];
        let inputs = inputs.map(|shape| array(&mut random, shape));
        let mut store = Store::default();
        store.params.insert("bias".to_owned(), array(&mut random, &[2]));
        let ema = [1.0, 0.3, 0.05, 0.0][seed as usize / 4 % 4];
        store.states.insert("ema".to_owned(), ArrayD::from_elem(vec![], ema));
        let (a, b) =
            (run(&written, &inputs, &store).unwrap(), run(&fused, &inputs, &store).unwrap());
        assert_eq!(a.outputs, b.outputs, "seed {seed}");
        let selected = &a.outputs[0];
        let (x, y) = (a.updates["ema"].sum(), b.updates["ema"].sum());
        assert!((x - y).abs() <= 1e-12 * x.abs(), "seed {seed}: {x} and {y}");
        left_out += (t * (t + 1) / 2 * inputs[0].shape()[0]) as f64 - selected.sum();
    }
    assert!(left_out > 0.0, "all keys are always selected");
}

#[test]
fn every_stage_of_the_lineage_has_its_indexers_as_one_op() {
    let library = common::library();
    let (name, source) = library.load("", "lightning/lightning.llm").unwrap();
    let (program, _, diags) = load_program(&name, &source, &library);
    assert!(diags.is_empty(), "{diags:?}");
    let stages = program.stage_names();
    assert!(stages.len() >= 7, "{stages:?}");
    for stage in stages {
        let model = program.resolve_stage(stage).unwrap();
        let module = compile_for(&model, Target::Sm90a).unwrap().module;
        let mut n = 0;
        for function in &module.functions {
            for node in &function.nodes {
                assert!(!matches!(node.op, Op::SelectTop(_)), "{stage}: {}", function.name);
                let Op::Indexer(op) = &node.op else { continue };
                n += 1;
                let numbers = (op.base, op.low, op.high, op.sinks, op.limit);
                assert_eq!(numbers, (128.0, 32.0, 256.0, 4, 256), "{stage}");
                let q = function.ty(node.args[0]);
                assert_eq!(q.names(), ["b", "t", "index_head", "index_channel"], "{stage}");
            }
        }
        assert!(n > 0, "{stage}");
    }
}
