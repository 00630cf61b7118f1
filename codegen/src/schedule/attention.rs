//! Which form attention takes on a GPU, and why: the rule of [`lightc_numerics::attention`] at given sizes.

use super::DeviceStep;
use crate::ir::{Function, Node};
use crate::ops::{MaskedAttention, MaskedAttentionGrad, Op};
use lightc_numerics::attention::{
    AttentionForm, AttentionSize, attention_form, gather_seconds, gathers_from, tiles_seconds,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How one attention, or its gradient, runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionChoice {
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

/// Writes at the step of an attention how it runs, where all sizes are known. Its operations and time are then those of
/// the pairs that it computes, where keys are gathered.
pub(super) fn choose(
    step: &mut DeviceStep,
    function: &Function,
    node: &Node,
    sizes: &BTreeMap<String, i64>,
) {
    let Some((choice, n_sequences)) = choice(function, node, sizes) else { return };
    if choice.form == AttentionForm::Gather.word()
        && let (Some(both), Some(most)) = (choice.gather_ms, choice.most_keys)
    {
        // A gradient gathers twice the bytes of a forward, and reads twice the bits.
        let parts = if matches!(node.op, Op::MaskedAttention(_)) { 1.0 } else { 2.0 };
        step.microseconds = Some(1e3 * both * n_sequences * parts / 3.0);
        step.bound = "memory";
        let tokens = number(choice.tokens);
        let computed = f64::from(most).min(tokens) / tokens.max(1.0);
        step.flops = step.flops.map(|all| all * computed);
    }
    step.attention = Some(choice);
}

/// The choice, and the sequences of a call.
fn choice(
    function: &Function,
    node: &Node,
    sizes: &BTreeMap<String, i64>,
) -> Option<(AttentionChoice, f64)> {
    let (Op::MaskedAttention(MaskedAttention { query, head, channel, bound, .. })
    | Op::MaskedAttentionGrad(MaskedAttentionGrad { query, head, channel, bound, .. })) = &node.op
    else {
        return None;
    };
    let q = function.ty(*node.args.first()?);
    let of = |axis: &str| u64::try_from(q.axis(axis)?.size.evaluate(sizes)?).ok();
    let size = AttentionSize { tokens: of(query)?, heads: of(head)?, channels: of(channel)? };
    let batch = q.axes.iter().find(|axis| ![query, head, channel].contains(&&axis.name))?;
    let choice = AttentionChoice {
        tokens: size.tokens,
        heads: size.heads,
        channels: size.channels,
        causal: bound.causal,
        most_keys: bound.most_keys,
        form: attention_form(size, *bound).word(),
        tiles_ms: 1e3 * tiles_seconds(size, *bound),
        gather_ms: bound.most_keys.map(|most| 1e3 * gather_seconds(size, most)),
        gathers_from: gathers_from(size.heads, size.channels, *bound),
    };
    Some((choice, number(of(&batch.name)?)))
}

#[allow(clippy::cast_precision_loss, reason = "estimates")]
fn number(size: u64) -> f64 {
    size as f64
}
