//! Growth maps: what they mean, what is refused, what they are found to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod common;

use common::library;
use lightc_codegen::growth::{self, Claim, Decision, Moments, RuleKind, Verdict};
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::resolve::{Program, load_program};
use lightc_dsl::source::Sources;

fn load(text: &str) -> (Program, Sources) {
    let (program, sources, diags) = load_program("main.llm", text, &library());
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    (program, sources)
}

fn decide(text: &str, map: &str) -> (Option<Decision>, Vec<Diag>, Sources) {
    let (program, sources) = load(text);
    let (decision, diags) = growth::decide(&program, program.map(map).unwrap());
    (decision, diags, sources)
}

/// The decision of a map without errors other than that it is not proved.
fn decision(text: &str, map: &str) -> Decision {
    let (decision, diags, sources) = decide(text, map);
    decision.unwrap_or_else(|| panic!("{}", diag::render(&diags, &sources, false)))
}

/// Codes of a map, in order.
fn codes(text: &str, map: &str) -> Vec<&'static str> {
    let (_, diags, _) = decide(text, map);
    diags.iter().map(|d| d.code).collect()
}

const FEED: &str = "
block Feed(d, f) {
    param gate[f, d] ~ normal(0.02)
    param up[f, d]   ~ normal(0.02)
    param down[d, f] ~ normal(0.02)

    forward(x[.., d]) -> [.., d] {
        dot(silu(dot(x, gate, over d)) * dot(x, up, over d), down, over f)
    }
}

block Keep(d, inner: block) {
    sub norm = Norm()
    sub body = inner

    forward(x[b, d]) -> [b, d] {
        x + body(norm(x))
    }
}

block Norm(d, eps: number = 1e-6) {
    param weight[d] ~ ones
    state seen[] = 1

    forward(x[.., d]) -> [.., d] {
        update seen = 0.9 * seen + 0.1 * mean(square(x), over (.., d))
        x * rsqrt(mean(square(x), over d) + eps) * weight
    }
}

block Tower(d, motif: blocks, how: integrator) {
    stack layers = Keep(inner: m) for m in motif integrate how

    forward(x[b, d]) -> (loss[], y[b, d]) {
        y = layers(x)
        (mean(square(y), over (b, d)), y)
    }
}

stage small {
    d     = 8
    f     = 16
    feed  = Feed()
    motif = [feed] * 2
    how   = plain()
    model = Tower()
    probe {
        d = 4
        f = 6
    }
}

stage wide extends small {
    f = 24
    probe {
        f = 10
    }
}

stage deep extends small {
    motif = [feed] * 4
}
";

fn with(maps: &str) -> String {
    FEED.replace("mean(square(x), over (.., d))", "1") + maps
}

const WIDEN: &str = "
grow widen(d, f, g): Feed(d, f) -> Feed(d, f: f + g) {
    preserves exactly
    gate = concat(src.gate, normal(0.02), over f)
    up   = concat(src.up, normal(0.02), over f)
    down = concat(src.down, zeros, over f)
}

grow wider: small -> wide {
    preserves exactly
    seed 1
    moments follow
    rest = src
    layers[l].body = widen(src.layers[l].body) for l in 0 .. 2
}
";

#[test]
fn a_map_of_blocks_is_applied_at_a_path() {
    let (program, _) = load(&with(WIDEN));
    let map = growth::bound(&program, "wider").unwrap();
    let paths: Vec<&str> = map.params.iter().map(|rule| rule.path.as_str()).collect();
    assert_eq!(
        paths[..4],
        ["layers.0.norm.weight", "layers.0.body.gate", "layers.0.body.up", "layers.0.body.down"]
    );
    assert_eq!(map.states.len(), 2);
    assert_eq!((&map.claim, map.seed), (&Claim::Exactly, 1));
    assert_eq!(map.params[1].moments, Moments::Follow);
    let RuleKind::Concat { parts, axis } = &map.params[1].rule.kind else { panic!() };
    assert_eq!((axis.as_str(), parts[0].ty.to_string()), ("f", "act[f=16, d=8]".to_owned()));
    assert_eq!(parts[1].ty.to_string(), "act[f=8, d=8]");
    let RuleKind::Draw { key, .. } = &parts[1].kind else { panic!() };
    assert_eq!(key, "layers.0.body.gate");
}

#[test]
fn a_map_of_blocks_is_resolved_for_symbolic_sizes() {
    let (program, _) = load(&with(WIDEN));
    let map = growth::at(&program, "widen", lightc_dsl::resolve::Sizes::Symbolic).unwrap();
    assert_eq!(map.params[0].ty.to_string(), "act[f=f+g, d]");
    let RuleKind::Concat { parts, .. } = &map.params[0].rule.kind else { panic!() };
    assert_eq!(parts[1].ty.to_string(), "act[f=g, d]");
}

#[test]
fn an_exact_map_is_not_refuted() {
    for map in ["widen", "wider"] {
        let decision = decision(&with(WIDEN), map);
        assert_ne!(decision.verdict, Verdict::Refuted, "{decision:#?}");
        let change = decision.change.unwrap();
        assert!(change.outputs.iter().all(|m| m.error < 1e-12), "{change:#?}");
    }
}

#[test]
fn a_false_claim_is_refuted_with_the_place() {
    let wrong =
        WIDEN.replace("concat(src.down, zeros, over f)", "concat(src.down, normal(0.02), over f)");
    let (decision, diags, _) = decide(&with(&wrong), "wider");
    let decision = decision.unwrap();
    assert_eq!(decision.verdict, Verdict::Refuted);
    let example = decision.counterexample.unwrap();
    assert_eq!(example.parted.path, "layers.0.body");
    assert_eq!(diags[0].code, "E0650");
    assert_eq!(diags[0].related.len(), 2);
}

/// Where a map from `small` to a stage with another integrator is refuted.
fn parts(to: &str, lines: &str) -> growth::Parted {
    let text = format!(
        "
stage mid extends small {{
    how = midpoint(h: 1 / 4, a: 1 / 2)
}}
stage long extends small {{
    motif = [feed] * 4
}}
grow m: small -> {to} {{
    preserves exactly
    moments follow
{lines}
}}
"
    );
    decision(&with(&text), "m").counterexample.unwrap().parted
}

/// States of a midpoint rule are rounded, so nothing after the first layer is given the same bits:
/// what is told is the integrator, not the first value that is rounded.
#[test]
fn another_integrator_is_named_and_not_its_rounding() {
    let setting = "setting layers.integrator \"a test\"";
    let parted = parts("mid", &format!("rest = src\n{setting}"));
    assert_eq!(parted.path, "layers");
    assert_eq!(parted.source_block, "2 layers joined by plain()");
    let joined = "2 layers joined by midpoint(h: 0.25, a: [1/2] * 2, bootstrap: half_euler, fraction_bits: 20)";
    assert_eq!(parted.target_block, joined);
    assert!(parted.difference > 0.01, "{parted:?}");

    // A rule that is wrong inside comes before, also where it is wrong by less than the rounding.
    for factor in ["2", "1.0000001"] {
        let lines = format!(
            "rest = src\n{setting}\nlayers[1].body.down = {factor} * src.layers[1].body.down"
        );
        assert_eq!(parts("mid", &lines).path, "layers.1.body", "{factor}");
    }
}

#[test]
fn more_layers_are_named_by_their_stack() {
    let lines = "layers[i].** = src.layers[j].** for i, j in zip(0 .. 4, [0 .. 2, 0 .. 2])";
    let parted = parts("long", lines);
    assert_eq!(parted.path, "layers");
    assert_eq!(parted.target_block, "4 layers joined by plain()");
}

/// Where rounding is all that differs, it is what is told.
#[test]
fn a_difference_of_rounding_alone_is_found() {
    let text = "
stage mid extends small {
    how = midpoint(h: 1 / 4, a: 1 / 2)
}
stage fine extends mid {
    how = midpoint(h: 1 / 4, a: 1 / 2, fraction_bits: 22)
}
grow m: mid -> fine {
    preserves exactly
    moments follow
    rest = src
    setting layers.integrator \"a test\"
}
";
    let parted = decision(&with(text), "m").counterexample.unwrap().parted;
    assert_eq!(parted.path, "layers");
    assert!(parted.difference < 1e-4, "{parted:?}");
}

#[test]
fn a_difference_in_the_root_itself_is_named() {
    let text = "
block Out(d) {
    param scale[d] ~ ones
    forward(x[b, d]) -> (loss[], y[b, d]) {
        y = x * scale
        (mean(square(y), over (b, d)), y)
    }
}
stage out {
    d = 4
    model = Out()
}
grow m: out -> out {
    preserves exactly
    moments follow
    scale = 2 * src.scale
}
";
    let parted = decision(&with(text), "m").counterexample.unwrap().parted;
    assert_eq!((parted.path.as_str(), parted.source_block.as_str()), ("", "Out"));
}

#[test]
fn a_change_is_measured() {
    let map = "
grow double: small -> small {
    changes \"for the test\"
    moments reset \"for the test\"
    rest = src
    layers[l].body.down = 2 * src.layers[l].body.down for l in 0 .. 2
}
";
    let decision = decision(&with(map), "double");
    assert_eq!(decision.verdict, Verdict::Declared);
    let change = decision.change.unwrap();
    assert_eq!(change.outputs[0].name, "y");
    assert!(change.outputs[0].error > 0.01, "{change:#?}");
}

#[test]
fn a_bound_that_does_not_hold_is_refused() {
    let map = |bound: &str| {
        format!(
            "
grow near: small -> small {{
    preserves within {bound}
    seed 3
    moments follow
    rest = src
    layers[0].body.down = noise(src.layers[0].body.down, factor: 0.001)
}}
"
        )
    };
    assert_eq!(codes(&with(&map("0.1")), "near"), Vec::<&str>::new());
    assert_eq!(codes(&with(&map("1e-9")), "near"), ["E0652"]);
}

/// A map between the small and another stage, with one line more or instead.
fn refused(to: &str, lines: &str) -> Vec<&'static str> {
    let map = format!(
        "\ngrow m: small -> {to} {{\n    changes \"a test\"\n    moments follow\n{lines}\n}}\n"
    );
    codes(&with(&map), "m")
}

#[test]
fn what_is_wrong_with_a_map_is_said() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("small", "rest = src", &[]),
        (
            "small",
            "",
            &[
                "E0620", "E0620", "E0620", "E0620", "E0620", "E0622", "E0622", "E0622", "E0622",
                "E0622",
            ],
        ),
        ("small", "rest = src\nlayers[2].body.gate = zeros", &["E0611"]),
        ("small", "rest = src\nlayers[0].body.gat = zeros", &["E0610"]),
        ("small", "rest = src\nlayers[0].body.gate = zeros", &["E0622"]),
        (
            "small",
            "rest = src\nlayers[0].body.gate = zeros\ndrop src.layers[0].body.gate \"a test\"",
            &[],
        ),
        ("small", "rest = src\ndrop src.layers[0].body.gate \"a test\"", &["E0623"]),
        (
            "small",
            "rest = src\nlayers[l].body.* = src.layers[l].body.* for l in 0 .. 2\nlayers[0].body.gate = src.layers[0].body.gate",
            &[],
        ),
        ("wide", "rest = src", &["E0631", "E0631", "E0631", "E0631", "E0631", "E0631"]),
        (
            "deep",
            "rest = src\nlayers[i].** = src.layers[j].** for i, j in zip(0 .. 4, [0 .. 2, 0])",
            &["E0613"],
        ),
        ("deep", "layers[i].** = src.layers[j].** for i, j in zip(0 .. 4, [0 .. 2, 0 .. 2])", &[]),
        ("deep", "layers[i].** = src.layers[i].** for i in 0 .. 4", &["E0611", "E0611"]),
        ("small", "rest = src\nlayers[0].norm.weight = src.layers[0].norm.seen", &["E0632"]),
        ("small", "rest = src\nlayers[0].norm.weight = src.layers[0].body.gate", &["E0630"]),
        (
            "small",
            "rest = src\nlayers[0].norm.weight = uniform(0, 1) * src.layers[0].norm.weight",
            &["E0633"],
        ),
        (
            "small",
            "rest = src\nlayers[0].norm.weight = widdle(src.layers[0].norm.weight)",
            &["E0633"],
        ),
        ("small", "rest = src\nlayers[0].body = src.layers[0].body", &["E0636"]),
        (
            "small",
            "rest = src\nlayers[0].norm.weight = src.layers[0].norm.weight for l in 0 .. 2",
            &["E0621"],
        ),
        (
            "small",
            "rest = src\nlayers[0].norm.weight = noise(src.layers[0].norm.weight, factor: 1)",
            &["E0604"],
        ),
        ("small", "rest = src\nsetting layers.norm.eps \"same\"", &["E0641"]),
        (
            "wide",
            "layers[l].norm.** = src.layers[l].norm.** for l in 0 .. 2\nlayers[l].body.gate = tile(src.layers[l].body.gate, over f) for l in 0 .. 2\nlayers[l].body.up = subset(src.layers[l].body.up, over f) for l in 0 .. 2\nlayers[l].body.down = slice(src.layers[l].body.down, f[0 .. 24]) for l in 0 .. 2\nseed 4",
            &["E0634", "E0635", "E0635"],
        ),
    ];
    for (to, lines, wanted) in cases {
        let mut found = refused(to, lines);
        found.sort_unstable();
        assert_eq!(found, *wanted, "{to}: {lines}");
    }
}

/// A rule that is wrong for every layer is not told for every layer, nor are the layers that it was
/// not tried for left to `rest`.
#[test]
fn a_rule_that_is_wrong_for_many_layers_is_told_alone() {
    let text = "
stage tall extends small {
    motif = [feed] * 8
}
stage tall_wide extends tall {
    f = 20
}
grow m: tall -> tall_wide {
    changes \"a test\"
    moments follow
    rest = src
    layers[l].body.gate = tile(src.layers[l].body.gate, over f) for l in 0 .. 8
    layers[l].body.up   = tile(src.layers[l].body.up, over f) for l in 0 .. 8
    layers[l].body.down = tile(src.layers[l].body.down, over f) for l in 0 .. 8
}
";
    assert_eq!(codes(&with(text), "m"), ["E0634"; 3]);
}

/// The bad example of each page on growth, and what is said of it.
#[test]
fn every_error_is_shown_with_its_source() {
    let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    let mut pages: Vec<_> = common::files(&pages);
    pages.sort();
    let mut n_shown = 0;
    for page in pages {
        let code = page.file_stem().unwrap().to_string_lossy().into_owned();
        if !("E0600".."E0660").contains(&code.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        // Pages without an example: the cases below.
        let Some(rest) = text.split("```llm\n").nth(1) else { continue };
        let bad = rest.split("```").next().unwrap();
        let (program, sources, mut diags) = load_program("main.llm", bad, &library());
        for def in program.maps().iter().filter(|map| map.file == program.root()) {
            diags.extend(growth::decide(&program, def).1);
        }
        let shown = common::shown(bad, diags, &sources);
        assert!(shown.contains(&format!("[{code}]")), "{code}: {shown}");
        common::assert_shown(&format!("growth__{code}"), &shown);
        n_shown += 1;
    }
    assert!(n_shown >= 25, "{n_shown}");
}

const TOWER: &str = "block Layer(d, f) {
    param up[f, d]   ~ normal(0.02)
    param down[d, f] ~ normal(0.02)

    forward(x[b, d]) -> [b, d] {
        x + dot(tanh(dot(x, up, over d)), down, over f)
    }
}

block Tower(d, f, motif: blocks) {
    stack layers = m for m in motif

    forward(x[b, d]) -> (loss[], y[b, d]) {
        y = layers(x)
        (mean(square(y), over (b, d)), y)
    }
}

stage small {
    d     = 4
    f     = 3
    motif = [Layer()] * 2
    model = Tower()
}
";

/// Units in another order compute the same, and no rule of the prover knows it.
#[test]
fn what_is_neither_proved_nor_refuted_is_not_accepted() {
    let text = format!(
        "{TOWER}
grow shuffled: small -> small {{
    preserves exactly
    moments follow

    layers[l].up   = select(src.layers[l].up, [2, 0, 1], over f) for l in 0 .. 2
    layers[l].down = select(src.layers[l].down, [2, 0, 1], over f) for l in 0 .. 2
}}
"
    );
    let (decision, diags, sources) = decide(&text, "shuffled");
    assert_eq!(decision.unwrap().verdict, Verdict::Unknown);
    common::assert_shown("growth__E0651", &common::shown(&text, diags, &sources));
}

#[test]
fn a_map_that_is_not_there() {
    let (program, sources) = load(TOWER);
    let diags = growth::bound(&program, "shuffled").unwrap_err();
    common::assert_shown("growth__E0605", &common::shown(TOWER, diags, &sources));
}
