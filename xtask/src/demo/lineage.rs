//! The two lineages of the demo: which stage follows which, by which map.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One stage of a lineage: how it comes about and how it is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) stage: &'static str,
    /// The map that grows it from the stage before; `None` for the seed.
    pub(crate) map: Option<&'static str>,
    pub(crate) config: &'static str,
}

/// A seed and what it grows to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lineage {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) steps: &'static [Step],
}

const fn seed(stage: &'static str, config: &'static str) -> Step {
    Step { stage, map: None, config }
}

const fn grown(map: &'static str, stage: &'static str, config: &'static str) -> Step {
    Step { stage, map: Some(map), config }
}

/// As published, and beside it the maps that preserve the function.
pub(crate) const LINEAGES: [Lineage; 2] = [
    Lineage {
        name: "published",
        what: "the maps as published: each changes the function",
        steps: &[
            seed("tiny_2b", "configs/tiny_2b.toml"),
            grown("tiny_dense_to_moe", "tiny_5b", "configs/tiny_5b.toml"),
            grown("tiny_depth", "tiny_9b", "configs/tiny_9b.toml"),
            grown("tiny_clones", "tiny_120b", "configs/tiny_120b.toml"),
        ],
    },
    Lineage {
        name: "exact",
        what: "maps that preserve the function, proved",
        steps: &[
            seed("tiny_2b_midpoint", "configs/tiny_2b.toml"),
            grown("tiny_dense_to_moe_exact", "tiny_5b", "configs/tiny_5b.toml"),
            grown("tiny_depth_exact", "tiny_9b_exact", "configs/tiny_9b.toml"),
            grown("tiny_clones_exact", "tiny_120b_exact", "configs/tiny_9b.toml"),
        ],
    },
];

impl Step {
    /// The folder of this step's run below that of its lineage.
    pub(crate) fn folder(&self, lineage: &Path, position: usize) -> PathBuf {
        lineage.join(format!("{position}_{}", self.stage))
    }
}

/// What a run's metrics say of its loss on held-out text, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeldOut {
    pub(crate) before: f64,
    pub(crate) after: f64,
    pub(crate) n_steps: u64,
}

impl HeldOut {
    /// Reads the first and the last evaluation of a `metrics.jsonl`.
    pub(crate) fn read(metrics: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(metrics)
            .with_context(|| format!("cannot read {}", metrics.display()))?;
        let mut evaluations = Vec::new();
        for line in text.lines() {
            let row: Value = serde_json::from_str(line)
                .with_context(|| format!("a row of {} is not JSON", metrics.display()))?;
            if row.get("kind").and_then(Value::as_str) == Some("evaluation") {
                let loss = row.get("ntp").and_then(Value::as_f64);
                let step = row.get("step").and_then(Value::as_u64);
                evaluations.extend(loss.zip(step));
            }
        }
        match (evaluations.first(), evaluations.last()) {
            (Some(&(before, _)), Some(&(after, n_steps))) if evaluations.len() > 1 => {
                Ok(HeldOut { before, after, n_steps })
            }
            _ => bail!("{} lacks the evaluations before and after", metrics.display()),
        }
    }
}

/// One row of the table: a stage, its size, and its loss at its beginning and end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) stage: String,
    pub(crate) map: Option<String>,
    pub(crate) n_params: u64,
    pub(crate) held_out: HeldOut,
}

/// The table of one lineage; `change` is what growing alone did to the loss.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "  {:<18} {:<24} {:>10} {:>6} {:>9} {:>9} {:>9}\n",
        "stage", "grown by", "parameters", "steps", "change", "before", "after"
    );
    let mut last: Option<f64> = None;
    for row in rows {
        let change = match last {
            Some(loss) => format!("{:+.4}", row.held_out.before - loss),
            None => "-".to_owned(),
        };
        text += &format!(
            "  {:<18} {:<24} {:>10} {:>6} {:>9} {:>9.4} {:>9.4}\n",
            row.stage,
            row.map.as_deref().unwrap_or("-"),
            row.n_params,
            row.held_out.n_steps,
            change,
            row.held_out.before,
            row.held_out.after
        );
        last = Some(row.held_out.after);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_evaluation_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let rows = r#"{"kind":"start","step":0}
{"kind":"evaluation","step":0,"ntp":7.5}
{"kind":"step","step":1,"ntp":7.0}
{"kind":"evaluation","step":10,"ntp":5.0}
{"kind":"evaluation","step":20,"ntp":4.25}
"#;
        std::fs::write(&path, rows).unwrap();
        let expected = HeldOut { before: 7.5, after: 4.25, n_steps: 20 };
        assert_eq!(HeldOut::read(&path).unwrap(), expected);
        std::fs::write(&path, rows.lines().take(2).collect::<Vec<_>>().join("\n")).unwrap();
        let error = HeldOut::read(&path).unwrap_err();
        assert!(error.to_string().contains("before and after"), "{error}");
    }

    #[test]
    fn the_change_is_that_of_growing_alone() {
        let row = |stage: &str, map: Option<&str>, before, after| Row {
            stage: stage.to_owned(),
            map: map.map(str::to_owned),
            n_params: 1000,
            held_out: HeldOut { before, after, n_steps: 5 },
        };
        let rows = [row("a", None, 7.0, 4.0), row("b", Some("m"), 4.5, 3.0)];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains(" - "), "{text}");
        assert!(lines[2].contains("+0.5000"), "{text}");
    }
}
