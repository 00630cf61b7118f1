//! Every diagnostic of lowering, liveness and the trainer's demands, with the source that it is
//! about. Messages known to be poor stand in `bad_errors.rs`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::check_errors;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { common::assert_shown(concat!("errors__", stringify!($name)), &check_errors($source)); })*
    };
}

errors! {
    // E0401: axes ------------------------------------------------------------------------------

    reduction_over_a_missing_axis: "block A(d) {
    forward(x[b, t, d]) -> [b, d] {
        sum(x, over s)
    }
}";
    reduction_over_a_misspelt_axis: "block A(channels) {
    forward(x[b, channels]) -> [b] {
        sum(x, over chanels)
    }
}";
    contraction_over_a_missing_axis: "block A(d, f) {
    param weight[f] ~ zeros

    forward(x[b, d]) -> [b, f] {
        dot(x, weight, over d)
    }
}";
    stated_axes_that_are_others: "block A(d) {
    forward(x[b, t, d]) -> [b, t] {
        total[b, d] = sum(x, over d)
        total
    }
}";
    result_of_other_axes: "block A(d) {
    forward(x[b, t, d]) -> [b] {
        sum(x, over d)
    }
}";
    argument_without_an_axis: "block Norm(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    sub norm = Norm()

    forward(x[b, d]) -> [b] {
        norm(mean(x, over d))
    }
}";
    argument_with_an_axis_too_many: "block Row(d) {
    forward(x[b, d]) -> [b] {
        sum(x, over d)
    }
}

block A(d) {
    sub row = Row()

    forward(x[b, t, d]) -> [b] {
        row(x)
    }
}";
    attention_without_a_key_axis: "block A(h, k, m) {
    forward(q[b, t, h, k], keys[b, s, h, k], v[b, t, h, m], mask[b, t, s]) -> [b, t, h, m] {
        masked_attention(q, keys, v, mask > 0, query: t, key: s, head: h, channel: k)
    }
}";
    targets_with_an_axis_too_few: "block A(d, vocab) {
    param head[vocab, d] ~ zeros

    forward(x[b, t, d], ids[b]: index) -> [] {
        linear_cross_entropy(x, head, ids, channel: d, vocab: vocab, softcap: 0)
    }
}";

    // E0402: sizes -----------------------------------------------------------------------------

    concat_of_another_size: "block A(d) {
    axis c = 3 * d

    forward(x[.., d], y[.., d]) -> [.., c] {
        concat(x, y, d -> c)
    }
}";
    split_into_another_size: "block A(h, k) {
    axis e = h + k

    forward(x[b, e]) -> [b, h, k] {
        split(x, e -> (h, k))
    }
}";
    slice_of_another_size: "block A(d) {
    forward(x[b, u, d]) -> [b, t, d] {
        axis t = u - 2
        slice(x, u[1 .. u] -> t)
    }
}";
    rename_to_an_axis_of_another_size: "block A(d, f) {
    forward(x[b, d]) -> [b, f] {
        rename(x, d -> f)
    }
}";
    argument_of_another_size: "block Row(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    sub row = Row(d: 8)

    forward(x[b, d]) -> (loss[]) {
        mean(row(x), over (b, d))
    }
}

stage small {
    d     = 4
    model = A()
}";
    stack_whose_layer_changes_its_axes: "block Half(d) {
    forward(x[b, t, d]) -> [b, d] {
        sum(x, over t)
    }
}

block A(d, motif: blocks) {
    stack layers = m for m in motif

    forward(x[b, t, d]) -> (loss[]) {
        mean(layers(x), over (b, d))
    }
}

stage small {
    d     = 4
    motif = [Half()]
    model = A()
}";
    state_of_another_shape: "block A(d) {
    state seen[d] = 0

    forward(x[b, d]) -> [b, d] {
        update seen = f32(x)
        x - act(seen)
    }
}";
    position_outside_its_axis: "block A(d) {
    forward(x[b, t, d]) -> [b, d] {
        pick(x, t[t])
    }
}";

    // E0403, E0404: broadcasting and dtypes ----------------------------------------------------

    outer_product_by_accident: "block A(t, d) {
    forward(x[b, t], y[b, d]) -> [b, t, d] {
        x * y
    }
}";
    comparison_of_other_axes: "block A(t, d) {
    forward(x[b, t], y[b, d]) -> [b, t, d] {
        where(x < y, 1, 0)
    }
}";
    truth_value_as_a_number: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        x * (x > 0)
    }
}";
    number_as_a_truth_value: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        where(x, 1, x)
    }
}";
    ids_as_numbers: "block A {
    forward(ids[b, t]: index) -> [b, t] {
        ids / 2
    }
}";
    positions_with_a_fraction: "block A {
    forward(ids[b, t]: index) -> [b, t]: index {
        ids + 0.5
    }
}";
    score_that_is_narrowed: "block A(d, e) {
    axis p = 2
    param router[e, d] ~ normal(0.02)

    forward(x[b, t, d]) -> [b, t, p]: index {
        top(dot(x, router, over d), e -> p)
    }
}";
    more_positions_than_there_are: "block A(e) {
    axis p = 3

    forward(score[b, e]: f32) -> [b, p]: index {
        top(score, e -> p)
    }
}

stage s {
    e     = 2
    model = A()
}";
    rows_that_no_index_chooses_for: "block A(d, e, f) {
    param weight[e, f, d] ~ normal(0.02)

    forward(x[b, t, d], ids[b]: index) -> [b, t, f] {
        expert_dot(x, weight, ids, expert: e, over d)
    }
}";
    narrowing_at_a_call: "block Row(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    param scale[d]: f32 ~ ones
    sub row = Row()

    forward(x[.., d]) -> [.., d] {
        row(x * scale)
    }
}";
    output_of_another_dtype: "block A(d) {
    forward(x[.., d]) -> [.., d]: act {
        f32(x)
    }
}";
    ids_where_numbers_are_wanted: "block A(d, vocab) {
    param rows[vocab, d] ~ zeros

    forward(x[b, t]) -> [b, t, d] {
        lookup(rows, x, rows: vocab)
    }
}";

    // E0405: arguments of builtins -------------------------------------------------------------

    unknown_named_argument: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        clamp(x, low: 0, high: 1)
    }
}";
    named_argument_twice: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        clamp(x, min: 0, min: 1, max: 2)
    }
}";
    missing_named_argument: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        clamp(x, min: 0)
    }
}";
    too_many_values: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        exp(x, 2)
    }
}";
    reduction_without_an_axis: "block A(d) {
    forward(x[.., d]) -> [..] {
        sum(x)
    }
}";
    axes_that_are_not_taken: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        exp(x, over d)
    }
}";
    map_that_is_not_taken: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        axis e = d
        rename(max(x, 0, d -> e), e -> d)
    }
}";
    map_that_is_missing: "block A(h, k) {
    axis e = h * k

    forward(x[b, e]) -> [b, h, k] {
        split(x, over (h, k))
    }
}";
    value_where_a_number_is_wanted: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        clamp(x, min: mean(x, over d), max: 1)
    }
}";
    fraction_where_a_whole_number_is_wanted: "block A(n, j) {
    forward(x[b, n, j]) -> [b, n, j] {
        sinkhorn(x, rows: n, columns: j, iterations: 2.5, eps: 1e-6)
    }
}";
    expression_where_an_axis_is_wanted: "block A(k) {
    forward(x[b, t, k]) -> [b, t, k] {
        rotary(x, time: 2 * t, pairs: k, base: 10000)
    }
}";
    odd_number_of_channels_to_rotate: "block A(k) {
    forward(x[b, t, k]) -> (loss[]) {
        mean(rotary(x, time: t, pairs: k, base: 10000), over (b, t, k))
    }
}

stage odd {
    k     = 5
    model = A()
}";
    clamp_of_an_empty_range: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        clamp(x, min: 1, max: 0)
    }
}";
    named_argument_of_a_sub_block: "block Row(d) {
    forward(x[.., d]) -> [.., d] {
        2 * x
    }
}

block A(d) {
    sub row = Row()

    forward(x[.., d]) -> [.., d] {
        row(x: x)
    }
}";
    list_as_a_value: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        exp([x, x])
    }
}";
    size_that_is_not_whole: "block A(d) {
    forward(x[b, t, d]) -> [b, d] {
        axis s = 1.5
        sum(slice(x, t[0 .. s] -> s), over s)
    }
}";

    // E0406: one axis twice --------------------------------------------------------------------

    axis_declared_again: "block A(d) {
    forward(x[b, t, d]) -> [b, t] {
        axis t = 4
        sum(x, over d)
    }
}";
    rename_to_an_axis_that_is_there: "block A(d) {
    axis e = d

    forward(x[d, e]) -> [d] {
        sum(rename(x, e -> d), over d)
    }
}";
    axis_reduced_twice: "block A(d) {
    forward(x[b, d]) -> [b] {
        sum(x, over (d, d))
    }
}";
    open_axis_of_the_callee_s_name: "block Row(d, e) {
    param weight[e, d] ~ zeros

    forward(x[.., d]) -> [.., e] {
        dot(x, weight, over d)
    }
}

block A(d, e) {
    sub row = Row()

    forward(x[b, e, d]) -> [b, e] {
        row(x)
    }
}";

    // E0407: unknown names ---------------------------------------------------------------------

    misspelt_value: "block A(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * wieght
    }
}";
    axis_as_a_value: "block A(d) {
    forward(x[.., d]) -> [..] {
        sum(x, over d) / d
    }
}";
    misspelt_builtin: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        sigmiod(x)
    }
}";
    update_of_a_parameter: "block A(d) {
    param centre[d] ~ zeros

    forward(x[b, d]) -> [b, d] {
        update centre = mean(x, over b)
        x - centre
    }
}";
    axis_that_is_not_in_scope: "block A(d) {
    forward(x[b, t, d]) -> [b, s, d] {
        rename(x, t -> s)
    }
}";

    // E0408: numbers of values -----------------------------------------------------------------

    too_many_arguments: "block Row(d) {
    forward(x[.., d]) -> [.., d] {
        2 * x
    }
}

block A(d) {
    sub row = Row()

    forward(x[.., d], y[.., d]) -> [.., d] {
        row(x, y)
    }
}";
    two_outputs_as_one_value: "block Both(d) {
    forward(x[.., d]) -> (low[..], high[..]) {
        (mean(x, over d), sum(x, over d))
    }
}

block A(d) {
    sub both = Both()

    forward(x[.., d]) -> [..] {
        2 * both(x)
    }
}";
    too_few_names: "block Both(d) {
    forward(x[.., d]) -> (low[..], high[..]) {
        (mean(x, over d), sum(x, over d))
    }
}

block A(d) {
    sub both = Both()

    forward(x[.., d]) -> [..] {
        a, b, c = both(x)
        a + b + c
    }
}";
    names_of_one_value: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        a, b = exp(x)
        a + b
    }
}";
    result_of_another_number: "block A(d) {
    forward(x[.., d]) -> (low[..], high[..]) {
        mean(x, over d)
    }
}";
    calls_of_different_shapes: "block Row(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    sub row = Row()

    forward(x[b, t, d], y[b, d]) -> [b, t, d] {
        row(x) + row(y)
    }
}";
    stack_with_two_arguments: "block Row(d) {
    forward(x[b, d]) -> [b, d] {
        2 * x
    }
}

block A(d, motif: blocks) {
    stack layers = m for m in motif

    forward(x[b, d]) -> (loss[]) {
        mean(layers(x, x), over (b, d))
    }
}

stage small {
    d     = 4
    motif = [Row()] * 2
    model = A()
}";

    // E0409, E0410: bindings -------------------------------------------------------------------

    value_bound_again: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        y = 2 * x
        y = y + 1
        y
    }
}";
    value_named_like_a_parameter: "block A(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        weight = 2 * x
        weight
    }
}";
    state_updated_twice: "block A(d) {
    state seen[] = 0

    forward(x[b, d]) -> [b, d] {
        update seen = seen + 1
        update seen = seen + 2
        x
    }
}";
    /// All at once, and also in a body that has another error.
    values_that_are_never_used: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        first = exp(x)
        second = 2 * first
        third = x * missing
        2 * x
    }
}";

    // Sizes in bodies --------------------------------------------------------------------------

    size_that_does_not_divide: "block A(d) {
    forward(x[b, t, d]) -> [b, s, d] {
        axis s = (t + 1) / 2
        slice(x, t[0 .. s] -> s)
    }
}";
    size_over_the_limit: "block A(d) {
    forward(x[b, t, d]) -> [b, d] {
        axis r = 99999999999999999
        axis s = 9000000000000000 * 9000000000000000
        sum(slice(x, t[0 .. s] -> s), over s) + mean(slice(x, t[0 .. r] -> r), over r)
    }
}";

    // E0501 to E0504: gradients and members ----------------------------------------------------

    parameter_behind_stop_gradient: "block A(d) {
    param scale[d] ~ ones
    param shift[d] ~ zeros

    forward(x[b, d]) -> (loss[]) {
        mean(square(x * scale + stop_gradient(shift)), over (b, d))
    }
}

stage small {
    d     = 4
    model = A()
}";
    parameter_that_only_chooses: "block A(d) {
    param score[d] ~ normal(0.02)
    param value[d] ~ normal(0.02)

    forward(x[b, d]) -> (loss[]) {
        mean(square(where(x * score > 0, x * value, 0)), over (b, d))
    }
}

stage small {
    d     = 4
    model = A()
}";
    parameter_of_another_output: "block A(d) {
    param scale[d] ~ ones
    param probe[d] ~ ones

    forward(x[b, d]) -> (loss[], seen[]) {
        (mean(square(x * scale), over (b, d)), mean(x * probe, over (b, d)))
    }
}

stage small {
    d     = 4
    model = A()
}";
    /// The cut is in a caller, and there are several paths.
    parameter_cut_in_a_caller: "block Row(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> [b, d] {
        x * weight
    }
}

block A(d) {
    sub first  = Row()
    sub second = Row()
    sub third  = Row()
    param gain[d] ~ ones

    forward(x[b, d]) -> (loss[]) {
        cut = stop_gradient(first(x) + second(x))
        mean(square(cut * gain + third(x)), over (b, d))
    }
}

stage small {
    d     = 4
    model = A()
}";
    layer_that_passes_no_gradient: "block Cut(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> [b, d] {
        stop_gradient(x) * weight
    }
}

block A(d, motif: blocks) {
    stack layers = m for m in motif

    forward(x[b, d]) -> (loss[]) {
        mean(square(layers(x)), over (b, d))
    }
}

stage small {
    d     = 4
    motif = [Cut()] * 2
    model = A()
}";
    stage_without_a_loss: "block A(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> (score[], spread[]) {
        y = x * weight
        (mean(y, over (b, d)), mean(square(y), over (b, d)))
    }
}

stage small {
    d     = 4
    model = A()
}";
    loss_with_axes: "block A(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> (loss[b]) {
        mean(square(x * weight), over d)
    }
}

stage small {
    d     = 4
    model = A()
}";
    /// Every one of them, at once.
    members_that_nothing_reads: "block Row(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    param scale[d] ~ ones
    param shift[d] ~ zeros
    state seen[] = 0
    table codes[d] from \"tokenizer.byte_counts\"
    sub row = Row()

    forward(x[.., d]) -> [.., d] {
        2 * x
    }
}";
    /// A use in a line that is wrong is a use.
    members_of_a_body_with_another_error: "block Row(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block A(d) {
    param scale[d] ~ ones
    param shift[d] ~ zeros
    sub row = Row()

    forward(x[.., d]) -> [.., d] {
        row(x * missing) * scale
    }
}";
}

// E0505 to E0508: what the trainer asks of a stage ---------------------------------------------

errors! {
    root_without_tokens: "block A(d) {
    param weight[d] ~ zeros

    forward(x[b, d], y[b]) -> (loss[]) {
        mean(square(dot(x, weight, over d) - y), over b)
    }
}

stage fit {
    d     = 4
    model = A()
}";
    /// All that is wrong at once.
    root_that_the_trainer_cannot_feed: "block A(vocab, d) {
    param head[vocab, d] ~ zeros

    forward(
        tokens[b, d]: index, continues[b, d], memory[b, d], past[b, s, d]
    ) -> (loss[], memory[d], past[b, s, d], hidden[b, d]) {
        hidden = memory * continues + sum(past, over s) + f32(tokens)
        loss = mean(square(dot(hidden, head, over d)), over (b, vocab))
        (loss, mean(hidden, over b), past, hidden)
    }
}

stage fit {
    d     = 4
    vocab = 300
    model = A()
}";
    root_without_a_vocabulary: "block A(words, d) {
    param embedding[words, d] ~ normal(0.02)
    param head[words, d]      ~ normal(0.02)

    forward(tokens[b, u]: index) -> (loss[], ntp[]) {
        axis t = u - 1
        x = lookup(embedding, slice(tokens, u[0 .. t] -> t), rows: words)
        targets = slice(tokens, u[1 .. u] -> t)
        ntp = linear_cross_entropy(x, head, targets, channel: d, vocab: words, softcap: 0)
        (ntp, ntp)
    }
}

stage fit {
    d     = 4
    words = 300
    model = A()
}";
    blocks_of_one_rust_module: "block Scale(d) {
    param weight[d] ~ ones

    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}

block SCALE(d) {
    param weight[d] ~ zeros

    forward(x[.., d]) -> [.., d] {
        x + x * weight
    }
}

block A(vocab, d) {
    param head[vocab, d] ~ normal(0.02)
    sub first  = Scale()
    sub second = SCALE()

    forward(tokens[b, u]: index) -> (loss[], ntp[]) {
        axis t = u - 1
        x = second(first(lookup(head, slice(tokens, u[0 .. t] -> t), rows: vocab)))
        targets = slice(tokens, u[1 .. u] -> t)
        ntp = linear_cross_entropy(x, head, targets, channel: d, vocab: vocab, softcap: 0)
        (ntp, ntp)
    }
}

stage fit {
    d     = 4
    vocab = 300
    model = A()
}";

    // E0440, E0441: penalties ------------------------------------------------------------------

    /// A loss that leaves out what the blocks below it ask for.
    penalties_that_the_root_does_not_take: "block Layer(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> [b, d] {
        y = x * weight
        penalty size = mean(square(f32(y)), over (b, d))
        y
    }
}

block Root(d, motif: blocks) {
    stack layers = m for m in motif

    forward(x[b, d]) -> (loss[]) {
        mean(square(layers(x)), over (b, d))
    }
}

stage lost {
    d     = 4
    motif = [Layer()] * 2
    model = Root()
}";
    penalty_that_is_not_one_number: "block A(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> [b, d] {
        y = x * weight
        penalty size = mean(square(f32(y)), over d)
        y
    }
}";
    penalty_named_twice: "block A(d) {
    param weight[d] ~ ones

    forward(x[b, d]) -> [b, d] {
        y = x * weight
        penalty size = mean(square(f32(y)), over (b, d))
        penalty size = mean(f32(y), over (b, d))
        y
    }
}";
}

/// Fewer than four experts for each of eight ranks are not divided.
#[test]
fn a_share_of_too_few_experts() {
    let shown = common::check_share(
        "block A(d, e) {
    axis f = d
    param weight[e, f, d] ~ normal(0.02)

    forward(x[b, d], ids[b]: index) -> (loss[]) {
        y = expert_dot(x, weight, ids, expert: e, over d)
        mean(square(f32(y)), over (b, f))
    }
}

stage few {
    d = 4
    e = 31
    model = A()
}",
        "1/8",
    );
    common::assert_shown("errors__share_of_too_few_experts", &shown);
}

/// A block alone, with a loss, has sizes that no program can store.
#[test]
fn tensors_of_unknown_size() {
    let shown = common::check_program_of_block(
        "block A(vocab, d) {
    param head[vocab, d] ~ normal(0.02)
    state seen[d] = 0

    forward(tokens[b, u]: index) -> (loss[], ntp[]) {
        axis t = u - 1
        x = lookup(head, slice(tokens, u[0 .. t] -> t), rows: vocab)
        update seen = mean(f32(x), over (b, t))
        targets = slice(tokens, u[1 .. u] -> t)
        ntp = linear_cross_entropy(x, head, targets, channel: d, vocab: vocab, softcap: 0)
        (ntp, ntp)
    }
}",
        "A",
    );
    common::assert_shown("errors__tensors_of_unknown_size", &shown);
}

/// Every code that this crate raises on what a user wrote is shown by a snapshot.
#[test]
fn every_code_has_a_snapshot() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |folder: &str| -> String {
        let paths = common::files(&root.join(folder));
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    };
    let (sources, shown) = (read("src"), read("tests/snapshots"));
    let mut codes: Vec<&str> = sources
        .split("\"E0")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|rest| rest.len() == 3 && rest.chars().all(|c| c.is_ascii_digit()))
        .collect();
    codes.sort_unstable();
    codes.dedup();
    assert!(codes.len() >= 20, "{codes:?}");
    // A fault of the compiler has no source that gives it.
    codes.retain(|code| *code != "701");
    let missing: Vec<&str> =
        codes.into_iter().filter(|code| !shown.contains(&format!("[E0{code}]"))).collect();
    assert!(missing.is_empty(), "without a snapshot: E0{missing:?}");
}
