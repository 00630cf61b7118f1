//! Memory: the peak of a training pass, as the kernel counts it, in processes of their own.
//!
//! A child process takes every tensor above 64 KiB from the kernel and gives it back
//! (`MALLOC_MMAP_THRESHOLD_`), resets the mark of its resident set and reads it after the pass.

use super::stages::{memory_8, memory_16, memory_64};
use lightc_runtime::reversible::{Options, take_report, with_options};
use lightc_runtime::{Inputs, Stage};
use lightc_tests::{Random, random_params, to_tensor};
use std::fs;
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// What the child is to run: a stage and how.
const PROBE: &str = "LIGHTC_MEMORY_PROBE";
/// Positions in a row; two rows. `LIGHTC_MEMORY_POSITIONS` sets another number.
fn n_positions() -> i64 {
    std::env::var("LIGHTC_MEMORY_POSITIONS")
        .map_or(3072, |text| text.parse().expect("LIGHTC_MEMORY_POSITIONS is a whole number"))
}

/// A line of `/proc/self/status`, in bytes.
fn status(line: &str) -> i64 {
    let text = fs::read_to_string("/proc/self/status").expect("Linux");
    let found = text.lines().find_map(|l| l.strip_prefix(line)).expect("a line of the status");
    let kib = found.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim();
    1024 * kib.parse::<i64>().expect("a number of kB")
}

fn bytes(tensors: &[Tensor]) -> i64 {
    tensors.iter().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as i64).sum()
}

/// Runs two passes and prints, of the second, the peak above what was there before, and what
/// of it gradients, kept bits, selections and states are.
fn probe(stage: &dyn Stage, store_everything: bool) {
    tch::set_num_threads(1);
    let mut random = Random::new(7);
    let params = random_params(stage.params(), &mut random);
    let params: Vec<Tensor> =
        stage.params().iter().map(|s| to_tensor(&params[s.path], Kind::Float)).collect();
    let vocab = stage.vocab() as usize;
    let tokens = random.array(&[2, n_positions() as usize + 1], |r| r.below(vocab) as f64);
    let tokens = to_tensor(&tokens, Kind::Int64);
    let continues = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    let inputs = Inputs {
        params: &params,
        states: &[],
        tables: &[],
        tokens: &tokens,
        continues: &continues,
        carries: &[],
    };
    let options = Options { store_everything, record_states: false };
    with_options(options, || {
        // The first pass fills libtorch's own buffers.
        for pass in 0..2 {
            let before = status("VmRSS");
            fs::write("/proc/self/clear_refs", "5").expect("the mark can be reset");
            let outputs = stage.forward(&inputs).expect("forward");
            let report = take_report().expect("a report");
            let grads = stage.backward(&inputs, outputs.saved).expect("backward");
            let peak = status("VmHWM") - before;
            let grads: Vec<Tensor> = grads.into_iter().flatten().collect();
            if pass == 1 {
                let (kept, replay) = (report.kept_bytes, report.replay_bytes);
                println!("PROBE {peak} {} {kept} {replay} {}", bytes(&grads), report.state_bytes);
            }
        }
    });
}

/// What a probe printed.
#[derive(Debug, Clone, Copy)]
struct Measured {
    peak: f64,
    grads: f64,
    kept: f64,
    replay: f64,
    states: f64,
}

impl Measured {
    /// What is left for activations.
    fn activations(&self) -> f64 {
        self.peak - self.grads - self.kept - self.replay
    }
}

fn measure(what: &str) -> Measured {
    let this = std::env::current_exe().expect("this test");
    let output = Command::new(this)
        .args(["memory::the_probe", "--exact", "--nocapture", "--test-threads=1"])
        .env(PROBE, what)
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_ARENA_MAX", "1")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the probe runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split("PROBE ").nth(1));
    let line = line
        .unwrap_or_else(|| panic!("{what}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [peak, grads, kept, replay, states] = numbers[..] else { panic!("{what}: {line}") };
    Measured { peak, grads, kept, replay, states }
}

/// Does nothing unless it is the child of the test below.
#[test]
fn the_probe() {
    match std::env::var(PROBE).as_deref() {
        Ok("8") => probe(&memory_8::Memory8, false),
        Ok("64") => probe(&memory_64::Memory64, false),
        Ok("8 stored") => probe(&memory_8::Memory8, true),
        Ok("16 stored") => probe(&memory_16::Memory16, true),
        _ => {}
    }
}

#[test]
fn the_peak_of_64_layers_is_that_of_8() {
    println!("2 rows of {} positions", n_positions());
    println!("MiB           peak  gradients  kept bits  replay  two states  activations");
    let table = ["8", "64", "8 stored", "16 stored"].map(|what| {
        let m = measure(what);
        let mib = |bytes: f64| bytes / (1 << 20) as f64;
        println!(
            "{what:<10} {:>7.1}  {:>9.1}  {:>9.2}  {:>6.1}  {:>10.1}  {:>11.1}",
            mib(m.peak),
            mib(m.grads),
            mib(m.kept),
            mib(m.replay),
            mib(m.states),
            mib(m.activations())
        );
        m
    });
    let [few, many, few_stored, more_stored] = table;
    let growth = many.activations() / few.activations() - 1.0;
    println!("64 layers over 8: {:+.2}%", 100.0 * growth);
    assert!(growth.abs() < 0.05, "activations grow by {:.1}%", 100.0 * growth);
    // A run that stores everything is seen: 8 layers more, of some tens of MiB each.
    let per_layer = (more_stored.activations() - few_stored.activations()) / 8.0;
    assert!(per_layer > 1e7, "a stored layer takes {per_layer} bytes");
    // A state more per layer would be seen too.
    let state = 4.0 * 2.0 * n_positions() as f64 * 64.0;
    assert!(56.0 * state > 0.2 * few.activations());
}
