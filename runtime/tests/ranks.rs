//! Ranks in one process: sums in a fixed order, and ranks that leave or disagree.

#![allow(clippy::expect_used, reason = "a failed step is a failed test")]

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::thread;

use lightc_runtime::ranks::{self, Communicator, OneRank, ThreadRank};
use lightc_runtime::{Kind, Result, Tensor, ops};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Runs `body` on every rank, each on a thread of its own with its communicator set.
fn on_ranks<R: Send>(n: usize, body: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let run = |rank: ThreadRank| {
        let index = rank.rank();
        ranks::within(Rc::new(rank), || body(index))
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            ranks::threads(n).into_iter().map(|rank| scope.spawn(|| run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect()
    })
}

#[test]
fn one_rank_has_its_own() -> Outcome {
    let x = Tensor::from_slice(&[1.0f32, 2.0]);
    assert!(ops::sum_ranks(&x)?.equal(&x));
    assert_eq!((ranks::current().rank(), ranks::current().n_ranks()), (0, 1));
    Ok(())
}

#[test]
fn eight_ranks_add_up_in_order() {
    // Numbers whose sum depends on the order; the same bits must come every time.
    let value = |rank: usize, round: usize, i: usize| {
        let number = (rank * 7919 + round * 104_729 + i * 1_299_709) % 1000;
        (number as f32 - 500.0) * 10f32.powi(rank as i32 - 4)
    };
    let rounds = 50;
    let sums = on_ranks(8, |rank| -> Result<Vec<Vec<f32>>> {
        assert_eq!(ranks::current().n_ranks(), 8);
        let mut sums = Vec::new();
        for round in 0..rounds {
            let given: Vec<f32> = (0..20).map(|i| value(rank, round, i)).collect();
            if (rank + round) % 5 == 0 {
                thread::yield_now();
            }
            sums.push(Vec::<f32>::try_from(&ops::sum_ranks(&Tensor::from_slice(&given))?)?);
        }
        Ok(sums)
    });
    for sum in sums {
        let sum = sum.expect("the sums");
        for (round, sum) in sum.iter().enumerate() {
            for (i, sum) in sum.iter().enumerate() {
                let want = (0..8).fold(0.0f32, |total, rank| total + value(rank, round, i));
                assert_eq!(sum.to_bits(), want.to_bits());
            }
        }
    }
}

#[test]
fn counts_over_ranks_are_those_of_the_whole_batch() {
    let ids: Vec<i64> = (0..8 * 30).map(|i| i * i % 11 - 2).collect();
    let whole = |ids: &[i64]| {
        let like = Tensor::from_slice(&[0.0f32]);
        ops::count(&Tensor::from_slice(ids), 9, &like)
    };
    let all = whole(&ids).expect("counts");
    for sum in on_ranks(8, |rank| ops::sum_ranks(&whole(&ids[rank * 30..][..30])?)) {
        assert!(sum.expect("a sum").equal(&all));
    }
}

#[test]
fn a_rank_that_leaves_is_an_error_for_the_others() {
    let results = on_ranks(3, |rank| {
        let x = Tensor::from_slice(&[1.0f32]);
        let first = ops::sum_ranks(&x).map(|sum| sum.double_value(&[0]));
        assert_eq!(first.expect("all are there"), 3.0);
        if rank == 1 { None } else { ops::sum_ranks(&x).err() }
    });
    for (rank, error) in results.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let text = error.expect("it cannot go on").to_string();
        // The first to notice leaves too, and then it is the one that is missed.
        assert!(text.starts_with("sum_ranks: rank "), "{text}");
        assert!(text.ends_with(&format!("has left while rank {rank} waits for it")), "{text}");
    }
}

#[test]
fn ranks_that_disagree_all_fail() {
    let results = on_ranks(2, |rank| {
        ops::sum_ranks(&Tensor::zeros([rank as i64 + 1], (Kind::Float, tch::Device::Cpu)))
    });
    for result in results {
        let text = result.expect_err("the shapes differ").to_string();
        assert!(text.starts_with("sum_ranks: one rank gives Float["), "{text}");
    }
}

#[test]
fn the_communicator_from_before_comes_back() {
    struct Two;
    impl Communicator for Two {
        fn rank(&self) -> usize {
            1
        }
        fn n_ranks(&self) -> usize {
            2
        }
        fn sum(&self, x: &Tensor) -> Result<Tensor> {
            ops::affine(x, 2.0, 0.0)
        }
    }
    let inside = ranks::within(Rc::new(Two), || {
        ranks::within(Rc::new(OneRank), || assert_eq!(ranks::current().n_ranks(), 1));
        ranks::current().n_ranks()
    });
    assert_eq!((inside, ranks::current().n_ranks()), (2, 1));
    let panics = || ranks::within(Rc::new(Two), || panic!("as a test"));
    assert!(std::panic::catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!(ranks::current().n_ranks(), 1);
}
