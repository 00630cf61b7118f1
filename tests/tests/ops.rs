//! Every op: emitted Rust on libtorch against the interpreter, forward and backward, on random
//! shapes. The modules come from `cases/`; the build script has emitted them.

#[path = "../cases/mod.rs"]
mod cases;

/// What the build script emitted.
mod emitted {
    use lightc_runtime::{Inputs, Result, Tensor};

    /// One case: its IR text, and the emitted code.
    pub(crate) struct Emitted {
        pub(crate) name: &'static str,
        pub(crate) ir: &'static str,
        pub(crate) run: fn(&Call) -> Result<Ran>,
    }

    /// What emitted code is run on.
    pub(crate) struct Call {
        pub(crate) like: Tensor,
        pub(crate) inputs: Vec<Tensor>,
        pub(crate) params: Vec<Tensor>,
        pub(crate) states: Vec<Tensor>,
        pub(crate) tables: Vec<Tensor>,
        pub(crate) seed: Tensor,
    }

    /// What it gives.
    pub(crate) struct Ran {
        pub(crate) outputs: Vec<Tensor>,
        pub(crate) grads: Vec<Option<Tensor>>,
        pub(crate) states: Vec<Tensor>,
    }

    impl Call {
        pub(crate) fn flat(&self) -> Inputs<'_> {
            Inputs {
                params: &self.params,
                states: &self.states,
                tables: &self.tables,
                tokens: &self.like,
                continues: &self.like,
                carries: &[],
            }
        }
    }

    include!(concat!(env!("OUT_DIR"), "/cases.rs"));
}

use cases::{Case, Draw, Length};
use emitted::{Call, EMITTED, Emitted, Ran};
use lightc_codegen::interp::{self, Store, Tensors};
use lightc_codegen::ir::{BackwardId, Module, Type, text, verify};
use lightc_codegen::ops::{Array, Op};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Storage;
use lightc_runtime::{Precision, ranks};
use lightc_tests::{Random, largest, to_array, to_tensor, worst_difference};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Random shapes per case, besides one for each size name.
const SHAPES: usize = 20;

/// The largest difference from the interpreter, relative to the largest element or to 1.
fn tolerance(case: &Case, act: Kind) -> f64 {
    match act {
        Kind::Double => 1e-10,
        Kind::Float if case.is_one_op => 1e-5,
        Kind::Float => 1e-3,
        _ => f64::INFINITY,
    }
}

/// Lengths of all size names: the first run has 1 wherever it can, some have one long axis.
fn lengths(case: &Case, run: usize, random: &mut Random) -> BTreeMap<String, i64> {
    let long = run.checked_sub(1);
    let draw = |(index, (name, rule)): (usize, (&String, &Length))| {
        let n = match run {
            0 => 1,
            _ if Some(index) == long => [65, 130][random.below(2)],
            _ => [1, 2, 3, 5, 7][random.below(5)],
        };
        let n = match *rule {
            Length::Any => n,
            Length::Even => n + n % 2,
            Length::Power => i64::unsigned_abs(n).next_power_of_two() as i64,
            Length::AtLeast(least) => n.max(least),
            Length::AtMost(most) => n.min(most),
        };
        (name.clone(), n)
    };
    case.lengths.iter().enumerate().map(draw).collect()
}

fn shape(ty: &Type, lengths: &BTreeMap<String, i64>) -> Vec<usize> {
    let sizes = ty.axes.iter().map(|axis| axis.size.evaluate(lengths).expect("a bound size"));
    sizes.map(|n| usize::try_from(n).expect("a length")).collect()
}

/// Elements that f32 holds exactly, so that both precisions compute the same.
fn array(draw: Draw, shape: &[usize], lengths: &BTreeMap<String, i64>, r: &mut Random) -> Array {
    let last = shape.last().copied().unwrap_or(1) as f64;
    let below = |size: &str| {
        let number = size.parse().ok().or_else(|| lengths.get(size).copied());
        number.expect("a number or a size name") as usize
    };
    r.array(shape, |r| {
        let x = match draw {
            Draw::Normal => r.normal(),
            Draw::Wide => 3.0 * r.normal(),
            Draw::Row => r.normal() / last.sqrt(),
            Draw::Positive => 0.5 + 1.5 * r.uniform(),
            Draw::Negative => -r.uniform(),
            Draw::Unit => r.uniform(),
            Draw::Budget => -2.0 + 14.0 * r.uniform(),
            Draw::Whole => r.below(7) as f64 - 3.0,
            Draw::Truth => r.below(2) as f64,
            Draw::Below(size) => r.below(below(size)) as f64,
            Draw::BelowOrEmpty(size) => r.below(below(size) + 1) as f64 - 1.0,
            Draw::BelowOrIgnored(_) if r.below(4) == 0 => -100.0,
            Draw::BelowOrIgnored(size) => r.below(below(size)) as f64,
        };
        f64::from(x as f32)
    })
}

/// Inputs, tensors and cotangent of one run.
#[derive(Clone)]
struct Example {
    lengths: BTreeMap<String, i64>,
    inputs: Vec<(Type, Array)>,
    store: Store,
    seed: Array,
}

fn example(case: &Case, module: &Module, run: usize, random: &mut Random) -> Example {
    let lengths = lengths(case, run, random);
    let entry = module.entry_function();
    let mut make = |name: &str, ty: &Type| {
        let draw = case.draws.get(name).copied().unwrap_or(Draw::Normal);
        array(draw, &shape(ty, &lengths), &lengths, random)
    };
    let inputs = entry.inputs().map(|(name, value)| {
        let ty = entry.ty(value);
        (ty.clone(), make(name, ty))
    });
    let inputs = inputs.collect();
    let mut store = Store::default();
    for placed in module.placed_params() {
        let _ = store.params.insert(placed.path, make(&placed.item.name, &placed.item.ty));
    }
    for placed in module.placed_states() {
        let _ = store.states.insert(placed.path, make(&placed.item.name, &placed.item.ty));
    }
    for placed in module.placed_tables() {
        let shape = shape(&placed.item.ty, &lengths);
        let table = array(Draw::Whole, &shape, &lengths, random);
        let _ = store.tables.insert(placed.path, table);
    }
    let loss = entry.outputs.iter().find(|o| o.name.as_deref() == Some("loss"));
    let seed = loss.map(|o| shape(entry.ty(o.value), &lengths)).unwrap_or_default();
    let seed = array(Draw::Normal, &seed, &lengths, random);
    Example { lengths, inputs, store, seed }
}

/// The libtorch kind of a precision class in a run.
fn kind_of(dtype: DType, act: Kind) -> Kind {
    match dtype {
        DType::Act => act,
        DType::F32 => Precision::F32.kind(act),
        DType::Index => Kind::Int64,
        DType::Bool => Kind::Bool,
    }
}

/// A tensor whose memory lies in another order than its axes, every second time.
fn tensor(array: &Array, kind: Kind, random: &mut Random) -> Tensor {
    let tensor = to_tensor(array, kind);
    if tensor.dim() < 2 || random.below(2) == 0 {
        return tensor;
    }
    tensor.transpose(0, -1).contiguous().transpose(0, -1)
}

fn call(example: &Example, module: &Module, act: Kind, random: &mut Random) -> Call {
    let mut list = |tensors: &Tensors, placed: Vec<(String, DType)>| -> Vec<Tensor> {
        let tensor =
            |(path, dtype): &(String, DType)| tensor(&tensors[path], kind_of(*dtype, act), random);
        placed.iter().map(tensor).collect()
    };
    let params = module.placed_params().into_iter().map(|p| (p.path, p.item.ty.dtype)).collect();
    let states = module.placed_states().into_iter().map(|s| (s.path, s.item.ty.dtype)).collect();
    let tables = module.placed_tables().into_iter().map(|t| (t.path, t.item.ty.dtype)).collect();
    let params = list(&example.store.params, params);
    let states = list(&example.store.states, states);
    let tables = list(&example.store.tables, tables);
    let entry = module.entry_function();
    let loss = entry.outputs.iter().find(|o| o.name.as_deref() == Some("loss"));
    let seed_kind = loss.map_or(act, |o| kind_of(entry.ty(o.value).dtype, act));
    let inputs = example.inputs.iter();
    Call {
        like: Tensor::zeros([1], (act, tch::Device::Cpu)),
        inputs: inputs.map(|(ty, a)| tensor(a, kind_of(ty.dtype, act), random)).collect(),
        params,
        states,
        tables,
        seed: tensor(&example.seed, seed_kind, random),
    }
}

/// What the interpreter gives.
struct Expected {
    outputs: Vec<Array>,
    grads: Tensors,
    updates: Tensors,
}

fn interpret(example: &Example, module: &Module) -> Expected {
    let inputs: Vec<Array> = example.inputs.iter().map(|(_, array)| array.clone()).collect();
    let run = interp::run(module, &inputs, &example.store).expect("interp runs");
    let mut grads = Tensors::new();
    let entry = module.backward.iter().position(|backward| backward.of == module.entry);
    if let Some(entry) = entry {
        let (id, seeds) = (BackwardId(entry as u32), std::slice::from_ref(&example.seed));
        grads = interp::gradients(module, id, &run.trace, seeds, &example.store)
            .expect("interp differentiates");
    }
    Expected { outputs: run.outputs, grads, updates: run.updates }
}

/// How far a result in f32 may be off, as a multiple of what moves between runs whose inputs differ by a
/// rounding: where many terms cancel, no multiple of the result holds.
const ROUNDINGS: f64 = 32.0;

/// What results are held to.
struct Limit<'a> {
    act: Kind,
    tolerance: f64,
    /// Runs whose inputs differ by a rounding; asked for where the tolerance is exceeded.
    others: &'a dyn Fn() -> Vec<Ran>,
}

/// One comparison, with the place that a failure names; `pick` finds the same result in another run.
fn compare(
    what: &str,
    tensor: &Tensor,
    expected: &Array,
    ty: &Type,
    limit: &Limit<'_>,
    pick: &dyn Fn(&Ran) -> Option<Tensor>,
) {
    let act = limit.act;
    assert_eq!(tensor.kind(), kind_of(ty.dtype, act), "{what} is of another kind than {ty}");
    let has = to_array(tensor);
    assert_eq!(has.shape(), expected.shape(), "{what} has another shape than the interpreter's");
    if has.is_empty() {
        return;
    }
    let off = worst_difference(&has, expected);
    let mut most = limit.tolerance * largest(expected).max(1.0);
    if off > most && act == Kind::Float {
        let moved = (limit.others)()
            .iter()
            .filter_map(pick)
            .map(|x| worst_difference(&to_array(&x), &has))
            .fold(0.0, f64::max);
        most = most.max(ROUNDINGS * moved);
    }
    assert!(off <= most, "{what} of type {ty} is off by {off}, limit {most}");
}

fn compare_all(what: &str, ran: &Ran, expected: &Expected, module: &Module, limit: &Limit<'_>) {
    let entry = module.entry_function();
    assert_eq!(ran.outputs.len(), expected.outputs.len(), "{what}");
    for (at, ((output, tensor), expected)) in
        entry.outputs.iter().zip(&ran.outputs).zip(&expected.outputs).enumerate()
    {
        let what = format!("{what}: output {:?}", output.name);
        let pick = |run: &Ran| run.outputs.get(at).map(Tensor::shallow_clone);
        compare(&what, tensor, expected, entry.ty(output.value), limit, &pick);
    }
    if !module.backward.is_empty() {
        for (at, (placed, grad)) in module.placed_params().iter().zip(&ran.grads).enumerate() {
            let pick = |run: &Ran| run.grads.get(at)?.as_ref().map(Tensor::shallow_clone);
            let what = format!("{what}: gradient of {}", placed.path);
            match (grad, expected.grads.get(&placed.path)) {
                (Some(grad), Some(expected)) => {
                    assert_eq!(placed.item.storage, Storage::Trained, "{what}");
                    compare(&what, grad, expected, &placed.item.ty, limit, &pick);
                }
                (None, None) => {}
                (has, wanted) => {
                    panic!("{what}: emitted {}, interp {}", has.is_some(), wanted.is_some())
                }
            }
        }
    }
    for (at, (placed, state)) in module.placed_states().iter().zip(&ran.states).enumerate() {
        let pick = |run: &Ran| run.states.get(at).map(Tensor::shallow_clone);
        if let Some(expected) = expected.updates.get(&placed.path) {
            let what = format!("{what}: state {}", placed.path);
            compare(&what, state, expected, &placed.item.ty, limit, &pick);
        }
    }
}

/// An example whose floats differ by up to half a unit of f32.
fn moved(example: &Example, random: &mut Random) -> Example {
    let mut moved = example.clone();
    let mut half_unit = |x: &mut f64| *x *= 1.0 + (random.uniform() - 0.5) * 2f64.powi(-22);
    for (ty, array) in &mut moved.inputs {
        if matches!(ty.dtype, DType::Act | DType::F32) {
            array.iter_mut().for_each(&mut half_unit);
        }
    }
    for array in moved.store.params.values_mut().chain(moved.store.states.values_mut()) {
        array.iter_mut().for_each(&mut half_unit);
    }
    moved
}

/// Runs one case on all its shapes.
fn check(case: &Case, emitted: &Emitted, seed: u64) {
    let module = text::parse(emitted.ir).expect("the IR text parses");
    assert_eq!(emitted.ir, text::print(&case.module), "{}: the build is old", case.name);
    assert_eq!(verify::verify(&module), vec![], "{}", case.name);
    let mut random = Random::new(seed);
    for run in 0..SHAPES + case.lengths.len() {
        let example = example(case, &module, run, &mut random);
        let expected = interpret(&example, &module);
        // In half precision only the classes are compared, which two shapes show.
        let half = (run < 2).then_some(Kind::BFloat16);
        for act in [Kind::Double, Kind::Float].into_iter().chain(half) {
            let what = format!("{} at {:?} in {act:?}", case.name, example.lengths);
            let call = call(&example, &module, act, &mut random);
            let ran =
                (emitted.run)(&call).unwrap_or_else(|e| panic!("{what}: {e}\n{}", emitted.ir));
            let others = || {
                let mut random = Random::new(1);
                let mut other = || {
                    let call = self::call(&moved(&example, &mut random), &module, act, &mut random);
                    (emitted.run)(&call).unwrap_or_else(|e| panic!("{what}: {e}"))
                };
                vec![other(), other(), other()]
            };
            let limit = Limit { act, tolerance: tolerance(case, act), others: &others };
            compare_all(&what, &ran, &expected, &module, &limit);
        }
    }
}

#[test]
fn emitted_code_computes_what_the_interpreter_does() {
    let seed = Random::fresh_seed();
    let cases = cases::all();
    assert_eq!(cases.len(), EMITTED.len());
    let mut failed = Vec::new();
    for (case, emitted) in cases.iter().zip(EMITTED) {
        assert_eq!(case.name, emitted.name);
        let checked = std::panic::catch_unwind(|| check(case, emitted, seed));
        if checked.is_err() {
            failed.push(&case.name);
        }
    }
    assert!(failed.is_empty(), "{} cases differ: {failed:?}", failed.len());
}

/// Emitted code reaches the communicator of its thread, and no other.
#[test]
fn emitted_code_adds_up_over_the_ranks_of_its_thread() {
    let cases = cases::all();
    let found = cases.iter().zip(EMITTED).find(|(case, _)| case.name.starts_with("sum_ranks"));
    let (case, emitted) = found.expect("a case of sum_ranks");
    let run = || {
        let mut random = Random::new(5);
        let example = example(case, &case.module, 3, &mut random);
        let call = call(&example, &case.module, Kind::Float, &mut random);
        to_array(&(emitted.run)(&call).expect("it runs").outputs[0])
    };
    let alone = run();
    let sums: Vec<Array> = std::thread::scope(|scope| {
        let on_rank = |rank| scope.spawn(move || ranks::within(Rc::new(rank), run));
        let threads: Vec<_> = ranks::threads(8).into_iter().map(on_rank).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect()
    });
    assert!(alone.iter().any(|x| *x != 0.0));
    assert_eq!(sums, vec![alone.mapv(|x| 8.0 * x); 8]);
    assert_eq!(run(), alone);
}

#[test]
fn every_op_has_a_case() {
    let mut met: BTreeSet<String> = BTreeSet::new();
    for case in cases::all() {
        let forward = case.module.functions.iter();
        let backward = case.module.backward.iter().map(|backward| &backward.body);
        for node in forward.chain(backward).flat_map(|function| &function.nodes) {
            // The first word of the debug text is the name of the kind.
            let text = format!("{:?}", node.op);
            let kind = text.split('(').next().unwrap_or_default();
            let _ = met.insert(kind.to_owned());
        }
    }
    let missing: Vec<&&str> = Op::KINDS.iter().filter(|kind| !met.contains(**kind)).collect();
    assert!(missing.is_empty(), "ops without a case in tests/cases: {missing:?}");
}
