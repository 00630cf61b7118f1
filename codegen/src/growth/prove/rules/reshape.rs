//! Split, merge and rename.

use super::super::facts::outer;
use super::super::graph::{Tree, View};
use super::super::term::{Head, Ty};
use super::{Found, Rule, node};
use egg::Id;
use lightc_dsl::model::Axis;

pub(super) const CANCEL: Rule = Rule {
    name: "reshape-cancel",
    why: "splitting what was merged from the same axes gives it back, and so the other way",
    find: |view, head, children, found| {
        let [of] = children else { return };
        for (inner, operands) in view.nodes(*of) {
            let [x] = operands else { continue };
            let right = match (head, inner) {
                (Head::Split { axis, into }, Head::Merge { axes, into: merged }) => {
                    let Some(ty) = view.ty(*x) else { continue };
                    let sizes = axes.iter().map(|name| ty.axes.get(name));
                    let same = axis == merged && sizes.eq(into.iter().map(|part| Some(&part.size)));
                    same.then(|| renamed(*x, ty, axes, into)).flatten()
                }
                (Head::Merge { axes, into: merged }, Head::Split { axis, into }) => {
                    let same = axis == merged && axes.iter().eq(into.iter().map(|part| &part.name));
                    same.then_some(Tree::Var(*x))
                }
                _ => None,
            };
            if let Some(right) = right {
                found.push((Tree::one(head.clone(), node(inner, operands, &[])), right));
            }
        }
    },
};

/// A term with the axes of a split in place of those that were merged; `None` if a new name is
/// taken.
fn renamed(x: Id, ty: &Ty, axes: &[String], into: &[Axis]) -> Option<Tree> {
    let mut tree = Tree::Var(x);
    for (from, part) in axes.iter().zip(into) {
        if *from == part.name {
            continue;
        }
        if ty.has(&part.name) {
            return None;
        }
        let head = Head::Rename { from: from.clone(), to: part.name.clone() };
        tree = Tree::one(head, tree);
    }
    Some(tree)
}

pub(super) const RESHAPE_RENAME: Rule = Rule {
    name: "reshape-rename",
    why: "a part of a split can have its new name at once, and a part can be merged under its old one",
    find: |view, head, children, found| {
        let [of] = children else { return };
        for (inner, operands) in view.nodes(*of) {
            let [x] = operands else { continue };
            let direct = match (head, inner) {
                (Head::Rename { from, to }, Head::Split { axis, into })
                    if into.iter().any(|part| part.name == *from) =>
                {
                    let mut into = into.clone();
                    for part in into.iter_mut().filter(|part| part.name == *from) {
                        part.name.clone_from(to);
                    }
                    Some(Head::Split { axis: axis.clone(), into })
                }
                (Head::Merge { axes, into }, Head::Rename { from, to }) if axes.contains(to) => {
                    let mut axes = axes.clone();
                    for part in axes.iter_mut().filter(|name| *name == to) {
                        part.clone_from(from);
                    }
                    Some(Head::Merge { axes, into: into.clone() })
                }
                _ => None,
            };
            if let Some(direct) = direct {
                let left = Tree::one(head.clone(), node(inner, operands, &[]));
                found.push((left, Tree::one(direct, Tree::Var(*x))));
            }
        }
    },
};

pub(super) const MERGE_OUT: Rule = Rule {
    name: "merge-out",
    why: "an op that works on each position of an axis by itself can act before axes are merged \
          to that one, its other operands split along it",
    find: |view, head, children, found| {
        if matches!(head, Head::Split { .. } | Head::Merge { .. } | Head::Concat(_)) {
            return;
        }
        let types: Option<Vec<&Ty>> = children.iter().map(|child| view.ty(*child)).collect();
        let Some(types) = types else { return };
        for child in children {
            for (merge, operands) in view.nodes(*child) {
                if let (Head::Merge { axes, into }, [x]) = (merge, operands)
                    && outer(head, into, &types)
                    && let Some(ty) = view.ty(*x)
                {
                    let part = |name: &String| {
                        let size = ty.axes.get(name)?.clone();
                        Some(Axis { name: name.clone(), size })
                    };
                    let parts: Option<Vec<Axis>> = axes.iter().map(part).collect();
                    if let Some(parts) = parts {
                        pull(view, head, children, into, &parts, found);
                    }
                }
            }
        }
    },
};

/// The equation that does `head` on `parts` and then merges them to `axis`.
fn pull(
    view: &View<'_>,
    head: &Head,
    children: &[Id],
    axis: &str,
    parts: &[Axis],
    found: &mut Found,
) {
    let mut written: Vec<(usize, Tree)> = Vec::new();
    let mut inner: Vec<Tree> = Vec::new();
    for (index, child) in children.iter().enumerate() {
        let Some(ty) = view.ty(*child) else { return };
        if parts.iter().any(|part| ty.has(&part.name)) {
            return;
        }
        if !ty.has(axis) {
            inner.push(Tree::Var(*child));
            continue;
        }
        let merged = view.nodes(*child).find_map(|(merge, operands)| match (merge, operands) {
            (Head::Merge { axes, into }, [x])
                if into == axis
                    && axes.iter().eq(parts.iter().map(|part| &part.name))
                    && parts.iter().all(|part| {
                        view.ty(*x).and_then(|ty| ty.axes.get(&part.name)) == Some(&part.size)
                    }) =>
            {
                Some((node(merge, operands, &[]), *x))
            }
            _ => None,
        });
        match merged {
            Some((tree, x)) => {
                written.push((index, tree));
                inner.push(Tree::Var(x));
            }
            None => {
                let split = Head::Split { axis: axis.to_owned(), into: parts.to_vec() };
                inner.push(Tree::one(split, Tree::Var(*child)));
            }
        }
    }
    let refs: Vec<(usize, &Tree)> = written.iter().map(|(index, tree)| (*index, tree)).collect();
    let merge = Head::Merge {
        axes: parts.iter().map(|part| part.name.clone()).collect(),
        into: axis.to_owned(),
    };
    let result = Tree::Node(head.clone(), inner);
    found.push((node(head, children, &refs), Tree::one(merge, result)));
}

pub(super) const SPLIT_IN: Rule = Rule {
    name: "split-in",
    why: "splitting the result of an op that works on each position of the axis by itself splits \
          its operands",
    find: |view, head, children, found| {
        let (Head::Split { axis, into }, [of]) = (head, children) else { return };
        for (inner, operands) in view.nodes(*of) {
            let types: Option<Vec<&Ty>> = operands.iter().map(|child| view.ty(*child)).collect();
            let Some(types) = types else { continue };
            let pointwise =
                inner.is_pointwise() || matches!(inner, Head::Sum(_) | Head::Rename { .. });
            if !pointwise || !outer(inner, axis, &types) || operands.is_empty() {
                continue;
            }
            // An operand or a summed axis with the name of a part would be taken for it.
            let taken = types
                .iter()
                .any(|ty| into.iter().any(|part| part.name != *axis && ty.has(&part.name)));
            if taken || !types.iter().any(|ty| ty.has(axis)) {
                continue;
            }
            let split = |(child, ty): (&Id, &&Ty)| match ty.has(axis) {
                true => Tree::one(head.clone(), Tree::Var(*child)),
                false => Tree::Var(*child),
            };
            let right = operands.iter().zip(&types).map(split).collect();
            let left = Tree::one(head.clone(), node(inner, operands, &[]));
            found.push((left, Tree::Node(inner.clone(), right)));
        }
    },
};

pub(super) const RENAME_RENAME: Rule = Rule {
    name: "rename-rename",
    why: "a -> b -> c is a -> c, and a -> b -> a is nothing",
    find: |view, head, children, found| {
        let (Head::Rename { from, to }, [of]) = (head, children) else { return };
        for (inner, operands) in view.nodes(*of) {
            let (Head::Rename { from: first, to: second }, [x]) = (inner, operands) else {
                continue;
            };
            if second != from {
                continue;
            }
            let left = Tree::one(head.clone(), node(inner, operands, &[]));
            let right = match first == to {
                true => Tree::Var(*x),
                false => {
                    let direct = Head::Rename { from: first.clone(), to: to.clone() };
                    Tree::one(direct, Tree::Var(*x))
                }
            };
            found.push((left, right));
        }
    },
};

pub(super) const RENAME_OUT: Rule = Rule {
    name: "rename-out",
    why: "an op that works on each position of an axis by itself can act before that axis is renamed \
          in all operands that have it",
    find: |view, head, children, found| {
        if !matches!(head, Head::Add | Head::Mul | Head::Op { .. }) {
            return;
        }
        let types: Option<Vec<&Ty>> = children.iter().map(|child| view.ty(*child)).collect();
        let Some(types) = types else { return };
        for child in children {
            for (rename, _) in view.nodes(*child) {
                let Head::Rename { from, to } = rename else { continue };
                if !outer(head, to, &types) || !outer(head, from, &types) {
                    continue;
                }
                let mut written: Vec<(usize, Tree)> = Vec::new();
                let mut inner: Vec<Tree> = Vec::new();
                for (index, other) in children.iter().enumerate() {
                    let Some(ty) = view.ty(*other) else { return };
                    if !ty.has(to) && !ty.has(from) {
                        inner.push(Tree::Var(*other));
                        continue;
                    }
                    let same = view.nodes(*other).find(|(known, _)| *known == rename);
                    let Some((_, [x])) = same else { break };
                    written.push((index, Tree::one(rename.clone(), Tree::Var(*x))));
                    inner.push(Tree::Var(*x));
                }
                if inner.len() == children.len() {
                    let refs: Vec<(usize, &Tree)> = written.iter().map(|(i, t)| (*i, t)).collect();
                    let right = Tree::one(rename.clone(), Tree::Node(head.clone(), inner));
                    found.push((node(head, children, &refs), right));
                }
            }
        }
    },
};

pub(super) const SUM_RENAME: Rule = Rule {
    name: "sum-rename",
    why: "the name of an axis that is summed does not matter",
    find: |view, head, children, found| {
        let (Head::Sum(over), [of]) = (head, children) else { return };
        for (inner, operands) in view.nodes(*of) {
            let (Head::Rename { from, to }, [x]) = (inner, operands) else { continue };
            if !over.contains(to) {
                // A sum over another axis can act before.
                let right = Tree::one(inner.clone(), Tree::one(head.clone(), Tree::Var(*x)));
                if !over.contains(from) {
                    found.push((Tree::one(head.clone(), node(inner, operands, &[])), right));
                }
                continue;
            }
            let mut axes = over.clone();
            axes.remove(to);
            axes.insert(from.clone());
            let left = Tree::one(head.clone(), node(inner, operands, &[]));
            found.push((left, Tree::one(Head::Sum(axes), Tree::Var(*x))));
        }
    },
};
