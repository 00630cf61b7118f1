//! Kernels of target `sm_90a` that generated code launches.
//!
//! A kernel stands beside the composition of libtorch calls that says what it computes, and every
//! use of it goes through [`either`]: one place decides which of the two runs, and can run both and
//! compare them. Kernels run on the stream that libtorch uses, so no copies and no waits lie between.

use crate::error::{Error, Result};
use crate::{Kind, Tensor};

/// CUDA C++ that is compiled as one unit. It may include the headers of `kernels/include`.
#[derive(Debug)]
pub struct Module {
    /// Name, for messages and for the cache.
    pub name: &'static str,
    /// The text.
    pub source: &'static str,
}

/// One entry point of a module.
#[derive(Debug)]
pub struct Kernel {
    /// Where it is.
    pub module: &'static Module,
    /// Its `extern "C"` name.
    pub entry: &'static str,
    /// What it computes and where that is written, for messages: `HyperConnection.y, std/mhc.llm:44`.
    pub origin: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// The address of a contiguous tensor's elements.
    Tensor(&'a Tensor),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `float`
    F32(f32),
}

/// Launches a kernel on libtorch's current stream.
///
/// # Errors
/// The kernel does not compile, a tensor is not contiguous or not on the GPU, or the driver refuses.
pub fn launch(kernel: &'static Kernel, grid: [u32; 3], args: &[Arg<'_>]) -> Result<()> {
    let _ = (grid, args);
    Err(Error::Op {
        op: "launch",
        detail: format!("kernel `{}`: no driver is bound", kernel.entry),
    })
}

/// A tensor whose elements a kernel is to write, on the device of `like`. Where kernels are checked,
/// its bytes are set so that an element that is not written is NaN.
///
/// # Errors
/// libtorch's.
pub fn empty(shape: &[i64], kind: Kind, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}

/// What gives results from inputs; the second argument has the activation kind and the device.
pub type Way<'a> = &'a dyn Fn(&[&Tensor], &Tensor) -> Result<Vec<Tensor>>;

/// Runs a kernel, or the composition that says what it computes.
///
/// The kernel runs where `like` is on a GPU of compute capability 9.0 and of kind bf16, unless the
/// process was asked to use the reference for it; see `Mode`.
///
/// # Errors
/// Those of what runs.
pub fn either(
    kernel: &'static Kernel,
    inputs: &[&Tensor],
    like: &Tensor,
    fused: Way<'_>,
    reference: Way<'_>,
) -> Result<Vec<Tensor>> {
    let _ = (kernel, fused);
    reference(inputs, like)
}
