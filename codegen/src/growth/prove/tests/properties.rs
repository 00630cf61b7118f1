//! Every rule against the interpreter: both sides of what it gives, on random small shapes and
//! random numbers.

use super::super::graph::{Graph, Match, RECORD, Shape, Tree};
use super::super::rules::RULES;
use super::super::scale::Scale;
use super::super::term::{Axes, Head, Kind, Ty};
use super::eval::{Bound, shape_value};
use super::transforms::CASES;
use super::{Draws, growth, verdict};
use crate::ops::{self, UnaryFn};
use egg::Id;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

fn size(text: &str) -> Size {
    text.split('+').fold(Size::default(), |total, term| {
        let product = term.split('*').fold(Size::constant(1), |product, name| {
            let factor = name.parse().map_or_else(|_| Size::symbol(name), Size::constant);
            product.checked_mul(&factor).unwrap()
        });
        total.checked_add(&product).unwrap()
    })
}

/// Axes written as `a b=2*c`.
fn axes(text: &str) -> Vec<Axis> {
    let axis = |word: &str| {
        let (name, length) = word.split_once('=').unwrap_or((word, word));
        Axis { name: name.to_owned(), size: size(length) }
    };
    text.split_whitespace().map(axis).collect()
}

fn ty(text: &str) -> Ty {
    Ty::float(axes(text).into_iter().map(|axis| (axis.name, axis.size)).collect::<Axes>())
}

fn leaf(name: &str, axes: &str) -> Tree {
    Tree::leaf(Head::Leaf { name: name.to_owned(), ty: ty(axes) })
}

fn fill(value: f64, axes: &str) -> Tree {
    Tree::leaf(Head::Fill { value: Scale::number(value).unwrap(), ty: ty(axes) })
}

fn one(head: Head, x: Tree) -> Tree {
    Tree::one(head, x)
}

fn mul(a: Tree, b: Tree) -> Tree {
    Tree::Node(Head::Mul, vec![a, b])
}

fn add(a: Tree, b: Tree) -> Tree {
    Tree::Node(Head::Add, vec![a, b])
}

fn concat(axis: &str, parts: Vec<Tree>) -> Tree {
    Tree::Node(Head::Concat(axis.to_owned()), parts)
}

fn split(axis: &str, into: &str, x: Tree) -> Tree {
    one(Head::Split { axis: axis.to_owned(), into: axes(into) }, x)
}

fn merge(parts: &[&str], into: &str, x: Tree) -> Tree {
    let axes = parts.iter().map(|part| (*part).to_owned()).collect();
    one(Head::Merge { axes, into: into.to_owned() }, x)
}

fn rename(from: &str, to: &str, x: Tree) -> Tree {
    one(Head::Rename { from: from.to_owned(), to: to.to_owned() }, x)
}

fn sum(over: &[&str], x: Tree) -> Tree {
    one(Head::Sum(over.iter().map(|name| (*name).to_owned()).collect()), x)
}

fn unary(function: UnaryFn, x: Tree) -> Tree {
    one(Head::op(ops::Unary { function }), x)
}

/// Terms in which rules are to be found that the library's proofs do not try.
fn seeds() -> Vec<Tree> {
    let x = || leaf("x", "a e=h*k");
    let heads = || leaf("y", "a h k");
    let loss = ops::LinearCrossEntropy { channel: "d".into(), vocab: "v".into(), softcap: 3.0 };
    let targets = Tree::leaf(Head::Leaf {
        name: "targets".into(),
        ty: Ty { kind: Kind::Index, axes: ty("b t").axes },
    });
    let attention = ops::MaskedAttention {
        query: "t".into(),
        key: "s".into(),
        head: "h".into(),
        channel: "k".into(),
        bound: Default::default(),
    };
    let mask = Tree::leaf(Head::Leaf {
        name: "mask".into(),
        ty: Ty { kind: Kind::Bool, axes: ty("b t s=t").axes },
    });
    vec![
        split("e", "h k", merge(&["h", "k"], "e", heads())),
        split("e", "h m=k", merge(&["h", "k"], "e", heads())),
        merge(&["h", "k"], "e", split("e", "h k", x())),
        merge(&["h", "m"], "e", rename("k", "m", heads())),
        rename("k", "m", split("e", "h k", x())),
        rename("b", "c", rename("a", "b", leaf("z", "a"))),
        rename("b", "a", rename("a", "b", leaf("z", "a"))),
        mul(rename("a", "b", leaf("z", "a")), rename("a", "b", leaf("w", "a d"))),
        sum(&["b"], rename("a", "b", leaf("z", "a d"))),
        sum(&["d"], rename("a", "b", leaf("z", "a d"))),
        sum(&["e"], merge(&["h", "k"], "e", heads())),
        sum(&["a"], sum(&["h"], heads())),
        split("e", "h=h+g k", concat("e", vec![x(), leaf("n", "a e=g*k")])),
        merge(&["h", "k"], "e", concat("h", vec![heads(), leaf("n", "a h=g k")])),
        mul(merge(&["h", "k"], "e", heads()), x()),
        split("e", "h k", unary(UnaryFn::Silu, mul(x(), leaf("w", "a")))),
        concat("e", vec![concat("e", vec![x(), leaf("n", "a e=g")]), leaf("l", "a e=j")]),
        rename("e", "f", concat("e", vec![x(), leaf("n", "a e=g")])),
        one(
            Head::Slice { axis: "e".into(), start: size("g"), len: size("h*k") },
            concat("e", vec![leaf("n", "a e=g"), x()]),
        ),
        add(mul(fill(3.0, ""), x()), mul(fill(3.0, ""), leaf("w", "a"))),
        add(mul(fill(3.0, ""), x()), fill(0.5, "")),
        add(mul(fill(-3.0, ""), x()), fill(0.5, "a c")),
        unary(UnaryFn::Square, mul(fill(-3.0, ""), x())),
        unary(UnaryFn::Recip, mul(fill(-3.0, "c"), x())),
        unary(UnaryFn::Silu, mul(fill(1.0, "r"), x())),
        add(mul(fill(1.0, "r"), x()), mul(fill(1.0, "r"), leaf("w", "a"))),
        sum(&["a"], mul(fill(1.0, "r"), x())),
        mul(fill(2.0, "a"), mul(fill(3.0, "c"), x())),
        sum(&["r", "a"], mul(fill(2.0, "r"), x())),
        sum(&["a"], concat("a", vec![x(), leaf("n", "a=g e=h*k"), leaf("o", "a=2 e=h*k")])),
        sum(&["a"], mul(fill(0.0, "e=h*k"), leaf("z", "a"))),
        Tree::Node(
            Head::op(loss),
            vec![
                concat("d", vec![leaf("h", "b t d"), fill(0.0, "b t d=g")]),
                concat("d", vec![leaf("w", "v d"), leaf("n", "v d=g")]),
                targets,
            ],
        ),
        Tree::Node(
            Head::op(attention),
            vec![
                concat(
                    "k",
                    vec![leaf("q", "b t h k"), fill(0.0, "b t h k=g"), leaf("p", "b t h k=j")],
                ),
                concat(
                    "k",
                    vec![
                        leaf("c", "b s=t h k"),
                        leaf("n", "b s=t h k=g"),
                        fill(0.0, "b s=t h k=j"),
                    ],
                ),
                concat("m", vec![leaf("v", "b s=t h m"), leaf("o", "b s=t h m=g")]),
                mask,
            ],
        ),
    ]
}

fn recorded(run: impl FnOnce()) -> Vec<Match> {
    RECORD.set(Some(Vec::new()));
    run();
    RECORD.take().unwrap()
}

fn head_symbols(head: &Head, names: &mut BTreeSet<String>) {
    let mut all = |size: &Size| names.extend(size.symbols().map(str::to_owned));
    match head {
        Head::Leaf { ty, .. } => ty.axes.values().for_each(all),
        Head::Fill { value, ty } => {
            ty.axes.values().for_each(all);
            names.extend(value.symbols());
        }
        Head::Split { into, .. } => into.iter().for_each(|part| all(&part.size)),
        Head::Slice { start, len, .. } => [start, len].into_iter().for_each(all),
        _ => {}
    }
}

fn symbols(shape: &Shape, names: &mut BTreeSet<String>) {
    if let Shape::Node(head, children) = shape {
        head_symbols(head, names);
        children.iter().for_each(|child| symbols(child, names));
    }
}

/// The largest relative difference of the two sides; `None` if a side has no value here.
fn apart(found: &Match, round: u64) -> Option<f64> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    symbols(&found.left, &mut names);
    symbols(&found.right, &mut names);
    let of_types = found.types.iter().flat_map(|ty| ty.axes.values());
    names.extend(of_types.flat_map(Size::symbols).map(str::to_owned));
    let sizes: Bound = names
        .into_iter()
        .enumerate()
        .map(|(index, name)| (name, 1 + ((index as u64 * 7 + round * 5) % 4) as i64))
        .collect();
    let mut draws = Draws::new(&format!("{} {round}", found.rule));
    let vars: Vec<_> = found.types.iter().map(|ty| draws.positive(ty, &sizes)).collect();
    let left = shape_value(&found.left, &vars, &sizes)?;
    let right = shape_value(&found.right, &vars, &sizes)?;
    assert_eq!(left.0, right.0, "{found:?}");
    let largest = left.1.iter().fold(1e-3_f64, |m, v| m.max(v.abs()));
    Some(left.1.iter().zip(&right.1).fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs())) / largest)
}

/// Uses of a rule that are looked at.
const USES: usize = 40;

#[test]
fn every_rule_holds_on_random_data() {
    let mut matches = recorded(|| {
        let text = growth();
        for case in CASES {
            verdict(&text, case.map);
        }
        for seed in seeds() {
            let mut graph = Graph::new();
            let id: Id = graph.add_tree(&seed);
            assert!(graph.ty(id).is_some(), "{seed:?}");
            graph.saturate(|_| false);
        }
    });
    matches.reverse();
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut tried: BTreeMap<&str, usize> = BTreeMap::new();
    for found in &matches {
        let known = seen.entry(found.rule).or_default();
        if known.len() >= USES || !known.insert(format!("{found:?}")) {
            continue;
        }
        for round in 0..3 {
            let Some(apart) = apart(found, round) else { continue };
            *tried.entry(found.rule).or_insert(0) += 1;
            assert!(apart < 1e-9, "`{}` does not hold ({apart:e}): {found:#?}", found.rule);
        }
    }
    for rule in RULES {
        assert!(!rule.why.is_empty());
        let n = tried.get(rule.name).copied().unwrap_or(0);
        assert!(n > 0, "rule `{}` has no property case", rule.name);
    }
}

#[test]
fn a_silent_step_is_exact_in_whole_numbers() {
    use lightc_numerics::fixed::Step;
    let step = Step::new(1, 0, 0.5, 20);
    for before in [i32::MIN, -7, 0, 1, 12345, i32::MAX] {
        for now in [i32::MIN, -1, 0, 99, i32::MAX] {
            let stepped = step.forward(before, now, 0.0);
            assert_eq!((stepped.next, stepped.kept), (before, 0));
        }
    }
}

#[test]
fn rules_have_names_of_their_own() {
    let names: BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), RULES.len());
}
