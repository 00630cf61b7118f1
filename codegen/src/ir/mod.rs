//! The IR: SSA graphs over tensors with named axes.
//!
//! A [`Module`] is a stage. It has one [`Function`] per distinct instance of a block, callees
//! before callers, so the structure of the source (blocks, sub-blocks, layers) is still there:
//! eight equal layers are one function that is called eight times with different parameters.
//!
//! **Values** are tensors with *named* axes in a stated storage order. Ops refer to axes by
//! name; nothing broadcasts by position. Sizes are polynomials over size names
//! ([`lightc_dsl::size::Size`]): what a stage binds is a number, what stays open (`b`, `u`) is
//! bound by the inputs at run time. Inside a function every axis that an input brings along has
//! a size name of its own, so a function does not depend on how its caller computed a length.
//!
//! **Leaves.** Inputs, parameters, states and tables are nodes like any other (`input x`,
//! `param weight`), so that a pass needs one kind of value.
//!
//! **Effects.** There are none inside a graph. A state is read at its value before the step;
//! `updates` lists what it becomes after the step, which the runtime applies once, when the
//! step has succeeded. Random draws do not occur.
//!
//! **Derivatives.** [`crate::autodiff`] adds [`Backward`] functions: they read forward values
//! with the `saved` op. What is saved is exactly what some backward reads.
//!
//! **Text.** [`text`] prints a module and parses it back to an equal module (places in the
//! source excepted, which stand beside the data). Logs, snapshots and tests use that text.
//!
//! **Invariants** are listed in, and checked by, [`verify`].

pub mod graph;
pub mod paths;
pub mod prune;
pub mod text;
pub mod types;
pub mod verify;

pub use graph::{
    Backward, BackwardId, FuncId, Function, Module, Node, NodeId, Output, PENALTIES, Param, State,
    Sub, Table, Value, ValueId, has_penalties, promote,
};
pub use types::Type;
