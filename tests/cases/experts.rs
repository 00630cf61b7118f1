//! The cases of selections by index, expert products and the turn of a row.

use super::Cases;
use super::Draw::{BelowOrEmpty, Normal, Whole, Wide};
use super::Length::{AtLeast, AtMost, Power};
use lightc_codegen::rewrite::pairs::pair;

/// Experts with low-rank terms as grouped products, and everything that such a sum can be made of.
const ROUTED: &str = r#"
module routed entry @Root

func @Root {
  param gate: act[e=3, f=4, d=5] ~ normal(0.02) trained
  param up: act[e=3, f=4, d=5] ~ normal(0.02) trained
  param right: act[e=3, r=2, d=5] ~ normal(0.02) trained
  param left: act[e=3, f=4, r=2] ~ normal(0.02) trained
  param down: act[e=3, d=5, f=4] ~ normal(0.02) trained
  param turned: act[e=3, f=4, g=6] ~ normal(0.02) trained
  %0.x = input name="x" () : act[n, d=5]
  %1.ids = input name="ids" () : index[n, p]
  %2.weights = input name="weights" () : f32[n, p]
  %3, %4 = expert_order expert=<e=3> (%1) : index[places=n*p], index[bounds=4]
  %5 = param index=0 () : act[e=3, f=4, d=5]
  %6 = param index=1 () : act[e=3, f=4, d=5]
  %7 = param index=2 () : act[e=3, r=2, d=5]
  %8 = param index=3 () : act[e=3, f=4, r=2]
  %9 = param index=4 () : act[e=3, d=5, f=4]
  %10 = param index=5 () : act[e=3, f=4, g=6]
  %11.low = routed_dot expert=e over=[d] (%1, %3, %4, %0, %7) : act[n, p, r=2]
  %12, %13, %14.hidden = routed_swiglu expert=e gate=[d, r] up=[d] (%1, %3, %4, %0, %5, %11, %8, %0, %6) : act[n, p, f=4], act[n, p, f=4], act[n, p, f=4]
  %15.y = routed_combine expert=e over=[f] slots=p (%2, %1, %3, %4, %14, %9) : act[n, d=5]
  %16.z = routed_dot expert=e over=[f] (%1, %3, %4, %14, %10) : act[n, p, g=6]
  %17 = sum over=[p, g] (%16) : act[n]
  %18 = mul (%15, %17) : act[n, d=5]
  return loss: %18, gated: %12, lifted: %13, order: %3, bounds: %4
}
"#;

/// Gate and up of adapters alone, whose products with x are a pair, and the gradients of their weights another; the
/// cotangents of gate and up are read for a product and a gradient each.
const PAIRED: &str = r#"
module pairs entry @Root

func @Root {
  param gate_right: act[e=3, r=16, d=5] ~ normal(0.02) trained
  param up_right: act[e=3, d=5, r=16] ~ normal(0.02) trained
  param gate_left: act[e=3, f=4, r=16] ~ normal(0.02) trained
  param up_left: act[e=3, f=4, r=16] ~ normal(0.02) trained
  %0.x = input name="x" () : act[n, d=5]
  %1.ids = input name="ids" () : index[n, p]
  %2, %3 = expert_order expert=<e=3> (%1) : index[places=n*p], index[bounds=4]
  %4 = param index=0 () : act[e=3, r=16, d=5]
  %5 = param index=1 () : act[e=3, d=5, r=16]
  %6 = param index=2 () : act[e=3, f=4, r=16]
  %7 = param index=3 () : act[e=3, f=4, r=16]
  %8.gate_low = routed_dot expert=e over=[d] (%1, %2, %3, %0, %4) : act[n, p, r=16]
  %9.up_low = routed_dot expert=e over=[d] (%1, %2, %3, %0, %5) : act[n, p, r=16]
  %10, %11, %12.hidden = routed_swiglu expert=e gate=[r] up=[r] (%1, %2, %3, %8, %6, %9, %7) : act[n, p, f=4], act[n, p, f=4], act[n, p, f=4]
  return loss: %12, gate_low: %8, up_low: %9
}
"#;

pub(super) fn all(cases: &mut Cases) {
    let draws = [("ids", BelowOrEmpty("3")), ("weights", Wide)];
    cases.module("routed", ROUTED, &draws);
    cases.rewritten("pairs", PAIRED, &draws[..1], pair);
    indexes(cases);
    choices(cases);
    products(cases);
    for over in ["e", "t, b", "b, e, t"] {
        cases.op(&format!("logsumexp over=[{over}]"), &[("act[b, t, e]", Wide)], &[]);
        cases.op(&format!("logsumexp over=[{over}]"), &[("f32[e, t, b]", Wide)], &[]);
    }
    for (attrs, ty) in [
        ("seed=42 inverse=false", "act[b, t, d]"),
        ("seed=0 inverse=true", "f32[d, b]"),
        ("seed=7 inverse=false", "act[d=64, b]"),
        ("seed=7 inverse=true", "f32[d]"),
    ] {
        cases.op(&format!("hadamard axis=d {attrs}"), &[(ty, Normal)], &[("d", Power)]);
    }
    cases.op("sum_ranks", &[("f32[e]", Whole)], &[]);
    cases.op("sum_ranks", &[("f32[]", Whole)], &[]);
}

fn indexes(cases: &mut Cases) {
    cases.op("const value=3.0 dtype=index", &[], &[]);
    for attrs in ["mul=6 add=2", "mul=1 add=-2", "mul=-1 add=1", "mul=0 add=0"] {
        cases.op(&format!("index_affine {attrs}"), &[("index[b, t]", Whole)], &[]);
    }
    let pairs =
        [("index[b, t]", "index[t]"), ("index[]", "index[b]"), ("index[t, b]", "index[b, t]")];
    for (op, (a, b)) in ["index_add", "index_sub", "index_mul"].into_iter().zip(pairs) {
        cases.op(op, &[(a, Whole), (b, Whole)], &[]);
    }
    cases.op("below limit={2}", &[("index[b, t]", Whole)], &[]);
    cases.op("below limit={b-1}", &[("index[b, t]", Whole)], &[]);
    cases.op("local_expert experts=2", &[("index[b, t]", BelowOrEmpty("7"))], &[]);
    let args = [("act[b, t, d]", Normal), ("index[b, t]", BelowOrEmpty("7"))];
    cases.op("exchange experts=7", &args, &[]);
    cases.op("cast to=index", &[("f32[b, t]", Whole)], &[]);
    cases.op("cast to=index", &[("f32[]", Whole)], &[]);
    cases.op("count axis=<e>", &[("index[b, t, p]", BelowOrEmpty("e"))], &[("e", AtLeast(1))]);
    cases.op("count axis=<e=5>", &[("index[]", BelowOrEmpty("5"))], &[]);
}

fn choices(cases: &mut Cases) {
    for (attrs, score, draw, least) in [
        ("slots=<p=2>", "f32[b, t, e]", Normal, 2),
        ("slots=<p=3>", "f32[e, t]", Whole, 3),
        ("slots=<p=e>", "f32[b, e]", Whole, 1),
        ("slots=<e=1>", "f32[e]", Whole, 1),
    ] {
        cases.op(&format!("top axis=e {attrs}"), &[(score, draw)], &[("e", AtLeast(least))]);
    }
    let ids = BelowOrEmpty("e");
    for (x, draw, index) in [
        ("act[b, t, e]", Normal, "index[b, t, p]"),
        ("f32[d, e, b]", Normal, "index[p, b]"),
        ("act[e]", Normal, "index[b, t]"),
        ("f32[e, d, h]", Normal, "index[]"),
        ("act[b, e]", Normal, "index[b, e]"),
        ("index[b, e, d]", Whole, "index[b]"),
    ] {
        cases.op("take axis=e", &[(x, draw), (index, ids)], &[]);
    }
    for (attrs, index, dy) in [
        ("batch=[b, t]", "index[b, t, p]", "act[b, t, p, d]"),
        ("batch=[b]", "index[p, b]", "f32[d, p, b]"),
        ("batch=[]", "index[t]", "act[t]"),
        ("batch=[t]", "index[t]", "f32[t, d, h]"),
    ] {
        let op = format!("take_grad axis=<e> {attrs}");
        cases.op(&op, &[(index, ids), (dy, Normal)], &[("e", AtLeast(1))]);
    }
}

fn products(cases: &mut Cases) {
    let ids = BelowOrEmpty("e");
    let few = [("e", AtMost(5)), ("d", AtMost(7)), ("f", AtMost(7))];
    for (x, w, index, dy) in [
        ("act[b, t, d]", "act[e, f, d]", "index[b, t, p]", "act[b, t, p, f]"),
        ("act[b, t, p, d]", "act[e, f, d]", "index[b, t, p]", "act[b, t, p, f]"),
        ("f32[d, t, b]", "act[d, e, f]", "index[p, b, t]", "f32[f, p, t, b]"),
        ("act[p, d]", "f32[e, d, f]", "index[b, p]", "act[b, f, p]"),
        ("act[d]", "act[e, f, d]", "index[b]", "act[b, f]"),
        ("f32[b, d]", "f32[e=1, f, d]", "index[b]", "f32[b, f]"),
    ] {
        let experts = if w.contains("e=1") { "e=1" } else { "e" };
        let ids = if experts == "e" { ids } else { BelowOrEmpty("1") };
        let args = [(x, Normal), (w, Normal), (index, ids)];
        cases.op("expert_dot expert=e over=d", &args, &few);
        let args = [(x, Normal), (dy, Normal), (index, ids)];
        let op = format!("expert_dot_weight_grad expert=<{experts}> over=d");
        cases.op(&op, &args, &few);
    }
}
