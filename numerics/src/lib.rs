//! Arithmetic whose every bit is fixed: counter-based draws, and what the interpreter, the runtime
//! and the growth executor have to agree on to the last bit.

pub mod draw;
pub mod fixed;
pub mod hadamard;
pub mod int8;
mod sphere;
