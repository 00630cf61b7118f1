//! Every diagnostic, with the source that it is about.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use lightc_dsl::diag::{self, Diag, codes};
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::{MapLoader, Sources};

/// The block that most sources below instantiate.
const NORM: &str = "\
block Norm(d, eps: number = 1e-6) {
    param weight[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        x * weight
    }
}
";

/// Everything that loading and resolving `main.llm` reports. `norm.llm` can be imported.
fn diagnose(source: &str) -> (Sources, Vec<Diag>) {
    let loader = MapLoader::default().with("norm.llm", NORM);
    let (program, sources, mut diags) = load_program("main.llm", source, &loader);
    diags.extend(program.check().1);
    (sources, diags)
}

/// The source, then what is reported about it.
fn check_errors(source: &str) -> String {
    let (sources, diags) = diagnose(source);
    assert!(!diags.is_empty(), "no error in:\n{source}");
    format!("{}\n{}\n{}", source.trim_end(), "=".repeat(80), diag::render(&diags, &sources, false))
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { insta::assert_snapshot!(check_errors($source)); })*
    };
}

errors! {
    /// Whole, but more than a float counts one by one.
    a_size_beyond_the_floats: "block Id(d) {\n    forward(x[.., d]) -> [.., d] {\n        x\n    }\n}\n\nstage s {\n    d     = 9223372036854775807\n    model = Id()\n}\n";
    unknown_integrator: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpont(h: 1/4, a: 1/2)
    model = Tower()
}
";
    unknown_bootstrap: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: 1/4, a: 1/2, bootstrap: ful)
    model = Tower()
}
";
    arguments_of_an_integrator: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: 1/4, aa: 1/2, 3, h: 1)
    model = Tower()
}
";
    a_factor_that_is_not_dyadic: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: 1/4, a: 1/3)
    model = Tower()
}
";
    a_factor_of_zero: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    pace  = [1/2] * 3 + [0]
    how   = midpoint(h: 1/4, a: pace)
    model = Tower()
}
";
    factors_that_grow: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: 1/4, a: [3/2, -1/2, none, 1/512])
    model = Tower()
}
";
    fewer_factors_than_layers: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: 1/4, a: [1/2] * 3, gates: [none] * 5)
    model = Tower()
}
";
    a_step_size_of_zero: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = leapfrog(h: 0, fraction_bits: 31)
    model = Tower()
}
";
    a_gate_with_the_path_of_a_member: "block Turn(d) {
    param gate[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * gate)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = leapfrog(h: 1, gates: [none] * 3 + [0])
    model = Tower()
}
";
    an_integrator_of_another_kind: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = [1/2]
    model = Tower()
}
";
    a_list_for_a_number: "block Turn(d) {
    param w[d] ~ ones
    forward(x[.., d]) -> [.., d] {
        tanh(x * w)
    }
}

block Tower(d, how: integrator) {
    stack layers = m for m in [Turn()] * 4 integrate how
    forward(x[.., d]) -> [.., d] {
        layers(x)
    }
}

stage s {
    d     = 4
    how   = midpoint(h: [1/4], a: Turn())
    model = Tower()
}
";
    // Syntax -----------------------------------------------------------------------------------

    unexpected_operator: "block A(d) {
    param weight[d] = ones
    forward(x[.., d]) -> [.., d] {
        x * * 2
        x
    }
}";
    unexpected_word: "blok A(d) {
    forward(x[.., d]) -> [.., d] { x }
}";
    unknown_member: "block A(d) {
    parm weight[d] ~ ones
    forward(x[.., d]) -> [.., d] { x }
}";
    keyword_as_name: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        state = x
        state
    }
}";
    keyword_in_expression: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        2 * table
    }
}";
    chained_comparison: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        where(0 < x < 1, x, 0)
    }
}";
    semicolon: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        y = x;
        y
    }
}";
    operator_at_line_start: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        y = x
            + 1
        y
    }
}";
    missing_init: "block A(d) {
    param weight[d]
    forward(x[.., d]) -> [.., d] { x }
}";
    missing_axes: "block A(d) {
    param weight ~ ones
    forward(x[.., d]) -> [.., d] { x }
}";
    missing_reason: "block A(d) {
    param weight[d] ~ ones frozen
    forward(x[.., d]) -> [.., d] { x }
}";
    missing_outputs: "block A(d) {
    forward(x[.., d]) { x }
}";
    missing_comma: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        sum(x over d)
    }
}";
    missing_body: "block A(d)

stage s {
    d = 1
}";
    body_on_next_line: "block A(d)
{
    forward(x[.., d]) -> [.., d] { x }
}";
    body_of_a_binding: "stage s {
    d = 1 {
    }
}";
    strange_character: "stage s {
    d = 4 § 2
    größe = 3
}";
    /// Errors in other items and lines are found although the first body stays open.
    unclosed_body: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        x * + 2

block B(d) {
    param weight[d] ~
    forward(x[.., d]) -> [.., d] { x }
}";
    unclosed_bracket: "block A(d) {
    param weight[d ~ ones
    forward(x[.., d]) -> [.., d] {
        y = exp(x
        y
    }
}";
    unclosed_in_a_call: "stage s {
    a = Foo(d: 1
}

stage t {
    b = 1 +
}";
    wrong_bracket: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        exp(x]
    }
}";
    stray_bracket: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        exp(x))
    }
}
}";
    unclosed_text: "import \"norm.llm
block A(d) {
    forward(x[.., d]) -> [.., d] { x }
}";
    nested_too_deep: "stage s {
    d = ((((((((((((((((((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))))))))))))))))))
}";
    nested_bodies: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        y {
            x
        }
        x
    }
}";
    number_too_large: "stage s {
    d = 1e999
}";
    no_result: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        y = 2 * x
    }
}";
    unnamed_value: "block A(d) {
    forward(x[.., d]) -> [.., d] {
        2 * x
        y = x
        y
    }
}";

    // Names ------------------------------------------------------------------------------------

    unknown_block: "import \"norm.llm\"
block A(d) {
    sub norm = Nrom()
    sub other = Other(d: 3)
    forward(x[.., d]) -> [.., d] { norm(x) }
}";
    builtin_as_block: "block A(d) {
    sub a = sigmoid()
    forward(x[.., d]) -> [.., d] { a(x) }
}";
    unknown_name_in_block: "block A(width) {
    axis half = widht / 2
    axis e = n * width
    forward(x[.., width]) -> [.., width] { x }
}";
    unknown_name_in_stage: "import \"norm.llm\"
stage s {
    width = 8
    d = 2 * widht
    eps = other
    model = Norm()
}";
    axis_used_above_itself: "block A(d) {
    axis e = 2 * f
    axis f = 2 * d
    forward(x[.., d]) -> [.., d] { x }
}";
    doubled_block: "import \"norm.llm\"
block Norm(d) {
    forward(x[.., d]) -> [.., d] { x }
}";
    doubled_stage: "stage s {
    d = 1
}
stage s {
    d = 2
}";
    doubled_members: "block A(d, d, eps: number) {
    axis d = 3
    param weight[d] ~ ones
    state weight[d] = 0
    sub eps = A()
    forward(x[.., d], x[d]) -> [.., d] { x }
}";
    doubled_binding: "stage s {
    d = 1
    e = 2
    d = 3
}";
    binding_cycle: "import \"norm.llm\"
stage s {
    d = e + 1
    e = 2 * f
    f = d
    g = g
    model = Norm()
}";
    binding_cycle_through_extends: "import \"norm.llm\"
stage base {
    d = 2 * f
    f = 4
    model = Norm()
}
stage tiny extends base {
    f = d / 2
}";
    extends_cycle: "stage a extends b {}
stage b extends c {}
stage c extends a {}
stage d extends a {}";
    extends_itself: "stage a extends a {}";
    unknown_parent: "stage lightning {}
stage tiny extends lightnig {}
stage other extends nothing {}";
    missing_import: "import \"nrom.llm\"
import \"../norm.llm\"";
    recursion: "block A(d) {
    sub b = B()
    forward(x[.., d]) -> [.., d] { b(x) }
}
block B(d) {
    sub a = A()
    forward(x[.., d]) -> [.., d] { a(x) }
}";
    /// The block comes back to itself through a stage binding, which no text of the block shows.
    recursion_through_a_binding: "block Wrap(d, inner: block) {
    sub body = inner
    forward(x[.., d]) -> [.., d] { body(x) }
}
stage s {
    d = 4
    inner = Wrap()
    model = Wrap()
}";
    reserved_names: "block sum(d) {
    param exp[d] ~ ones
    sub silu = sum()
    forward(mean[.., d]) -> [.., d] { mean }
}
stage s {
    dot = 3
}";
    no_forward: "block A(d) {
    param weight[d] ~ ones
}";
    two_forwards: "block A(d) {
    forward(x[.., d]) -> [.., d] { x }
    forward(x[.., d]) -> [.., d] { x }
}";

    // Sizes and arguments ----------------------------------------------------------------------

    unbound_formals: "block Scale(d, by: number, inner: block, motif: blocks) {
    forward(x[.., d]) -> [.., d] { x }
}
stage s {
    model = Scale()
}";
    /// A block does not see through its head into the stage around it.
    unbound_in_a_block: "block Ffn(d, f) {
    param up[f, d] ~ ones
    forward(x[.., d]) -> [.., f] { dot(x, up, over d) }
}
block Layer(d) {
    sub ffn = Ffn()
    forward(x[.., d]) -> [.., d] { ffn(x) }
}
stage s {
    d = 4
    f = 8
    model = Layer()
}";
    wrong_kinds: "import \"norm.llm\"
block A(d, eps: number, inner: block, motif: blocks) {
    axis e = inner
    axis f = [d]
    param weight[d] ~ normal(d)
    sub a = eps
    sub b = motif
    sub c = Norm(d: Norm(), eps: d)
    sub f = inner(d: 3)
    stack g = m for m in inner
    stack h = m for m in Norm()
    stack i = m for m in 3
    forward(x[.., d]) -> [.., d] { x }
}";
    wrong_kinds_in_a_stage: "import \"norm.llm\"
block Stack(d, motif: blocks) {
    stack layers = m for m in motif
    forward(x[.., d]) -> [.., d] { layers(x) }
}
stage s {
    d = 8
    norm = Norm()
    e = norm * 2 + d
    f = sin(3)
    g = 1 < 2
    motif = norm
    model = Stack()
}";
    captured_kind: "import \"norm.llm\"
block Scale(d, by: number) {
    forward(x[.., d]) -> [.., d] { by * x }
}
block A(d, by: block = Norm()) {
    sub scale = Scale()
    forward(x[.., d]) -> [.., d] { scale(x) }
}
stage s {
    d = 8
    model = A()
}";
    model_is_not_a_block: "stage s {
    model = 3
}";
    size_of_nothing: "block A(d) {
    param weight[d] ~ normal(1 / size(2 * d))
    param other[d] ~ normal(sqrt(1, 2))
    param third[d] ~ normal(size(f))
    forward(x[.., d]) -> [.., d] { x }
}";
    unknown_argument: "import \"norm.llm\"
block A(d) {
    sub norm = Norm(esp: 1e-5, width: d)
    forward(x[.., d]) -> [.., d] { norm(x) }
}";
    doubled_argument: "import \"norm.llm\"
block A(d) {
    sub norm = Norm(eps: 1e-5, eps: 1e-6)
    forward(x[.., d]) -> [.., d] { norm(x) }
}";
    unnamed_arguments: "import \"norm.llm\"
block Id(d) {
    forward(x[.., d]) -> [.., d] { x }
}
block A(d) {
    sub norm = Norm(d, over d)
    sub id = Id(d)
    forward(x[.., d]) -> [.., d] { norm(x) }
}";
    does_not_divide: "block Heads(d, h) {
    axis k = d / h
    forward(x[.., d]) -> [.., d] { x }
}
stage s {
    d = 10
    h = 4
    model = Heads()
}
stage zero extends s {
    h = 2 - 2
}";
    fraction_as_size: "import \"norm.llm\"
stage s {
    model = Norm(d: 0.5)
}
stage t {
    d = 1.5
    model = Norm()
}";
    not_positive: "import \"norm.llm\"
block A(d) {
    axis e = d - 8
    sub norm = Norm(d: e)
    forward(x[.., d]) -> [.., d] { x }
}
stage s {
    d = 8
    model = A()
}
stage t extends s {
    d = -1
}";
    negative_repetition: "import \"norm.llm\"
block Stack(d, motif: blocks) {
    stack layers = m for m in motif
    forward(x[.., d]) -> [.., d] { layers(x) }
}
stage s {
    d = 8
    motif = [Norm()] * (1 - 2)
    model = Stack()
}";
    list_too_long: "import \"norm.llm\"
block Stack(d, motif: blocks) {
    stack layers = m for m in motif
    forward(x[.., d]) -> [.., d] { layers(x) }
}
stage s {
    d = 8
    motif = [Norm()] * 1000000000
    model = Stack()
}";
    size_overflow: "import \"norm.llm\"
stage s {
    d = 4294967296 * 4294967296
    model = Norm()
}";
    size_too_complex: "block A(a, b, c, d) {
    axis e = (a + b + c + d) * (a + b + c + d)
    axis f = e * e * e * e
    forward(x[.., f]) -> [.., f] { x }
}";
    too_many_instances: "import \"norm.llm\"
block Two(d, inner: block) {
    sub a = inner
    sub b = inner
    forward(x[.., d]) -> [.., d] { b(a(x)) }
}
stage s {
    d = 8
    b0 = Norm()
    b1 = Two(inner: b0)
    b2 = Two(inner: b1)
    b3 = Two(inner: b2)
    b4 = Two(inner: b3)
    b5 = Two(inner: b4)
    b6 = Two(inner: b5)
    b7 = Two(inner: b6)
    b8 = Two(inner: b7)
    b9 = Two(inner: b8)
    b10 = Two(inner: b9)
    b11 = Two(inner: b10)
    b12 = Two(inner: b11)
    b13 = Two(inner: b12)
    b14 = Two(inner: b13)
    b15 = Two(inner: b14)
    model = Two(inner: b15)
}";
    division_by_zero: "block A(d) {
    param weight[d] ~ constant(1 / 0)
    param other[d] ~ constant(sqrt(-1))
    forward(x[.., d]) -> [.., d] { x }
}";

    // Parameters -------------------------------------------------------------------------------

    unknown_init: "block A(d) {
    param weight[d] ~ norml(0.02)
    param other[d] ~ gaussian(0.02)
    forward(x[.., d]) -> [.., d] { x }
}";
    init_arguments: "block A(d) {
    param a[d] ~ normal
    param b[d] ~ zeros(1)
    param c[d] ~ uniform(2, 1)
    param d[d] ~ normal(-1)
    param e[d] ~ log_uniform(-1, 1)
    forward(x[.., d]) -> [.., d] { x }
}";
    axis_twice: "block A(d) {
    param weight[d, d] ~ zeros
    forward(x[d, d]) -> [.., d] { x }
}";
    unknown_axis: "block A(width) {
    param weight[widht, f] ~ zeros
    state mean[t] = 0
    forward(x[.., width]) -> [.., width] { x }
}";
    empty_reason: "block A(d) {
    param weight[d] ~ ones frozen \"  \"
    forward(x[.., d]) -> [.., d] { x }
}";
    unmet_requirement: "block A(d, e) {
    require 2 * size(e) < size(d) and size(e) > 1, \"half of the channels route\"
    param weight[d, e] ~ ones
    forward(x[.., d]) -> [.., e] { dot(x, weight, over d) }
}

stage s {
    d     = 4
    e     = 3
    model = A()
}";
    requirement_that_compares_nothing: "block A(d) {
    require size(d), \"there are channels\"
    forward(x[.., d]) -> [.., d] { x }
}";
    unknown_format: "block A(d) {
    param weight[d] ~ ones quantized int9
    param other[d]  ~ ones quantized fp4
    forward(x[.., d]) -> [.., d] { x }
}";
    cannot_be_quantized: "block A(d) {
    param weight[d]: f32 ~ ones quantized int8
    param scale[]        ~ ones quantized quantile8
    forward(x[.., d]) -> [.., d] { x }
}";
    active_of_another_axis: "block A(d, experts, f) {
    param weight[experts, d] ~ ones active 2 of expert
    param other[experts, d]  ~ ones active 2 of f
    forward(x[.., d]) -> [.., d] { x }
}";
    active_of_too_few: "block A(d, e) {
    param weight[e, d] ~ ones active 5 of e
    param other[e, d] ~ ones active e - 3 of e
    forward(x[.., d]) -> [.., d] { x }
}

stage s {
    d     = 4
    e     = 3
    model = A()
}";
    unknown_table: "block A(d) {
    table codes[d] from \"tokenizer.byte_code\"
    table other[d] from \"corpus\"
    forward(x[.., d]) -> [.., d] { x }
}";
}

#[test]
fn stage_without_model() {
    let source = "stage base {\n    d = 8\n}\n";
    let (program, sources, diags) = load_program("main.llm", source, &MapLoader::default());
    assert_eq!(diags, []);
    // It can be extended, so a check of the file says nothing; building it says why not.
    assert_eq!(program.check().1, []);
    let diags = program.resolve_stage("base").unwrap_err();
    insta::assert_snapshot!(format!(
        "{source}{}\n{}",
        "=".repeat(80),
        diag::render(&diags, &sources, false)
    ));
}

#[test]
fn names_asked_for_from_outside() {
    let source =
        "stage base {\n    d = 8\n}\nblock A(d, n: number) {\n    forward(x[d]) -> [d] { x }\n}\n";
    let (program, sources, _) = load_program("main.llm", source, &MapLoader::default());
    let mut diags = program.resolve_stage("bsae").unwrap_err();
    diags.extend(program.resolve_block("B").unwrap_err());
    diags.extend(program.resolve_block("A").unwrap_err());
    insta::assert_snapshot!(format!(
        "{source}{}\n{}",
        "=".repeat(80),
        diag::render(&diags, &sources, false)
    ));
}

#[test]
fn file_too_large() {
    let source = "// a long comment that says nothing\n".repeat(1 << 17);
    let (_, diags) = diagnose(&source);
    let found: Vec<_> = diags.iter().map(|d| (d.code, d.message.as_str())).collect();
    let message = "the file has 4718592 bytes, and the limit for one source file is 4194304";
    assert_eq!(found, [(codes::TOO_LARGE, message)]);
}

#[test]
fn json_form() {
    let source =
        "import \"norm.llm\"\nblock Norm(d) {\n    forward(x[.., d]) -> [.., d] { x }\n}\n";
    let (sources, diags) = diagnose(source);
    insta::assert_snapshot!(format!(
        "{source}{}\n{:#}",
        "=".repeat(80),
        diag::to_json(&diags, &sources)
    ));
}

#[test]
fn color_changes_nothing_but_color() {
    let (sources, diags) = diagnose("stage a extends a {}");
    let plain = diag::render(&diags, &sources, false);
    let colored = diag::render(&diags, &sources, true);
    assert!(colored.contains('\u{1b}'));
    let mut stripped = String::new();
    let mut escape = false;
    for c in colored.chars() {
        match c {
            '\u{1b}' => escape = true,
            'm' if escape => escape = false,
            c if !escape => stripped.push(c),
            _ => {}
        }
    }
    assert_eq!(stripped, plain);
}

/// The source, then the bindings of it that nothing reads.
fn check_unread(source: &str) -> String {
    let loader = MapLoader::default().with("norm.llm", NORM);
    let (program, sources, diags) = load_program("main.llm", source, &loader);
    assert!(diags.is_empty(), "{diags:?}");
    let unread = program.unread_bindings();
    format!("{}\n{}\n{}", source.trim_end(), "=".repeat(80), diag::render(&unread, &sources, false))
}

/// A file that no person has written is left where that is clear, and not reported to its end.
#[test]
fn hostile_nesting_and_braces_end_soon() {
    let last = |source: String| {
        let (_, diags) = diagnose(&source);
        let deepest = diags.iter().max_by_key(|d| d.primary.span.start).unwrap();
        (diags.len(), deepest.code, deepest.message.clone())
    };
    let deep = "bodies are nested more than 16 deep".to_owned();
    let (n, code, message) = last("block A(d) { ".repeat(20_000));
    assert!(n < 40 && code == codes::TOO_DEEP && message == deep, "{n} {message}");
    let (n, code, message) = last("{".repeat(50_000));
    assert!(n < 60 && code == codes::TOO_DEEP && message == deep, "{n} {message}");
    let many = "brackets and braces do not match in 100 places".to_owned();
    for source in ["}", "{ }", "}\n"] {
        let (n, code, message) = last(source.repeat(20_000));
        assert!(n < 320 && code == codes::TOO_LARGE && message == many, "{source} {n} {message}");
    }
}

/// A name that is written otherwise, one of a stage that extends another, and a misspelt `model`.
#[test]
fn bindings_that_nothing_reads() {
    insta::assert_snapshot!(check_unread(
        "\
import \"norm.llm\"

stage base {
    d     = 4
    epss  = 1e-5
    model = Norm()
}

stage wide extends base {
    dd = 8
}

stage lost {
    d     = 4
    modle = Norm()
}
"
    ));
}

/// What another binding uses, also of another stage, a formal of any block, a probe and the sizes of a map are read.
#[test]
fn bindings_that_something_reads() {
    let source = "\
import \"norm.llm\"

stage base {
    n     = 4
    d     = 2 * n
    eps   = 1e-5
    model = Norm()
    probe {
        n = half
    }
    half  = 3
}

stage wide extends base {
    n     = 8
    extra = 2
}

grow widen: base -> wide {
    changes \"widened\"
    weight = concat(src.weight, extra * ones, over d)
}
";
    let (program, sources, diags) =
        load_program("main.llm", source, &MapLoader::default().with("norm.llm", NORM));
    assert!(diags.is_empty(), "{}", diag::render(&diags, &sources, false));
    assert_eq!(program.unread_bindings(), []);
}

/// The examples of a page show its error and its repair.
#[test]
fn pages_hold_what_they_say() {
    for page in codes::PAGES {
        let examples: Vec<&str> = page.text.split("```llm\n").skip(1).collect();
        let [bad, good] = examples.as_slice() else {
            assert!(examples.is_empty(), "{}: a bad and a good example, or none", page.code);
            continue;
        };
        let codes_of = |example: &str| {
            let source = example.split("```").next().unwrap();
            let loader = MapLoader::default().with("norm.llm", NORM);
            let (program, _, mut diags) = load_program("main.llm", source, &loader);
            for stage in program.stage_names() {
                diags.extend(program.resolve_stage(stage).err().unwrap_or_default());
            }
            for block in program.block_names() {
                diags.extend(program.resolve_block(block).err().unwrap_or_default());
            }
            diags.extend(program.unread_bindings());
            diags.iter().map(|d| d.code).collect::<Vec<_>>()
        };
        let own = is_own(page.code);
        if own {
            let found = codes_of(bad);
            assert!(found.contains(&page.code), "{}: bad example has {found:?}", page.code);
            let found: Vec<_> = codes_of(good)
                .into_iter()
                .filter(|c| ![codes::NO_MODEL, codes::NOT_ALONE].contains(c))
                .collect();
            assert!(found.is_empty(), "{}: good example has {found:?}", page.code);
        }
    }
}

/// A code that this crate raises.
fn is_own(code: &str) -> bool {
    let source = include_str!("../src/diag/codes.rs");
    source.contains(&format!(": &str = \"{code}\";"))
}

/// The table, the folder of pages and the constants agree, and codes are written nowhere else.
#[test]
fn codes_and_pages_agree() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = std::fs::read_dir(root.join("../docs/errors"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(['E', 'W']))
        .collect();
    files.sort();
    let table: Vec<String> = codes::PAGES.iter().map(|p| format!("{}.md", p.code)).collect();
    assert_eq!(files, table, "pages in docs/errors, and rows of the table in order");
    for page in codes::PAGES {
        let heading = format!("# {}: {}\n", page.code, page.title());
        assert!(page.text.starts_with(&heading), "{}: heading", page.code);
        assert_eq!(codes::page(&page.code.to_lowercase()), Some(page));
    }
    let constants = include_str!("../src/diag/codes.rs");
    for line in constants.lines().filter(|l| l.starts_with("pub const") && l.contains(": &str")) {
        let code = line.split('"').nth(1).unwrap();
        assert!(codes::page(code).is_some(), "{code} has no page");
    }
    for entry in walk(&root.join("src")) {
        let text = std::fs::read_to_string(&entry).unwrap();
        let literal = text.split("\"E0").skip(1).any(|rest| {
            rest.get(..4).is_some_and(|t| t.ends_with('"') && t[..3].parse::<u32>().is_ok())
        });
        assert!(!literal || entry.ends_with("codes.rs"), "code literal in {}", entry.display());
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// Every code of this crate is raised by a snapshot above.
#[test]
fn every_code_has_a_snapshot() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let text: String =
        walk(&folder).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for page in codes::PAGES.iter().filter(|p| is_own(p.code)) {
        assert!(text.contains(&format!("[{}]", page.code)), "{} has no snapshot", page.code);
    }
}
