//! `kill -9` at random moments of a save, in a process of its own.

#![allow(clippy::expect_used)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use lightc_checkpoint::{Dtype, FileContents, Head, Store, TensorData};

const ROOT: &str = "LIGHTC_TEST_KILL_ROOT";

fn save(store: &Store, step: u64) {
    let head = Head {
        stage: "tiny".to_owned(),
        source_hash: String::new(),
        compiler: String::new(),
        step,
        seed: 0,
        tokenizer_hash: String::new(),
        corpus_digest: String::new(),
        settings: BTreeMap::new(),
        integrators: BTreeMap::new(),
        moment_updates: 0,
        grown: None,
    };
    let bytes: Vec<u8> =
        (0..50_000u32).flat_map(|i| ((i as f32) + step as f32).to_le_bytes()).collect();
    let tensors = |name: &str| FileContents {
        name: format!("{name}.safetensors"),
        tensors: vec![TensorData {
            name: "w".to_owned(),
            dtype: Dtype::F32,
            shape: vec![50_000],
            bytes: Cow::Borrowed(&bytes),
        }],
    };
    let files = [tensors("params"), tensors("moments_m"), tensors("moments_v")];
    store.save(&head, &files).expect("saves");
    store.prune(2).expect("prunes");
}

/// Not a test of its own: the process that `kill_minus_nine` kills.
#[test]
fn saver() {
    let Ok(root) = std::env::var(ROOT) else {
        return;
    };
    let store = Store::new(root);
    let begin = store.steps().expect("lists").last().map_or(1, |step| step + 1);
    for step in begin..u64::MAX {
        save(&store, step);
    }
}

#[test]
fn kill_minus_nine_always_leaves_a_loadable_latest() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::new(dir.path().join("checkpoints"));
    save(&store, 1);
    let program = std::env::current_exe().expect("knows itself");
    let mut last = 1;
    let mut n_unfinished = 0;
    for round in 0..60u64 {
        let mut child = Command::new(&program)
            .args(["--exact", "saver", "--nocapture"])
            .env(ROOT, store.root())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        // A different moment each time: 5 to 65 ms, in an order without a period.
        std::thread::sleep(Duration::from_micros(5_000 + round * 7_919 % 60_000));
        child.kill().expect("kills");
        child.wait().expect("ends");
        let unfinished = std::fs::read_dir(store.root())
            .expect("lists")
            .filter(|entry| {
                let name = entry.as_ref().expect("reads").file_name();
                name.to_string_lossy().starts_with(".tmp_")
            })
            .count();
        n_unfinished += usize::from(unfinished > 0);
        let step = store.open_latest().expect("loads").manifest().head.step;
        assert!(step >= last, "latest went back from {last} to {step}");
        last = step;
    }
    assert!(last > 1, "no save ever finished");
    assert!(n_unfinished > 0, "no kill ever hit a save");
}
