//! What generated code is to the runtime: a [`Stage`].
//!
//! A stage lists its parameters, states, tables and carries in a fixed order;
//! every slice of tensors in this module is in that order. The names are
//! paths (`layers.0.mixer.q`), unique within one list.

use std::any::Any;

pub use lightc_numerics::draw::Law as Init;
pub use lightc_numerics::int8::Format;

use crate::cuda::Module;
use crate::error::Result;
use crate::footprint::Footprint;
use crate::trainer::{Batch, StepReport, TrainState};
use crate::{Kind, Tensor};

/// The kind of a tensor, relative to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The run's activation kind: f32 on the CPU, bf16 on a GPU, f64 in the gradient tests.
    Act,
    /// At least f32, whatever the activation kind.
    F32,
    /// 8-bit codes, whatever the activation kind.
    Code,
    /// f32, whatever the activation kind.
    Scale,
}

impl Precision {
    /// The libtorch kind when activations are kept as `act`.
    pub fn kind(self, act: Kind) -> Kind {
        match self {
            Precision::Act => act,
            Precision::F32 if act == Kind::Double => Kind::Double,
            Precision::F32 => Kind::Float,
            Precision::Code => Kind::Int8,
            Precision::Scale => Kind::Float,
        }
    }
}

/// Whether the optimizer moves a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// It has moments and is updated every step.
    Trained,
    /// It keeps its initial value, for the reason the source gives.
    Frozen(&'static str),
    /// It learns beside a quantized parameter, and is counted apart.
    Adapter,
    /// Codes of a quantized parameter, at `PATH.codes`; its scales follow.
    Codes(Format),
    /// One scale per row of the quantized parameter whose codes come before, at `PATH.scale`.
    Scale,
}

impl Storage {
    /// Whether the optimizer moves it.
    pub fn learns(&self) -> bool {
        matches!(self, Storage::Trained | Storage::Adapter)
    }
}

/// One parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamSpec {
    /// Path, unique among the parameters.
    pub path: &'static str,
    /// Size per axis, in storage order.
    pub shape: &'static [i64],
    /// Kind.
    pub precision: Precision,
    /// Start value.
    pub init: Init,
    /// Whether it trains.
    pub storage: Storage,
}

/// One state: a tensor that `update` statements change once per step, outside
/// the optimizer. Always at least f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StateSpec {
    /// Path, unique among the states.
    pub path: &'static str,
    /// Size per axis, in storage order.
    pub shape: &'static [i64],
    /// Value before the first step, the same everywhere.
    pub start: f64,
}

/// One constant table of whole numbers (i64) that the runtime computes before
/// the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSpec {
    /// Path, unique among the tables.
    pub path: &'static str,
    /// Size per axis, in storage order.
    pub shape: &'static [i64],
    /// `tokenizer.byte_codes` (`[v, p]`) or `tokenizer.byte_counts` (`[v]`);
    /// see [`crate::tokenizer`].
    pub source: &'static str,
}

/// One rank's share of a stage whose experts several ranks divide among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareSpec {
    /// How many ranks there are.
    pub ranks: u32,
    /// Paths of the parameters that the ranks divide. They have the others whole, and divide the masters
    /// and moments of those.
    pub divided: &'static [&'static str],
}

/// One tensor that a step hands to the next step of the same lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarrySpec {
    /// Name, unique among the carries.
    pub name: &'static str,
    /// Size per axis, in storage order; -1 stands for the batch.
    pub shape: &'static [i64],
}

/// What a forward or backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// One tensor per [`ParamSpec`], in its run kind.
    pub params: &'a [Tensor],
    /// One tensor per [`StateSpec`].
    pub states: &'a [Tensor],
    /// One tensor per [`TableSpec`].
    pub tables: &'a [Tensor],
    /// Token ids, i64 `[b, u]`.
    pub tokens: &'a Tensor,
    /// Activation kind `[b]`: 1 where the lane goes on from its previous
    /// sequence, 0 where it starts anew and must not read the carries.
    pub continues: &'a Tensor,
    /// One tensor per [`CarrySpec`].
    pub carries: &'a [Tensor],
}

/// What a forward pass gives.
pub struct Outputs {
    /// Named scalars. `loss` is what backward differentiates; `ntp` is the mean
    /// next-token loss in nats; `mtp`, where present, is the loss two ahead.
    pub values: Vec<(&'static str, Tensor)>,
    /// The next value of every carry.
    pub carries: Vec<Tensor>,
    /// The next value of every state.
    pub states: Vec<Tensor>,
    /// What backward needs; only the stage knows its type.
    pub saved: Box<dyn Any>,
}

/// A compiled stage.
///
/// # Invariants
/// `forward` and `backward` are functions of their inputs alone: with the same
/// bits and the same number of threads they give the same bits.
pub trait Stage {
    /// The stage's name in the source.
    fn name(&self) -> &'static str;
    /// Digest of the sources the stage was generated from.
    fn source_hash(&self) -> &'static str;
    /// The integrator of each stack that is not plain: path, and how the source writes it.
    fn integrators(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
    /// The parameters, in order.
    fn params(&self) -> &'static [ParamSpec];
    /// The states, in order.
    fn states(&self) -> &'static [StateSpec];
    /// The tables, in order.
    fn tables(&self) -> &'static [TableSpec];
    /// The carries, in order.
    fn carries(&self) -> &'static [CarrySpec];
    /// The number of token ids.
    fn vocab(&self) -> i64;
    /// One rank's share, where the code is that and not the whole stage.
    fn share(&self) -> Option<ShareSpec> {
        None
    }
    /// What a step takes; nothing for code that was generated without the counts.
    fn footprint(&self) -> Option<&'static Footprint> {
        None
    }
    /// Row kernels that were generated for a GPU; nothing for other targets.
    fn kernels(&self) -> Option<&'static Module> {
        None
    }
    /// The losses and what backward needs.
    fn forward(&self, inputs: &Inputs<'_>) -> Result<Outputs>;
    /// Gradient of `loss` for every parameter, in the order of
    /// [`Stage::params`]; `None` for frozen ones.
    fn backward(&self, inputs: &Inputs<'_>, saved: Box<dyn Any>) -> Result<Vec<Option<Tensor>>>;
    /// One whole step of one micro-batch, written out by the generated crate: forward, backward,
    /// clip, optimizer, states and carries. See [`crate::trainer`], which says when a run takes it.
    fn train_step(&self, train: &mut TrainState, batch: &Batch) -> Result<StepReport>;
}
