//! Growth maps: what parses, to what, in which layout.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::syntax_of;
use lightc_dsl::ast::{ClauseKind, File, Grow, Item, RuleExprKind, Segment};
use lightc_dsl::format::format;
use lightc_dsl::source::SourceId;
use lightc_dsl::syntax::parse;

fn file(text: &str) -> File {
    let (file, diags) = parse(SourceId(0), text);
    assert!(diags.is_empty(), "{diags:#?}");
    file.unwrap()
}

fn map(text: &str) -> Grow {
    match file(text).items.into_iter().next().unwrap() {
        Item::Grow(map) => map,
        other => panic!("{other:?}"),
    }
}

const STAGES: &str = "/// The published step.
grow dense_to_moe: lightning_2b -> lightning_5b {
changes \"routed experts are added\"
seed   42
  moments reset \"Adam starts anew\"
setting layers.integrator \"plain to midpoint\" // why
setting ** . rope_base \"one table\"

rest=src
layers[ l ] .feed.body.shared.**=src.layers[l].feed.body.** for l in 0..8
layers[l].feed.body.gate = subset( src.layers[l].feed.body.gate,over f,each e, key:\"neurons.{l}\" )  for l in 0 .. 8
layers[i].** = src.layers[j].**  for i , j in zip(0..20,[0..8,0 .. 4 , 0 .. 8 ])
a.* = src.b.*
c[0].w = 0.5*( src.c[ 1 ].w+-src.d )/2
drop src.x \"reason\"
drop src.layers[l].y \"reason\" for l in [ 0,2 ]
}
";

const BLOCKS: &str = "/// Widens.
grow widen(d,f,g, s:number = 1/2): SwiGlu( d,f )->SwiGlu(d, f: f+g){
  preserves exactly
  moments follow
  given x=concat(src.x,zeros,over d)
  gives concat(src.result, zeros, over d)
  gives y = src.y
  gate = concat(src.gate,normal(0.02),over f)
  drop = rename(slice(src.drop, f[0..g]), f->k)
  rest.x = split(src.z, e -> (h, k))
}

stage s {
    d = 4096
    probe   {
        d=16
        vocab = 64
    }
}
";

#[test]
fn maps_between_stages_have_one_layout() {
    let once = format(STAGES).unwrap();
    assert_eq!(once, format(&once).unwrap());
    assert_eq!(syntax_of(STAGES), syntax_of(&once));
    insta::assert_snapshot!(once);
}

#[test]
fn maps_between_blocks_have_one_layout() {
    let once = format(BLOCKS).unwrap();
    assert_eq!(once, format(&once).unwrap());
    assert_eq!(syntax_of(BLOCKS), syntax_of(&once));
    insta::assert_snapshot!(once);
}

#[test]
fn long_lines_are_broken_and_keep_their_meaning() {
    let name = "a".repeat(20);
    let text = format!(
        "grow m(one, two, three): Block(d: {name}, f: {name}) -> Block(d: {name}, f: {name} + one) {{
    preserves within 1e-3
    layers[l].{name} = concat(src.layers[l].{name}, normal(0.02), over f, key: \"{name}\") for l in 0 .. 8
    layers[i].{name} = src.layers[j].{name} for i, j in zip([0 .. 100, 200 .. 300, 400 .. 500], [0 .. 100, 200 .. 300, 400 .. 500])
}}
"
    );
    let once = format(&text).unwrap();
    assert_eq!(once, format(&once).unwrap());
    assert_eq!(syntax_of(&text), syntax_of(&once));
    assert!(once.lines().all(|l| l.chars().count() <= 100), "{once}");
}

#[test]
fn words_of_clauses_can_name_tensors() {
    let map = map(BLOCKS);
    let rules: Vec<String> = map
        .clauses
        .iter()
        .filter_map(|c| match &c.kind {
            ClauseKind::Rule { target, .. } => Some(target.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(rules, ["gate", "drop", "rest.x"]);
}

#[test]
fn a_path_may_end_its_line_with_a_wildcard() {
    let map = map("grow m: a -> b {\n    x.** = src.x.**\n    y.* = src.y.*\n    rest = src\n}\n");
    assert_eq!(map.clauses.len(), 3);
    let ClauseKind::Rule { target, value, .. } = &map.clauses[0].kind else { panic!() };
    assert!(matches!(target.segments[1], Segment::Deep));
    assert!(matches!(&value.kind, RuleExprKind::Source(path) if path.segments.len() == 2));
}

#[test]
fn a_probe_stands_in_its_stage() {
    let Item::Stage(stage) = &file(BLOCKS).items[1] else { panic!() };
    let probe = stage.probe.as_ref().unwrap();
    assert_eq!(probe.bindings.len(), 2);
    assert_eq!(stage.bindings.len(), 1);
}

fn complaint(text: &str) -> String {
    let (_, diags) = parse(SourceId(0), text);
    diags.iter().map(|d| format!("{} {} ({})\n", d.code, d.message, d.primary.text)).collect()
}

#[test]
fn bad_lines_are_named_for_what_they_are() {
    let lines = [
        "preserves",
        "preserves mostly",
        "changes",
        "moments sometimes",
        "moments reset",
        "setting layers.h",
        "drop layers.x \"no source\"",
        "rest = layers",
        "layers[l = src.x",
        "x = src.x for l",
        "x = src.x for l in zip(0 .. 3",
        "x = concat(src.x, over",
        "x src.x",
        "given = src.x",
    ];
    let mut out = String::new();
    for line in lines {
        out.push_str(&format!(
            "{line}\n    {}",
            complaint(&format!("grow m: a -> b {{\n    {line}\n}}\n"))
        ));
    }
    for head in ["grow m a -> b {\n}", "grow m: a {\n}", "grow: a -> b {\n}", "grow m: a -> b"] {
        out.push_str(&format!("{head}\n    {}", complaint(head)));
    }
    insta::assert_snapshot!(out);
}
