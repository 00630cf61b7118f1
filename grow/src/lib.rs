//! Executes growth maps on checkpoints that need not fit in memory.
//!
//! | module | does |
//! |---|---|
//! | [`plan`] | a map with every size bound: source tensors, and a rule per target tensor |
//! | [`node`] | rules that are evaluated |
//! | `compile` | makes nodes of `lightc_codegen::growth` rules, and rules of moments |
//! | `eval`, `region`, `number` | evaluate a box of a rule's elements from reads of the source |
//! | `layout` | files, shards, offsets |
//! | `execute` | verifies, writes, commits |
//! | `journal` | what is finished, so that an interrupted growth goes on |
//! | [`receipt`] | what was done |
//!
//! # Invariants
//! * The target folder has its name only when it is complete, synced and finite, and comes from a
//!   source of which every byte was verified. Nothing that has this name is ever replaced.
//! * The target's bytes are a function of the source's, the map and the version of lightc: not of
//!   the number of threads, nor of how often the process was killed.
//! * What is resident is a few blocks per thread, whatever the size of the checkpoint.
//! * A copied element keeps its bits; any other is computed in f64 and rounded once.

mod compile;
mod error;
mod eval;
mod execute;
mod journal;
mod layout;
pub mod node;
mod number;
pub mod plan;
pub mod receipt;
mod region;
pub mod synthetic;
#[cfg(test)]
mod testing;
mod words;

pub use error::{CODES, Error, Result};
pub use execute::{Options, Progress, Report, grow};
pub use plan::Plan;
pub use receipt::{Probe, Receipt};
pub use words::words;
