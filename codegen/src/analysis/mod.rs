//! Analyses over the differentiated module that end in diagnostics or tables.

mod liveness;
mod storage;

pub use liveness::{dead_parameters, gradient_paths};
pub use storage::{Count, ModuleRow, ParamRow, ParamTable, param_table};
