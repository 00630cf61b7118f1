//! The rewrite that writes at attention what its mask can hold.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::ir::{Module, text, verify};
use lightc_codegen::ops::Op;
use lightc_codegen::pipeline::compile_for;
use lightc_codegen::rewrite::bounds::bound_masks;
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::Loader;
use lightc_numerics::attention::MaskBound;

/// The bounds of a module's forward attentions.
fn bounds(module: &Module) -> Vec<MaskBound> {
    let nodes = module.functions.iter().flat_map(|function| &function.nodes);
    let found = nodes.filter_map(|node| match &node.op {
        Op::MaskedAttention(op) => Some(op.bound),
        _ => None,
    });
    found.collect()
}

/// The bound of an attention whose mask `made` makes as `%9`, of a score `%4`, a budget `%5` and a mask `%6`.
fn bound(made: &str) -> MaskBound {
    let source = format!(
        "module main entry @Main\n\nfunc @Main {{
  %0.q = input name=\"q\" () : act[b, t, h=2, k=4]
  %1.k = input name=\"k\" () : act[b, s=t, h=2, k=4]
  %2.v = input name=\"v\" () : act[b, s=t, h=2, m=4]
  %3.other = input name=\"other\" () : bool[t, b, s=t]
  %4.score = input name=\"score\" () : f32[b, t, s=t]
  %5.budget = input name=\"budget\" () : f32[b, t]
{made}
  %9 = masked_attention query=t key=s head=h channel=k (%0, %1, %2, %8) : act[b, t, h=2, m=4]
  return %9\n}}\n"
    );
    let mut module = text::parse(&source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    assert_eq!(verify::verify(&module), [], "{source}");
    let n = bound_masks(&mut module);
    assert_eq!(verify::verify(&module), []);
    let printed = text::print(&module);
    assert_eq!(text::parse(&printed).unwrap(), module, "{printed}");
    let [bound] = bounds(&module)[..] else { panic!("one attention") };
    assert_eq!(n == 1, bound != MaskBound::default());
    bound
}

const CAUSAL: MaskBound = MaskBound { causal: true, most_keys: None };
const SELECTED: MaskBound = MaskBound { causal: true, most_keys: Some(5) };

#[test]
fn a_selection_bounds_keys_and_order() {
    let select = "select_top query=t key=s sinks=1 limit=5 (%4, %5) : bool[b, t, s=t]";
    let view = "permute order=[b, t, s] (%7) : bool[b, t, s=t]";
    assert_eq!(
        bound(&format!(
            "  %6 = const value=0.0 dtype=f32 () : f32[]\n  %7 = {select}\n  %8 = {view}"
        )),
        SELECTED
    );
}

#[test]
fn a_causal_mask_bounds_the_order_alone() {
    let made = "  %6 = causal query=<t> key=<s=t> () : bool[t, s=t]
  %7 = broadcast axes=<b, t, s=t> (%6) : bool[b, t, s=t]
  %8 = permute order=[b, t, s] (%7) : bool[b, t, s=t]";
    assert_eq!(bound(made), CAUSAL);
}

#[test]
fn names_are_followed_through_a_renaming() {
    let made = "  %6 = causal query=<t> key=<z=t> () : bool[t, z=t]
  %7 = rename from=z to=s (%6) : bool[t, s=t]
  %8 = broadcast axes=<b, t, s=t> (%7) : bool[b, t, s=t]";
    assert_eq!(bound(made), CAUSAL);
}

#[test]
fn a_causal_mask_seen_from_its_keys_has_no_bound() {
    let made = "  %6 = causal query=<s=t> key=<t> () : bool[s=t, t]
  %7 = permute order=[t, s] (%6) : bool[t, s=t]
  %8 = broadcast axes=<b, t, s=t> (%7) : bool[b, t, s=t]";
    assert_eq!(bound(made), MaskBound::default());
}

#[test]
fn a_mask_from_elsewhere_has_no_bound() {
    let made = "  %6 = const value=0.0 dtype=f32 () : f32[]
  %7 = permute order=[b, t, s] (%3) : bool[b, t, s=t]
  %8 = permute order=[b, t, s] (%7) : bool[b, t, s=t]";
    assert_eq!(bound(made), MaskBound::default());
}

#[test]
fn attention_of_the_lineage_is_bounded_by_its_indexer_in_both_directions() {
    let library = common::library();
    let (name, source) = library.load("", "lightning/lightning.llm").unwrap();
    let (program, _, diags) = load_program(&name, &source, &library);
    assert!(diags.is_empty(), "{diags:?}");
    let model = program.resolve_stage("lightning_2b").unwrap();
    let module = compile_for(&model, Target::Sm90a).unwrap().module;
    let selected = MaskBound { causal: true, most_keys: Some(256) };
    let forward = bounds(&module);
    assert!(!forward.is_empty() && forward.iter().all(|bound| *bound == selected), "{forward:?}");
    let nodes = module.backward.iter().flat_map(|backward| &backward.body.nodes);
    let backward = nodes.filter(|node| match &node.op {
        Op::MaskedAttentionGrad(op) => {
            assert_eq!(op.bound, selected);
            true
        }
        _ => false,
    });
    assert!(backward.count() > 0);
}
