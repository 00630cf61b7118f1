//! What the ledger counts of stacks, against bytes counted by hand.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use lightc_codegen::analysis::{MemoryClasses, MemorySetup, States, memory};
use lightc_codegen::pipeline::compile;
use lightc_dsl::diag;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::MapLoader;

/// Layers whose backward reads the input, by itself or through a view, and what the tangent is of; and stacks of four.
const SOURCE: &str = "
block Direct(d) {
    axis e = d
    param weight[e, d] ~ normal(0.5)

    forward(x[b, t, d]) -> [b, t, d] {
        x + tanh(rename(dot(x, weight, over d), e -> d))
    }
}

block Viewed(d) {
    axis e = d
    axis k = d
    param weight[e, k] ~ normal(0.5)

    forward(x[b, t, d]) -> [b, t, d] {
        x + tanh(rename(dot(rename(x, d -> k), weight, over k), e -> d))
    }
}

block Given(d) {
    axis e = d
    param weight[e, d] ~ normal(0.5)
    param scale[d] ~ ones

    forward(x[b, t, d]) -> [b, t, d] {
        tanh(rename(dot(x, weight, over d), e -> d)) / scale
    }
}

block Inner(d) {
    sub layer = Viewed()

    forward(x[b, t, d]) -> [b, t, d] {
        layer(x)
    }
}

block PlainDirect(d) {
    stack layers = m for m in [Direct()] * 4

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

block PlainViewed(d) {
    stack layers = m for m in [Viewed()] * 4

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

block PlainInner(d) {
    stack layers = m for m in [Inner()] * 4

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

block PlainGiven(d) {
    stack layers = m for m in [Given()] * 4

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

block Midpoint(d) {
    stack layers = m for m in [Viewed()] * 4 integrate midpoint(h: 1/4, a: 1/2, fraction_bits: 20)

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

block MidpointGiven(d) {
    stack layers = m for m in [Given()] * 4 integrate midpoint(h: 1/4, a: 1/2, fraction_bits: 20)

    forward(x[b, t, d]) -> (loss[]) {
        y = layers(x)
        mean(y * y, over (b, t, d))
    }
}

stage direct {
    d     = 16
    model = PlainDirect()
}

stage viewed extends direct {
    model = PlainViewed()
}

stage called extends direct {
    model = PlainInner()
}

stage given extends direct {
    model = PlainGiven()
}

stage midpoint {
    d     = 16
    model = Midpoint()
}

stage midpoint_given extends midpoint {
    model = MidpointGiven()
}
";

const MICRO_BATCH: u64 = 3;
const SEQ: u64 = 10;
/// Elements of a state.
const ELEMENTS: u64 = MICRO_BATCH * SEQ * 16;

fn classes(stage: &str, states: States) -> MemoryClasses {
    let (program, sources, diags) = load_program("main.llm", SOURCE, &MapLoader::default());
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    let model = program.resolve_stage(stage).unwrap();
    let compiled =
        compile(&model).unwrap_or_else(|d| panic!("{}", diag::render(&d, &sources, false)));
    let setup = MemorySetup { gpus: 1, micro_batch: MICRO_BATCH, seq: SEQ, states };
    memory(&compiled.module, compiled.backward, setup).unwrap().layouts[0].bytes
}

/// The input of each of four layers and what the tangent is of, in 16 bits: also where only a view of the input is read, and
/// where a block within the layer reads it.
#[test]
fn a_plain_stack_keeps_the_states_that_its_layers_read() {
    for stage in ["direct", "viewed", "called"] {
        for states in [States::HadBack, States::Stored] {
            assert_eq!(classes(stage, states).states, 4 * 2 * 2 * ELEMENTS, "{stage} {states:?}");
        }
    }
}

/// The gradient of a divisor reads the quotient, which is what the next layer reads: of each of four layers what it
/// gives and what the tangent is of, and the first input.
#[test]
fn what_two_layers_read_is_kept_once() {
    assert_eq!(classes("given", States::HadBack).states, (4 * 2 + 1) * 2 * ELEMENTS);
    // In a reversible stack a layer reads the value of a state: four inputs more, and no copy of what it gives.
    let stored = classes("midpoint_given", States::Stored);
    assert_eq!(stored.states, (5 * 4 + 4 * 3 * 2) * ELEMENTS);
}

#[test]
fn a_reversible_stack_keeps_two_states_or_all() {
    let back = classes("midpoint", States::HadBack);
    assert_eq!(back.states, 2 * 4 * ELEMENTS);
    // Of `a = 1/2` a bit an element for each step but the first.
    assert_eq!(back.kept_bits, 3 * ELEMENTS / 8);
    let stored = classes("midpoint", States::Stored);
    // Five states in 32 bits; of each layer its result, its input and what the tangent is of in 16.
    assert_eq!(stored.states, (5 * 4 + 4 * 3 * 2) * ELEMENTS);
    assert_eq!((stored.kept_bits, stored.replay), (back.kept_bits, back.replay));
    // What is not run again has no second forward, and no state of its own on the way.
    assert!(stored.workspace < back.workspace, "{} {}", stored.workspace, back.workspace);
}
