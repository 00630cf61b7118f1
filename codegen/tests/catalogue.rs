//! The catalogue of silent failures (docs/catalogue.md): each is planted, and has to be said.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod common;

use common::library;
use lightc_codegen::analysis::rank_dependent_states;
use lightc_codegen::{growth, pipeline};
use lightc_dsl::diag::Diag;
use lightc_dsl::resolve::load_program;

/// Everything that `lightc check` says of a source.
fn said(text: &str) -> Vec<Diag> {
    let (program, _, mut diags) = load_program("main.llm", text, &library());
    let (models, found) = program.check();
    diags.extend(found);
    for model in &models {
        match pipeline::lower(model) {
            Err(found) => diags.extend(found),
            Ok(module) if pipeline::has_loss(&module) => {
                match pipeline::differentiate(model, module) {
                    Ok(compiled) => diags.extend(rank_dependent_states(&compiled.module)),
                    Err(found) => diags.extend(found),
                }
            }
            Ok(_) => {}
        }
    }
    if diags.is_empty() {
        for map in program.maps().iter().filter(|map| map.file == program.root()) {
            diags.extend(growth::decide(&program, map).1);
        }
    }
    diags
}

fn says(text: &str, codes: &[&str]) {
    let found = said(text);
    for code in codes {
        assert!(found.iter().any(|d| d.code == *code), "{code} is not in {found:#?}");
    }
    if codes.is_empty() {
        assert!(found.is_empty(), "{found:#?}");
    }
}

const LAYERS: &str = "
import \"std/swiglu.llm\"
import \"std/moe.llm\"

block Tower(d, f, motif: blocks, base: number = 10000, how: integrator) {
    stack layers = m for m in motif integrate how

    forward(x[b, t, d]) -> (loss[], y[b, t, d]) {
        y = base * layers(x) / base
        (mean(square(y), over (b, t, d)) + penalties(), y)
    }
}

block Watch(d) {
    param weight[d] ~ ones
    state seen[] = 1

    forward(x[b, t, d]) -> [b, t, d] {
        power = sum_ranks(f32(mean(square(x), over (b, t, d))))
        update seen = 0.9 * seen + 0.1 * power
        x * weight * act(rsqrt(seen))
    }
}

stage small {
    d     = 8
    f     = 8
    e     = 2
    nulls = 2
    top_k = 1
    how   = plain()
    motif = [SwiGlu()] * 2
    model = Tower()
}

stage deep extends small {
    motif = [SwiGlu()] * 4
}

stage mixed extends small {
    motif = [Watch(), SwiGlu()]
}

stage experts extends small {
    motif = [MixtureOfExperts(shared: SwiGlu(), routed: Experts(), router: SoftmaxRouter())] * 2
}

stage many extends experts {
    e = 6
}
";

/// A map between two of the stages.
fn map(head: &str, claim: &str, lines: &str) -> String {
    format!("{LAYERS}\ngrow m: {head} {{\n{claim}\nseed 1\nmoments follow\n{lines}\n}}\n")
}

const CHANGES: &str = "changes \"a test\"";
const EXACT: &str = "preserves exactly";

#[test]
fn the_stages_themselves_are_right() {
    says(LAYERS, &[]);
}

#[test]
fn failure_01_an_alias_is_filled_in_place_of_the_tensor() {
    says(&map("small -> small", CHANGES, "blocks[0].** = src.layers[0].**"), &["E0610"]);
    says(&map("small -> small", CHANGES, "layers[0].** = src.layers[0].**"), &["E0620", "E0622"]);
}

#[test]
fn failure_02_a_prefix_keeps_the_old_number_of_layers() {
    says(&map("small -> deep", CHANGES, "rest = src"), &["E0620"]);
}

#[test]
fn failure_03_layers_are_off_by_one() {
    says(
        &map("small -> small", CHANGES, "layers[i].** = src.layers[i + 1].** for i in 0 .. 2"),
        &["E0611"],
    );
}

#[test]
fn failure_04_a_tensor_has_no_source() {
    let shared = "layers[l].shared.** = src.layers[l].** for l in 0 .. 2";
    says(&map("small -> experts", CHANGES, shared), &["E0620"]);
}

const CLONED: &str = "rest = src
layers[l].routed.gate = tile(src.layers[l].routed.gate, over e) for l in 0 .. 2
layers[l].routed.up = tile(src.layers[l].routed.up, over e) for l in 0 .. 2
layers[l].routed.down = tile(src.layers[l].routed.down, over e) for l in 0 .. 2
layers[l].router.weight = noise(tile(src.layers[l].router.weight, over e), factor: 0.5) for l in 0 .. 2
layers[l].router.bias = tile(src.layers[l].router.bias, over e) for l in 0 .. 2";

#[test]
fn failure_05_experts_are_clones_and_the_router_is_disturbed() {
    says(&map("experts -> many", EXACT, CLONED), &["E0650"]);
    let text = map("experts -> many", CHANGES, CLONED);
    let (program, _, _) = load_program("main.llm", &text, &library());
    let (decision, diags) = growth::decide(&program, program.map("m").unwrap());
    assert!(diags.is_empty(), "{diags:#?}");
    let routing = decision.unwrap().change.unwrap().routing;
    assert_eq!((routing[0].slots, routing[0].experts), (1, 2));
    assert!(routing[0].slots_of.top1 > 0.3, "{routing:?}");
    // Nothing of the router is dropped.
    assert_eq!(routing[0].without_dropped, None);
}

#[test]
fn failure_06_the_scale_of_the_output_jumps() {
    let lines = |down: &str| {
        format!(
            "layers[l].shared.** = src.layers[l].** for l in 0 .. 2
layers[l].routed.gate = repeat(src.layers[l].gate, over e) for l in 0 .. 2
layers[l].routed.up = repeat(src.layers[l].up, over e) for l in 0 .. 2
layers[l].routed.down = {down} for l in 0 .. 2
layers[l].router.weight = normal(0.02) for l in 0 .. 2
layers[l].router.bias = zeros for l in 0 .. 2
layers[l].router.null_logit = zeros for l in 0 .. 2"
        )
    };
    let loud = lines("repeat(src.layers[l].down, over e)");
    says(&map("small -> experts", EXACT, &loud), &["E0650"]);
    let (program, _, _) =
        load_program("main.llm", &map("small -> experts", CHANGES, &loud), &library());
    let change = growth::decide(&program, program.map("m").unwrap()).0.unwrap().change.unwrap();
    assert!(change.blocks[0].norm > 1.2, "{change:#?}");
    let quiet = said(&map("small -> experts", EXACT, &lines("zeros")));
    assert!(quiet.is_empty(), "{quiet:#?}");
}

#[test]
fn failure_07_the_integrator_is_another_one() {
    let stage = "stage joined extends small {\n    how = midpoint(h: 1 / 4, a: 1 / 2)\n}\n";
    let text = map("small -> joined", CHANGES, "rest = src")
        .replace("stage deep", &format!("{stage}\nstage deep"));
    says(&text, &["E0640"]);
}

#[test]
fn failure_08_a_state_becomes_a_parameter_and_a_number_an_array() {
    let lines = "rest = src\nlayers[0].weight = repeat(src.layers[0].seen, over d)";
    says(&map("mixed -> mixed", CHANGES, lines), &["E0632"]);
    let lines = "rest = src\nlayers[0].router.bias = src.layers[0].router.null_logit";
    says(&map("experts -> experts", CHANGES, lines), &["E0630"]);
}

#[test]
fn failure_09_the_rotary_base_drifts() {
    let stage = "stage drifted extends small {\n    model = Tower(base: 100000)\n}\n";
    let text = map("small -> drifted", CHANGES, "rest = src")
        .replace("stage deep", &format!("{stage}\nstage deep"));
    says(&text, &["E0640"]);
}

#[test]
fn failure_10_a_running_statistic_is_lost() {
    let lines = "layers[0].weight = src.layers[0].weight\nlayers[1].** = src.layers[1].**";
    says(&map("mixed -> mixed", CHANGES, lines), &["E0620", "E0622"]);
}

#[test]
fn failure_11_the_band_does_not_hold_even_load() {
    let router = "SigmoidRouter(e: 460, low: 0.02, high: 0.15)";
    let text = LAYERS.replace("SoftmaxRouter()", router);
    says(&text, &["E0240"]);
}

#[test]
fn failure_12_selections_read_narrowed_scores() {
    let text = "
block Pick(d, e, p) {
    param weight[e, d] ~ normal(0.02)

    forward(x[b, d]) -> [b, p]: index {
        top(dot(x, weight, over d), e -> p)
    }
}
";
    says(text, &["E0450"]);
}

#[test]
fn failure_13_ranks_would_differ() {
    let text = LAYERS.replace(
        "sum_ranks(f32(mean(square(x), over (b, t, d))))",
        "f32(mean(square(x), over (b, t, d)))",
    );
    says(&text, &["E0654"]);
    let (_, sources, _) = load_program("main.llm", &text, &library());
    common::assert_shown("growth__E0654", &common::shown(&text, said(&text), &sources));
}

#[test]
fn failure_14_moments_are_forgotten() {
    let text = map("small -> small", EXACT, "rest = src").replace("moments follow\n", "");
    says(&text, &["E0603"]);
}

#[test]
fn failure_15_penalties_are_dropped() {
    says(&LAYERS.replace(" + penalties()", ""), &["E0440"]);
}

#[test]
fn failure_16_a_zip_is_cut_and_motifs_are_mixed() {
    let lines = "layers[i].** = src.layers[j].** for i, j in zip(0 .. 4, [0 .. 2, 0])";
    says(&map("small -> deep", CHANGES, lines), &["E0613"]);
    says(
        &map("small -> mixed", CHANGES, "layers[i].** = src.layers[i].** for i in 0 .. 2"),
        &["E0614"],
    );
}

#[test]
fn failure_18_an_unknown_name_is_not_another_stage() {
    says(&map("small -> smal", CHANGES, "rest = src"), &["E0601"]);
    let (program, _, _) = load_program("main.llm", LAYERS, &library());
    assert_eq!(growth::bound(&program, "m").unwrap_err()[0].code, "E0605");
    assert_eq!(program.resolve_stage("smal").unwrap_err()[0].code, "E0208");
}

#[test]
fn failure_19_draws_have_no_seed() {
    let lines = "rest = src\nlayers[0].gate = noise(src.layers[0].gate, factor: 0.1)";
    says(&map("small -> small", CHANGES, lines).replace("seed 1\n", ""), &["E0604"]);
}

/// Draws are a function of seed and tensor: another order of rules gives the same values.
#[test]
fn failure_19_draws_do_not_depend_on_order() {
    let lines = ["layers[0].gate = normal(0.02)", "layers[0].up = normal(0.02)"];
    let drawn = |lines: String| {
        let lines = format!(
            "{lines}\nrest = src\ndrop src.layers[0].gate \"anew\"\ndrop src.layers[0].up \"anew\""
        );
        let (program, _, _) =
            load_program("main.llm", &map("small -> small", CHANGES, &lines), &library());
        serde_json::to_string(&growth::bound(&program, "m").unwrap().params).unwrap()
    };
    assert_eq!(drawn(lines.join("\n")), drawn(format!("{}\n{}", lines[1], lines[0])));
}

#[test]
fn storage_a_parameter_learns_or_is_frozen_for_a_reason() {
    let text = |weight: &str| {
        format!(
            "
block Dead(d) {{
    param weight[d] ~ ones{weight}

    forward(x[b, d]) -> (loss[]) {{
        mean(stop_gradient(weight) * x, over (b, d))
    }}
}}

stage dead {{
    d     = 4
    model = Dead()
}}
"
        )
    };
    says(&text(""), &["E0501"]);
    says(&text(" frozen \"\""), &["E0515"]);
}
