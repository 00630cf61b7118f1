//! Which op of a step first gives a number that is not finite, and which ops take its time.
//!
//! While a step is watched, every op of [`crate::ops`] that computes with floats shows its result here.
//! Looking at a result waits for the device, so nothing is watched until a step has failed: the
//! trainer then does it again, on the same inputs. Timing an op waits for the device as well.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use crate::ops::describe;
use crate::{Device, Tensor, cuda};

thread_local! {
    static IS_WATCHING: Cell<bool> = const { Cell::new(false) };
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
    static WATCH: RefCell<Watch> = const { RefCell::new(Watch { n_ops: 0, first: None }) };
}

#[derive(Debug, Default)]
struct Watch {
    n_ops: u64,
    first: Option<Found>,
}

/// The first op that gave a number that is not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name, or what the source calls it.
    pub op: String,
    /// Ops with a result that were seen before it.
    pub n_before: u64,
    /// The first such number.
    pub value: f64,
    /// Kind and shape of its inputs, and which of them hold such a number too.
    pub inputs: String,
}

/// Runs `body` and gives what it gives, and the first op in it whose result is not finite.
pub fn first_not_finite<R>(body: impl FnOnce() -> R) -> (R, Option<Found>) {
    WATCH.set(Watch::default());
    IS_WATCHING.set(true);
    let result = body();
    IS_WATCHING.set(false);
    (result, WATCH.take().first)
}

/// What the calls of one op on inputs of the same shapes take.
#[derive(Debug, Clone, PartialEq)]
pub struct OpTime {
    /// Its name, or what the source calls it.
    pub op: String,
    /// Kinds and shapes of its inputs.
    pub inputs: String,
    /// How many calls there were.
    pub calls: u64,
    /// Milliseconds of all of them, from the end of the op before to the end of this one.
    pub ms: f64,
}

#[derive(Debug)]
struct Clock {
    last: Instant,
    times: BTreeMap<(String, String), (u64, f64)>,
}

/// Runs `body` and gives what it gives, and what each op in it took, the longest first. The device is
/// waited for after each op, so the sum is more than what `body` takes alone.
pub fn op_times<R>(body: impl FnOnce() -> R) -> (R, Vec<OpTime>) {
    CLOCK.set(Some(Clock { last: Instant::now(), times: BTreeMap::new() }));
    IS_WATCHING.set(true);
    let result = body();
    IS_WATCHING.set(false);
    let times = CLOCK.take().map(|clock| clock.times).unwrap_or_default();
    let row = |((op, inputs), (calls, ms))| OpTime { op, inputs, calls, ms };
    let mut rows: Vec<OpTime> = times.into_iter().map(row).collect();
    rows.sort_by(|x, y| y.ms.total_cmp(&x.ms));
    (result, rows)
}

fn tick(clock: &mut Clock, op: &str, inputs: &[&Tensor], result: &Tensor) {
    if let Device::Cuda(ordinal) = result.device() {
        // A device that cannot be waited for fails the next call, which says why.
        let _ = cuda::synchronize(ordinal);
    }
    let taken = clock.last.elapsed().as_secs_f64() * 1e3;
    let (calls, ms) = clock.times.entry((op.to_owned(), describe(inputs))).or_default();
    *calls += 1;
    *ms += taken;
    clock.last = Instant::now();
}

/// Shows the result of an op. Does nothing while nothing is watched.
pub fn shown(op: &str, inputs: &[&Tensor], result: &Tensor) {
    if !IS_WATCHING.get() {
        return;
    }
    let is_timed = CLOCK.with_borrow_mut(|clock| {
        clock.as_mut().map(|clock| tick(clock, op, inputs, result)).is_some()
    });
    if is_timed {
        return;
    }
    WATCH.with_borrow_mut(|watch| {
        if watch.first.is_none() {
            // What cannot be looked at cannot be blamed.
            let value = bad_value(result).unwrap_or(None);
            watch.first = value.map(|value| Found {
                op: op.to_owned(),
                n_before: watch.n_ops,
                value,
                inputs: described(inputs),
            });
        }
        watch.n_ops += 1;
    });
}

fn described(inputs: &[&Tensor]) -> String {
    let each = inputs.iter().map(|input| {
        let own = format!("{:?}{:?}", input.kind(), input.size());
        match bad_value(input) {
            Ok(Some(value)) => format!("{own} that holds {value}"),
            _ => own,
        }
    });
    each.collect::<Vec<_>>().join(", ")
}

fn bad_value(tensor: &Tensor) -> crate::Result<Option<f64>> {
    if !crate::ops::is_float(tensor.kind()) {
        return Ok(None);
    }
    crate::trainer::first_not_finite(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn the_first_of_several_is_found_and_nothing_is_seen_outside() {
        let x = Tensor::from_slice(&[0.0f32, 1.0]);
        let run = || {
            let y = ops::add(&x, &x)?;
            let y = ops::ln(&y)?;
            ops::exp(&ops::sub(&y, &y)?)
        };
        let (ran, found) = first_not_finite(run);
        assert!(ran.is_ok());
        let found = found.expect("ln of 0");
        assert_eq!((found.op.as_str(), found.n_before), ("ln", 1));
        assert_eq!(found.value, f64::NEG_INFINITY);
        assert_eq!(found.inputs, "Float[2]");
        let (_, found) = first_not_finite(|| ops::add(&x, &x));
        assert_eq!(found, None);
        let _ = run();
        assert!(WATCH.with_borrow(|watch| watch.first.is_none()));
    }

    #[test]
    fn calls_on_the_same_shapes_are_timed_together() {
        let (x, y) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[1.0f32]));
        let ((), times) = op_times(|| {
            for x in [&x, &x, &y] {
                let _ = ops::exp(x);
            }
        });
        let calls =
            |inputs: &str| times.iter().find(|row| row.inputs == inputs).map(|row| row.calls);
        assert_eq!((calls("Float[2]"), calls("Float[1]")), (Some(2), Some(1)));
        assert!(times.iter().all(|row| row.op == "exp" && row.ms >= 0.0));
        let _ = ops::exp(&x);
        let ((), times) = op_times(|| ());
        assert_eq!(times, []);
    }

    #[test]
    fn inputs_that_are_not_finite_are_told() {
        let x = Tensor::from_slice(&[f32::NAN]);
        let (_, found) = first_not_finite(|| ops::silu(&x));
        assert_eq!(found.expect("is found").inputs, "Float[1] that holds NaN");
    }
}
