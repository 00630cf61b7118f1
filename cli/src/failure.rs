//! Why a command ends with an error, and how that is said.

use crate::terminal;
use lightc_dsl::diag::{self, Diag, Severity};
use lightc_dsl::source::Sources;
use std::process::ExitCode;

/// Codes of faults that lie outside the sources. Each has a page under `docs/errors/`.
pub(crate) mod codes {
    /// A file that cannot be read.
    pub(crate) const UNREADABLE: &str = "E1201";
    /// A file that is not UTF-8 text.
    pub(crate) const NOT_TEXT: &str = "E1202";
    /// A folder with content that lightc did not write.
    pub(crate) const FOREIGN_FOLDER: &str = "E1203";
    /// A file that cannot be written.
    pub(crate) const UNWRITABLE: &str = "E1204";
    /// The runtime that generated crates depend on is not there.
    pub(crate) const NO_RUNTIME: &str = "E1205";
    /// libtorch is not there.
    pub(crate) const NO_LIBTORCH: &str = "E1206";
    /// The generated crate was not built.
    pub(crate) const NOT_BUILT: &str = "E1207";
    /// No function of that name in the stage.
    pub(crate) const UNKNOWN_FUNCTION: &str = "E1208";
    /// No error of that code.
    pub(crate) const UNKNOWN_CODE: &str = "E1209";
}

/// The end of a command that did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Faults in the sources, with places.
    Source {
        /// At least one error.
        diags: Vec<Diag>,
        /// What the places are in.
        sources: Sources,
    },
    /// A fault outside the sources.
    Fault(Fault),
    /// Everything is said; this is the exit code.
    Said(u8),
}

/// A fault without a place in a source.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Stable code.
    pub(crate) code: &'static str,
    /// One sentence that stands alone.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Fault { code, message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// In the layout of diagnostics with a place.
    pub(crate) fn text(&self, color: bool) -> String {
        let (red, bold, plain) = if color {
            ("\u{1b}[0m\u{1b}[1m\u{1b}[31m", "\u{1b}[1m", "\u{1b}[0m")
        } else {
            ("", "", "")
        };
        let mut text = format!("{red}error[{}]{plain}{bold}: {}{plain}\n", self.code, self.message);
        for (position, line) in self.help.iter().flat_map(|help| help.lines()).enumerate() {
            text.push_str(if position == 0 { "  = help: " } else { "          " });
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}

impl Failure {
    /// Says what is wrong on stderr and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::Source { diags, sources } => {
                show_diags(&diags, &sources);
                ExitCode::FAILURE
            }
            Failure::Fault(fault) => {
                terminal::say(&fault.text(terminal::has_color()));
                ExitCode::FAILURE
            }
            Failure::Said(code) => ExitCode::from(code),
        }
    }
}

/// Diagnostics and their number, on stderr.
pub(crate) fn show_diags(diags: &[Diag], sources: &Sources) {
    if diags.is_empty() {
        return;
    }
    terminal::say(&diag::render(diags, sources, terminal::has_color()));
    let errors = diags.iter().filter(|diag| diag.severity == Severity::Error).count();
    let mut parts = Vec::new();
    for (count, word) in [(errors, "error"), (diags.len() - errors, "warning")] {
        match count {
            0 => {}
            1 => parts.push(format!("1 {word}")),
            n => parts.push(format!("{n} {word}s")),
        }
    }
    terminal::say(&format!("{}; `lightc explain CODE` says more\n", parts.join(", ")));
}

/// Whether any of them is an error.
pub(crate) fn has_errors(diags: &[Diag]) -> bool {
    diags.iter().any(|diag| diag.severity == Severity::Error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_looks_like_a_diagnostic() {
        let fault = Fault::new("E1201", "no file").help("write one\nor two");
        assert_eq!(
            fault.text(false),
            "error[E1201]: no file\n  = help: write one\n          or two\n"
        );
    }

    #[test]
    fn every_code_has_a_page() {
        for code in [
            codes::UNREADABLE,
            codes::NOT_TEXT,
            codes::FOREIGN_FOLDER,
            codes::UNWRITABLE,
            codes::NO_RUNTIME,
            codes::NO_LIBTORCH,
            codes::NOT_BUILT,
            codes::UNKNOWN_FUNCTION,
            codes::UNKNOWN_CODE,
        ] {
            assert!(lightc_dsl::diag::codes::page(code).is_some(), "{code}");
        }
    }
}
