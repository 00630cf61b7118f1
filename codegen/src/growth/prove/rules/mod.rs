//! The rules: equations over the real numbers that hold for every input and all sizes of 1 or more.
//!
//! A rule looks at one node and gives equations whose left side matches it. It decides from heads
//! and types alone, and the two sides of what it gives have one type; both are checked when it is
//! applied. Each rule has a property test against the interpreter; a rule without one fails a test.

mod arithmetic;
mod concat;
mod reshape;
mod special;
mod sums;

use super::graph::{Tree, View};
use super::scale::Scale;
use super::term::{Axes, Head, Ty};
use egg::Id;

/// Equations that a rule gives for one node.
pub(crate) type Found = Vec<(Tree, Tree)>;

/// One rule.
pub(crate) struct Rule {
    /// Its name in proofs.
    pub(crate) name: &'static str,
    /// Why it holds.
    pub(crate) why: &'static str,
    /// Its equations at a node.
    pub(crate) find: fn(&View<'_>, &Head, &[Id], &mut Found),
}

/// All rules, in the order in which they are tried.
pub(crate) const RULES: &[Rule] = &[
    arithmetic::COMMUTE,
    arithmetic::ADD_ZERO,
    arithmetic::MUL_ONE,
    arithmetic::FILL_SPREAD,
    arithmetic::FILL_FOLD,
    arithmetic::FILL_JOIN,
    arithmetic::FILL_OUT,
    arithmetic::POWER,
    arithmetic::ADD_COMMON,
    arithmetic::ZERO,
    arithmetic::SCALE_OUT,
    arithmetic::REPEAT_OUT,
    sums::SUM_FACTOR,
    sums::SUM_SUM,
    sums::SUM_CONCAT,
    sums::SUM_MERGE,
    concat::CONCAT_OUT,
    concat::CONCAT_FLAT,
    concat::CONCAT_RENAME,
    concat::CONCAT_SLICE,
    concat::CONCAT_SPLIT,
    concat::CONCAT_MERGE,
    reshape::CANCEL,
    reshape::RESHAPE_RENAME,
    reshape::MERGE_OUT,
    reshape::SPLIT_IN,
    reshape::RENAME_RENAME,
    reshape::RENAME_OUT,
    reshape::SUM_RENAME,
    special::ATTENTION_CHANNELS,
    special::LOSS_CHANNELS,
    special::SILENT_STEP,
    special::EXPERT_CLONES,
];

/// The node as a tree, with some children written as trees.
fn node(head: &Head, children: &[Id], written: &[(usize, &Tree)]) -> Tree {
    let child = |(index, id): (usize, &Id)| {
        let tree = written.iter().find(|(at, _)| *at == index).map(|(_, tree)| (*tree).clone());
        tree.unwrap_or(Tree::Var(*id))
    };
    Tree::Node(head.clone(), children.iter().enumerate().map(child).collect())
}

/// A class that has a fill: its value and type.
pub(super) fn fill<'a>(view: &View<'a>, id: Id) -> Option<(&'a Scale, &'a Ty)> {
    view.nodes(id).find_map(|(head, _)| match head {
        Head::Fill { value, ty } => Some((value, ty)),
        _ => None,
    })
}

fn is_zero(view: &View<'_>, id: Id) -> bool {
    fill(view, id).is_some_and(|(value, _)| value.is_zero())
}

fn fill_tree(value: &Scale, ty: &Ty) -> Tree {
    Tree::leaf(Head::Fill { value: value.clone(), ty: ty.clone() })
}

fn zero_tree(ty: &Ty) -> Tree {
    fill_tree(&Scale::zero(), ty)
}

/// The ways in which a class is a fill times something that is not a fill. What is a fill itself
/// needs no looking into: every product with 0 is the same.
fn scaled<'a>(view: &View<'a>, id: Id) -> Vec<(&'a Scale, &'a Ty, Tree, Id)> {
    let mut found = Vec::new();
    if fill(view, id).is_some() {
        return found;
    }
    for (head, children) in view.nodes(id) {
        if let (Head::Mul, [factor, of]) = (head, children)
            && let Some((value, ty)) = fill(view, *factor)
            && fill(view, *of).is_none()
        {
            let tree = Tree::Node(Head::Mul, vec![fill_tree(value, ty), Tree::Var(*of)]);
            found.push((value, ty, tree, *of));
        }
    }
    found
}

fn without(axes: &Axes, other: &Axes) -> Axes {
    let only = axes.iter().filter(|(name, _)| !other.contains_key(*name));
    only.map(|(name, size)| (name.clone(), size.clone())).collect()
}
