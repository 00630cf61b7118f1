//! Checkpoints on disk.
//!
//! ```text
//! checkpoints/
//!   latest                    the name of the newest complete checkpoint
//!   step_00000100/
//!     manifest.json           sealed: what the run was, every file and tensor with its digest
//!     params.safetensors
//!     ...
//! ```
//!
//! # Invariants
//! * A folder named `step_*` is complete: it is made under a temporary name,
//!   every file in it is synced, and it is renamed as a whole.
//! * `latest` is replaced the same way, after the folder that it names.
//! * Reading checks every byte before it gives out any: sizes, headers, the
//!   digest of each tensor and of each file, and that no float is NaN or
//!   infinite.
//!
//! This crate links no tensor library, so that `lightc hash` does not either.

pub mod durable;
pub mod error;
pub mod format;
pub mod hash;
pub mod read;
pub mod sealed;
pub mod store;
pub mod stream;

pub use error::{Error, Result};
pub use format::{FileEntry, Grown, Head, Manifest, TensorEntry};
pub use hash::{HashReport, hash};
pub use read::{Checkpoint, Expected, ExpectedTensor, TensorRef};
pub use safetensors::Dtype;
pub use store::{FileContents, Store, TensorData, resolve};
pub use stream::{Piecewise, Streamed, Wanted};
