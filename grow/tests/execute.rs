//! Growth of checkpoints on disk: what is written, what is refused, and what a kill leaves.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use lightc_checkpoint::{Checkpoint, Dtype};
use lightc_grow::node::{Kind, Node};
use lightc_grow::plan::files;
use lightc_grow::synthetic::{Sizes, make, map};
use lightc_grow::{Options, Plan, Report, Result};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const ROOT: &str = "LIGHTC_TEST_GROW_ROOT";
const SIZES: Sizes = Sizes { n_layers: 2, d: 16 };

fn options() -> Options {
    Options { n_threads: 3, shard_bytes: 20_000, ..Options::new("test") }
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        make(SIZES, &place.from(), &options()).unwrap();
        place
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn grow(&self, plan: &Plan) -> Result<Report> {
        lightc_grow::grow(plan, &self.from(), &self.to(), &options(), &|_| {})
    }

    /// Grows, and expects to be refused with a code and nothing at the target.
    fn refused(&self, plan: &Plan) -> (&'static str, String) {
        let error = self.grow(plan).unwrap_err();
        assert!(!self.to().exists(), "{error}");
        assert!(!error.help().is_empty());
        (error.code(), error.to_string())
    }
}

fn floats(checkpoint: &Checkpoint, file: &str, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(file, name).unwrap();
    assert_eq!(tensor.dtype, Dtype::F32);
    tensor.bytes.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn values_and_moments_follow_the_rules() {
    let place = Place::new();
    let report = place.grow(&map(SIZES)).unwrap();
    assert!(report.n_files > 3, "{report:?}");
    let [from, to] = [place.from(), place.to()].map(|path| Checkpoint::open(&path).unwrap());
    let d = SIZES.d;
    for (file, power) in [(files::PARAMS, 1), (files::MOMENTS_M, 1), (files::MOMENTS_V, 2)] {
        let of = |name: &str| (floats(&from, file, name), floats(&to, file, name));
        let (old, new) = of("layers.1.q");
        assert_eq!(bits(&old), bits(&new));
        let (old, new) = of("layers.1.gate");
        let kept = 4 * d * 7 / 8 * d;
        assert_eq!(bits(&old[..kept]), bits(&new[..kept]));
        assert_eq!(new[kept..].iter().all(|value| *value == 0.0), file != files::PARAMS);
        let (old, new) = of("layers.0.up");
        let scaled: Vec<f32> = old.iter().map(|value| value * 0.5f32.powi(power)).collect();
        assert_eq!(bits(&scaled), bits(&new));
        let (old, new) = of("layers.0.down");
        let rows = old.chunks(4 * d);
        let turned: Vec<f32> = rows.flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(bits(&turned), bits(&new));
    }
    let head = &to.manifest().head;
    let grown = head.grown.as_ref().unwrap();
    assert_eq!((head.step, grown.from_step, head.moment_updates), (0, 0, 100));
    assert!(place.to().join("receipt.md").is_file());
    assert!(!place.dir.path().join(".grow_target").exists());
}

#[test]
fn the_result_does_not_depend_on_threads_and_is_not_written_twice() {
    let place = Place::new();
    let first = place.grow(&map(SIZES)).unwrap();
    let other = place.dir.path().join("other");
    let one = Options { n_threads: 1, ..options() };
    let second = lightc_grow::grow(&map(SIZES), &place.from(), &other, &one, &|_| {}).unwrap();
    assert_eq!(first.receipt, second.receipt);
    let [a, b] = [place.to(), other].map(|folder| fs::read(folder.join("receipt.json")).unwrap());
    assert_eq!(a, b);
    let again = place.grow(&map(SIZES)).unwrap();
    assert!(again.was_there);
    assert_eq!(again.receipt, first.receipt);
    // How the files are cut does not show in the root digest.
    let whole = place.dir.path().join("whole");
    let options = Options { shard_bytes: u64::MAX, ..options() };
    let third = lightc_grow::grow(&map(SIZES), &place.from(), &whole, &options, &|_| {}).unwrap();
    assert_eq!(third.receipt.target.root, first.receipt.target.root);
    assert_eq!(third.n_files, 4);
}

#[test]
fn another_target_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.to()).unwrap();
    fs::write(place.to().join("mine"), "x").unwrap();
    assert_eq!(place.grow(&map(SIZES)).unwrap_err().code(), "E0680");
    fs::remove_dir_all(place.to()).unwrap();
    place.grow(&map(SIZES)).unwrap();
    let before = fs::read(place.to().join("manifest.json")).unwrap();
    let mut other = map(SIZES);
    other.seed = 8;
    assert_eq!(place.grow(&other).unwrap_err().code(), "E0680");
    assert_eq!(fs::read(place.to().join("manifest.json")).unwrap(), before);
}

#[test]
fn what_is_not_the_source_of_the_map_is_refused() {
    let place = Place::new();
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = map(SIZES);
        change(&mut plan);
        place.refused(&plan).0
    };
    assert_eq!(with(&|plan| plan.source.stage = "another".to_owned()), "E1014");
    assert_eq!(with(&|plan| plan.source.source_hash = "another".to_owned()), "E1015");
    let midpoint = ("layers".to_owned(), "midpoint(h: 0.25)".to_owned());
    let code = with(&|plan| plan.source.integrators.extend([midpoint.clone()]));
    assert_eq!(code, "E0682");
    assert_eq!(with(&|plan| plan.tensors[0].shape = vec![16, 17]), "E1011");
    assert_eq!(with(&|plan| plan.tensors.truncate(20)), "E1010");
    assert_eq!(with(&|plan| plan.tensors[3].name = "absent".to_owned()), "E1010");
    assert!(!place.dir.path().join(".grow_target").exists());
}

#[test]
fn a_result_that_is_not_finite_is_named() {
    let place = Place::new();
    let mut plan = map(SIZES);
    let is_it = |target: &&mut lightc_grow::plan::Target| {
        target.name == "layers.1.up" && target.file == files::PARAMS
    };
    let target = plan.targets.iter_mut().find(is_it).unwrap();
    let shape = target.node.shape.clone();
    let of = Box::new(target.node.clone());
    target.node = Node { shape, kind: Kind::Scale { of, factor: 1e300 } };
    let (code, text) = place.refused(&plan);
    assert_eq!(code, "E0683");
    assert!(text.contains("`layers.1.up` of params.safetensors gives"), "{text}");
    assert!(text.contains("at element 0"), "{text}");
}

/// Every way in which a source can be damaged, after it was written.
#[test]
fn a_damaged_source_is_refused() {
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 5);
    let flip = |bytes: &mut Vec<u8>| {
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
    };
    for (damage, expected) in [
        ("truncated", "E1006"),
        ("flipped", "E1008"),
        ("removed", "E1005"),
        ("with a NaN", "E1013"),
        ("another manifest", "E1003"),
    ] {
        let place = Place::new();
        let entries = fs::read_dir(place.from()).unwrap().map(|entry| entry.unwrap().path());
        let mut names = entries.filter(|path| path.to_string_lossy().contains("params-00002"));
        let path = names.next().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "truncated" => cut(&mut bytes),
            "flipped" => flip(&mut bytes),
            _ => {}
        }
        fs::write(&path, bytes).unwrap();
        match damage {
            "removed" => fs::remove_file(&path).unwrap(),
            "with a NaN" => rewrite_with_nan(&place.from(), &path),
            "another manifest" => {
                let manifest = place.from().join("manifest.json");
                let text = fs::read_to_string(&manifest).unwrap();
                fs::write(manifest, text.replace("\"step\": 0", "\"step\": 1")).unwrap();
            }
            _ => {}
        }
        let (code, text) = place.refused(&map(SIZES));
        assert_eq!(code, expected, "{damage}: {text}");
        if damage == "with a NaN" {
            assert!(text.contains("NaN at element 7"), "{text}");
        }
    }
}

/// As if it had been written so: the digests are right, the number is not.
fn rewrite_with_nan(folder: &Path, path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    bytes[n_header + 28..n_header + 32].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, &bytes).unwrap();
    let mut manifest = lightc_checkpoint::read::read_manifest(folder).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let file = manifest.files.iter_mut().find(|file| file.name == name).unwrap();
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    file.blake3 = digest(&bytes);
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..n_header]).unwrap();
    for tensor in &mut file.tensors {
        let offset = |i: usize| parsed[&tensor.name]["data_offsets"][i].as_u64().unwrap() as usize;
        tensor.blake3 = digest(&bytes[n_header + offset(0)..n_header + offset(1)]);
    }
    let text = lightc_checkpoint::sealed::seal(&manifest).unwrap();
    fs::write(folder.join("manifest.json"), text).unwrap();
}

const LARGE: u64 = 64 << 20;

fn large_options() -> Options {
    Options { n_threads: 2, shard_bytes: 4 << 20, ..Options::new("test") }
}

fn grow_large(root: &Path, to: &str) -> Report {
    let (from, to) = (root.join("source"), root.join(to));
    let plan = map(Sizes::of_bytes(LARGE));
    lightc_grow::grow(&plan, &from, &to, &large_options(), &|_| {}).unwrap()
}

/// The child of the next test; alone it does nothing.
#[test]
fn child() {
    if let Some(root) = std::env::var_os(ROOT) {
        grow_large(Path::new(&root), "target");
    }
}

#[test]
fn a_kill_at_any_point_leaves_no_target_and_the_next_run_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("target");
    make(Sizes::of_bytes(LARGE), &dir.path().join("source"), &large_options()).unwrap();
    let expected = grow_large(dir.path(), "whole");
    let (mut n_killed, mut wait) = (0, 20);
    while !to.exists() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env(ROOT, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        let _ = child.kill();
        if child.wait().unwrap().signal() == Some(9) {
            n_killed += 1;
        }
        wait += 15;
    }
    assert!(n_killed > 0);
    let report = grow_large(dir.path(), "target");
    assert!(report.was_there);
    assert_eq!(report.receipt, expected.receipt);
    Checkpoint::open(&to).unwrap();
    assert!(!dir.path().join(".grow_target").exists());
}
