//! The main job, end to end: a lineage of stages in the language becomes Rust that trains on this
//! repository's own text, grown from stage to stage, once by the published maps and once by maps
//! that preserve the function.

mod lineage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use lightc_libtorch::Environment;
use serde_json::Value;

use crate::{chart, corpus, libtorch, process};
use lineage::{HeldOut, LINEAGES, Lineage, Row, Step};

const SOURCE: &str = "models/tiny/tiny.llm";

/// The stage whose generated crate is shown, and whose vocabulary all others share.
const SEED: &str = "tiny_2b";

/// Everything the demo writes lies here.
const OUT: &str = "out/demo";

const N_STEPS: u32 = 7;

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    println!("lightc demo: train a lineage of four stages on the CPU, growing between them.");
    let demo = Demo::set_up()?;
    demo.show_source()?;
    demo.build_crate()?;
    demo.prepare()?;
    let mut tables = Vec::new();
    for (position, lineage) in LINEAGES.iter().enumerate() {
        banner(5 + position as u32, &format!("the {} lineage: {}", lineage.name, lineage.what));
        tables.push(demo.train(lineage)?);
    }
    demo.show_results(&tables, began)
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
        self.lightc(&["build", SOURCE, "--stage", SEED, "--target", "cpu", "--out", &folder])?;
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
            SEED,
            "--files-from",
            &format!("{OUT}/files.txt"),
            "--out",
            &format!("{OUT}/shards"),
        ])
    }

    /// Trains the stages of a lineage in turn, each grown from the one before.
    fn train(&self, lineage: &Lineage) -> Result<Vec<Row>> {
        let folder = Path::new(OUT).join(lineage.name);
        let mut rows: Vec<Row> = Vec::new();
        let mut before: Option<String> = None;
        for (position, step) in lineage.steps.iter().enumerate() {
            let run = text_of(&step.folder(&folder, position));
            println!("\n-- {} ({} of {})", step.stage, position + 1, lineage.steps.len());
            let grown = match (step.map, &before) {
                (Some(map), Some(before)) => Some(self.grow(map, before, &run)?),
                _ => None,
            };
            self.train_stage(step, grown.as_deref(), &run)?;
            rows.push(self.row(step, &run)?);
            before = Some(run);
        }
        Ok(rows)
    }

    /// Grows the last checkpoint of a run; gives the folder of the result.
    fn grow(&self, map: &str, from: &str, run: &str) -> Result<String> {
        let grown = format!("{run}.grown");
        self.lightc(&["grow", SOURCE, "--map", map, "--from", from, "--to", &grown])?;
        Ok(grown)
    }

    fn train_stage(&self, step: &Step, from: Option<&str>, run: &str) -> Result<()> {
        let mut arguments =
            vec!["train", SOURCE, "--stage", step.stage, "--config", step.config, "--out", run];
        if let Some(from) = from {
            arguments.extend(["--from", from]);
        }
        self.lightc(&arguments)
    }

    fn row(&self, step: &Step, run: &str) -> Result<Row> {
        let metrics = process::root().join(run).join("metrics.jsonl");
        Ok(Row {
            stage: step.stage.to_owned(),
            map: step.map.map(str::to_owned),
            n_params: self.n_params(step.stage)?,
            held_out: HeldOut::read(&metrics)?,
        })
    }

    /// Parameters stored, the multi-token head included.
    fn n_params(&self, stage: &str) -> Result<u64> {
        let mut command = Command::new(&self.lightc);
        let _ = command
            .args(["params", SOURCE, "--stage", stage, "--format", "json"])
            .current_dir(process::root());
        let text = process::output(&mut command)?;
        let report: Value = serde_json::from_str(&text).context("`lightc params` gave no JSON")?;
        let count = report.pointer("/stored/with_mtp").and_then(Value::as_u64);
        count.context("`lightc params` gave no count")
    }

    fn show_results(&self, tables: &[Vec<Row>], began: Instant) -> Result<()> {
        banner(N_STEPS, "held-out loss across the growth steps, nats per token");
        for (lineage, rows) in LINEAGES.iter().zip(tables) {
            println!("\n{} ({})", lineage.name, lineage.what);
            print!("{}", lineage::table(rows));
        }
        println!("\npicture: {}", Self::picture()?.display());
        println!(
            "\n`change` is what growing alone did to the loss; `before` and `after` are those of training."
        );
        println!("\nDone in {}.", minutes(began));
        Ok(())
    }

    /// Draws the loss of both lineages over their steps.
    fn picture() -> Result<PathBuf> {
        let drawn = LINEAGES.map(|lineage| chart::Lineage {
            name: lineage.name.to_owned(),
            stages: stages(&lineage),
        });
        let chart = chart::draw("Held-out and training loss across growth", &drawn)?;
        let path = Path::new(OUT).join("lineage.svg");
        fs::write(process::root().join(&path), chart.svg)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn lightc(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.lightc);
        let _ = command.args(arguments).current_dir(process::root());
        self.environment.apply(&mut command);
        process::run(&mut command)
    }
}

/// Name and metrics of every stage of a lineage.
fn stages(lineage: &Lineage) -> Vec<(String, PathBuf)> {
    let folder = process::root().join(OUT).join(lineage.name);
    let steps = lineage.steps.iter().enumerate();
    let metrics = |(position, step): (usize, &Step)| {
        (step.stage.to_owned(), step.folder(&folder, position).join("metrics.jsonl"))
    };
    steps.map(metrics).collect()
}

/// A path below the root, as the commands take it; all of them are ours and are UTF-8.
fn text_of(path: &Path) -> String {
    path.display().to_string()
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
