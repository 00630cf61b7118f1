//! CUDA sources of target `sm_90a`, and NVRTC, which compiles them on any machine.
//!
//! Sources are text in the program, so that a built program needs no files beside it. A source is
//! compiled as one unit; it includes headers of [`HEADERS`] by name and exports `extern "C"` entry
//! points. What a compilation gives is a cubin for `sm_90a` and what each entry point takes of a
//! multiprocessor ([`Resources`]), read from the report of ptxas. No GPU is needed for any of it.
//!
//! `unsafe` stands in `nvrtc` alone: calls of a C library.

mod emulator;
mod error;
mod log;
mod nvrtc;
mod sources;

pub use emulator::HostCompiler;
pub use error::{Error, Failure};
pub use log::Resources;
pub use nvrtc::{Compiled, Nvrtc, OPTIONS};
pub use sources::*;
