//! `lightc grow` from the source text to the written checkpoint.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step is a failed test")]

mod common;

use common::Place;
use lightc_checkpoint::{Checkpoint, Dtype, FileContents, Head, Store, TensorData};
use std::borrow::Cow;
use std::collections::BTreeMap;

const SOURCE: &str = r#"
block Feed(d, f) {
    param up[f, d]   ~ normal(0.02)
    param down[d, f] ~ normal(0.02)

    forward(x[b, d]) -> (loss[], y[b, d]) {
        y = dot(silu(dot(x, up, over d)), down, over f)
        (mean(square(y), over (b, d)), y)
    }
}

stage small {
    d     = 4
    f     = 6
    model = Feed()
}

stage wide extends small {
    f = 8
}

grow widen: small -> wide {
    preserves exactly
    seed 7
    moments follow
    up   = concat(src.up, normal(0.02), over f)
    down = concat(src.down, zeros, over f)
}

grow wrong: small -> wide {
    preserves exactly
    seed 7
    moments follow
    up   = concat(src.up, normal(0.02), over f)
    down = concat(src.down, normal(0.02), over f)
}
"#;

/// A checkpoint of stage `small`, as the trainer would write it.
fn checkpoint(place: &Place, source_hash: &str) {
    let tensor = |name: &str, shape: [usize; 2]| {
        let values = (0..24).flat_map(|i| (i as f32 * 0.25 - 1.0).to_le_bytes());
        TensorData {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: Cow::Owned(values.collect()),
        }
    };
    let file = |name: &str| FileContents {
        name: format!("{name}.safetensors"),
        tensors: vec![tensor("up", [6, 4]), tensor("down", [4, 6])],
    };
    let head = Head {
        stage: "small".to_owned(),
        source_hash: source_hash.to_owned(),
        compiler: "0.1.0".to_owned(),
        step: 30,
        seed: 1,
        tokenizer_hash: "tokenizer".to_owned(),
        corpus_digest: "corpus".to_owned(),
        settings: BTreeMap::new(),
        integrators: BTreeMap::new(),
        moment_updates: 0,
        grown: None,
    };
    let files = [file("params"), file("moments_m"), file("moments_v")];
    Store::new(place.path("run/checkpoints")).save(&head, &files).unwrap();
}

fn grow<'a>(map: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["grow", "main.llm", "--map", map, "--from", "run", "--to", "grown"];
    words.extend(rest);
    words
}

#[test]
fn a_map_in_the_source_makes_a_checkpoint_with_a_receipt() {
    let place = Place::new();
    place.write("main.llm", SOURCE);
    checkpoint(&place, "of an older text");
    // Another source than the one that wrote it.
    let output = place.run(&grow("widen", &[]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("error[E1015]"), "{text}");
    assert!(!place.path("grown").exists());

    let json = place.stdout(&grow("widen", &["--accept-changed-source", "--format", "json"]));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["was_there"], false);
    assert_eq!(report["receipt"]["probe"]["verdict"], "proved");
    assert_eq!(report["receipt"]["source"]["stage"], "small");
    let grown = Checkpoint::open(&place.path("grown")).unwrap();
    let head = &grown.manifest().head;
    assert_eq!((head.stage.as_str(), head.step, head.moment_updates), ("wide", 0, 30));
    assert_eq!(head.grown.as_ref().unwrap().map, "widen");
    let down = grown.tensor("params.safetensors", "down").unwrap();
    assert_eq!(down.shape, [4, 8]);
    assert_eq!(&down.bytes[24..32], &[0; 8]);
    assert_eq!(&down.bytes[32..36], &(6.0f32 * 0.25 - 1.0).to_le_bytes());
    let table = place.read("grown/receipt.md");
    assert!(table.contains("| params: down | [4, 8] |"), "{table}");
    let again = place.stdout(&grow("widen", &["--accept-changed-source"]));
    assert!(again.contains("was there already, verified"), "{again}");
}

#[test]
fn a_false_claim_does_not_run() {
    let place = Place::new();
    place.write("main.llm", SOURCE);
    checkpoint(&place, "x");
    let output = place.run(&grow("wrong", &["--accept-changed-source"]));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("error[E0650]"), "{text}");
    assert!(!place.path("grown").exists() && !place.path(".grow_grown").exists());
}

/// What a run on a GPU sets aside is a class of its ledger, and of no other.
#[test]
fn memory_of_a_run_has_a_reserve() {
    let place = Place::whole();
    let words = ["memory", "models/tiny/tiny.llm", "--stage", "tiny_2b", "--seq", "130"];
    let run = place.stdout(&[&words[..], &["--target", "sm_90a"]].concat());
    let reserve = run.lines().find(|line| line.starts_with("reserve")).unwrap();
    assert_eq!(reserve.split_whitespace().collect::<Vec<_>>(), ["reserve", "2.147"]);
    assert!(!place.stdout(&words).contains("reserve"));
}

#[test]
fn memory_of_the_tiny_stage() {
    let place = Place::whole();
    let words = ["memory", "models/tiny/tiny.llm", "--stage", "tiny_5b", "--gpus", "4"];
    let more = ["--micro-batch", "2", "--seq", "130", "--format", "json"];
    let json = place.stdout(&[words.as_slice(), more.as_slice()].concat());
    let ledger: serde_json::Value = serde_json::from_str(&json).unwrap();
    let layouts = ledger["layouts"].as_array().unwrap();
    let bytes = |layout: usize, class: &str| layouts[layout]["bytes"][class].as_u64().unwrap();
    assert_eq!(layouts.len(), 3);
    for (layout, printed) in layouts.iter().enumerate() {
        let all = printed["bytes"].as_object().unwrap();
        let sum: u64 = all.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(printed["total"].as_u64(), Some(sum));
        assert!(bytes(layout, "workspace") > 0 && bytes(layout, "states") > 0);
    }
    assert_eq!(bytes(0, "parameters"), bytes(1, "parameters"));
    assert!(bytes(2, "parameters") < bytes(1, "parameters"), "experts are spread");
    assert!(bytes(1, "optimizer") * 4 - bytes(0, "optimizer") < 1000, "a quarter, rounded up");
}
