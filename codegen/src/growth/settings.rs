//! What differs between two stages besides their tensors: numbers, and sizes that no tensor has.

use super::SettingChange;
use super::codes;
use super::numbers::Names;
use super::pattern::Pattern;
use super::rule::Rule;
use super::tree::Side;
use crate::ir::paths::join;
use crate::ir::types::dtype_word;
use lightc_dsl::ast::{ClauseKind, Segment};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::{Bootstrap, Instance, Integrator, Storage};
use lightc_dsl::resolve::MapDef;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// A setting by its name: without the indices of layers.
#[derive(Default)]
struct Difference {
    from: BTreeSet<String>,
    to: BTreeSet<String>,
    from_span: Option<Span>,
    to_span: Option<Span>,
}

/// Every difference, each acknowledged; reports those that are not.
pub(super) fn check(
    def: &MapDef,
    source: &Side,
    target: &Side,
    rules: &BTreeMap<&str, &Rule>,
    diags: &mut Vec<Diag>,
) -> Vec<SettingChange> {
    let differences = differences(source, target, rules);
    let mut acknowledged: BTreeMap<&str, &str> = BTreeMap::new();
    for clause in &def.ast.clauses {
        let ClauseKind::Setting { path, reason } = &clause.kind else { continue };
        let pattern = match Pattern::new("", path, &Names::default()) {
            Ok(pattern) => pattern,
            Err(diag) => {
                diags.push(*diag);
                continue;
            }
        };
        let before = acknowledged.len();
        let fits = |name: &&String| pattern.matches(name).is_some();
        for name in differences.keys().filter(fits) {
            acknowledged.insert(name, &reason.value);
        }
        let indexed = path.segments.iter().any(|s| matches!(s, Segment::Index(..)));
        if acknowledged.len() == before {
            let (message, help) = if indexed {
                (
                    "a setting is named without the indices of layers".to_owned(),
                    "write `layers.name`",
                )
            } else {
                (
                    format!(
                        "`{path}` does not differ between `{}` and `{}`",
                        source.model.name, target.model.name
                    ),
                    "remove the line",
                )
            };
            let diag = Diag::error(codes::STALE_SETTING, message, path.span, "no such difference");
            diags.push(diag.with_help(help));
        }
        if reason.value.trim().is_empty() {
            let message = "a setting that differs is acknowledged without a reason";
            let diag = Diag::error(codes::SETTING, message, reason.span, "empty");
            diags.push(diag.with_help("say why it differs"));
        }
    }
    let mut changes = Vec::new();
    for (name, difference) in &differences {
        let (from, to) = (listed(&difference.from), listed(&difference.to));
        match acknowledged.get(name.as_str()) {
            Some(reason) => changes.push(SettingChange {
                name: name.clone(),
                from,
                to,
                reason: (*reason).to_owned(),
            }),
            None => diags.push(unacknowledged(def, source, target, name, difference)),
        }
    }
    changes
}

fn unacknowledged(
    def: &MapDef,
    source: &Side,
    target: &Side,
    name: &str,
    difference: &Difference,
) -> Diag {
    let (from, to) = (listed(&difference.from), listed(&difference.to));
    let (a, b) = (&source.model, &target.model);
    let diag = Diag::error(
        codes::SETTING,
        format!("`{name}` is {from} in `{}` and {to} in `{}`", a.name, b.name),
        def.ast.name.span,
        "this map does not say that it differs",
    )
    .with_related(difference.from_span.unwrap_or(a.span), format!("{from} in `{}`", a.name))
    .with_related(difference.to_span.unwrap_or(b.span), format!("{to} in `{}`", b.name));
    diag.with_help(format!("make the stages agree, or add `setting {name} \"the reason\"`"))
}

fn listed(values: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = values.iter().take(4).map(String::as_str).collect();
    let more = if values.len() > 4 { ", ..." } else { "" };
    shown.join(", ") + more
}

fn differences(
    source: &Side,
    target: &Side,
    rules: &BTreeMap<&str, &Rule>,
) -> BTreeMap<String, Difference> {
    let mut found = BTreeMap::new();
    let mut pairs: BTreeSet<(String, String)> = BTreeSet::new();
    pairs.insert((String::new(), String::new()));
    for (path, rule) in rules {
        let mut leaves = Vec::new();
        rule.sources(&mut leaves);
        for leaf in leaves {
            pair_up(path, &leaf, target, source, &mut pairs);
            tensor_settings(path, &leaf, target, source, &mut found);
        }
    }
    for (to, from) in &pairs {
        if let (Some(a), Some(b)) = (source.instance(from), target.instance(to)) {
            let name = without_indices(target, to);
            instance_settings(&name, a, b, &mut found);
        }
    }
    found
}

/// Blocks correspond where a tensor of one is made from a tensor of the other, and so do the
/// blocks around them as long as their names agree.
fn pair_up(
    to: &str,
    from: &str,
    target: &Side,
    source: &Side,
    pairs: &mut BTreeSet<(String, String)>,
) {
    let (mut a, mut b) = (to, from);
    while let (Some((x, last)), Some((y, other))) = (a.rsplit_once('.'), b.rsplit_once('.')) {
        let layers = last.parse::<usize>().is_ok() && other.parse::<usize>().is_ok();
        let is_tensor = a == to;
        if last != other && !layers && !is_tensor {
            return;
        }
        (a, b) = (x, y);
        if target.nodes.contains_key(a) && source.nodes.contains_key(b) {
            pairs.insert((a.to_owned(), b.to_owned()));
        }
    }
}

/// A path without the indices of layers.
pub(super) fn without_indices(side: &Side, path: &str) -> String {
    let (mut known, mut name) = (String::new(), String::new());
    for part in path.split('.').filter(|p| !p.is_empty()) {
        let is_layer = side.layers(&known).is_some();
        known = join(&known, part);
        if !is_layer {
            name = join(&name, part);
        }
    }
    name
}

fn add(
    found: &mut BTreeMap<String, Difference>,
    name: String,
    from: String,
    to: String,
    spans: (Option<Span>, Option<Span>),
) {
    let entry = found.entry(name).or_default();
    entry.from.insert(from);
    entry.to.insert(to);
    entry.from_span = entry.from_span.or(spans.0);
    entry.to_span = entry.to_span.or(spans.1);
}

/// Precision and storage of tensors that are made from each other.
fn tensor_settings(
    to: &str,
    from: &str,
    target: &Side,
    source: &Side,
    found: &mut BTreeMap<String, Difference>,
) {
    let (Some(a), Some(b)) = (source.tensor(from), target.tensor(to)) else { return };
    let name = without_indices(target, to);
    let spans = (a.span, b.span);
    if a.ty.dtype != b.ty.dtype {
        let (x, y) = (dtype_word(a.ty.dtype), dtype_word(b.ty.dtype));
        add(found, join(&name, "dtype"), x.to_owned(), y.to_owned(), spans);
    }
    let (x, y) = (storage(a.storage.as_ref()), storage(b.storage.as_ref()));
    if x != y {
        add(found, join(&name, "storage"), x, y, spans);
    }
}

fn storage(storage: Option<&Storage>) -> String {
    match storage {
        None => "state".to_owned(),
        Some(Storage::Trained) => "trained".to_owned(),
        Some(Storage::Frozen(_)) => "frozen".to_owned(),
        Some(Storage::Quantized(format)) => format!("quantized {format:?}").to_lowercase(),
        Some(Storage::Adapter) => "adapter".to_owned(),
    }
}

fn instance_settings(
    name: &str,
    source: &Instance,
    target: &Instance,
    found: &mut BTreeMap<String, Difference>,
) {
    if source.block != target.block {
        // Blocks of other kinds share tensors here and there, not settings.
        return;
    }
    let spans = (Some(source.ast.name.span), Some(target.ast.name.span));
    for (number, from) in &source.numbers {
        if let Some(to) = target.numbers.get(number)
            && to != from
        {
            add(found, join(name, number), from.to_string(), to.to_string(), spans);
        }
    }
    for sub in &target.subs {
        let Some(from) = source.subs.iter().find(|other| other.name == sub.name) else { continue };
        let (a, b) = (integrator(&from.integrator), integrator(&sub.integrator));
        if a != b {
            let name = join(&join(name, &sub.name), "integrator");
            add(found, name, a, b, (Some(from.span), Some(sub.span)));
        }
    }
    let visible = axes_of(source).chain(axes_of(target)).collect::<BTreeSet<&str>>();
    for (axis, from) in &source.sizes {
        if visible.contains(axis.as_str()) || !source.subs.is_empty() {
            continue;
        }
        if let Some(to) = target.sizes.get(axis)
            && to != from
        {
            add(found, join(name, axis), from.to_string(), to.to_string(), spans);
        }
    }
}

/// How layers are joined, whatever their number.
fn integrator(integrator: &Integrator) -> String {
    let Integrator::Midpoint(midpoint) = integrator else { return "plain()".to_owned() };
    let mut factors: Vec<f64> = Vec::new();
    for step in &midpoint.steps {
        if !factors.contains(&step.a()) {
            factors.push(step.a());
        }
    }
    let factors: Vec<String> = factors.iter().map(f64::to_string).collect();
    let gates = if midpoint.gated().next().is_some() { ", gates" } else { "" };
    let bootstrap = match midpoint.bootstrap {
        Bootstrap::HalfEuler => "half_euler",
        Bootstrap::Full => "full",
    };
    format!(
        "midpoint(h: {}, a: {}{gates}, bootstrap: {bootstrap}, fraction_bits: {})",
        midpoint.h,
        factors.join(" and "),
        midpoint.fraction_bits
    )
}

/// Names of axes that tensors of the instance have: rules speak about their sizes.
fn axes_of(instance: &Instance) -> impl Iterator<Item = &str> {
    let params = instance.params.iter().flat_map(|p| &p.axes);
    let states = instance.states.iter().flat_map(|s| &s.axes);
    let tables = instance.tables.iter().flat_map(|t| &t.axes);
    params.chain(states).chain(tables).map(|axis| axis.name.as_str())
}
