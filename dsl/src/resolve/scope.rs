//! What a name means at a place.
//!
//! A stage, each instance and each layer of a stack has a scope. A block's scope holds its
//! formals and axes and nothing of the scope around it: what a block uses, its head says.

use super::BlockDef;
use crate::ast::{Arg, Binding, FormalKind};
use crate::integrator::Bootstrap;
use crate::size::Size;
use crate::source::Span;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A scope of one resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ScopeId(pub(super) usize);

/// Where an axis was first introduced. Two names with one origin are one axis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(pub(super) ScopeId, pub(super) String);

/// What an axis formal is bound to.
#[derive(Clone, Debug)]
pub(super) struct AxisValue {
    pub(super) origin: Origin,
    pub(super) size: Size,
    /// The block scope and the name under which the argument spelled it. With it, an argument
    /// `a: e` means the parent's `e` even where another name has the same origin.
    pub(super) spelled: Option<(ScopeId, String)>,
}

/// A block with arguments, not yet instantiated. Its arguments, and the formals without one,
/// are looked up in the scope where it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closure<'p> {
    pub(super) block: &'p BlockDef,
    pub(super) args: &'p [Arg],
    pub(super) scope: ScopeId,
    pub(super) span: Span,
}

/// One number of a list, or `none`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) value: Option<f64>,
    pub(super) span: Span,
}

/// One entry for all layers of a stack, or one for each.
#[derive(Clone, Debug)]
pub(super) enum PerLayer {
    All(Entry),
    Each(Rc<Vec<Entry>>, Span),
}

/// An integrator before the number of layers is known.
#[derive(Clone, Debug)]
pub(super) enum IntegratorValue {
    Plain,
    Midpoint { h: f64, a: PerLayer, gates: PerLayer, bootstrap: Bootstrap, fraction_bits: u32 },
}

/// What a formal or block-level axis stands for.
#[derive(Clone, Debug)]
pub(super) enum Bound<'p> {
    Axis(AxisValue),
    Number(f64),
    Block(Closure<'p>),
    Blocks(Rc<Vec<Closure<'p>>>),
    Numbers(Rc<Vec<Entry>>),
    Integrator(Rc<IntegratorValue>),
    /// Its value is in error, and that is reported.
    Broken,
}

impl Bound<'_> {
    pub(super) fn kind(&self) -> Option<FormalKind> {
        match self {
            Bound::Axis(_) => Some(FormalKind::Axis),
            Bound::Number(_) => Some(FormalKind::Number),
            Bound::Block(_) => Some(FormalKind::Block),
            Bound::Blocks(_) => Some(FormalKind::Blocks),
            Bound::Numbers(_) => Some(FormalKind::Numbers),
            Bound::Integrator(_) => Some(FormalKind::Integrator),
            Bound::Broken => None,
        }
    }
}

/// A scope.
#[derive(Debug)]
pub(super) enum Scope<'p> {
    Stage(StageScope<'p>),
    Block(BTreeMap<&'p str, Bound<'p>>),
    /// `for name in list`, over the block's scope.
    Item {
        parent: ScopeId,
        name: &'p str,
        value: Closure<'p>,
    },
    /// Around a block that stands alone: every axis exists.
    Free,
}

/// The bindings of a stage and what is known of their values. A value is computed at most once:
/// bindings that use each other twice would take exponential time otherwise.
#[derive(Debug, Default)]
pub(super) struct StageScope<'p> {
    pub(super) bindings: BTreeMap<&'p str, &'p Binding>,
    /// On a cycle, and reported.
    pub(super) broken: std::collections::BTreeSet<&'p str>,
    pub(super) sizes: BTreeMap<&'p str, Option<Size>>,
    pub(super) numbers: BTreeMap<&'p str, Option<f64>>,
    pub(super) blocks: BTreeMap<&'p str, Option<Closure<'p>>>,
    pub(super) lists: BTreeMap<&'p str, Option<Rc<Vec<Closure<'p>>>>>,
    pub(super) number_lists: BTreeMap<&'p str, Option<Rc<Vec<Entry>>>>,
    pub(super) integrators: BTreeMap<&'p str, Option<Rc<IntegratorValue>>>,
}

/// What [`super::eval::Resolver::lookup`] finds.
#[derive(Clone, Debug)]
pub(super) enum Found<'p> {
    Bound(Bound<'p>),
    Binding(ScopeId, &'p Binding),
}
