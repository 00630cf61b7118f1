//! The cases of the ops that compute.

use super::Draw::{
    Below, BelowOrEmpty, BelowOrIgnored, Budget, Negative, Normal, Positive, Row, Truth, Unit,
    Whole, Wide,
};
use super::Length::{AtLeast, AtMost, Even};
use super::{Cases, Draw};
use lightc_codegen::ops::{BinaryFn, UnaryFn};

/// Where a function of one number is smooth, or where its kinks are.
fn domain(function: UnaryFn) -> Draw {
    match function {
        UnaryFn::Ln | UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Recip => Positive,
        UnaryFn::Abs => Whole,
        UnaryFn::Exp | UnaryFn::Square => Normal,
        _ => Wide,
    }
}

/// Two operands that meet by name: axes missing, in another order, of mixed classes.
const PAIRS: [(&str, &str); 8] = [
    ("act[b, t, d]", "act[d]"),
    ("f32[d]", "act[b, t, d]"),
    ("act[b, t]", "f32[t, b]"),
    ("act[b, t, d]", "f32[]"),
    ("f32[b, t, d]", "act[d, b]"),
    ("act[]", "act[]"),
    ("act[b, t, d]", "act[t]"),
    ("f32[t]", "act[d, t, b]"),
];

pub(super) fn pointwise(cases: &mut Cases) {
    for dtype in ["act", "f32"] {
        cases.op(&format!("const value=-0.3 dtype={dtype}"), &[], &[]);
    }
    cases.op("size_value size={3*u-2}", &[], &[("u", AtLeast(1))]);
    cases.op("size_value size={b*t}", &[], &[("b", AtLeast(1)), ("t", AtLeast(1))]);
    cases.op("affine mul=-1.5 add=2.0", &[("act[b, t]", Normal)], &[]);
    cases.op("affine mul=1.0 add=0.25", &[("f32[]", Normal)], &[]);
    cases.op("affine mul=3.0 add=0.0", &[("f32[d]", Normal)], &[]);
    for (index, function) in UnaryFn::ALL.into_iter().enumerate() {
        let ty = ["act[b, t, d]", "f32[t, b]", "f32[]"][index % 3];
        let (name, grad) = function.names();
        cases.op(name, &[(ty, domain(function))], &[]);
        cases.op(grad, &[(ty, domain(function)), (ty, Normal)], &[]);
    }
    for (index, function) in BinaryFn::ALL.into_iter().enumerate() {
        let (a, b) = if matches!(function, BinaryFn::Add | BinaryFn::Sub | BinaryFn::Mul) {
            (Normal, Normal)
        } else if function == BinaryFn::Div {
            (Normal, Positive)
        } else {
            (Whole, Whole)
        };
        let every = matches!(function, BinaryFn::Mul | BinaryFn::Div);
        for (at, (left, right)) in PAIRS.into_iter().enumerate() {
            if every || at % 3 == index % 3 {
                cases.op(function.name(), &[(left, a), (right, b)], &[]);
            }
        }
    }
    cases.op("lt", &[("index[b, t]", Whole), ("index[t]", Whole)], &[]);
    cases.op("ge", &[("index[t]", Whole), ("index[b, t]", Whole)], &[]);
    cases.op("clamp low=-0.5 high=0.75", &[("act[b, t]", Normal)], &[]);
    cases.op("clamp low=-1.0 high=2.0", &[("f32[t]", Whole)], &[]);
    cases.op("clamp_grad low=-1.0 high=2.0", &[("act[b, t]", Whole), ("act[b, t]", Normal)], &[]);
    choices(cases);
    cases.op("cast to=act", &[("f32[b, t]", Normal)], &[]);
    cases.op("cast to=f32", &[("act[b, t]", Normal)], &[]);
    cases.op("cast to=f32", &[("f32[t]", Normal)], &[]);
    cases.op("cast to=f32", &[("index[b, t]", Whole)], &[]);
    cases.op("stop_gradient", &[("act[b, t]", Normal)], &[]);
    cases.op("stop_gradient", &[("index[b]", Whole)], &[]);
}

fn choices(cases: &mut Cases) {
    let triples = [
        ("bool[t]", "act[b, t]", "f32[b]"),
        ("bool[b, t]", "f32[]", "act[]"),
        ("bool[t, b]", "act[b, t, d]", "act[d, t]"),
        ("bool[b, t]", "act[t, b]", "act[t]"),
        ("bool[]", "act[b]", "f32[b]"),
    ];
    for (condition, a, b) in triples {
        cases.op("where", &[(condition, Truth), (a, Normal), (b, Normal)], &[]);
    }
    let args = [("bool[t]", Truth), ("index[b, t]", Whole), ("index[b]", Whole)];
    cases.op("where", &args, &[]);
    cases.op("where", &[("bool[t]", Truth), ("bool[b, t]", Truth), ("bool[t]", Truth)], &[]);
}

pub(super) fn reductions(cases: &mut Cases) {
    for op in ["sum", "mean"] {
        cases.op(&format!("{op} over=[t]"), &[("act[b, t, d]", Normal)], &[]);
        cases.op(&format!("{op} over=[d, b]"), &[("f32[b, t, d]", Normal)], &[]);
        cases.op(&format!("{op} over=[t, d, b]"), &[("act[b, t, d]", Normal)], &[]);
        cases.op(&format!("{op} over=[e]"), &[("act[b, e=8]", Normal)], &[]);
        cases.op(&format!("{op} over=[e, t]"), &[("f32[t, e=b*t+2]", Normal)], &[]);
    }
    let pairs = [
        ("d", "act[b, t, d]", "act[f, d]"),
        ("d", "f32[d, t, b]", "act[d]"),
        ("k", "act[b, t, h, k]", "act[h, b, s, k]"),
        ("t, b", "act[t, b]", "act[b, t]"),
        ("", "act[b]", "f32[f, d]"),
        ("", "act[b, d]", "act[d, b]"),
        ("", "act[b, t]", "f32[t, d]"),
        ("j", "act[s, b, j]", "act[b, j, d, s]"),
        ("j, d", "act[j, b, d]", "f32[d, n, j]"),
        ("", "f32[]", "act[d]"),
        ("", "act[d]", "f32[]"),
        ("d", "act[d]", "act[d]"),
        ("h, k", "act[tokens, h, k]", "act[tasks, tokens, k, h]"),
    ];
    for (over, a, b) in pairs {
        cases.op(&format!("contract over=[{over}]"), &[(a, Normal), (b, Normal)], &[]);
    }
}

pub(super) fn shapes(cases: &mut Cases) {
    cases.op("broadcast axes=<n, t, b, d>", &[("act[b, t]", Normal)], &[]);
    cases.op("broadcast axes=<t, b>", &[("f32[]", Normal)], &[]);
    cases.op("broadcast axes=<b, t>", &[("f32[b, t]", Normal)], &[]);
    cases.op("broadcast axes=<d, t, b>", &[("act[b, d, t]", Normal)], &[]);
    cases.op("broadcast axes=<t, n=4, b>", &[("index[b, t]", Whole)], &[]);
    cases.op("broadcast axes=<b, t=2*b>", &[("bool[b]", Truth)], &[]);

    cases.op("permute order=[d, b, t]", &[("act[b, t, d]", Normal)], &[]);
    cases.op("permute order=[t, b]", &[("index[b, t]", Whole)], &[]);
    cases.op("permute order=[b]", &[("f32[b]", Normal)], &[]);
    cases.op("rename from=t to=s", &[("act[b, t]", Normal)], &[]);
    cases.op("rename from=t to=t", &[("bool[t, b]", Truth)], &[]);

    cases.op("split axis=e into=<h, k>", &[("act[b, e=h*k, t]", Normal)], &[]);
    cases.op("split axis=e into=<h=2, k, e=3>", &[("f32[e=6*k]", Normal)], &[]);
    cases.op("split axis=e into=<h>", &[("index[t, e=h]", Whole)], &[]);
    cases.op("merge axes=[h, k] into=e", &[("act[b, h, k, t]", Normal)], &[]);
    cases.op("merge axes=[k, b, h] into=k", &[("f32[b, h, k, t]", Normal)], &[]);
    cases.op("merge axes=[t, b] into=r", &[("index[b, t]", Whole)], &[]);
    cases.op("merge axes=[t] into=r", &[("bool[b, t]", Truth)], &[]);
}

pub(super) fn cuts_and_joints(cases: &mut Cases) {
    let two = [("u", AtLeast(2))];
    for (cut, ty) in [
        ("start={0} end={u} to=u", "act[b, u, d]"),
        ("start={1} end={u-1} to=t", "f32[u, b]"),
        ("start={u-2} end={u-2} to=t", "act[b, u]"),
        ("start={u-2} end={u} to=t", "act[u]"),
        ("start={0} end={1} to=t", "index[b, u]"),
    ] {
        let draw = if ty.starts_with("index") { Whole } else { Normal };
        cases.op(&format!("slice axis=u {cut}"), &[(ty, draw)], &two);
    }
    cases.op(
        "pad axis=t before={2} after={u} to=t",
        &[("act[b, t]", Normal)],
        &[("u", AtLeast(1))],
    );
    cases.op("pad axis=t before={b} after={0} to=s", &[("f32[t, b, d]", Normal)], &[]);
    cases.op("pad axis=t before={0} after={0} to=s", &[("act[t]", Normal)], &[]);
    cases.op("pad axis=t before={1} after={t} to=s", &[("index[b, t]", Whole)], &[]);
    cases.op("pad axis=b before={0} after={2} to=b", &[("bool[b, t]", Truth)], &[]);

    cases.op("concat axis=d to=e", &[("act[b, d, t]", Normal)], &[]);
    let parts =
        [("act[b, d=n, t]", Normal), ("f32[b, d=3, t]", Normal), ("act[t, d=2*n, b]", Normal)];
    cases.op("concat axis=d to=e", &parts, &[]);
    cases.op("concat axis=d to=d", &[("f32[d=n]", Normal), ("act[d=m]", Normal)], &[]);
    cases.op("concat axis=d to=d", &[("index[b, d=n]", Whole), ("index[d=2, b]", Whole)], &[]);
    cases.op("concat axis=b to=b", &[("bool[b, t]", Truth), ("bool[b=1, t]", Truth)], &[]);

    for (place, ty) in [
        ("axis=<u> index={u-2} position=0", "act[b, t]"),
        ("axis=<u> index={0} position=1", "f32[b, t]"),
        ("axis=<n=4> index={3} position=2", "act[b, t]"),
        ("axis=<n=2*u> index={u} position=0", "f32[]"),
        ("axis=<u> index={1} position=1", "index[b]"),
    ] {
        let draw = if ty.starts_with("index") { Whole } else { Normal };
        cases.op(&format!("place {place}"), &[(ty, draw)], &[("u", AtLeast(2))]);
    }
    cases.op("place axis=<u> index={1} position=0", &[("bool[b]", Truth)], &two);
    cases.op("pick axis=u index={0}", &[("act[b, u, d]", Normal)], &two);
    cases.op("pick axis=u index={u-2}", &[("f32[u]", Normal)], &two);
    cases.op("pick axis=u index={u-1}", &[("index[u, b]", Whole)], &two);
}

pub(super) fn sequences(cases: &mut Cases) {
    let taps = [("j", AtMost(7))];
    let names = "time=t channel=e taps=j";
    for (x, w) in [
        ("act[b, t, e]", "act[e, j]"),
        ("f32[e, b, t]", "act[j, e]"),
        ("act[t, e, b]", "f32[e, j]"),
        ("act[b, t, e]", "act[e, j=4]"),
    ] {
        let args = [(x, Normal), (w, Normal)];
        cases.op(&format!("causal_conv {names}"), &args, &taps);
        cases.op(&format!("causal_conv_input_grad {names}"), &args, &taps);
    }
    let (act, wide) = ("act[b, t, e]", "f32[t, b, e]");
    for (x, dy) in [(act, act), (act, wide), (wide, act)] {
        let op = "causal_conv_weight_grad time=t channel=e taps=<j>";
        cases.op(op, &[(x, Normal), (dy, Normal)], &taps);
    }
    let even = [("k", Even)];
    let op = "rotary time=t pairs=k";
    cases.op(&format!("{op} base=10000.0 inverse=false"), &[("act[b, t, h, k]", Normal)], &even);
    cases.op(&format!("{op} base=100.0 inverse=true"), &[("f32[k, h, t]", Normal)], &even);
    cases.op(&format!("{op} base=50.0 inverse=false"), &[("act[t, k]", Normal)], &even);
    cases.op(&format!("{op} base=10.0 inverse=true"), &[("act[b, h, t, k=2*n]", Normal)], &[]);
    cases.op("causal query=<t> key=<s>", &[], &[]);
    cases.op("causal query=<t> key=<s=t+1>", &[], &[]);
    cases.op("position axis=<t>", &[], &[]);
    cases.op("position axis=<w=2*t-1>", &[], &[("t", AtLeast(1))]);
}

pub(super) fn attention(cases: &mut Cases) {
    let select = "select_top query=t key=s";
    for (attrs, score, budget) in [
        ("sinks=0 limit=8", ("act[b, t, s=t]", Normal), ("f32[b, t]", Budget)),
        ("sinks=2 limit=4", ("f32[t, b, s=t]", Normal), ("act[t, b]", Budget)),
        ("sinks=1 limit=256", ("act[s=t, t, b]", Whole), ("f32[t, b]", Budget)),
        ("sinks=100 limit=1", ("act[b, t, s=t]", Whole), ("f32[b, t]", Budget)),
    ] {
        cases.op(&format!("{select} {attrs}"), &[score, budget], &[]);
    }
    let index = "indexer query=t key=s head=h channel=k";
    for (attrs, q, k, heed) in [
        ("base=3.0 low=1.0 high=4.0", "act[b, t, h, k=4]", "act[b, s=t, k=4]", "f32[b, t, h]"),
        ("base=90.0 low=2.0 high=3.5", "f32[k=7, t, h, b]", "f32[s=t, b, k=7]", "act[t, h, b]"),
    ] {
        let args =
            [(q, Normal), (k, Normal), (heed, Unit), ("f32[h]", Normal), ("f32[]", Positive)];
        cases.op(&format!("{index} {attrs} sinks=1 limit=5"), &args, &[("h", AtMost(3))]);
    }
    let names = "query=t key=s head=h channel=k";
    let few = [("h", AtMost(3))];
    let sets = [
        ("act[b, t, h, k]", "act[b, s, h, k]", "act[b, s, h, m]", "bool[b, t, s]", "[b, t, h, m]"),
        ("act[k, t, h, b]", "f32[b, k, s, h]", "act[h, s, b, m]", "bool[s, t, b]", "[h, b, m, t]"),
        ("f32[b, t, h, k]", "act[b, s, h, k]", "f32[b, s, h, k]", "bool[b, t, s]", "[b, t, h, k]"),
        ("f32[t, b, h, k]", "f32[s, b, h, k]", "f32[s, b, h, k]", "bool[t, b, s]", "[b, t, h, k]"),
    ];
    for (index, (q, k, v, mask, dy)) in sets.into_iter().enumerate() {
        let args = [(q, Normal), (k, Row), (v, Normal), (mask, Truth)];
        cases.op(&format!("masked_attention {names}"), &args, &few);
        let dy = format!("{}{dy}", ["act", "f32"][index % 2]);
        let args = [args[0], args[1], args[2], args[3], (dy.as_str(), Normal)];
        cases.op(&format!("masked_attention_grad {names}"), &args, &few);
    }
}

pub(super) fn delta_rule(cases: &mut Cases) {
    let few = [("h", AtMost(3)), ("k", AtMost(7)), ("m", AtMost(7))];
    let sets = [
        ("act[b, t, h, k]", "act[b, t, h, k]", "act[b, t, h, m]", "f32[b, t, h]", "act[b, t, h]"),
        ("act[k, t, h, b]", "f32[b, k, t, h]", "act[h, t, b, m]", "f32[h, t, b]", "f32[b, t, h]"),
        ("f32[t, b, h, k]", "f32[t, b, h, k]", "act[b, t, h, k]", "act[b, t, h]", "act[b, t, h]"),
        ("act[b, t, h, k]", "act[b, t, h, k]", "act[b, t, h, k]", "act[b, t, h]", "act[b, t, h]"),
    ];
    for (index, (q, k, v, g, beta)) in sets.into_iter().enumerate() {
        let value = if v.contains('m') { "m" } else { "k" };
        let names = format!("time=t head=h key=k value={value}");
        let args = [(q, Normal), (k, Row), (v, Normal), (g, Negative), (beta, Unit)];
        cases.op(&format!("gated_delta_rule {names}"), &args, &few);
        let dy = format!("{}[b, t, h, {value}]", ["act", "f32"][index % 2]);
        let args = [args[0], args[1], args[2], args[3], args[4], (dy.as_str(), Normal)];
        cases.op(&format!("gated_delta_rule_grad {names}"), &args, &few);
    }
}

pub(super) fn normalisation_and_loss(cases: &mut Cases) {
    for (attrs, ty) in [
        ("iterations=1 eps=0.1", "act[b, t, s, j]"),
        ("iterations=3 eps=0.01", "f32[j, s]"),
        ("iterations=20 eps=1e-6", "act[b, j, t, s]"),
        ("iterations=20 eps=1e-6", "f32[b, s=4, j=4]"),
    ] {
        let small = [("s", AtMost(7)), ("j", AtMost(7))];
        let names = format!("rows=s columns=j {attrs}");
        cases.op(&format!("sinkhorn {names}"), &[(ty, Normal)], &small);
        cases.op(&format!("sinkhorn_grad {names}"), &[(ty, Normal), (ty, Normal)], &small);
    }
    for (softcap, h, w, targets) in [
        ("0.0", "act[b, t, d]", "act[v, d]", "index[b, t]"),
        ("1.5", "f32[d, t, b]", "act[d, v]", "index[b, t]"),
        ("15.0", "act[t, d]", "f32[v, d]", "index[t]"),
        ("0.0", "act[d]", "act[v, d]", "index[]"),
    ] {
        let op = format!("channel=d vocab=v softcap={softcap}");
        let args = [(h, Normal), (w, Normal), (targets, BelowOrIgnored("v"))];
        cases.op(&format!("linear_cross_entropy {op}"), &args, &[]);
        cases.op(&format!("linear_cross_entropy_step {op}"), &args, &[]);
        let grad = [args[0], args[1], args[2], ("f32[]", Normal)];
        cases.op(&format!("linear_cross_entropy_grad {op}"), &grad, &[]);
    }
}

pub(super) fn gathers(cases: &mut Cases) {
    let slots = BelowOrEmpty("j");
    for (w, index, dy) in [
        ("act[j, d]", "index[b, t, p]", "act[b, t, d]"),
        ("f32[d, j]", "index[p, t, b]", "f32[d, b, t]"),
        ("act[j, d]", "index[p]", "act[d]"),
        ("f32[j, d]", "index[b, h, t, p]", "act[b, h, t, d]"),
    ] {
        // Long sums into few rows cancel, which says nothing about the op.
        let rows = [("j", AtLeast(5)), ("p", AtMost(3))];
        cases.op("gather_sum rows=j slots=p", &[(w, Normal), (index, slots)], &rows);
        let op = "gather_sum_grad rows=<j> slots=p";
        cases.op(op, &[(index, slots), (dy, Normal)], &rows);
    }
    let ids = Below("v");
    for (table, draw, index) in [
        ("act[v, d]", Normal, "index[b, t]"),
        ("f32[d, v, h]", Normal, "index[b]"),
        ("index[v, p]", Whole, "index[b, t]"),
        ("f32[v]", Normal, "index[t]"),
        ("act[h, v]", Normal, "index[]"),
    ] {
        cases.op("lookup rows=v", &[(table, draw), (index, ids)], &[]);
    }
    for (index, dy) in [
        ("index[b, t]", "act[b, t, d]"),
        ("index[t, b]", "f32[d, b, h, t]"),
        ("index[b]", "act[b]"),
        ("index[]", "f32[d]"),
    ] {
        cases.op("lookup_grad rows=<v>", &[(index, ids), (dy, Normal)], &[("v", AtLeast(1))]);
    }
}
