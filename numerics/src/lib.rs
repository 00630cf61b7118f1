//! Arithmetic whose every bit is fixed: counter-based draws, what the interpreter, the runtime
//! and the growth executor have to agree on to the last bit, and rules that compiler and runtime share.

pub mod attention;
pub mod draw;
pub mod fixed;
pub mod hadamard;
pub mod int8;
pub mod memory;
mod sphere;
