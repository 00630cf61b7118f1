//! Rules as the executor evaluates them, against their meaning in `lightc_codegen`.

use super::*;
use crate::eval::{Context, blocks, raw, values};
use crate::number;
use crate::region::Region;
use crate::testing::InMemory;
use lightc_codegen::growth::eval::{Sources, value};
use lightc_codegen::growth::{Factor, Rule, RuleKind};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use lightc_numerics::draw::Law;
use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;

/// A type from `"f=8 d=4"`.
fn ty(axes: &str) -> Type {
    let axis = |text: &str| {
        let (name, size) = text.split_once('=').expect("name=size");
        let size = Size::constant(size.parse().expect("a size"));
        Axis { name: name.to_owned(), size }
    };
    Type::new(DType::Act, axes.split_whitespace().map(axis).collect())
}

fn rule(axes: &str, kind: RuleKind) -> Rule {
    Rule { ty: ty(axes), kind, span: None }
}

/// Tensors of the source: path, axes.
const SOURCE: [(&str, &str); 3] = [("w", "f=8 d=4"), ("e", "x=3 f=8 d=4"), ("s", "d=4")];

fn source(path: &str) -> Rule {
    let axes = SOURCE.iter().find(|(name, _)| *name == path).expect("a source").1;
    rule(axes, RuleKind::Source { path: path.to_owned() })
}

fn w() -> Box<Rule> {
    Box::new(source("w"))
}

fn e() -> Box<Rule> {
    Box::new(source("e"))
}

fn normal(axes: &str) -> Rule {
    rule(axes, RuleKind::Draw { law: Law::Normal { std: 0.02 }, key: "n".to_owned() })
}

fn every_kind() -> Vec<Rule> {
    let (axis, each, key) = ("f".to_owned(), Some("x".to_owned()), "neurons".to_owned());
    let third = Factor { number: 1.0 / 3.0, sizes: vec![(Size::constant(6), -1)] };
    vec![
        source("s"),
        normal("f=8 d=4"),
        rule("d=4", RuleKind::Fill { value: 0.1 }),
        rule("f=8 d=4", RuleKind::Scale { of: w(), factor: third }),
        rule("f=8 d=4", RuleKind::Add { left: w(), right: Box::new(normal("f=8 d=4")) }),
        rule(
            "f=11 d=4",
            RuleKind::Concat { parts: vec![source("w"), normal("f=3 d=4")], axis: axis.clone() },
        ),
        rule("f=24 d=4", RuleKind::Tile { of: w(), axis: axis.clone() }),
        rule("f=24 d=4", RuleKind::Interleave { of: w(), axis: axis.clone() }),
        rule("x=5 f=8 d=4", RuleKind::Repeat { of: w(), axis: "x".to_owned() }),
        rule("f=8 x=5 d=4", RuleKind::Repeat { of: w(), axis: "x".to_owned() }),
        rule("f=3 d=4", RuleKind::Slice { of: w(), axis: axis.clone(), start: Size::constant(2) }),
        rule("f=3 d=4", RuleKind::Select { of: w(), axis: axis.clone(), positions: vec![7, 0, 7] }),
        rule(
            "f=5 d=4",
            RuleKind::Subset { of: w(), axis: axis.clone(), each: None, key: key.clone() },
        ),
        rule(
            "x=3 f=5 d=4",
            RuleKind::Subset { of: w(), axis: axis.clone(), each: each.clone(), key: key.clone() },
        ),
        rule(
            "f=5 x=3 d=4",
            RuleKind::Subset { of: w(), axis: axis.clone(), each: each.clone(), key: key.clone() },
        ),
        rule(
            "f=8 d=4",
            RuleKind::Redraw {
                of: w(),
                axis: axis.clone(),
                keep: Size::constant(5),
                each: None,
                key: key.clone(),
                values: "v".to_owned(),
            },
        ),
        rule(
            "x=3 f=8 d=4",
            RuleKind::Redraw {
                of: e(),
                axis: axis.clone(),
                keep: Size::constant(3),
                each,
                key: key.clone(),
                values: "v".to_owned(),
            },
        ),
        rule("x=3 f=8 d=4", RuleKind::Noise { of: e(), factor: 0.01, key }),
        rule("d=4 x=3 f=8", RuleKind::Permute { of: e() }),
        rule("g=8 d=4", RuleKind::Rename { of: w(), from: axis.clone(), to: "g".to_owned() }),
        rule(
            "g=2 h=4 d=4",
            RuleKind::Split { of: w(), from: axis.clone(), to: vec!["g".into(), "h".into()] },
        ),
        rule(
            "y=24 d=4",
            RuleKind::Merge { of: e(), from: vec!["x".into(), "f".into()], to: "y".to_owned() },
        ),
        rule("f=8 d=4", RuleKind::Rotate { of: w(), axis: "d".to_owned(), seed: 42 }),
        rule("x=3 f=8 d=4", RuleKind::Rotate { of: e(), axis, seed: 142 }),
    ]
}

#[test]
fn every_kind_of_rule_has_the_bits_of_its_meaning() {
    let shapes: Vec<Vec<usize>> =
        SOURCE.iter().map(|(path, axes)| shape_of(path, &ty(axes)).expect("bound")).collect();
    let source = InMemory::new(Dtype::F32, &shapes);
    let array = |tensor: usize| {
        let mut all = vec![0.0; shapes[tensor].iter().product()];
        number::read(Dtype::F32, &source.tensors[tensor].1, &mut all);
        ArrayD::from_shape_vec(IxDyn(&shapes[tensor]), all).expect("fits")
    };
    let tensors = SOURCE.iter().enumerate().map(|(i, (path, _))| ((*path).to_owned(), array(i)));
    let tensors = tensors.collect();
    let sources = Sources { tensors: &tensors, sizes: &BTreeMap::new(), seed: 5 };
    let leaf = |path: &str| {
        let tensor = SOURCE.iter().position(|(name, _)| *name == path)?;
        Some(Node { shape: shapes[tensor].clone(), kind: Kind::Source(tensor) })
    };
    let compiler = Compiler { seed: 5, source: &leaf, path: "target" };
    let context = Context { tensors: &source, seed: 5 };
    for rule in every_kind() {
        let node = compiler.node(&rule).expect("compiles");
        let expected: Vec<f64> =
            value(&rule, sources).expect("has a meaning").iter().copied().collect();
        let found = values(context, &node, &Region::whole(&node.shape)).expect("evaluates");
        let bits = |list: &[f64]| list.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "{rule:#?}");
        for dtype in [Dtype::F32, Dtype::BF16] {
            let mut rounded = vec![0; expected.len() * number::width(dtype)];
            number::write(dtype, &expected, &mut rounded);
            let mut bytes = Vec::new();
            for region in blocks(&node.shape, 5) {
                let mut block = vec![0; region.n_elements() * number::width(dtype)];
                raw(context, &node, &region, dtype, &mut block).expect("evaluates");
                bytes.extend(block);
            }
            assert_eq!(bytes, rounded, "{dtype:?} {rule:#?}");
        }
    }
}
