//! Rules in words, for receipts and messages.

use lightc_codegen::growth::{Factor, Rule, RuleKind};
use lightc_numerics::draw::Law;

/// A rule as a reader would say it.
pub fn words(rule: &Rule) -> String {
    match &rule.kind {
        RuleKind::Source { path } => format!("`{path}`"),
        RuleKind::Fill { value } => format!("{value}"),
        RuleKind::Draw { law, key } => format!("{} drawn by `{key}`", law_words(*law)),
        RuleKind::Scale { of, factor } => format!("{} * {}", factor_words(factor), inner(of)),
        RuleKind::Add { left, right } => format!("{} + {}", inner(left), inner(right)),
        RuleKind::Concat { parts, axis } => {
            let parts: Vec<String> = parts.iter().map(inner).collect();
            format!("{} one after another along {axis}", parts.join(", "))
        }
        RuleKind::Tile { of, axis } => {
            format!("{}, again and again along {axis} ({})", inner(of), sizes(of, rule, axis))
        }
        RuleKind::Interleave { of, axis } => {
            let sizes = sizes(of, rule, axis);
            format!("{}, each position of {axis} several times ({sizes})", inner(of))
        }
        RuleKind::Repeat { of, axis } => {
            let size = rule.ty.axis(axis).map(|axis| axis.size.to_string()).unwrap_or_default();
            format!("{}, equal along the new axis {axis} = {size}", inner(of))
        }
        RuleKind::Slice { of, axis, start } => {
            let size = rule.ty.axis(axis).map(|axis| axis.size.to_string()).unwrap_or_default();
            format!("{size} positions of {axis} of {} from {start} on", inner(of))
        }
        RuleKind::Select { of, axis, positions } => {
            format!("{} stated positions of {axis} of {}", positions.len(), inner(of))
        }
        RuleKind::Subset { of, axis, each, key } => {
            let each = each.as_ref().map(|each| format!(", other ones for each {each}"));
            let each = each.unwrap_or_default();
            let sizes = sizes(of, rule, axis);
            format!("random positions of {axis} of {} ({sizes}, by `{key}`{each})", inner(of))
        }
        RuleKind::Redraw { of, axis, keep, each, key, .. } => {
            let each = each.as_ref().map(|each| format!(", other ones for each {each}"));
            let each = each.unwrap_or_default();
            format!(
                "{}, all but {keep} positions of {axis} drawn anew (by `{key}`{each})",
                inner(of)
            )
        }
        RuleKind::Noise { of, factor, key } => {
            format!("{} + {factor} of its deviation as noise by `{key}`", inner(of))
        }
        RuleKind::Permute { of } => {
            format!("{} with axes [{}]", inner(of), rule.ty.names().join(", "))
        }
        RuleKind::Rename { of, .. } => words(of),
        RuleKind::Split { of, from, to } => {
            format!("{} with {from} as [{}]", inner(of), to.join(", "))
        }
        RuleKind::Merge { of, from, to } => {
            format!("{} with [{}] as {to}", inner(of), from.join(", "))
        }
        RuleKind::Rotate { of, axis, seed } => {
            format!("{} turned along {axis} (signs {seed}, Hadamard)", inner(of))
        }
    }
}

/// A part of a longer rule.
fn inner(rule: &Rule) -> String {
    let text = words(rule);
    match &rule.kind {
        RuleKind::Source { .. } | RuleKind::Fill { .. } => text,
        RuleKind::Rename { of, .. } => inner(of),
        _ => format!("({text})"),
    }
}

fn sizes(of: &Rule, rule: &Rule, axis: &str) -> String {
    let size = |rule: &Rule| rule.ty.axis(axis).map(|axis| axis.size.to_string());
    format!("{} to {}", size(of).unwrap_or_default(), size(rule).unwrap_or_default())
}

fn factor_words(factor: &Factor) -> String {
    let mut text = format!("{}", factor.number);
    for (size, half) in &factor.sizes {
        text.push_str(&format!(" * ({size})^({half}/2)"));
    }
    text
}

fn law_words(law: Law) -> String {
    match law {
        Law::Zeros => "0".to_owned(),
        Law::Ones => "1".to_owned(),
        Law::Constant(value) => format!("{value}"),
        Law::Normal { std } => format!("normal({std})"),
        Law::Uniform { low, high } => format!("uniform({low}, {high})"),
        Law::LogUniform { low, high } => format!("log uniform({low}, {high})"),
    }
}
