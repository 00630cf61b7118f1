//! Times the release build of `lightc` on the full-size 2B stage.
//!
//! A report, not a gate: the limits are printed beside the figures, and a slow
//! machine does not fail.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::process;

/// A command line of `lightc` and the time it is to stay under.
struct Case {
    arguments: &'static [&'static str],
    limit: Duration,
}

const SOURCE: &str = "models/lightning/lightning.llm";

const CASES: [Case; 2] = [
    Case { arguments: &["check", SOURCE], limit: Duration::from_millis(500) },
    Case {
        arguments: &["inspect", SOURCE, "--stage", "lightning_2b", "--emit", "rust"],
        limit: Duration::from_secs(2),
    },
];

/// Builds `lightc` in release, runs each case `runs` times and prints the times.
pub(crate) fn run(runs: u32, json: bool) -> Result<()> {
    let binary = process::build_release("lightc")?;
    let mut rows = Vec::new();
    for case in &CASES {
        let times = measure(&binary, case, runs)?;
        rows.push((case, times));
    }
    if json {
        print_json(&rows)
    } else {
        print_table(&rows, runs)
    }
    Ok(())
}

/// Runs the measurement of growth in release: see `grow/examples/bench.rs`.
pub(crate) fn grow(gigabytes: f64, kills: u32, folder: Option<&Path>) -> Result<()> {
    let mut command = process::cargo(&["run", "--release", "-p", "lightc-grow"]);
    let _ = command.args(["--example", "bench", "--", "--gigabytes"]).arg(gigabytes.to_string());
    let _ = command.arg("--kills").arg(kills.to_string());
    if let Some(folder) = folder {
        let _ = command.arg("--folder").arg(folder);
    }
    process::run(&mut command)
}

/// The times of a case, sorted. The first run, which fills the file cache, is
/// not counted.
fn measure(binary: &Path, case: &Case, runs: u32) -> Result<Times> {
    let mut times = Vec::new();
    for run_idx in 0..=runs {
        let mut command = Command::new(binary);
        let _ = command.args(case.arguments).current_dir(process::root()).stdout(Stdio::null());
        let began = Instant::now();
        process::run_quietly(&mut command)?;
        if run_idx > 0 {
            times.push(began.elapsed());
        }
    }
    Times::new(times).context("no run was counted")
}

/// The minimum and the median of some runs.
#[derive(Debug, PartialEq, Eq)]
struct Times {
    min: Duration,
    median: Duration,
}

impl Times {
    /// `None` for no times.
    fn new(mut times: Vec<Duration>) -> Option<Self> {
        times.sort();
        let upper = *times.get(times.len() / 2)?;
        let lower = *times.get(times.len().saturating_sub(1) / 2)?;
        Some(Self { min: *times.first()?, median: (lower + upper) / 2 })
    }
}

fn print_table(rows: &[(&Case, Times)], runs: u32) {
    println!("{:<76} {:>9} {:>9} {:>9}", format!("{runs} runs"), "median", "min", "limit");
    for (case, times) in rows {
        println!(
            "{:<76} {:>9} {:>9} {:>9}  {}",
            format!("lightc {}", case.arguments.join(" ")),
            milliseconds(times.median),
            milliseconds(times.min),
            milliseconds(case.limit),
            if times.median < case.limit { "within" } else { "OVER" }
        );
    }
}

fn print_json(rows: &[(&Case, Times)]) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let rows: Vec<_> = rows
        .iter()
        .map(|(case, times)| {
            json!({
                "command": format!("lightc {}", case.arguments.join(" ")),
                "median_ms": ms(times.median),
                "min_ms": ms(times.min),
                "limit_ms": ms(case.limit),
                "within": times.median < case.limit,
            })
        })
        .collect();
    println!("{:#}", json!(rows));
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let of = |ms: &[u64]| Times::new(ms.iter().map(|ms| Duration::from_millis(*ms)).collect());
        let times = |min, median| {
            Some(Times { min: Duration::from_millis(min), median: Duration::from_millis(median) })
        };
        assert_eq!(of(&[9, 1, 5]), times(1, 5));
        assert_eq!(of(&[9, 1, 5, 7]), times(1, 6));
        assert_eq!(of(&[3]), times(3, 3));
        assert_eq!(of(&[]), None);
    }
}
