//! The rewrite that has two narrow products of the same rows, or a product and a gradient, from one op: where it does,
//! where it must not, and that nothing changes.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::modules::{Random, changed, check_equal, differentiated, grads, parsed, random, store};
use lightc_codegen::interp::run;
use lightc_codegen::ir::{Module, Node, text, verify};
use lightc_codegen::ops::{Array, Op};
use lightc_codegen::rewrite::pairs::pair;

/// Gate and up of experts that are adapters alone, of the same rows; edits have them of other rows, places and weights.
const WRITTEN: &str = "\
module main entry @Main

func @Main {
  param x: act[b=2, t=5, d=6] ~ normal(1.0) trained
  param gate_left: act[e=3, f=4, rank=16] ~ normal(1.0) trained
  param up_left: act[e=3, f=4, rank=16] ~ normal(1.0) trained
  param gate_right: act[e=3, rank=16, d=6] ~ normal(1.0) trained
  param up_right: act[e=3, rank=16, d=6] ~ normal(1.0) trained
  %0.ids = input name=\"ids\" () : index[b=2, t=5, k=3]
  %1.others = input name=\"others\" () : index[b=2, t=5, k=3]
  %2.wanted = input name=\"wanted\" () : act[b=2, t=5, k=3, f=4]
  %3.x = param index=0 () : act[b=2, t=5, d=6]
  %4.rows = affine mul=2.0 add=0.0 (%3) : act[b=2, t=5, d=6]
  %5, %6 = expert_order expert=<e=3> (%0) : index[places=30], index[bounds=4]
  %7, %8 = expert_order expert=<e=3> (%1) : index[places=30], index[bounds=4]
  %9.gate_right = param index=3 () : act[e=3, rank=16, d=6]
  %10.made = affine mul=0.5 add=0.0 (%9) : act[e=3, rank=16, d=6]
  %11.gate_low = routed_dot expert=e over=[d] (%0, %5, %6, %4, %9) : act[b=2, t=5, k=3, rank=16]
  %12.gate_left = param index=1 () : act[e=3, f=4, rank=16]
  %13.up_right = param index=4 () : act[e=3, rank=16, d=6]
  %14.late = affine mul=0.5 add=0.0 (%13) : act[e=3, rank=16, d=6]
  %15.up_low = routed_dot expert=e over=[d] (%0, %5, %6, %4, %13) : act[b=2, t=5, k=3, rank=16]
  %16.up_left = param index=2 () : act[e=3, f=4, rank=16]
  %17.gated, %18.lifted, %19.hidden = routed_swiglu expert=e gate=[rank] up=[rank] (%0, %5, %6, %11, %12, %15, %16) : act[b=2, t=5, k=3, f=4], act[b=2, t=5, k=3, f=4], act[b=2, t=5, k=3, f=4]
  %20 = sub (%19, %2) : act[b=2, t=5, k=3, f=4]
  %21 = square (%20) : act[b=2, t=5, k=3, f=4]
  %22 = mean over=[b, t, k, f] (%21) : act[]
  %23 = mean over=[e, rank, d] (%10) : act[]
  %24 = mean over=[e, rank, d] (%14) : act[]
  %25 = add (%23, %24) : act[]
  %26 = add (%22, %25) : act[]
  return loss: %26
}
";

const UP: &str =
    "%15.up_low = routed_dot expert=e over=[d] (%0, %5, %6, %4, %13) : act[b=2, t=5, k=3, rank=16]";

fn paired(module: &Module) -> Module {
    let mut module = module.clone();
    pair(&mut module).unwrap();
    assert_eq!(verify::verify(&module), []);
    module
}

/// Products in pairs, and by themselves, of rows of 6.
fn products(nodes: &[Node]) -> [usize; 2] {
    let all = |pair: bool| {
        let is = |node: &&Node| match &node.op {
            Op::RoutedDotPair(_) | Op::RoutedWeightGradPair(_) => pair,
            Op::RoutedDot(op) => !pair && op.over == ["d"],
            _ => false,
        };
        nodes.iter().filter(is).count()
    };
    [all(true), all(false)]
}

/// The same of a forward, and pairs of its backward.
fn found(module: &Module) -> ([usize; 2], usize) {
    let [backward] = module.backward.as_slice() else { panic!("one function") };
    (products(&module.entry_function().nodes), products(&backward.body.nodes)[0])
}

/// Products with a gradient.
fn low_backs(nodes: &[Node]) -> usize {
    nodes.iter().filter(|node| matches!(node.op, Op::RoutedLowBack(_))).count()
}

/// The same of what the rewrite makes of a backward.
fn low_backs_behind(source: &str) -> usize {
    let after = paired(&differentiated(source).0);
    after.backward.iter().map(|backward| low_backs(&backward.body.nodes)).sum()
}

fn inputs(random: &mut Random) -> [Array; 3] {
    let mut ids = || random.array(&[2, 5, 3], |u| (u * 4.0).floor() - 1.0);
    let (own, others) = (ids(), ids());
    [own, others, random.array(&[2, 5, 3, 4], |u| 2.0 * u - 1.0)]
}

/// Loss and gradients before the rewrite and after, and the text after it; how many pairs there are.
fn check(source: &str) -> ([usize; 2], usize) {
    let (before, backward) = differentiated(source);
    let after = paired(&before);
    assert_eq!(paired(&after), after, "done once");
    let written = text::print(&after);
    assert_eq!(text::print(&parsed(&written)), written);
    for seed in 0..3 {
        let mut random = random(seed);
        let inputs = inputs(&mut random);
        let store = store(&before, &mut random);
        let [loss, same] = [&before, &after].map(|m| run(m, &inputs, &store).unwrap().outputs);
        assert_eq!(loss, same);
        let wanted = grads(&before, backward, &inputs, &store);
        assert!(wanted["up_right"].iter().any(|x| *x != 0.0));
        check_equal(source, &wanted, &grads(&after, backward, &inputs, &store));
    }
    found(&after)
}

#[test]
fn two_narrow_products_of_the_same_rows_become_one() {
    assert_eq!(found(&differentiated(WRITTEN).0), ([0, 2], 0));
    assert_eq!(check(WRITTEN), ([1, 0], 1));
}

#[test]
fn values_keep_their_names_and_what_is_kept_stays() {
    let before = differentiated(WRITTEN).0;
    let after = paired(&before);
    let names = |module: &Module| {
        let named = module.entry_function().values.iter().filter_map(|value| value.name.clone());
        let mut names: Vec<String> = named.collect();
        names.sort();
        names
    };
    assert_eq!(names(&before), names(&after));
    let kept = |module: &Module| {
        let nodes = module.backward.iter().flat_map(|backward| &backward.body.nodes);
        let kept = nodes.filter_map(|node| match &node.op {
            Op::Saved(saved) => Some(module.entry_function().value(saved.value).name.clone()),
            _ => None,
        });
        kept.collect::<Vec<_>>()
    };
    assert!(kept(&before).contains(&Some("up_low".to_owned())));
    assert_eq!(kept(&before), kept(&after));
}

#[test]
fn weights_that_are_there_by_then_are_read() {
    // The second's is made before the first, or lies the other way round.
    let made = changed(WRITTEN, &[(UP, &UP.replace("%4, %13)", "%4, %10)"))]);
    let made = made.replace("(%14) : act[]", "(%13) : act[]");
    assert_eq!(products(&paired(&differentiated(&made).0).entry_function().nodes), [1, 0]);
    let turned = WRITTEN.replace("[e=3, rank=16, d=6]", "[e=3, d=6, rank=16]");
    assert_eq!(check(&turned), ([1, 0], 1));
}

#[test]
fn of_three_products_two_are_a_pair() {
    let third = "%15.up_low = routed_dot expert=e over=[d, d] (%0, %5, %6, %4, %13, %4, %10)";
    let source = changed(WRITTEN, &[(&UP[..UP.find(" :").unwrap()], third)]);
    assert_eq!(check(&source).0, [0, 1], "a sum of products stays");

    let more =
        "%26 = routed_dot expert=e over=[d] (%0, %5, %6, %4, %14) : act[b=2, t=5, k=3, rank=16]
  %27 = mean over=[b, t, k, rank] (%26) : act[]
  %28 = add (%22, %27) : act[]
  return loss: %28";
    let edits = [("%26 = add (%22, %25) : act[]\n  return loss: %26", more)];
    assert_eq!(check(&changed(WRITTEN, &edits)).0, [1, 1]);
}

/// Edits of the forward, and what is left to pair in it and in its backward.
#[test]
fn other_products_stay() {
    let other_places = UP.replace("%0, %5, %6", "%1, %7, %8");
    let other_rows = UP.replace("%6, %4, %13", "%6, %3, %13");
    // The gradients of these two can be one: a weight is read by its product alone.
    let made_later = UP.replace("%4, %13)", "%4, %14)");
    for (edited, backward) in [(&other_places, 0), (&other_rows, 0), (&made_later, 1)] {
        let source = changed(WRITTEN, &[(UP, edited)]);
        assert_eq!(check(&source), ([0, 2], backward), "{edited}");
    }
    for columns in ["8", "17", "32"] {
        let source = WRITTEN.replace("rank=16", &format!("rank={columns}"));
        assert_eq!(check(&source), ([0, 2], 0));
    }
    // One of 16 columns, one of more.
    let wider = [
        ("up_right: act[e=3, rank=16, d=6]", "up_right: act[e=3, wide=32, d=6]"),
        (
            "%13.up_right = param index=4 () : act[e=3, rank=16",
            "%13.up_right = param index=4 () : act[e=3, wide=32",
        ),
        ("(%13) : act[e=3, rank=16", "(%13) : act[e=3, wide=32"),
        ("over=[e, rank, d] (%14)", "over=[e, wide, d] (%14)"),
        (UP, &UP.replace("rank=16", "wide=32")),
        ("up_left: act[e=3, f=4, rank=16]", "up_left: act[e=3, f=4, wide=32]"),
        (
            "%16.up_left = param index=2 () : act[e=3, f=4, rank=16]",
            "%16.up_left = param index=2 () : act[e=3, f=4, wide=32]",
        ),
        ("up=[rank]", "up=[wide]"),
    ];
    assert_eq!(check(&changed(WRITTEN, &wider)), ([0, 2], 0));
}

/// The cotangents of gate and up are read for that of the adapter's narrow rows, and for the gradient of its weight.
#[test]
fn a_product_and_a_gradient_of_the_same_rows_become_one() {
    let _ = check(WRITTEN);
    assert_eq!(low_backs_behind(WRITTEN), 2);
    for columns in ["8", "17", "32"] {
        assert_eq!(low_backs_behind(&WRITTEN.replace("rank=16", &format!("rank={columns}"))), 0);
    }
    // A weight that has its 16 columns outside.
    let plain = WRITTEN
        .replace("gate_left: act[e=3, f=4, rank=16]", "gate_left: act[e=3, rank=16, f=4]")
        .replace("index=1 () : act[e=3, f=4, rank=16]", "index=1 () : act[e=3, rank=16, f=4]");
    let _ = check(&plain);
    assert_eq!(low_backs_behind(&plain), 1);
}

/// A product and a gradient that a forward has, which no stage has.
const BESIDE: &str = "\
module main entry @Main

func @Main {
  param w: act[e=3, f=4, rank=16] ~ normal(1.0) trained
  param other: act[e=3, f=4, rank=16] ~ normal(1.0) trained
  param shared: act[b=2, t=5, f=4] ~ normal(1.0) trained
  param some: act[b=2, t=5, rank=16] ~ normal(1.0) trained
  param own: act[b=2, t=5, k=3, rank=16] ~ normal(1.0) trained
  %0.ids = input name=\"ids\" () : index[b=2, t=5, k=3]
  %1.others = input name=\"others\" () : index[b=2, t=5, k=3]
  %2.rows = input name=\"wanted\" () : act[b=2, t=5, k=3, f=4]
  %3, %4 = expert_order expert=<e=3> (%0) : index[places=30], index[bounds=4]
  %5, %6 = expert_order expert=<e=3> (%1) : index[places=30], index[bounds=4]
  %7 = affine mul=2.0 add=0.0 (%2) : act[b=2, t=5, k=3, f=4]
  %8 = param index=0 () : act[e=3, f=4, rank=16]
  %9 = param index=2 () : act[b=2, t=5, f=4]
  %10.y = routed_dot expert=e over=[f] (%0, %3, %4, %2, %8) : act[b=2, t=5, k=3, rank=16]
  %11 = param index=1 () : act[e=3, f=4, rank=16]
  %12 = param index=3 () : act[b=2, t=5, rank=16]
  %13 = param index=4 () : act[b=2, t=5, k=3, rank=16]
  %14.late = affine mul=2.0 add=0.0 (%13) : act[b=2, t=5, k=3, rank=16]
  %15.grad = routed_weight_grad expert=<e=3> (%0, %3, %4, %2, %13) : act[e=3, f=4, rank=16]
  %16.z = routed_dot expert=e over=[f] (%1, %5, %6, %7, %11) : act[b=2, t=5, k=3, rank=16]
  %17 = mean over=[e, f, rank] (%15) : act[]
  %18 = mean over=[b, t, k, rank] (%10) : act[]
  %19 = mean over=[b, t, k, rank] (%16) : act[]
  %20 = mean over=[b, t, k, rank] (%14) : act[]
  %21 = add (%17, %18) : act[]
  %22 = add (%19, %20) : act[]
  %23 = add (%21, %22) : act[]
  return loss: %23, grad: %15, y: %10, z: %16
}
";

/// How many pairs and how many products with a gradient a forward has then, which gives what it gave.
fn beside(edits: &[(&str, &str)]) -> [usize; 2] {
    let before = parsed(&changed(BESIDE, edits));
    let after = paired(&before);
    assert_eq!(paired(&after), after, "done once");
    for seed in 0..3 {
        let mut random = random(seed);
        let (inputs, store) = (inputs(&mut random), store(&before, &mut random));
        let [all, same] = [&before, &after].map(|m| run(m, &inputs, &store).unwrap().outputs);
        assert_eq!(all, same, "{edits:?}");
    }
    let nodes = &after.entry_function().nodes;
    [products(nodes)[0], low_backs(nodes)]
}

#[test]
fn a_product_goes_with_a_gradient_where_both_read_single_places() {
    assert_eq!(beside(&[]), [0, 1]);
    let (gradient, product) = ("(%0, %3, %4, %2, %13)", "(%0, %3, %4, %2, %8)");
    let others = [
        ("(%1, %5, %6, %2, %13)", product),
        ("(%0, %3, %4, %7, %13)", product),
        ("(%0, %3, %4, %2, %12)", product),
        ("(%0, %3, %4, %2, %14)", product),
        ("(%0, %3, %4, %9, %13)", "(%0, %3, %4, %9, %8)"),
    ];
    for (other_gradient, other_product) in others {
        let found = beside(&[(gradient, other_gradient), (product, other_product)]);
        assert_eq!(found, [0, 0], "{other_gradient} {other_product}");
    }
    // The gradient comes first.
    let behind =
        [(product, "(%1, %5, %6, %7, %8)"), ("(%1, %5, %6, %7, %11)", "(%0, %3, %4, %2, %11)")];
    assert_eq!(beside(&behind), [0, 1]);
    // Two products are a pair, wherever the gradient stands.
    assert_eq!(beside(&[("(%1, %5, %6, %7, %11)", "(%0, %3, %4, %2, %11)")]), [1, 0]);
}
