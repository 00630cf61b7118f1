//! Syntax of `.llm`, as written: nothing is resolved, every node has its place.

mod grow;

pub use grow::{
    Clause, ClauseKind, Grow, IndexItem, IndexList, Loop, Path, RuleArg, RuleExpr, RuleExprKind,
    Segment,
};

use crate::source::Span;
use serde::Serialize;

/// A name with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ident {
    /// The name.
    pub name: String,
    /// Where.
    pub span: Span,
}

/// A string literal, without its quotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    /// What is between the quotes.
    pub value: String,
    /// Where, quotes included.
    pub span: Span,
}

/// One source file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct File {
    /// Imports and definitions in source order.
    pub items: Vec<Item>,
}

/// A top-level item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Item {
    /// `import "../std/norm.llm"`
    Import(Text),
    /// `block Name(formals) { ... }`
    Block(Block),
    /// `stage name extends other { ... }`
    Stage(Stage),
    /// `grow name: from -> to { ... }`
    Grow(Grow),
}

/// `block Name(formals) { members }`: tensor equations over named axes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Block {
    /// Lines of the `///` comment, joined by newlines, without the slashes.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// What an instance must give.
    pub formals: Vec<Formal>,
    /// Declarations and the forward, in source order.
    pub members: Vec<Member>,
    /// The whole item.
    pub span: Span,
}

/// What kind of value a formal takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum FormalKind {
    /// `d`: an axis, that is a name with a size.
    Axis,
    /// `eps: number`
    Number,
    /// `inner: block`
    Block,
    /// `motif: blocks`
    Blocks,
    /// `pace: numbers`
    Numbers,
    /// `how: integrator`
    Integrator,
}

/// One formal of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Formal {
    /// Its name.
    pub name: Ident,
    /// What it takes.
    pub kind: FormalKind,
    /// `= expr`: used where no argument is given. A formal without a default is taken from the
    /// instantiating scope under its own name.
    pub default: Option<Expr>,
}

/// A member of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Member {
    /// `axis e = n * d`
    Axis(AxisDef),
    /// `param w[f, d]: f32 ~ normal(0.02) frozen "reason"`
    Param(Param),
    /// `require low * size(e) < 1, "reason"`
    Require(Require),
    /// `state ema[] = 1.0`
    State(State),
    /// `table codes[vocab, p] from "tokenizer.byte_codes"`
    Table(Table),
    /// `sub norm = RmsNorm(d: e) training_only`
    Sub(Sub),
    /// `stack layers = DecoderLayer(mixer: m) for m in motif`
    Stack(Stack),
    /// `forward(x[.., d]) -> [.., d] { ... }`
    Forward(Forward),
}

/// `axis e = n * d`, in a block or in a forward body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisDef {
    /// Its name.
    pub name: Ident,
    /// Its size.
    pub size: Expr,
}

/// Precision class of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// The stage's compute precision: bf16 on the GPU, f32 on the CPU, f64 under test.
    Act,
    /// Never below 32-bit floating point.
    F32,
    /// Whole numbers: token ids, table indexes. Negative means "none".
    Index,
    /// Truth values.
    Bool,
}

/// `param name[axes]: dtype ~ init storage active k of e`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Param {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// Its axes, in storage order.
    pub axes: Vec<Ident>,
    /// `: f32`; [`DType::Act`] where absent.
    pub dtype: Option<DType>,
    /// How it starts.
    pub init: Init,
    /// How it is kept; trained where absent.
    pub storage: Option<StorageClause>,
    /// `active top_k of e`
    pub active: Option<Active>,
    /// The whole member.
    pub span: Span,
}

/// What stands after the law of a parameter that is not simply trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum StorageClause {
    /// `frozen "reason"`
    Frozen(Text),
    /// `quantized int8`: the name of the format.
    Quantized(Ident),
    /// `adapter`
    Adapter(Span),
}

/// `active top_k of e`: of the positions of an axis, how many work for one token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// How many: a size expression.
    pub count: Expr,
    /// Of which axis of the parameter.
    pub of: Ident,
}

/// `require a < b and c <= d, "reason"`: checked for every instance whose sizes are bound.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Require {
    /// Comparisons of numbers; all have to hold.
    pub conditions: Vec<Expr>,
    /// Why.
    pub reason: Text,
    /// The whole member.
    pub span: Span,
}

/// `name(args)` after `~`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Init {
    /// `zeros`, `ones`, `constant`, `normal`, `uniform`, `log_uniform`
    pub name: Ident,
    /// Numbers; may use sizes, as in `normal(0.02 / sqrt(size(j)))`.
    pub args: Vec<Expr>,
}

/// `state name[axes] = number`: kept in checkpoints, changed only by `update`, no gradient.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct State {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// Its axes, in storage order.
    pub axes: Vec<Ident>,
    /// The value every element starts at.
    pub start: Expr,
    /// The whole member.
    pub span: Span,
}

/// `table name[axes] from "source"`: whole numbers that the runtime derives (from the tokenizer).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// Its axes, in storage order.
    pub axes: Vec<Ident>,
    /// What makes it, such as `tokenizer.byte_codes`.
    pub from: Text,
    /// The whole member.
    pub span: Span,
}

/// `sub name = block_expr training_only`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sub {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name: a segment of parameter paths.
    pub name: Ident,
    /// A call `Name(args)` or the name of a `block` formal.
    pub block: Expr,
    /// Absent from inference and from `without_mtp`-style counts.
    pub training_only: bool,
    /// The whole member.
    pub span: Span,
}

/// `stack name = block_expr for item in list integrate how`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stack {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name: parameter paths continue with the layer's index.
    pub name: Ident,
    /// One layer; may use `item`.
    pub block: Expr,
    /// Bound to each element in turn.
    pub item: Ident,
    /// A list of blocks.
    pub list: Expr,
    /// How the layers are joined; one after the other where absent.
    pub integrator: Option<Expr>,
    /// The whole member.
    pub span: Span,
}

/// Axes of a forward's input or output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxisPattern {
    /// Starts with `..`: any leading axes.
    pub open: bool,
    /// The named axes, in order.
    pub axes: Vec<Ident>,
    /// The brackets and what is in them.
    pub span: Span,
}

/// One input of a forward, or one named output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    /// Its name; `None` for a single unnamed output.
    pub name: Option<Ident>,
    /// Its axes.
    pub axes: AxisPattern,
    /// `: index`; [`DType::Act`] where absent.
    pub dtype: Option<DType>,
}

/// `forward(inputs) -> outputs { statements; result }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forward {
    /// `///` lines.
    pub doc: Option<String>,
    /// Inputs in order.
    pub inputs: Vec<Port>,
    /// One unnamed output, or named ones in parentheses.
    pub outputs: Vec<Port>,
    /// What is computed, in order.
    pub body: Vec<Stmt>,
    /// The last expressions: one per output.
    pub result: Vec<Expr>,
    /// The keyword `forward`.
    pub span: Span,
}

/// A statement of a forward body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Stmt {
    /// `axis s = t`
    Axis(AxisDef),
    /// `q[b, t, h, k] = expr` or `a, b = call(x)`
    Let {
        /// Names that are bound.
        targets: Vec<Target>,
        /// What to.
        value: Expr,
    },
    /// `update ema = expr`: the state's value after the step.
    Update {
        /// A declared state.
        name: Ident,
        /// Its next value.
        value: Expr,
    },
    /// `penalty balance = expr`: a number that is added to what training minimises.
    Penalty {
        /// What it is called.
        name: Ident,
        /// What it is.
        value: Expr,
    },
}

/// A name on the left of `=`, with its axes where they are stated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// The name.
    pub name: Ident,
    /// Stated axes: checked as a set, and they fix the storage order.
    pub axes: Option<AxisPattern>,
}

/// An expression with its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where.
    pub span: Span,
}

/// What an expression is. One grammar serves values, sizes, numbers and blocks; the place it
/// stands in says which.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ExprKind {
    /// `20`, `1e-6`; the text is kept so that formatting does not change it.
    Number {
        /// Its value.
        value: f64,
        /// As written.
        text: String,
    },
    /// A name.
    Name(String),
    /// `-x`
    Negate(Box<Expr>),
    /// `a + b` and the like.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `f(x, over d, base: 10000)`: builtin, sub, or block instantiation.
    Call {
        /// What is called.
        callee: Ident,
        /// In source order.
        args: Vec<Arg>,
    },
    /// `[a, b]`: a list of blocks or of numbers.
    List(Vec<Expr>),
}

/// Binary operators, loosest first: comparisons, sums, products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum BinaryOp {
    /// `+` (lists: concatenation)
    Add,
    /// `-`
    Sub,
    /// `*` (lists: repetition)
    Mul,
    /// `/`
    Div,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
}

/// One argument of a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Arg {
    /// `x`
    Value(Expr),
    /// `base: 10000`
    Named(Ident, Expr),
    /// `over d`, `over (s, d)`
    Over(Vec<Ident>, Span),
    /// `t -> s`, `e -> (h, k)`, `(h, k) -> e`
    Map {
        /// Axes before.
        from: Vec<Ident>,
        /// Axes after.
        to: Vec<Ident>,
        /// The whole argument.
        span: Span,
    },
    /// `u[0 .. t] -> t`
    Range {
        /// The axis that is cut.
        axis: Ident,
        /// First index: a size expression.
        start: Expr,
        /// One past the last.
        end: Expr,
        /// The axis of the result.
        to: Ident,
        /// The whole argument.
        span: Span,
    },
    /// `s[0]`
    At {
        /// The axis.
        axis: Ident,
        /// A size expression.
        index: Expr,
        /// The whole argument.
        span: Span,
    },
}

/// `stage name extends other { bindings }`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// `///` lines.
    pub doc: Option<String>,
    /// Its name.
    pub name: Ident,
    /// The stage whose bindings it starts from.
    pub extends: Option<Ident>,
    /// `name = expr`, in source order; they see each other whatever their order, and a binding
    /// replaces the parent's everywhere it is used.
    pub bindings: Vec<Binding>,
    /// `probe { d = 16 }`: sizes at which the claims of growth maps are tried. Inherited.
    pub probe: Option<Probe>,
    /// The whole item.
    pub span: Span,
}

/// `probe { bindings }` in a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// They replace the stage's own.
    pub bindings: Vec<Binding>,
    /// The word `probe`.
    pub span: Span,
}

/// `name = expr` in a stage: a size, a number, a block or a list of blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Binding {
    /// `///` lines.
    pub doc: Option<String>,
    /// The name.
    pub name: Ident,
    /// The value.
    pub value: Expr,
}
