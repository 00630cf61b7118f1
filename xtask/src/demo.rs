//! The main job, end to end: a stage in the language becomes a Rust crate that
//! trains on this repository's own text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use lightc_libtorch::Environment;

use crate::{corpus, libtorch, process};

const SOURCE: &str = "models/tiny/tiny.llm";
const STAGE: &str = "tiny_2b";
const CONFIG: &str = "configs/tiny_2b.toml";

/// Everything the demo writes lies here.
const OUT: &str = "out/demo";

const N_STEPS: u32 = 6;

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    println!("lightc demo: compile stage `{STAGE}` and train it on the CPU.");
    let demo = Demo::set_up()?;
    demo.show_source()?;
    demo.build_crate()?;
    demo.prepare()?;
    demo.train()?;
    demo.show_results(began)
}

struct Demo {
    lightc: PathBuf,
    environment: Environment,
}

impl Demo {
    fn set_up() -> Result<Self> {
        banner(1, "set libtorch up and build lightc");
        let environment = libtorch::environment()?;
        let lightc = process::build_release("lightc")?;
        clear_out()?;
        Ok(Self { lightc, environment })
    }

    fn show_source(&self) -> Result<()> {
        banner(2, &format!("the source: {SOURCE}"));
        let path = process::root().join(SOURCE);
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {SOURCE}"))?;
        print!("{text}");
        println!();
        self.lightc(&["check", SOURCE])
    }

    fn build_crate(&self) -> Result<()> {
        banner(3, "generate the training code");
        let folder = format!("{OUT}/crate");
        self.lightc(&["build", SOURCE, "--stage", STAGE, "--target", "cpu", "--out", &folder])?;
        list_files(&process::root().join(&folder))
    }

    fn prepare(&self) -> Result<()> {
        banner(4, "text to tokens: this repository's tracked .llm, .md, .rs and .toml files");
        let out = process::root().join(OUT);
        let corpus = corpus::write_list(out.join("files.txt"))?;
        println!("  {} files, {} bytes", corpus.n_files, corpus.n_bytes);
        self.lightc(&[
            "prepare",
            SOURCE,
            "--stage",
            STAGE,
            "--files-from",
            &format!("{OUT}/files.txt"),
            "--out",
            &format!("{OUT}/shards"),
        ])
    }

    fn train(&self) -> Result<()> {
        banner(5, "train");
        let run = format!("{OUT}/run");
        self.lightc(&["train", SOURCE, "--stage", STAGE, "--config", CONFIG, "--out", &run])
    }

    fn show_results(&self, began: Instant) -> Result<()> {
        banner(N_STEPS, "what is where");
        list_files(&process::root().join(OUT))?;
        println!("\nDone in {}.", minutes(began));
        Ok(())
    }

    fn lightc(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.lightc);
        let _ = command.args(arguments).current_dir(process::root());
        self.environment.apply(&mut command);
        process::run(&mut command)
    }
}

/// The demo starts anew each time: what an earlier one left in its own folder goes.
fn clear_out() -> Result<()> {
    let out = process::root().join(OUT);
    if out.is_dir() {
        println!("removing {OUT}, which an earlier demo wrote");
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {OUT}"))?;
    }
    Ok(())
}

fn banner(step: u32, title: &str) {
    println!("\n[{step}/{N_STEPS}] {title}");
}

fn minutes(began: Instant) -> String {
    let seconds = began.elapsed().as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

/// Prints the files below a folder with their sizes. Folders named `target`,
/// which hold what cargo built, are left out.
fn list_files(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect_files(folder, &mut files)?;
    files.sort();
    for (path, n_bytes) in files {
        println!("  {n_bytes:>10} bytes  {}", relative(&path));
    }
    Ok(())
}

fn collect_files(folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    let unreadable = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let metadata = entry.metadata().with_context(unreadable)?;
        if !metadata.is_dir() {
            files.push((entry.path(), metadata.len()));
        } else if entry.file_name() != "target" {
            collect_files(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// A path as seen from the repository's root.
fn relative(path: &Path) -> String {
    path.strip_prefix(process::root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_collected_without_build_folders() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["src/lib.rs", "target/debug/x", "Cargo.toml"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "ab").unwrap();
        }
        let mut files = Vec::new();
        collect_files(dir.path(), &mut files).unwrap();
        files.sort();
        assert_eq!(files, [(dir.path().join("Cargo.toml"), 2), (dir.path().join("src/lib.rs"), 2)]);
    }
}
