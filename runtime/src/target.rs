//! What a program runs on, and what follows from that.

use crate::error::Result;
use crate::{Device, Kind, cuda};

/// The GPU that a run uses.
pub const GPU: usize = 0;

/// What the code of a stage was generated for. It decides the device and the activation kind, and
/// nothing else in the runtime does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// libtorch on the CPU, in f32.
    #[default]
    Cpu,
    /// One NVIDIA GPU of compute capability 9.0, with activations in bf16; masters, moments and
    /// states are f32.
    Sm90a,
}

impl Target {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Target::Cpu => "cpu",
            Target::Sm90a => "sm_90a",
        }
    }

    /// The kind of activations, and of the working copies of parameters.
    pub fn act(self) -> Kind {
        match self {
            Target::Cpu => Kind::Float,
            Target::Sm90a => Kind::BFloat16,
        }
    }

    /// The device, ready for libtorch and kernels. A program asks for it before it reads anything.
    ///
    /// # Errors
    /// There is no driver, no GPU, one of another architecture, or a libtorch without CUDA.
    pub fn open(self) -> Result<Device> {
        match self {
            Target::Cpu => Ok(Device::Cpu),
            Target::Sm90a => cuda::device(GPU),
        }
    }
}
