//! Steps in fixed point: the native loops against the composition of libtorch calls and against
//! the scalar rule, and inverses of both.

use lightc_numerics::fixed::{HALF_RANGE, Step, quantize, unpack};
use lightc_runtime::ops::{self, Force};
use lightc_runtime::{Device, Kind, Tensor};

use super::support::{Outcome, Rng};

fn states(rng: &mut Rng, n: usize, bound: i64) -> Tensor {
    let all: Vec<i32> = (0..n).map(|_| rng.int(-bound, bound - 1) as i32).collect();
    Tensor::from_slice(&all)
}

fn values(rng: &mut Rng, n: usize, size: f64, kind: Kind) -> Tensor {
    let all: Vec<f64> = (0..n).map(|_| rng.real(-size, size)).collect();
    Tensor::from_slice(&all).to_kind(kind)
}

#[test]
fn native_and_composite_steps_and_inverses_are_one() -> Outcome {
    let mut rng = Rng::fresh();
    for (numerator, bits) in [(0, 0), (1, 0), (1, 1), (3, 2), (5, 3), (11, 4), (99, 7), (255, 8)] {
        // More than one chunk, and not a whole number of bytes.
        for (n, bound) in [(1, 1 << 20), (77, 1 << 31), (40_003, 1 << 31)] {
            for kind in [Kind::Float, Kind::Double] {
                let step = Step::new(numerator, bits, 0.5, 20);
                let (before, now) = (states(&mut rng, n, bound), states(&mut rng, n, bound));
                let (p, y) = (values(&mut rng, n, 2e3, kind), values(&mut rng, n, 2e3, kind));
                if n > 1 {
                    for (index, odd) in [f64::NAN, f64::INFINITY, -1e30].into_iter().enumerate() {
                        let _ = y.narrow(0, index as i64, 1).fill_(odd);
                    }
                }
                let force = Force { p: &p, y: &y, gate: 0.75 };
                let native = ops::fixed_step(&step, &before, &now, &force)?;
                let composite = ops::step_composite(&step, &before, &now, &force)?;
                let what = format!("{step:?}, n = {n}, {kind:?}");
                assert!(native.next.equal(&composite.next), "{what}");
                assert_eq!(native.beyond, composite.beyond, "{what}");
                match (&native.kept, &composite.kept) {
                    (Some(a), Some(b)) => assert!(a.equal(b), "{what}"),
                    (None, None) => assert_eq!(bits, 0),
                    _ => panic!("{what}"),
                }
                if numerator == 0 {
                    continue;
                }
                let kept = native.kept.as_ref();
                let back = ops::fixed_inverse(&step, &native.next, kept, &now, &force)?;
                assert!(back.equal(&before), "{what}");
                let back = ops::inverse_composite(&step, &native.next, kept, &now, &force)?;
                assert!(back.equal(&before), "{what}, composite");
            }
        }
    }
    Ok(())
}

#[test]
fn a_step_is_the_scalar_rule_on_each_element() -> Outcome {
    let mut rng = Rng::fresh();
    let n = 1001;
    let step = Step::new(3, 2, 0.25, 18);
    let (before, now) = (states(&mut rng, n, 1 << 24), states(&mut rng, n, 1 << 24));
    let (p, y) = (values(&mut rng, n, 9.0, Kind::Float), values(&mut rng, n, 9.0, Kind::Float));
    let made = ops::fixed_step(&step, &before, &now, &Force { p: &p, y: &y, gate: -2.0 })?;
    let packed = Vec::<u8>::try_from(made.kept.as_ref().ok_or("bits")?)?;
    assert_eq!(packed.len(), n.div_ceil(4));
    for i in 0..n {
        let at = i as i64;
        let state = |t: &Tensor| t.int64_value(&[at]) as i32;
        let force = -2.0 * (y.double_value(&[at]) - p.double_value(&[at]));
        let wanted = step.forward(state(&before), state(&now), force);
        assert_eq!(state(&made.next), wanted.next);
        assert_eq!(unpack(&packed, i, 2), wanted.kept);
    }
    Ok(())
}

#[test]
fn states_and_values() -> Outcome {
    let mut rng = Rng::fresh();
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let x = values(&mut rng, 70_001, 900.0, kind).reshape([1, 70_001]);
        let (state, beyond) = ops::fixed_quantize(&x, 20)?;
        assert_eq!((state.size(), state.kind(), beyond), (vec![1, 70_001], Kind::Int, 0));
        for at in [0, 17, 70_000] {
            let wanted = quantize(x.double_value(&[0, at]), 20).0;
            assert_eq!(state.int64_value(&[0, at]), i64::from(wanted));
        }
        let back = ops::fixed_value(&state, 20, kind)?;
        let off = (&back - &x).abs().max().double_value(&[]);
        assert!(off <= if kind == Kind::BFloat16 { 4.0 } else { 1e-4 }, "{kind:?}: {off}");
    }
    let far = Tensor::from_slice(&[0.0, 1024.0, 1024.1, -1e9, f64::NAN]);
    assert_eq!(ops::fixed_quantize(&far, 20)?.1, 3);
    assert_eq!(HALF_RANGE, 1024 << 20);
    Ok(())
}

#[test]
fn packed_truth_values_come_back() -> Outcome {
    let mut rng = Rng::fresh();
    for n in [0_usize, 1, 8, 13, 1000] {
        let all: Vec<bool> = (0..n).map(|_| rng.int(0, 1) == 1).collect();
        let x = Tensor::from_slice(&all).reshape([1, n as i64]);
        let packed = ops::pack_bools(&x)?;
        assert_eq!(packed.numel(), n.div_ceil(8));
        assert!(ops::unpack_bools(&packed, &[1, n as i64])?.equal(&x));
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let step = Step::new(1, 1, 0.5, 20);
    let state = Tensor::zeros([4], (Kind::Int, Device::Cpu));
    let x = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let short = Tensor::zeros([3], (Kind::Float, Device::Cpu));
    let force = Force { p: &x, y: &x, gate: 1.0 };
    assert!(ops::fixed_step(&step, &state, &x, &force).is_err());
    let uneven = Force { p: &x, y: &short, gate: 1.0 };
    assert!(ops::fixed_step(&step, &state, &state, &uneven).is_err());
    assert!(ops::fixed_inverse(&step, &state, None, &state, &force).is_err());
    assert!(ops::fixed_value(&x, 20, Kind::Float).is_err());
    assert!(ops::fixed_quantize(&state, 20).is_err());
}
