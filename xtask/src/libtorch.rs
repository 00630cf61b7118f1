//! Sets libtorch up and shows how that goes.

use std::io::IsTerminal;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lightc_libtorch::{Environment, Libtorch, Progress, Settings, find_or_install};

use crate::process;

/// Finds or installs libtorch, and returns the environment for its users.
pub(crate) fn environment() -> Result<Environment> {
    let libtorch = set_up()?;
    check_compiler()?;
    Ok(libtorch.environment())
}

/// Prints the environment on stdout; everything else goes to stderr.
pub(crate) fn print_environment(json: bool) -> Result<()> {
    let libtorch = set_up()?;
    let environment = libtorch.environment();
    if json {
        let value = serde_json::json!({ "libtorch": libtorch, "environment": environment });
        println!("{value:#}");
    } else {
        print!("{environment}");
    }
    Ok(())
}

fn set_up() -> Result<Libtorch> {
    let mut view = View::new();
    let found = find_or_install(&Settings::from_env(), &mut |progress| view.show(&progress));
    view.finish();
    let libtorch = found.context("libtorch cannot be set up")?;
    eprintln!(
        "libtorch {} from {}: {}",
        libtorch.version,
        libtorch.origin.describe(),
        libtorch.root.display()
    );
    Ok(libtorch)
}

/// torch-sys compiles C++; without a compiler its error is hard to read.
fn check_compiler() -> Result<()> {
    let name = std::env::var_os("CXX").filter(|v| !v.is_empty()).unwrap_or_else(|| "c++".into());
    // CXX can hold a wrapper and flags: `ccache g++ -pipe`.
    let text = name.to_string_lossy().into_owned();
    let mut words = text.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    let _ = command.args(words).arg("--version");
    match process::output(&mut command) {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "no C++ compiler: {error:#}\n  fix: install one (Debian, Ubuntu: `apt install g++`) or set CXX"
        ),
    }
}

/// How an install is shown: a spinner on a terminal, plain lines elsewhere.
struct View {
    spinner: Option<ProgressBar>,
    last_line: String,
    next_report: Duration,
}

/// The time between two lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

impl View {
    fn new() -> Self {
        Self { spinner: None, last_line: String::new(), next_report: PLAIN_INTERVAL }
    }

    fn show(&mut self, progress: &Progress<'_>) {
        match progress {
            Progress::Step(text) => self.step(text),
            Progress::Output(text) => self.output(text),
            Progress::Working { elapsed, bytes } => self.working(*elapsed, *bytes),
            _ => {}
        }
    }

    fn step(&mut self, text: &str) {
        self.last_line.clear();
        self.next_report = PLAIN_INTERVAL;
        self.line(&format!("libtorch: {text}"));
        if self.spinner.is_none() && std::io::stderr().is_terminal() {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(120));
            self.spinner = Some(spinner);
        }
    }

    fn output(&mut self, text: &str) {
        text.trim().clone_into(&mut self.last_line);
        // pip names each package three times; the downloads tell enough.
        if text.trim_start().starts_with("Downloading") || text.starts_with("Installing") {
            self.line(&format!("  {}", shortened(text.trim())));
        }
    }

    fn working(&mut self, elapsed: Duration, bytes: u64) {
        let message = format!(
            "{} s, {} MB on disk  {}",
            elapsed.as_secs(),
            bytes / 1_000_000,
            shortened(&self.last_line)
        );
        if let Some(spinner) = &self.spinner {
            spinner.set_message(message);
        } else if elapsed >= self.next_report {
            eprintln!("  {message}");
            self.next_report = elapsed + PLAIN_INTERVAL;
        }
    }

    fn line(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// Cuts a line to one that fits a terminal.
fn shortened(text: &str) -> String {
    const LIMIT: usize = 90;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"\u{e9}".repeat(200));
        assert_eq!(cut.chars().count(), 93);
    }
}
