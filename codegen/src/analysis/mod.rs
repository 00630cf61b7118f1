//! Analyses over the differentiated module that end in diagnostics or tables.

mod interface;
mod liveness;
mod storage;

pub use interface::{Carry, Interface, NTP, Role, VOCAB, interface};
pub use liveness::{cut_layer, dead_parameters, gradient_paths};

pub use storage::{Classes, Count, ModuleRow, ParamRow, ParamTable, param_table};
