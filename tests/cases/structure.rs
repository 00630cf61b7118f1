//! Whole modules: calls, stacks, states, tables, shared parameters, and what a backward leaves out.

use super::Cases;
use super::Draw::{Below, Normal};

/// A sub-block that is called twice, with two outputs of which each call uses another; a stack of
/// two kinds of layer; a state that is read and updated; a table; values that are returned twice.
const CALLS: &str = r#"
module calls entry @Root

func @Inner {
  doc "Two outputs, one of them also a state."
  param weight: act[d=5, e=5] ~ normal(0.02) trained
  param scale: f32[e=5] ~ ones() frozen "as a test" doc "A factor."
  state peak: f32[e=5] = 0.5
  table rows: index[v=6] from "tokenizer.byte_counts"
  %0.x = input name="x" () : act[r, d=5]
  %1.ids = input name="ids" () : index[r]
  %2.weight = param index=0 () : act[d=5, e=5]
  %3 = contract over=[d] (%0, %2) : act[r, e=5]
  %4.scale = param index=1 () : f32[e=5]
  %5 = mul (%3, %4) : f32[r, e=5]
  %6.rows = table index=0 () : index[v=6]
  %7.picked = lookup rows=v (%6, %1) : index[r]
  %8 = cast to=f32 (%7) : f32[r]
  %9.peak = state index=0 () : f32[e=5]
  %10 = add (%5, %9) : f32[r, e=5]
  %11.y = mul (%10, %8) : f32[r, e=5]
  %12 = mean over=[r] (%5) : f32[e=5]
  %13 = max (%12, %9) : f32[e=5]
  update peak = %13
  return wide: %11, narrow: %3
}

func @Layer {
  param weight: act[d=5] ~ ones() trained
  %0.x = input name="x" () : act[t, d=5]
  %1 = param index=0 () : act[d=5]
  %2 = mul (%0, %1) : act[t, d=5]
  %3.like = tanh (%2) : act[t, d=5]
  %4.saved = add (%0, %3) : act[t, d=5]
  return %4
}

func @OtherLayer {
  sub first = [@Layer]
  %0.x = input name="x" () : act[t, d=5]
  %1.size_t = size_value size={t} () : f32[]
  %2 = call sub=0 (%0) : act[t, d=5]
  %3 = div (%2, %1) : f32[t, d=5]
  %4 = cast to=act (%3) : act[t, d=5]
  return %4
}

func @Root {
  sub inner = [@Inner]
  stack layers = [@Layer, @OtherLayer, @Layer]
  param shift: act[d=5] ~ zeros() trained
  sub tail = [@OtherLayer] training_only
  state unread: f32[d=5] = 1.0
  %0.x = input name="x" () : act[n, d=5]
  %1.ids = input name="ids" () : index[n]
  %2 = param index=0 () : act[d=5]
  %3.x = add (%0, %2) : act[n, d=5]
  %4, %5 = call sub=0 (%3, %1) : f32[n, e=5], act[n, e=5]
  %6 = rename from=e to=d (%5) : act[n, d=5]
  %7 = stack sub=1 integrator="plain()" (%6) : act[n, d=5]
  %8, %9 = call sub=0 (%7, %1) : f32[n, e=5], act[n, e=5]
  %10 = call sub=2 (%3) : act[n, d=5]
  %11 = contract over=[d] (%10, %3) : act[n]
  %12 = mul (%8, %11) : f32[n, e=5]
  %13.loss = sum over=[n, e] (%12) : f32[]
  %14.again = param index=0 () : act[d=5]
  %15 = mul (%14, %13) : f32[d=5]
  %16.loss = sum over=[d] (%15) : f32[]
  update unread = %15
  return loss: %16, beside: %15, same: %15, input: %0, param: %14, other: %4
}
"#;

/// Values with the names that emitted code uses for itself, and Rust's keywords.
const NAMES: &str = r#"
module names entry @Self

func @Type {
  param grads: act[d=3] ~ ones() trained
  param size_t: act[d=3] ~ ones() trained
  state next: f32[d=3] = 0.0
  %0.saved = input name="like" () : act[t, d=3]
  %1.weights = param index=0 () : act[d=3]
  %2.ops = mul (%0, %1) : act[t, d=3]
  %3.grads = param index=1 () : act[d=3]
  %4.next = mul (%2, %3) : act[t, d=3]
  %5.like = state index=0 () : f32[d=3]
  %6.size_t = size_value size={t} () : f32[]
  %7.self = mul (%5, %6) : f32[d=3]
  %8.accumulate = add (%4, %7) : f32[t, d=3]
  %9.match = sum over=[t] (%8) : f32[d=3]
  update next = %9
  return fn: %8
}

func @Self {
  sub type = [@Type]
  param crate: act[d=3] ~ zeros() trained
  %0.loop = input name="loop" () : act[t, d=3]
  %1.v2 = param index=0 () : act[d=3]
  %2 = mul (%0, %1) : act[t, d=3]
  %3.size_d = call sub=0 (%2) : f32[t, d=3]
  %4.move = tanh (%3) : f32[t, d=3]
  %5.Result = sum over=[t, d] (%4) : f32[]
  return loss: %5
}
"#;

/// Names that look like those that emitted code gives to what has none.
const NUMBERED: &str = r#"
module numbered entry @Root

func @Root {
  param weight: act[d=3] ~ ones() trained
  %0.v4 = input name="v4" () : act[t, d=3]
  %1 = param index=0 () : act[d=3]
  %2.v3 = mul (%0, %1) : act[t, d=3]
  %3 = tanh (%2) : act[t, d=3]
  %4 = exp (%0) : act[t, d=3]
  %5.x = mul (%2, %3) : act[t, d=3]
  %6.x_8 = mul (%5, %4) : act[t, d=3]
  %7.x_5 = sigmoid (%6) : act[t, d=3]
  %8.x = mul (%7, %6) : act[t, d=3]
  %9.first_call = add (%8, %5) : act[t, d=3]
  %10.Ok = add (%9, %0) : act[t, d=3]
  %11.weights_ = mul (%10, %2) : act[t, d=3]
  %12.weights = mul (%11, %7) : act[t, d=3]
  %13.None = tanh (%12) : act[t, d=3]
  %14.wide_0 = mul (%13, %12) : act[t, d=3]
  return loss: %14
}
"#;

/// Blocks without parameters, inputs that nothing reads, results that nothing reads, a stack on
/// an input whose gradient nothing asks for, a stack of no layers, and one of one.
const SPARE: &str = r#"
module spare entry @Root

func @Halve {
  %0.x = input name="x" () : act[t, d=3]
  %1.spare = input name="spare" () : act[t]
  %2 = affine mul=0.5 add=0.0 (%0) : act[t, d=3]
  %3 = affine mul=2.0 add=0.0 (%0) : act[t, d=3]
  return half: %2, double: %3
}

func @Layer {
  param weight: act[d=3] ~ ones() trained
  %0.x = input name="x" () : act[t, d=3]
  %1 = param index=0 () : act[d=3]
  %2 = mul (%0, %1) : act[t, d=3]
  return %2
}

func @Root {
  sub halve = [@Halve]
  stack layers = [@Layer, @Layer]
  stack none = []
  stack one = [@Layer]
  param unread: act[d=3] ~ ones() trained
  %0.x = input name="x" () : act[t, d=3]
  %1.spare = input name="spare" () : act[t]
  %2 = stack sub=1 integrator="plain()" (%0) : act[t, d=3]
  %3.half, %4.double = call sub=0 (%2, %1) : act[t, d=3], act[t, d=3]
  %5 = stack sub=2 integrator="plain()" (%3) : act[t, d=3]
  %6 = stack sub=3 integrator="plain()" (%5) : act[t, d=3]
  %7 = stack sub=2 integrator="plain()" (%0) : act[t, d=3]
  %8 = mul (%6, %7) : act[t, d=3]
  return loss: %8
}
"#;

/// A block with the name of a crate; members with the names of the
/// fields of a stack.
const FIELDS: &str = r#"
module fields entry @Root

func @RmsNorm {
  param weight: act[d=3] ~ ones() trained
  %0.x = input name="x" () : act[t, d=3]
  %1 = param index=0 () : act[d=3]
  %2 = mul (%0, %1) : act[t, d=3]
  return %2
}

func @Std {
  param type: act[d=3] ~ ones() trained
  param type_: act[d=3] ~ ones() trained
  %0.x = input name="x" () : act[t, d=3]
  %1 = param index=0 () : act[d=3]
  %2 = mul (%0, %1) : act[t, d=3]
  %3 = param index=1 () : act[d=3]
  %4 = add (%2, %3) : act[t, d=3]
  return %4
}

func @Root {
  stack layers = [@RmsNorm, @Std, @RmsNorm]
  param layers_0: act[d=3] ~ ones() trained
  sub layers_2 = [@Std]
  state layers_1: f32[d=3] = 0.0
  %0.x = input name="x" () : act[t, d=3]
  %1 = param index=0 () : act[d=3]
  %2 = mul (%0, %1) : act[t, d=3]
  %3.layers_0_call = stack sub=0 integrator="plain()" (%2) : act[t, d=3]
  %4.layers_2_call = call sub=1 (%3) : act[t, d=3]
  %5 = mul (%4, %3) : act[t, d=3]
  %6 = state index=0 () : f32[d=3]
  %7 = add (%5, %6) : f32[t, d=3]
  %8 = sum over=[t] (%7) : f32[d=3]
  update layers_1 = %8
  return loss: %7
}
"#;

/// Reversible stacks: factors that keep 0 to 3 bits, gates on some layers (one on the first), a layer
/// with a state, a stack inside a layer, a stack that is called twice, of one layer and of none.
const REVERSIBLE: &str = r#"
module reversible entry @Root

func @Turn {
  param weight: act[e=5, d=5] ~ normal(0.02) trained
  %0.x = input name="x" () : act[t, d=5]
  %1 = param index=0 () : act[e=5, d=5]
  %2 = contract over=[d] (%0, %1) : act[t, e=5]
  %3 = tanh (%2) : act[t, e=5]
  %4 = rename from=e to=d (%3) : act[t, d=5]
  %5 = add (%0, %4) : act[t, d=5]
  return %5
}

func @Count {
  param weight: act[d=5] ~ ones() trained
  state seen: f32[d=5] = 0.5
  %0.x = input name="x" () : act[t, d=5]
  %1 = param index=0 () : act[d=5]
  %2 = mul (%0, %1) : act[t, d=5]
  %3 = state index=0 () : f32[d=5]
  %4 = sum over=[t] (%2) : act[d=5]
  %5 = add (%4, %3) : f32[d=5]
  %6 = mul (%2, %3) : f32[t, d=5]
  %7 = cast to=act (%6) : act[t, d=5]
  update seen = %5
  return %7
}

func @Nest {
  stack inner = [@Turn, @Count]
  %0.x = input name="x" () : act[t, d=5]
  %1 = stack sub=0 integrator="midpoint(h: 0.5, a: [1/4] * 2, bootstrap: half_euler, fraction_bits: 20)" (%0) : act[t, d=5]
  return %1
}

func @Root {
  stack layers = [@Turn, @Count, @Turn, @Nest, @Turn]
  param layers.0.gate: f32[] ~ ones() trained
  param layers.3.gate: f32[] ~ ones() trained
  stack Layers = [@Turn]
  stack none = []
  param layers_0_gate: act[d=5] ~ ones() trained
  %0.x = input name="x" () : act[n, d=5]
  %1.tape = param index=2 () : act[d=5]
  %2 = mul (%0, %1) : act[n, d=5]
  %3.layers.0.gate = param index=0 () : f32[]
  %4.layers.3.gate = param index=1 () : f32[]
  %5 = stack sub=0 integrator="midpoint(h: 0.25, a: [1/2] * 2 + [5/8] * 1 + [3/4] * 1 + [1] * 1, gates: [1.0] * 1 + [none] * 2 + [0.5] * 1 + [none] * 1, bootstrap: half_euler, fraction_bits: 20)" (%2, %3, %4) : act[n, d=5]
  %6.layers_call = stack sub=1 integrator="midpoint(h: 0.25, a: [1] * 1, bootstrap: full, fraction_bits: 18)" (%5) : act[n, d=5]
  %7 = stack sub=2 integrator="midpoint(h: 0.25, a: [], bootstrap: full, fraction_bits: 24)" (%6) : act[n, d=5]
  %8 = affine mul=0.25 add=0.5 (%7) : act[n, d=5]
  %9 = stack sub=0 integrator="midpoint(h: 0.25, a: [1/2] * 2 + [5/8] * 1 + [3/4] * 1 + [1] * 1, gates: [1.0] * 1 + [none] * 2 + [0.5] * 1 + [none] * 1, bootstrap: half_euler, fraction_bits: 20)" (%8, %3, %4) : act[n, d=5]
  %10.reversible = mul (%9, %7) : act[n, d=5]
  return loss: %10
}
"#;

pub(super) fn all(cases: &mut Cases) {
    let ids = [("ids", Below("6"))];
    cases.module("calls", CALLS, &ids);
    cases.module("numbered", NUMBERED, &[]);
    cases.module("fields", FIELDS, &[]);
    cases.module("spare", SPARE, &[]);
    cases.module("reversible", REVERSIBLE, &[]);
    cases.module("names", NAMES, &[("loop", Normal)]);
}
