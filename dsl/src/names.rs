//! Words with a fixed meaning, and the nearest known word to an unknown one.

/// Words that cannot name anything.
pub const KEYWORDS: [&str; 21] = [
    "import",
    "block",
    "stage",
    "extends",
    "axis",
    "param",
    "state",
    "table",
    "sub",
    "stack",
    "forward",
    "update",
    "over",
    "for",
    "in",
    "from",
    "frozen",
    "training_only",
    "penalty",
    "require",
    "integrate",
];

/// Functions of forward bodies. A block, value, sub-block or stage binding cannot take their
/// names; an axis can, since axes are never called.
pub const BUILTINS: &[&str] = &[
    "exp",
    "ln",
    "sqrt",
    "rsqrt",
    "recip",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
    "square",
    "floor",
    "abs",
    "min",
    "max",
    "clamp",
    "where",
    "f32",
    "act",
    "stop_gradient",
    "sum",
    "mean",
    "dot",
    "rename",
    "split",
    "merge",
    "slice",
    "concat",
    "place",
    "pick",
    "broadcast",
    "size",
    "position",
    "causal",
    "causal_conv",
    "rotary",
    "gated_delta_rule",
    "select_top",
    "masked_attention",
    "sinkhorn",
    "linear_cross_entropy",
    "gather_sum",
    "lookup",
    "logsumexp",
    "index",
    "top",
    "take",
    "count",
    "below",
    "expert_dot",
    "hadamard",
    "sum_ranks",
    "penalties",
];

/// How a quantized parameter is kept, after `quantized`.
pub const FORMATS: [&str; 2] = ["int8", "quantile8"];

/// Functions of number expressions.
pub const NUMBER_FUNCTIONS: [&str; 4] = ["sqrt", "exp", "ln", "size"];

/// Functions that give an integrator, with the names of their arguments: those that must be given,
/// then those that can be.
pub const INTEGRATORS: [(&str, &[&str], &[&str]); 3] = [
    ("plain", &[], &[]),
    ("midpoint", &["h", "a"], &["gates", "bootstrap", "fraction_bits"]),
    ("leapfrog", &["h"], &["gates", "bootstrap", "fraction_bits"]),
];

/// First steps of an integrator.
pub const BOOTSTRAPS: [&str; 2] = ["half_euler", "full"];

/// Distributions after `~`, with the names of their arguments.
pub const INITS: [(&str, &[&str]); 6] = [
    ("zeros", &[]),
    ("ones", &[]),
    ("constant", &["value"]),
    ("normal", &["std"]),
    ("uniform", &["low", "high"]),
    ("log_uniform", &["low", "high"]),
];

/// What a `table` can be made from.
pub const TABLE_SOURCES: [&str; 2] = ["tokenizer.byte_codes", "tokenizer.byte_counts"];

/// The candidate that `name` is most likely a misspelling of.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).min(3);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let distance = edit_distance(name, candidate, limit);
        if candidate != name && distance <= limit && best.is_none_or(|(d, _)| distance < d) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours (case is free); anything above
/// `limit` may be returned as `limit + 1`.
fn edit_distance(left: &str, right: &str, limit: usize) -> usize {
    let a: Vec<char> = left.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = right.chars().flat_map(char::to_lowercase).collect();
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let cell = |r: &[usize], at: usize| r.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut best = (cell(&next, j) + 1).min(cell(&row, j + 1) + 1);
            best = best.min(cell(&row, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(cell(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(limit + 1)
}
