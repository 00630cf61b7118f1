//! Zeros, ones, factors.

use super::super::facts::{linear, outer};
use super::super::graph::Tree;
use super::super::scale::Scale;
use super::super::term::{Head, Kind, Ty};
use super::{Rule, fill, fill_tree, is_zero, node, scaled, without, zero_tree};
use crate::ops::{Op, UnaryFn};

pub(super) const COMMUTE: Rule = Rule {
    name: "commute",
    why: "a + b = b + a and a b = b a",
    find: |_, head, children, found| {
        if let (Head::Add | Head::Mul, [a, b]) = (head, children)
            && a != b
        {
            found.push((node(head, &[*a, *b], &[]), node(head, &[*b, *a], &[])));
        }
    },
};

pub(super) const ADD_ZERO: Rule = Rule {
    name: "add-zero",
    why: "0 + x = x, where the zeros bring no axis that x lacks",
    find: |view, head, children, found| {
        let (Head::Add, [zero, x]) = (head, children) else { return };
        let (Some((value, ty)), Some(x_ty)) = (fill(view, *zero), view.ty(*x)) else { return };
        if value.is_zero() && without(&ty.axes, &x_ty.axes).is_empty() {
            let left = node(head, children, &[(0, &fill_tree(value, ty))]);
            found.push((left, Tree::Var(*x)));
        }
    },
};

pub(super) const MUL_ONE: Rule = Rule {
    name: "mul-one",
    why: "1 x = x",
    find: |view, head, children, found| {
        let (Head::Mul, [one, x]) = (head, children) else { return };
        if let Some((value, ty)) = fill(view, *one)
            && value.is_one()
            && ty.axes.is_empty()
        {
            found.push((node(head, children, &[(0, &fill_tree(value, ty))]), Tree::Var(*x)));
        }
    },
};

pub(super) const FILL_SPREAD: Rule = Rule {
    name: "fill-spread",
    why: "a factor that is the same everywhere needs no axis that the other operand has",
    find: |view, head, children, found| {
        let (Head::Mul, [factor, x]) = (head, children) else { return };
        let (Some((value, ty)), Some(x_ty)) = (fill(view, *factor), view.ty(*x)) else { return };
        let axes = without(&ty.axes, &x_ty.axes);
        if axes.len() < ty.axes.len() {
            let narrow = fill_tree(value, &Ty { kind: ty.kind, axes });
            let left = node(head, children, &[(0, &fill_tree(value, ty))]);
            found.push((left, node(head, children, &[(0, &narrow)])));
        }
    },
};

pub(super) const FILL_FOLD: Rule = Rule {
    name: "fill-fold",
    why: "an op on values that are the same everywhere gives one value everywhere",
    find: |view, head, children, found| {
        if children.is_empty() {
            return;
        }
        let fills: Option<Vec<_>> = children.iter().map(|child| fill(view, *child)).collect();
        let Some(fills) = fills else { return };
        let values: Vec<&Scale> = fills.iter().map(|(value, _)| *value).collect();
        let types: Vec<&Ty> = fills.iter().map(|(_, ty)| *ty).collect();
        if let (Some(value), Some(ty)) = (folded(head, &values, &types), head.infer(&types)) {
            let trees: Vec<Tree> = fills.iter().map(|(value, ty)| fill_tree(value, ty)).collect();
            found.push((Tree::Node(head.clone(), trees), fill_tree(&value, &ty)));
        }
    },
};

fn folded(head: &Head, values: &[&Scale], types: &[&Ty]) -> Option<Scale> {
    match (head, values) {
        (Head::Add, [a, b]) => a.plus(b),
        (Head::Mul, [a, b]) => Some(a.times(b)),
        (Head::Sum(over), [a]) => over.iter().try_fold((*a).clone(), |total, axis| {
            Some(total.times(&Scale::size(types.first()?.axes.get(axis)?, 2)?))
        }),
        (
            Head::Rename { .. } | Head::Split { .. } | Head::Merge { .. } | Head::Slice { .. },
            [a],
        ) => Some((*a).clone()),
        (Head::Concat(_), [first, rest @ ..]) => {
            rest.iter().all(|value| value == first).then(|| (*first).clone())
        }
        (Head::Op { key, .. }, [a]) => match &*key.op {
            Op::Unary(op) => unary(op.function, a),
            _ => None,
        },
        _ => None,
    }
}

fn unary(function: UnaryFn, value: &Scale) -> Option<Scale> {
    if let Some(half) = half_power(function)
        && !value.is_zero()
        && (value.is_positive() || half % 2 == 0)
    {
        return value.power(half);
    }
    Scale::number(function.value(value.as_number()?))
}

/// Twice the power that a function raises to.
fn half_power(function: UnaryFn) -> Option<i32> {
    match function {
        UnaryFn::Sqrt => Some(1),
        UnaryFn::Rsqrt => Some(-1),
        UnaryFn::Recip => Some(-2),
        UnaryFn::Square => Some(4),
        _ => None,
    }
}

pub(super) const FILL_JOIN: Rule = Rule {
    name: "fill-join",
    why: "a (b x) = (a b) x for constant factors",
    find: |view, head, children, found| {
        let (Head::Mul, [outer, rest]) = (head, children) else { return };
        let Some((a, a_ty)) = fill(view, *outer) else { return };
        for (b, b_ty, tree, x) in scaled(view, *rest) {
            let product = Tree::leaf(Head::Fill {
                value: a.times(b),
                ty: Ty { kind: a_ty.kind, axes: joined(a_ty, b_ty) },
            });
            let left = node(head, children, &[(0, &fill_tree(a, a_ty)), (1, &tree)]);
            found.push((left, Tree::Node(Head::Mul, vec![product, Tree::Var(x)])));
        }
    },
};

fn joined(a: &Ty, b: &Ty) -> super::Axes {
    a.axes.iter().chain(&b.axes).map(|(name, size)| (name.clone(), size.clone())).collect()
}

pub(super) const FILL_OUT: Rule = Rule {
    name: "fill-out",
    why: "(c x) y = c (x y) for a constant factor",
    find: |view, head, children, found| {
        let (Head::Mul, [a, b]) = (head, children) else { return };
        if fill(view, *b).is_some() {
            return;
        }
        for (value, ty, tree, x) in scaled(view, *a) {
            let inner = Tree::Node(Head::Mul, vec![Tree::Var(x), Tree::Var(*b)]);
            let right = Tree::Node(Head::Mul, vec![fill_tree(value, ty), inner]);
            found.push((node(head, children, &[(0, &tree)]), right));
        }
    },
};

pub(super) const POWER: Rule = Rule {
    name: "power",
    why: "(c x)^p = c^p x^p for the powers 2, 1/2, -1/2 and -1, with c > 0 for roots",
    find: |view, head, children, found| {
        let (Head::Op { key, .. }, [arg]) = (head, children) else { return };
        let Op::Unary(op) = &*key.op else { return };
        let Some(half) = half_power(op.function) else { return };
        for (value, ty, tree, x) in scaled(view, *arg) {
            if half % 2 != 0 && !value.is_positive() {
                continue;
            }
            if let Some(power) = value.power(half) {
                let inner = Tree::one(head.clone(), Tree::Var(x));
                let right = Tree::Node(Head::Mul, vec![fill_tree(&power, ty), inner]);
                found.push((Tree::one(head.clone(), tree), right));
            }
        }
    },
};

pub(super) const ADD_COMMON: Rule = Rule {
    name: "add-common",
    why: "c a + c b = c (a + b), and c a + k = c (a + k/c)",
    find: |view, head, children, found| {
        let (Head::Add, [a, b]) = (head, children) else { return };
        for (value, ty, left, x) in scaled(view, *a) {
            if value.is_zero() || !ty.axes.is_empty() {
                continue;
            }
            for (other, other_ty, right, y) in scaled(view, *b) {
                if other == value && other_ty == ty {
                    let sum = Tree::Node(Head::Add, vec![Tree::Var(x), Tree::Var(y)]);
                    let factored = Tree::Node(Head::Mul, vec![fill_tree(value, ty), sum]);
                    found.push((node(head, children, &[(0, &left), (1, &right)]), factored));
                }
            }
            if let Some((constant, fill_ty)) = fill(view, *b)
                && !constant.is_zero()
                && let Some(inverse) = value.power(-2)
            {
                let share = fill_tree(&constant.times(&inverse), fill_ty);
                let sum = Tree::Node(Head::Add, vec![Tree::Var(x), share]);
                let factored = Tree::Node(Head::Mul, vec![fill_tree(value, ty), sum]);
                let constant = fill_tree(constant, fill_ty);
                found.push((node(head, children, &[(0, &left), (1, &constant)]), factored));
            }
        }
    },
};

pub(super) const ZERO: Rule = Rule {
    name: "zero",
    why: "an op that is linear in an operand gives 0 where that operand is 0",
    find: |view, head, children, found| {
        let types: Option<Vec<&Ty>> = children.iter().map(|child| view.ty(*child)).collect();
        let Some(types) = types else { return };
        for (index, child) in children.iter().enumerate() {
            if !linear(head, index) || !is_zero(view, *child) {
                continue;
            }
            let (Some(zero), Some(ty)) = (types.get(index), head.infer(&types)) else { continue };
            if ty.kind == Kind::Float {
                let left = node(head, children, &[(index, &zero_tree(zero))]);
                found.push((left, zero_tree(&ty)));
            }
        }
    },
};

pub(super) const SCALE_OUT: Rule = Rule {
    name: "scale-out",
    why: "f(c x) = c f(x) for an op that is linear in x and a constant factor",
    find: |view, head, children, found| {
        if matches!(head, Head::Mul) {
            return;
        }
        for (index, child) in children.iter().enumerate() {
            if !linear(head, index) {
                continue;
            }
            for (value, ty, tree, x) in scaled(view, *child) {
                if ty.axes.is_empty() {
                    let inner = node(head, children, &[(index, &Tree::Var(x))]);
                    let right = Tree::Node(Head::Mul, vec![fill_tree(value, ty), inner]);
                    found.push((node(head, children, &[(index, &tree)]), right));
                }
            }
        }
    },
};

pub(super) const REPEAT_OUT: Rule = Rule {
    name: "repeat-out",
    why: "an op that works on each position of an axis by itself gives the same at every position of \
          an axis along which its operands are repeated",
    find: |view, head, children, found| {
        if matches!(head, Head::Mul) {
            return;
        }
        let types: Option<Vec<&Ty>> = children.iter().map(|child| view.ty(*child)).collect();
        let Some(types) = types else { return };
        for child in children {
            for (value, ones, _, x) in scaled(view, *child) {
                let Some(x_ty) = view.ty(x) else { continue };
                let spread = without(&ones.axes, &x_ty.axes);
                if !value.is_one()
                    || spread.is_empty()
                    || spread.len() != ones.axes.len()
                    || !spread.keys().all(|axis| outer(head, axis, &types))
                {
                    continue;
                }
                let mut written: Vec<(usize, Tree)> = Vec::new();
                let mut inner: Vec<Tree> = Vec::new();
                for (index, (other, ty)) in children.iter().zip(&types).enumerate() {
                    if !spread.keys().any(|axis| ty.has(axis)) {
                        inner.push(Tree::Var(*other));
                        continue;
                    }
                    let same = scaled(view, *other).into_iter().find(|(v, t, _, y)| {
                        let clear = |ty: &Ty| !spread.keys().any(|axis| ty.has(axis));
                        v.is_one() && t.axes == ones.axes && view.ty(*y).is_some_and(clear)
                    });
                    let Some((_, _, tree, y)) = same else { break };
                    written.push((index, tree));
                    inner.push(Tree::Var(y));
                }
                if inner.len() != children.len() {
                    continue;
                }
                let refs: Vec<(usize, &Tree)> = written.iter().map(|(i, t)| (*i, t)).collect();
                let once = Tree::Node(head.clone(), inner);
                let right = Tree::Node(Head::Mul, vec![fill_tree(value, ones), once]);
                found.push((node(head, children, &refs), right));
            }
        }
    },
};
