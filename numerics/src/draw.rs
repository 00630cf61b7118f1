//! Randomness as a function: a draw depends on (seed, path, element index) and
//! on nothing else.
//!
//! The key of a path's ChaCha8 stream is the BLAKE3 derived key of the seed and
//! the path; element `i` reads the four 32-bit words from `4 i`. So tensors can
//! be drawn in any order, in parts, or alone, with the same bits. Logarithm and
//! cosine come from `libm`, which is the same on every platform.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

const CONTEXT: &str = "lightc 2026 random stream of a path";
const WORDS_PER_ELEMENT: u128 = 4;
/// 2 to the power -53: the spacing of the uniform draws.
const UNIT: f64 = 1.0 / (1u64 << 53) as f64;

/// The distribution of a draw. Draws are made in f64 and rounded by the caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Law {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One value everywhere.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on `[low, high)`.
    Uniform {
        /// Lower end, included.
        low: f64,
        /// Upper end, excluded.
        high: f64,
    },
    /// `ln` of a uniform draw on `(low, high]`, so that `low` can be 0.
    LogUniform {
        /// Lower end of the draw, excluded.
        low: f64,
        /// Upper end of the draw, included.
        high: f64,
    },
}

/// The stream of one path.
#[derive(Debug, Clone)]
pub struct Stream {
    rng: ChaCha8Rng,
}

/// The two raw 53-bit numbers of one element.
type Pair = (u64, u64);

/// The key of the stream of a path under a seed, for who draws elsewhere.
pub fn key(seed: u64, path: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&seed.to_le_bytes());
    hasher.update(path.as_bytes());
    *hasher.finalize().as_bytes()
}

impl Stream {
    /// The stream of a path under a seed.
    pub fn new(seed: u64, path: &str) -> Self {
        Stream { rng: ChaCha8Rng::from_seed(key(seed, path)) }
    }

    /// The draw of one element.
    pub fn at(&mut self, law: Law, index: u64) -> f64 {
        self.rng.set_word_pos(u128::from(index) * WORDS_PER_ELEMENT);
        value(law, self.next_pair())
    }

    /// The draws of the first `n_elements` elements.
    pub fn fill(&mut self, law: Law, n_elements: usize) -> Vec<f64> {
        self.range(law, 0, n_elements)
    }

    /// The draws of `n_elements` elements from `start` on.
    pub fn range(&mut self, law: Law, start: u64, n_elements: usize) -> Vec<f64> {
        self.rng.set_word_pos(u128::from(start) * WORDS_PER_ELEMENT);
        (0..n_elements).map(|_| value(law, self.next_pair())).collect()
    }

    /// A random order of `n` positions: by the raw draw of each, of equal ones the smaller position
    /// first. Its first `k` are a random subset, and that of `k + 1` contains that of `k`.
    pub fn permutation(&mut self, n: usize) -> Vec<u64> {
        self.rng.set_word_pos(0);
        let mut order: Vec<(u64, u64)> = (0..n as u64).map(|i| (self.next_pair().0, i)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, position)| position).collect()
    }

    fn next_pair(&mut self) -> Pair {
        (self.rng.next_u64() >> 11, self.rng.next_u64() >> 11)
    }
}

fn value(law: Law, pair: Pair) -> f64 {
    // On [0, 1).
    let fraction = pair.0 as f64 * UNIT;
    match law {
        Law::Zeros => 0.0,
        Law::Ones => 1.0,
        Law::Constant(value) => value,
        Law::Normal { std } => std * standard_normal(pair),
        Law::Uniform { low, high } => low + (high - low) * fraction,
        Law::LogUniform { low, high } => libm::log(high - (high - low) * fraction),
    }
}

/// Box and Muller's cosine branch; the logarithm's argument is on (0, 1].
fn standard_normal(pair: Pair) -> f64 {
    let radius = libm::sqrt(-2.0 * libm::log((pair.0 + 1) as f64 * UNIT));
    radius * libm::cos(std::f64::consts::TAU * pair.1 as f64 * UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: Law = Law::Normal { std: 1.0 };

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_bits_are_pinned() {
        let drawn = Stream::new(1337, "layers.0.q").fill(NORMAL, 2);
        let bits: Vec<String> = drawn.iter().map(|x| format!("{:016x}", x.to_bits())).collect();
        insta::assert_snapshot!("pinned_bits", bits.join(" "));
    }

    #[test]
    fn an_element_does_not_depend_on_the_order_of_drawing() {
        for law in [NORMAL, Law::Uniform { low: -1.0, high: 2.0 }] {
            let all = Stream::new(1, "a").fill(law, 100);
            let mut stream = Stream::new(1, "a");
            for index in [99, 0, 57, 56, 57] {
                assert_eq!(stream.at(law, index).to_bits(), all[index as usize].to_bits());
            }
        }
    }

    #[test]
    fn a_permutation_has_every_position_once() {
        let order = Stream::new(1, "p").permutation(100);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(order, sorted);
        assert_ne!(order, Stream::new(1, "q").permutation(100));
        assert_eq!(order, Stream::new(1, "p").permutation(100));
        assert_eq!(Stream::new(1337, "p").permutation(8), [0, 1, 4, 6, 2, 7, 3, 5]);
    }

    #[test]
    fn seeds_and_paths_give_different_streams() {
        let first = |seed, path| Stream::new(seed, path).fill(NORMAL, 8);
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let normal = Stream::new(3, "n").fill(Law::Normal { std: 2.0 }, 200_000);
        assert!(mean(&normal).abs() < 0.02);
        let square: Vec<f64> = normal.iter().map(|x| x * x).collect();
        assert!((mean(&square) - 4.0).abs() < 0.05);
        let uniform = Stream::new(3, "u").fill(Law::Uniform { low: -0.01, high: 0.01 }, 100_000);
        assert!(uniform.iter().all(|x| (-0.01..0.01).contains(x)));
        assert!(mean(&uniform).abs() < 1e-4);
        // E ln U on (0, 16] is ln 16 - 1.
        let log = Stream::new(3, "l").fill(Law::LogUniform { low: 0.0, high: 16.0 }, 200_000);
        assert!(log.iter().all(|x| x.is_finite() && *x <= 16f64.ln()));
        assert!((mean(&log) - (16f64.ln() - 1.0)).abs() < 0.02);
    }

    #[test]
    fn the_extreme_draws_are_finite() {
        let last = (1 << 53) - 1;
        for pair in [(0, 0), (last, last), (0, last), (last, 0)] {
            let log = Law::LogUniform { low: 0.0, high: 16.0 };
            for law in [NORMAL, log, Law::Uniform { low: 0.0, high: 1.0 }] {
                assert!(value(law, pair).is_finite(), "{law:?} {pair:?}");
            }
        }
    }
}
