//! Concatenations.

use super::super::facts::outer;
use super::super::graph::{Tree, View};
use super::super::term::{Head, Ty, product};
use super::{Found, Rule, fill, fill_tree, node};
use egg::Id;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;

pub(super) const CONCAT_OUT: Rule = Rule {
    name: "concat-out",
    why: "an op that works on each position of an axis by itself acts on the parts of a \
          concatenation along that axis, all operands cut at the same places",
    find: |view, head, children, found| {
        if matches!(head, Head::Concat(_)) {
            return;
        }
        let types: Option<Vec<&Ty>> = children.iter().map(|child| view.ty(*child)).collect();
        let Some(types) = types else { return };
        for child in children {
            for (concat, parts) in view.nodes(*child) {
                let Head::Concat(axis) = concat else { continue };
                if outer(head, axis, &types) {
                    cut(view, head, children, axis, parts, found);
                }
            }
        }
    },
};

/// The equation that cuts every operand with `axis` as `parts` are cut.
fn cut(view: &View<'_>, head: &Head, children: &[Id], axis: &str, parts: &[Id], found: &mut Found) {
    let Some(sizes) = sizes(view, axis, parts) else { return };
    let mut written: Vec<(usize, Tree)> = Vec::new();
    let mut pieces: Vec<Vec<Tree>> = vec![Vec::new(); sizes.len()];
    for (index, child) in children.iter().enumerate() {
        let has = view.ty(*child).is_some_and(|ty| ty.has(axis));
        let Some((tree, of)) = (match has {
            true => cut_child(view, *child, axis, &sizes),
            false => Some((Tree::Var(*child), vec![Tree::Var(*child); sizes.len()])),
        }) else {
            return;
        };
        written.push((index, tree));
        for (piece, part) in pieces.iter_mut().zip(of) {
            piece.push(part);
        }
    }
    let refs: Vec<(usize, &Tree)> = written.iter().map(|(index, tree)| (*index, tree)).collect();
    let results = pieces.into_iter().map(|children| Tree::Node(head.clone(), children)).collect();
    found.push((node(head, children, &refs), Tree::Node(Head::Concat(axis.to_owned()), results)));
}

/// The sizes of parts along an axis.
fn sizes(view: &View<'_>, axis: &str, parts: &[Id]) -> Option<Vec<Size>> {
    parts.iter().map(|part| view.ty(*part)?.axes.get(axis).cloned()).collect()
}

/// A child as a concatenation with parts of these sizes, and the parts.
fn cut_child(view: &View<'_>, id: Id, axis: &str, wanted: &[Size]) -> Option<(Tree, Vec<Tree>)> {
    if let Some((value, ty)) = fill(view, id) {
        let part = |size: &Size| {
            let mut ty = ty.clone();
            ty.axes.insert(axis.to_owned(), size.clone());
            fill_tree(value, &ty)
        };
        return Some((fill_tree(value, ty), wanted.iter().map(part).collect()));
    }
    for (head, parts) in view.nodes(id) {
        if let Head::Concat(known) = head
            && known == axis
            && sizes(view, axis, parts)? == wanted
        {
            let trees = parts.iter().map(|part| Tree::Var(*part)).collect();
            return Some((node(head, parts, &[]), trees));
        }
    }
    None
}

pub(super) const CONCAT_FLAT: Rule = Rule {
    name: "concat-flat",
    why: "a concatenation within a concatenation along the same axis is one concatenation",
    find: |view, head, children, found| {
        let Head::Concat(axis) = head else { return };
        for (index, child) in children.iter().enumerate() {
            for (inner, parts) in view.nodes(*child) {
                if !matches!(inner, Head::Concat(known) if known == axis) || children.len() > 8 {
                    continue;
                }
                let written = node(inner, parts, &[]);
                let mut all: Vec<Tree> = Vec::new();
                for (at, other) in children.iter().enumerate() {
                    match at == index {
                        true => all.extend(parts.iter().map(|part| Tree::Var(*part))),
                        false => all.push(Tree::Var(*other)),
                    }
                }
                let left = node(head, children, &[(index, &written)]);
                found.push((left, Tree::Node(head.clone(), all)));
            }
        }
    },
};

pub(super) const CONCAT_RENAME: Rule = Rule {
    name: "concat-rename",
    why: "renaming the axis of a concatenation renames it in the parts",
    find: |view, head, children, found| {
        let (Head::Rename { from, to }, [of]) = (head, children) else { return };
        for (concat, parts) in view.nodes(*of) {
            if !matches!(concat, Head::Concat(axis) if axis == from) {
                continue;
            }
            let renamed =
                parts.iter().map(|part| Tree::one(head.clone(), Tree::Var(*part))).collect();
            let left = Tree::one(head.clone(), node(concat, parts, &[]));
            found.push((left, Tree::Node(Head::Concat(to.clone()), renamed)));
        }
    },
};

pub(super) const CONCAT_SLICE: Rule = Rule {
    name: "concat-slice",
    why: "a slice that is exactly one part of a concatenation is that part",
    find: |view, head, children, found| {
        let (Head::Slice { axis, start, len }, [of]) = (head, children) else { return };
        for (concat, parts) in view.nodes(*of) {
            if !matches!(concat, Head::Concat(along) if along == axis) {
                continue;
            }
            let Some(sizes) = sizes(view, axis, parts) else { continue };
            let mut offset = Size::default();
            for (part, size) in parts.iter().zip(sizes) {
                if offset == *start && size == *len {
                    let left = Tree::one(head.clone(), node(concat, parts, &[]));
                    found.push((left, Tree::Var(*part)));
                }
                let Some(next) = offset.checked_add(&size) else { break };
                offset = next;
            }
        }
    },
};

pub(super) const CONCAT_SPLIT: Rule = Rule {
    name: "concat-split",
    why: "splitting a concatenation whose parts are whole multiples of the inner axes splits the \
          parts",
    find: |view, head, children, found| {
        let (Head::Split { axis, into }, [of]) = (head, children) else { return };
        let Some((first, inner)) = into.split_first() else { return };
        let Some(block) = product(inner.iter().map(|part| &part.size)) else { return };
        for (concat, parts) in view.nodes(*of) {
            if !matches!(concat, Head::Concat(along) if along == axis) {
                continue;
            }
            let Some(sizes) = sizes(view, axis, parts) else { continue };
            let counts: Option<Vec<Size>> =
                sizes.iter().map(|size| quotient(size, &block, &first.size)).collect();
            let Some(counts) = counts else { continue };
            let split = |(part, count): (&Id, Size)| {
                let mut into = vec![Axis { name: first.name.clone(), size: count }];
                into.extend(inner.iter().cloned());
                Tree::one(Head::Split { axis: axis.clone(), into }, Tree::Var(*part))
            };
            let split = parts.iter().zip(counts).map(split).collect();
            let left = Tree::one(head.clone(), node(concat, parts, &[]));
            found.push((left, Tree::Node(Head::Concat(first.name.clone()), split)));
        }
    },
};

/// How often `block` goes into `size`, exactly. A polynomial divides only by one product of
/// names; `hint` is tried as the answer where `block` is something else.
fn quotient(size: &Size, block: &Size, hint: &Size) -> Option<Size> {
    size.exact_div(block)
        .or_else(|| (hint.checked_mul(block).as_ref() == Some(size)).then(|| hint.clone()))
}

pub(super) const CONCAT_MERGE: Rule = Rule {
    name: "concat-merge",
    why: "merging a concatenation along the slowest of the merged axes merges the parts",
    find: |view, head, children, found| {
        let (Head::Merge { axes, into }, [of]) = (head, children) else { return };
        for (concat, parts) in view.nodes(*of) {
            if !matches!(concat, Head::Concat(axis) if axes.first() == Some(axis)) {
                continue;
            }
            let merged =
                parts.iter().map(|part| Tree::one(head.clone(), Tree::Var(*part))).collect();
            let left = Tree::one(head.clone(), node(concat, parts, &[]));
            found.push((left, Tree::Node(Head::Concat(into.clone()), merged)));
        }
    },
};
