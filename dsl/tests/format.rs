//! One layout, reached in one step, with nothing lost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{model_sources, syntax_of};
use lightc_dsl::format::format;
use proptest::prelude::*;

/// Formats, and checks that formatting again changes nothing and that the syntax is the same.
fn formatted(source: &str) -> String {
    let once = format(source).unwrap_or_else(|diags| panic!("{diags:#?}\n{source}"));
    let twice = format(&once).unwrap_or_else(|diags| panic!("{diags:#?}\n{once}"));
    assert_eq!(once, twice, "formatting is not stable for:\n{source}");
    assert_eq!(syntax_of(source), syntax_of(&once), "the syntax changed for:\n{source}");
    once
}

fn check_format(source: &str) -> String {
    format!("{}\n{}\n{}", source.trim_end(), "=".repeat(80), formatted(source))
}

macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { insta::assert_snapshot!(check_format($source)); })*
    };
}

formats! {
    spaces_and_brackets: "import   \"a.llm\"
block  A ( d ,f ,eps:number=1e-6,  i:block = B( ),m : blocks=[ ], ) {
axis e=2*( d+f )
  param w[ d , f ]  :f32~normal( 0.020 )  frozen   \"why\"
    state s [ ]=  -( 1 )
        table t[d]from \"tokenizer.byte_codes\"
    sub x=B( d : e )training_only
  stack l=C(m:i)for i in m*2+[ B(d:e) ]
    forward( x[..,d] ,y[ ]: index )->(a[..],b[ .. , d ]:f32){
axis s=t-1
        a,b=x(y , over( d ) , over (d,e) , t->s , e->( h,k ) , (h , k)->e , u [ 0..t ]->t , s[ 0 ] , n:1)
        q [..,t]=((a))*(b+c)-(d-e)-( (f) )
        update s=-(-a)*-b/(c/e)
        (a<b,(a<=b)*c)
    }
}
stage   s   extends   t   {d=1
}";
    one_line: "block A(d) { forward(x[.., d]) -> [.., d] { x } } block B() { forward(x[]) -> [] { x } } stage s { d = 1 }";
    comments: "// First.

// Second, detached.

// Right above the import.
import \"a.llm\" // after the import
import \"b.llm\"
/// Documents A.
// Between doc and block.
block A( // in the formals
    d, // after d
    f
) { // after the brace
    // before w

    // detached from w

    param w[d] ~ ones // after w
    param v[d] ~ // inside v
        zeros
    /// Documents the forward.

    forward(x[.., d]) -> [.., d] { // in the forward
        y = sum(
            x, // the input
            /// not documentation
            over d) // after y
        //// four slashes
        y
        // last in the forward
    } // after the forward
    // last in the block
} // after the block
stage s { // stage
    // only a comment
}
stage empty { }
// At the end.

// Really.";
    blank_lines: "


import \"a.llm\"


import \"b.llm\"
import \"c.llm\"
stage s {

    d = 1



    e = 2

}
stage t {
    // c

    d = 1
}



";
    aligned_runs: "stage s {
    d = 1
    width = 2

    e = 3
    // A comment ends a run.
    length = 4
    f = 5
    long = Call(aaaaaaaaaaaaaaaaaaaaaaaaaa: 1, bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb: 2, cccccccccccccccc: 3, d: 4)
}
block A(d) {
    param a[d] ~ ones
    param long[d]: f32 ~ zeros
    sub a = B()
    sub abc = B()
    stack r = B() for m in [a] integrate   how
    stack q = SomeBlock(first_argument: 10000) for m in motif integrate midpoint(h: 1/4, a: [1/2]*8+[1]*12, gates: [none]*8+[0]*12)
    stack s = B() for m in [a]
    sub d = B()
    forward(x[d]) -> [d] {
        a = x
        abc = x
        a
    }
}";
    long_lines: "block ABlockWithALongName(first_axis, second_axis, third: number = 1, fourth: number = 2, fifth: block, s) {
    sub x = SomeBlock(first_argument: 10000, second_argument: OtherBlock(a: 1, b: 2), third: 33) training_only
    stack layers = SomeBlock(first_argument: 10000, second_argument: OtherBlock(a: 1, b: 2)) for m in motif
    stack more = B(m: m) for m in [aaaaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbbbbbbb, cccccccccccccccccccc, ddddddddddddddd]
    forward(tokens[batch, position]: index, memory[batch, channel], continues[batch]) -> (loss[], memory[b, d]) {
        y = first_function(second_function(third_function(aaaaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbbbbbbbb), cccccccccccccc), ddd)
        z = aaaaaaaaaaaaaaaaaaaaaaaa * bbbbbbbbbbbbbbbbbbbbbbbbbb + cccccccccccccccccccccccccc * dddddddddddddddd - eeeeeeeeeee
        w = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa * (bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb + ccccccccccccccccccccccccccccc)
        c = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa + bbbbbbbbbbbbbbbbbb < ccccccccccccccccccccccccccccccccccccc
        v = -(aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa + bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb)
        u = an_extraordinarily_long_function_name_that_is_on_its_own_nearly_as_wide_as_the_page_of_this_source_file_is(x)
        (first_result_of_the_forward_with_a_name, second_result_of_the_forward_with_a_name, f(third_result, fourth_one))
    }
}";
    numbers_keep_their_spelling: "stage s {
    a = 1e-6
    b = 0.020
    c = 1E+3
    d = 007
}";
    windows_line_ends: "/// Doc.\r\nstage s {\r\n    // c  \r\n    d = 1 // e\r\n}\r\n";
}

#[test]
fn nothing_in_nothing_out() {
    assert_eq!(format(""), Ok(String::new()));
    assert_eq!(format("\n \t\n\n"), Ok(String::new()));
}

#[test]
fn text_with_errors_is_left_alone() {
    let diags = format("stage s {\n    d = = 1\n}\nstage t {\n    e = +\n}\n").unwrap_err();
    assert_eq!(diags.iter().map(|d| d.code).collect::<Vec<_>>(), ["E0101", "E0101"]);
}

#[test]
fn the_models_keep_their_syntax() {
    for (_, text) in model_sources() {
        formatted(&text);
    }
}

/// Expressions as text, with brackets where they are needed and where they are not.
fn expression() -> impl Strategy<Value = String> {
    let name = prop_oneof!["[a-c]", "[0-9]", Just("1e-6".to_owned()), Just("u".repeat(30))];
    name.prop_recursive(6, 40, 4, |inner| {
        let op = prop_oneof![Just("+"), Just("-"), Just("*"), Just("/")];
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            inner.clone().prop_map(|a| format!("({a})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            inner.clone().prop_map(|a| format!("({a} <= 1)")),
            inner.clone().prop_map(|a| format!("({a} > x - {a})")),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(", "))),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!(
                "call({}, over (d, e), t -> s)",
                v.join(", ")
            )
            .replace("(, ", "(")),
            inner.prop_map(|a| format!("f(x: {a}, u[{a} .. 9] -> t, s[{a}])")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_expression(expr in expression(), name in "[a-z]{1,40}") {
        let source = format!("block A(d) {{\n    forward(x[d]) -> [d] {{\n        {name}_ = {expr}\n        {expr}\n    }}\n}}\n");
        formatted(&source);
    }
}
