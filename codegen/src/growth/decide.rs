//! What a map does to the function: refuted by an example, measured, or proved.

use super::measure::{Change, Meter};
use super::part::{Parted, parted};
use super::resolve::{self, Resolved};
use super::trial::{Compared, Trial, is_training};
use super::{Claim, GrowthMap, Proof, codes, prove};
use crate::ir::{Module, Output};
use crate::ops::EvalError;
use lightc_dsl::ast::{DType, FormalKind};
use lightc_dsl::diag::Diag;
use lightc_dsl::resolve::{FormalValue, FormalValues, MapDef, Program, Sizes};
use lightc_dsl::size::Size;
use serde::Serialize;

/// Seeds and scales of weights that a claim is tried with.
const TRIALS: [(u64, f64); 3] = [(1, 1.0), (2, 3.0), (3, 0.3)];
/// Relative difference below which two values are equal: above what the order of 64-bit sums
/// makes, far below what a wrong rule does.
pub(super) const EQUAL: f64 = 1e-9;
/// More parameters than this are not tried.
const MAX_PARAMS: i64 = 4_000_000;

/// How a claim came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// For every input, all weights and all sizes.
    Proved,
    /// There is a counterexample.
    Refuted,
    /// Neither.
    Unknown,
    /// The map says itself that the function changes, or by how much.
    Declared,
}

/// What is known of a map.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The map.
    pub name: String,
    /// What is grown.
    pub from: String,
    /// What comes out.
    pub to: String,
    /// What its author says.
    #[serde(flatten)]
    pub claim: Claim,
    /// How that came out.
    pub verdict: Verdict,
    /// The measured change; absent where nothing could be run.
    pub change: Option<Change>,
    /// Rules of the proof, and how often each is used.
    pub rules: Vec<String>,
    /// Why no proof was found, or why nothing could be run.
    pub why: Option<String>,
    /// Where the claim fails.
    pub counterexample: Option<Counterexample>,
}

/// An input on which source and target differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counterexample {
    /// Seed of weights and input.
    pub seed: u64,
    /// The sizes.
    pub sizes: String,
    /// The input, shortened.
    pub input: String,
    /// The output that differs most.
    pub output: String,
    /// Its value in the source, where the difference is largest.
    pub source: f64,
    /// And in the target.
    pub target: f64,
    /// The largest difference over the largest value.
    pub difference: f64,
    /// The first place, in order of execution, that returns something else on the same input.
    pub parted: Parted,
}

/// Resolves a map at its own sizes, tries it at those of the probe, and decides its claim.
///
/// # Errors
/// What is wrong with the map or its stages.
pub fn decide(program: &Program, def: &MapDef) -> (Option<Decision>, Vec<Diag>) {
    let bound = match resolve::resolve(program, def, Sizes::Bound, &FormalValues::new()) {
        Ok(bound) => bound,
        Err(diags) => return (None, diags),
    };
    let map = &bound.map;
    let mut decision = Decision {
        name: map.name.clone(),
        from: map.source.name.clone(),
        to: map.target.name.clone(),
        claim: map.claim.clone(),
        verdict: match map.claim {
            Claim::Exactly => Verdict::Unknown,
            _ => Verdict::Declared,
        },
        change: None,
        rules: Vec::new(),
        why: None,
        counterexample: None,
    };
    match probe(program, def) {
        Ok(probe) => tried(&probe, &mut decision),
        Err(why) => decision.why = Some(why),
    }
    if map.claim == Claim::Exactly && decision.verdict == Verdict::Unknown {
        proved(program, def, &mut decision);
    }
    let diags = complaint(def, &bound.map, &decision).into_iter().collect();
    (Some(decision), diags)
}

/// The map at small sizes: those of the probe, or formals that are all different if that goes.
fn probe(program: &Program, def: &MapDef) -> Result<Resolved, String> {
    let mut candidates: Vec<FormalValues> = Vec::new();
    for lengths in
        [[6, 10, 4, 8, 2, 12], [8, 12, 4, 16, 2, 6], [4, 8, 2, 16, 4, 8], [4, 4, 4, 4, 4, 4]]
    {
        let axes = def.ast.formals.iter().filter(|f| f.kind == FormalKind::Axis);
        let sizes = axes.zip(lengths.iter().cycle());
        let value = |n: i64| FormalValue::Size(Size::constant(n));
        candidates.push(sizes.map(|(f, n)| (f.name.name.clone(), value(*n))).collect());
    }
    let mut last = String::new();
    for formals in candidates {
        match resolve::resolve(program, def, Sizes::Probe, &formals) {
            Ok(probe) => {
                let count = |module| crate::analysis::param_table(module);
                let n = count(&probe.target.module).map_or(0, |table| table.stored.with_mtp);
                if n > MAX_PARAMS {
                    return Err(format!(
                        "`{}` has {n} parameters at the sizes of its probe, and {MAX_PARAMS} is the limit: \
                         give the stages a `probe {{ }}` with small sizes",
                        probe.map.target.name
                    ));
                }
                return Ok(probe);
            }
            Err(diags) => {
                last = diags.first().map_or(String::new(), |d| d.message.clone());
            }
        }
    }
    Err(format!("it cannot be tried at small sizes: {last}"))
}

fn tried(probe: &Resolved, decision: &mut Decision) {
    let mut meter = Meter::default();
    // What changes is measured at the middle scale only.
    let all = !matches!(decision.claim, Claim::Changes { .. });
    for (seed, magnitude) in TRIALS.into_iter().take(if all { TRIALS.len() } else { 1 }) {
        match trial(probe, seed, magnitude, &mut meter, decision) {
            Ok(()) => {}
            Err(EvalError(error)) => {
                decision.why = Some(format!("a trial could not be run: {error}"));
                return;
            }
        }
        let refuted = decision.verdict == Verdict::Refuted;
        if refuted && decision.claim == Claim::Exactly {
            break;
        }
    }
    decision.change = Some(meter.finish());
}

fn trial(
    probe: &Resolved,
    seed: u64,
    magnitude: f64,
    meter: &mut Meter,
    decision: &mut Decision,
) -> Result<(), EvalError> {
    let (map, source, target) = (&probe.map, &probe.source, &probe.target);
    let trial = Trial::run(map, source, target, seed, magnitude)?;
    let outputs = trial.outputs(map, &source.module, &target.module)?;
    if outputs.is_empty() {
        return Err(EvalError("the stages have no output in common".into()));
    }
    // Trained weights are about as large as the middle scale: only that is measured.
    if magnitude == 1.0 {
        meter.add(map, source, target, &trial, &outputs)?;
    }
    let bound = match decision.claim {
        Claim::Exactly => EQUAL,
        Claim::Within { bound } => bound,
        Claim::Changes { .. } => return Ok(()),
    };
    let worst = outputs.iter().max_by(|a, b| difference(a).total_cmp(&difference(b)));
    // Not a number is beyond any bound.
    let is_within = |output: &_| difference(output) <= bound;
    if let Some(worst) = worst
        && !is_within(worst)
        && decision.counterexample.is_none()
    {
        decision.verdict = Verdict::Refuted;
        decision.counterexample = Some(counterexample(probe, &trial, worst)?);
    }
    Ok(())
}

/// The largest difference over the largest value. A value that is no number differs.
pub(super) fn difference(compared: &Compared) -> f64 {
    let largest = compared.source.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    let pairs = compared.source.iter().zip(&compared.target);
    let differs = pairs.fold(0.0_f64, |most, (a, b)| {
        if a.is_finite() && b.is_finite() { most.max((a - b).abs()) } else { f64::INFINITY }
    });
    if differs == 0.0 { 0.0 } else { differs / largest.max(1e-30) }
}

/// Where the difference is largest: the two values.
pub(super) fn worst_pair(compared: &Compared) -> (f64, f64) {
    let pairs = compared.source.iter().zip(&compared.target);
    let worst = pairs.max_by(|a, b| (a.0 - a.1).abs().total_cmp(&(b.0 - b.1).abs()));
    worst.map_or((0.0, 0.0), |(a, b)| (*a, *b))
}

fn counterexample(
    probe: &Resolved,
    trial: &Trial,
    worst: &Compared,
) -> Result<Counterexample, EvalError> {
    let parted = parted(&probe.source, &probe.target, trial, worst)?;
    let (a, b) = worst_pair(worst);
    Ok(Counterexample {
        seed: trial.seed,
        sizes: sizes_text(probe),
        input: input_text(probe, trial),
        output: worst.name.clone(),
        source: a,
        target: b,
        difference: difference(worst),
        parted,
    })
}

fn sizes_text(probe: &Resolved) -> String {
    let root = probe.source.model.instance(probe.source.model.root);
    let sizes = root.sizes.iter().map(|(name, size)| format!("{name}={size}"));
    sizes.collect::<Vec<_>>().join(" ")
}

/// The first input, shortened to its first values.
fn input_text(probe: &Resolved, trial: &Trial) -> String {
    let entry = probe.source.module.entry_function();
    let Some((name, array)) = trial.inputs.first() else { return "nothing".to_owned() };
    let is_index = entry.inputs().next().is_some_and(|(_, v)| entry.ty(v).dtype == DType::Index);
    let shown: Vec<String> = array
        .iter()
        .take(6)
        .map(|v| if is_index { format!("{v}") } else { format!("{v:.3}") })
        .collect();
    let dots = if array.len() > 6 { ", ..." } else { "" };
    format!("{name}{:?} = {}{dots}", array.shape(), shown.join(", "))
}

/// Asks the prover, for the sizes that the stages leave open at their probes.
fn proved(program: &Program, def: &MapDef, decision: &mut Decision) {
    let symbolic = resolve::resolve(program, def, Sizes::Symbolic, &FormalValues::new());
    let mut symbolic = match symbolic {
        Ok(symbolic) => symbolic,
        Err(diags) => {
            let first = diags.first().map_or("", |d| d.message.as_str());
            decision.why = Some(format!("it has no form for symbolic sizes: {first}"));
            return;
        }
    };
    for side in [&mut symbolic.source, &mut symbolic.target] {
        without_training(&mut side.module);
    }
    match prove(&symbolic.map, &symbolic.source.module, &symbolic.target.module) {
        Proof::Proved { rules } => {
            decision.verdict = Verdict::Proved;
            decision.rules = rules.into_iter().map(|(name, n)| format!("{name} ({n})")).collect();
        }
        Proof::Unknown { why, place } => decision.why = Some(format!("in {place}: {why}")),
    }
}

/// Leaves the outputs that say what is computed, where there are such.
fn without_training(module: &mut Module) {
    let entry = module.functions.get_mut(module.entry.0 as usize);
    let Some(entry) = entry else { return };
    let named = |o: &Output, f: fn(&str) -> bool| o.name.as_deref().is_some_and(f);
    if entry.outputs.iter().any(|o| !named(o, is_training)) {
        entry.outputs.retain(|o| !named(o, is_training));
    }
}

/// What stands in the way of a claim.
fn complaint(def: &MapDef, map: &GrowthMap, decision: &Decision) -> Option<Diag> {
    use lightc_dsl::ast::ClauseKind;
    let claim = def.ast.clauses.iter().find(|c| {
        matches!(c.kind, ClauseKind::Exactly | ClauseKind::Within(_) | ClauseKind::Changes(_))
    });
    let span = claim.map_or(map.span, |c| c.span);
    let (from, to) = (&map.source, &map.target);
    let diag = match (&decision.verdict, &decision.claim) {
        (Verdict::Refuted, Claim::Within { bound }) => {
            let example = decision.counterexample.as_ref()?;
            let message = format!(
                "map `{}` does not preserve the function within {bound:e}: {}",
                map.name,
                example_text(example)
            );
            Diag::error(codes::OUT_OF_BOUND, message, span, "claimed here")
                .with_help("state the bound that holds, or `changes \"the reason\"`")
        }
        (Verdict::Refuted, _) => {
            let example = decision.counterexample.as_ref()?;
            let message = format!(
                "map `{}` does not preserve the function: {}",
                map.name,
                example_text(example)
            );
            let help = format!(
                "the stages part {}: correct the rules for it, or write `changes \"the reason\"`",
                place(&example.parted)
            );
            Diag::error(codes::REFUTED, message, span, "claimed here").with_help(help)
        }
        (Verdict::Unknown, Claim::Exactly) => {
            let why = decision.why.clone().unwrap_or_else(|| "no proof was found".to_owned());
            let message = format!(
                "map `{}` claims to preserve the function, and that is neither proved nor refuted: {why}",
                map.name
            );
            Diag::error(codes::UNPROVED, message, span, "claimed here").with_help(
                "build it from maps that are proved, or claim `preserves within` or `changes`",
            )
        }
        (Verdict::Declared, Claim::Within { .. }) if decision.change.is_none() => {
            let why = decision.why.clone().unwrap_or_default();
            let message = format!("the bound of map `{}` could not be tried: {why}", map.name);
            Diag::error(codes::UNPROVED, message, span, "claimed here")
                .with_help("give the stages a `probe { }` with small sizes")
        }
        (Verdict::Declared, Claim::Changes { .. }) if decision.change.is_none() => {
            let why = decision.why.clone().unwrap_or_default();
            let message = format!("what map `{}` changes could not be measured: {why}", map.name);
            Diag::error(codes::UNPROVED, message, span, "claimed here")
                .with_help("give the stages a `probe { }` with small sizes")
                .into_warning()
        }
        _ => return None,
    };
    let diag = diag.with_related(from.span, format!("the source, `{}`", from.name));
    Some(diag.with_related(to.span, format!("the target, `{}`", to.name)))
}

fn example_text(example: &Counterexample) -> String {
    let Parted { source_block, target_block, source, target, .. } = &example.parted;
    format!(
        "with random weights of seed {} and {}, `{}` is {:.6} in the source and {:.6} in the target, a difference of {:.1e}; \
         they part first {} ({source_block} in the source, {target_block} in the target), which returns {source:.6} and {target:.6}",
        example.seed,
        example.input,
        example.output,
        example.source,
        example.target,
        example.difference,
        place(&example.parted)
    )
}

fn place(parted: &Parted) -> String {
    match parted.path.as_str() {
        "" => "in the root block".to_owned(),
        path => format!("in `{path}`"),
    }
}
