//! Progress on standard error: a bar on a terminal, a plain line every few
//! seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::evaluate::Evaluation;
use crate::metrics::StepRow;
use crate::trainer::StepReport;

const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const TEMPLATE: &str = "{bar:30} {pos}/{len} steps  {elapsed} of {duration}  {msg}";

/// Where a run tells how far it is.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    n_steps: u64,
}

#[derive(Debug)]
enum Kind {
    Silent,
    Plain { last: Option<Instant> },
    Bar(ProgressBar),
}

impl Progress {
    /// Progress of a run of `n_steps` that begins at `step`.
    pub fn new(step: u64, n_steps: u64) -> Self {
        let kind = if std::io::stderr().is_terminal() {
            Kind::Bar(bar(step, n_steps))
        } else {
            Kind::Plain { last: None }
        };
        Progress { kind, n_steps }
    }

    /// No progress at all, for tests.
    pub fn silent() -> Self {
        Progress { kind: Kind::Silent, n_steps: 0 }
    }

    /// After a step.
    pub fn step(&mut self, report: &StepReport, row: &StepRow) {
        let n_steps = self.n_steps;
        let text = step_text(report, row);
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Bar(bar) => {
                bar.set_position(report.step);
                bar.set_message(text);
            }
            Kind::Plain { last } => {
                let is_due = last.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
                if is_due || report.step == n_steps {
                    *last = Some(Instant::now());
                    eprintln!("step {}/{n_steps}  {text}", report.step);
                }
            }
        }
    }

    /// After an evaluation.
    pub fn evaluation(&self, step: u64, evaluation: &Evaluation) {
        let Evaluation { ntp, bits_per_byte, .. } = evaluation;
        self.note(&format!(
            "step {step}  held-out loss {ntp:.4} nats per token, {bits_per_byte:.4} bits per byte"
        ));
    }

    /// A line of its own.
    pub fn note(&self, text: &str) {
        match &self.kind {
            Kind::Silent => {}
            Kind::Bar(bar) => bar.println(text),
            Kind::Plain { .. } => eprintln!("{text}"),
        }
    }

    /// At the end.
    pub fn finish(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish();
        }
    }
}

fn bar(step: u64, n_steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(n_steps), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(TEMPLATE);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(step);
    bar.reset_eta();
    bar
}

fn step_text(report: &StepReport, row: &StepRow) -> String {
    let values: Vec<String> =
        report.values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let mut text = format!(
        "{}  grad {:.3}  {:.0} tokens/s",
        values.join("  "),
        report.grad_norm,
        row.tokens_per_s()
    );
    if let Some(mfu) = row.mfu {
        text += &format!("  MFU {:.1}%", mfu * 100.0);
    }
    if let Some(bytes) = row.used_bytes {
        text += &format!("  {:.1} GB", bytes as f64 / 1e9);
    }
    for (name, ms) in row.parts.iter().flatten() {
        text += &format!("  {name} {ms:.1} ms");
    }
    text
}
