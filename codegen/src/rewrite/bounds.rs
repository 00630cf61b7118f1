//! Writes at each attention what its mask can hold, as far as the graph says it: that no query sees a later key, and
//! the most keys that one query sees. Targets choose a kernel by that ([`lightc_numerics::attention`]); the meaning stays.
//!
//! What is found is a mask that a selection or `causal` makes, by way of views alone. A mask that comes from
//! elsewhere keeps no bound, which every kernel for tiles takes.

use crate::ir::{Function, Module, ValueId};
use crate::ops::{Broadcast, Causal, Indexer, MaskedAttention, Op, Permute, Rename, SelectTop};
use lightc_numerics::attention::MaskBound;

/// Rewrites every function of a module that is not differentiated yet; the number of masks with a bound.
pub fn bound_masks(module: &mut Module) -> usize {
    let mut n = 0;
    for function in &mut module.functions {
        let bounds: Vec<Option<MaskBound>> = function
            .nodes
            .iter()
            .map(|node| attention_bound(function, &node.op, &node.args))
            .collect();
        for (node, bound) in function.nodes.iter_mut().zip(bounds) {
            if let (Op::MaskedAttention(attention), Some(bound)) = (&mut node.op, bound) {
                attention.bound = bound;
                n += 1;
            }
        }
    }
    n
}

fn attention_bound(function: &Function, op: &Op, args: &[ValueId]) -> Option<MaskBound> {
    let (Op::MaskedAttention(MaskedAttention { query, key, .. }), [_, _, _, mask]) = (op, args)
    else {
        return None;
    };
    mask_bound(function, *mask, query, key)
}

/// What is known of a mask over axes `query` and `key`.
fn mask_bound(function: &Function, mask: ValueId, query: &str, key: &str) -> Option<MaskBound> {
    let node = function.definition(mask);
    let is_pair = |q: &str, k: &str| q == query && k == key;
    let selected = |limit: i64| MaskBound { causal: true, most_keys: u32::try_from(limit).ok() };
    match (&node.op, node.args.as_slice()) {
        (Op::Causal(Causal { query: q, key: k }), _) if is_pair(&q.name, &k.name) => {
            Some(MaskBound { causal: true, most_keys: None })
        }
        (Op::SelectTop(SelectTop { query: q, key: k, limit, .. }), _)
        | (Op::Indexer(Indexer { query: q, key: k, limit, .. }), _)
            if is_pair(q, k) =>
        {
            Some(selected(*limit))
        }
        (Op::Broadcast(Broadcast { .. }) | Op::Permute(Permute { .. }), [x]) => {
            mask_bound(function, *x, query, key)
        }
        (Op::Rename(Rename { from, to }), [x]) => {
            let before = |name: &'_ str| if name == to { from.clone() } else { name.to_owned() };
            mask_bound(function, *x, &before(query), &before(key))
        }
        _ => None,
    }
}
