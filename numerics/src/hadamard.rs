//! Random signs and the Walsh-Hadamard transform. One form serves the interpreter (f64) and the
//! runtime (f32 and f64), so that the turn of a stored weight and that of an activation are one.
//!
//! The order of additions is fixed: stages of stride 1, 2, 4, .., each pair (a, b) becoming
//! (a + b, a - b), and one multiplication by 1/sqrt(n) at the end.

use crate::draw::{Law, Stream};
use std::ops::{Add, Mul, Neg, Sub};

/// An element that can be turned.
pub trait Element:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Neg<Output = Self>
{
    /// The nearest value.
    fn of(value: f64) -> Self;
}

impl Element for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// The turn `y = H diag(s) x / sqrt(n)` for one length and one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hadamard {
    negative: Vec<bool>,
}

impl Hadamard {
    /// The turn of rows of length `n`; `None` if that is not a power of two. Sign i is minus where
    /// draw i of the stream `hadamard.SEED`, uniform on `[0, 1)`, is below a half; so a shorter
    /// row has the first signs of a longer one.
    pub fn new(seed: i64, n: usize) -> Option<Self> {
        if !n.is_power_of_two() {
            return None;
        }
        let mut stream = Stream::new(seed as u64, &format!("hadamard.{seed}"));
        let draws = stream.fill(Law::Uniform { low: 0.0, high: 1.0 }, n);
        Some(Hadamard { negative: draws.into_iter().map(|draw| draw < 0.5).collect() })
    }

    /// The signs, as 1 and -1.
    pub fn signs(&self) -> impl Iterator<Item = f64> {
        self.negative.iter().map(|negative| if *negative { -1.0 } else { 1.0 })
    }

    /// Turns a row in place. Its length is that of the turn; a longer one is cut into several.
    pub fn apply<T: Element>(&self, row: &mut [T]) {
        for row in row.chunks_exact_mut(self.negative.len()) {
            self.sign(row);
            transform(row);
        }
    }

    /// The transpose of [`Hadamard::apply`], which is its inverse.
    pub fn undo<T: Element>(&self, row: &mut [T]) {
        for row in row.chunks_exact_mut(self.negative.len()) {
            transform(row);
            self.sign(row);
        }
    }

    fn sign<T: Element>(&self, row: &mut [T]) {
        for (x, negative) in row.iter_mut().zip(&self.negative) {
            if *negative {
                *x = -*x;
            }
        }
    }
}

/// `H x / sqrt(n)`; the length is a power of two.
fn transform<T: Element>(row: &mut [T]) {
    let mut stride = 1;
    while stride < row.len() {
        for pair in row.chunks_exact_mut(2 * stride) {
            let (left, right) = pair.split_at_mut(stride);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let scale = T::of(1.0 / libm::sqrt(row.len() as f64));
    for x in row {
        *x = *x * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u64, n: usize) -> Vec<f64> {
        Stream::new(seed, "row").fill(Law::Normal { std: 1.0 }, n)
    }

    #[test]
    fn it_is_the_matrix_it_says() {
        for n in [1, 2, 8, 32] {
            let turn = Hadamard::new(42, n).unwrap();
            let (x, signs): (_, Vec<f64>) = (row(7, n), turn.signs().collect());
            let mut y = x.clone();
            turn.apply(&mut y);
            for (i, y) in y.iter().enumerate() {
                // Entry [i, j] of the Sylvester matrix: the parity of the bits that both have.
                let entry = |j: usize| 1.0 - 2.0 * f64::from((i & j).count_ones() % 2);
                let sum: f64 = (0..n).map(|j| entry(j) * signs[j] * x[j]).sum();
                assert!((y - sum / (n as f64).sqrt()).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn it_keeps_the_norm_and_is_undone_by_its_transpose() {
        for n in [1, 2, 4, 1024] {
            let turn = Hadamard::new(3, n).unwrap();
            let x = row(1, n);
            let mut y = x.clone();
            turn.apply(&mut y);
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
            assert!((norm(&x) - norm(&y)).abs() < 1e-11 * norm(&x));
            turn.undo(&mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-13));

            let mut narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
            turn.apply(&mut narrow);
            turn.undo(&mut narrow);
            assert!(x.iter().zip(&narrow).all(|(x, y)| (x - f64::from(*y)).abs() < 1e-5));
        }
    }

    #[test]
    fn an_outlier_is_spread_evenly() {
        let mut x = vec![0.0_f64; 4096];
        x[77] = 64.0;
        Hadamard::new(42, 4096).unwrap().apply(&mut x);
        assert!(x.iter().all(|x| x.abs() == 1.0));
    }

    #[test]
    fn the_signs_are_pinned_and_depend_on_the_seed() {
        let signs = |seed, n| -> String {
            let turn = Hadamard::new(seed, n).unwrap();
            turn.signs().map(|sign| if sign < 0.0 { '-' } else { '+' }).collect()
        };
        insta::assert_snapshot!("pinned_signs", signs(42, 64));
        assert_eq!(signs(42, 8), signs(42, 64)[..8]);
        assert_ne!(signs(42, 64), signs(43, 64));
        let minus = signs(42, 4096).matches('-').count();
        assert!((1900..2196).contains(&minus), "{minus}");
    }

    #[test]
    fn other_lengths_have_no_turn() {
        assert_eq!(Hadamard::new(42, 0), None);
        assert_eq!(Hadamard::new(42, 3), None);
        assert_eq!(Hadamard::new(42, 48), None);
    }
}
