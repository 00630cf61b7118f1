//! Every command on the tiny stage and on bad input. A snapshot shows the command and all of its
//! output.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::Place;
use insta::assert_snapshot;
use serde_json::Value;
use std::process::Stdio;

const TINY: &str = "models/tiny/tiny.llm";
const LIGHTNING: &str = "models/lightning/lightning.llm";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

// check ---------------------------------------------------------------------------------------

#[test]
fn check_of_good_sources() {
    let place = Place::new();
    let text =
        [TINY, LIGHTNING, "models/std/norm.llm"].map(|file| place.transcript(&["check", file]));
    assert_snapshot!(text.join("\n"));
}

#[test]
fn check_as_json() {
    let place = Place::new();
    assert_eq!(
        place.stdout(&["check", TINY, "--format", "json"]),
        "{\"diagnostics\":[],\"maps\":[]}\n"
    );
    place.edit(TINY, "d              = 64", "d = 64\n    unknwon = nothing");
    let output = place.run(&["check", TINY, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    let report = json(&String::from_utf8(output.stdout).unwrap());
    let first = &report["diagnostics"][0];
    assert_eq!(first["severity"], "error");
    assert_eq!(first["file"], TINY);
    assert_eq!(first["line"], 9);
    let report = place.run(&["check", "nowhere.llm", "--format", "json"]).stdout;
    let first = &json(&String::from_utf8(report).unwrap())["diagnostics"][0];
    assert_eq!((&first["code"], &first["file"]), (&"E1201".into(), &"nowhere.llm".into()));
}

#[test]
fn check_reports_all_errors_of_all_files() {
    let place = Place::new();
    place.write("norm.llm", "block Norm(d) {\n    param weight[e] ~ ones\n}\n");
    place.write(
        "bad.llm",
        "import \"norm.llm\"\nimport \"nowhere.llm\"\n\nstage a extends b {\n    d = 1.5\n}\n\n\
         stage c {\n    d = 4\n    d = 5\n    model = Nrom()\n}\n",
    );
    assert_snapshot!(place.transcript(&["check", "bad.llm"]));
}

#[test]
fn check_of_a_stage_with_wrong_axes() {
    let place = Place::new();
    place.edit("models/std/swiglu.llm", "dot(hidden, down, over f)", "dot(hidden, down, over d)");
    assert_snapshot!(place.transcript(&["check", TINY]));
}

/// A parameter cut off from the loss is found, with its places and paths; frozen, it is accepted
/// and shown.
#[test]
fn a_cut_gradient() {
    const WRITE: &str = "param write[h, d]        ~ normal(0.02)";
    let place = Place::new();
    let file = "models/std/deltanet.llm";
    let written = "sigmoid(f32(dot(x, write, over d)) + write_bias)";
    let cut = "sigmoid(stop_gradient(f32(dot(x, write, over d)) + write_bias))";
    place.edit(file, written, cut);
    let failed = place.transcript(&["check", TINY]);
    for expected in ["E0501", "layers.0.mix.body.write`", "layers.0.mix.body.write_bias`", file] {
        assert!(failed.contains(expected), "{expected} in\n{failed}");
    }
    let reason = "frozen \"the write strength is a constant here\"";
    place.edit(file, WRITE, &format!("{WRITE} {reason}"));
    place.edit(file, "write_bias[h]: f32 ~ zeros", &format!("write_bias[h]: f32 ~ zeros {reason}"));
    let passed = place.transcript(&["check", TINY]);
    let shown = place.transcript(&["params", TINY, "--stage", "tiny_2b"]);
    assert!(shown.contains("frozen: the write strength is a constant here"), "{shown}");
    assert_snapshot!([failed, passed, shown].join("\n"));
}

#[test]
fn a_stage_without_a_loss_is_checked_and_said_not_to_train() {
    let place = Place::new();
    place.write(
        "a.llm",
        "block Double(d) {\n    param w[d] ~ ones\n    forward(x[b, d]) -> [b, d] {\n        \
         x * w\n    }\n}\n\nstage small {\n    d = 4\n    model = Double()\n}\n",
    );
    let commands: [&[&str]; 4] = [
        &["check", "a.llm"],
        &["inspect", "a.llm", "--stage", "small", "--emit", "ir"],
        &["inspect", "a.llm", "--stage", "small", "--emit", "backward"],
        &["inspect", "a.llm", "--stage", "small", "--emit", "rust"],
    ];
    assert_snapshot!(commands.map(|command| place.transcript(command)).join("\n"));
}

// files ---------------------------------------------------------------------------------------

#[test]
fn files_that_cannot_be_read() {
    let place = Place::new();
    place.write("latin.llm", b"stage caf\xe9 {\n}\n");
    place.write("imports.llm", "import \"latin.llm\"\nimport \"models\"\n");
    let commands: [&[&str]; 7] = [
        &["check", "nowhere.llm"],
        &["check", "models"],
        &["check", "/dev/zero"],
        &["check", "latin.llm"],
        &["check", "imports.llm"],
        &["fmt", "nowhere.llm", "latin.llm"],
        &["params", "models", "--stage", "x"],
    ];
    assert_snapshot!(commands.map(|command| place.transcript(command)).join("\n"));
}

#[test]
fn an_unknown_stage() {
    let place = Place::new();
    let commands: [&[&str]; 4] = [
        &["params", TINY, "--stage", "tiny_2c"],
        &["inspect", TINY, "--stage", "nothing_alike", "--emit", "ir"],
        &["inspect", TINY, "--emit", "ir"],
        &["build", TINY, "--stage", "lightning", "--out", "out"],
    ];
    assert_snapshot!(commands.map(|command| place.transcript(command)).join("\n"));
    assert!(!place.path("out").exists());
}

#[test]
fn values_that_no_option_has() {
    let place = Place::new();
    for command in [
        ["check", TINY, "--format", "yaml"],
        ["inspect", TINY, "--emit", "llvm"],
        ["build", TINY, "--target", "tpu"],
    ] {
        let output = place.run(&command);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("invalid value") && text.contains("possible values"), "{text}");
    }
}

/// One name for one stage, wherever it is started.
#[test]
fn the_digest_does_not_depend_on_the_folder() {
    let place = Place::new();
    let arguments = |file| ["inspect", file, "--stage", "tiny_2b", "--emit", "rust"];
    let here = place.stdout(&arguments("models/tiny/tiny.llm"));
    let mut command = place.command(&arguments("tiny.llm"));
    let there = command.current_dir(place.path("models/tiny")).output().unwrap();
    let there = String::from_utf8(there.stdout).unwrap();
    let whole = place.stdout(&arguments(place.path("models/tiny/./tiny.llm").to_str().unwrap()));
    let digest =
        |text: &str| text.lines().find(|line| line.starts_with("// digest")).unwrap().to_owned();
    assert_eq!(digest(&here), digest(&there));
    assert_eq!(digest(&here), digest(&whole));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let arguments = ["inspect", TINY, "--stage", "tiny_2b", "--emit", "rust"];
    let mut child =
        place.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_is_an_error() {
    let place = Place::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command(&["explain", "E0201"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("E1204"));
}

// fmt -----------------------------------------------------------------------------------------

#[test]
fn fmt_changes_layout_and_nothing_else() {
    let place = Place::new();
    place.write("a.llm", "stage a {\n  d=4 // width\n\n\n  model   = A( )\n}\n");
    place.write("broken.llm", "stage {\n");
    let mut text = place.transcript(&["fmt", "--check", "a.llm", TINY]);
    assert!(place.read("a.llm").contains("d=4"));
    text.push('\n');
    text.push_str(&place.transcript(&["fmt", "broken.llm", "a.llm"]));
    assert_eq!(place.read("broken.llm"), "stage {\n");
    text.push_str("--- a.llm\n");
    text.push_str(&place.read("a.llm"));
    text.push('\n');
    text.push_str(&place.transcript(&["fmt", "--check", "a.llm"]));
    assert_snapshot!(text);
}

// params, inspect -----------------------------------------------------------------------------

#[test]
fn params_of_the_tiny_stage() {
    let place = Place::new();
    assert_snapshot!(place.transcript(&["params", TINY, "--stage", "tiny_2b"]));
}

#[test]
fn params_as_json() {
    let place = Place::new();
    let text = place.stdout(&["params", LIGHTNING, "--stage", "lightning_2b", "--format", "json"]);
    let start = "{\"stage\":\"lightning_2b\",\
        \"stored\":{\"with_mtp\":1653102772,\"without_mtp\":1490253946},\
        \"active\":{\"with_mtp\":1653102772,\"without_mtp\":1490253946},\
        \"adapters\":{\"with_mtp\":0,\"without_mtp\":0},\"classes\":{";
    assert!(text.starts_with(start), "{text}");
    let value = json(&text);
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["stage", "stored", "active", "adapters", "classes", "modules"]);
    let modules = value["modules"].as_array().unwrap();
    let sum: i64 = modules.iter().map(|module| module["elements"].as_i64().unwrap()).sum();
    assert_eq!(sum, 1_653_102_772);
}

#[test]
fn params_in_full_list_every_tensor() {
    let place = Place::new();
    let arguments = ["params", TINY, "--stage", "tiny_2b", "--full"];
    let text = place.stdout(&arguments);
    let line = |path: &str| {
        let line = text.lines().rfind(|line| line.starts_with(path)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_snapshot!(
        [line("lm_head "), line("layers.0.mix.body.a_log"), line("layers.3.mix.body.index_bias")]
            .join("\n")
    );
    let value = json(&place.stdout(&[&arguments[..], &["--format", "json"]].concat()));
    let params = value["params"].as_array().unwrap();
    let sum: i64 = params.iter().map(|param| param["elements"].as_i64().unwrap()).sum();
    assert_eq!(Some(sum), value["stored"]["with_mtp"].as_i64());
}

#[test]
fn inspect_shows_one_function() {
    let place = Place::new();
    let show = |emit, function| {
        place.transcript(&[
            "inspect",
            TINY,
            "--stage",
            "tiny_2b",
            "--emit",
            emit,
            "--function",
            function,
        ])
    };
    let text = [
        show("model", "SwiGlu"),
        show("ir", "SwiGlu"),
        show("backward", "SwiGlu.backward"),
        show("schedule", "SwiGlu"),
        show("ir", "SwiGul"),
        show("rust", "SwiGlu"),
    ];
    assert_snapshot!(text.join("\n"));
}

#[test]
fn inspect_forms_agree() {
    let place = Place::new();
    let show = |emit: &str, format: &str| {
        place.stdout(&["inspect", TINY, "--stage", "tiny_2b", "--emit", emit, "--format", format])
    };
    // The text of both halves is one module's text, and parses back.
    let (ir, backward) = (show("ir", "text"), show("backward", "text"));
    let whole = format!("{ir}\n{}", backward.split_once('\n').unwrap().1.trim_start());
    let module = lightc_codegen::ir::text::parse(&whole).unwrap();
    assert_eq!(lightc_codegen::ir::text::print(&module), whole);
    let functions = json(&show("ir", "json"))["functions"].as_array().unwrap().len();
    assert_eq!(functions, module.functions.len());
    let scheduled = json(&show("schedule", "json"))["functions"].as_array().unwrap().len();
    assert_eq!(scheduled, module.functions.len() + module.backward.len());
    assert_eq!(json(&show("rust", "json"))["text"].as_str().unwrap(), show("rust", "text"));
    assert_eq!(json(&show("ast", "text")), json(&show("ast", "json")));
    assert_eq!(json(&show("model", "json"))["name"], "tiny_2b");
}

// explain, hash -------------------------------------------------------------------------------

#[test]
fn explain() {
    let place = Place::new();
    let commands: [&[&str]; 4] = [
        &["explain", "E1201"],
        &["explain", "e1201", "--format", "json"],
        &["explain", "E9999"],
        &["explain"],
    ];
    assert_snapshot!(commands.map(|command| place.transcript(command)).join("\n"));
    let list = place.stdout(&["explain", "--list"]);
    assert!(list.contains("E0208  unknown stage\n"), "{list}");
    let pages = json(&place.stdout(&["explain", "--list", "--format", "json"]));
    assert_eq!(pages.as_array().unwrap().len(), list.lines().count());
}

/// The smallest safetensors file: a header and two numbers.
fn safetensors() -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(1f32.to_le_bytes());
    bytes.extend(2f32.to_le_bytes());
    bytes
}

#[test]
fn hash() {
    let place = Place::new();
    place.write("a.safetensors", safetensors());
    place.write("cut.safetensors", &safetensors()[..66]);
    let commands: [&[&str]; 4] = [
        &["hash", "a.safetensors"],
        &["hash", "a.safetensors", "--format", "json"],
        &["hash", "cut.safetensors"],
        &["hash", "nowhere"],
    ];
    assert_snapshot!(commands.map(|command| place.transcript(command)).join("\n"));
}

// snapshot ------------------------------------------------------------------------------------

#[test]
fn snapshot_pins_and_shows_a_change() {
    let place = Place::new();
    let missing = place.run(&["snapshot", TINY]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!place.path("models/tiny/tiny.llm.snapshots").exists());
    let blessed = place.transcript(&["snapshot", TINY, "--bless"]);
    let again = place.transcript(&["snapshot", TINY]);
    place.write("models/tiny/tiny.llm.snapshots/old_stage.ir.txt", "x");
    place.edit(TINY, "= 96", "= 192");
    let changed = place.run(&["snapshot", TINY]);
    assert_eq!(changed.status.code(), Some(1));
    let diff = String::from_utf8(changed.stdout.clone()).unwrap();
    for expected in [
        "-# |     f              = 96\n",
        "+# |     f              = 192\n",
        "-stored  898,218, at inference 830,834\n",
    ] {
        assert!(diff.contains(expected), "{expected:?} in\n{diff}");
    }
    let said = place.without_paths(&String::from_utf8_lossy(&changed.stderr));
    assert_snapshot!([blessed, again, said].join("\n"));
    place.stdout(&["snapshot", TINY, "--bless", "--stage", "tiny_2b"]);
    place.stdout(&["snapshot", TINY]);
    let header = place.read("models/tiny/tiny.llm.snapshots/tiny_2b.params.txt");
    assert!(header.contains("# | stage tiny_2b extends lightning_2b {\n"), "{header}");
}

#[test]
fn snapshot_of_a_broken_source_writes_nothing() {
    let place = Place::new();
    place.edit(TINY, "d              = 64", "d = nothing");
    let output = place.run(&["snapshot", TINY, "--bless", "--dir", "pinned"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!place.path("pinned").exists());
}

// build, doctor -------------------------------------------------------------------------------

const BUILD: [&str; 7] = ["build", TINY, "--stage", "tiny_2b", "--target", "cpu", "--out"];

fn build(out: &'static str) -> Vec<&'static str> {
    [&BUILD[..], &[out]].concat()
}

#[test]
fn build_writes_the_same_bytes_again() {
    let place = Place::new();
    let first = place.transcript(&build("out/crate"));
    let names = [".lightc-generated.json", "Cargo.lock", "Cargo.toml", "src/"];
    assert_eq!(place.list("out/crate"), names);
    place.stdout(&build("out/other"));
    for file in ["Cargo.toml", "Cargo.lock", "src/lib.rs", "src/main.rs", ".lightc-generated.json"]
    {
        let read = |folder: &str| place.read(&format!("out/{folder}/{file}"));
        assert_eq!(read("crate"), read("other"), "{file}");
    }
    let second = place.transcript(&build("out/crate"));
    assert_snapshot!([first, second].join("\n"));
}

/// Whatever the grammar lets a stage be called, the crate has a name that Rust accepts.
#[test]
fn build_of_stages_with_awkward_names() {
    let place = Place::new();
    let source = place.read(TINY);
    for (stage, package, type_name) in [
        ("_", "stage__", "Stage_"),
        ("type", "stage_type", "Type"),
        ("std", "stage_std", "Std"),
        ("tensor", "tensor", "Stage_Tensor"),
    ] {
        place.write(
            "models/tiny/named.llm",
            source.replace("stage tiny_2b", &format!("stage {stage}")),
        );
        place.stdout(&["build", "models/tiny/named.llm", "--stage", stage, "--out", stage]);
        let manifest = place.read(&format!("{stage}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{manifest}");
        let main = place.read(&format!("{stage}/src/main.rs"));
        assert!(main.contains(&format!("&{package}::{type_name})")), "{main}");
    }
}

#[test]
fn build_refuses_a_folder_of_somebody_else() {
    let place = Place::new();
    place.write("mine/notes.txt", "x");
    let refused = place.transcript(&build("mine"));
    assert_eq!(place.list("mine"), ["notes.txt"]);
    let runtime = place.transcript(&[&build("out")[..], &["--runtime", "nowhere"]].concat());
    assert!(!place.path("out").exists());
    assert_snapshot!([refused, runtime].join("\n"));
}

#[test]
fn doctor_names_what_is_missing() {
    let place = Place::new();
    let output = place.run(&["doctor", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "there is no libtorch in this test's home");
    let report = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "lightc",
            "rustc",
            "cargo",
            "C++ compiler",
            "Python",
            "libtorch",
            "runtime",
            "cache folder",
            "disk space",
            "processor",
            "memory",
            "GPU",
            "NVRTC"
        ]
    );
    let libtorch = checks.iter().find(|check| check["name"] == "libtorch").unwrap();
    assert_eq!(libtorch["status"], "missing");
    assert!(libtorch["fix"].as_str().unwrap().contains("lightc doctor --install"));
    let text = String::from_utf8(place.run(&["doctor"]).stdout).unwrap();
    assert!(text.contains("MISSING  libtorch"), "{text}");
}

/// What the compiler makes of the tiny stage is pinned beside its source. `lightc snapshot
/// models/tiny/tiny.llm --stage tiny_2b --bless` accepts a change; its diff is what a review reads.
#[test]
fn what_is_generated_from_the_tiny_stage_is_what_is_pinned() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lightc"));
    let arguments = ["snapshot", TINY, "--stage", "tiny_2b"];
    let output = command.args(arguments).current_dir(common::root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_schedule_of_a_gpu_lists_row_kernels_with_their_bound() {
    let place = Place::new();
    let arguments = ["inspect", LIGHTNING, "--stage", "lightning_2b", "--emit", "schedule"];
    let arguments = [&arguments[..], &["--target", "sm_90a", "--seq", "8192"]].concat();
    let text = place.stdout(&arguments);
    assert!(text.contains("of 1 x 8192 tokens, predicted for an H200"), "{text}");
    let value = json(&place.stdout(&[&arguments[..], &["--format", "json"]].concat()));
    let kernels = value["kernels"].as_array().unwrap();
    assert!(kernels.len() > 100, "{} kernels", kernels.len());
    for kernel in kernels {
        let name = kernel["kernel"].as_str().unwrap();
        assert!(text.contains(name), "{name}");
        assert!(kernel["microseconds"].as_f64().unwrap() >= 3.0, "{kernel}");
        let bounds = ["memory", "arithmetic", "tensor cores", "launch"];
        assert!(bounds.contains(&kernel["bound"].as_str().unwrap()));
    }
    // Each kind of work has a part in the sum that the last line tells.
    let totals = value["totals"].as_array().unwrap();
    let parts = totals.iter().map(|part| part["milliseconds"].as_f64().unwrap());
    assert!(parts.clone().all(|ms| ms > 0.0), "{totals:?}");
    let whole = value["milliseconds"].as_f64().unwrap();
    assert!((parts.sum::<f64>() - whole).abs() < 1e-9 * whole);
    assert!(text.contains(&format!("in all {whole:.1} ms")), "{text}");
    // Six of the eight layers have the delta rule, and each runs once.
    let rule =
        kernels.iter().find(|k| k["kernel"].as_str().unwrap().starts_with("gated_delta_rule "));
    assert_eq!(rule.unwrap()["calls"], 6);
}

#[test]
fn the_schedule_of_a_gpu_says_what_its_sum_is_without() {
    let place = Place::new();
    let arguments = ["inspect", LIGHTNING, "--stage", "lightning_2b", "--emit", "schedule"];
    let arguments = [&arguments[..], &["--target", "sm_90a", "--micro-batch", "1000000"]].concat();
    let value = json(&place.stdout(&[&arguments[..], &["--format", "json"]].concat()));
    let uncounted = value["uncounted"].as_u64().unwrap();
    assert!(uncounted > 0, "{value}");
    let text = place.stdout(&arguments);
    assert!(text.contains(&format!(" ms without the {uncounted} rows of `-`")), "{text}");
    assert!(!text.contains("-0.0"), "{text}");
}

#[test]
fn a_ledger_of_one_gpu_has_no_number_of_gpus() {
    let place = Place::new();
    let arguments =
        ["memory", LIGHTNING, "--stage", "lightning_2b", "--seq", "4096", "--gpus", "8"];
    for more in [["--target", "sm_90a"], ["--share", "1/8"]] {
        let output = place.run(&[&arguments[..], &more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("`--gpus` does not go with"), "{said}");
    }
    assert!(place.stdout(&arguments).contains("8 GPUs, 1 x 4096 tokens"));
}

/// What some editors write at the start of a file.
#[test]
fn a_byte_order_mark_is_read_over_and_left_out_by_fmt() {
    let place = Place::new();
    let source = place.read("models/std/norm.llm");
    place.write("marked.llm", format!("\u{feff}{source}"));
    let _ = place.stdout(&["check", "marked.llm"]);
    let _ = place.stdout(&["fmt", "marked.llm"]);
    assert_eq!(place.read("marked.llm"), source);
}

#[test]
fn a_binding_that_nothing_reads_is_warned_of() {
    let place = Place::new();
    let source =
        format!("import \"{TINY}\"\n\nstage mine extends tiny_2b {{\n    vocb = 4096\n}}\n");
    place.write("mine.llm", &source);
    let output = place.run(&["check", "mine.llm"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("warning[E0215]: nothing reads `vocb`"), "{said}");
    assert!(said.contains("`vocab` exists"), "{said}");
}

#[test]
fn the_schedule_of_a_gpu_says_how_attention_runs() {
    let place = Place::new();
    for (seq, form) in [("8192", "tiles"), ("65536", "gather")] {
        let arguments = ["inspect", LIGHTNING, "--stage", "lightning_2b", "--emit", "schedule"];
        let arguments = [&arguments[..], &["--target", "sm_90a", "--seq", seq]].concat();
        let text = place.stdout(&arguments);
        assert!(text.contains("gathers from"), "{text}");
        let value = json(&place.stdout(&[&arguments[..], &["--format", "json"]].concat()));
        let kernels = value["kernels"].as_array().unwrap();
        let attention: Vec<_> = kernels.iter().filter(|k| k.get("attention").is_some()).collect();
        // Both directions, of at least one layer.
        assert!(attention.len() >= 2, "{}", attention.len());
        for step in attention {
            let choice = &step["attention"];
            assert_eq!(choice["form"], form, "{step}");
            assert_eq!(choice["most_keys"], 256, "{step}");
            let (tiles, gather) = (&choice["tiles_ms"], &choice["gather_ms"]);
            assert_eq!(tiles.as_f64() > gather.as_f64(), form == "gather", "{step}");
        }
    }
}
