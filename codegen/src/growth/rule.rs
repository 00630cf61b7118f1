//! Rules: where the values of one target tensor come from, as an expression over source tensors
//! along named axes. A rule has one meaning, [`eval`], which the executor's streamed
//! evaluation is tested against and which the prover reads as IR.

use crate::ir::Type;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use lightc_numerics::draw::Law;
use serde::Serialize;

/// An expression with its type: the axes of its value in storage order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// What comes out.
    pub ty: Type,
    /// How it is made.
    pub kind: RuleKind,
    /// Where it is written.
    #[serde(skip)]
    pub span: Option<Span>,
}

impl Rule {
    /// Adds the source tensors that it reads.
    pub(crate) fn sources(&self, found: &mut impl Extend<String>) {
        match &self.kind {
            RuleKind::Source { path } => found.extend([path.clone()]),
            RuleKind::Fill { .. } | RuleKind::Draw { .. } => {}
            RuleKind::Add { left, right } => {
                left.sources(found);
                right.sources(found);
            }
            RuleKind::Concat { parts, .. } => parts.iter().for_each(|part| part.sources(found)),
            RuleKind::Scale { of, .. }
            | RuleKind::Tile { of, .. }
            | RuleKind::Interleave { of, .. }
            | RuleKind::Repeat { of, .. }
            | RuleKind::Slice { of, .. }
            | RuleKind::Select { of, .. }
            | RuleKind::Subset { of, .. }
            | RuleKind::Redraw { of, .. }
            | RuleKind::Noise { of, .. }
            | RuleKind::Permute { of }
            | RuleKind::Rename { of, .. }
            | RuleKind::Split { of, .. }
            | RuleKind::Merge { of, .. }
            | RuleKind::Rotate { of, .. } => of.sources(found),
        }
    }
}

/// What a rule does. Positions count from 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "rule")]
pub enum RuleKind {
    /// A source tensor, whole.
    Source {
        /// Its path in the source stage.
        path: String,
    },
    /// One value everywhere.
    Fill {
        /// The value.
        value: f64,
    },
    /// Counter-based draws: element `i` (row-major in the result) of the stream `key` under the
    /// map's seed.
    Draw {
        /// The distribution.
        #[serde(serialize_with = "law_text")]
        law: Law,
        /// Name of the stream; the target's path where the source gives none.
        key: String,
    },
    /// `factor * of`.
    Scale {
        /// What is scaled.
        of: Box<Rule>,
        /// By how much.
        factor: Factor,
    },
    /// Elementwise sum of two rules with equal axes.
    Add {
        /// First term.
        left: Box<Rule>,
        /// Second term.
        right: Box<Rule>,
    },
    /// `parts` one after another along `axis`.
    Concat {
        /// In order.
        parts: Vec<Rule>,
        /// The axis, of the same name in every part and in the result.
        axis: String,
    },
    /// The whole of `axis` again and again: position `i` of the result is position `i mod n`.
    Tile {
        /// What is repeated.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
    },
    /// Every position of `axis` several times in a row: position `i` of the result is position
    /// `i / times`, where `times` is the ratio of the sizes.
    Interleave {
        /// What is repeated.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
    },
    /// A new axis of the result along which all is equal.
    Repeat {
        /// What is repeated.
        of: Box<Rule>,
        /// The new axis.
        axis: String,
    },
    /// Positions `start .. start + size` of `axis`, where `size` is that of the result.
    Slice {
        /// What is cut.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
        /// The first position.
        start: Size,
    },
    /// The stated positions of `axis`, in that order.
    Select {
        /// What is taken from.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
        /// Positions in `of`.
        positions: Vec<u64>,
    },
    /// A random subset of the positions of `axis`, without repetition: the first `size` positions
    /// of the permutation that stream `key` gives. If `each` is an axis of the result that `of`
    /// lacks, every position `e` of it has a subset of its own, of stream `key.e`.
    Subset {
        /// What is taken from.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
        /// One subset per position of this axis.
        each: Option<String>,
        /// Name of the stream: rules with the same key take the same positions.
        key: String,
    },
    /// `of`, with all but a random `keep` positions of `axis` drawn anew from the normal law that
    /// has mean and standard deviation of the entries it replaces. `each` as in `Subset`, here an
    /// axis that `of` has.
    Redraw {
        /// What is kept in part.
        of: Box<Rule>,
        /// Along which axis.
        axis: String,
        /// How many positions are kept.
        keep: Size,
        /// A choice per position of this axis.
        each: Option<String>,
        /// Name of the stream of the choice: rules with the same key keep the same positions.
        key: String,
        /// Name of the stream of the new values: of its own for every tensor.
        values: String,
    },
    /// `of` plus normal noise of `factor` times the standard deviation of `of`, from stream `key`.
    Noise {
        /// What is disturbed.
        of: Box<Rule>,
        /// In units of its standard deviation over all its elements.
        factor: f64,
        /// Name of the stream.
        key: String,
    },
    /// The same values with the axes in the result's order.
    Permute {
        /// What is reordered.
        of: Box<Rule>,
    },
    /// The same values, an axis under another name.
    Rename {
        /// What is renamed.
        of: Box<Rule>,
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// Axis `from` as several adjacent ones.
    Split {
        /// What is reshaped.
        of: Box<Rule>,
        /// The axis.
        from: String,
        /// Its parts, the last the fastest.
        to: Vec<String>,
    },
    /// Several adjacent axes as one.
    Merge {
        /// What is reshaped.
        of: Box<Rule>,
        /// The axes, the last the fastest.
        from: Vec<String>,
        /// The one.
        to: String,
    },
    /// Random signs, then the fast Hadamard transform over the square root of the size, along
    /// `axis`: what the op `hadamard` does to an activation.
    Rotate {
        /// What is rotated.
        of: Box<Rule>,
        /// The axis: a power of two.
        axis: String,
        /// Seed of the signs.
        seed: u64,
    },
}

/// `number * product of size^(half_powers / 2)`: a scale that may depend on symbolic sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Factor {
    /// The plain part.
    pub number: f64,
    /// Sizes with twice their power, ordered, none with power 0.
    pub sizes: Vec<(Size, i32)>,
}

fn law_text<S: serde::Serializer>(law: &Law, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{law:?}"))
}
