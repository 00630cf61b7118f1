//! Crashes at every point of a save, and damage of every kind.

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::read::{Expected, ExpectedTensor};

fn head(step: u64) -> Head {
    Head {
        stage: "tiny".to_owned(),
        source_hash: "aaaa".to_owned(),
        compiler: "0.1.0".to_owned(),
        step,
        seed: 7,
        tokenizer_hash: "tttt".to_owned(),
        corpus_digest: "cccc".to_owned(),
        settings: BTreeMap::from([("data.batch".to_owned(), "4".to_owned())]),
        integrators: BTreeMap::new(),
        moment_updates: 0,
        grown: None,
    }
}

fn floats(name: &str, shape: &[usize], first: f32) -> TensorData<'static> {
    let n: usize = shape.iter().product();
    let bytes: Vec<u8> = (0..n).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
    TensorData {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: Cow::Owned(bytes),
    }
}

fn files(step: u64) -> Vec<FileContents<'static>> {
    let first = step as f32;
    vec![
        FileContents {
            name: "params.safetensors".to_owned(),
            tensors: vec![floats("a.w", &[2, 3], first), floats("b", &[4], first + 0.5)],
        },
        FileContents {
            name: "states.safetensors".to_owned(),
            tensors: vec![floats("s", &[], first)],
        },
    ]
}

fn wanted() -> Vec<ExpectedTensor> {
    files(0)
        .into_iter()
        .flat_map(|file| {
            file.tensors.into_iter().map(move |tensor| ExpectedTensor {
                file: file.name.clone(),
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
            })
        })
        .collect()
}

fn expected<'a>(
    tensors: &'a [ExpectedTensor],
    settings: &'a BTreeMap<String, String>,
) -> Expected<'a> {
    Expected {
        stage: "tiny",
        source_hash: Some("aaaa"),
        tokenizer_hash: "tttt",
        corpus_digest: Some("cccc"),
        settings: Some(settings),
        tensors,
        unread: &[],
    }
}

fn saved(steps: &[u64]) -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::new(dir.path().join("checkpoints"));
    for &step in steps {
        store.save(&head(step), &files(step)).expect("saves");
    }
    (dir, store)
}

/// The message with the temporary folder's name taken out, and the code.
fn shown(store: &Store, error: &Error) -> String {
    let text = format!("error[{}]: {error}\nhelp: {}", error.code(), error.help());
    text.replace(&store.root().display().to_string(), "RUN")
}

fn patch(store: &Store, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = store.root().join(file);
    let mut bytes = fs::read(&path).expect("reads");
    change(&mut bytes);
    fs::write(&path, bytes).expect("writes");
}

#[test]
fn what_is_saved_is_read_back() {
    let (_dir, store) = saved(&[3]);
    let checkpoint = store.open_latest().expect("opens");
    assert_eq!(checkpoint.manifest().head, head(3));
    let tensor = checkpoint.tensor("params.safetensors", "a.w").expect("is there");
    assert_eq!(tensor.shape, [2, 3]);
    assert_eq!(tensor.bytes[..4], 3f32.to_le_bytes());
    let tensors = wanted();
    checkpoint.check(&expected(&tensors, &head(3).settings)).expect("agrees");
}

#[test]
fn a_crash_at_any_point_leaves_a_loadable_latest() {
    let n_points = 6;
    for crash_at in 0..n_points {
        let (_dir, store) = saved(&[1]);
        let mut n_passed = 0;
        let crashed = store.save_with(&head(2), &files(2), &mut |point| {
            if n_passed == crash_at {
                return Err(Error::NotFound { path: format!("{point:?}").into() });
            }
            n_passed += 1;
            Ok(())
        });
        assert!(crashed.is_err(), "point {crash_at} was not reached");
        let step = store.open_latest().expect("loads").manifest().head.step;
        assert_eq!(step, if crash_at < n_points - 1 { 1 } else { 2 });
        // The next save goes through, whatever the crash left.
        let next = if step == 1 { 2 } else { 3 };
        store.save(&head(next), &files(next)).expect("saves again");
        assert_eq!(store.open_latest().expect("loads").manifest().head.step, next);
        let left = fs::read_dir(store.root()).expect("lists").count();
        assert_eq!(left, store.steps().expect("lists").len() + 1, "temporaries are left");
    }
}

#[test]
fn a_crash_in_the_middle_of_a_file_leaves_the_latest() {
    let (_dir, store) = saved(&[1]);
    let half_made = store.root().join(".tmp_step_00000002");
    fs::create_dir(&half_made).expect("creates");
    fs::write(half_made.join("params.safetensors"), [1, 2, 3]).expect("writes");
    fs::write(store.root().join(".tmp_latest"), "step_0000").expect("writes");
    assert_eq!(store.open_latest().expect("loads").manifest().head.step, 1);
    store.save(&head(2), &files(2)).expect("saves");
    assert!(!half_made.exists());
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let (_dir, store) = saved(&[1]);
    for file in ["params.safetensors", "states.safetensors", "manifest.json"] {
        let name = format!("step_00000001/{file}");
        let n_bytes = fs::read(store.root().join(&name)).expect("reads").len();
        for index in 0..n_bytes {
            let bit = index % 8;
            patch(&store, &name, |bytes| bytes[index] ^= 1 << bit);
            let error = store.open_latest().expect_err(&format!("{file} byte {index}"));
            assert!(error.code().starts_with("E10"), "{error}");
            patch(&store, &name, |bytes| bytes[index] ^= 1 << bit);
        }
    }
    assert!(store.open_latest().is_ok());
}

#[test]
fn a_file_cut_short_anywhere_is_found() {
    let (_dir, store) = saved(&[1]);
    let path = store.root().join("step_00000001/params.safetensors");
    let whole = fs::read(&path).expect("reads");
    for n_bytes in 0..whole.len() {
        fs::write(&path, &whole[..n_bytes]).expect("writes");
        let error = store.open_latest().expect_err("is found");
        assert_eq!(error.code(), "E1006", "{n_bytes} bytes: {error}");
    }
}

#[test]
fn a_damaged_latest_names_the_newest_intact_one_and_is_not_replaced_by_it() {
    let (_dir, store) = saved(&[1, 2, 3]);
    patch(&store, "step_00000003/params.safetensors", |bytes| bytes.truncate(150));
    patch(&store, "step_00000002/states.safetensors", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    let error = store.open_latest().expect_err("is found");
    let first = shown(&store, &error);
    fs::remove_dir_all(store.root().join("step_00000001")).expect("removes");
    let error = store.open_latest().expect_err("is found");
    insta::assert_snapshot!("latest_damaged", format!("{first}\n\n{}", shown(&store, &error)));
}

/// What happens to a store behind its back.
type Damage<'a> = &'a dyn Fn(&Store);

#[test]
fn each_kind_of_damage_has_its_own_message() {
    let cases: [(&str, Damage<'_>); 9] = [
        ("latest is garbage", &|store| {
            fs::write(store.root().join("latest"), "step_x\n").expect("writes");
        }),
        ("latest names nothing", &|store| {
            fs::write(store.root().join("latest"), "step_00000009\n").expect("writes");
        }),
        ("no manifest", &|store| {
            fs::remove_file(store.root().join("step_00000001/manifest.json")).expect("removes");
        }),
        ("manifest byte", &|store| {
            patch(store, "step_00000001/manifest.json", |bytes| bytes[20] ^= 1);
        }),
        ("other format", &|store| {
            let name = "step_00000001/manifest.json";
            let text = fs::read_to_string(store.root().join(name)).expect("reads");
            let text = text.replace("\"format\": 1", "\"format\": 9");
            fs::write(store.root().join(name), text).expect("writes");
        }),
        ("file missing", &|store| {
            fs::remove_file(store.root().join("step_00000001/params.safetensors"))
                .expect("removes");
        }),
        ("tensor byte", &|store| {
            patch(store, "step_00000001/params.safetensors", |bytes| {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            });
        }),
        ("header byte", &|store| {
            patch(store, "step_00000001/params.safetensors", |bytes| bytes[0] ^= 1);
        }),
        ("tensor renamed", &|store| {
            patch(store, "step_00000001/params.safetensors", |bytes| {
                let at = bytes.windows(3).position(|word| word == b"a.w").expect("is there");
                bytes[at] = b'c';
            });
        }),
    ];
    let mut text = String::new();
    for (name, damage) in cases {
        let (_dir, store) = saved(&[1]);
        damage(&store);
        let error = store.open_latest().expect_err(name);
        text += &format!("# {name}\n{}\n", shown(&store, &error));
    }
    insta::assert_snapshot!("damage", text);
}

#[test]
fn each_disagreement_with_the_program_has_its_own_message() {
    let (_dir, store) = saved(&[1]);
    let checkpoint = store.open_latest().expect("opens");
    let settings = head(1).settings;
    let mut text = String::new();
    let mut tell = |name: &str, expected: &Expected<'_>| {
        let error = checkpoint.check(expected).expect_err(name);
        text += &format!("# {name}\n{}\n", shown(&store, &error));
    };
    let tensors = wanted();
    let base = expected(&tensors, &settings);
    tell("stage", &Expected { stage: "other", ..base.clone() });
    tell("source", &Expected { source_hash: Some("bbbb"), ..base.clone() });
    tell("tokenizer", &Expected { tokenizer_hash: "uuuu", ..base.clone() });
    tell("corpus", &Expected { corpus_digest: Some("dddd"), ..base.clone() });
    let other = BTreeMap::from([
        ("data.batch".to_owned(), "8".to_owned()),
        ("seed".to_owned(), "1".to_owned()),
    ]);
    tell("settings", &Expected { settings: Some(&other), ..base.clone() });
    let mut shape = tensors.clone();
    shape[0].shape = vec![3, 2];
    tell("shape", &Expected { tensors: &shape, ..base.clone() });
    let mut dtype = tensors.clone();
    dtype[1].dtype = Dtype::F64;
    tell("dtype", &Expected { tensors: &dtype, ..base.clone() });
    tell("extra", &Expected { tensors: &tensors[..2], ..base.clone() });
    let mut renamed = tensors.clone();
    renamed[0].name = "a.v".to_owned();
    tell("missing and extra", &Expected { tensors: &renamed, ..base.clone() });
    insta::assert_snapshot!("disagreement", text);
}

#[test]
fn nothing_that_is_not_finite_is_saved_or_loaded() {
    let (_dir, store) = saved(&[1]);
    let mut poisoned = files(2);
    poisoned[0].tensors[1].bytes.to_mut()[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = store.save(&head(2), &poisoned).expect_err("is refused");
    assert_eq!(error.to_string(), "params.safetensors: tensor `b` has NaN at element 1");
    assert_eq!(store.open_latest().expect("loads").manifest().head.step, 1);
    // One that was written all the same, with digests that agree.
    store.save_with(&head(2), &poisoned, &mut |_| Ok(())).expect("writes");
    let error = store.open_latest().expect_err("is found");
    assert_eq!(error.code(), "E1013");
    assert!(error.help().contains("step_00000001"), "{}", error.help());
}

#[test]
fn saving_over_the_latest_is_refused_and_over_an_abandoned_one_is_not() {
    let (_dir, store) = saved(&[1, 2, 3]);
    assert_eq!(store.save(&head(3), &files(3)).expect_err("is refused").code(), "E1019");
    store.set_latest("step_00000001").expect("points back");
    store.save(&head(2), &files(20)).expect("replaces");
    let checkpoint = store.open_latest().expect("opens");
    let tensor = checkpoint.tensor("params.safetensors", "a.w").expect("is there");
    assert_eq!(tensor.bytes[..4], 20f32.to_le_bytes());
}

#[test]
fn pruning_keeps_the_last_ones_and_the_latest() {
    let (_dir, store) = saved(&[1, 2, 3, 4]);
    assert_eq!(store.prune(2).expect("prunes"), ["step_00000001", "step_00000002"]);
    assert_eq!(store.steps().expect("lists"), [3, 4]);
    store.set_latest("step_00000003").expect("points back");
    assert_eq!(store.prune(0).expect("prunes"), [] as [String; 0]);
    assert_eq!(store.steps().expect("lists"), [3, 4]);
}

#[test]
fn hashes_do_not_depend_on_where_the_checkpoint_lies() {
    let (_dir, store) = saved(&[1, 2]);
    let by_run = crate::hash(store.root().parent().expect("has one")).expect("hashes");
    let by_store = crate::hash(store.root()).expect("hashes");
    let by_step = crate::hash(&store.root().join("step_00000002")).expect("hashes");
    assert_eq!(by_run, by_store);
    assert_eq!(by_run, by_step);
    let other = crate::hash(&store.root().join("step_00000001")).expect("hashes");
    assert_ne!(by_run.root, other.root);
    let file = store.root().join("step_00000002/params.safetensors");
    assert_eq!(crate::hash(&file).expect("hashes").tensors[..], by_step.tensors[..2]);
    assert_eq!(crate::hash(&store.root().join("none")).expect_err("fails").code(), "E1001");
    let text = store.root().join("latest");
    assert_eq!(crate::hash(&text).expect_err("fails").code(), "E1021");
}
