//! The maps of the lineages in `models/`: each is resolved and decided, as `lightc check` does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod common;

use common::library;
use lightc_codegen::growth::{self, Claim, Verdict};
use lightc_dsl::diag;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::Loader;
use std::time::Instant;

/// Every map of a source: what is wrong with it, and what comes of its claim.
fn decided(path: &str) -> Vec<growth::Decision> {
    let library = library();
    let (name, text) = library.load("", path).unwrap();
    let (program, sources, diags) = load_program(&name, &text, &library);
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    let only = std::env::var("LIGHTC_ONLY_MAP").ok();
    let mut decisions = Vec::new();
    let mut wrong = String::new();
    for def in program.maps().iter().filter(|map| map.file == program.root()) {
        if only.as_ref().is_some_and(|only| *only != def.ast.name.name) {
            continue;
        }
        let start = Instant::now();
        let (decision, diags) = growth::decide(&program, def);
        wrong.push_str(&diag::render(&diags, &sources, false));
        if let Some(decision) = decision {
            println!("{:.2} s {decision:#?}", start.elapsed().as_secs_f64());
            decisions.push(decision);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    decisions
}

fn check(path: &str) {
    let decisions = decided(path);
    assert!(decisions.iter().all(|decision| match decision.claim {
        Claim::Exactly => decision.verdict == Verdict::Proved,
        _ => decision.verdict == Verdict::Declared,
    }));
    for decision in decisions {
        assert!(decision.change.is_some(), "`{}` is not measured", decision.name);
    }
}

#[test]
fn the_maps_of_lightning_are_decided() {
    check("lightning/lightning.llm");
}

#[test]
fn the_maps_of_tiny_are_decided() {
    check("tiny/tiny.llm");
}

#[test]
fn the_library_of_transforms_is_decided() {
    check("std/growth.llm");
}
