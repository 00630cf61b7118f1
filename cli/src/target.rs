//! The option `--target`, and whether this machine has what a target runs on.

use crate::failure::{Failure, Fault};
use clap::ValueEnum;
use lightc_codegen::schedule;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What generated code runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// libtorch on the processor.
    Cpu,
    /// One NVIDIA GPU of compute capability 9.0 (H100, H200), with bf16 activations.
    #[value(name = "sm_90a")]
    Sm90a,
}

impl From<Target> for schedule::Target {
    fn from(target: Target) -> Self {
        match target {
            Target::Cpu => schedule::Target::Cpu,
            Target::Sm90a => schedule::Target::Sm90a,
        }
    }
}

impl Target {
    /// Says before a build of minutes that its program could not run here. The program itself asks
    /// the driver again, and knows more.
    pub(crate) fn is_here(self) -> Result<(), Failure> {
        match self {
            Target::Cpu => Ok(()),
            Target::Sm90a => gpu_of(&Machine::ask()),
        }
    }
}

/// What this machine says of its GPUs.
#[derive(Debug, Default)]
struct Machine {
    /// Whether the driver's device files are there.
    has_devices: bool,
    /// Name and compute capability of each GPU, as `nvidia-smi` prints them; `None` where it is not
    /// there or fails.
    listed: Option<String>,
}

impl Machine {
    fn ask() -> Self {
        let device = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let entries = fs::read_dir(Path::new("/dev")).into_iter().flatten();
        let has_devices = entries.filter_map(Result::ok).any(device);
        let query = ["--query-gpu=name,compute_cap", "--format=csv,noheader"];
        let output = Command::new("nvidia-smi").args(query).stderr(Stdio::null()).output().ok();
        let listed = output.filter(|output| output.status.success());
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        Machine { has_devices, listed }
    }
}

/// The first GPU, which a run takes, is one that the code runs on. Where the machine does not say,
/// that is left to the program.
fn gpu_of(machine: &Machine) -> Result<(), Failure> {
    const HELP: &str = "train with `--target cpu`, or on an H100 or H200; `lightc build --target sm_90a`\n\
                        needs no GPU";
    let first = machine.listed.as_deref().and_then(|text| text.lines().next());
    let Some((name, capability)) = first.and_then(|line| line.rsplit_once(", ")) else {
        if machine.has_devices {
            return Ok(());
        }
        let message = "target sm_90a needs an NVIDIA GPU, and this machine shows none";
        return Err(Fault::new("E1301", message).help(HELP).into());
    };
    if capability.trim() == "9.0" {
        return Ok(());
    }
    let message = format!(
        "the first GPU, {name}, has compute capability {}; target sm_90a needs 9.0",
        capability.trim()
    );
    Err(Fault::new("E1303", message).help(HELP).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(machine: &Machine) -> Option<&'static str> {
        match gpu_of(machine) {
            Ok(()) => None,
            Err(Failure::Fault(fault)) => Some(fault.code),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_machine_is_judged_by_its_first_gpu() {
        let listed = |text: &str| Machine { has_devices: true, listed: Some(text.to_owned()) };
        assert_eq!(code(&Machine::default()), Some("E1301"));
        assert_eq!(code(&listed("NVIDIA H200, 9.0\n")), None);
        assert_eq!(code(&listed("NVIDIA A100-SXM4-80GB, 8.0\nNVIDIA H200, 9.0\n")), Some("E1303"));
        // Not said here: the driver is asked by the program.
        assert_eq!(code(&Machine { has_devices: true, listed: None }), None);
        assert_eq!(code(&listed("")), None);
    }
}
