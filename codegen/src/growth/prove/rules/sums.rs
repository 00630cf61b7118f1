//! Sums over axes.

use super::super::graph::Tree;
use super::super::term::Head;
use super::{Rule, node};
use std::collections::BTreeSet;

pub(super) const SUM_FACTOR: Rule = Rule {
    name: "sum-factor",
    why: "the sum over a of x y is x times the sum of y, where x lacks axis a",
    find: |view, head, children, found| {
        let (Head::Sum(over), [of]) = (head, children) else { return };
        for (product, operands) in view.nodes(*of) {
            let (Head::Mul, [x, y]) = (product, operands) else { continue };
            let (Some(x_ty), Some(y_ty)) = (view.ty(*x), view.ty(*y)) else { continue };
            let only: BTreeSet<String> = over.iter().filter(|a| !x_ty.has(a)).cloned().collect();
            if only.is_empty() || !only.iter().all(|axis| y_ty.has(axis)) {
                continue;
            }
            let rest: BTreeSet<String> = over.difference(&only).cloned().collect();
            let inner = Tree::one(Head::Sum(only), Tree::Var(*y));
            let mut right = Tree::Node(Head::Mul, vec![Tree::Var(*x), inner]);
            if !rest.is_empty() {
                right = Tree::one(Head::Sum(rest), right);
            }
            found.push((Tree::one(head.clone(), node(product, operands, &[])), right));
        }
    },
};

pub(super) const SUM_SUM: Rule = Rule {
    name: "sum-sum",
    why: "a sum of sums is one sum over the axes of both",
    find: |view, head, children, found| {
        let (Head::Sum(outer), [of]) = (head, children) else { return };
        for (inner, operands) in view.nodes(*of) {
            let (Head::Sum(over), [x]) = (inner, operands) else { continue };
            let all = Head::Sum(outer.union(over).cloned().collect());
            let left = Tree::one(head.clone(), node(inner, operands, &[]));
            found.push((left, Tree::one(all, Tree::Var(*x))));
        }
    },
};

pub(super) const SUM_CONCAT: Rule = Rule {
    name: "sum-concat",
    why: "the sum along a concatenation is the sum of the parts' sums",
    find: |view, head, children, found| {
        let (Head::Sum(over), [of]) = (head, children) else { return };
        for (parts_head, parts) in view.nodes(*of) {
            let Head::Concat(axis) = parts_head else { continue };
            if !over.contains(axis) {
                continue;
            }
            let mut sums = parts.iter().map(|part| Tree::one(head.clone(), Tree::Var(*part)));
            let Some(first) = sums.next() else { continue };
            let total = sums.fold(first, |total, sum| Tree::Node(Head::Add, vec![total, sum]));
            found.push((Tree::one(head.clone(), node(parts_head, parts, &[])), total));
        }
    },
};

pub(super) const SUM_MERGE: Rule = Rule {
    name: "sum-merge",
    why: "the sum along a merged axis is the sum along the axes that were merged",
    find: |view, head, children, found| {
        let (Head::Sum(over), [of]) = (head, children) else { return };
        for (merge, operands) in view.nodes(*of) {
            let (Head::Merge { axes, into }, [x]) = (merge, operands) else { continue };
            if !over.contains(into) {
                continue;
            }
            let mut parts: BTreeSet<String> = over.clone();
            parts.remove(into);
            if axes.iter().all(|axis| parts.insert(axis.clone())) {
                let left = Tree::one(head.clone(), node(merge, operands, &[]));
                found.push((left, Tree::one(Head::Sum(parts), Tree::Var(*x))));
            }
        }
    },
};
