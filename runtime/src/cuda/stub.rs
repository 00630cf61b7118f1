//! Stands in for the driver until it is bound.

use crate::Device;
use crate::error::{Error, Result};

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory_bytes: u64,
}

fn none<T>() -> Result<T> {
    Err(Error::Op { op: "cuda", detail: "no driver is bound".to_owned() })
}

/// A GPU for libtorch and for kernels.
pub fn device(_: usize) -> Result<Device> {
    none()
}

/// What the driver says of a GPU.
pub fn facts(_: usize) -> Result<Facts> {
    none()
}

/// Free and total bytes of a GPU's memory.
pub fn memory(_: usize) -> Result<(u64, u64)> {
    none()
}

/// Waits until a GPU has done all that it was given.
pub fn synchronize(_: usize) -> Result<()> {
    none()
}
