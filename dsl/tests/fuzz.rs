//! No input makes the front end panic, hang or point outside of its source.
//!
//! Inputs are mutated pieces of the repository's models and of sources written here, and loose
//! tokens. Each one is parsed, resolved and, where it parses, formatted. `LIGHTC_FUZZ_CASES` says
//! how many (a few thousand where it is not set), `LIGHTC_FUZZ_SEED` where the random numbers
//! start. A million:
//!
//! ```sh
//! LIGHTC_FUZZ_CASES=1000000 cargo test --release -p lightc-dsl --test fuzz -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use lightc_dsl::diag::{self, Diag};
use lightc_dsl::format::format;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::{MapLoader, Sources};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DEFAULT_CASES: u64 = 4000;
/// Far above any input here; what takes longer grows faster than its input.
const SLOW: Duration = Duration::from_secs(5);

/// A program that uses every construct once.
const ALL: &str = r#"
import "lib.llm"
/// Doc.
block A(d, n, eps: number = 1e-6, inner: block = B(), motif: blocks = [B(), B(d: d)]) {
    axis e = n * d - 2 / 2
    param w[d, e]: f32 ~ normal(0.02 / sqrt(size(e))) frozen "why"
    param s[] ~ constant(-eps)
    state ema[d] = 1.0
    table codes[n, d] from "tokenizer.byte_codes"
    sub one = inner training_only
    stack layers = Wrap(inner: m) for m in motif * 2 + [inner] integrate midpoint(h: 1/4, a: 1/2, gates: [none] * 4 + [0])
    forward(x[.., d], y[b, t]: index) -> (out[.., d], z[]) {
        axis s = t - 1
        a, b = layers(dot(x, w, over d), y)
        q[b, t, d] = -split(a, e -> (n, d)) * where(x <= 0, 1, eps) // note
        update ema = 0.99 * ema + place(x, s[0])
        (slice(q, t[0 .. t - 1] -> s), sum(x, over (s, d)))
    }
}
block B(d) {
    forward(x[.., d]) -> [.., d] { x }
}
block Wrap(d, inner: block) {
    sub body = inner
    forward(x[.., d]) -> [.., d] { body(x) }
}
stage base {
    d = 2 * f
    f = 4
    n = 2
    inner = B()
    deep = Wrap(inner: Wrap(inner: inner))
    motif = [inner, deep] * 2
    model = A(d: d, n: n + 1, inner: deep, motif: motif)
}
stage tiny extends base {
    f = 1 + size(n)
}
"#;

const TOKENS: [&str; 91] = [
    "import",
    "block",
    "stage",
    "extends",
    "axis",
    "param",
    "state",
    "table",
    "sub",
    "stack",
    "integrate",
    "integrator",
    "midpoint",
    "forward",
    "update",
    "over",
    "for",
    "in",
    "from",
    "frozen",
    "training_only",
    "number",
    "blocks",
    "f32",
    "act",
    "index",
    "bool",
    "zeros",
    "ones",
    "constant",
    "normal",
    "uniform",
    "log_uniform",
    "size",
    "sqrt",
    "exp",
    "ln",
    "sum",
    "dot",
    "A",
    "B",
    "Wrap",
    "base",
    "tiny",
    "d",
    "e",
    "f",
    "n",
    "x",
    "w",
    "m",
    "model",
    "motif",
    "inner",
    "lib",
    "0",
    "1",
    "2",
    "8",
    "0.5",
    "1e-6",
    "1e308",
    "1e999",
    "9007199254740993",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "=",
    "~",
    "->",
    "..",
    "+",
    "-",
    "*",
    "/",
    "<",
    "<=",
    ">",
    ">=",
    "\"lib.llm\"",
    "\"",
    "//",
    "///",
    "\n",
    "é",
    "\u{1F600}",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn token(&mut self) -> &'static str {
        TOKENS[self.below(TOKENS.len())]
    }
}

/// Pieces to mutate: whole small sources, and single items of large ones.
fn corpus() -> Vec<String> {
    let mut pieces = Vec::new();
    let models = common::model_sources();
    for text in models.iter().map(|(_, text)| text.as_str()).chain([ALL]) {
        let mut piece = String::new();
        for line in text.lines() {
            piece.push_str(line);
            piece.push('\n');
            if line.starts_with('}') {
                pieces.push(std::mem::take(&mut piece));
            }
        }
    }
    // Mutation of a long text spends its time on what did not change.
    pieces.retain(|piece| piece.len() < 900);
    pieces.push(ALL.to_owned());
    pieces
}

/// The nearest place at or before `at` where a character starts.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn range(text: &str, longest: usize, random: &mut Random) -> std::ops::Range<usize> {
    let start = floor(text, random.below(text.len() + 1));
    let end = floor(text, start + random.below(longest));
    start..end.max(start)
}

/// A name, number or character, so that mutants stay close to programs.
fn word_at(text: &str, random: &mut Random) -> std::ops::Range<usize> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    let at = floor(text, random.below(text.len()));
    let (mut start, mut end) = (at, at);
    while start > 0 && is_word(bytes[start - 1]) {
        start -= 1;
    }
    while end < bytes.len() && is_word(bytes[end]) {
        end += 1;
    }
    start..end
}

fn mutate(text: &mut String, corpus: &[String], random: &mut Random) {
    match random.below(8) {
        0 => {
            let range = range(text, 6, random);
            text.replace_range(range, "");
        }
        1 => {
            let range = range(text, 80, random);
            text.replace_range(range, "");
        }
        2 | 3 => {
            let at = range(text, 1, random);
            text.replace_range(at, random.token());
        }
        4 | 5 => {
            let word = word_at(text, random);
            text.replace_range(word, random.token());
        }
        6 => {
            let piece = text[range(text, 60, random)].to_owned();
            let at = range(text, 1, random);
            text.replace_range(at, &piece);
        }
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let piece = other[range(other, 60, random)].to_owned();
            let at = range(text, 1, random);
            text.replace_range(at, &piece);
        }
    }
}

fn soup(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..random.below(80) {
        text.push_str(random.token());
        if random.below(3) != 0 {
            text.push(' ');
        }
    }
    text
}

/// One thing many times: nesting and chains are where stacks and times grow.
fn tower(random: &mut Random) -> String {
    let n = [10, 60, 200, 3000][random.below(4)];
    let (open, close) =
        [("(", ")"), ("f(", ")"), ("[", "]"), ("-(", ")"), ("1 + ", ""), ("", " * x"), ("{", "}")]
            [random.below(7)];
    format!("stage s {{\n    d = {}1{}\n    model = d\n}}\n", open.repeat(n), close.repeat(n))
}

fn input(corpus: &[String], random: &mut Random) -> String {
    match random.below(32) {
        0..=5 => soup(random),
        6 => tower(random),
        _ => {
            let mut text = corpus[random.below(corpus.len())].clone();
            for _ in 0..=random.below(4) {
                mutate(&mut text, corpus, random);
            }
            text
        }
    }
}

fn check_places(diags: &[Diag], sources: &Sources) {
    for diag in diags {
        assert!(diag::codes::page(diag.code).is_some(), "{} has no page", diag.code);
        for label in std::iter::once(&diag.primary).chain(&diag.related) {
            let text = &sources.get(label.span.source).expect("a known source").text;
            let range = label.span.start as usize..label.span.end as usize;
            assert!(text.get(range).is_some(), "{label:?} lies outside of its text");
        }
    }
}

/// What one input goes through. `thorough` adds what is too slow for each one.
/// Says whether the text is free of syntax errors.
fn check(text: &str, loader: &MapLoader, thorough: bool) -> bool {
    let (program, sources, diags) = load_program("main.llm", text, loader);
    check_places(&diags, &sources);
    let (models, more) = program.check();
    check_places(&more, &sources);
    assert!(models.is_empty() || diags.is_empty(), "a model came out of a program with errors");
    for name in program.stage_names() {
        let result = program.resolve_stage(name);
        assert!(!result.is_err_and(|d| d.is_empty()), "`{name}` failed without a diagnostic");
    }
    let layout = format(text);
    match &layout {
        Ok(once) => {
            assert_eq!(format(once).as_ref(), Ok(once), "formatting is not stable");
            if thorough {
                assert_eq!(common::syntax_of(text), common::syntax_of(once));
            }
        }
        Err(diags) => assert!(!diags.is_empty(), "not formatted, without a diagnostic"),
    }
    if thorough {
        diag::render(&diags, &sources, false);
        diag::to_json(&more, &sources);
    }
    layout.is_ok()
}

fn number_from(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
        Err(_) => default,
    }
}

#[test]
fn no_input_panics() {
    let cases = number_from("LIGHTC_FUZZ_CASES", DEFAULT_CASES);
    let seed = number_from("LIGHTC_FUZZ_SEED", 1);
    let corpus = corpus();
    let loader = MapLoader::default().with(
        "lib.llm",
        "import \"main.llm\"\nblock Lib(d) {\n    forward(x[d]) -> [d] { x }\n}\n",
    );
    let (next, n_parsed) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let case = next.fetch_add(1, Ordering::Relaxed);
                    if case >= cases {
                        break;
                    }
                    // The case alone decides its input, whatever the number of threads.
                    let mut random = Random(seed.wrapping_mul(0x1_0000_0001).wrapping_add(case));
                    let text = input(&corpus, &mut random);
                    let began = Instant::now();
                    let run = AssertUnwindSafe(|| check(&text, &loader, case.is_multiple_of(16)));
                    let parsed = catch_unwind(run).unwrap_or_else(|panic| {
                        eprintln!("case {case} of seed {seed}:\n{text}\n{}", "-".repeat(80));
                        std::panic::resume_unwind(panic)
                    });
                    n_parsed.fetch_add(u64::from(parsed), Ordering::Relaxed);
                    let took = began.elapsed();
                    assert!(took < SLOW, "case {case} of seed {seed} took {took:?}:\n{text}");
                }
            });
        }
    });
    println!(
        "{cases} inputs without a panic in {:.1} s, {} of them without a syntax error",
        started.elapsed().as_secs_f64(),
        n_parsed.load(Ordering::Relaxed),
    );
}
