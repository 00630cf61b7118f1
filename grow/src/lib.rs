//! x
pub mod error;
mod eval;
pub mod node;
mod number;
mod region;
pub use error::{Error, Result};
