//! The rewrite that joins what goes to rows directly and through an adapter: where it does, where it must not, and that
//! the gradients stay.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::modules::{Random, changed, check_equal, differentiated, grads, parsed, random, store};
use lightc_codegen::ir::{Module, text, verify};
use lightc_codegen::ops::{Array, Op};
use lightc_codegen::pipeline::{compile, compile_for};
use lightc_codegen::rewrite::adapters::join_adapters;
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;

/// A weighed sum of a product and its adapter, of rows and weights that are parameters, so that their gradients are seen.
const WRITTEN: &str = "\
module main entry @Main

func @Main {
  param hidden: act[b=2, t=5, k=3, f=6] ~ normal(1.0) trained
  param weights: act[b=2, t=5, k=3] ~ normal(1.0) trained
  param down: act[e=3, d=4, f=6] ~ normal(1.0) trained
  param left: act[e=3, d=4, rank=2] ~ normal(1.0) trained
  param right: act[e=3, rank=2, f=6] ~ normal(1.0) trained
  param other: act[e=3, rank=2, f=6] ~ normal(1.0) trained
  %0.ids = input name=\"ids\" () : index[b=2, t=5, k=3]
  %1.wanted = input name=\"wanted\" () : act[b=2, t=5, d=4]
  %2.others = input name=\"others\" () : index[b=2, t=5, k=3]
  %3.hidden = param index=0 () : act[b=2, t=5, k=3, f=6]
  %4.x = affine mul=2.0 add=0.0 (%3) : act[b=2, t=5, k=3, f=6]
  %5 = param index=1 () : act[b=2, t=5, k=3]
  %6.weights = cast to=f32 (%5) : f32[b=2, t=5, k=3]
  %7, %8 = expert_order expert=<e=3> (%0) : index[places=30], index[bounds=4]
  %9, %10 = expert_order expert=<e=3> (%2) : index[places=30], index[bounds=4]
  %11.down = param index=2 () : act[e=3, d=4, f=6]
  %12.left = param index=3 () : act[e=3, d=4, rank=2]
  %13.right = param index=4 () : act[e=3, rank=2, f=6]
  %14.other = param index=5 () : act[e=3, rank=2, f=6]
  %15.more = routed_dot expert=e over=[f] (%2, %9, %10, %4, %14) : act[b=2, t=5, k=3, rank=2]
  %16.low = routed_dot expert=e over=[f] (%0, %7, %8, %4, %13) : act[b=2, t=5, k=3, rank=2]
  %17.y = routed_combine expert=e over=[f, rank] slots=k (%6, %0, %7, %8, %4, %11, %16, %12) : act[b=2, t=5, d=4]
  %18 = sub (%17, %1) : act[b=2, t=5, d=4]
  %19 = square (%18) : act[b=2, t=5, d=4]
  %20 = mean over=[b, t, d] (%19) : act[]
  %21 = mean over=[b, t, k, rank] (%15) : act[]
  %22 = affine mul=0.0 add=0.0 (%21) : act[]
  %23 = add (%20, %22) : act[]
  return loss: %23
}
";

fn joined(module: &Module) -> Module {
    let mut module = module.clone();
    join_adapters(&mut module).unwrap();
    assert_eq!(verify::verify(&module), []);
    module
}

/// The axes that the products of a backward sum over, in order.
fn products(module: &Module) -> Vec<String> {
    let nodes = module.backward.iter().flat_map(|backward| &backward.body.nodes);
    let dots = nodes.filter_map(|node| match &node.op {
        Op::RoutedDot(op) => Some(op.over.join(" ")),
        _ => None,
    });
    dots.collect()
}

/// Ids of which some name no expert, and those of a token can be equal; and what is wanted.
fn inputs(random: &mut Random, k: usize, experts: f64, d: usize) -> [Array; 2] {
    [ids(random, k, experts), random.array(&[2, 5, d], |u| 2.0 * u - 1.0)]
}

fn ids(random: &mut Random, k: usize, experts: f64) -> Array {
    random.array(&[2, 5, k], |u| (u * (experts + 1.0)).floor() - 1.0)
}

/// Gradients before the rewrite and after.
fn check_gradients(source: &str) {
    let (before, backward) = differentiated(source);
    let after = joined(&before);
    for seed in 0..5 {
        let mut random = random(seed);
        let [own, wanted] = inputs(&mut random, 3, 3.0, 4);
        let inputs = [own, wanted, ids(&mut random, 3, 3.0)];
        let store = store(&before, &mut random);
        let wanted = grads(&before, backward, &inputs, &store);
        assert!(wanted["weights"].iter().any(|x| *x != 0.0));
        check_equal(source, &wanted, &grads(&after, backward, &inputs, &store));
    }
}

#[test]
fn both_ways_become_one_product() {
    let (before, _) = differentiated(WRITTEN);
    let (separate, one) = (["d", "d", "rank", "rank"], ["d", "d rank", "rank"]);
    let (mut all, mut left) = (products(&before), products(&joined(&before)));
    all.sort();
    left.sort();
    assert_eq!(all, separate);
    assert_eq!(left, one, "the other adapter's product stays by itself");
    check_gradients(WRITTEN);
}

#[test]
fn a_joined_module_is_joined_once_and_parses_back() {
    let after = joined(&differentiated(WRITTEN).0);
    assert_eq!(joined(&after), after);
    let written = text::print(&after);
    assert_eq!(text::print(&parsed(&written)), written);
}

#[test]
fn terms_in_another_order_and_frozen_weights_are_joined_too() {
    let frozen = "~ normal(1.0) frozen \"fixed\"";
    let edits: [&[(&str, &str)]; 2] = [
        &[
            ("over=[f, rank] slots=k (", "over=[rank, f] slots=k ("),
            ("%8, %4, %11, %16, %12)", "%8, %16, %12, %4, %11)"),
        ],
        &[
            ("down: act[e=3, d=4, f=6] ~ normal(1.0) trained", "down: act[e=3, d=4, f=6] FROZEN"),
            (
                "right: act[e=3, rank=2, f=6] ~ normal(1.0) trained",
                "right: act[e=3, rank=2, f=6] FROZEN",
            ),
        ],
    ];
    for edits in edits {
        let source = changed(WRITTEN, edits).replace("FROZEN", frozen);
        let after = products(&joined(&differentiated(&source).0));
        assert!(after.contains(&"d rank".to_owned()), "{after:?}");
        check_gradients(&source);
    }
}

/// Edits of the forward after which x, or the weights, have no such sums.
#[test]
fn other_forwards_stay() {
    let differs: &[&[(&str, &str)]] = &[
        // Others read what the adapter makes.
        &[
            ("over=[b, t, k, rank] (%15)", "over=[b, t, k, rank] (%16)"),
            ("mul=0.0 add=0.0 (%21)", "mul=0.5 add=0.0 (%21)"),
        ],
        // Others read x, and theirs comes between.
        &[("over=[b, t, k, rank] (%15) : act[]", "over=[b, t, k, f] (%4) : act[]")],
        // It is made of two products, of other rows, or of no product.
        &[(
            "%16.low = routed_dot expert=e over=[f] (%0, %7, %8, %4, %13)",
            "%16.low = routed_dot expert=e over=[f, f] (%0, %7, %8, %4, %13, %4, %14)",
        )],
        &[(
            "%16.low = routed_dot expert=e over=[f] (%0, %7, %8, %4, %13)",
            "%16.low = routed_dot expert=e over=[f] (%0, %7, %8, %3, %13)",
        )],
        &[(
            "%16.low = routed_dot expert=e over=[f] (%0, %7, %8, %4, %13)",
            "%16.low = affine mul=3.0 add=0.0 (%15)",
        )],
        // It is made for other places.
        &[(
            "%16.low = routed_dot expert=e over=[f] (%0, %7, %8,",
            "%16.low = routed_dot expert=e over=[f] (%2, %9, %10,",
        )],
        // No adapter.
        &[
            ("over=[f, rank] slots=k", "over=[f] slots=k"),
            ("%8, %4, %11, %16, %12)", "%8, %4, %11)"),
        ],
    ];
    for edits in differs {
        let source = changed(WRITTEN, edits);
        let (before, _) = differentiated(&source);
        assert_eq!(joined(&before), before, "{edits:?}");
    }
}

/// Edits of the backward, one fact at a time.
#[test]
fn other_backwards_stay() {
    let written = text::print(&differentiated(WRITTEN).0);
    let differs = [
        // The adapter's rows are of another weight, or product, or rows than the gradient goes through.
        ("%39.right = param index=4", "%39.right = param index=5"),
        ("%30.low = saved value=16", "%30.low = saved value=15"),
        ("%17.x = saved value=4", "%17.x = saved value=3"),
        // Another cotangent, other weights, not weighed at all.
        ("(%8, %9, %10, %7, %25)", "(%8, %9, %10, %5, %25)"),
        ("%28 = mul (%27, %14)", "%28 = mul (%27, %20)"),
        ("%10, %29, %39) : act[b=2, t=5, k=3, f", "%10, %26, %39) : act[b=2, t=5, k=3, f"),
        ("%10, %29, %39) : act[b=2, t=5, k=3, f", "%10, %36, %39) : act[b=2, t=5, k=3, f"),
        // The sums are of something else.
        ("%19 = mul (%13, %18)", "%19 = mul (%18, %18)"),
        ("%32 = mul (%27, %31)", "%32 = mul (%31, %31)"),
        // Functions.
        ("%15 = mul (%13, %14)", "%15 = div (%13, %14)"),
        ("%28 = mul (%27, %14)", "%28 = div (%27, %14)"),
        ("%19 = mul (%13, %18)", "%19 = max (%13, %18)"),
        ("%32 = mul (%27, %31)", "%32 = sub (%27, %31)"),
        ("%38 = add (%20, %33)", "%38 = sub (%20, %33)"),
        ("%42 = add (%16, %40)", "%42 = sub (%16, %40)"),
        // What the base gives by itself is read too, so nothing would be saved.
        ("grad 0 = %51", "grad 0 = %16"),
        ("grad 0 = %51", "grad 0 = %12"),
    ];
    let before = parsed(&written);
    assert_ne!(joined(&before), before);
    for (from, to) in differs {
        let before = parsed(&changed(&written, &[(from, to)]));
        assert_eq!(joined(&before), before, "{from}: {to}");
    }
}

const PROBE: &str = r#"import "std/tqp.llm"

block Probe(b, t, d, e, f, top_k) {
    param x[b, t, d]          ~ normal(1)
    param logits[b, t, top_k] ~ normal(1)
    sub experts = TqpExperts(rank: 3)

    forward(ids[b, t, top_k]: index, wanted[b, t, d]) -> (loss[]) {
        mean(square(experts(x, ids, sigmoid(f32(logits))) - wanted), over (b, t, d))
    }
}

stage probe {
    b     = 2
    t     = 5
    d     = 8
    e     = 4
    f     = 16
    top_k = 2
    model = Probe()
}
"#;

/// The experts of the library, with all rewrites and without: adapters, rows and weights have the same gradients.
#[test]
fn gradients_of_a_mixture_stay() {
    let (program, _, diags) = load_program("main.llm", PROBE, &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    let model = program.resolve_stage("probe").unwrap();
    let (plain, fused) = (compile(&model).unwrap(), compile_for(&model, Target::Sm90a).unwrap());
    let mut found = products(&fused.module);
    found.sort();
    assert_eq!(found, ["d", "d rank", "f", "f", "f f rank rank"]);
    for seed in 0..5 {
        let mut random = random(seed);
        let inputs = inputs(&mut random, 2, 4.0, 8);
        let store = store(&plain.module, &mut random);
        let wanted = grads(&plain.module, plain.backward, &inputs, &store);
        assert_eq!(wanted.len(), 8);
        check_equal("probe", &wanted, &grads(&fused.module, fused.backward, &inputs, &store));
    }
}
