//! Rules with every size bound: what is evaluated.

use lightc_numerics::draw::Law;
use lightc_numerics::hadamard::Hadamard;
use lightc_numerics::int8::Format;
use std::sync::{Arc, OnceLock};

/// A rule whose sizes are numbers and whose axes are positions.
#[derive(Debug, Clone)]
pub struct Node {
    /// Size per axis, in storage order.
    pub shape: Vec<usize>,
    /// How it is made.
    pub kind: Kind,
}

/// Mean and standard deviation of some elements of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Their mean.
    pub mean: f64,
    /// The root of the mean squared distance from it.
    pub std: f64,
}

/// Filled by the first who needs it.
pub type Lazy = Arc<OnceLock<Moments>>;

/// What a node does; see `lightc_codegen::growth::RuleKind`.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A tensor of the source: index in the plan's list.
    Source(usize),
    /// One value everywhere.
    Fill(f64),
    /// Draws of the stream `key`.
    Draw {
        /// The distribution.
        law: Law,
        /// The stream.
        key: String,
    },
    /// `factor * of`.
    Scale {
        /// What is scaled.
        of: Box<Node>,
        /// By how much.
        factor: f64,
    },
    /// Elementwise sum.
    Add(Box<Node>, Box<Node>),
    /// One after another along an axis.
    Concat {
        /// In order.
        parts: Vec<Node>,
        /// Along which axis.
        axis: usize,
    },
    /// The whole axis again and again.
    Tile {
        /// What is repeated.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
    },
    /// Every position of an axis several times in a row.
    Interleave {
        /// What is repeated.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
        /// How often.
        times: usize,
    },
    /// A new axis along which all is equal.
    Repeat {
        /// What is repeated; it lacks the axis.
        of: Box<Node>,
        /// The new axis.
        axis: usize,
    },
    /// Positions of an axis from `start` on.
    Slice {
        /// What is cut.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
        /// The first position.
        start: usize,
    },
    /// Stated positions of an axis.
    Pick {
        /// What is taken from.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
        /// Positions in `of`.
        positions: Vec<usize>,
    },
    /// Stated positions of an axis, other ones per position of a second axis that `of` lacks.
    PickEach {
        /// What is taken from.
        of: Box<Node>,
        /// Along which axis of the result.
        axis: usize,
        /// Per position of which axis of the result.
        each: usize,
        /// Positions in `of`, per position of `each`.
        positions: Vec<Vec<usize>>,
    },
    /// The axes in another order: axis `i` is `of`'s axis `order[i]`.
    Permute {
        /// What is reordered.
        of: Box<Node>,
        /// Axes of `of`.
        order: Vec<usize>,
    },
    /// `of` with one axis as several adjacent ones.
    Split {
        /// What is reshaped.
        of: Box<Node>,
        /// The axis of `of`, and the first of its parts in the result.
        axis: usize,
        /// How many parts.
        n_parts: usize,
    },
    /// `of` with several adjacent axes as one.
    Merge {
        /// What is reshaped.
        of: Box<Node>,
        /// The first of the axes of `of`, and the axis of the result.
        axis: usize,
        /// How many axes.
        n_parts: usize,
    },
    /// `of` where `keeps` says so, else something else.
    Keep {
        /// What is kept in part.
        of: Box<Node>,
        /// Which positions of which axis.
        keeps: Keeps,
        /// What takes the place of the rest.
        rest: Rest,
    },
    /// `of + factor * std(of) * normal`.
    Noise {
        /// What is disturbed.
        of: Box<Node>,
        /// In units of the standard deviation over all of `of`.
        factor: f64,
        /// The stream.
        key: String,
        /// Over all of `of`.
        moments: Lazy,
    },
    /// Signs, then the Hadamard transform over the root of its size, along an axis.
    Rotate {
        /// What is rotated.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
        /// Signs and transform.
        turn: Arc<Hadamard>,
    },
    /// 8-bit codes of rows along the last axis.
    Codes {
        /// Of what.
        of: Box<Node>,
        /// How a row is stored.
        format: Format,
    },
    /// The scale of each row along `of`'s last axis, which this lacks.
    Scales {
        /// Of what.
        of: Box<Node>,
        /// How a row is stored.
        format: Format,
    },
    /// What codes and scales stand for.
    Dequantize {
        /// The codes.
        codes: Box<Node>,
        /// The scales; they lack the last axis.
        scales: Box<Node>,
        /// How a row is stored.
        format: Format,
    },
    /// The mean along an axis at each of its positions: what a rotation makes of second moments.
    Mean {
        /// Of what.
        of: Box<Node>,
        /// Along which axis.
        axis: usize,
    },
}

/// Which positions of an axis are kept.
#[derive(Debug, Clone)]
pub struct Keeps {
    /// The axis.
    pub axis: usize,
    /// Per position of this axis, if each has a choice of its own.
    pub each: Option<usize>,
    /// One list, or one per position of `each`; per position of `axis` whether it is kept.
    pub kept: Arc<Vec<Vec<bool>>>,
}

/// What takes the place of what is not kept.
#[derive(Debug, Clone)]
pub enum Rest {
    /// 0.
    Zero,
    /// Normal draws with the moments of what they replace.
    Drawn {
        /// The stream.
        key: String,
        /// Of what is replaced.
        moments: Lazy,
    },
}

impl Node {
    /// A node of one value.
    pub fn fill(shape: &[usize], value: f64) -> Self {
        Node { shape: shape.to_vec(), kind: Kind::Fill(value) }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The nodes that it is made of.
    pub fn children(&self) -> Vec<&Node> {
        match &self.kind {
            Kind::Source(_) | Kind::Fill(_) | Kind::Draw { .. } => Vec::new(),
            Kind::Add(left, right) => vec![left, right],
            Kind::Dequantize { codes, scales, .. } => vec![codes, scales],
            Kind::Concat { parts, .. } => parts.iter().collect(),
            Kind::Scale { of, .. }
            | Kind::Tile { of, .. }
            | Kind::Interleave { of, .. }
            | Kind::Repeat { of, .. }
            | Kind::Slice { of, .. }
            | Kind::Pick { of, .. }
            | Kind::PickEach { of, .. }
            | Kind::Permute { of, .. }
            | Kind::Split { of, .. }
            | Kind::Merge { of, .. }
            | Kind::Keep { of, .. }
            | Kind::Noise { of, .. }
            | Kind::Rotate { of, .. }
            | Kind::Codes { of, .. }
            | Kind::Scales { of, .. }
            | Kind::Mean { of, .. } => vec![of],
        }
    }

    /// The source tensors in it, ascending, each once.
    pub fn sources(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut todo = vec![self];
        while let Some(node) = todo.pop() {
            if let Kind::Source(tensor) = node.kind {
                found.push(tensor);
            }
            todo.extend(node.children());
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
