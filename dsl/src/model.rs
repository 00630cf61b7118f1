//! The checked model: names resolved, `extends` flattened, sizes bound or symbolic, and every
//! block instantiated. What is left for lowering is the axes of values inside forward bodies.
//!
//! Values of these types come only from [`crate::resolve`] and are free of the errors that it
//! reports.

use crate::ast;
pub use crate::integrator::{Bootstrap, Integrator, Midpoint, Step, gate_name};
use crate::size::Size;
use crate::source::Span;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An axis: a name and how long it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Axis {
    /// Its name in the scope where it stands.
    pub name: String,
    /// Its size.
    pub size: Size,
}

/// One instance of a block: the block with all its formals bound. Equal instances are shared,
/// so two layers of the same kind name the same instance and differ only in parameter path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct InstanceId(pub u32);

/// A stage with everything bound.
#[derive(Clone, Debug, Serialize)]
pub struct StageModel {
    /// Its name.
    pub name: String,
    /// Its `///` text.
    pub doc: Option<String>,
    /// Where its name stands.
    pub span: Span,
    /// The value of its binding `model`.
    pub root: InstanceId,
    /// Its bindings that are sizes.
    pub sizes: BTreeMap<String, Size>,
    /// All instances; children before parents.
    pub instances: Vec<Instance>,
}

impl StageModel {
    /// The instance of an id of this stage.
    #[allow(clippy::indexing_slicing)]
    pub fn instance(&self, id: InstanceId) -> &Instance {
        &self.instances[id.0 as usize]
    }
}

/// A block with its formals bound.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    /// The block's name.
    pub block: String,
    /// The block as written: its forward body is lowered from here.
    #[serde(skip)]
    pub ast: Arc<ast::Block>,
    /// Axis formals and block-level `axis` definitions.
    pub sizes: BTreeMap<String, Size>,
    /// Number formals.
    pub numbers: BTreeMap<String, f64>,
    /// Parameters, in declaration order.
    pub params: Vec<ParamDef>,
    /// States, in declaration order.
    pub states: Vec<StateDef>,
    /// Tables, in declaration order.
    pub tables: Vec<TableDef>,
    /// Sub-blocks and stacks, in declaration order.
    pub subs: Vec<SubDef>,
    /// Order of parameters and sub-blocks as declared: the canonical parameter order is this
    /// order, depth first.
    pub order: Vec<MemberRef>,
}

/// A parameter or sub-block, in declaration order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MemberRef {
    /// Index in [`Instance::params`].
    Param(usize),
    /// Index in [`Instance::subs`].
    Sub(usize),
}

/// How a parameter is kept and whether it learns. Exactly one per parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "class", content = "reason")]
pub enum Storage {
    /// Learns; has a gradient, moments and an fp32 master.
    Trained,
    /// Keeps its initial or loaded value, for the stated reason.
    Frozen(String),
    /// Keeps its initial or loaded value as 8-bit codes and one scale per row.
    Quantized(Format),
    /// Learns beside a quantized parameter; counted apart.
    Adapter,
}

impl Storage {
    /// Whether a gradient moves it.
    pub fn learns(&self) -> bool {
        matches!(self, Storage::Trained | Storage::Adapter)
    }
}

/// What a code of a quantized parameter stands for. A row is all positions of the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `code * scale`, codes from -127 to 127, `scale` the largest magnitude of the row over 127.
    Int8,
    /// `level[code] * scale`: 256 quantiles of a coordinate of a random direction, `scale` the
    /// length of the row.
    Quantile8,
}

impl Format {
    /// As it stands in the source.
    pub fn word(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::Quantile8 => "quantile8",
        }
    }

    /// The format of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Format::Int8, Format::Quantile8].into_iter().find(|format| format.word() == word)
    }
}

/// Of the positions of an axis of a parameter, how many work for one token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// How many.
    pub count: Size,
    /// Of which axis.
    pub of: String,
}

/// How a parameter starts. Numbers are final: sizes in them have been evaluated.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "law")]
pub enum InitLaw {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All the same.
    Constant {
        /// The value.
        value: f64,
    },
    /// Normal around 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform.
    Uniform {
        /// Lowest.
        low: f64,
        /// Highest.
        high: f64,
    },
    /// The logarithm of a uniform draw.
    LogUniform {
        /// Lowest, before the logarithm.
        low: f64,
        /// Highest, before the logarithm.
        high: f64,
    },
}

/// A declared parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParamDef {
    /// Last segment of its path.
    pub name: String,
    /// `///` text.
    pub doc: Option<String>,
    /// Storage order.
    pub axes: Vec<Axis>,
    /// Precision class.
    pub dtype: ast::DType,
    /// How it starts.
    pub init: InitLaw,
    /// How it is kept.
    pub storage: Storage,
    /// How much of it one token uses; all of it where absent.
    pub active: Option<Active>,
    /// Where it is declared.
    pub span: Span,
}

/// A declared state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StateDef {
    /// Last segment of its path.
    pub name: String,
    /// Storage order.
    pub axes: Vec<Axis>,
    /// The value every element starts at.
    pub start: f64,
    /// Where it is declared.
    pub span: Span,
}

/// A declared table of whole numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableDef {
    /// Last segment of its path.
    pub name: String,
    /// Storage order.
    pub axes: Vec<Axis>,
    /// What makes it.
    pub from: String,
    /// Where it is declared.
    pub span: Span,
}

/// One sub-block, or a stack of them.
#[derive(Clone, Debug, Serialize)]
pub struct SubDef {
    /// Path segment.
    pub name: String,
    /// `One` or the layers of a stack.
    pub kind: SubKind,
    /// How the layers of a stack are joined. The gates that it has are parameters of the instance
    /// that holds the stack, named by [`gate_name`].
    pub integrator: Integrator,
    /// Absent from inference.
    pub training_only: bool,
    /// Where it is declared.
    pub span: Span,
}

/// One instance or a stack of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum SubKind {
    /// `sub`
    One(Target),
    /// `stack`: layer `i` has path `name.i`.
    Stack(Vec<Target>),
}

/// An instance as its parent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Which instance.
    pub instance: InstanceId,
    /// Formal axis of the instance to the parent's axis, where the argument (or the captured
    /// name) is an axis of the parent. At a call, the parent's axis is renamed to the formal on
    /// the way in and back on the way out. An axis formal that got a number has no entry: its
    /// own name is used on both sides.
    pub axes: BTreeMap<String, String>,
}
