//! Why there is no cubin.

use std::fmt;

/// Where a source failed to compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The name it was compiled under.
    pub source: String,
    /// The file of the first error, a header's name or the source's, and the line in it.
    pub place: Option<(String, u32)>,
    /// The entry point whose text holds that line.
    pub entry: Option<String>,
    /// The comment `// origin: ...` above that entry point, where there is one.
    pub origin: Option<String>,
    /// What NVRTC and ptxas printed.
    pub log: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel source `{}` does not compile", self.source)?;
        if let Some(entry) = &self.entry {
            write!(f, ": in `{entry}`")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, ", which computes {origin}")?;
        }
        for line in self.log.lines().filter(|line| !line.trim().is_empty()).take(SHOWN) {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// Lines of a log that a message shows: the first error with its source line, and a few more.
const SHOWN: usize = 12;

/// What stands between a source and its cubin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library is not there.
    #[error("libnvrtc.so.13 is not found: {reason}")]
    NoNvrtc {
        /// Where it was looked for.
        reason: String,
    },
    /// The source is not right.
    #[error("{0}")]
    Compile(Box<Failure>),
    /// There is no C++ compiler to make code for the emulator.
    #[error("a C++ compiler is needed to emulate kernels, and `{program}` cannot be run: {reason}")]
    NoHostCompiler {
        /// The program, `CXX` or `c++`.
        program: String,
        /// Why not.
        reason: String,
    },
    /// Files of the emulator cannot be written or read.
    #[error("the emulator's code: {detail}")]
    Emulator {
        /// What the system says.
        detail: String,
    },
    /// NVRTC refused a call.
    #[error("NVRTC: {call} gives {code}")]
    Nvrtc {
        /// The function.
        call: &'static str,
        /// Its answer.
        code: String,
    },
}
