//! `metrics.jsonl`: one JSON object per line, each with a `kind` and the `step`
//! it belongs to.
//!
//! * `start`: a run or a resumed part of it begins.
//! * `step`: one optimizer update.
//! * `evaluation`: held-out loss.
//! * `checkpoint`: one was saved.
//!
//! A resumed run drops the rows after its checkpoint (and a last line that a
//! crash cut), so that each step has one row.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lightc_checkpoint::durable;
use serde_json::{Map, Value, json};

use crate::error::{Result, TrainError};
use crate::evaluate::Evaluation;
use crate::trainer::StepReport;

/// What was measured of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRow {
    /// Next-token targets.
    pub n_tokens: usize,
    /// From before its data was read to when its numbers were known, in seconds.
    pub elapsed_s: f64,
    /// See [`Rate::mfu`].
    pub mfu: Option<f64>,
    /// Bytes of the device that are not free after the step, as the driver says: those of this
    /// process with what libtorch's allocator keeps, and those of others.
    pub used_bytes: Option<u64>,
    /// Name and milliseconds of each part, where they were timed.
    pub parts: Option<[(&'static str, f64); 4]>,
}

impl StepRow {
    /// Next-token targets per second.
    pub fn tokens_per_s(&self) -> f64 {
        self.n_tokens as f64 / self.elapsed_s
    }
}

/// What MFU is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Model operations of a step; see [`crate::footprint::step_flops`].
    pub step_flops: f64,
    /// Operations per second that the device can do.
    pub peak_flops: f64,
}

impl Rate {
    /// Model operations of a step, divided by what the device could do in its time.
    pub fn mfu(self, elapsed_s: f64) -> f64 {
        self.step_flops / (self.peak_flops * elapsed_s)
    }
}

/// The metrics file of a run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    evaluated: Vec<u64>,
}

impl Metrics {
    /// Opens the file to go on after `step`, or to begin where `step` is
    /// `None`.
    pub fn open(path: &Path, step: Option<u64>) -> Result<Self> {
        let kept = match step {
            Some(step) if path.exists() => rows_until(path, step)?,
            _ => Vec::new(),
        };
        let text: String = kept.iter().map(|row| format!("{row}\n")).collect();
        durable::replace_file(path, text.as_bytes())?;
        let is_evaluation = |row: &&Value| row.get("kind") == Some(&json!("evaluation"));
        let evaluated = kept.iter().filter(is_evaluation).filter_map(step_of).collect();
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(TrainError::io("opening", path))?;
        Ok(Metrics { path: path.to_owned(), file, evaluated })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one row.
    pub fn row(&mut self, kind: &str, step: u64, fields: Value) -> Result<()> {
        let mut row = Map::new();
        row.insert("kind".to_owned(), json!(kind));
        row.insert("step".to_owned(), json!(step));
        if let Value::Object(fields) = fields {
            row.extend(fields);
        }
        let line = format!("{}\n", Value::Object(row));
        let written = self.file.write_all(line.as_bytes());
        Ok(written.map_err(TrainError::io("writing", &self.path))?)
    }

    /// Appends the row of an optimizer update.
    pub fn step(&mut self, report: &StepReport, row: &StepRow) -> Result<()> {
        let mut fields = Map::new();
        for (name, value) in &report.values {
            fields.insert((*name).to_owned(), json!(value));
        }
        let lr: Map<String, Value> =
            report.lr.iter().map(|(group, lr)| (group.clone(), json!(lr))).collect();
        fields.insert("lr".to_owned(), Value::Object(lr));
        fields.insert("grad_norm".to_owned(), json!(report.grad_norm));
        fields.insert("clip_scale".to_owned(), json!(report.clip_scale));
        fields.insert("tokens".to_owned(), json!(row.n_tokens));
        fields.insert("ms".to_owned(), json!(rounded(row.elapsed_s * 1e3)));
        fields.insert("tokens_per_s".to_owned(), json!(row.tokens_per_s().round()));
        if let Some(mfu) = row.mfu {
            fields.insert("mfu".to_owned(), json!(rounded(mfu)));
        }
        if let Some(bytes) = row.used_bytes {
            fields.insert("device_bytes".to_owned(), json!(bytes));
        }
        if let Some(parts) = &row.parts {
            let parts: Map<String, Value> =
                parts.iter().map(|(name, ms)| ((*name).to_owned(), json!(rounded(*ms)))).collect();
            fields.insert("parts_ms".to_owned(), Value::Object(parts));
        }
        self.row("step", report.step, Value::Object(fields))
    }

    /// Appends the row of an evaluation, unless its step has one.
    pub fn evaluation(&mut self, step: u64, evaluation: &Evaluation) -> Result<()> {
        if self.evaluated.contains(&step) {
            return Ok(());
        }
        self.evaluated.push(step);
        let Evaluation { ntp, bits_per_byte, n_targets } = evaluation;
        let fields = json!({ "ntp": ntp, "bits_per_byte": bits_per_byte, "tokens": n_targets });
        self.row("evaluation", step, fields)
    }
}

/// To three digits after the point.
fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

fn step_of(row: &Value) -> Option<u64> {
    row.get("step")?.as_u64()
}

/// The rows up to a step, in order.
fn rows_until(path: &Path, step: u64) -> Result<Vec<Value>> {
    let bytes = std::fs::read(path).map_err(TrainError::io("reading", path))?;
    let mut rows = Vec::new();
    // A crash can cut the last line, also within a character.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (index, line) in lines.enumerate() {
        let damaged =
            |detail: String| TrainError::Metrics { path: path.to_owned(), line: index + 1, detail };
        let row: Value =
            serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
        let of_row = step_of(&row).ok_or_else(|| damaged("it has no `step`".to_owned()))?;
        if of_row <= step {
            rows.push(row);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_drops_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, None).expect("opens");
        for step in 1..=5 {
            metrics.row("step", step, json!({ "loss": 0.5 })).expect("writes");
        }
        metrics.file.write_all(b"{\"kind\":\"step\",\"st").expect("writes");
        let mut metrics = Metrics::open(&path, Some(3)).expect("opens");
        metrics.row("step", 4, json!({ "loss": 0.25 })).expect("writes");
        insta::assert_snapshot!("resumed", std::fs::read_to_string(&path).expect("reads"));
        Metrics::open(&path, None).expect("opens");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "");
    }

    #[test]
    fn an_evaluation_has_one_row() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let evaluation = Evaluation { ntp: 1.5, bits_per_byte: 0.5, n_targets: 9 };
        for _ in 0..2 {
            let mut metrics = Metrics::open(&path, Some(7)).expect("opens");
            metrics.evaluation(7, &evaluation).expect("writes");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("reads").lines().count(), 1);
    }

    #[test]
    fn a_damaged_row_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        for text in ["{\"step\":1}\nnonsense\n", "{\"step\":1}\n{}\n"] {
            std::fs::write(&path, text).expect("writes");
            let error = Metrics::open(&path, Some(7)).expect_err("is refused");
            assert_eq!(error.code(), "E1108");
            assert!(error.to_string().contains("metrics.jsonl:2:"), "{error}");
        }
    }
}
