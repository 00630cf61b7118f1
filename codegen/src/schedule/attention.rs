//! Which form each attention of a module takes on a GPU, and why: the rule of [`lightc_numerics::attention`] at given sizes.

use crate::ir::{Function, Module, Node};
use crate::ops::{MaskedAttention, Op};
use lightc_numerics::attention::{
    AttentionSize, attention_form, gather_seconds, gathers_from, tiles_seconds,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// One attention of a module, at given sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionChoice {
    /// The forward function that it is in; its gradient takes the same form.
    pub function: String,
    /// Tokens of a sequence.
    pub tokens: u64,
    /// Heads.
    pub heads: u64,
    /// Channels of a head.
    pub channels: u64,
    /// The graph says that no query sees a later key.
    pub causal: bool,
    /// The most keys that one query sees, where the graph says.
    pub most_keys: Option<u32>,
    /// `tiles` or `gather`.
    pub form: &'static str,
    /// Predicted for a forward and a gradient of one sequence over tiles, in milliseconds.
    pub tiles_ms: f64,
    /// The same with gathered keys, where their number is bounded.
    pub gather_ms: Option<f64>,
    /// The fewest tokens from which keys are gathered.
    pub gathers_from: Option<u64>,
}

/// The attentions of the forward functions of a module whose sizes `sizes` determines.
pub fn attention_choices(module: &Module, sizes: &BTreeMap<String, i64>) -> Vec<AttentionChoice> {
    let functions = module.functions.iter();
    let nodes = functions.flat_map(|function| function.nodes.iter().map(move |n| (function, n)));
    nodes.filter_map(|(function, node)| choice(function, node, sizes)).collect()
}

fn choice(
    function: &Function,
    node: &Node,
    sizes: &BTreeMap<String, i64>,
) -> Option<AttentionChoice> {
    let Op::MaskedAttention(MaskedAttention { query, head, channel, bound, .. }) = &node.op else {
        return None;
    };
    let q = function.ty(*node.args.first()?);
    let of = |axis: &str| u64::try_from(q.axis(axis)?.size.evaluate(sizes)?).ok();
    let size = AttentionSize { tokens: of(query)?, heads: of(head)?, channels: of(channel)? };
    Some(AttentionChoice {
        function: function.name.clone(),
        tokens: size.tokens,
        heads: size.heads,
        channels: size.channels,
        causal: bound.causal,
        most_keys: bound.most_keys,
        form: attention_form(size, *bound).word(),
        tiles_ms: 1e3 * tiles_seconds(size, *bound),
        gather_ms: bound.most_keys.map(|most| 1e3 * gather_seconds(size, most)),
        gathers_from: gathers_from(size.heads, size.channels, *bound),
    })
}
