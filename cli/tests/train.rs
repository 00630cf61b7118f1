//! `train` with a cargo and a libtorch that are made of paper: what is built where, what the
//! program is given, and how it ends.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::Place;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const TINY: &str = "models/tiny/tiny.llm";

/// A place with a `cargo` that builds `program`, and a libtorch.
fn place_with(program: &str) -> Place {
    let place = Place::new();
    for file in [
        "lib/libtorch_cpu.so",
        "lib/libtorch.so",
        "lib/libc10.so",
        "include/torch/csrc/api/include/torch/torch.h",
    ] {
        place.write(&format!("torch/{file}"), "");
    }
    place.write("torch/build-version", "2.11.0+cpu\n");
    place.write("made", program);
    let made = place.path("made").display().to_string();
    place.write(
        "cargo",
        format!(
            "#!/bin/sh\necho \"$@\" > {made}.arguments\npwd > {made}.folder\n\
             echo '{{\"reason\":\"compiler-artifact\",\"executable\":\"{made}\"}}'\n"
        ),
    );
    for file in ["made", "cargo"] {
        fs::set_permissions(place.path(file), fs::Permissions::from_mode(0o755)).unwrap();
    }
    place.write("c.toml", "steps = 1\n");
    place
}

fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = place.command(arguments);
    command.env("CARGO", place.path("cargo")).env("LIBTORCH", place.path("torch"));
    command
}

const TRAIN: [&str; 8] =
    ["train", TINY, "--stage", "tiny_2b", "--config", "c.toml", "--out", "run"];

#[test]
fn the_program_gets_its_arguments_and_libtorch_and_gives_the_exit_code() {
    let place = place_with("#!/bin/sh\necho \"$@\"\necho \"$LD_LIBRARY_PATH\"\nexit 3\n");
    let more = ["--resume", "--steps", "5", "--", "--accept-changed-source"];
    let output = command(&place, &[&TRAIN[..], &more].concat()).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "train --config c.toml --out run --resume --steps 5 --accept-changed-source"
    );
    assert!(lines[1].ends_with("torch/lib"), "{text}");
    assert_eq!(output.status.code(), Some(3));

    let cache = place.list("cache/lightc/build");
    assert_eq!(cache.len(), 2, "{cache:?}");
    assert!(cache[1].starts_with("tiny_2b-"), "{cache:?}");
    let crate_folder = format!("cache/lightc/build/{}", cache[1]);
    assert!(place.list(&crate_folder).contains(&"program".to_owned()));
    let arguments = place.read("made.arguments");
    assert!(arguments.starts_with("build --release"), "{arguments}");
    // The toolchain is that of the runtime's checkout.
    assert_eq!(place.without_paths(&place.read("made.folder")), "[CHECKOUT]\n");
}

/// A GPU of another architecture, by what `nvidia-smi` says: nothing is built for it.
#[test]
fn a_target_that_this_machine_lacks_is_refused_before_a_build() {
    let place = place_with("#!/bin/sh\necho ran\n");
    place.write("bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 8.0'\n");
    fs::set_permissions(place.path("bin/nvidia-smi"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let run = |target: &str| {
        let mut command = command(&place, &[&TRAIN[..], &["--target", target]].concat());
        command.env("PATH", format!("{}:{path}", place.path("bin").display()));
        command.output().unwrap()
    };
    let refused = run("sm_90a");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("error[E1303]: the first GPU, NVIDIA A100-SXM4-80GB"), "{text}");
    assert!(!place.path("made.arguments").exists());
    assert_eq!(String::from_utf8_lossy(&run("cpu").stdout), "ran\n");
    assert!(place.path("made.arguments").exists());
}

#[test]
fn another_source_is_another_program() {
    let place = place_with("#!/bin/sh\n");
    for _ in 0..2 {
        assert!(command(&place, &TRAIN).status().unwrap().success());
    }
    assert_eq!(place.list("cache/lightc/build").len(), 2);
    place.edit(TINY, "= 96", "= 192");
    assert!(command(&place, &TRAIN).status().unwrap().success());
    assert_eq!(place.list("cache/lightc/build").len(), 3);
}

#[test]
fn signals_reach_the_program() {
    let place = place_with(
        "#!/bin/sh\ntrap 'echo saved; exit 130' INT\necho ready\nwhile :; do sleep 0.05; done\n",
    );
    let mut child =
        command(&place, &TRAIN).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(lines.next().unwrap().unwrap(), "saved");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_is_wrong_is_said_before_anything_is_compiled() {
    let place = place_with("#!/bin/sh\n");
    let no_config = command(&place, &[&TRAIN[..5], &["nowhere.toml", "--out", "run"]].concat())
        .output()
        .unwrap();
    let no_libtorch = command(&place, &TRAIN).env_remove("LIBTORCH").output().unwrap();
    let no_runtime = command(&place, &TRAIN).env("LIGHTC_RUNTIME", "nowhere").output().unwrap();
    for (output, code) in [(no_config, "E1201"), (no_libtorch, "E1206"), (no_runtime, "E1205")] {
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.starts_with(&format!("error[{code}]")), "{text}");
    }
    assert!(!place.path("made.arguments").exists());
}

#[test]
fn a_failed_build_runs_nothing() {
    let place = place_with("#!/bin/sh\n");
    place.write("cargo", "#!/bin/sh\necho 'error: no' >&2\nexit 101\n");
    let output = command(&place, &TRAIN).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("error: no\n") && text.contains("error[E1207]"), "{text}");
}
