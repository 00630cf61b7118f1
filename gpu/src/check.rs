//! What a check gives, and how it is shown.

use std::time::Instant;

use lightc_runtime::cuda::{self, Check, Mode};
use lightc_runtime::{Kind, Result};

use crate::{Case, Gpu};

/// The outcome of one comparison.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Verdict {
    /// What was compared, with its size.
    pub label: String,
    /// The errors and their limits, in words.
    pub detail: String,
    /// What is wrong, where something is.
    pub fault: Option<String>,
}

/// Runs ops in [`Mode::Check`], with limits `factor` times the usual ones, and gives a verdict for each
/// kernel that was compared. None is a fault too: then no kernel has run. A line on stderr says how far a case is, whose
/// verdicts come at its end.
///
/// # Errors
/// Those of `work`.
pub fn compared(
    label: &str,
    factor: f64,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Verdict>> {
    let mut check = Check::default();
    for limit in check.limits.values_mut() {
        *limit *= factor;
    }
    cuda::set_mode(Mode::Check(check));
    let done = work();
    let rows = cuda::checked();
    cuda::set_mode(Mode::Normal);
    done?;
    if rows.is_empty() {
        let fault = Some("no kernel was compared: the op did not take one".to_owned());
        return Ok(vec![Verdict { label: label.to_owned(), detail: String::new(), fault }]);
    }
    let verdict = |row: &cuda::Checked| {
        let errors: Vec<String> =
            row.errors.iter().map(|(error, _)| format!("{error:.1e}")).collect();
        let kind = if row.reference == Kind::Double { "f64" } else { "f32" };
        Verdict {
            label: format!("{label}: {}", row.entry),
            detail: format!("off by {} from {kind}", errors.join(" ")),
            fault: row.fault(),
        }
    };
    let verdicts: Vec<Verdict> = rows.iter().map(verdict).collect();
    let n_red = verdicts.iter().filter(|verdict| verdict.fault.is_some()).count();
    eprintln!("{label}: {} kernels compared, {n_red} red", verdicts.len());
    Ok(verdicts)
}

/// The verdicts of a case or of a part of one, or one that says why there are none, so that those of other parts are not lost.
pub fn finished(label: &str, part: impl FnOnce() -> Result<Vec<Verdict>>) -> Vec<Verdict> {
    part().unwrap_or_else(|error| {
        let fault = Some(error.rendered().trim_end().to_owned());
        vec![Verdict { label: label.to_owned(), detail: String::new(), fault }]
    })
}

/// A verdict on a single number.
pub fn within(label: impl Into<String>, what: &str, error: f64, limit: f64) -> Verdict {
    let fault =
        (error.is_nan() || error > limit).then(|| format!("{what} {error:.1e}, limit {limit:.1e}"));
    Verdict { label: label.into(), detail: format!("{what} {error:.1e}"), fault }
}

/// Checks cases and prints a line for each comparison, and for each case its time. Gives whether all are green, by case.
pub fn run(
    cases: &[Box<dyn Case>],
    gpu: &Gpu,
    print: &mut dyn FnMut(&str),
) -> Vec<(&'static str, bool)> {
    cases
        .iter()
        .map(|case| {
            let start = Instant::now();
            let verdicts = finished(case.name(), || case.check(gpu));
            verdicts.iter().for_each(|verdict| print(&line(verdict)));
            let green =
                !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.fault.is_none());
            let (word, seconds) =
                (if green { "green" } else { "RED" }, start.elapsed().as_secs_f64());
            print(&format!("{word}  case {} in {seconds:.1} s", case.name()));
            (case.name(), green)
        })
        .collect()
}

fn line(verdict: &Verdict) -> String {
    match &verdict.fault {
        None => format!("ok   {}  {}", verdict.label, verdict.detail),
        Some(fault) => format!("RED  {}  {}  {fault}", verdict.label, verdict.detail),
    }
}
