//! `lightc doctor`: what the machine has and lacks.

use crate::failure::{Failure, Fault, codes};
use crate::program::{cache_folder, cargo};
use crate::runtime::{self, Runtime};
use crate::table::Table;
use crate::terminal::{self, Format};
use lightc_libtorch::{Progress, Settings};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Say what this machine has and lacks for building and training.
///
/// Ends with exit code 1 if something that is needed is missing.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install libtorch into the cache folder if there is none (5 GB on disk).
    #[arg(long)]
    install: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// There.
    Ok,
    /// Not there, and training works without it.
    Absent,
    /// Needed and not there.
    Missing,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What to do, where something is missing.
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, status: Status::Ok, found: found.into(), fix: None }
    }

    fn absent(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, status: Status::Absent, found: found.into(), fix: None }
    }

    fn missing(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check { name, status: Status::Missing, found: found.into(), fix: Some(fix.into()) }
    }
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.install {
        install()?;
    }
    let report = examine();
    match arguments.format {
        Format::Text => terminal::print(&text(&report))?,
        Format::Json => terminal::print_json(&report)?,
    }
    if report.ok { Ok(()) } else { Err(Failure::Said(1)) }
}

fn install() -> Result<(), Failure> {
    let mut next = 15;
    let mut show = |progress: Progress<'_>| match progress {
        Progress::Step(text) => terminal::say(&format!("libtorch: {text}\n")),
        Progress::Working { elapsed, bytes } if elapsed.as_secs() >= next => {
            next = elapsed.as_secs() + 15;
            terminal::say(&format!(
                "  {} s, {} MB on disk\n",
                elapsed.as_secs(),
                bytes / 1_000_000
            ));
        }
        _ => {}
    };
    lightc_libtorch::find_or_install(&Settings::from_env(), &mut show)
        .map(|_| ())
        .map_err(|error| Fault::new(codes::NO_LIBTORCH, error.to_string()).into())
}

fn examine() -> Report {
    let runtime = runtime::Choice::default_choice().find();
    let libtorch = libtorch();
    let folder = runtime.as_ref().ok().and_then(Runtime::workspace).map(Path::to_owned);
    let mut checks = vec![
        Check::ok("lightc", crate::VERSION),
        tool("rustc", Command::new("rustc"), folder.as_deref()),
        tool("cargo", cargo(), folder.as_deref()),
        compiler(),
        python(libtorch.status == Status::Ok),
        libtorch,
        runtime_check(runtime),
    ];
    checks.extend(caches());
    checks.extend([processor(), memory(), gpu(), nvrtc()]);
    Report { ok: checks.iter().all(|check| check.status != Status::Missing), checks }
}

fn text(report: &Report) -> String {
    let mut rows = Table::new(&["", "what", "found"]);
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Absent => "absent",
            Status::Missing => "MISSING",
        };
        let mut lines = check.found.lines();
        let first = lines.next().unwrap_or("").to_owned();
        rows.row(vec![mark.to_owned(), check.name.to_owned(), first]);
        for line in lines {
            rows.row(vec![String::new(), String::new(), line.trim().to_owned()]);
        }
        for (position, line) in check.fix.iter().flat_map(|fix| fix.lines()).enumerate() {
            let lead = if position == 0 { "fix: " } else { "     " };
            rows.row(vec![String::new(), String::new(), format!("{lead}{}", line.trim())]);
        }
    }
    let end = if report.ok {
        "everything that is needed is here"
    } else {
        "something that is needed is missing"
    };
    format!("{}\n{end}\n", rows.text())
}

/// The first line that a command prints, or why there is none.
fn first_line(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "not found".to_owned(),
        _ => error.to_string(),
    })?;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    let line = String::from_utf8_lossy(text).lines().next().unwrap_or("").trim().to_owned();
    if output.status.success() { Ok(line) } else { Err(format!("{}: {line}", output.status)) }
}

/// The oldest Rust that compiles the runtime: the toolchain that it is pinned to.
const RUST: &str = env!("CARGO_PKG_RUST_VERSION");

fn tool(name: &'static str, mut command: Command, folder: Option<&Path>) -> Check {
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let fix = format!("install Rust {RUST} or newer: https://rustup.rs");
    // A question is no reason for rustup to download a toolchain.
    match first_line(command.arg("--version").env("RUSTUP_AUTO_INSTALL", "0")) {
        Err(reason) => Check::missing(name, reason, fix),
        Ok(line) if is_old(&line) => Check::missing(name, format!("{line}, {RUST} needed"), fix),
        Ok(line) => Check::ok(name, format!("{line} ({RUST} or newer is needed)")),
    }
}

/// Whether `rustc 1.94.0 (...)` is older than the pin.
fn is_old(line: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.').map_while(|part| part.split('-').next()?.parse().ok()).collect()
    };
    let found = line.split_whitespace().nth(1).map(numbers).unwrap_or_default();
    found < numbers(RUST)
}

/// torch-sys compiles C++.
fn compiler() -> Check {
    let name = std::env::var("CXX").ok().filter(|value| !value.trim().is_empty());
    let name = name.unwrap_or_else(|| "c++".to_owned());
    // CXX can hold a wrapper and flags: `ccache g++ -pipe`.
    let mut words = name.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    match first_line(command.args(words).arg("--version")) {
        Ok(line) => Check::ok("C++ compiler", line),
        Err(reason) => Check::missing(
            "C++ compiler",
            format!("`{name}`: {reason}"),
            "install one (Debian, Ubuntu: `apt install g++`) or set CXX",
        ),
    }
}

/// Python installs libtorch, and is not needed once that is there.
fn python(has_libtorch: bool) -> Check {
    let python = Settings::from_env().python;
    let name = "Python";
    match first_line(Command::new(&python).arg("--version")) {
        Ok(line) => Check::ok(name, line),
        Err(reason) if has_libtorch => Check::absent(
            name,
            format!("`{}`: {reason}; libtorch is there already", python.display()),
        ),
        Err(reason) => Check::missing(
            name,
            format!("`{}`: {reason}", python.display()),
            "install Python 3.10 or newer with its venv module, or set LIBTORCH",
        ),
    }
}

fn libtorch() -> Check {
    let name = "libtorch";
    match lightc_libtorch::find(&Settings::from_env()) {
        Ok(Some(found)) => Check::ok(
            name,
            format!("{} from {}: {}", found.version, found.origin.describe(), found.root.display()),
        ),
        Ok(None) => Check::missing(
            name,
            "not installed",
            "`lightc doctor --install`, or set LIBTORCH to a folder that has it",
        ),
        Err(error) => {
            let text = error.to_string();
            let (found, fix) =
                text.split_once("fix: ").unwrap_or((&text, "set LIBTORCH to a good one"));
            Check::missing(name, found.trim(), fix.trim())
        }
    }
}

fn runtime_check(runtime: Result<Runtime, Failure>) -> Check {
    match runtime {
        Ok(found) => Check::ok("runtime", format!("{} ({})", found.path.display(), found.origin)),
        Err(Failure::Fault(fault)) => {
            Check::missing("runtime", fault.message, fault.help.unwrap_or_default())
        }
        Err(_) => Check::missing("runtime", "not found", "set LIGHTC_RUNTIME"),
    }
}

/// What building a program needs at most: cargo's folder, and libtorch where it is missing.
const NEEDED_BYTES: u64 = 2 << 30;

/// The cache folder and the space where it lies.
fn caches() -> Vec<Check> {
    let folder = match cache_folder() {
        Ok(folder) => folder,
        Err(_) => {
            let fix = "set HOME, or XDG_CACHE_HOME to a folder from the root";
            return vec![Check::missing("cache folder", "no folder is known", fix)];
        }
    };
    let existing = nearest(&folder);
    let state = if folder.is_dir() { "" } else { " (made when needed)" };
    let mut checks = vec![if is_writable(&existing) {
        Check::ok("cache folder", format!("{}{state}", folder.display()))
    } else {
        let found = format!("{} cannot be written", existing.display());
        Check::missing("cache folder", found, "set XDG_CACHE_HOME to a folder that can be written")
    }];
    checks.push(match rustix::fs::statvfs(&existing) {
        Err(error) => Check::absent("disk space", format!("not known: {error}")),
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let found = format!("{} free at {}", gigabytes(free), existing.display());
            if free < NEEDED_BYTES {
                Check::missing("disk space", found, format!("free {}", gigabytes(NEEDED_BYTES)))
            } else {
                Check::ok("disk space", found)
            }
        }
    });
    checks
}

/// The folder itself or the nearest one above it that exists.
fn nearest(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|above| above.is_dir());
    found.unwrap_or(Path::new("/")).to_owned()
}

fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features = features();
    let features = if features.is_empty() {
        "no vector extensions known".to_owned()
    } else {
        features.join(" ")
    };
    Check::ok("processor", format!("{cores} cores, {}, {features}", std::env::consts::ARCH))
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(free)) => {
            Check::ok("memory", format!("{}, {} available", gigabytes(total), gigabytes(free)))
        }
        _ => Check::absent("memory", "not known"),
    }
}

/// No target uses one yet.
fn gpu() -> Check {
    let query =
        ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"];
    match first_line(Command::new("nvidia-smi").args(query)) {
        Ok(line) if line.ends_with(", 9.0") => Check::ok("GPU", line),
        Ok(line) if !line.is_empty() => Check::absent(
            "GPU",
            format!("{line}: the target `sm_90a` needs compute capability 9.0"),
        ),
        _ => Check::absent("GPU", "none found; the target `cpu` needs none"),
    }
}

/// The compiler of kernels, which comes with libtorch.
fn nvrtc() -> Check {
    match lightc_kernels::Nvrtc::open() {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version();
            Check::ok("NVRTC", format!("{major}.{minor}; compiles kernels for the target `sm_90a`"))
        }
        Err(error) => Check::absent("NVRTC", format!("{error}; the target `cpu` needs none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_old("rustc 1.9.0 (abc 2016-05-18)"));
        assert!(is_old("no version"));
        assert!(!is_old(&format!("rustc {RUST}.0 (abc)")));
        assert!(!is_old("cargo 1.100.0-nightly (abc)"));
        assert!(!is_old("rustc 2.0.0"));
    }

    #[test]
    fn fixes_stand_below_what_is_missing() {
        let checks = vec![Check::ok("a", "1"), Check::missing("b", "no", "do this\n  then that")];
        let text = text(&Report { ok: false, checks });
        assert!(
            text.contains(
                "MISSING  b     no\n               fix: do this\n                    then that\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("something that is needed is missing\n"));
    }

    #[test]
    fn the_nearest_folder_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&dir.path().join("a/b")), dir.path());
    }
}
