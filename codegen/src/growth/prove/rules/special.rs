//! Rules of single ops.

use super::super::graph::{Tree, View};
use super::super::term::Head;
use super::{Found, Rule, fill, fill_tree, is_zero, node};
use egg::Id;

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
        let (Head::Step { leapfrog: true, .. }, [before, _, gate, _]) = (head, children) else {
            return;
        };
        if let Some((value, ty)) = fill(view, *gate)
            && value.is_zero()
        {
            let left = node(head, children, &[(2, &fill_tree(value, ty))]);
            found.push((left, Tree::Var(*before)));
        }
    },
};
