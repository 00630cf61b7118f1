//! Grows a synthetic checkpoint and measures it: resident memory, rate against a plain copy, and
//! what kills leave. `cargo xtask grow-bench` runs it in release.
//!
//! ```text
//! bench [--gigabytes 8] [--kills 4] [--folder DIR]
//! ```
//!
//! The folder needs room for three checkpoints of that size; what is written there is removed.

use lightc_grow::synthetic::{Sizes, make, map};
use lightc_grow::{Options, Report};
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Arguments {
    gigabytes: f64,
    n_kills: u32,
    folder: PathBuf,
    /// Set in a child: where it grows to.
    to: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = arguments().and_then(|arguments| match &arguments.to {
        Some(to) => child(&arguments, to),
        None => bench(&arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments {
        gigabytes: 8.0,
        n_kills: 4,
        folder: std::env::temp_dir().join("lightc-grow-bench"),
        to: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("`{word}` needs a value"))?;
        match word.as_str() {
            "--gigabytes" => arguments.gigabytes = value.parse()?,
            "--kills" => arguments.n_kills = value.parse()?,
            "--folder" => arguments.folder = value.into(),
            "--to" => arguments.to = Some(value.into()),
            _ => return Err(format!("`{word}` is not an option").into()),
        }
    }
    Ok(arguments)
}

impl Arguments {
    fn sizes(&self) -> Sizes {
        Sizes::of_bytes((self.gigabytes * 1e9) as u64)
    }

    fn grow(&self, to: &Path) -> Result<Report> {
        let options = Options::new("bench");
        Ok(lightc_grow::grow(&map(self.sizes()), &self.source(), to, &options, &|_| {})?)
    }

    fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// A process that grows; its peak of memory is its own.
    fn spawn(&self, to: &Path) -> Result<std::process::Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--gigabytes").arg(self.gigabytes.to_string()).arg("--folder");
        command.arg(&self.folder).arg("--to").arg(to);
        Ok(command.stdout(Stdio::piped()).spawn()?)
    }
}

/// Grows, and prints seconds, peak of resident KiB, files resumed and the receipt's root.
fn child(arguments: &Arguments, to: &Path) -> Result<()> {
    let began = Instant::now();
    let report = arguments.grow(to)?;
    let seconds = began.elapsed().as_secs_f64();
    let root = report.receipt.target.root;
    println!("{seconds} {} {} {root}", peak_kib()?, report.n_resumed);
    Ok(())
}

fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmHWM")?.parse()?)
}

fn bench(arguments: &Arguments) -> Result<()> {
    fs::create_dir_all(&arguments.folder)?;
    let done = measure(arguments);
    // Twice or three times the checkpoint is not to stay, whatever came of it.
    fs::remove_dir_all(&arguments.folder)?;
    done
}

fn measure(arguments: &Arguments) -> Result<()> {
    let sizes = arguments.sizes();
    let (copy, to) = (arguments.folder.join("copy"), arguments.folder.join("target"));
    println!("synthetic checkpoint: {} layers of d = {}", sizes.n_layers, sizes.d);
    make(sizes, &arguments.source(), &Options::new("bench"))?;
    let n_bytes = sizes.n_bytes() as f64;
    println!("  {:.2} GB in {}", n_bytes / 1e9, arguments.source().display());

    let seconds = timed_copy(&arguments.source(), &copy)?;
    println!("plain copy, synced:   {}", rate(n_bytes, seconds));
    fs::remove_dir_all(&copy)?;

    let (seconds, peak, _, root) = finished(arguments.spawn(&to)?)?;
    println!("grow, whole:          {}, peak resident {:.0} MB", rate(n_bytes, seconds), peak);
    println!("  root {root}");
    fs::remove_dir_all(&to)?;
    kills(arguments, &to, seconds, &root)
}

/// Kills at moments spread over the time that a whole growth takes, then lets one finish.
fn kills(arguments: &Arguments, to: &Path, seconds: f64, root: &str) -> Result<()> {
    for kill in 1..=arguments.n_kills {
        let mut child = arguments.spawn(to)?;
        // A fixed set of moments without a pattern.
        let share = f64::from(kill * 61 % 97) / 97.0;
        // Each kill leaves less to do for the next.
        let wait = seconds * (0.1 + 0.3 * share);
        std::thread::sleep(Duration::from_secs_f64(wait));
        let _ = child.kill();
        let status = child.wait()?;
        let how = match status.signal() {
            Some(9) => "killed",
            _ => "had ended",
        };
        let there = if to.exists() { "THERE" } else { "not there" };
        let n_files =
            fs::read_dir(arguments.folder.join(".grow_target/data")).map_or(0, Iterator::count);
        println!("kill {kill}: {how} after {wait:.1} s, target {there}, {n_files} files begun");
        if to.exists() && how == "killed" {
            return Err("a killed growth left a target".into());
        }
    }
    let (seconds, peak, n_resumed, found) = finished(arguments.spawn(to)?)?;
    println!("run again:            {seconds:.1} s, {n_resumed} files resumed, peak {peak:.0} MB");
    println!("  root {found}");
    if found != root {
        return Err("the digests differ".into());
    }
    println!("digests equal; no half target was ever there");
    Ok(())
}

/// What a child printed: seconds, peak in MB, files resumed, root digest.
fn finished(mut child: std::process::Child) -> Result<(f64, f64, u64, String)> {
    let mut text = String::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut text)?;
    }
    if !child.wait()?.success() {
        return Err("a growth failed".into());
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [seconds, kib, n_resumed, root] => Ok((
            seconds.parse()?,
            kib.parse::<f64>()? * 1024.0 / 1e6,
            n_resumed.parse()?,
            (*root).to_owned(),
        )),
        _ => Err(format!("a child printed {text:?}").into()),
    }
}

/// Copies all files of a folder and syncs them, as a growth does.
fn timed_copy(from: &Path, to: &Path) -> Result<f64> {
    fs::create_dir(to)?;
    let began = Instant::now();
    let mut buffer = vec![0; 4 << 20];
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let mut source = fs::File::open(entry.path())?;
        let mut target = fs::File::create(to.join(entry.file_name()))?;
        loop {
            let n = source.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            target.write_all(bytes)?;
        }
        target.sync_all()?;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn rate(n_bytes: f64, seconds: f64) -> String {
    format!("{seconds:.1} s, {:.0} MB/s", n_bytes / 1e6 / seconds)
}
