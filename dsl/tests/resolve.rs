//! What correct programs mean.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use lightc_dsl::model::{InitLaw, MemberRef, StageModel, Storage, SubKind, Target};
use lightc_dsl::resolve::{Program, load_program};
use lightc_dsl::source::{Loader, MapLoader, join_path};
use std::fmt::Write as _;

const NORM: &str = "\
/// Scales to unit length.
block Norm(d, eps: number = 1e-6) {
    param weight[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}
";

fn load(source: &str) -> Program {
    let loader = MapLoader::default().with("norm.llm", NORM);
    let (program, sources, diags) = load_program("main.llm", source, &loader);
    assert!(diags.is_empty(), "{}", lightc_dsl::diag::render(&diags, &sources, false));
    program
}

fn stage(source: &str, name: &str) -> StageModel {
    let program = load(source);
    program.resolve_stage(name).unwrap_or_else(|diags| panic!("{diags:#?}"))
}

/// A model as text: instances in order, with sizes, numbers, members and where axes go.
fn show(model: &StageModel) -> String {
    let mut out = format!("{} = #{}\n", model.name, model.root.0);
    for (id, instance) in model.instances.iter().enumerate() {
        let sizes = instance.sizes.iter().map(|(n, s)| format!("{n}={s}"));
        let numbers = instance.numbers.iter().map(|(n, v)| format!("{n}={v}"));
        let head: Vec<String> = sizes.chain(numbers).collect();
        let _ = writeln!(out, "#{id} {}({})", instance.block, head.join(", "));
        for member in &instance.order {
            match member {
                MemberRef::Param(i) => {
                    let p = &instance.params[*i];
                    let axes: Vec<String> =
                        p.axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
                    let law = match &p.init {
                        InitLaw::Normal { std } => format!("normal {std}"),
                        law => format!("{law:?}").to_lowercase(),
                    };
                    let frozen = match &p.storage {
                        Storage::Trained => String::new(),
                        Storage::Frozen(reason) => format!(" frozen {reason:?}"),
                        Storage::Quantized(format) => format!(" quantized {}", format.word()),
                        Storage::Adapter => " adapter".to_owned(),
                    };
                    let (name, axes) = (&p.name, axes.join(", "));
                    let _ = writeln!(out, "    param {name}[{axes}]: {:?} {law}{frozen}", p.dtype);
                }
                MemberRef::Sub(i) => {
                    let s = &instance.subs[*i];
                    let only = if s.training_only { " training_only" } else { "" };
                    let text = match &s.kind {
                        SubKind::One(target) => show_target(target),
                        SubKind::Stack(layers) => {
                            let layers: Vec<String> = layers.iter().map(show_target).collect();
                            format!("[{}]", layers.join(", "))
                        }
                    };
                    let _ = writeln!(out, "    sub {} = {text}{only}", s.name);
                }
            }
        }
        for s in &instance.states {
            let axes: Vec<String> = s.axes.iter().map(|a| a.name.clone()).collect();
            let _ = writeln!(out, "    state {}[{}] = {}", s.name, axes.join(", "), s.start);
        }
        for t in &instance.tables {
            let _ = writeln!(out, "    table {} from {}", t.name, t.from);
        }
    }
    out
}

fn show_target(target: &Target) -> String {
    let axes: Vec<String> = target.axes.iter().map(|(f, p)| format!("{f} is {p}")).collect();
    format!("#{}({})", target.instance.0, axes.join(", "))
}

macro_rules! models {
    ($($(#[$doc:meta])* $name:ident: $stage:literal of $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() {
            let model = stage($source, $stage);
            insta::assert_snapshot!(format!("{}\n{}\n{}", $source, "=".repeat(80), show(&model)));
        })*
    };
}

models! {
    /// Formals take arguments, defaults, and names around them; equal instances are one.
    capture_and_sharing: "s" of "import \"norm.llm\"
block Two(d, n) {
    axis e = n * d
    sub first = Norm()
    sub second = Norm(d: e)
    sub third = Norm(eps: 1e-5)
    sub fourth = Norm()
    sub fifth = Norm(d: 2 * d)
    forward(x[.., d]) -> [.., d] { x }
}
stage s {
    d = 8
    n = 4
    model = Two()
}";
    /// A block written in a stage takes `f` from the stage although no block on the way has it.
    closures: "s" of "block Ffn(d, f, scale: number) {
    param up[f, d] ~ normal(0.02)
    forward(x[.., d]) -> [.., d] { x }
}
block Layer(d, inner: block) {
    sub body = inner
    forward(x[.., d]) -> [.., d] { body(x) }
}
stage s {
    d = 8
    f = 16
    scale = 0.5
    ffn = Ffn()
    model = Layer(inner: ffn)
}";
    /// The layer's axis is named `width`, and the captured block's `d`: they are one axis.
    same_axis_by_another_name: "s" of "import \"norm.llm\"
block Layer(width, inner: block) {
    sub body = inner
    sub fixed = Norm(d: 8)
    forward(x[.., width]) -> [.., width] { body(x) }
}
stage s {
    d = 8
    model = Layer(width: d, inner: Norm())
}";
    /// Both formals are the stage's `d`; an argument means the name it spells.
    two_names_for_one_axis: "s" of "import \"norm.llm\"
block Layer(a, b) {
    sub left = Norm(d: a)
    sub right = Norm(d: b)
    forward(x[.., a]) -> [.., b] { x }
}
stage s {
    d = 8
    model = Layer(a: d, b: d)
}";
    /// A default gives a length, not an axis.
    default_sizes: "s" of "import \"norm.llm\"
block Wide(d, k = d, f = 4 * k, inner: block = Norm(d: f)) {
    sub body = inner
    forward(x[.., d]) -> [.., d] { x }
}
block Outer(d) {
    sub wide = Wide()
    sub narrow = Wide(f: d)
    forward(x[.., d]) -> [.., d] { wide(x) }
}
stage s {
    d = 8
    model = Outer()
}";
    stacks: "s" of "import \"norm.llm\"
block Twice(d, inner: block) {
    sub body = inner
    forward(x[.., d]) -> [.., d] { body(body(x)) }
}
block Net(d, depth: number, motif: blocks) {
    stack layers = Twice(inner: Twice(inner: m)) for m in motif * depth + [Norm()]
    stack none = m for m in []
    forward(x[.., d]) -> [.., d] { layers(x) }
}
stage s {
    d = 8
    rest = [Norm(eps: 1e-3)]
    motif = 1 * ([Norm()] + rest)
    model = Net(depth: 4 / 2)
}";
    /// An override is seen by everything, and in any order.
    late_binding: "tiny" of "import \"norm.llm\"
stage base {
    model = norm
    norm = Norm(d: width)
    width = 2 * half
    half = 64
}
stage small extends base {
    half = 8
}
stage tiny extends small {
    norm = Norm(d: width, eps: 1 / 8)
}";
    parameters: "s" of "block All(d, j, scale: number) {
    param a[] ~ zeros
    param b[d]: f32 ~ ones()
    param c[d] ~ constant(-scale) frozen \"a fixed point\"
    param e[d] ~ normal(0.02 / sqrt(size(j)))
    param f[d] ~ uniform(-1 / 2, 1 / 2)
    param g[d] ~ log_uniform(0, 2 * exp(ln(8)))
    state ema[] = 1.0
    state per[d]: 3
    table codes[j, d] from \"tokenizer.byte_codes\"
    sub tail = Tail() training_only
    forward(x[.., d]) -> [.., d] { x }
}
block Tail() {
    forward(x[..]) -> [..] { x }
}
stage s {
    d = 2
    j = 16
    scale = 0.25
    model = All()
}".replace("state per[d]: 3", "state per[d] = 3").as_str();
}

#[test]
fn standalone_blocks_are_symbolic() {
    let program = load(
        "import \"norm.llm\"
block Heads(d, h, scale: number = 2) {
    axis k = d / h
    axis pairs = k / 2
    param query[h, k, d] ~ normal(1 / sqrt(size(k)))
    sub norm = Norm(d: k)
    forward(x[.., d]) -> [.., d] { x }
}
block Needs(d, inner: block) {
    forward(x[.., d]) -> [.., d] { x }
}",
    );
    assert_eq!(program.block_names(), ["Heads", "Needs"]);
    assert!(program.is_standalone("Heads") && !program.is_standalone("Needs"));
    let (models, diags) = program.check();
    assert_eq!(diags, []);
    // `d` is taken as a multiple of what it is divided by.
    insta::assert_snapshot!(show(&models[0]), @r"
    Heads = #1
    #0 Norm(d=2*d, eps=0.000001)
        param weight[d=2*d]: Act ones
    #1 Heads(d=2*d*h, h=h, k=2*d, pairs=d, scale=2)
        param query[h=h, k=2*d, d=2*d*h]: Act normal 0.7071067811865475
        sub norm = #0(d is k)
    ");
}

#[test]
fn docs_and_order() {
    let model = stage(
        "/// First line.
///
///   indented
stage s {
    /// Width.
    d = 2
    model = A()
}
block A(d) {
    /// Documents w.
    // An ordinary comment between.
    /// Second line.
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] { x }
}",
        "s",
    );
    assert_eq!(model.doc.as_deref(), Some("First line.\n\n  indented"));
    let root = model.instance(model.root);
    assert_eq!(root.params[0].doc.as_deref(), Some("Documents w.\nSecond line."));
}

#[test]
fn files_are_loaded_once() {
    let loader = MapLoader::default()
        .with("models/main.llm", "")
        .with("models/a.llm", "import \"std/b.llm\"\nimport \"main.llm\"")
        .with("models/std/b.llm", "import \"../a.llm\"\nimport \"../std/./b.llm\"\nblock B(d) {\n    forward(x[d]) -> [d] { x }\n}");
    let root = "import \"a.llm\"\nimport \"std/b.llm\"";
    let (program, sources, diags) = load_program("models/main.llm", root, &loader);
    assert_eq!(diags, []);
    let names: Vec<&str> = sources.iter().map(|(_, s)| s.name.as_str()).collect();
    assert_eq!(names, ["models/main.llm", "models/a.llm", "models/std/b.llm"]);
    assert!(program.block("B").is_some());
    // `check` looks at what the root file defines.
    assert_eq!(program.block_names(), Vec::<&str>::new());
}

#[test]
fn paths_are_joined() {
    for (from, path, joined) in [
        ("a.llm", "b.llm", "b.llm"),
        ("x/a.llm", "b.llm", "x/b.llm"),
        ("x/a.llm", "../b.llm", "b.llm"),
        ("x/a.llm", "../../b.llm", "../b.llm"),
        ("../x/a.llm", "../y/./b.llm", "../y/b.llm"),
        ("/x/a.llm", "../../b.llm", "/../b.llm"),
        ("x/a.llm", "/y//b.llm", "/y/b.llm"),
    ] {
        assert_eq!(join_path(from, path), joined, "{from} {path}");
    }
    let loader = MapLoader::default().with("x/b.llm", "text");
    assert_eq!(loader.load("x/a.llm", "./b.llm"), Ok(("x/b.llm".into(), "text".into())));
}

/// Bindings and axes far beyond any real model end in an error, and the stack holds.
#[test]
fn long_chains_end() {
    let mut chain =
        String::from("block A(d) {\n    forward(x[.., d]) -> [.., d] { x }\n}\nstage s {\n");
    chain.push_str("    d = b9999\n    model = A()\n    b0 = 1\n");
    for i in 1..10_000 {
        let _ = writeln!(chain, "    b{i} = b{} + b{}", i - 1, i - 1);
    }
    chain.push_str("}\n");
    let diags = load(&chain).resolve_stage("s").unwrap_err();
    assert_eq!(diags.iter().map(|d| d.code).collect::<Vec<_>>(), ["E0308"]);

    let mut deep = String::from("block A(d) {\n    forward(x[.., d]) -> [.., d] { x }\n}\n");
    deep.push_str(
        "block W(d, i: block) {\n    sub b = i\n    forward(x[.., d]) -> [.., d] { b(x) }\n}\n",
    );
    deep.push_str("stage s {\n    d = 1\n    c0 = A()\n");
    for i in 1..100 {
        let _ = writeln!(deep, "    c{i} = W(i: c{})", i - 1);
    }
    deep.push_str("    model = c99\n}\n");
    let diags = load(&deep).resolve_stage("s").unwrap_err();
    assert_eq!(diags.iter().map(|d| d.code).collect::<Vec<_>>(), ["E0210"]);
}
