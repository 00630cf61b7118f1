//! Analyses over the differentiated module that end in diagnostics or tables.

mod flops;
mod interface;
mod liveness;
mod memory;
mod ranks;
mod storage;

pub use interface::{Carry, Interface, NTP, Role, VOCAB, interface};
pub use liveness::{cut_layer, dead_parameters, gradient_paths};

pub use flops::contraction_flops;
pub(crate) use memory::occupies;
pub use memory::{
    BATCH, Classes as MemoryClasses, Layout, Ledger, Live, SEQUENCE, Setup as MemorySetup, States,
    at_rest, live_for, memory, of_run as memory_of_run,
};
pub use ranks::rank_dependent_states;
pub use storage::{Classes, Count, ModuleRow, ParamRow, ParamTable, param_table};
