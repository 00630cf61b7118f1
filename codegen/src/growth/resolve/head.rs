//! What a map says of itself: its claim, its seed, what becomes of moments.

use crate::growth::numbers::Names;
use crate::growth::{Claim, Moments, codes};
use lightc_dsl::ast::ClauseKind;
use lightc_dsl::diag::Diag;
use lightc_dsl::resolve::MapDef;
use lightc_dsl::source::Span;

/// What a map says once.
pub(super) struct Head {
    pub(super) claim: Claim,
    pub(super) seed: u64,
    pub(super) moments: Moments,
}

impl Head {
    pub(super) fn read(
        def: &MapDef,
        stage_map: bool,
        draws: Option<Span>,
        diags: &mut Vec<Diag>,
    ) -> Head {
        let names = Names::default();
        let (mut claim, mut seed, mut moments) = (None, None, None);
        for clause in &def.ast.clauses {
            let span = clause.span;
            match &clause.kind {
                ClauseKind::Exactly => once(&mut claim, Claim::Exactly, span, "claim", diags),
                ClauseKind::Within(bound) => match names.number(bound) {
                    Ok(bound) if bound > 0.0 => {
                        once(&mut claim, Claim::Within { bound }, span, "claim", diags);
                    }
                    Ok(bound) => {
                        let message = format!("a bound is above 0, and this is {bound}");
                        let diag = Diag::error(codes::CLAIMS, message, span, "no bound");
                        diags.push(
                            diag.with_help("`preserves exactly` claims that nothing changes"),
                        );
                        claim = claim.or(Some((Claim::Exactly, span)));
                    }
                    Err(diag) => diags.push(*diag),
                },
                ClauseKind::Changes(reason) => {
                    let stated = !reason.value.trim().is_empty();
                    if !stated {
                        let message = "a claim that the function changes has no reason";
                        let diag = Diag::error(codes::CLAIMS, message, reason.span, "empty");
                        diags.push(diag.with_help("write `changes \"what changes, and why\"`"));
                    }
                    let reason = reason.value.clone();
                    once(&mut claim, Claim::Changes { reason }, span, "claim", diags);
                }
                ClauseKind::Seed(value) => match names.index(value) {
                    Ok(value) => once(&mut seed, value, span, "seed", diags),
                    Err(diag) => diags.push(*diag),
                },
                ClauseKind::Moments { reset } => {
                    let rule = match reset {
                        Some(reason) => Moments::Reset { reason: reason.value.clone() },
                        None => Moments::Follow,
                    };
                    if reset.as_ref().is_some_and(|reason| reason.value.trim().is_empty()) {
                        let message = "a reset of the moments has no reason";
                        let diag = Diag::error(codes::NO_MOMENTS, message, span, "empty reason");
                        diags.push(diag.with_help("write `moments reset \"the reason\"`"));
                    }
                    once(&mut moments, rule, span, "rule of moments", diags);
                }
                _ => {}
            }
        }
        let name = &def.ast.name;
        if claim.is_none() {
            diags.push(
                Diag::error(
                    codes::CLAIMS,
                    format!("map `{}` does not say what it does to the function", name.name),
                    name.span,
                    "no claim",
                )
                .with_help(
                    "add `preserves exactly`, `preserves within 1e-3` or `changes \"the reason\"`",
                ),
            );
        }
        if moments.is_none() && stage_map {
            diags.push(
                Diag::error(
                    codes::NO_MOMENTS,
                    format!(
                        "map `{}` does not say what becomes of the optimizer's moments",
                        name.name
                    ),
                    name.span,
                    "no rule of moments",
                )
                .with_help("add `moments follow`, or `moments reset \"the reason\"`"),
            );
        }
        if let (None, Some(span), true) = (&seed, draws, stage_map) {
            diags.push(
                Diag::error(
                    codes::NO_SEED,
                    format!("map `{}` draws numbers and has no seed", name.name),
                    span,
                    "drawn here",
                )
                .with_related(name.span, "in this map")
                .with_help("add a line `seed 42`: with it the result is the same on every machine"),
            );
        }
        Head {
            claim: claim.map_or(Claim::Exactly, |(claim, _)| claim),
            seed: seed.map_or(0, |(seed, _)| seed),
            moments: moments.map_or(Moments::Follow, |(moments, _)| moments),
        }
    }
}

fn once<T>(slot: &mut Option<(T, Span)>, value: T, span: Span, what: &str, diags: &mut Vec<Diag>) {
    match slot {
        Some((_, first)) => diags.push(
            Diag::error(codes::CLAIMS, format!("the map has two {what}s"), span, "second")
                .with_related(*first, "first")
                .with_help("remove one of them"),
        ),
        None => *slot = Some((value, span)),
    }
}
