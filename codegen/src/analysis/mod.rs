//! Analyses over the differentiated module that end in diagnostics or tables.

mod interface;
mod liveness;
mod memory;
mod ranks;
mod storage;

pub use interface::{Carry, Interface, NTP, Role, VOCAB, interface};
pub use liveness::{cut_layer, dead_parameters, gradient_paths};

pub use memory::{Classes as MemoryClasses, Layout, Ledger, Setup as MemorySetup, memory};
pub use ranks::rank_dependent_states;
pub use storage::{Classes, Count, ModuleRow, ParamRow, ParamTable, param_table};
