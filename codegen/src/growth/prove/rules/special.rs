//! Rules of single ops.

use super::super::graph::{Tree, View};
use super::super::scale::Scale;
use super::super::term::{Axes, Head};
use super::{Found, Rule, fill, fill_tree, is_zero, node, scaled, without};
use crate::ops::Op;
use egg::Id;
use lightc_dsl::size::Size;

pub(super) const ATTENTION_CHANNELS: Rule = Rule {
    name: "attention-channels",
    why: "channels in which all queries or all keys are 0 add nothing to a score",
    find: |view, head, children, found| {
        if let (Head::Op { key, .. }, [_, _, _, _]) = (head, children)
            && key.mnemonic() == "masked_attention"
            && let Some(axis) = key.word("channel")
        {
            drop_channels(view, head, children, &axis, found);
        }
    },
};

pub(super) const LOSS_CHANNELS: Rule = Rule {
    name: "loss-channels",
    why: "channels in which the hidden state or the output head is 0 add nothing to a logit",
    find: |view, head, children, found| {
        if let (Head::Op { key, .. }, [_, _, _]) = (head, children)
            && key.mnemonic() == "linear_cross_entropy"
            && let Some(axis) = key.word("channel")
        {
            drop_channels(view, head, children, &axis, found);
        }
    },
};

/// Leaves out the parts along `axis` of the first two operands of which one is 0.
fn drop_channels(view: &View<'_>, head: &Head, children: &[Id], axis: &str, found: &mut Found) {
    let [a, b, rest @ ..] = children else { return };
    let size = |id: Id| view.ty(id).and_then(|ty| ty.axes.get(axis));
    let cuts = |id: Id| {
        view.nodes(id).filter(|(head, _)| matches!(head, Head::Concat(along) if along == axis))
    };
    for (left_head, left) in cuts(*a) {
        for (right_head, right) in cuts(*b) {
            let aligned = left.len() == right.len()
                && left.iter().zip(right).all(|(l, r)| size(*l).is_some() && size(*l) == size(*r));
            if !aligned {
                continue;
            }
            let pairs: Vec<(Id, Id)> = left.iter().copied().zip(right.iter().copied()).collect();
            let live: Vec<(Id, Id)> = pairs
                .iter()
                .copied()
                .filter(|(l, r)| !is_zero(view, *l) && !is_zero(view, *r))
                .collect();
            if live.is_empty() || live.len() == pairs.len() {
                continue;
            }
            // A zero must be written as such, so that the equation says what it rests on.
            let written = |id: Id, zero: bool| match fill(view, id) {
                Some((value, ty)) if zero => fill_tree(value, ty),
                _ => Tree::Var(id),
            };
            let first = pairs.iter().map(|(l, _)| written(*l, is_zero(view, *l))).collect();
            let second = pairs.iter().map(|(_, r)| written(*r, is_zero(view, *r))).collect();
            let first = Tree::Node(left_head.clone(), first);
            let second = Tree::Node(right_head.clone(), second);
            let kept = |ids: Vec<Id>| match ids[..] {
                [one] => Tree::Var(one),
                _ => Tree::Node(left_head.clone(), ids.into_iter().map(Tree::Var).collect()),
            };
            let mut result = vec![
                kept(live.iter().map(|(l, _)| *l).collect()),
                kept(live.iter().map(|(_, r)| *r).collect()),
            ];
            result.extend(rest.iter().map(|id| Tree::Var(*id)));
            let left = node(head, children, &[(0, &first), (1, &second)]);
            found.push((left, Tree::Node(head.clone(), result)));
        }
    }
}

pub(super) const SILENT_STEP: Rule = Rule {
    name: "silent-step",
    why: "a leapfrog step (a = 1) with force gate 0 gives the state before last, bit for bit: the \
          rounded force is 0 and nothing is shifted out; two in a row give back the pair",
    find: |view, head, children, found| {
        let (Head::Step(step), [before, _, gate, _]) = (head, children) else { return };
        if (step.numerator, step.bits) == (1, 0)
            && let Some((value, ty)) = fill(view, *gate)
            && value.is_zero()
        {
            let left = node(head, children, &[(2, &fill_tree(value, ty))]);
            found.push((left, Tree::Var(*before)));
        }
    },
};

pub(super) const EXPERT_CLONES: Rule = Rule {
    name: "expert-clones",
    why: "position i g + j of experts that are laid out again and again is expert j of the g: any \
          choice among clones is the choice of their group",
    find: |view, head, children, found| {
        let (Head::Op { key, .. }, [x, w, ids]) = (head, children) else { return };
        if key.mnemonic() != "expert_dot" {
            return;
        }
        let Some(expert) = key.word("expert") else { return };
        for (tree, clones, group_size, original, once) in tiled(view, *w, &expert) {
            for (ids_tree, groups, spread) in clone_ids(view, *ids, &clones, &group_size) {
                let weights = Head::Rename { from: original.clone(), to: expert.clone() };
                let once = Tree::one(weights, Tree::Var(once));
                let Some((x_tree, x_once)) = without_spread(view, *x, &spread) else { continue };
                let product = Tree::Node(head.clone(), vec![x_once, once, Tree::Var(groups)]);
                let ones = Tree::leaf(Head::fill(Scale::one(), spread));
                let left = node(head, children, &[(0, &x_tree), (1, &tree), (2, &ids_tree)]);
                found.push((left, Tree::Node(Head::Mul, vec![ones, product])));
            }
        }
    },
};

/// The ways in which a weight is copies of one along an axis: the whole as a tree, the number of
/// copies, the size of the one, its axis and itself.
fn tiled(view: &View<'_>, w: Id, expert: &str) -> Vec<(Tree, Size, Size, String, Id)> {
    let mut all = Vec::new();
    for (merge, operands) in view.nodes(w) {
        let (Head::Merge { axes, into }, [of]) = (merge, operands) else { continue };
        let [copy, original] = &axes[..] else { continue };
        if into != expert {
            continue;
        }
        for (value, ones, product, once) in scaled(view, *of) {
            let size = view.ty(once).and_then(|ty| ty.axes.get(original));
            let copies = ones.axes.get(copy);
            let clear = view.ty(once).is_some_and(|ty| !ty.has(copy) && !ty.has(expert));
            if let (true, 1, true, Some(size), Some(copies)) =
                (value.is_one(), ones.axes.len(), clear, size, copies)
            {
                let tree = Tree::one(merge.clone(), product);
                all.push((tree, copies.clone(), size.clone(), original.clone(), once));
            }
        }
    }
    all
}

/// The ways in which ids are `clone * group_size + group`, none where the group is none: the whole
/// as a tree, the group, and the axes that only the clone has.
fn clone_ids(view: &View<'_>, ids: Id, clones: &Size, group_size: &Size) -> Vec<(Tree, Id, Axes)> {
    let mut all = Vec::new();
    for (head, operands) in view.nodes(ids) {
        match (mnemonic(head), operands) {
            ("index_add", _) => {
                all.extend(sums(view, head, operands, clones, group_size));
            }
            // Where the group is none so is the sum; then it may as well be written.
            ("where", [chosen, sum, none]) if is_none(view, *none) => {
                for (sum_head, parts) in view.nodes(*sum) {
                    for (tree, group, spread) in sums(view, sum_head, parts, clones, group_size) {
                        for condition in some(view, *chosen, group) {
                            let written = [(0, &condition), (1, &tree)];
                            all.push((node(head, operands, &written), group, spread.clone()));
                        }
                    }
                }
            }
            _ => {}
        }
    }
    all
}

fn mnemonic(head: &Head) -> &'static str {
    match head {
        Head::Op { key, .. } => key.mnemonic(),
        _ => "",
    }
}

/// `clone * group_size + group`, in either order, with both in range.
fn sums(
    view: &View<'_>,
    head: &Head,
    operands: &[Id],
    clones: &Size,
    group_size: &Size,
) -> Vec<(Tree, Id, Axes)> {
    let mut all = Vec::new();
    let ("index_add", [a, b]) = (mnemonic(head), operands) else { return all };
    for (product, group, at) in [(*a, *b, 0), (*b, *a, 1)] {
        if !below(view, group, group_size) {
            continue;
        }
        for (times, factors) in view.nodes(product) {
            let Some((tree, clone)) = multiple(view, times, factors, group_size) else { continue };
            let (Some(clone_ty), Some(group_ty)) = (view.ty(clone), view.ty(group)) else {
                continue;
            };
            let spread = without(&clone_ty.axes, &group_ty.axes);
            if below(view, clone, clones) && !spread.is_empty() {
                all.push((node(head, operands, &[(at, &tree)]), group, spread));
            }
        }
    }
    all
}

/// `x * size`: the product as a tree, and x.
fn multiple(view: &View<'_>, head: &Head, operands: &[Id], size: &Size) -> Option<(Tree, Id)> {
    let Head::Op { key, .. } = head else { return None };
    match (&*key.op, operands) {
        (Op::IndexAffine(op), [x]) if op.add == 0 && size.as_constant() == Some(op.mul) => {
            Some((node(head, operands, &[]), *x))
        }
        (Op::IndexBinary(_), [a, b]) if key.mnemonic() == "index_mul" => {
            [(*a, *b, 1), (*b, *a, 0)].into_iter().find_map(|(x, factor, at)| {
                let tree = view.nodes(factor).find_map(|(cast, of)| {
                    let [of] = of else { return None };
                    let (value, ty) = fill(view, *of)?;
                    let whole = mnemonic(cast) == "cast"
                        && ty.axes.is_empty()
                        && Scale::size(size, 2).as_ref() == Some(value);
                    whole.then(|| Tree::one(cast.clone(), fill_tree(value, ty)))
                })?;
                Some((node(head, operands, &[(at, &tree)]), x))
            })
        }
        _ => None,
    }
}

/// Whether an index is none or below a size: a selection among so many positions.
fn below(view: &View<'_>, id: Id, size: &Size) -> bool {
    view.nodes(id).any(|(head, operands)| match (mnemonic(head), head, operands) {
        ("top", Head::Op { key, .. }, [score]) => {
            let axis = key.word("axis");
            axis.and_then(|axis| view.ty(*score)?.axes.get(&axis)) == Some(size)
        }
        ("where", _, [_, chosen, none]) => is_none(view, *none) && below(view, *chosen, size),
        (_, Head::Rename { .. }, [of]) => below(view, *of, size),
        _ => false,
    })
}

fn is_none(view: &View<'_>, id: Id) -> bool {
    view.nodes(id).any(|(head, _)| match head {
        Head::Op { key, .. } => matches!(&*key.op, Op::Const(constant) if constant.value < 0.0),
        _ => false,
    })
}

/// The ways in which a truth value says that an index is not none.
fn some(view: &View<'_>, id: Id, index: Id) -> Vec<Tree> {
    let mut all = Vec::new();
    for (head, operands) in view.nodes(id) {
        let ("ge", [number, zero]) = (mnemonic(head), operands) else { continue };
        let Some((value, ty)) = fill(view, *zero) else { continue };
        for (cast, of) in view.nodes(*number) {
            if mnemonic(cast) == "cast" && value.is_zero() && *of == [index] {
                let number = Tree::one(cast.clone(), Tree::Var(index));
                let zero = fill_tree(value, ty);
                all.push(node(head, operands, &[(0, &number), (1, &zero)]));
            }
        }
    }
    all
}

/// What is repeated along axes as a tree, and once; the term itself if it lacks them.
fn without_spread(view: &View<'_>, x: Id, spread: &Axes) -> Option<(Tree, Tree)> {
    if spread.keys().all(|axis| view.ty(x).is_some_and(|ty| !ty.has(axis))) {
        return Some((Tree::Var(x), Tree::Var(x)));
    }
    scaled(view, x).into_iter().find_map(|(value, ones, tree, once)| {
        let clear = view.ty(once)?.axes.keys().all(|axis| !spread.contains_key(axis));
        (value.is_one() && ones.axes == *spread && clear).then_some((tree, Tree::Var(once)))
    })
}
