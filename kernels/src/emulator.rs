//! Kernels for the processor: the same sources, compiled by a C++ compiler against `kernels/emulator`.
//!
//! For tests on machines without a GPU. What is compiled is the text that NVRTC compiles, but for its single
//! instructions (`ptx.cuh`, `wgmma.cuh`), which the emulator says in C++. It finds wrong results, waits
//! that never end, memory that is read before it is written, and what depends on the order of threads
//! or of copies; it says nothing of speed, of registers, or of memory beyond a tensor's end.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use crate::{Error, Failure, HEADERS};

/// Files that stand in for a header of [`HEADERS`], or are included first.
const EMULATED: &[(&str, &str)] = &[
    ("machine.h", include_str!("../emulator/machine.h")),
    ("cuda.h", include_str!("../emulator/cuda.h")),
    ("ptx.cuh", include_str!("../emulator/ptx.cuh")),
    ("wgmma.cuh", include_str!("../emulator/wgmma.cuh")),
];

/// How a source is compiled. No sum is fused with a product that the source does not fuse, so a
/// rounding more stands beside those of a GPU.
const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-shared",
    "-fPIC",
    "-w",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-include",
    "cuda.h",
];

/// Added where `LIGHTC_SANITIZE=address` asks for it: an access of a kernel beyond a tensor of the heap ends the program.
/// Stacks are left out, since fibers have their own, and so are globals, which shared memory is.
const SANITIZED: &[&str] =
    &["-fsanitize=address", "--param=asan-stack=0", "--param=asan-globals=0", "-g1"];

/// A C++ compiler of the machine: `CXX`, else `c++`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCompiler {
    program: String,
    version: String,
    options: Vec<&'static str>,
}

impl HostCompiler {
    /// Looks for it.
    ///
    /// # Errors
    /// [`Error::NoHostCompiler`].
    pub fn find() -> Result<HostCompiler, Error> {
        let asked = std::env::var("CXX").ok().filter(|name| !name.is_empty());
        let program = asked.unwrap_or_else(|| "c++".to_owned());
        let absent = |reason: String| Error::NoHostCompiler { program: program.clone(), reason };
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|error| absent(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next().unwrap_or_default().to_owned();
        if !output.status.success() || version.is_empty() {
            return Err(absent("it does not tell its version".to_owned()));
        }
        let sanitized = std::env::var("LIGHTC_SANITIZE").is_ok_and(|asked| asked == "address");
        let more = if sanitized { SANITIZED } else { &[] };
        Ok(HostCompiler { program, version, options: [OPTIONS, more].concat() })
    }

    /// All that compiled code depends on beside its source.
    pub fn identity(&self) -> Vec<&str> {
        let files = EMULATED.iter().flat_map(|(name, text)| [*name, *text]);
        let options = self.options.iter().copied();
        std::iter::once(self.version.as_str()).chain(options).chain(files).collect()
    }

    /// Compiles a source to a shared library with a function `emulated_ENTRY` per entry point:
    /// `int (void** arguments, const int launch[6])`, of which `launch` is the grid, the threads, bytes of dynamic
    /// shared memory and whether it runs late (`machine.h`), and `const char* emulated_failure()`.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's messages, or [`Error::Emulator`] where files cannot be
    /// written or read.
    pub fn compile(&self, name: &str, source: &str) -> Result<Vec<u8>, Error> {
        let io = |error: io::Error| Error::Emulator { detail: format!("{name}: {error}") };
        let folder = tempfile::tempdir().map_err(io)?;
        write_headers(folder.path()).map_err(io)?;
        let mut text = for_host(source);
        for Entry { name, cluster } in entries(source) {
            text.push_str(&format!("\nEMULATED({name}, {cluster})"));
        }
        text.push('\n');
        let (from, to) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        fs::write(&from, text).map_err(io)?;
        let mut command = Command::new(&self.program);
        let _ =
            command.args(&self.options).arg("-I").arg(folder.path()).arg("-o").arg(&to).arg(&from);
        let output = command.output().map_err(io)?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            let source = name.to_owned();
            let failure = Failure { source, place: None, entry: None, origin: None, log };
            return Err(Error::Compile(Box::new(failure)));
        }
        fs::read(&to).map_err(io)
    }
}

fn write_headers(folder: &Path) -> io::Result<()> {
    for (name, text) in HEADERS {
        fs::write(folder.join(name), for_host(text))?;
    }
    // After them: these stand in for some.
    for (name, text) in EMULATED {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// `extern __shared__ float kept[];` names the block's dynamic shared memory, and is no C++.
fn for_host(source: &str) -> String {
    const SHARED: &str = "extern __shared__ ";
    let line = |line: &str| match line.trim_start().strip_prefix(SHARED) {
        Some(declared) => {
            let declared = declared.trim_end().trim_end_matches("[];");
            let (kind, name) = declared.rsplit_once(' ').unwrap_or(("char", declared));
            format!("static {kind}* const {name} = ({kind}*)emulator::shared[0];")
        }
        None => line.to_owned(),
    };
    source.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// An entry point, and the blocks of its clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    name: &'a str,
    cluster: &'a str,
}

/// The entry points of a source: `__global__ void`, attributes with their arguments, a name.
fn entries(source: &str) -> Vec<Entry<'_>> {
    source.split("__global__").skip(1).filter_map(entry).collect()
}

fn entry(text: &str) -> Option<Entry<'_>> {
    let mut rest = text;
    let mut cluster = "1";
    loop {
        rest = rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let (word, after) = rest.split_at_checked(end).filter(|(word, _)| !word.is_empty())?;
        rest = after.trim_start();
        match word {
            "void" => {}
            "__cluster_dims__" | "__launch_bounds__" => {
                let (arguments, after) = rest.strip_prefix('(')?.split_once(')')?;
                if word == "__cluster_dims__" {
                    cluster = arguments;
                }
                rest = after;
            }
            name => return Some(Entry { name, cluster }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_are_found_behind_their_attributes() {
        let source = "extern \"C\" __global__ void __launch_bounds__(128, 2) one(int x) {}\n\
                      extern \"C\" __global__ void __cluster_dims__(2) __launch_bounds__(N)\ntwo(MAP m) {}";
        let expected = [Entry { name: "one", cluster: "1" }, Entry { name: "two", cluster: "2" }];
        assert_eq!(entries(source), expected);
    }

    #[test]
    fn dynamic_shared_memory_is_the_emulators() {
        let text = for_host("    extern __shared__ float kept[];\nint x;");
        assert_eq!(text, "static float* const kept = (float*)emulator::shared[0];\nint x;");
    }
}
