//! The runtime of compiled stages: ops on libtorch, optimizer, schedules,
//! checkpoints, data and the trainer.
//!
//! Generated code implements [`stage::Stage`] with the functions of [`ops`];
//! everything else here serves any stage. Randomness is a function of its key
//! ([`random`]), the learning rate a function of the step, a batch a function
//! of the step, so that a run is a function of its configuration and its
//! shards, and resuming needs no replay.

pub mod bind;
pub mod checkpoint;
pub mod config;
pub mod cuda;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod footprint;
pub mod metrics;
pub mod ops;
pub mod optimizer;
pub mod program;
pub mod progress;
pub mod random;
pub mod ranks;
pub mod reversible;
pub mod run;
pub mod schedule;
pub mod shards;
pub mod stage;
pub mod tables;
pub mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;
pub mod trainer;
pub mod watch;

pub use error::{Error, Result};
pub use footprint::{Footprint, Term};
pub use stage::{
    CarrySpec, Format, Init, Inputs, Outputs, ParamSpec, Precision, ShareSpec, Stage, StateSpec,
    Storage, TableSpec,
};
pub use target::Target;
pub use tch::{Device, Kind, Tensor};
pub use trainer::{Batch, StepReport, TrainState};
