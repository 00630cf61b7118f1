//! What a user sees who cuts the gradient of a parameter in a copy of the standard library: the
//! tiny stage with a DeltaNet whose write strength learns nothing.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::{compile_stage, library};
use lightc_codegen::analysis::param_table;
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::model::Storage;
use lightc_dsl::source::{Loader, MapLoader, Sources};

const DELTANET: &str = "std/deltanet.llm";
const STAGE: (&str, &str) = ("tiny/tiny.llm", "tiny_2b");

const WRITE: &str = "param write[h, d]        ~ normal(0.02)";
const WRITE_BIAS: &str = "param write_bias[h]: f32 ~ zeros";
const STRENGTH: &str = "sigmoid(f32(dot(x, write, over d)) + write_bias)";
const CUT: &str = "stop_gradient(f32(dot(x, write, over d)) + write_bias)";

/// The library with a text of the DeltaNet replaced by another, for each pair.
fn with(replacements: &[(&str, &str)]) -> MapLoader {
    let library = library();
    let (_, mut text) = library.load("", DELTANET).unwrap();
    for (from, to) in replacements {
        assert_eq!(text.matches(from).count(), 1, "`{from}` stands in {DELTANET} once");
        text = text.replace(from, to);
    }
    library.with(DELTANET, text)
}

/// Paths of the DeltaNet layers of DDDG DDDG.
fn paths(name: &str) -> Vec<String> {
    [0, 1, 2, 4, 5, 6].map(|layer| format!("layers.{layer}.mix.body.{name}")).into()
}

fn text_at(span: lightc_dsl::source::Span, sources: &Sources) -> &str {
    let source = sources.get(span.source).unwrap();
    assert_eq!(source.name, DELTANET);
    source.text.get(span.start as usize..span.end as usize).unwrap()
}

#[test]
fn a_cut_gradient_is_an_error_at_the_declaration_and_at_the_cut() {
    let cut = format!("sigmoid({CUT})");
    let (source, stage) = STAGE;
    let (diags, sources) = compile_stage(&with(&[(STRENGTH, &cut)]), source, stage).unwrap_err();
    let shown = diag::render(&diags, &sources, false);
    let [write, bias]: &[Diag; 2] = diags.as_slice().try_into().expect("two errors");
    for (diag, name, declaration) in [(write, "write", WRITE), (bias, "write_bias", WRITE_BIAS)] {
        assert_eq!(diag.code, "E0501", "{shown}");
        let first = &paths(name)[0];
        assert!(diag.message.contains(&format!("`{first}` (and at 5 other paths)")), "{shown}");
        assert_eq!(text_at(diag.primary.span, &sources), declaration, "{shown}");
        let [place] = diag.related.as_slice() else { panic!("one related place:\n{shown}") };
        assert_eq!(text_at(place.span, &sources), CUT, "{shown}");
        assert_eq!(place.text, "`stop_gradient` passes no gradient");
    }
}

#[test]
fn frozen_with_a_reason_it_passes_and_the_table_shows_it() {
    let cut = format!("sigmoid({CUT})");
    let reason = "the write strength is fixed in this experiment";
    let frozen = |declared: &str| format!("{declared} frozen {reason:?}");
    let library =
        with(&[(STRENGTH, &cut), (WRITE, &frozen(WRITE)), (WRITE_BIAS, &frozen(WRITE_BIAS))]);
    let (source, stage) = STAGE;
    let compiled = compile_stage(&library, source, stage)
        .unwrap_or_else(|(diags, sources)| panic!("{}", diag::render(&diags, &sources, false)));
    let table = param_table(&compiled.module).unwrap();
    let frozen: Vec<&str> = table
        .params
        .iter()
        .filter(|row| row.storage == Storage::Frozen(reason.to_owned()))
        .map(|row| row.path.as_str())
        .collect();
    let mut wanted: Vec<String> = [paths("write"), paths("write_bias")].concat();
    wanted.sort();
    assert_eq!(frozen, wanted);
    let whole = common::compile_stage(&common::library(), source, stage).unwrap();
    let trained = |table: &lightc_codegen::analysis::ParamTable| -> i64 {
        table.modules.iter().map(|row| row.trained).sum()
    };
    let frozen: i64 = table
        .params
        .iter()
        .filter(|row| row.storage == Storage::Frozen(reason.to_owned()))
        .map(|row| row.elements)
        .sum();
    let before = param_table(&whole.module).unwrap();
    assert_eq!(table.stored, before.stored, "nothing is stored less");
    assert_eq!(trained(&table), trained(&before) - frozen);
}
