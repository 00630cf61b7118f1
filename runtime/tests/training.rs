//! Whole runs: falling loss, exact resume, bad checkpoints, signals.

#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lightc_checkpoint::{HashReport, Store};
use lightc_runtime::config::Config;
use lightc_runtime::run::{RunOptions, Start, Summary, train};
use lightc_runtime::testing::{BigramStage, Poison, TestCorpus};
use lightc_runtime::{Error, Result};

struct Bench {
    corpus: TestCorpus,
    config: Config,
}

impl Bench {
    fn new() -> Self {
        let corpus = TestCorpus::new();
        let config = corpus.own_config();
        Bench { corpus, config }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.corpus.dir.path().join(name)
    }

    fn options(&self, name: &str) -> RunOptions {
        RunOptions { silent: true, ..RunOptions::new(self.out(name)) }
    }

    fn run(&self, options: &RunOptions) -> Result<Summary> {
        train(&BigramStage::GOOD, &self.config, options, &AtomicBool::new(false))
    }

    fn store(&self, name: &str) -> Store {
        Store::new(self.out(name).join("checkpoints"))
    }

    fn shown(&self, error: &Error) -> String {
        error.rendered().replace(&self.corpus.dir.path().display().to_string(), "DIR")
    }
}

fn hash(out: &Path) -> HashReport {
    lightc_checkpoint::hash(out).expect("hashes")
}

/// The rows of one kind, without their times.
fn rows(out: &Path, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("reads");
    let mut rows = Vec::new();
    for line in text.lines() {
        let mut row: serde_json::Value = serde_json::from_str(line).expect("is JSON");
        for time in ["ms", "tokens_per_s"] {
            row.as_object_mut().expect("is an object").remove(time);
        }
        if row["kind"] == kind {
            rows.push(row.to_string());
        }
    }
    rows
}

#[test]
fn the_loss_falls_below_the_unigram_figure() {
    let mut bench = Bench::new();
    bench.config.steps = 150;
    bench.config.evaluation.interval = 50;
    let summary = bench.run(&bench.options("run")).expect("trains");
    let after = summary.after.expect("was not interrupted").ntp;
    assert!((summary.before.ntp - 300f64.ln()).abs() < 0.3, "{summary:?}");
    assert!(after < 0.6 * summary.unigram.held_out, "{summary:?}");
    assert!(after < 0.6 * summary.unigram.corpus_entropy, "{summary:?}");
    assert_eq!(rows(&bench.out("run"), "step").len(), 150);
    assert_eq!(rows(&bench.out("run"), "evaluation").len(), 4);
    let resolved = std::fs::read_to_string(bench.out("run").join("config.resolved.toml"));
    let resolved = resolved.expect("reads");
    let mut again = Config::parse(Path::new("resolved"), &resolved).expect("parses");
    let hash = again.data.tokenizer.take();
    assert_eq!(hash.as_deref(), Some(bench.corpus.open().tokenizer.hash()));
    assert_eq!(again, bench.config);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_does_not() {
    let mut bench = Bench::new();
    for name in ["one", "two"] {
        bench.run(&bench.options(name)).expect("trains");
    }
    bench.config.seed += 1;
    bench.run(&bench.options("three")).expect("trains");
    assert_eq!(hash(&bench.out("one")), hash(&bench.out("two")));
    assert_ne!(hash(&bench.out("one")).root, hash(&bench.out("three")).root);
}

#[test]
fn twenty_steps_are_ten_and_ten_more() {
    let bench = Bench::new();
    bench.run(&bench.options("whole")).expect("trains");
    let first = RunOptions { stop_after: Some(10), ..bench.options("parts") };
    bench.run(&first).expect("trains");
    // What a crash in step 12 leaves after a checkpoint at 10.
    let metrics = bench.out("parts").join("metrics.jsonl");
    let mut text = std::fs::read_to_string(&metrics).expect("reads");
    text += "{\"kind\":\"step\",\"step\":11}\n{\"kind\":\"st";
    std::fs::write(&metrics, text).expect("writes");
    let second = RunOptions { start: Start::Latest, ..bench.options("parts") };
    bench.run(&second).expect("resumes");
    // Parameters, both moments, states and carries, to the bit.
    let (whole, parts) = (hash(&bench.out("whole")), hash(&bench.out("parts")));
    assert_eq!(whole, parts);
    let files: Vec<&str> = whole.tensors.iter().map(|tensor| tensor.file.as_str()).collect();
    for file in ["params", "moments_m", "moments_v", "states", "carries"] {
        assert!(files.contains(&format!("{file}.safetensors").as_str()), "{file}");
    }
    // Step, seed and with them the data position.
    let head = |name| bench.store(name).open_latest().expect("opens").manifest().head.clone();
    assert_eq!(head("whole"), head("parts"));
    // Every loss on the way, and so every batch.
    for kind in ["step", "evaluation"] {
        assert_eq!(rows(&bench.out("whole"), kind), rows(&bench.out("parts"), kind));
    }
}

#[test]
fn old_checkpoints_go_and_the_newest_stay() {
    let bench = Bench::new();
    bench.run(&bench.options("run")).expect("trains");
    assert_eq!(bench.store("run").steps().expect("lists"), [15, 20]);
    assert_eq!(bench.store("run").latest().expect("reads").as_deref(), Some("step_00000020"));
}

#[test]
fn resuming_an_earlier_checkpoint_replaces_what_came_after() {
    let bench = Bench::new();
    bench.run(&bench.options("run")).expect("trains");
    let before = hash(&bench.out("run"));
    let from = Start::From("step_00000015".to_owned());
    bench.run(&RunOptions { start: from, ..bench.options("run") }).expect("resumes");
    assert_eq!(hash(&bench.out("run")), before);
    assert_eq!(rows(&bench.out("run"), "step").len(), 20);
}

#[test]
fn a_run_begins_at_the_tensors_of_another() {
    let bench = Bench::new();
    bench.run(&bench.options("first")).expect("trains");
    let from = |path| RunOptions { start: Start::Initial(path), ..bench.options("second") };
    let summary = bench.run(&from(bench.out("first"))).expect("begins");
    assert_eq!((summary.begin_step, summary.end_step), (0, 20));
    // The last evaluation of the one is the first of the other: same tensors, fresh carries.
    let losses = |name| rows(&bench.out(name), "evaluation");
    let (last, first) = (losses("first").pop().expect("one"), losses("second").remove(0));
    let loss = |row: &str| {
        let row: serde_json::Value = serde_json::from_str(row).expect("is JSON");
        row["ntp"].as_f64().expect("has a loss").to_bits()
    };
    assert_eq!(loss(&last), loss(&first));
    // It does not write over a run, and asks for this stage.
    let error = bench.run(&from(bench.out("first"))).expect_err("is refused");
    assert_eq!(error.code(), "E1105");
    let nothing = RunOptions { start: Start::Initial(bench.out("none")), ..bench.options("third") };
    assert_eq!(bench.run(&nothing).expect_err("is refused").code(), "E1001");
}

#[test]
fn a_nan_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let bench = Bench::new();
    let stage = BigramStage::poisoned(Poison::Gradient(13));
    let stop = AtomicBool::new(false);
    let error = train(&stage, &bench.config, &bench.options("run"), &stop).expect_err("stops");
    insta::assert_snapshot!("nan", bench.shown(&error));
    let head = bench.store("run").open_latest().expect("opens").manifest().head.clone();
    assert_eq!(head.step, 10);
    assert_eq!(rows(&bench.out("run"), "step").len(), 12);
}

#[test]
fn what_cannot_be_resumed() {
    let bench = Bench::new();
    bench.run(&RunOptions { stop_after: Some(10), ..bench.options("run") }).expect("trains");
    let before = hash(&bench.out("run"));
    let resume = RunOptions { start: Start::Latest, ..bench.options("run") };
    let stop = AtomicBool::new(false);
    let mut text = String::new();
    let mut tell = |name: &str, result: Result<Summary>| {
        text += &format!("# {name}\n{}", bench.shown(&result.expect_err(name)));
    };

    tell("a second new run", bench.run(&bench.options("run")));
    let none = RunOptions { start: Start::Latest, ..bench.options("none") };
    tell("nothing to resume", bench.run(&none));
    let other = BigramStage { source_hash: "cafe", ..BigramStage::GOOD };
    tell("another source", train(&other, &bench.config, &resume, &stop));
    let mut config = bench.config.clone();
    config.data.batch = 5;
    config.data.micro_batch = None;
    config.schedule.peak = 0.5;
    tell("other settings", train(&BigramStage::GOOD, &config, &resume, &stop));
    // Accepted, the carries still do not fit a batch of 5.
    let accept = RunOptions { accept_changed_config: true, ..resume.clone() };
    tell("another batch", train(&BigramStage::GOOD, &config, &accept, &stop));
    insta::assert_snapshot!("what_cannot_be_resumed", text);
    assert_eq!(hash(&bench.out("run")), before);

    let accept = RunOptions { accept_changed_source: true, stop_after: Some(11), ..resume };
    train(&other, &bench.config, &accept, &stop).expect("resumes");
}

#[test]
fn a_run_in_micro_batches_resumes_to_the_same_bits() {
    let mut bench = Bench::new();
    bench.config.data.micro_batch = Some(2);
    bench.run(&bench.options("whole")).expect("trains");
    let first = RunOptions { stop_after: Some(10), ..bench.options("parts") };
    bench.run(&first).expect("trains");
    let second = RunOptions { start: Start::Latest, ..bench.options("parts") };
    bench.run(&second).expect("resumes");
    assert_eq!(hash(&bench.out("parts")), hash(&bench.out("whole")));
    // Another number of micro-batches is another sum.
    bench.config.data.micro_batch = Some(1);
    let error = bench.run(&second).expect_err("is refused");
    assert!(error.to_string().contains("data.micro_batch"), "{error}");
}

#[test]
fn parts_are_timed_where_that_is_asked_for_and_nothing_else_changes() {
    let mut bench = Bench::new();
    bench.run(&bench.options("plain")).expect("trains");
    bench.config.metrics.profile_interval = 4;
    bench.run(&bench.options("profiled")).expect("trains");
    assert_eq!(hash(&bench.out("profiled")), hash(&bench.out("plain")));
    let text = std::fs::read_to_string(bench.out("profiled").join("metrics.jsonl")).expect("reads");
    let timed = text.lines().filter(|line| line.contains("\"parts_ms\":{\"data\":")).count();
    assert_eq!(timed, 5);
}

#[test]
fn a_measurement_saves_nothing() {
    let bench = Bench::new();
    let options = RunOptions { no_checkpoints: true, ..bench.options("run") };
    let summary = bench.run(&options).expect("trains");
    assert_eq!((summary.end_step, summary.checkpoint), (20, None));
    assert!(!bench.out("run").join("checkpoints").exists());
}

#[test]
fn a_damaged_latest_checkpoint_is_an_error_and_nothing_is_loaded() {
    let bench = Bench::new();
    bench.run(&RunOptions { stop_after: Some(10), ..bench.options("run") }).expect("trains");
    let file = bench.out("run").join("checkpoints/step_00000010/moments_v.safetensors");
    let mut bytes = std::fs::read(&file).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    std::fs::write(&file, bytes).expect("writes");
    let resume = RunOptions { start: Start::Latest, ..bench.options("run") };
    let error = bench.run(&resume).expect_err("is refused");
    assert_eq!(error.code(), "E1008");
    let help = error.help();
    assert!(help.contains("`--resume-from step_00000005`"), "{help}");
    // Following the help works and ends as a run without damage.
    let from = Start::From("step_00000005".to_owned());
    bench.run(&RunOptions { start: from, ..bench.options("run") }).expect("resumes");
    bench.run(&bench.options("whole")).expect("trains");
    assert_eq!(hash(&bench.out("run")), hash(&bench.out("whole")));
}

#[test]
fn one_process_trains_in_a_folder() {
    let bench = Bench::new();
    let out = bench.out("run");
    std::fs::create_dir_all(&out).expect("creates");
    let lock = std::fs::File::create(out.join("lock")).expect("creates");
    lock.lock().expect("locks");
    let error = bench.run(&bench.options("run")).expect_err("is refused");
    assert_eq!(error.code(), "E1104");
}

const ARGS: &str = "LIGHTC_TEST_PROGRAM_ARGS";

/// Not a test of its own: the program of the test stage, for the tests below.
#[test]
fn the_program() {
    let Ok(args) = std::env::var(ARGS) else {
        return;
    };
    let args = std::iter::once("bigram").chain(args.split('\n')).map(Into::into);
    std::process::exit(lightc_runtime::program::run(&BigramStage::GOOD, args).into());
}

fn program_command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("knows itself"));
    command.args(["--exact", "the_program", "--nocapture"]).env(ARGS, args.join("\n"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn program(args: &[&str]) -> (Option<i32>, String, String) {
    let output = program_command(args).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Writes the test configuration as a file beside the shards.
fn config_file(bench: &Bench, steps: u64) -> String {
    let mut config = bench.config.clone();
    config.steps = steps;
    let path = bench.out("config.toml");
    std::fs::write(&path, config.resolved()).expect("writes");
    path.display().to_string()
}

#[test]
fn the_program_prepares_trains_and_evaluates() {
    let corpus = TestCorpus::empty();
    let list: Vec<String> =
        corpus.options().documents.iter().map(|path| path.display().to_string()).collect();
    let list_path = corpus.dir.path().join("list");
    std::fs::write(&list_path, list.join("\n")).expect("writes");
    let config = corpus.own_config();
    let bench = Bench { corpus, config };
    let config = config_file(&bench, 20);
    let (list, shards, out) = (
        list_path.display().to_string(),
        bench.corpus.shards().display().to_string(),
        bench.out("run").display().to_string(),
    );
    let prepare = ["prepare", "--files-from", &list, "--out", &shards, "--held-out-every", "4"];
    for expected in ["(written)", "(was there already, verified)"] {
        let (code, stdout, stderr) = program(&prepare);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout.contains(expected), "{stdout}");
    }
    let (code, stdout, stderr) = program(&["train", "--config", &config, "--out", &out]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("held-out loss after"), "{stdout}");
    assert!(stderr.contains("step 20/20"), "{stderr}");
    let evaluate = ["evaluate", "--config", &config, "--checkpoint", &out, "--json"];
    let (code, stdout, stderr) = program(&evaluate);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("\"step\": 20"), "{stdout}");
    let (code, _, stderr) = program(&["train", "--config", &config, "--out", &out]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("error[E1105]: "), "{stderr}");
    let (code, _, _) = program(&["train", "--confg", &config]);
    assert_eq!(code, Some(2));
}

fn wait_for_checkpoint(bench: &Bench, name: &str) {
    for _ in 0..600 {
        if bench.store(name).latest().is_ok_and(|latest| latest.is_some()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no checkpoint after 30 s");
}

#[test]
fn a_signal_saves_and_stops_and_the_resumed_run_is_the_same() {
    let bench = Bench::new();
    let config = config_file(&bench, 400);
    let out = bench.out("run").display().to_string();
    let args = ["train", "--config", &config, "--out", &out];
    let child = program_command(&args).spawn().expect("starts");
    wait_for_checkpoint(&bench, "run");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let step = bench.store("run").open_latest().expect("opens").manifest().head.step;
    assert!((5..400).contains(&step), "stopped at {step}");
    let (code, _, stderr) = program(&["train", "--config", &config, "--out", &out, "--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    let whole = bench.out("whole").display().to_string();
    let (code, _, stderr) = program(&["train", "--config", &config, "--out", &whole]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(hash(&bench.out("run")), hash(&bench.out("whole")));
}

#[test]
fn kill_minus_nine_and_resume_again_and_again_ends_as_one_run() {
    let mut bench = Bench::new();
    bench.config.checkpoint.interval = 1;
    let config = config_file(&bench, 200);
    let out = bench.out("run").display().to_string();
    let mut start: &[&str] = &[];
    for round in 0..6u64 {
        let mut args = vec!["train", "--config", &config, "--out", &out];
        args.extend(start);
        let mut child = program_command(&args).spawn().expect("starts");
        wait_for_checkpoint(&bench, "run");
        std::thread::sleep(Duration::from_micros(150_000 + round * 7_919));
        child.kill().expect("kills");
        child.wait().expect("ends");
        bench.store("run").open_latest().expect("loads");
        start = &["--resume"];
    }
    let (code, _, stderr) = program(&["train", "--config", &config, "--out", &out, "--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    let whole = bench.out("whole").display().to_string();
    let (code, _, stderr) = program(&["train", "--config", &config, "--out", &whole]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(hash(&bench.out("run")), hash(&bench.out("whole")));
}
