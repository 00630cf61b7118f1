//! Syntax of growth maps: `grow name(formals): from -> to { clauses }`.

use super::{BinaryOp, Expr, Formal, Ident, Text};
use crate::source::Span;
use serde::Serialize;

/// A map between two stages, or between two blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grow {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// Sizes and numbers that a map between blocks is given.
    pub formals: Vec<Formal>,
    /// The name of a stage, or a block with its arguments.
    pub from: Expr,
    /// What comes out, likewise.
    pub to: Expr,
    /// In source order.
    pub clauses: Vec<Clause>,
    /// The whole item.
    pub span: Span,
}

/// A line of a map, with its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clause {
    /// What it says.
    pub kind: ClauseKind,
    /// The whole line.
    pub span: Span,
}

/// What a line of a map says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ClauseKind {
    /// `preserves exactly`
    Exactly,
    /// `preserves within 1e-3`
    Within(Expr),
    /// `changes "reason"`
    Changes(Text),
    /// `seed 42`
    Seed(Expr),
    /// `moments follow`, or `moments reset "reason"`
    Moments {
        /// The reason of a reset.
        reset: Option<Text>,
    },
    /// `setting layers.integrator "reason"`
    Setting {
        /// Which setting; may have wildcards.
        path: Path,
        /// Why it differs.
        reason: Text,
    },
    /// `rest = src`: everything that has no rule is copied from the same path.
    Rest,
    /// `drop src.path "reason"`
    Drop {
        /// Source tensors that go nowhere.
        path: Path,
        /// Why.
        reason: Text,
        /// What its index variables run over.
        loops: Vec<Loop>,
    },
    /// `given x = concat(src.x, zeros, over d)`: how an input of the target follows from the
    /// source's inputs.
    Given {
        /// The target's input.
        name: Ident,
        /// From the source's.
        value: RuleExpr,
    },
    /// `gives concat(src.result, zeros, over d)`: how an output of the target follows from the
    /// source's outputs.
    Gives {
        /// The target's output; absent for a single one without a name.
        name: Option<Ident>,
        /// From the source's.
        value: RuleExpr,
    },
    /// `layers[l].gate = subset(src.layers[l].gate, over f) for l in 0 .. 8`
    Rule {
        /// Which target tensors.
        target: Path,
        /// Where their values come from.
        value: RuleExpr,
        /// What the index variables run over.
        loops: Vec<Loop>,
    },
}

/// `layers[l].feed.*`: a pattern of tensor paths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Path {
    /// From the root down.
    pub segments: Vec<Segment>,
    /// The whole path.
    pub span: Span,
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Segment {
    /// `feed`
    Name(Ident),
    /// `layers[l + 1]`
    Index(Ident, Expr),
    /// `*`: any one name.
    Any,
    /// `**`: any number of names and layers.
    Deep,
}

/// `for l in 0 .. 8`, `for i, j in zip(0 .. 3, [0, 2, 1])`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loop {
    /// The index variables.
    pub variables: Vec<Ident>,
    /// One per variable; more than one are gone through together.
    pub lists: Vec<IndexList>,
    /// From `for` on.
    pub span: Span,
}

/// `0 .. 8`, or `[0 .. 4, 7, 0 .. 4]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexList {
    /// In order.
    pub items: Vec<IndexItem>,
    /// Whether it stands in brackets.
    pub bracketed: bool,
    /// Where.
    pub span: Span,
}

/// `7`, or `0 .. 4`, which ends before 4.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndexItem {
    /// The first index.
    pub start: Expr,
    /// One past the last; absent for one index.
    pub end: Option<Expr>,
}

/// Where values come from, with its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleExpr {
    /// What it is.
    pub kind: RuleExprKind,
    /// Where.
    pub span: Span,
}

/// What an expression of a map is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RuleExprKind {
    /// `src.layers[l].gate`; `src` alone has no segments.
    Source(Path),
    /// `0.5`; the text is kept.
    Number {
        /// Its value.
        value: f64,
        /// As written.
        text: String,
    },
    /// `zeros`, or a formal, or an index variable.
    Name(String),
    /// `-x`
    Negate(Box<RuleExpr>),
    /// `a + b` and the like.
    Binary(BinaryOp, Box<RuleExpr>, Box<RuleExpr>),
    /// `concat(a, b, over f)`, or a map between blocks that is applied.
    Call {
        /// What is called.
        callee: Ident,
        /// In source order.
        args: Vec<RuleArg>,
    },
    /// `[0, 2, 1]`: positions.
    Positions(IndexList),
}

/// One argument in an expression of a map.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RuleArg {
    /// `src.gate`
    Value(RuleExpr),
    /// `keep: 512`
    Named(Ident, RuleExpr),
    /// `key: "neurons"`
    Text(Ident, Text),
    /// `over f`
    Over(Ident, Span),
    /// `each e`
    Each(Ident, Span),
    /// `e -> g`, `e -> (g, m)`, `(g, m) -> e`
    Map {
        /// Axes before.
        from: Vec<Ident>,
        /// Axes after.
        to: Vec<Ident>,
        /// The whole argument.
        span: Span,
    },
    /// `f[0 .. 8]`
    Range {
        /// The axis that is cut.
        axis: Ident,
        /// First position.
        start: Expr,
        /// One past the last.
        end: Expr,
        /// The whole argument.
        span: Span,
    },
}
