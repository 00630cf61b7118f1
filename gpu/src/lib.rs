//! Checks kernels against their references on a GPU, and times them.
//!
//! A [`Case`] is one kernel or a family of them: it checks itself on fresh random inputs of awkward sizes
//! and times itself on one size of real use. What a check is stands in [`lightc_runtime::cuda::Mode`]:
//! outputs are poisoned, the kernel runs twice, and both are compared with the reference in f64. A case
//! whose check is red is not timed. New kernels join by a line in [`cases::all`].

pub mod bench;
pub mod cases;
pub mod check;
pub mod stages;

use lightc_runtime::{Device, Kind, Result, Stage, Tensor};

pub use bench::{Ceilings, Measured};
pub use check::Verdict;

/// A kernel, or a family of kernels of one file.
pub trait Case {
    /// Its name, for `--only` and for tables.
    fn name(&self) -> &'static str;

    /// The stages whose kernels it runs; `small`: at the sizes for a memory checker.
    fn stages(&self, small: bool) -> Vec<&'static dyn Stage> {
        let _ = small;
        Vec::new()
    }

    /// Compares with the reference.
    ///
    /// # Errors
    /// Something that no comparison could be made of: a refused launch, lack of memory.
    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>>;

    /// Times the kernels at a size of real use.
    ///
    /// # Errors
    /// As [`Case::check`].
    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>>;
}

/// The GPU that cases run on.
#[derive(Debug, Clone, Copy)]
pub struct Gpu {
    /// Its number.
    pub ordinal: usize,
    /// Whether the processor stands in for it ([`lightc_runtime::cuda::emulate`]).
    pub emulated: bool,
    /// Only sizes that a memory checker gets through.
    pub small: bool,
}

impl Gpu {
    /// The device as libtorch names it.
    pub fn device(&self) -> Device {
        if self.emulated { Device::Cpu } else { Device::Cuda(self.ordinal) }
    }

    /// Standard normal draws.
    ///
    /// # Errors
    /// libtorch's.
    pub fn normal(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_randn(shape, (Kind::Float, self.device()))?)
    }

    /// Standard normal draws, rounded to bf16.
    ///
    /// # Errors
    /// libtorch's.
    pub fn normal_bf16(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(self.normal(shape)?.f_to_kind(Kind::BFloat16)?)
    }

    /// Draws from 0 to 1.
    ///
    /// # Errors
    /// libtorch's.
    pub fn uniform(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_rand(shape, (Kind::Float, self.device()))?)
    }
}
