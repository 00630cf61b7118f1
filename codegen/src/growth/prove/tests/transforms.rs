//! The library of function-preserving transforms: each is proved for symbolic sizes, and wrong
//! variants of it are neither proved nor true.

use super::super::Verdict;
use super::{difference, growth, verdict};
use std::time::Instant;

/// A map and small sizes at which it is tried.
pub(super) struct Case {
    pub(super) map: &'static str,
    sizes: &'static [(&'static str, i64)],
    /// Replacements in the map's text, each of which makes it wrong.
    wrong: &'static [(&'static str, &'static str)],
}

pub(super) const CASES: &[Case] = &[
    Case {
        map: "widen_ffn",
        sizes: &[("d", 3), ("f", 4), ("g", 2)],
        wrong: &[
            (
                "down = concat(src.down, zeros, over f)",
                "down = concat(src.down, normal(0.02), over f)",
            ),
            ("down = concat(src.down, zeros, over f)", "down = concat(zeros, src.down, over f)"),
            (
                "up   = concat(src.up, normal(0.02), over f)",
                "up   = concat(normal(0.02), src.up, over f)",
            ),
            (
                "gate = concat(src.gate, normal(0.02), over f)",
                "gate = concat(src.gate * 2, normal(0.02), over f)",
            ),
        ],
    },
    Case {
        map: "repeat_ffn",
        sizes: &[("d", 3), ("f", 4), ("r", 3)],
        wrong: &[
            ("tile(src.down / size(r), over f)", "tile(src.down, over f)"),
            ("tile(src.down / size(r), over f)", "interleave(src.down / size(r), over f)"),
            ("gate = tile(src.gate, over f)", "gate = interleave(src.gate, over f)"),
        ],
    },
    Case {
        map: "add_heads",
        sizes: &[("d", 3), ("h", 2), ("k", 2), ("g", 1)],
        wrong: &[
            (
                "out   = concat(src.out, zeros, over h)",
                "out   = concat(src.out, normal(0.02), over h)",
            ),
            (
                "value = concat(src.value, normal(0.02), over h)",
                "value = concat(normal(0.02), src.value, over h)",
            ),
            (
                "key   = concat(src.key, normal(0.02), over h)",
                "key   = concat(src.key * 2, normal(0.02), over h)",
            ),
        ],
    },
    Case {
        map: "widen_heads",
        sizes: &[("d", 3), ("h", 2), ("k", 2), ("j", 3)],
        wrong: &[
            (" * sqrt((k + j) / k)", ""),
            (" * sqrt((k + j) / k)", " * ((k + j) / k)"),
            ("concat(src.key, zeros", "concat(src.key, normal(0.02)"),
            ("concat(src.out, zeros", "concat(src.out, normal(0.02)"),
        ],
    },
    Case {
        map: "widen_norm",
        sizes: &[("d", 3), ("g", 2)],
        wrong: &[
            (" * sqrt(d / (d + g))", ""),
            ("given x = concat(src.x, zeros, over d)", "given x = concat(src.x, ones, over d)"),
            ("PaddedRmsNorm(d: d + g, live: d)", "RmsNorm(d: d + g)"),
        ],
    },
    Case {
        map: "widen_residual",
        sizes: &[("vocab", 5), ("d", 3), ("h", 2), ("k", 2), ("f", 4), ("g", 2)],
        wrong: &[
            ("norm: PaddedRmsNorm(d: d + g, live: d)", "norm: RmsNorm(d: d + g)"),
            ("feed_norm.weight * sqrt(d / (d + g))", "feed_norm.weight"),
            (
                "concat(src.layers[l].feed.down, zeros, over d)",
                "concat(src.layers[l].feed.down, normal(0.02), over d)",
            ),
            ("concat(src.embedding, zeros, over d)", "concat(src.embedding, normal(0.02), over d)"),
        ],
    },
    Case {
        map: "add_layer",
        sizes: &[("vocab", 5), ("d", 3), ("h", 2), ("k", 2), ("f", 4)],
        wrong: &[
            ("layers[1].mix.out      = zeros", "layers[1].mix.out      = src.layers[0].mix.out"),
            ("layers[1].feed.down    = zeros", "layers[1].feed.down    = normal(0.02)"),
            (
                "layers[2].**           = src.layers[1].**",
                "layers[2].**           = src.layers[1].**\n    lm_head = src.lm_head * 2",
            ),
        ],
    },
    Case {
        map: "add_silent_pair",
        sizes: &[("vocab", 5), ("d", 3), ("h", 2), ("k", 2), ("f", 4)],
        wrong: &[
            ("    layers[2].gate = zeros", "    layers[2].gate = ones"),
            ("a: [1 / 2, 1, 1, 1 / 2]", "a: [1 / 2, 1 / 2, 1, 1 / 2]"),
            (
                "a: [1 / 2, 1, 1, 1 / 2], gates: [none, 0, 0, none]",
                "a: [1 / 2, 1 / 2, 1, 1], gates: [none, 0, 0, none]",
            ),
            (
                "a: [1 / 2, 1, 1, 1 / 2], gates: [none, 0, 0, none]",
                "a: [1 / 2, 1, 1, 1], gates: [none, 0, 0, none]",
            ),
        ],
    },
    Case {
        map: "dense_to_experts",
        sizes: &[
            ("vocab", 5),
            ("d", 3),
            ("h", 2),
            ("k", 2),
            ("f", 4),
            ("e", 5),
            ("w", 2),
            ("p", 2),
        ],
        wrong: &[
            ("routed.down       = zeros", "routed.down       = normal(0.02)"),
            ("src.layers[0].feed.up\n", "src.layers[0].feed.up * 2\n"),
            ("src.layers[0].feed.down\n", "src.layers[0].feed.down / 2\n"),
        ],
    },
    Case {
        map: "clone_experts",
        sizes: &[("d", 3), ("f", 4), ("g", 4), ("w", 2), ("p", 2), ("r", 3), ("c", 2)],
        wrong: &[
            ("tile(src.routed.down, over e)", "tile(src.routed.down / size(r), over e)"),
            ("tile(src.routed.gate, over e)", "interleave(src.routed.gate, over e)"),
            ("tile(src.routed.up, over e)", "tile(src.routed.up * 2, over e)"),
        ],
    },
    Case {
        map: "wider_and_deeper",
        sizes: &[("vocab", 5), ("d", 3), ("h", 2), ("k", 2), ("f", 4), ("g", 2)],
        wrong: &[
            ("layers[1].mix.out      = zeros", "layers[1].mix.out      = normal(0.02)"),
            ("layers[1].feed.down    = zeros", "layers[1].feed.down    = normal(0.02)"),
            (
                "layers[0].feed         = widen_ffn(src.layers[0].feed)",
                "layers[0].feed.gate = concat(src.layers[0].feed.gate, zeros, over f)\n    layers[0].feed.up = concat(src.layers[0].feed.up, zeros, over f)\n    layers[0].feed.down = concat(src.layers[0].feed.down * 2, zeros, over f)",
            ),
        ],
    },
    Case {
        map: "attach_adapter",
        sizes: &[("d", 3), ("f", 4), ("r", 2)],
        wrong: &[
            ("up     = zeros", "up     = normal(0.02)"),
            ("weight = src.weight", "weight = src.weight * 2"),
            ("up     = zeros", "up     = ones"),
        ],
    },
];

/// The text with a replacement inside one map.
fn changed(map: &str, from: &str, to: &str) -> String {
    let text = growth();
    let start = text.find(&format!("grow {map}(")).expect("the map");
    let end = text[start..].find("\n}\n").expect("its end") + start;
    let body = &text[start..end];
    assert!(body.contains(from), "`{map}` has no `{from}`");
    format!("{}{}{}", &text[..start], body.replace(from, to), &text[end..])
}

#[test]
fn every_map_of_the_library_has_a_case() {
    let text = growth();
    let maps: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("grow "))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let cases: Vec<&str> = CASES.iter().map(|case| case.map).collect();
    assert_eq!(maps, cases);
}

#[test]
fn every_transform_is_proved_for_symbolic_sizes() {
    let text = growth();
    let mut failed = Vec::new();
    for case in CASES {
        let start = Instant::now();
        let found = verdict(&text, case.map);
        println!("{}: {:.2} s: {found:?}", case.map, start.elapsed().as_secs_f64());
        if !matches!(found, Verdict::Proved { .. }) {
            failed.push((case.map, found));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_transform_holds_at_small_sizes() {
    let text = growth();
    for case in CASES {
        let apart = difference(&text, case.map, case.sizes);
        assert!(apart < 1e-11, "{}: {apart:e}", case.map);
    }
}

#[test]
fn wrong_variants_are_refuted_and_not_proved() {
    for case in CASES {
        assert!(case.wrong.len() >= 3, "{}", case.map);
        for (from, to) in case.wrong {
            let text = changed(case.map, from, to);
            let apart = difference(&text, case.map, case.sizes);
            assert!(apart > 1e-8, "{}, {to}: {apart:e}", case.map);
            let found = verdict(&text, case.map);
            assert!(matches!(found, Verdict::Unknown { .. }), "{}, {to}: {found:?}", case.map);
        }
    }
}

#[test]
fn a_verdict_is_a_function_of_the_map() {
    let text = growth();
    assert_eq!(verdict(&text, "widen_heads"), verdict(&text, "widen_heads"));
}
