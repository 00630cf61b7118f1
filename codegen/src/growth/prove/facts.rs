//! What the rules need to know of an op: in which operands it is linear, and along which axes it
//! works on each position by itself. One table; an op that is not in it has neither.

use super::term::{Head, OpKey, Ty};

/// Whether `head` is linear in child `index` while the others are held: so it gives 0 for 0, and a
/// factor passes through.
pub(crate) fn linear(head: &Head, index: usize) -> bool {
    match head {
        Head::Mul
        | Head::Sum(_)
        | Head::Rename { .. }
        | Head::Split { .. }
        | Head::Merge { .. }
        | Head::Slice { .. } => true,
        Head::Op { key, result: 0 } => match key.mnemonic() {
            "pick" | "place" | "rotary" | "hadamard" | "sum_ranks" => true,
            "causal_conv" | "expert_dot" => index < 2,
            "masked_attention" => index == 2,
            "gated_delta_rule" => index == 0 || index == 2,
            "lookup" | "gather_sum" | "take" => index == 0,
            _ => false,
        },
        _ => false,
    }
}

/// Whether `head` maps each position of `axis` by itself: position `i` of the result depends only
/// on position `i` of those children that have the axis.
pub(crate) fn outer(head: &Head, axis: &str, children: &[&Ty]) -> bool {
    match head {
        Head::Sum(over) => !over.contains(axis),
        Head::Rename { from, to } => axis != from && axis != to,
        Head::Split { axis: split, into } => {
            axis != split && into.iter().all(|part| part.name != axis)
        }
        Head::Merge { axes, into } => axis != into && !axes.iter().any(|part| part == axis),
        Head::Slice { axis: cut, .. } => axis != cut,
        Head::Op { key, .. } if !head.is_pointwise() => outer_of_op(key, axis, children),
        Head::Op { .. } | Head::Add | Head::Mul => true,
        _ => false,
    }
}

fn outer_of_op(key: &OpKey, axis: &str, children: &[&Ty]) -> bool {
    let not = |words: &[&str]| words.iter().all(|word| key.word(word).as_deref() != Some(axis));
    let among = |index: usize| children.get(index).is_some_and(|ty| ty.has(axis));
    match key.mnemonic() {
        "pick" | "place" | "hadamard" => not(&["axis", "over"]),
        "sum_ranks" => true,
        "rotary" => not(&["time", "pairs"]),
        "logsumexp" => not(&["over", "axis"]),
        "causal_conv" => not(&["time", "taps"]),
        "sinkhorn" => not(&["rows", "columns"]),
        // Queries are apart from each other; keys and channels are not. The value's own axis may
        // have the name of the channel.
        "masked_attention" => not(&["query", "key", "channel"]),
        "gated_delta_rule" => not(&["time", "key"]),
        "select_top" => not(&["query", "key"]),
        "top" => not(&["axis", "over", "slots", "to", "from"]),
        "lookup" => not(&["rows"]),
        "gather_sum" => not(&["rows", "slots"]),
        "take" => not(&["over", "axis"]),
        // Result channels, and tokens; a slot axis only where both sides have it.
        "expert_dot" => {
            not(&["expert", "over"])
                && (!among(2) || !among(1))
                && (among(2) == among(0) || !among(0))
        }
        _ => false,
    }
}
