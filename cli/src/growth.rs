//! Growth maps in `lightc check`: how their claims came out, for people.

use crate::source::Loaded;
use lightc_codegen::growth::{self, Change, Claim, Decision, Measured, Routing, Shares, Verdict};
use lightc_dsl::diag::Diag;

/// Decides the maps of the root file.
pub(crate) fn decide(loaded: &Loaded) -> (Vec<Decision>, Vec<Diag>) {
    let program = &loaded.program;
    let (mut decisions, mut diags) = (Vec::new(), Vec::new());
    for map in program.maps().iter().filter(|map| map.file == program.root()) {
        let (decision, found) = growth::decide(program, map);
        decisions.extend(decision);
        diags.extend(found);
    }
    (decisions, diags)
}

/// One paragraph per map.
pub(crate) fn text(maps: &[Decision]) -> String {
    maps.iter().map(|map| format!("\n{}", paragraph(map))).collect()
}

fn paragraph(map: &Decision) -> String {
    let mut out = format!("map {}: {} -> {}\n", map.name, map.from, map.to);
    let claim = match &map.claim {
        Claim::Exactly => "preserves exactly".to_owned(),
        Claim::Within { bound } => format!("preserves within {bound:e}"),
        Claim::Changes { reason } => format!("changes: {reason}"),
    };
    line(&mut out, "claim", &claim);
    let verdict = match map.verdict {
        Verdict::Proved => "proved, for all inputs, weights and open sizes",
        Verdict::Refuted => "refuted",
        Verdict::Unknown => "unknown",
        Verdict::Declared => "declared",
    };
    line(&mut out, "verdict", verdict);
    if let Some(change) = &map.change {
        changes(&mut out, change);
    }
    if !map.rules.is_empty() {
        line(&mut out, "rules", &map.rules.join(", "));
    }
    if let Some(why) = &map.why {
        line(&mut out, "note", why);
    }
    out
}

fn changes(out: &mut String, change: &Change) {
    let same = change.outputs.iter().chain(&change.blocks).all(|m| m.error == 0.0);
    if same && change.routing.is_empty() {
        line(out, "measured", "no difference in any output");
        return;
    }
    for measured in &change.outputs {
        line(out, "measured", &format!("{}: {}", measured.name, figures(measured)));
    }
    for measured in &change.blocks {
        let figures = figures(measured);
        line(out, "measured", &format!("{}, given the same input: {figures}", measured.name));
    }
    for routing in &change.routing {
        line(out, "measured", &clones(routing));
    }
}

/// How the slots of a router fill with clones.
fn clones(routing: &Routing) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let whose = |shares: &Shares| {
        format!(
            "of the first choice {}, of the first two {}",
            percent(shares.top1),
            percent(shares.top2)
        )
    };
    let mut text = format!(
        "{}: {} slots over clones of {} experts; all of one source at {} of positions; slots that are \
         clones {}",
        routing.name,
        routing.slots,
        routing.experts,
        percent(routing.one_source),
        whose(&routing.slots_of),
    );
    if let Some(shares) = &routing.without_dropped {
        text += &format!(
            "; by the source's choices without what the map drops of its router: {}",
            whose(shares)
        );
    }
    text
}

fn figures(measured: &Measured) -> String {
    // Below what the ratios show.
    if measured.error < 5e-4 {
        return format!("the same to a relative error of {:.1e}", measured.error);
    }
    format!(
        "norm x{:.3}, projection {:.3}, cosine {:.4}, relative error {:.3}",
        measured.norm, measured.projection, measured.cosine, measured.error
    )
}

fn line(out: &mut String, what: &str, text: &str) {
    out.push_str(&format!("    {what:<9} {text}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_error_is_not_shown_as_none() {
        let of = |error| Measured {
            name: "y".to_owned(),
            norm: 1.5,
            projection: 1.25,
            cosine: 0.5,
            error,
        };
        assert_eq!(figures(&of(2e-16)), "the same to a relative error of 2.0e-16");
        let text = figures(&of(0.5));
        assert_eq!(text, "norm x1.500, projection 1.250, cosine 0.5000, relative error 0.500");
    }

    #[test]
    fn shares_of_clones_are_said_with_and_without_what_is_dropped() {
        let mut routing = Routing {
            name: "router".to_owned(),
            slots: 12,
            experts: 20,
            one_source: 0.75,
            slots_of: Shares { top1: 0.5, top2: 0.625 },
            without_dropped: Some(Shares { top1: 0.875, top2: 1.0 }),
        };
        assert_eq!(
            clones(&routing),
            "router: 12 slots over clones of 20 experts; all of one source at 75.0% of positions; slots \
             that are clones of the first choice 50.0%, of the first two 62.5%; by the source's choices \
             without what the map drops of its router: of the first choice 87.5%, of the first two 100.0%"
        );
        routing.without_dropped = None;
        assert!(clones(&routing).ends_with("of the first two 62.5%"));
    }
}
