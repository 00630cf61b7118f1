//! The tiny stage on real text: training 20 steps leaves the same bits as training 10,
//! stopping, and resuming for 10.

use lightc_checkpoint::Store;
use lightc_models::tiny_2b::{PARAMS, Tiny2b};
use lightc_runtime::Storage;
use lightc_tests::{prepare, root};
use std::collections::BTreeMap;
use std::path::Path;

fn run(args: &[&str]) {
    lightc_tests::run(&Tiny2b, args);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn configuration(folder: &Path) -> std::path::PathBuf {
    let path = root().join("configs/tiny_2b.toml");
    let config = std::fs::read_to_string(path).expect("the configuration is readable");
    let config = config
        .replace("../out/demo/shards", "shards")
        .replace("steps = 400", "steps = 20")
        .replace("warmup_steps = 30", "warmup_steps = 5")
        .replace("max_sequences = 64", "max_sequences = 8");
    assert!(config.contains("\nsteps = 20\n"), "the configuration still has the line");
    let path = folder.join("config.toml");
    std::fs::write(&path, config).expect("the configuration is written");
    path
}

/// Digest of every tensor of the latest checkpoint of a run by file and name, and the step, seed
/// and settings that it was written at.
fn digests(run: &Path) -> (BTreeMap<String, String>, String) {
    let checkpoint = Store::new(run.join("checkpoints")).open_latest().expect("it opens");
    let manifest = checkpoint.manifest();
    let mut tensors = BTreeMap::new();
    for file in &manifest.files {
        for tensor in &file.tensors {
            let name = format!("{}: {}", file.name, tensor.name);
            assert!(tensors.insert(name, tensor.blake3.clone()).is_none(), "names are unique");
        }
    }
    (tensors, format!("{:?}", manifest.head))
}

#[test]
fn twenty_steps_are_ten_and_ten() {
    let folder = tempfile::tempdir().expect("a folder");
    prepare(&Tiny2b, folder.path());
    let config = configuration(folder.path());
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    run(&["train", "--config", text(&config), "--out", text(&whole)]);
    run(&["train", "--config", text(&config), "--out", text(&parts), "--steps", "10"]);
    run(&["train", "--config", text(&config), "--out", text(&parts), "--resume"]);
    let (expected, expected_head) = digests(&whole);
    let (found, found_head) = digests(&parts);
    let n_trained = PARAMS.iter().filter(|p| p.storage == Storage::Trained).count();
    assert!(
        expected.len() >= PARAMS.len() + 2 * n_trained,
        "parameters and both moments are there"
    );
    for (name, digest) in &expected {
        assert_eq!(found.get(name), Some(digest), "{name} differs");
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(found_head, expected_head, "step, seed and data position");
}
