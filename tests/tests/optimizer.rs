//! AdamW three ways: interp of its IR, which defines it; the libtorch calls of the runtime; and the kernel whose arithmetic is
//! generated from that IR, on the processor.

use lightc_codegen::interp::{Store, run};
use lightc_codegen::ops::Array;
use lightc_codegen::optimizer::{ADAMW, SQUARE, module};
use lightc_runtime::cuda::{self, Update};
use lightc_runtime::optimizer::{AdamW, Slot, square_sum};
use lightc_tests::{Random, to_array, to_tensor, worst_difference};
use ndarray::ArrayD;
use tch::Kind;

const NUMBERS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip_norm: 1.0 };
const RATE: f64 = 0.01;
const DECAY: f64 = 0.1;
const CLIP: f64 = 0.625;
/// A number of elements that no vector divides.
const N: usize = 1003;

/// Weight and both moments.
type State = [Array; 3];

fn start(random: &mut Random) -> State {
    let small = |random: &mut Random| 1e-4 * random.uniform();
    [
        random.array(&[N], Random::normal),
        random.array(&[N], |random| 0.01 * random.normal()),
        random.array(&[N], small),
    ]
}

/// What the IR says of an update.
fn defined(state: &State, gradient: &Array, n_updates: u64) -> State {
    let power = |beta: f64| 1.0 - beta.powf(n_updates as f64);
    let scalars = [
        CLIP,
        NUMBERS.beta1,
        1.0 - NUMBERS.beta1,
        NUMBERS.beta2,
        1.0 - NUMBERS.beta2,
        power(NUMBERS.beta1),
        power(NUMBERS.beta2),
        NUMBERS.eps,
        RATE,
        1.0 - RATE * DECAY,
    ];
    let mut inputs: Vec<Array> = state.to_vec();
    inputs.push(gradient.clone());
    inputs.extend(scalars.map(|value| ArrayD::from_elem(vec![], value)));
    let outputs = run(&module(ADAMW).unwrap(), &inputs, &Store::default()).unwrap().outputs;
    let [w, m, v, act] = <[Array; 4]>::try_from(outputs).unwrap();
    assert_eq!(act.shape(), w.shape());
    [w, m, v]
}

#[test]
fn libtorch_updates_as_the_ir_says() {
    for (kind, limit) in [(Kind::Double, 1e-12), (Kind::Float, 3e-6)] {
        let mut random = Random::new(Random::fresh_seed());
        let mut wanted = start(&mut random);
        let [mut w, mut m, mut v] = wanted.each_ref().map(|x| to_tensor(x, kind));
        for n_updates in 1..4 {
            let gradient = random.array(&[N], |random| 0.01 * random.normal());
            wanted = defined(&wanted, &gradient, n_updates);
            let clipped = to_tensor(&gradient, kind) * CLIP;
            let mut slot = Slot { master: &mut w, moment_m: &mut m, moment_v: &mut v };
            NUMBERS.update(&mut slot, &clipped, RATE, DECAY, n_updates).unwrap();
        }
        for (found, wanted) in [&w, &m, &v].into_iter().zip(&wanted) {
            let off = worst_difference(&to_array(found), wanted);
            assert!(off < limit, "{kind:?}: off by {off:e}");
        }
    }
}

#[test]
fn the_kernel_updates_as_the_ir_says() {
    cuda::emulate();
    let mut random = Random::new(Random::fresh_seed());
    for kind in [Kind::Float, Kind::BFloat16] {
        // Values that the kernel reads as they are.
        let exact = |x: &Array, kind| to_array(&to_tensor(x, kind).to_kind(Kind::Double));
        let state = start(&mut random).map(|x| exact(&x, Kind::Float));
        let gradient = exact(&random.array(&[N], |random| 0.01 * random.normal()), kind);
        let [w, m, v] = state.each_ref().map(|x| to_tensor(x, Kind::Float));
        let (given, act) = (to_tensor(&gradient, kind), to_tensor(&state[0], Kind::BFloat16));
        let update = Update {
            master: &w,
            moment_m: &m,
            moment_v: &v,
            gradient: &given,
            act: Some(&act),
            lr: RATE,
            weight_decay: DECAY,
        };
        cuda::adamw(&[update], &NUMBERS, CLIP, 7).unwrap();
        for (found, wanted) in [&w, &m, &v].into_iter().zip(&defined(&state, &gradient, 7)) {
            let off = worst_difference(&to_array(&found.to_kind(Kind::Double)), wanted);
            assert!(off < 3e-6, "{kind:?}: off by {off:e}");
        }
        assert!(act.equal(&w.to_kind(Kind::BFloat16)), "the copy is the rounded weight");
        let squares = run(&module(SQUARE).unwrap(), &[gradient], &Store::default()).unwrap();
        let wanted = squares.outputs[0].sum();
        let sums = cuda::square_sums(&[&given]).unwrap().double_value(&[0]);
        for found in [sums, square_sum(&given).unwrap()] {
            assert!((found / wanted - 1.0).abs() < 1e-13, "{found} is not {wanted}");
        }
    }
}
