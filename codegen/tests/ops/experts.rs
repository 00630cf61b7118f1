//! Selections by index, products with a chosen weight, and the turn of a row.

use super::*;
use lightc_codegen::ops::{
    Below, Count, Exchange, ExpertDot, ExpertDotWeightGrad, ExpertOrder, Hadamard, IndexAffine,
    IndexBinary, IndexFn, LocalExpert, LogSumExp, RoutedCombine, RoutedDot, RoutedDotPair,
    RoutedLowBack, RoutedSwiglu, RoutedWeightGrad, RoutedWeightGradPair, SumRanks, Take, TakeGrad,
    Top,
};

const F32: DType = DType::F32;
const INDEX: DType = DType::Index;

fn expert_dot() -> ExpertDot {
    ExpertDot { expert: word("e"), over: word("d") }
}

fn routed_dot(over: &[&str]) -> RoutedDot {
    RoutedDot { expert: word("e"), over: words(over) }
}

fn routed_dot_pair() -> RoutedDotPair {
    RoutedDotPair { expert: word("e"), over: word("d") }
}

fn routed_low_back() -> RoutedLowBack {
    RoutedLowBack { expert: constant("e", 3), over: word("f") }
}

fn take() -> Take {
    Take { axis: word("e") }
}

fn top() -> Top {
    Top { axis: word("e"), slots: constant("p", 2) }
}

pub(crate) fn one_of_each() -> Vec<Op> {
    let size = minus(&Size::symbol("u"), 2);
    let sized = Axis { name: word("u"), size: size.clone() };
    let mut ops: Vec<Op> = vec![
        LogSumExp { over: words(&["e", "t"]) }.into(),
        take().into(),
        TakeGrad { axis: sized.clone(), batch: words(&["b", "t"]) }.into(),
        TakeGrad { axis: constant("e", 4), batch: vec![] }.into(),
        IndexAffine { mul: 6, add: -1 }.into(),
        Below { limit: size }.into(),
        Count { axis: sized.clone() }.into(),
        Top { axis: word("e"), slots: sized.clone() }.into(),
        expert_dot().into(),
        ExpertDotWeightGrad { expert: sized.clone(), over: word("d") }.into(),
        ExpertOrder { expert: sized.clone() }.into(),
        routed_dot(&["d", "r"]).into(),
        RoutedSwiglu { expert: word("e"), gate: words(&["d", "r"]), up: words(&["d"]) }.into(),
        RoutedCombine { expert: word("e"), over: words(&["f"]), slots: word("p") }.into(),
        RoutedWeightGrad { expert: sized.clone() }.into(),
        routed_dot_pair().into(),
        RoutedWeightGradPair { expert: sized.clone() }.into(),
        RoutedLowBack { expert: sized, over: word("f") }.into(),
        Exchange { experts: 460 }.into(),
        LocalExpert { experts: 58 }.into(),
        Hadamard { axis: word("d"), seed: 42, inverse: false }.into(),
        Hadamard { axis: word("d"), seed: 0, inverse: true }.into(),
        SumRanks.into(),
        Cast { to: INDEX }.into(),
    ];
    ops.extend(IndexFn::ALL.map(|function| IndexBinary { function }.into()));
    ops
}

// Derivatives.

#[test]
fn logsumexp_has_the_right_derivative() {
    for_seeds(8, |case| {
        for over in [&["e"][..], &["t", "b"], &["b", "t", "e"]] {
            let x = case.normal(&["b", "t", "e"]);
            check_derivative(case, LogSumExp { over: words(over) }, vec![x]);
        }
    });
}

#[test]
fn taking_has_the_right_derivative() {
    for_seeds(16, |case| {
        case.axis("e");
        let n = case.n("e");
        let shapes: [(&[&str], &[&str]); 6] = [
            (&["b", "t", "e"], &["b", "t", "p"]),
            (&["e", "b", "d"], &["p", "b"]),
            (&["e"], &["b", "t"]),
            (&["e", "d", "h"], &["p"]),
            (&["b", "e", "d"], &["b"]),
            // The ids have an axis of the name of the one that is taken from.
            (&["b", "e"], &["b", "e"]),
        ];
        for (x, ids) in shapes {
            let args = vec![case.normal(x), case.index(ids, -2, n)];
            check_derivative(case, take(), args);
        }
    });
}

#[test]
fn expert_products_have_the_right_derivative() {
    for_seeds(16, |case| {
        case.axis("e");
        let n = case.n("e");
        let shapes: [(&[&str], &[&str]); 5] = [
            (&["b", "t", "d"], &["b", "t", "p"]),
            (&["b", "t", "p", "d"], &["b", "t", "p"]),
            (&["t", "d", "b"], &["p", "b", "t"]),
            (&["p", "d"], &["b", "p"]),
            (&["d"], &["b"]),
        ];
        for (x, ids) in shapes {
            let args = vec![case.normal(x), case.normal(&["d", "e", "f"]), case.index(ids, -1, n)];
            check_derivative(case, expert_dot(), args);
        }
        // All on one expert, and none on any.
        for (from, to) in [(0, 1), (-3, 0)] {
            let ids = case.index(&["b", "t", "p"], from, to);
            let args = vec![case.normal(&["b", "t", "d"]), case.normal(&["e", "f", "d"]), ids];
            check_derivative(case, expert_dot(), args);
        }
    });
}

/// Ids of these axes with their order and bounds, which say nothing in the interpreter.
fn routing(case: &mut Case, names: &[&str]) -> Vec<Arg> {
    case.axis("e");
    let ids = case.index(names, -1, case.n("e"));
    let one = Size::constant(1);
    let places = ids.ty.axes.iter().fold(one.clone(), |n, axis| n.checked_mul(&axis.size).unwrap());
    let bounds = case.axis("e").size.checked_add(&one).unwrap();
    let list = |name: &str, size: Size| Arg {
        ty: Type::new(INDEX, vec![Axis { name: word(name), size }]),
        draw: Draw::Index(0, 1),
    };
    vec![ids, list("places", places), list("bounds", bounds)]
}

fn act(case: &mut Case, names: &[&str]) -> Arg {
    Arg { ty: Type::new(DType::Act, case.axes(names)), draw: Draw::Normal }
}

/// The axes of x and of the weight, and the summed one.
type TermAxes = (&'static [&'static str], &'static [&'static str], &'static str);

#[test]
fn routed_products_have_the_right_derivative() {
    for_seeds(12, |case| {
        let shapes: [&[TermAxes]; 4] = [
            &[(&["b", "t", "d"], &["e", "f", "d"], "d")],
            &[(&["b", "t", "p", "d"], &["e", "d", "f"], "d")],
            &[
                (&["b", "t", "d"], &["e", "f", "d"], "d"),
                (&["b", "t", "p", "r"], &["e", "r", "f"], "r"),
            ],
            &[(&["b", "d"], &["e", "f", "d"], "d"), (&["b", "t", "r"], &["e", "f", "r"], "r")],
        ];
        for terms in shapes {
            let mut args = routing(case, &["b", "t", "p"]);
            for (x, w, _) in terms {
                args.push(act(case, x));
                args.push(act(case, w));
            }
            let over: Vec<&str> = terms.iter().map(|term| term.2).collect();
            check_derivative(case, routed_dot(&over), args);
        }
    });
}

#[test]
fn routed_gate_and_sum_have_the_right_derivative() {
    for_seeds(12, |case| {
        let mut args = routing(case, &["b", "t", "p"]);
        for (x, w) in [(["b", "t", "d"], ["e", "f", "d"]), (["b", "t", "d"], ["e", "f", "d"])] {
            args.push(act(case, &x));
            args.push(act(case, &w));
        }
        // The loss is on `gated`: nothing reaches up.
        let op = RoutedSwiglu { expert: word("e"), gate: words(&["d"]), up: words(&["d"]) };
        check_derivative(case, op, args);

        let ids = ["b", "t", "p"];
        let weights = Arg { ty: Type::new(F32, case.axes(&ids)), draw: Draw::Normal };
        let mut args = vec![weights];
        args.extend(routing(case, &ids));
        let terms: [(&[&str], &[&str]); 2] =
            [(&["b", "t", "p", "f"], &["e", "d", "f"]), (&["b", "t", "r"], &["e", "d", "r"])];
        for (x, w) in terms {
            args.push(act(case, x));
            args.push(act(case, w));
        }
        let op = RoutedCombine { expert: word("e"), over: words(&["f", "r"]), slots: word("p") };
        check_derivative(case, op, args);
    });
}

#[test]
fn an_exchange_passes_its_cotangent_on() {
    for_seeds(4, |case| {
        let args = vec![case.normal(&["b", "t", "p", "d"]), case.index(&["b", "t", "p"], -1, 40)];
        check_derivative(case, Exchange { experts: 40 }, args);
    });
}

#[test]
fn a_turn_has_the_right_derivative() {
    for_seeds(8, |case| {
        let n = [1, 2, 4, 8][case.below(4) as usize];
        case.axis_of("d", n);
        for inverse in [false, true] {
            let x = case.normal(&["b", "d", "t"]);
            check_derivative(case, Hadamard { axis: word("d"), seed: 42, inverse }, vec![x]);
        }
    });
}

#[test]
fn choices_have_no_gradient() {
    let mut case = Case::new(0);
    let e = case.axes(&["e"]);
    let wide =
        |case: &mut Case| Arg { ty: Type::new(F32, case.axes(&["b", "e"])), draw: Draw::Normal };
    let slots = Axis { name: word("p"), ..e[0].clone() };
    let top = Top { axis: word("e"), slots };
    for op in [Op::from(top), SumRanks.into()] {
        let x = vec![wide(&mut case)];
        let subject = subject(&mut case, &op, x);
        let mut module = subject.module;
        let backward = differentiate(&mut module, "loss").unwrap();
        let forward = run(&module, &subject.inputs, &subject.store).unwrap();
        let (trace, seed) = (&forward.trace, &forward.outputs);
        let grads = gradients(&module, backward, trace, seed, &subject.store).unwrap();
        assert!(grads.is_empty());
    }
}

// Meanings.

#[test]
fn logsumexp_neither_overflows_nor_loses_what_is_not_a_number() {
    let of = |values: &[f64]| {
        let x = arr(&[values.len()], values);
        eval(LogSumExp { over: words(&["e"]) }, &[("e", ACT, &x)]).unwrap().remove(0)[[]]
    };
    assert!((of(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-12);
    assert!((of(&[-1000.0, -1000.0]) - (-1000.0 + 2f64.ln())).abs() < 1e-12);
    assert_eq!(of(&[3.0]), 3.0);
    assert_eq!(of(&[f64::NEG_INFINITY, 2.0]), 2.0);
    assert_eq!(of(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    assert_eq!(of(&[f64::INFINITY, 1.0]), f64::INFINITY);
    assert!(of(&[f64::NAN, 1.0]).is_nan());
    assert!(of(&[1.0, f64::NAN]).is_nan());

    let x = arr(&[2, 2], &[0.0, 1.0, 2.0, 3.0]);
    let y = eval(LogSumExp { over: words(&["t", "e"]) }, &[("t e", ACT, &x)]).unwrap().remove(0);
    let wanted = (0..4).map(|i| f64::from(i).exp()).sum::<f64>().ln();
    assert!((y[[]] - wanted).abs() < 1e-14);
}

#[test]
fn the_top_is_in_order_with_ties_to_the_smaller_position() {
    let of = |n_slots: i64, score: &[f64]| -> Vec<f64> {
        let op = Top { axis: word("e"), slots: constant("p", n_slots) };
        let score = arr(&[1, score.len()], score);
        eval(op, &[("t e", F32, &score)]).unwrap().remove(0).into_iter().collect()
    };
    assert_eq!(of(3, &[1.0, 3.0, 2.0, 3.0]), [1.0, 3.0, 2.0]);
    assert_eq!(of(2, &[5.0; 4]), [0.0, 1.0]);
    assert_eq!(of(1, &[7.0]), [0.0]);
    assert_eq!(of(2, &[-0.0, 0.0, -1.0]), [0.0, 1.0]);
    assert_eq!(of(3, &[1.0, f64::INFINITY, -f64::NAN]), [2.0, 1.0, 0.0]);
    assert_eq!(of(3, &[f64::NEG_INFINITY; 3]), [0.0, 1.0, 2.0]);

    // The axis need not be the last; more than there are is an error at run time.
    let score = arr(&[2, 2], &[0.0, 5.0, 1.0, 4.0]);
    let unordered = eval(top(), &[("e t", F32, &score)]);
    assert!(unordered.unwrap_err().contains("in the order [t, e]"));
    let (t, n) = (constant("t", 1), Axis { name: word("e"), size: Size::symbol("n") });
    let ty = Type::new(F32, vec![t, n]);
    let results = Op::from(top()).def().infer(&[&ty]).unwrap();
    let (score, sizes) = (arr(&[1, 1], &[0.0]), BTreeMap::new());
    let call = EvalCall {
        args: &[&score],
        arg_types: &[&ty],
        result_types: &[&results[0]],
        sizes: &sizes,
    };
    assert!(Op::from(top()).def().eval(&call).unwrap_err().0.contains("2 positions of 1"));
}

#[test]
fn taking_gives_zero_for_none() {
    let x = arr(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let ids = arr(&[2, 2], &[2.0, -1.0, 0.0, 0.0]);
    let y = eval(take(), &[("t e", ACT, &x), ("t p", INDEX, &ids)]).unwrap();
    assert_eq!(y[0], arr(&[2, 2], &[3.0, 0.0, 4.0, 4.0]));
    // Whole numbers are taken too, and stay whole numbers.
    let y = eval(take(), &[("t e", INDEX, &x), ("t p", INDEX, &ids)]).unwrap();
    assert_eq!(y[0], arr(&[2, 2], &[3.0, 0.0, 4.0, 4.0]));
    let beyond = arr(&[2, 2], &[3.0, 0.0, 0.0, 0.0]);
    let error = eval(take(), &[("t e", ACT, &x), ("t p", INDEX, &beyond)]).unwrap_err();
    assert!(error.contains("index 3 is not a row of 3"), "{error}");
}

#[test]
fn counting_leaves_out_none() {
    let ids = arr(&[2, 3], &[0.0, 2.0, -1.0, 2.0, -7.0, 2.0]);
    let of = |n: i64| eval(Count { axis: constant("e", n) }, &[("t p", INDEX, &ids)]);
    assert_eq!(of(4).unwrap()[0], arr(&[4], &[1.0, 0.0, 3.0, 0.0]));
    assert!(of(2).unwrap_err().contains("index 2"));
}

#[test]
fn none_stays_none() {
    let ids = arr(&[5], &[0.0, 3.0, 19.0, -1.0, -9.0]);
    let of = |op: Op| -> Vec<f64> {
        eval(op, &[("t", INDEX, &ids)]).unwrap().remove(0).into_iter().collect()
    };
    assert_eq!(of(Below { limit: Size::constant(19) }.into()), [0.0, 3.0, -1.0, -1.0, -1.0]);
    assert_eq!(of(IndexAffine { mul: 6, add: 5 }.into()), [5.0, 23.0, 119.0, -1.0, -1.0]);
    assert_eq!(of(IndexAffine { mul: 1, add: -3 }.into()), [-1.0, 0.0, 16.0, -1.0, -1.0]);
    assert_eq!(of(IndexAffine { mul: -1, add: 3 }.into()), [3.0, 0.0, -1.0, -1.0, -1.0]);
    let other = arr(&[5], &[1.0, 4.0, -2.0, 1.0, -1.0]);
    let with = |function| -> Vec<f64> {
        let args = [("t", INDEX, &ids), ("t", INDEX, &other)];
        eval(IndexBinary { function }, &args).unwrap().remove(0).into_iter().collect()
    };
    assert_eq!(with(IndexFn::Add), [1.0, 7.0, -1.0, -1.0, -1.0]);
    assert_eq!(with(IndexFn::Sub), [-1.0, -1.0, -1.0, -1.0, -1.0]);
    assert_eq!(with(IndexFn::Mul), [0.0, 12.0, -1.0, -1.0, -1.0]);

    let half = arr(&[1], &[0.5]);
    let error = eval(Cast { to: INDEX }, &[("t", F32, &half)]).unwrap_err();
    assert!(error.contains("0.5 is not a whole number"));
}

#[test]
fn an_expert_product_is_the_product_with_each_weight() {
    let mut case = Case::new(9);
    let (n_e, n_f, n_d) = (3, 2, 4);
    let w = case.array(&[n_e, n_f, n_d], Draw::Normal);
    let ids = case.array(&[2, 5, 3], Draw::Index(-1, 3));
    for (names, shape) in [("b t d", vec![2, 5, n_d]), ("b t p d", vec![2, 5, 3, n_d])] {
        let x = case.array(&shape, Draw::Normal);
        let args = [(names, ACT, &x), ("e f d", ACT, &w), ("b t p", INDEX, &ids)];
        let y = eval(expert_dot(), &args).unwrap().remove(0);
        assert_eq!(y.shape(), [2, 5, 3, n_f]);
        for ((b, t, p, f), y) in
            y.view().into_dimensionality::<ndarray::Ix4>().unwrap().indexed_iter()
        {
            let row = if shape.len() == 3 {
                x.slice(ndarray::s![b, t, ..])
            } else {
                x.slice(ndarray::s![b, t, p, ..])
            };
            let id = ids[[b, t, p]];
            let wanted: f64 = match id >= 0.0 {
                true => (0..n_d).map(|d| row[d] * w[[id as usize, f, d]]).sum(),
                false => 0.0,
            };
            assert!((y - wanted).abs() < 1e-13);
        }
    }
}

#[test]
fn a_pair_is_two_products_of_the_same_rows() {
    let mut case = Case::new(11);
    let mut draw = |shape: &[usize]| case.array(shape, Draw::Normal);
    let (x, first, second) = (draw(&[2, 5, 4]), draw(&[3, 2, 4]), draw(&[3, 4, 6]));
    let (dy, other) = (draw(&[2, 5, 3, 2]), draw(&[2, 5, 3, 6]));
    let ids = case.array(&[2, 5, 3], Draw::Index(-1, 3));
    let (order, bounds) = (Array::zeros(vec![30]), Array::zeros(vec![4]));
    let routing = [("b t p", INDEX, &ids), ("places", INDEX, &order), ("bounds", INDEX, &bounds)];
    let of = |op: Op, args: &[(&str, DType, &Array)]| eval(op, &[&routing, args].concat()).unwrap();
    let (x, ws) = (("b t d", ACT, &x), [("e r d", ACT, &first), ("e d f", ACT, &second)]);
    let found = of(routed_dot_pair().into(), &[x, ws[0], ws[1]]);
    assert_eq!(found, ws.map(|w| of(routed_dot(&["d"]).into(), &[x, w]).remove(0)));

    let dys = [("b t p r", ACT, &dy), ("b t p f", ACT, &other)];
    let expert = constant("e", 3);
    let pair = RoutedWeightGradPair { expert: expert.clone() };
    let found = of(pair.into(), &[x, dys[0], dys[1]]);
    let one = |dy| of(RoutedWeightGrad { expert: expert.clone() }.into(), &[dy, x]).remove(0);
    assert_eq!(found, dys.map(one));
}

#[test]
fn a_product_and_a_gradient_are_those_of_the_same_rows() {
    let mut case = Case::new(12);
    let mut draw = |shape: &[usize]| case.array(shape, Draw::Normal);
    let (x, small, w) = (draw(&[2, 5, 3, 4]), draw(&[2, 5, 3, 6]), draw(&[3, 4, 2]));
    let ids = case.array(&[2, 5, 3], Draw::Index(-1, 3));
    let (order, bounds) = (Array::zeros(vec![30]), Array::zeros(vec![4]));
    let routing = [("b t p", INDEX, &ids), ("places", INDEX, &order), ("bounds", INDEX, &bounds)];
    let of = |op: Op, args: &[(&str, DType, &Array)]| eval(op, &[&routing, args].concat()).unwrap();
    let (x, small, w) = (("b t p f", ACT, &x), ("b t p r", ACT, &small), ("e f s", ACT, &w));
    let found = of(routed_low_back().into(), &[x, small, w]);
    let product = of(routed_dot(&["f"]).into(), &[x, w]);
    let gradient = of(RoutedWeightGrad { expert: constant("e", 3) }.into(), &[x, small]);
    assert_eq!(found, [product, gradient].concat());
}

#[test]
fn a_pair_reads_its_rows_once() {
    let types = types(
        "index t=5 p=2; index places=10; index bounds=4; act t=5 d=8; act e=3 r=2 d=8; act e=3 r=2 d=8",
    );
    let args: Vec<&Type> = types.iter().collect();
    let (one, pair) = (Op::from(routed_dot(&["d"])), Op::from(routed_dot_pair()));
    let results = pair.def().infer(&args).unwrap();
    let results: Vec<&Type> = results.iter().collect();
    let alone = one.def().cost(&args[..5], &results[..1]);
    let both = pair.def().cost(&args, &results);
    let numbers = |cost: &lightc_codegen::ops::Cost| {
        let all = [&cost.flops, &cost.elements_read, &cost.elements_written];
        all.map(|size| size.as_constant().unwrap())
    };
    // Operations and results of two, and one more weight to read.
    let [flops, read, written] = numbers(&alone);
    assert_eq!(numbers(&both), [2 * flops, read + 3 * 2 * 8, 2 * written]);
}

#[test]
fn a_product_and_a_gradient_cost_what_both_do() {
    let types = types(
        "index t=5 p=2; index places=10; index bounds=4; act t=5 p=2 f=8; act t=5 p=2 r=2; act e=3 f=8 r=2",
    );
    let args: Vec<&Type> = types.iter().collect();
    let op = Op::from(routed_low_back());
    let results = op.def().infer(&args).unwrap();
    let results: Vec<&Type> = results.iter().collect();
    let cost = op.def().cost(&args, &results);
    let numbers = [cost.flops, cost.elements_read, cost.elements_written];
    let [places, experts] = [10 * 8 * 2, 3 * 8 * 2];
    // Ids, order and bounds, wide rows, narrow ones and a weight; operations of two.
    let read = 10 + 10 + 4 + 10 * 8 + 10 * 2 + experts;
    let wanted = [2 * 2 * places, read, 10 * 2 + experts];
    assert_eq!(numbers.map(|size| size.as_constant().unwrap()), wanted);
}

#[test]
fn a_turn_is_undone_and_spreads_an_outlier() {
    let mut case = Case::new(10);
    let x = case.array(&[3, 16], Draw::Normal);
    let turn = |inverse| Hadamard { axis: word("d"), seed: 42, inverse };
    let y = eval(turn(false), &[("t d", ACT, &x)]).unwrap().remove(0);
    assert_close(&eval(turn(true), &[("t d", ACT, &y)]).unwrap()[0], &x, 1e-13);
    let mut outlier = Array::zeros(vec![16]);
    outlier[[5]] = 4.0;
    let y = eval(turn(false), &[("d", ACT, &outlier)]).unwrap().remove(0);
    assert!(y.iter().all(|y| y.abs() == 1.0));
}

// Emitted calls and errors.

#[test]
fn emitted_calls_are_positional() {
    let over = words(&["d", "b"]);
    let narrow = LogSumExp { over: over.clone() };
    check_emitted(narrow, "act b=b d=8", "ops::logsumexp(&ops::to_f32(a0, like)?, &[1, 0])?");
    check_emitted(LogSumExp { over }, "f32 b=b d=8", "ops::logsumexp(a0, &[1, 0])?");
    check_emitted(top(), "f32 b=b t=t e=8", "ops::top(a0, 2)?");
    check_emitted(take(), "act b=b t=t e=8; index b=b t=t p=2", "ops::take(a0, a1, 2)?");
    let grad = TakeGrad { axis: constant("e", 8), batch: words(&["b"]) };
    check_emitted(grad, "index b=b p=2; act b=b p=2 d=4", "ops::take_grad(a0, a1, 1, 8)?");
    check_emitted(Count { axis: constant("e", 8) }, "index b=b", "ops::count(a0, 8, like)?");
    let limit = minus(&Size::symbol("e"), 1);
    check_emitted(Below { limit }, "index b=b", "ops::below(a0, size_e - 1)?");
    check_emitted(IndexAffine { mul: 6, add: -1 }, "index b=b", "ops::index_affine(a0, 6, -1)?");
    let add = IndexBinary { function: IndexFn::Add };
    let aligned = "ops::index_add(a0, &ops::align(a1, &[0, -1])?)?";
    check_emitted(add, "index b=b p=2; index b=b", aligned);
    check_emitted(Cast { to: INDEX }, "f32 b=b", "ops::to_index(a0)?");
    let args = "act t=t d=4; act e=3 f=2 d=4; index t=t p=2";
    check_emitted(expert_dot(), args, "ops::expert_dot(a0, a1, a2)?");
    let args = "act t=t d=4; f32 e=3 f=2 d=4; index t=t p=2";
    check_emitted(expert_dot(), args, "ops::expert_dot(&ops::to_f32(a0, like)?, a1, a2)?");
    let grad = ExpertDotWeightGrad { expert: constant("e", 3), over: word("d") };
    let args = "act t=t d=4; act t=t p=2 f=2; index t=t p=2";
    check_emitted(grad, args, "ops::expert_dot_weight_grad(a0, a1, a2, 3)?");
    let routing = "index t=5 p=2; index places=10; index bounds=4";
    let args = format!("{routing}; act t=5 d=4; act e=3 r=2 d=4; act e=3 d=4 f=6");
    let wanted = "ops::routed_dot_pair(&ops::Routing{ids:a0, order:a1, bounds:a2}, \
                  ops::Term::plain(a3, a4), ops::Term::turned(a3, a5))?";
    check_emitted(routed_dot_pair(), &args, wanted);
    let args = format!("{routing}; act t=5 d=4; act t=5 p=2 r=2; act t=5 p=2 f=6");
    let wanted = "ops::routed_weight_grad_pair(&ops::Routing{ids:a0, order:a1, bounds:a2}, a3, \
                  [a4, a5], 3)?";
    check_emitted(RoutedWeightGradPair { expert: constant("e", 3) }, &args, wanted);
    let args = format!("{routing}; act t=5 p=2 f=4; act t=5 p=2 r=2; act e=3 f=4 s=6");
    let wanted = "ops::routed_low_back(&ops::Routing{ids:a0, order:a1, bounds:a2}, a3, a4, a5, 3)?";
    check_emitted(routed_low_back(), &args, wanted);
    let turn = Hadamard { axis: word("d"), seed: 42, inverse: true };
    check_emitted(turn, "act t=t d=4", "ops::hadamard(a0, 42, true)?");
    check_emitted(SumRanks, "f32 e=4", "ops::sum_ranks(a0)?");
}

#[test]
fn shape_rules_say_what_disagrees() {
    check_error(top(), "act t=3 e=4", "E0450", "score as f32");
    check_error(top(), "index t=3 e=4", "E0450", "index[t=3, e=4]");
    check_error(top(), "f32 t=3 e=1", "E0402", "takes 2 positions as axis `p`, but axis `e` has 1");
    check_error(top(), "f32 t=3", "E0401", "needs axis `e`");
    check_error(top(), "f32 p=3 e=4", "E0406", "`p`");
    check_error(take(), "act t=3 e=4; act t=3 p=2", "E0404", "its ids as index");
    check_error(take(), "act t=3 e=4; index t=5 p=2", "E0402", "size 3");
    check_error(take(), "act t=3; index t=3", "E0401", "needs axis `e`");
    check_error(Count { axis: constant("e", 2) }, "f32 t=3", "E0404", "its ids as index");
    check_error(Below { limit: Size::constant(2) }, "f32 t=3", "E0404", "its ids as index");
    check_error(IndexAffine { mul: 2, add: 0 }, "f32 t=3", "E0404", "as index");
    let add = IndexBinary { function: IndexFn::Add };
    check_error(add, "index t=3; f32 t=3", "E0404", "as index");
    check_error(Cast { to: INDEX }, "act t=3", "E0404", "whole numbers in f32");

    let weight = "act e=3 f=2 d=4";
    let ids = "index t=5 p=2";
    let with = |x: &str| format!("{x}; {weight}; {ids}");
    check_error(expert_dot(), &with("act t=5 d=8"), "E0402", "size 8");
    check_error(expert_dot(), &with("act t=6 d=4"), "E0402", "size 6");
    check_error(expert_dot(), &with("act b=2 t=5 d=4"), "E0401", "has axis `b`");
    check_error(expert_dot(), &with("index t=5 d=4"), "E0404", "floating-point");
    check_error(expert_dot(), &format!("act t=5 d=4; {weight}; act t=5"), "E0404", "ids as index");
    check_error(expert_dot(), &format!("act d=4; {weight}; index d=4"), "E0406", "axis `d`");
    check_error(expert_dot(), &format!("act d=4; {weight}; index f=4"), "E0406", "`f`");
    let flat = "act t=5 d=4; act e=3 d=4; index t=5";
    check_error(expert_dot(), flat, "E0401", "one axis beside `e` and `d`");
    let routing = "index t=5 p=2; index places=10; index bounds=4";
    let two = format!("{routing}; act t=5 d=4; {weight}");
    check_error(routed_dot_pair(), &two, "E0405", "routed_dot_pair");
    let other = format!("{two}; act e=3 f=2 d=8");
    check_error(routed_dot_pair(), &other, "E0402", "size 8");
    let grad = RoutedWeightGradPair { expert: constant("e", 3) };
    let other = format!("{routing}; act t=5 d=4; act t=5 p=2 r=2; act t=5 p=3 r=2");
    check_error(grad, &other, "E0402", "size 3");
    let rows = format!("{routing}; act t=5 p=2 f=4; act t=5 p=2 r=2");
    check_error(routed_low_back(), &rows, "E0405", "routed_low_back");
    let plain = format!("{rows}; act e=3 s=6 f=4");
    check_error(routed_low_back(), &plain, "E0401", "its argument 5 in the order [e, f, s]");
    check_error(routed_low_back(), &format!("{rows}; act e=3 f=8 s=6"), "E0402", "size 8");
    let turn = Hadamard { axis: word("d"), seed: 42, inverse: false };
    check_error(turn, "act t=3 d=6", "E0402", "size 6, which is not a power of two");
    check_error(SumRanks, "act e=3", "E0404", "its value as f32");
}
