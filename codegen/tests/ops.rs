//! Every op: its derivative against central differences, its meaning against an independent
//! statement of it, its text form, and the errors of its shape rule.
//!
//! A derivative is checked as a whole: a module of one function is differentiated by the real
//! pass, verified, printed and parsed back, and run by the interpreter. Shapes are random with
//! awkward sizes (1 among them); sizes are numbers or names at random, so that symbolic sizes are
//! covered; storage orders are random where the op asks for one; precision classes are mixed; and
//! some arguments are frozen, so that a rule that gives too much or too little shows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use lightc_codegen::autodiff::differentiate;
use lightc_codegen::emit::EmitCall;
use lightc_codegen::interp::{Store, gradients, run};
use lightc_codegen::ir::{Function, Module, Output, Param, Type, ValueId, text, verify};
use lightc_codegen::ops::{
    Affine, Array, Attrs, Binary, BinaryFn, Broadcast, Call, CallBackward, Cast, Causal,
    CausalConv, CausalConvInputGrad, CausalConvWeightGrad, Clamp, ClampGrad, Concat, Const,
    Contract, EvalCall, GatedDeltaRule, GatedDeltaRuleGrad, GatherSum, GatherSumGrad, Indexer,
    Input, LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropyStep, Lookup, LookupGrad,
    MaskedAttention, MaskedAttentionGrad, Mean, Merge, Op, Pad, ParamRef, Permute, Pick, Place,
    Position, Rename, Rotary, Saved, SelectTop, Sinkhorn, SinkhornGrad, SizeValue, Slice, Split,
    Stack, StackBackward, StateRef, StopGradient, Sum, TableRef, Unary, UnaryFn, UnaryGrad, Where,
    parse_op,
};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Axis, InitLaw, Integrator, MemberRef, Storage};
use lightc_dsl::size::Size;
use lightc_numerics::attention::MaskBound;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;

#[path = "ops/experts.rs"]
mod experts;

/// Random shapes and numbers of one test case.
struct Case {
    rng: ChaCha8Rng,
    axes: BTreeMap<String, (Axis, i64)>,
}

/// How the elements of an argument are drawn.
#[derive(Clone, Copy)]
enum Draw {
    /// About normal, standard deviation 1.
    Normal,
    /// Between 0.5 and 2.
    Positive,
    /// Between -1 and 0.
    Negative,
    /// 0 or 1.
    Truth,
    /// Whole numbers from .. to, the last left out.
    Index(i64, i64),
}

struct Arg {
    ty: Type,
    draw: Draw,
}

impl Case {
    fn new(seed: u64) -> Self {
        Case { rng: ChaCha8Rng::seed_from_u64(seed), axes: BTreeMap::new() }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn length(&mut self) -> i64 {
        [1, 2, 3, 4, 5][self.below(5) as usize]
    }

    /// A number in 0..1.
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An axis of random length; the same one whenever the name comes again.
    fn axis(&mut self, name: &str) -> Axis {
        let n = self.length();
        self.axis_of(name, n)
    }

    fn axis_of(&mut self, name: &str, n: i64) -> Axis {
        if let Some((axis, _)) = self.axes.get(name) {
            return axis.clone();
        }
        let size = if self.below(2) == 0 { Size::symbol(name) } else { Size::constant(n) };
        let axis = Axis { name: name.to_owned(), size };
        self.axes.insert(name.to_owned(), (axis.clone(), n));
        axis
    }

    fn axes(&mut self, names: &[&str]) -> Vec<Axis> {
        names.iter().map(|name| self.axis(name)).collect()
    }

    fn n(&self, name: &str) -> i64 {
        self.axes[name].1
    }

    fn dtype(&mut self) -> DType {
        if self.below(2) == 0 { DType::Act } else { DType::F32 }
    }

    /// A floating-point argument.
    fn float(&mut self, names: &[&str], draw: Draw) -> Arg {
        Arg { ty: Type::new(self.dtype(), self.axes(names)), draw }
    }

    fn normal(&mut self, names: &[&str]) -> Arg {
        self.float(names, Draw::Normal)
    }

    fn index(&mut self, names: &[&str], from: i64, to: i64) -> Arg {
        Arg { ty: Type::new(DType::Index, self.axes(names)), draw: Draw::Index(from, to) }
    }

    fn truth(&mut self, names: &[&str]) -> Arg {
        Arg { ty: Type::new(DType::Bool, self.axes(names)), draw: Draw::Truth }
    }

    fn number(&mut self, draw: Draw) -> f64 {
        match draw {
            Draw::Normal => {
                let sum: f64 = (0..12).map(|_| self.unit()).sum();
                sum - 6.0
            }
            Draw::Positive => 0.5 + 1.5 * self.unit(),
            Draw::Negative => -self.unit(),
            Draw::Truth => self.below(2) as f64,
            Draw::Index(from, to) => (from + self.below((to - from) as u64) as i64) as f64,
        }
    }

    fn array(&mut self, shape: &[usize], draw: Draw) -> Array {
        let n = shape.iter().product();
        let values = (0..n).map(|_| self.number(draw)).collect();
        Array::from_shape_vec(shape.to_vec(), values).unwrap()
    }

    fn sizes(&self) -> BTreeMap<String, i64> {
        self.axes.iter().map(|(name, (_, n))| (name.clone(), *n)).collect()
    }

    fn shape(&self, ty: &Type) -> Vec<usize> {
        let sizes = self.sizes();
        ty.axes.iter().map(|axis| axis.size.evaluate(&sizes).unwrap() as usize).collect()
    }

    /// The axes in a random order.
    fn shuffled(&mut self, ty: &Type) -> Type {
        let mut axes = ty.axes.clone();
        for i in (1..axes.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            axes.swap(i, j);
        }
        Type::new(ty.dtype, axes)
    }
}

/// A module of one function that applies one op, and what it is run on.
struct Subject {
    module: Module,
    inputs: Vec<Array>,
    store: Store,
    /// Paths of trained parameters.
    trained: Vec<String>,
    /// Paths of frozen ones.
    frozen: Vec<String>,
}

/// Floating-point arguments become parameters, others inputs. One more input binds the size names.
fn subject(case: &mut Case, op: &Op, args: Vec<Arg>) -> Subject {
    let mut function = Function { name: "Subject".into(), ..Function::default() };
    let mut subject = Subject {
        module: Module::default(),
        inputs: vec![],
        store: Store::default(),
        trained: vec![],
        frozen: vec![],
    };
    let binders: Vec<Axis> = case.axes.values().map(|(axis, _)| axis.clone()).collect();
    let mut input = |case: &mut Case, function: &mut Function, name: &str, arg: &Arg| -> ValueId {
        let shape = case.shape(&arg.ty);
        subject.inputs.push(case.array(&shape, arg.draw));
        let op = Input { name: name.to_owned() };
        function.push_typed(op.into(), vec![], vec![arg.ty.clone()], None)[0]
    };
    let binder = Arg { ty: Type::new(DType::F32, binders), draw: Draw::Truth };
    input(case, &mut function, "binder", &binder);

    // The order that the op wants, reached from a random one by a permutation.
    let types: Vec<Type> = args.iter().map(|arg| arg.ty.clone()).collect();
    let declared: Vec<Type> = (0..types.len())
        .map(|i| {
            let known: Vec<&Type> = types.iter().collect();
            let fixed = op.def().arg_order(i, &known).is_none() || matches!(op, Op::Concat(_));
            if fixed { types[i].clone() } else { case.shuffled(&types[i]) }
        })
        .collect();
    let first_trained = case.below(args.len().max(1) as u64) as usize;
    let mut values = Vec::new();
    for (i, (arg, ty)) in args.iter().zip(&declared).enumerate() {
        let declared_arg = Arg { ty: ty.clone(), draw: arg.draw };
        if !ty.is_float() {
            values.push(input(case, &mut function, &format!("x{i}"), &declared_arg));
            continue;
        }
        let name = format!("p{i}");
        let learns = i == first_trained || case.below(4) > 0;
        let storage =
            if learns { Storage::Trained } else { Storage::Frozen("as a test".to_owned()) };
        let list = if learns { &mut subject.trained } else { &mut subject.frozen };
        list.push(name.clone());
        let shape = case.shape(ty);
        subject.store.params.insert(name.clone(), case.array(&shape, arg.draw));
        let index = function.params.len();
        function.order.push(MemberRef::Param(index));
        let init = InitLaw::Zeros;
        function.params.push(Param {
            name,
            ty: ty.clone(),
            init,
            storage,
            active: None,
            doc: None,
            span: None,
        });
        let op = ParamRef { index };
        values.push(function.push_typed(op.into(), vec![], vec![ty.clone()], None)[0]);
    }
    let known: Vec<&Type> = declared.iter().collect();
    for (i, value) in values.iter_mut().enumerate() {
        if let Some(order) = op.def().arg_order(i, &known)
            && order != function.ty(*value).names()
        {
            *value = function.push1(Permute { order }.into(), vec![*value], None).unwrap();
        }
    }
    let y = function.push1(op.clone(), values, None).unwrap_or_else(|e| panic!("{op:?}: {e:?}"));
    function.outputs.push(Output { name: Some("loss".into()), value: y });
    subject.module.name = "test".into();
    subject.module.functions.push(function);
    subject
}

/// Compares the derivative of an op with central differences of its meaning.
fn check_derivative(case: &mut Case, op: impl Into<Op>, args: Vec<Arg>) {
    let op = op.into();
    let Subject { mut module, inputs, mut store, trained, frozen } = subject(case, &op, args);
    let backward = differentiate(&mut module, "loss").unwrap_or_else(|e| panic!("{op:?}: {e:?}"));
    let printed = text::print(&module);
    let violations = verify::verify(&module);
    assert!(violations.is_empty(), "{op:?}: {violations:?}\n{printed}");
    assert_eq!(text::parse(&printed).unwrap(), module, "{printed}");

    let forward = run(&module, &inputs, &store).unwrap_or_else(|e| panic!("{op:?}: {e:?}"));
    let seed = case.array(forward.outputs[0].shape(), Draw::Normal);
    let grads = gradients(&module, backward, &forward.trace, std::slice::from_ref(&seed), &store)
        .unwrap_or_else(|e| panic!("{op:?}: {e:?}\n{printed}"));
    for path in &frozen {
        assert!(!grads.contains_key(path), "{op:?}: a frozen parameter has a gradient");
    }
    let loss = |store: &Store| (&run(&module, &inputs, store).unwrap().outputs[0] * &seed).sum();
    for path in &trained {
        let start = store.params[path].clone();
        let zero = Array::zeros(start.shape());
        let grad = grads.get(path).unwrap_or(&zero).clone();
        assert_eq!(grad.shape(), start.shape());
        let scale = grad.iter().fold(1.0f64, |m, g| m.max(g.abs()));
        for (position, grad) in grad.iter().enumerate() {
            let step = 1e-5;
            let mut at = |delta: f64| {
                let mut moved = start.clone();
                *moved.iter_mut().nth(position).unwrap() += delta;
                store.params.insert(path.clone(), moved);
                let value: f64 = loss(&store);
                value
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            assert!(
                (grad - numeric).abs() <= 2e-7 * scale,
                "{op:?}: {path}[{position}]: rule {grad}, differences {numeric}\n{printed}"
            );
        }
        store.params.insert(path.clone(), start);
    }
}

fn for_seeds(n: u64, mut f: impl FnMut(&mut Case)) {
    for seed in 0..n {
        f(&mut Case::new(seed));
    }
}

fn word(name: &str) -> String {
    name.to_owned()
}

fn words(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| word(name)).collect()
}

fn constant(name: &str, n: i64) -> Axis {
    Axis { name: word(name), size: Size::constant(n) }
}

fn minus(size: &Size, n: i64) -> Size {
    size.checked_sub(&Size::constant(n)).unwrap()
}

// Derivatives.

#[test]
fn pointwise_derivatives() {
    for_seeds(4, |case| {
        for function in UnaryFn::ALL {
            let draw = match function {
                UnaryFn::Ln | UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Recip => Draw::Positive,
                _ => Draw::Normal,
            };
            let x = case.float(&["b", "t", "d"], draw);
            check_derivative(case, Unary { function }, vec![x]);
        }
        let shapes: [(&[&str], &[&str]); 4] = [
            (&["b", "t", "d"], &["d"]),
            (&["d"], &["b", "t", "d"]),
            (&["b", "t"], &["t", "b"]),
            (&["b", "t", "d"], &[]),
        ];
        for function in BinaryFn::ALL.into_iter().filter(|f| !f.is_comparison()) {
            for (a, b) in shapes {
                let a = case.normal(a);
                let b = case.float(b, Draw::Positive);
                check_derivative(case, Binary { function }, vec![a, b]);
            }
        }
        let x = case.normal(&["b", "t"]);
        check_derivative(case, Affine { mul: -1.5, add: 2.0 }, vec![x]);
        let x = case.normal(&["b", "t", "d"]);
        check_derivative(case, Clamp { low: -0.5, high: 0.75 }, vec![x]);
        for to in [DType::Act, DType::F32] {
            let x = case.normal(&["b", "t"]);
            check_derivative(case, Cast { to }, vec![x]);
        }
        let args = vec![case.truth(&["t"]), case.normal(&["b", "t"]), case.normal(&["b"])];
        check_derivative(case, Where, args);
        let args = vec![case.truth(&["b", "t"]), case.normal(&[]), case.normal(&["b"])];
        check_derivative(case, Where, args);
    });
}

#[test]
fn reductions_have_the_right_derivatives() {
    for_seeds(10, |case| {
        for over in [&["t"][..], &["d", "b"], &["b", "t", "d"]] {
            let x = case.normal(&["b", "t", "d"]);
            check_derivative(case, Sum { over: words(over) }, vec![x]);
            let x = case.normal(&["b", "t", "d"]);
            check_derivative(case, Mean { over: words(over) }, vec![x]);
        }
    });
}

#[test]
fn contractions_have_the_right_derivatives() {
    for_seeds(8, |case| {
        let shapes: [(&[&str], &[&str], &[&str]); 7] = [
            (&["b", "t", "d"], &["f", "d"], &["d"]),
            (&["b", "t", "h", "k"], &["h", "b", "s", "k"], &["k"]),
            (&["t", "b"], &["b", "t"], &["t", "b"]),
            (&["b"], &["f", "d"], &[]),
            (&["b", "d"], &["d", "b"], &[]),
            (&["s", "b", "j"], &["b", "j", "d", "s"], &["j"]),
            (&[], &["d"], &[]),
        ];
        for (a, b, over) in shapes {
            let args = vec![case.normal(a), case.normal(b)];
            check_derivative(case, Contract { over: words(over) }, args);
        }
    });
}

#[test]
fn shape_ops_have_the_right_derivatives() {
    for_seeds(10, |case| {
        let axes = case.axes(&["n", "t", "b", "d"]);
        let x = case.normal(&["b", "t"]);
        check_derivative(case, Broadcast { axes }, vec![x]);

        let x = case.normal(&["b", "t", "d"]);
        check_derivative(case, Permute { order: words(&["d", "b", "t"]) }, vec![x]);

        let x = case.normal(&["b", "t"]);
        check_derivative(case, Rename { from: word("t"), to: word("s") }, vec![x]);

        let x = case.normal(&["b", "h", "k", "t"]);
        let axes = words(&["h", "k"]);
        check_derivative(case, Merge { axes, into: word("e") }, vec![x]);
        // A merged axis can have the name of a part.
        let x = case.normal(&["b", "h", "k", "t"]);
        let axes = words(&["k", "b", "h"]);
        check_derivative(case, Merge { axes, into: word("k") }, vec![x]);

        let into = case.axes(&["h", "k"]);
        let size = into[0].size.checked_mul(&into[1].size).unwrap();
        let mut axes = case.axes(&["b", "t"]);
        axes.insert(1, Axis { name: word("e"), size });
        let x = Arg { ty: Type::new(DType::Act, axes), draw: Draw::Normal };
        check_derivative(case, Split { axis: word("e"), into }, vec![x]);
    });
}

#[test]
fn cuts_and_joints_have_the_right_derivatives() {
    for_seeds(12, |case| {
        let u = case.axis_of("u", 5).size;
        let cuts = [
            (Size::constant(0), u.clone()),
            (Size::constant(2), Size::constant(3)),
            (Size::constant(1), minus(&u, 1)),
            (minus(&u, 2), minus(&u, 2)),
        ];
        for (start, end) in cuts {
            let x = case.normal(&["b", "u", "d"]);
            let op = Slice { axis: word("u"), start, end, to: word("t") };
            check_derivative(case, op, vec![x]);
        }
        for (before, after) in [(Size::constant(2), u.clone()), (u.clone(), Size::constant(0))] {
            let x = case.normal(&["b", "t"]);
            let op = Pad { axis: word("t"), before, after, to: word("t") };
            check_derivative(case, op, vec![x]);
        }

        let mut parts = Vec::new();
        for _ in 0..1 + case.below(3) {
            let size = Size::constant(case.length());
            let d = Axis { name: word("d"), size };
            let axes = [case.axes(&["b"]), vec![d], case.axes(&["t"])].concat();
            parts.push(Arg { ty: Type::new(case.dtype(), axes), draw: Draw::Normal });
        }
        check_derivative(case, Concat { axis: word("d"), to: word("e") }, parts);

        for position in 0..3 {
            let axis = case.axis_of("u", 5);
            let index = minus(&axis.size, 2);
            let x = case.normal(&["b", "t"]);
            check_derivative(case, Place { axis, index, position }, vec![x]);
        }
        for index in [Size::constant(0), minus(&u, 1)] {
            let x = case.normal(&["b", "u", "d"]);
            check_derivative(case, Pick { axis: word("u"), index }, vec![x]);
        }
    });
}

#[test]
fn sequence_ops_have_the_right_derivatives() {
    for_seeds(10, |case| {
        let args = vec![case.normal(&["b", "t", "e"]), case.normal(&["e", "j"])];
        let op = CausalConv { time: word("t"), channel: word("e"), taps: word("j") };
        check_derivative(case, op, args);

        let n = 2 * case.length();
        case.axis_of("k", n);
        for (names, inverse) in [(&["b", "t", "h", "k"][..], false), (&["h", "t", "k"], true)] {
            let x = case.normal(names);
            let op = Rotary { time: word("t"), pairs: word("k"), base: 100.0, inverse };
            check_derivative(case, op, vec![x]);
        }
    });
}

fn delta(value: &str) -> GatedDeltaRule {
    GatedDeltaRule { time: word("t"), head: word("h"), key: word("k"), value: word(value) }
}

#[test]
fn the_gated_delta_rule_has_the_right_derivative() {
    for_seeds(12, |case| {
        // The values' axis can have the name of the keys' axis.
        let m = if case.below(3) == 0 { "k" } else { "m" };
        let args = vec![
            case.normal(&["b", "t", "h", "k"]),
            case.normal(&["b", "t", "h", "k"]),
            case.normal(&["b", "t", "h", m]),
            case.float(&["b", "t", "h"], Draw::Negative),
            case.float(&["b", "t", "h"], Draw::Positive),
        ];
        check_derivative(case, delta(m), args);
    });
}

#[test]
fn attention_has_the_right_derivative() {
    for_seeds(16, |case| {
        let m = if case.below(3) == 0 { "k" } else { "m" };
        let args = vec![
            case.normal(&["b", "t", "h", "k"]),
            case.normal(&["b", "s", "h", "k"]),
            case.normal(&["b", "s", "h", m]),
            case.truth(&["b", "t", "s"]),
        ];
        check_derivative(case, attention(), args);
    });
}

fn attention() -> MaskedAttention {
    MaskedAttention {
        query: word("t"),
        key: word("s"),
        head: word("h"),
        channel: word("k"),
        bound: MaskBound::default(),
    }
}

fn bounded(most_keys: u32) -> MaskedAttention {
    let bound = MaskBound { causal: true, most_keys: Some(most_keys) };
    MaskedAttention { bound, ..attention() }
}

#[test]
fn a_mask_that_breaks_its_bound_is_an_error() {
    let x = arr(&[1, 2, 1, 1], &[1.0, 2.0]);
    let under = |most, seen: [f64; 4]| {
        let mask = arr(&[1, 2, 2], &seen);
        let keys = ("b s h k", ACT, &x);
        eval(bounded(most), &[("b t h k", ACT, &x), keys, keys, ("b t s", DType::Bool, &mask)])
    };
    assert!(under(1, [1.0, 0.0, 0.0, 1.0]).is_ok());
    let more = under(1, [1.0, 0.0, 1.0, 1.0]).unwrap_err();
    assert_eq!(more, "query 1 sees 2 keys, beyond the mask's bound");
    let later = under(2, [1.0, 1.0, 0.0, 1.0]).unwrap_err();
    assert_eq!(later, "query 0 sees a later key under a causal mask");
}

#[test]
fn selections_and_stops_have_no_gradient() {
    for seed in 0..6 {
        let mut case = Case::new(seed);
        let n = case.length();
        case.axes.insert(word("t"), (constant("t", n), n));
        case.axes.insert(word("s"), (constant("s", n), n));
        let select = SelectTop { query: word("t"), key: word("s"), sinks: 1, limit: 3 };
        let scores = vec![case.normal(&["b", "t", "s"]), case.float(&["b", "t"], Draw::Positive)];
        let x = vec![case.normal(&["b", "t"])];
        let heads = vec![
            case.normal(&["b", "t", "i", "c"]),
            case.normal(&["b", "s", "c"]),
            case.normal(&["b", "t", "i"]),
            case.normal(&["i"]),
            case.float(&[], Draw::Positive),
        ];
        for (op, args) in
            [(Op::from(select), scores), (StopGradient.into(), x), (indexer().into(), heads)]
        {
            let subject = subject(&mut case, &op, args);
            let mut module = subject.module;
            let backward = differentiate(&mut module, "loss").unwrap();
            let forward = run(&module, &subject.inputs, &subject.store).unwrap();
            let (trace, seed) = (&forward.trace, &forward.outputs);
            let grads = gradients(&module, backward, trace, seed, &subject.store).unwrap();
            assert!(grads.is_empty());
        }
    }
}

fn indexer() -> Indexer {
    Indexer {
        query: word("t"),
        key: word("s"),
        head: word("i"),
        channel: word("c"),
        base: 3.0,
        low: 1.0,
        high: 2.5,
        sinks: 1,
        limit: 3,
    }
}

#[test]
fn sinkhorn_has_the_derivative_of_its_iterations() {
    for_seeds(10, |case| {
        // Few iterations and a large eps: far from the limit, where its derivative is another.
        for (iterations, eps) in [(1, 0.1), (3, 1e-2), (20, 1e-6)] {
            let x = case.normal(&["b", "t", "s", "j"]);
            let op = Sinkhorn { rows: word("s"), columns: word("j"), iterations, eps };
            check_derivative(case, op, vec![x]);
        }
    });
}

#[test]
fn the_loss_has_the_right_derivative() {
    for_seeds(10, |case| {
        for softcap in [0.0, 1.5] {
            case.axis("v");
            let n = case.n("v");
            let args = vec![
                case.normal(&["b", "t", "d"]),
                case.normal(&["v", "d"]),
                case.index(&["b", "t"], 0, n),
            ];
            let op = LinearCrossEntropy { channel: word("d"), vocab: word("v"), softcap };
            check_derivative(case, op, args);
        }
    });
}

#[test]
fn gathers_have_the_right_derivatives() {
    for_seeds(12, |case| {
        case.axis("j");
        let n = case.n("j");
        let args = vec![case.normal(&["j", "d"]), case.index(&["b", "t", "p"], -1, n)];
        check_derivative(case, GatherSum { rows: word("j"), slots: word("p") }, args);
        let args = vec![case.normal(&["j", "d"]), case.index(&["b", "t"], 0, n)];
        check_derivative(case, Lookup { rows: word("j") }, args);
        let args = vec![case.normal(&["j", "h", "k"]), case.index(&["b"], 0, n)];
        check_derivative(case, Lookup { rows: word("j") }, args);
    });
}

// Meanings.

/// Evaluates an op on arrays whose axes have the given names and dtypes.
fn eval(op: impl Into<Op>, args: &[(&str, DType, &Array)]) -> Result<Vec<Array>, String> {
    let op = op.into();
    let types: Vec<Type> = args
        .iter()
        .map(|(names, dtype, array)| {
            let axes = names.split_whitespace().zip(array.shape());
            Type::new(*dtype, axes.map(|(name, n)| constant(name, *n as i64)).collect())
        })
        .collect();
    let types: Vec<&Type> = types.iter().collect();
    let arrays: Vec<&Array> = args.iter().map(|(_, _, array)| *array).collect();
    let results = op.def().infer(&types).map_err(|e| e.message)?;
    let results: Vec<&Type> = results.iter().collect();
    let sizes = BTreeMap::new();
    let call = EvalCall { args: &arrays, arg_types: &types, result_types: &results, sizes: &sizes };
    op.def().eval(&call).map_err(|e| e.0)
}

fn arr(shape: &[usize], values: &[f64]) -> Array {
    Array::from_shape_vec(shape.to_vec(), values.to_vec()).unwrap()
}

fn assert_close(a: &Array, b: &Array, tolerance: f64) {
    assert_eq!(a.shape(), b.shape());
    let worst = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= tolerance, "{a} and {b} are {worst} apart");
}

const ACT: DType = DType::Act;

#[test]
fn a_contraction_is_the_sum_it_says() {
    let mut case = Case::new(1);
    let a = case.array(&[2, 3, 4, 5], Draw::Normal);
    let b = case.array(&[5, 3, 2, 6], Draw::Normal);
    let op = Contract { over: words(&["k", "h"]) };
    let y = eval(op, &[("b t h k", ACT, &a), ("k t b s", ACT, &b)]);
    assert_eq!(y.unwrap_err().split(' ').next(), Some("`contract`"));

    let op = Contract { over: words(&["k"]) };
    let y = eval(op, &[("b t h k", ACT, &a), ("k t b s", ACT, &b)]).unwrap();
    assert_eq!(y[0].shape(), [2, 3, 4, 6]);
    for ((i, j, l, s), y) in
        y[0].view().into_dimensionality::<ndarray::Ix4>().unwrap().indexed_iter()
    {
        let wanted: f64 = (0..5).map(|k| a[[i, j, l, k]] * b[[k, j, i, s]]).sum();
        assert!((y - wanted).abs() < 1e-12);
    }
}

#[test]
fn shape_ops_move_what_they_say() {
    let x = arr(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let of = |op: Op| eval(op, &[("t d", DType::Index, &x)]).unwrap().remove(0);
    let order = words(&["d", "t"]);
    assert_eq!(of(Permute { order }.into()), arr(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
    let merged = of(Merge { axes: words(&["t", "d"]), into: word("e") }.into());
    assert_eq!(merged, arr(&[6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let size = Size::constant;
    let op = Slice { axis: word("d"), start: size(1), end: size(3), to: word("e") };
    assert_eq!(of(op.into()), arr(&[2, 2], &[2.0, 3.0, 5.0, 6.0]));
    let op = Pad { axis: word("t"), before: size(1), after: size(0), to: word("u") };
    assert_eq!(of(op.into()), arr(&[3, 3], &[0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let op = Place { axis: constant("s", 2), index: size(1), position: 1 };
    let placed = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0, 5.0, 6.0];
    assert_eq!(of(op.into()), arr(&[2, 2, 3], &placed));
    let op = Pick { axis: word("d"), index: size(2) };
    assert_eq!(of(op.into()), arr(&[2], &[3.0, 6.0]));
    let op = Concat { axis: word("t"), to: word("u") };
    let joined = eval(op, &[("t d", ACT, &x), ("t d", ACT, &x)]).unwrap();
    assert_eq!(joined[0].shape(), [4, 3]);
    let split = Split { axis: word("d"), into: vec![constant("h", 3), constant("k", 1)] };
    assert_eq!(of(split.into()).shape(), [2, 3, 1]);
}

#[test]
fn a_causal_convolution_looks_back() {
    let x = arr(&[1, 4, 1], &[1.0, 10.0, 100.0, 1000.0]);
    let w = arr(&[1, 3], &[1.0, 2.0, 3.0]);
    let op = CausalConv { time: word("t"), channel: word("e"), taps: word("j") };
    let y = eval(op, &[("b t e", ACT, &x), ("e j", ACT, &w)]).unwrap();
    assert_eq!(y[0], arr(&[1, 4, 1], &[3.0, 32.0, 321.0, 3210.0]));
}

#[test]
fn rotary_turns_back_and_depends_on_distance_only() {
    let mut case = Case::new(3);
    let op = |inverse| Rotary { time: word("t"), pairs: word("k"), base: 50.0, inverse };
    let x = case.array(&[2, 5, 3, 6], Draw::Normal);
    let y = eval(op(false), &[("b t h k", ACT, &x)]).unwrap();
    let back = eval(op(true), &[("b t h k", ACT, &y[0])]).unwrap();
    assert_close(&back[0], &x, 1e-14);

    // Equal rows: products of turned rows are a function of the distance.
    let row = case.array(&[1, 6], Draw::Normal);
    let same = row.broadcast(vec![5, 6]).unwrap().to_owned();
    let y = eval(op(false), &[("t k", ACT, &same)]).unwrap().remove(0);
    let dot = |s: usize, t: usize| (0..6).map(|k| y[[s, k]] * y[[t, k]]).sum::<f64>();
    assert!((dot(0, 2) - dot(2, 4)).abs() < 1e-12);
    assert!((dot(1, 2) - dot(3, 4)).abs() < 1e-12);

    // The first pair turns by one radian a step: its wave length does not depend on the base.
    let one = arr(&[2, 2], &[1.0, 0.0, 1.0, 0.0]);
    let y = eval(op(false), &[("t k", ACT, &one)]).unwrap();
    assert_close(&y[0], &arr(&[2, 2], &[1.0, 0.0, 1f64.cos(), 1f64.sin()]), 1e-15);
}

#[test]
fn masks_and_positions() {
    let causal = Causal { query: constant("t", 2), key: constant("s", 3) };
    let y = eval(causal, &[]).unwrap();
    assert_eq!(y[0], arr(&[2, 3], &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]));
    let y = eval(Position { axis: constant("t", 3) }, &[]).unwrap();
    assert_eq!(y[0], arr(&[3], &[0.0, 1.0, 2.0]));
}

/// `[t, n]` row-major by time, of one sequence of one head.
struct Head {
    n_t: usize,
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    g: Vec<f64>,
    beta: Vec<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The chunked form: inside a chunk triangular systems, between chunks the state.
fn chunked_delta_rule(head: &Head, chunk: usize) -> Vec<Vec<f64>> {
    let (n_k, n_m) = (head.k[0].len(), head.v[0].len());
    let mut state = vec![vec![0.0; n_m]; n_k];
    let mut out = Vec::new();
    let mut start = 0;
    while start < head.n_t {
        let end = (start + chunk).min(head.n_t);
        let c = end - start;
        let (q, k, v) = (&head.q[start..end], &head.k[start..end], &head.v[start..end]);
        let beta = &head.beta[start..end];
        let mut total = 0.0;
        let decay: Vec<f64> = head.g[start..end]
            .iter()
            .map(|g| {
                total += g;
                total
            })
            .collect();
        // (I + L) X = R by forward substitution, for U and W at once: N = U - W S directly.
        let mut n: Vec<Vec<f64>> = Vec::new();
        for i in 0..c {
            let row: Vec<f64> = (0..n_m)
                .map(|m| {
                    let read: f64 = (0..n_k).map(|x| k[i][x] * state[x][m]).sum();
                    let mut value = beta[i] * (v[i][m] - decay[i].exp() * read);
                    for j in 0..i {
                        let l = beta[i] * (decay[i] - decay[j]).exp() * dot(&k[i], &k[j]);
                        value -= l * n[j][m];
                    }
                    value
                })
                .collect();
            n.push(row);
        }
        for i in 0..c {
            let row = (0..n_m)
                .map(|m| {
                    let read: f64 = (0..n_k).map(|x| q[i][x] * state[x][m]).sum();
                    let inside: f64 = (0..=i)
                        .map(|j| (decay[i] - decay[j]).exp() * dot(&q[i], &k[j]) * n[j][m])
                        .sum();
                    decay[i].exp() * read + inside
                })
                .collect();
            out.push(row);
        }
        let last = decay[c - 1];
        for x in 0..n_k {
            for m in 0..n_m {
                let written: f64 =
                    (0..c).map(|j| k[j][x] * (last - decay[j]).exp() * n[j][m]).sum();
                state[x][m] = last.exp() * state[x][m] + written;
            }
        }
        start = end;
    }
    out
}

#[test]
fn the_delta_rule_is_its_chunked_form() {
    for seed in 0..6 {
        let mut case = Case::new(seed);
        let (n_b, n_t, n_h, n_k, n_m) = (2, 11, 3, 4, 5);
        let q = case.array(&[n_b, n_t, n_h, n_k], Draw::Normal);
        let mut k = case.array(&[n_b, n_t, n_h, n_k], Draw::Normal);
        for mut row in k.rows_mut() {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.mapv_inplace(|x| x / norm);
        }
        let v = case.array(&[n_b, n_t, n_h, n_m], Draw::Normal);
        let g = case.array(&[n_b, n_t, n_h], Draw::Negative);
        let beta = case.array(&[n_b, n_t, n_h], Draw::Positive);
        let args = [
            ("b t h k", ACT, &q),
            ("b t h k", ACT, &k),
            ("b t h m", ACT, &v),
            ("b t h", DType::F32, &g),
            ("b t h", DType::F32, &beta),
        ];
        let o = eval(delta("m"), &args).unwrap().remove(0);
        for b in 0..n_b {
            for h in 0..n_h {
                let rows = |x: &Array, n: usize| -> Vec<Vec<f64>> {
                    (0..n_t).map(|t| (0..n).map(|i| x[[b, t, h, i]]).collect()).collect()
                };
                let head = Head {
                    n_t,
                    q: rows(&q, n_k),
                    k: rows(&k, n_k),
                    v: rows(&v, n_m),
                    g: (0..n_t).map(|t| g[[b, t, h]]).collect(),
                    beta: (0..n_t).map(|t| beta[[b, t, h]]).collect(),
                };
                for chunk in [1, 4, 16] {
                    for (t, row) in chunked_delta_rule(&head, chunk).iter().enumerate() {
                        for (m, wanted) in row.iter().enumerate() {
                            assert!((o[[b, t, h, m]] - wanted).abs() < 1e-11, "chunk {chunk}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_delta_rule_result_is_not_widened_by_its_decay() {
    let ty = |names: &str, dtype| {
        Type::new(dtype, names.split_whitespace().map(|name| constant(name, 2)).collect())
    };
    let (row, gate) = (ty("b t h k", DType::Act), ty("b t h", DType::F32));
    let op = Op::from(delta("k"));
    let result = op.def().infer(&[&row, &row, &row, &gate, &gate]).unwrap();
    assert_eq!(result[0].dtype, DType::Act);
    let wide = row.with_dtype(DType::F32);
    let result = op.def().infer(&[&row, &wide, &row, &gate, &gate]).unwrap();
    assert_eq!(result[0].dtype, DType::F32);
}

#[test]
fn selection_takes_the_best_with_ties_to_the_left() {
    let select = |sinks, limit, score: &Array, budget: &Array| {
        let op = SelectTop { query: word("t"), key: word("s"), sinks, limit };
        eval(op, &[("b t s", ACT, score), ("b t", DType::F32, budget)]).unwrap().remove(0)
    };
    // The last query sees all; scores beyond the query never count.
    let score = arr(
        &[1, 4, 4],
        &[0.0, 9.0, 9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 5.0, 5.0, 5.0, 9.0, 1.0, 3.0, 2.0, 3.0],
    );
    let budget = arr(&[1, 4], &[0.0, -7.0, 2.9, 2.0]);
    let chosen = select(0, 8, &score, &budget);
    let wanted = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0];
    assert_eq!(chosen, arr(&[1, 4, 4], &wanted));
    // A sink ranks first and uses up budget.
    let chosen = select(1, 8, &score, &budget);
    let last: Vec<f64> = chosen.iter().copied().skip(12).collect();
    assert_eq!(last, [1.0, 1.0, 0.0, 0.0]);
    // The limit holds whatever the budget.
    let chosen = select(0, 1, &score, &arr(&[1, 4], &[9.0; 4]));
    assert_eq!(chosen.sum(), 4.0);
    // 0 and -0 are equal.
    let chosen = select(0, 8, &arr(&[1, 2, 2], &[0.0, 0.0, -0.0, 0.0]), &arr(&[1, 2], &[1.0; 2]));
    assert_eq!(chosen, arr(&[1, 2, 2], &[1.0, 0.0, 1.0, 0.0]));

    // What is not a number ranks first.
    let score = arr(&[1, 2, 2], &[0.0, 0.0, 7.0, -f64::NAN]);
    let chosen = select(0, 8, &score, &arr(&[1, 2], &[1.0; 2]));
    assert_eq!(chosen, arr(&[1, 2, 2], &[1.0, 0.0, 0.0, 1.0]));

    // Against counting how many candidates are better.
    let mut case = Case::new(5);
    let score = case.array(&[2, 9, 9], Draw::Index(0, 5));
    let budget = case.array(&[2, 9], Draw::Index(0, 12));
    let chosen = select(2, 6, &score, &budget);
    for b in 0..2 {
        for t in 0..9 {
            let n = (budget[[b, t]].max(1.0) as usize).min(6).min(t + 1);
            let rank = |s: usize| {
                if s < 2 { f64::INFINITY } else { score[[b, t, s]] }
            };
            for s in 0..9 {
                let better = |other: &usize| {
                    rank(*other) > rank(s) || (rank(*other) == rank(s) && *other < s)
                };
                let wanted = s <= t && (0..=t).filter(better).count() < n;
                assert_eq!(chosen[[b, t, s]] != 0.0, wanted);
            }
        }
    }
}

#[test]
fn attention_to_nothing_is_zero() {
    let mut case = Case::new(2);
    let q = case.array(&[1, 2, 2, 3], Draw::Normal);
    let k = case.array(&[1, 3, 2, 3], Draw::Normal);
    let v = case.array(&[1, 3, 2, 1], Draw::Normal);
    let mask = arr(&[1, 2, 3], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    let args = [
        ("b t h k", ACT, &q),
        ("b s h k", ACT, &k),
        ("b s h m", ACT, &v),
        ("b t s", DType::Bool, &mask),
    ];
    let o = eval(attention(), &args).unwrap().remove(0);
    // One allowed key: its value itself.
    let wanted = arr(&[1, 2, 2, 1], &[0.0, 0.0, v[[0, 1, 0, 0]], v[[0, 1, 1, 0]]]);
    assert_eq!(o, wanted);
}

#[test]
fn sinkhorn_is_doubly_stochastic_when_it_has_converged() {
    let mut case = Case::new(4);
    let x = case.array(&[3, 4, 4], Draw::Normal);
    let op = Sinkhorn { rows: word("s"), columns: word("j"), iterations: 200, eps: 0.0 };
    let y = eval(op, &[("t s j", ACT, &x)]).unwrap().remove(0);
    for axis in [1, 2] {
        assert!(y.sum_axis(ndarray::Axis(axis)).iter().all(|sum| (sum - 1.0).abs() < 1e-9));
    }
    // One iteration by hand.
    let x = arr(&[2, 2], &[0.0, 0.0, 0.0, f64::ln(3.0)]);
    let op = Sinkhorn { rows: word("s"), columns: word("j"), iterations: 1, eps: 0.0 };
    let y = eval(op, &[("s j", ACT, &x)]).unwrap().remove(0);
    // K = [[1, 1], [1/3, 1]], u = [1, 3/2], v = [2/3, 2/5]
    assert_close(&y, &arr(&[2, 2], &[2.0 / 3.0, 0.4, 1.0 / 3.0, 0.6]), 1e-15);
}

#[test]
fn the_loss_ignores_what_does_not_count() {
    let mut case = Case::new(6);
    let h = case.array(&[1, 3, 2], Draw::Normal);
    let w = case.array(&[4, 2], Draw::Normal);
    let loss = |softcap: f64, h: &Array, targets: [f64; 3]| {
        let op = LinearCrossEntropy { channel: word("d"), vocab: word("v"), softcap };
        let targets = arr(&[1, 3], &targets);
        let args = [("b t d", ACT, h), ("v d", ACT, &w), ("b t", DType::Index, &targets)];
        eval(op, &args).map(|y| y[0].sum())
    };
    // All logits equal: ln of the vocabulary.
    let zero = Array::zeros(vec![1, 3, 2]);
    assert!((loss(0.0, &zero, [0.0, 1.0, -100.0]).unwrap() - 4f64.ln()).abs() < 1e-15);
    // The mean over those that count.
    let all = loss(15.0, &h, [1.0, 2.0, 3.0]).unwrap();
    let one = |t: usize, target: f64| {
        let mut targets = [-100.0; 3];
        targets[t] = target;
        loss(15.0, &h, targets).unwrap()
    };
    assert!((all - (one(0, 1.0) + one(1, 2.0) + one(2, 3.0)) / 3.0).abs() < 1e-14);
    assert_eq!(loss(15.0, &h, [-100.0; 3]), Ok(0.0));
    assert!(loss(0.0, &h, [0.0, 4.0, 0.0]).unwrap_err().contains("vocabulary of 4"));
    assert!(loss(0.0, &h, [0.0, -1.0, 0.0]).is_err());

    // Nothing counts: no gradient, and no division by 0.
    let op = LinearCrossEntropyGrad { channel: word("d"), vocab: word("v"), softcap: 0.0 };
    let (targets, one) = (arr(&[1, 3], &[-100.0; 3]), arr(&[], &[1.0]));
    let args = [
        ("b t d", ACT, &h),
        ("v d", ACT, &w),
        ("b t", DType::Index, &targets),
        ("", DType::F32, &one),
    ];
    let grads = eval(op, &args).unwrap();
    assert!(grads.iter().all(|d| d.iter().all(|d| *d == 0.0)));

    // Both at once are what they are alone.
    let step = LinearCrossEntropyStep { channel: word("d"), vocab: word("v"), softcap: 2.0 };
    let grad = LinearCrossEntropyGrad { channel: word("d"), vocab: word("v"), softcap: 2.0 };
    let alone = LinearCrossEntropy { channel: word("d"), vocab: word("v"), softcap: 2.0 };
    let targets = arr(&[1, 3], &[2.0, -100.0, 3.0]);
    let args = [("b t d", ACT, &h), ("v d", ACT, &w), ("b t", DType::Index, &targets)];
    let both = eval(step, &args).unwrap();
    assert_eq!(both[0], eval(alone, &args).unwrap()[0]);
    let with_cotangent = [args[0], args[1], args[2], ("", DType::F32, &one)];
    assert_eq!(both[1..], eval(grad, &with_cotangent).unwrap()[..]);

    // Some targets count: the gradient is that of the mean over those.
    let op = || LinearCrossEntropyGrad { channel: word("d"), vocab: word("v"), softcap: 2.0 };
    let grad = |targets: [f64; 3]| {
        let targets = arr(&[1, 3], &targets);
        let args = [
            ("b t d", ACT, &h),
            ("v d", ACT, &w),
            ("b t", DType::Index, &targets),
            ("", DType::F32, &one),
        ];
        eval(op(), &args).unwrap()
    };
    let both = grad([1.0, -100.0, 3.0]);
    let (first, last) = (grad([1.0, -100.0, -100.0]), grad([-100.0, -100.0, 3.0]));
    for i in 0..2 {
        assert_close(&both[i], &((&first[i] + &last[i]) / 2.0), 1e-15);
    }
}

#[test]
fn gathers_add_rows_and_skip_empty_slots() {
    let w = arr(&[3, 2], &[1.0, 2.0, 10.0, 20.0, 100.0, 200.0]);
    let index = arr(&[1, 2, 3], &[0.0, 2.0, 2.0, -1.0, 1.0, -1.0]);
    let op = || GatherSum { rows: word("j"), slots: word("p") };
    let y = eval(op(), &[("j d", ACT, &w), ("b t p", DType::Index, &index)]).unwrap();
    assert_eq!(y[0], arr(&[1, 2, 2], &[201.0, 402.0, 10.0, 20.0]));
    let beyond = arr(&[1, 1, 1], &[3.0]);
    let error = eval(op(), &[("j d", ACT, &w), ("b t p", DType::Index, &beyond)]).unwrap_err();
    assert!(error.contains("index 3 is not a row of 3"), "{error}");

    let ids = arr(&[2], &[2.0, 0.0]);
    let op = || Lookup { rows: word("v") };
    let y = eval(op(), &[("v d", DType::Index, &w), ("t", DType::Index, &ids)]).unwrap();
    assert_eq!(y[0], arr(&[2, 2], &[100.0, 200.0, 1.0, 2.0]));
    let negative = arr(&[1], &[-1.0]);
    assert!(eval(op(), &[("v d", ACT, &w), ("t", DType::Index, &negative)]).is_err());
}

// Text.

/// One op of every kind, with attributes that are easy to lose.
#[rustfmt::skip]
fn one_of_each() -> Vec<Op> {
    let (t, e, j, s, h, k, m) =
        (word("t"), word("e"), word("j"), word("s"), word("h"), word("k"), word("m"));
    let size = minus(&Size::symbol("u"), 2);
    let sized = Axis { name: word("u"), size: size.clone() };
    let integrator: Integrator = "midpoint(h: 0.25, a: [1/2] * 2, gates: [none] * 1 + [0.0] * 1, bootstrap: full, fraction_bits: 20)".parse().unwrap();
    let mut ops: Vec<Op> = vec![
        Input { name: word("tokens") }.into(),
        ParamRef { index: 3 }.into(),
        StateRef { index: 0 }.into(),
        TableRef { index: 1 }.into(),
        Saved { value: ValueId(7) }.into(),
        Call { sub: 2 }.into(),
        Stack { sub: 4, integrator: Integrator::Plain }.into(),
        Stack { sub: 4, integrator: integrator.clone() }.into(),
        CallBackward { call: lightc_codegen::ir::NodeId(5), backward: lightc_codegen::ir::BackwardId(1) }.into(),
        StackBackward {
            call: lightc_codegen::ir::NodeId(5),
            layers: vec![lightc_codegen::ir::BackwardId(1), lightc_codegen::ir::BackwardId(0)],
            integrator,
        }.into(),
        Const { value: -0.1, dtype: DType::F32 }.into(),
        SizeValue { size: size.clone() }.into(),
        Affine { mul: 1e-6, add: 3.0 }.into(),
        Clamp { low: -1.0, high: 1e30 }.into(),
        ClampGrad { low: -1.0, high: 1.0 }.into(),
        Where.into(),
        Cast { to: DType::F32 }.into(),
        StopGradient.into(),
        Sum { over: words(&["t", "b"]) }.into(),
        Mean { over: words(&["t"]) }.into(),
        Contract { over: vec![] }.into(),
        Contract { over: words(&["d", "k"]) }.into(),
        Broadcast { axes: vec![sized.clone(), constant("d", 4), Axis { name: word("b"), size: Size::symbol("b") }] }.into(),
        Permute { order: words(&["t", "b"]) }.into(),
        Rename { from: t.clone(), to: s.clone() }.into(),
        Split { axis: e.clone(), into: vec![constant("h", 2), sized.clone()] }.into(),
        Merge { axes: words(&["h", "k"]), into: e.clone() }.into(),
        Slice { axis: word("u"), start: Size::constant(0), end: size.clone(), to: t.clone() }.into(),
        Pad { axis: t.clone(), before: Size::constant(1), after: size.clone(), to: word("u") }.into(),
        Concat { axis: word("d"), to: e.clone() }.into(),
        Place { axis: sized.clone(), index: Size::constant(0), position: 2 }.into(),
        Pick { axis: t.clone(), index: size }.into(),
        CausalConv { time: t.clone(), channel: e.clone(), taps: j.clone() }.into(),
        CausalConvInputGrad { time: t.clone(), channel: e.clone(), taps: j.clone() }.into(),
        CausalConvWeightGrad { time: t.clone(), channel: e.clone(), taps: constant("j", 4) }.into(),
        Rotary { time: t.clone(), pairs: k.clone(), base: 10000.0, inverse: false }.into(),
        Rotary { time: t.clone(), pairs: k.clone(), base: 0.5, inverse: true }.into(),
        Causal { query: sized.clone(), key: constant("s", 3) }.into(),
        Position { axis: sized.clone() }.into(),
        GatedDeltaRule { time: t.clone(), head: h.clone(), key: k.clone(), value: m.clone() }.into(),
        GatedDeltaRuleGrad { time: t.clone(), head: h.clone(), key: k.clone(), value: m.clone() }.into(),
        SelectTop { query: t.clone(), key: s.clone(), sinks: 4, limit: 256 }.into(),
        indexer().into(),
        attention().into(),
        bounded(256).into(),
        MaskedAttention { bound: MaskBound { causal: true, most_keys: None }, ..attention() }.into(),
        MaskedAttentionGrad { query: t, key: s.clone(), head: h, channel: k, bound: bounded(7).bound }.into(),
        Sinkhorn { rows: s.clone(), columns: j.clone(), iterations: 20, eps: 1e-6 }.into(),
        SinkhornGrad { rows: s, columns: j.clone(), iterations: 20, eps: 1e-6 }.into(),
        LinearCrossEntropy { channel: e.clone(), vocab: m.clone(), softcap: 15.0 }.into(),
        LinearCrossEntropyGrad { channel: e.clone(), vocab: m.clone(), softcap: 0.0 }.into(),
        LinearCrossEntropyStep { channel: e, vocab: m, softcap: 15.0 }.into(),
        GatherSum { rows: j.clone(), slots: word("p") }.into(),
        GatherSumGrad { rows: sized.clone(), slots: word("p") }.into(),
        Lookup { rows: j }.into(),
        LookupGrad { rows: sized }.into(),
    ];
    ops.extend(experts::one_of_each());
    ops.extend(UnaryFn::ALL.map(|function| Unary { function }.into()));
    ops.extend(UnaryFn::ALL.map(|function| UnaryGrad { function }.into()));
    ops.extend(BinaryFn::ALL.map(|function| Binary { function }.into()));
    ops
}

#[test]
fn attributes_round_trip() {
    let ops = one_of_each();
    for op in &ops {
        let def = op.def();
        assert_eq!(parse_op(def.mnemonic(), def.attrs()).as_ref(), Ok(op));
        let extra = def.attrs().int("nonsense", 1);
        assert!(parse_op(def.mnemonic(), extra).is_err(), "{} takes anything", def.mnemonic());
        // No attribute can be left out, but for what is known of a mask.
        let attention = matches!(op, Op::MaskedAttention(_) | Op::MaskedAttentionGrad(_));
        for missing in 0..def.attrs().0.len() {
            let mut attrs = def.attrs();
            let (name, _) = attrs.0.remove(missing);
            let optional = attention && ["mask", "limit"].contains(&name.as_str());
            assert_eq!(
                parse_op(def.mnemonic(), attrs).is_ok(),
                optional,
                "{} {name}",
                def.mnemonic()
            );
        }
    }
    assert!(parse_op("no_such_op", Attrs::default()).is_err());
    // Every kind of op is here: its name is printed as the first word of its debug text.
    for kind in Op::KINDS {
        let start = format!("{kind}(");
        assert!(ops.iter().any(|op| format!("{op:?}").starts_with(&start)), "no {kind}");
    }
}

// Emitted calls.

/// Emits an op on arguments `a0`, `a1`, ... of these types; without white space.
fn emitted(op: &Op, args: &str) -> String {
    let types = types(args);
    let types: Vec<&Type> = types.iter().collect();
    let results = op.def().infer(&types).unwrap_or_else(|e| panic!("{op:?}: {e:?}"));
    let results: Vec<&Type> = results.iter().collect();
    let names: Vec<proc_macro2::TokenStream> =
        (0..types.len()).map(|i| format!("a{i}").parse().unwrap()).collect();
    let call = EmitCall { args: &names, arg_types: &types, result_types: &results, scales: &[] };
    let text = op.def().emit_cpu(&call).to_string();
    text.split_whitespace().collect()
}

#[track_caller]
fn check_emitted(op: impl Into<Op>, args: &str, wanted: &str) {
    assert_eq!(emitted(&op.into(), args), wanted.split_whitespace().collect::<String>());
}

#[test]
fn emitted_calls_name_positions() {
    let size = Size::constant;
    let x = "act b=b t=t d=8";
    check_emitted(Sum { over: words(&["d", "b"]) }, x, "ops::sum(a0, &[2, 0])?");
    check_emitted(Mean { over: words(&["t"]) }, x, "ops::mean(a0, &[1])?");
    let over = words(&["d"]);
    let args = "act b=b t=t d=8; act f=2 d=8";
    check_emitted(Contract { over }, args, r#"ops::contract(a0, a1, "btd,fd->btf")?"#);
    let axes = vec![constant("n", 4), constant("d", 8), constant("t", 3)];
    check_emitted(
        Broadcast { axes },
        "act t=3 d=8",
        "ops::broadcast(a0, &[-1, 1, 0], &[4, 8, 3])?",
    );
    check_emitted(Permute { order: words(&["d", "b", "t"]) }, x, "ops::permute(a0, &[2, 0, 1])?");
    check_emitted(Rename { from: word("t"), to: word("s") }, x, "Tensor::shallow_clone(a0)");
    check_emitted(Cast { to: DType::F32 }, x, "ops::to_f32(a0, like)?");
    check_emitted(Cast { to: DType::Act }, "f32 t=3", "ops::to_act(a0, like.kind())?");
    let into = vec![constant("h", 2), constant("k", 4)];
    check_emitted(Split { axis: word("d"), into }, x, "ops::split(a0, 2, &[2, 4])?");
    let merge = Merge { axes: words(&["t", "d"]), into: word("e") };
    check_emitted(merge, x, "ops::merge(a0, 1, 2)?");
    let t = || Size::symbol("t");
    let slice = Slice { axis: word("t"), start: size(1), end: minus(&t(), 1), to: word("s") };
    check_emitted(slice, x, "ops::slice(a0, 1, 1, size_t - 1)?");
    let pad = Pad { axis: word("t"), before: size(1), after: t(), to: word("s") };
    check_emitted(pad, x, "ops::pad(a0, 1, 1, size_t)?");
    let concat = Concat { axis: word("t"), to: word("s") };
    check_emitted(concat.clone(), "act b=2 t=t; act b=2 t=3", "ops::concat(&[a0, a1], 1)?");
    let place = Place { axis: constant("n", 4), index: size(3), position: 1 };
    check_emitted(place, x, "ops::place(a0, 1, 3, 4)?");
    check_emitted(Pick { axis: word("d"), index: size(7) }, x, "ops::pick(a0, 2, 7)?");
    let conv = CausalConv { time: word("t"), channel: word("d"), taps: word("j") };
    check_emitted(conv, "act b=b t=t d=8; act d=8 j=4", "ops::causal_conv(a0, a1)?");
    let taps = constant("j", 4);
    let conv = CausalConvWeightGrad { time: word("t"), channel: word("d"), taps };
    check_emitted(conv, &format!("{x}; {x}"), "ops::causal_conv_weight_grad(a0, a1, 4)?");
    let rotary = Rotary { time: word("t"), pairs: word("d"), base: 100.0, inverse: true };
    check_emitted(rotary, x, "ops::rotary(a0, 1, 100f64, true)?");
    let causal = Causal { query: Axis { name: word("t"), size: t() }, key: constant("s", 3) };
    check_emitted(causal, "", "ops::causal(size_t, 3, like)?");
    check_emitted(Position { axis: constant("t", 3) }, "", "ops::position(3, like)?");
    let select = SelectTop { query: word("t"), key: word("s"), sinks: 4, limit: 8 };
    let args = "act b=1 t=3 s=3; f32 b=1 t=3";
    check_emitted(select, args, "ops::select_top(a0, a1, 4, 8)?");
    let args = "act b=1 t=3 i=2 c=4; act b=1 s=3 c=4; f32 b=1 t=3 i=2; f32 i=2; f32";
    let call = "ops::indexer(a0, a1, a2, a3, a4, ops::IndexerNumbers { base: 3f64, low: 1f64, \
                high: 2.5f64, sinks: 1, limit: 3 })?";
    check_emitted(indexer(), args, call);
    let sinkhorn = Sinkhorn { rows: word("t"), columns: word("d"), iterations: 20, eps: 0.5 };
    check_emitted(sinkhorn, x, "ops::sinkhorn(a0, 20, 0.5f64)?");
    let grad = SinkhornGrad { rows: word("t"), columns: word("d"), iterations: 20, eps: 0.5 };
    check_emitted(grad, &format!("{x}; {x}"), "ops::sinkhorn_grad(a0, a1, 20, 0.5f64)?");
    let args = "act b=b t=t d=8; act v=9 d=8; index b=b t=t";
    let loss = LinearCrossEntropy { channel: word("d"), vocab: word("v"), softcap: 15.0 };
    check_emitted(loss, args, "ops::linear_cross_entropy(a0, a1, a2, 15f64)?");
    let loss = LinearCrossEntropyGrad { channel: word("d"), vocab: word("v"), softcap: 0.0 };
    let args = format!("{args}; f32");
    check_emitted(loss, &args, "ops::linear_cross_entropy_grad(a0, a1, a2, a3, 0f64)?");
    let gather = GatherSum { rows: word("j"), slots: word("p") };
    check_emitted(gather, "act j=5 d=8; index b=b t=t p=3", "ops::gather_sum(a0, a1)?");
    let gather = GatherSumGrad { rows: constant("j", 5), slots: word("p") };
    check_emitted(gather, &format!("index b=b t=t p=3; {x}"), "ops::gather_sum_grad(a0, a1, 5)?");
    check_emitted(Lookup { rows: word("v") }, "act v=5 d=8; index b=b", "ops::lookup(a0, a1)?");
    let grad = LookupGrad { rows: constant("v", 5) };
    check_emitted(grad, "index b=b; act b=b d=8", "ops::lookup_grad(a0, a1, 5)?");
}

#[test]
fn emitted_calls_join_precision_classes() {
    // The runtime takes tensors of one kind: narrow ones are widened first.
    let over = words(&["d"]);
    let wanted = r#"ops::contract(&ops::to_f32(a0, like)?, a1, "td,fd->tf")?"#;
    check_emitted(Contract { over }, "act t=3 d=8; f32 f=2 d=8", wanted);
    let concat = Concat { axis: word("t"), to: word("s") };
    let wanted = "ops::concat(&[a0, &ops::to_f32(a1, like)?], 0)?";
    check_emitted(concat, "f32 t=3; act t=2", wanted);
    // The delta rule takes wide gates beside narrow heads.
    let (row, wide, gate) = ("act b=1 t=3 h=2 k=4", "f32 b=1 t=3 h=2 k=4", "f32 b=1 t=3 h=2");
    let args = format!("{row}; {row}; {row}; {gate}; {gate}");
    check_emitted(delta("k"), &args, "ops::gated_delta_rule(a0, a1, a2, a3, a4)?");
    let grad = || GatedDeltaRuleGrad {
        time: word("t"),
        head: word("h"),
        key: word("k"),
        value: word("k"),
    };
    let wanted = "ops::gated_delta_rule_grad(a0, a1, a2, a3, a4, a5)?";
    check_emitted(grad(), &format!("{args}; {row}"), wanted);
    // Beside a wide head all join; of a result that is not widened, what comes back wide is narrowed.
    let args = format!("{row}; {wide}; {row}; {gate}; {gate}");
    let widened = "&ops::to_f32(a0, like)?, a1, &ops::to_f32(a2, like)?, a3, a4";
    check_emitted(delta("k"), &args, &format!("ops::gated_delta_rule({widened})?"));
    let wanted = format!(
        "{{ let (wide_0, wide_1, wide_2, wide_3, wide_4) =
            ops::gated_delta_rule_grad({widened}, a5)?;
            (ops::to_act(&wide_0, like.kind())?, wide_1, ops::to_act(&wide_2, like.kind())?,
            wide_3, wide_4) }}"
    );
    check_emitted(grad(), &format!("{args}; {wide}"), &wanted);
    // One class: as it is. The mask does not count.
    let row = "act b=1 t=3 h=2 k=4";
    let keys = "act b=1 s=5 h=2 k=4";
    let args = format!("{row}; {keys}; {keys}; bool b=1 t=3 s=5");
    check_emitted(attention(), &args, "ops::masked_attention(a0, a1, a2, a3)?");
    let bound = "ops::MaskBound { causal: true, most_keys: Some(256) }";
    let wanted = format!("ops::masked_attention_within(a0, a1, a2, a3, {bound})?");
    check_emitted(bounded(256), &args, &wanted);
}

// Errors.

fn types(text: &str) -> Vec<Type> {
    // `act b=2 t=u; index t=3`
    text.split(';')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let mut parts = part.split_whitespace();
            let dtype = parts.next().unwrap();
            let dtype = lightc_codegen::ir::types::dtype_from_word(dtype).unwrap();
            let axes = parts.map(|axis| {
                let (name, size) = axis.split_once('=').unwrap();
                let size = size.parse().map_or_else(|_| Size::symbol(size), Size::constant);
                Axis { name: word(name), size }
            });
            Type::new(dtype, axes.collect())
        })
        .collect()
}

#[track_caller]
fn check_error(op: impl Into<Op>, args: &str, code: &str, says: &str) {
    let types = types(args);
    let types: Vec<&Type> = types.iter().collect();
    let error = op.into().def().infer(&types).expect_err("the shape rule accepts it");
    assert_eq!(error.code, code, "{}", error.message);
    assert!(error.message.contains(says), "{}", error.message);
}

#[test]
fn shape_rules_name_what_disagrees() {
    let size = Size::constant;
    let sum = |over: &[&str]| Sum { over: words(over) };
    check_error(sum(&["d"]), "act t=3", "E0401", "needs axis `d`, but the value is act[t=3]");
    check_error(sum(&["t", "t"]), "act t=3", "E0406", "axis `t` twice");
    check_error(sum(&["t"]), "bool t=3", "E0404", "floating-point");
    check_error(sum(&[]), "act t=3", "E0405", "no axis");
    check_error(sum(&["t"]), "act t=3; act t=3", "E0405", "1 tensor arguments, here are 2");

    let dot = |over: &[&str]| Contract { over: words(over) };
    check_error(dot(&["d"]), "act t=3 d=4; act f=2", "E0401", "`d`");
    check_error(dot(&["d"]), "act t=3 d=4; act d=5", "E0402", "size 4");
    check_error(dot(&[]), "act d=n; act d=m", "E0402", "size n");
    check_error(dot(&["d"]), "act d=4; index d=4", "E0404", "index[d=4]");

    let split = |k| Split { axis: word("e"), into: vec![constant("h", 2), constant("k", k)] };
    check_error(split(3), "act e=8", "E0402", "product 6");
    check_error(split(4), "act e=8 h=2", "E0406", "two axes named `h`");
    check_error(
        Merge { axes: words(&["h", "k"]), into: word("e") },
        "act h=2 t=3 k=2",
        "E0401",
        "in the order [h, k, t]",
    );
    let slice = |start, end| Slice { axis: word("t"), start, end, to: word("s") };
    check_error(slice(size(2), size(5)), "act t=4", "E0402", "the end 5 lies after the size 4");
    check_error(slice(size(-1), size(2)), "act t=4", "E0402", "start -1");
    check_error(slice(size(3), size(2)), "act t=4", "E0402", "the start 3");
    let end = Size::symbol("t").checked_add(&size(1)).unwrap();
    check_error(slice(size(0), end), "act t=t", "E0402", "t+1");
    let place = |index| Place { axis: constant("s", 2), index, position: 0 };
    check_error(place(size(2)), "act t=3", "E0402", "index 2 is not on axis `s` of size 2");
    check_error(place(size(0)), "act s=2", "E0406", "`s`");
    let concat = || Concat { axis: word("d"), to: word("d") };
    check_error(concat(), "act t=3 d=1; act t=4 d=2", "E0402", "size 3");
    check_error(concat(), "act d=1; index d=2", "E0404", "different kinds");
    check_error(concat(), "", "E0405", "at least one");
    let broadcast = Broadcast { axes: vec![constant("b", 2)] };
    check_error(broadcast, "act t=2", "E0401", "leaves out axis `t`");
    check_error(Permute { order: words(&["t"]) }, "act t=2 d=3", "E0401", "leaves out");
    check_error(Rename { from: word("t"), to: word("d") }, "act t=2 d=3", "E0406", "`d`");

    let conv = || CausalConv { time: word("t"), channel: word("e"), taps: word("j") };
    check_error(conv(), "act b=1 t=3 e=2; act e=3 j=4", "E0402", "size 2");
    check_error(conv(), "act t=3 e=2; act e=2 j=4", "E0401", "one batch axis");
    check_error(conv(), "act b=1 e=2 t=3; act e=2 j=4", "E0401", "in the order [b, t, e]");
    let rotary = Rotary { time: word("t"), pairs: word("k"), base: 1e4, inverse: false };
    check_error(rotary, "act t=3 k=5", "E0402", "size 5 is odd");

    let row = "act b=1 t=3 h=2 k=4";
    let gate = "f32 b=1 t=3 h=2";
    let wrong = format!("{row}; act b=1 t=3 h=2 k=5; {row}; {gate}; {gate}");
    check_error(delta("k"), &wrong, "E0402", "size 4");
    let wrong = format!("{row}; {row}; {row}; {gate}; f32 b=1 t=3");
    check_error(delta("k"), &wrong, "E0401", "`h`");
    check_error(delta("k"), row, "E0405", "takes 5");

    let mask = "bool b=1 t=3 s=5";
    let keys = "act b=1 s=5 h=2 k=4";
    let wrong = format!("{row}; {keys}; {keys}; act b=1 t=3 s=5");
    check_error(attention(), &wrong, "E0404", "its mask as bool");
    let wrong = format!("{row}; {keys}; act b=1 s=6 h=2 k=4; {mask}");
    check_error(attention(), &wrong, "E0402", "size 5");
    let select = SelectTop { query: word("t"), key: word("s"), sinks: 4, limit: 8 };
    check_error(select, "act b=1 t=3 s=4; f32 b=1 t=3", "E0402", "size 3");
    let (q, heed) = ("act b=1 t=3 i=2 c=4", "f32 b=1 t=3 i=2");
    let wrong = format!("{q}; act b=1 s=4 c=4; {heed}; f32 i=2; f32");
    check_error(indexer(), &wrong, "E0402", "size 3");
    let wrong = format!("{q}; act b=1 s=3 c=5; {heed}; f32 i=2; f32");
    check_error(indexer(), &wrong, "E0402", "size 4");
    let wrong = format!("{q}; act b=1 s=3 c=4; {heed}; f32 i=2; f32 b=1");
    check_error(indexer(), &wrong, "E0401", "its running mean");
    let wrong = format!("{q}; act b=1 s=3 c=4; {heed}; index i=2; f32");
    check_error(indexer(), &wrong, "E0404", "floating-point");
    check_error(indexer(), q, "E0405", "takes 5");
    let args = format!("{q}; act b=1 s=3 c=4; {heed}; f32 i=2; f32");
    check_error(Indexer { low: 3.0, ..indexer() }, &args, "E0405", "range of budgets");
    check_error(Indexer { limit: 0, ..indexer() }, &args, "E0405", "a limit of at least 1");
    let sinkhorn = Sinkhorn { rows: word("s"), columns: word("j"), iterations: 0, eps: 1e-6 };
    check_error(sinkhorn, "act s=2 j=2", "E0405", "at least 1 iteration");
    let loss = || LinearCrossEntropy { channel: word("d"), vocab: word("v"), softcap: 0.0 };
    let w = "act v=9 d=4";
    check_error(loss(), &format!("act t=3 d=4; {w}; act t=3"), "E0404", "its targets as index");
    check_error(loss(), &format!("act t=3 d=4; {w}; index t=2"), "E0402", "size 3");
    check_error(loss(), &format!("act v=9 d=4; {w}; index v=9"), "E0406", "`v`");
    let gather = GatherSum { rows: word("j"), slots: word("p") };
    check_error(gather, "act j=3; index b=1 t=2 p=2", "E0401", "one axis beside `j`");
    check_error(Lookup { rows: word("v") }, "act v=3 d=2; act t=2", "E0404", "its ids as index");
}
