//! The law of one coordinate of a uniform point on the unit sphere in n dimensions, of density
//! proportional to `(1 - x^2)^((n - 3) / 2)`: what a row of a weight looks like after a random turn,
//! divided by its length.
//!
//! With `x = 1 - 2 t` the law of t is Beta(a, a), `a = (n - 1) / 2`, so the probability below is a
//! regularised incomplete beta function. It is computed here and not taken from a crate because the
//! levels made of it are part of a format: logarithm and exponential come from `libm`, which is the
//! same on every platform, and the inverse is a bisection down to neighbouring numbers.

/// The x in `[0, 1]` that a coordinate is above with probability `tail`, for `0 < tail < 1/2`.
pub(crate) fn upper_quantile(n: usize, tail: f64) -> f64 {
    if n == 1 {
        // The sphere is the two points -1 and 1.
        return 1.0;
    }
    let a = (n as f64 - 1.0) / 2.0;
    let (mut low, mut high) = (0.0, 1.0);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle;
        }
        // The probability above falls as x grows.
        if above(a, middle) > tail { low = middle } else { high = middle }
    }
}

/// The probability that a coordinate is above `x >= 0`: I_t(a, a) at `t = (1 - x) / 2`.
fn above(a: f64, x: f64) -> f64 {
    let t = 0.5 * (1.0 - x);
    if t <= 0.0 {
        return 0.0;
    }
    // t^a (1 - t)^a / (a B(a, a)); 4 t (1 - t) = 1 - x^2, without loss where x is small.
    let log_beta = 2.0 * libm::lgamma(a) - libm::lgamma(2.0 * a);
    let log_power = a * (libm::log1p(-x * x) - 2.0 * std::f64::consts::LN_2);
    libm::exp(log_power - log_beta) / a * fraction(a, t)
}

/// The continued fraction of the incomplete beta function with both parameters a, by Lentz's
/// method; it converges fast for t up to a half.
fn fraction(a: f64, t: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const STEPS: u32 = 100_000;
    let guarded = |x: f64| if x.abs() < TINY { TINY } else { x };
    let mut c = 1.0;
    let mut d = 1.0 / guarded(1.0 - 2.0 * a * t / (a + 1.0));
    let mut value = d;
    for step in 1..STEPS {
        let m = f64::from(step);
        let even = m * (a - m) * t / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guarded(1.0 + even * d);
        c = guarded(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (2.0 * a + m) * t / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guarded(1.0 + odd * d);
        c = guarded(1.0 + odd / c);
        value *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laws_that_have_a_closed_form() {
        for tail in [0.001, 0.1, 0.25, 0.4, 0.4999] {
            // On the circle x is the cosine of a uniform angle.
            let circle = libm::cos(std::f64::consts::PI * tail);
            assert!((upper_quantile(2, tail) - circle).abs() < 1e-13);
            // In three dimensions it is uniform.
            assert!((upper_quantile(3, tail) - (1.0 - 2.0 * tail)).abs() < 1e-14);
            // In five its probability above x is (2 - 3 x + x^3) / 4.
            let x = upper_quantile(5, tail);
            assert!(((2.0 - 3.0 * x + x * x * x) / 4.0 - tail).abs() < 1e-14);
            assert_eq!(upper_quantile(1, tail), 1.0);
        }
    }

    #[test]
    fn long_rows_are_nearly_normal() {
        // The upper quartile and the 0.975 quantile of the normal law; off by about 1/n.
        for n in [4096, 65536] {
            let scaled = |tail| upper_quantile(n, tail) * (n as f64).sqrt();
            assert!((scaled(0.25) - 0.674_489_750_196_081_7).abs() < 2.0 / n as f64);
            assert!((scaled(0.025) - 1.959_963_984_540_054).abs() < 2.0 / n as f64);
        }
    }

    #[test]
    fn probabilities_agree_with_a_sum_of_the_density() {
        for n in [4, 17, 300] {
            let power = (n as f64 - 3.0) / 2.0;
            let steps = 400_000;
            let sum = |from: f64| -> f64 {
                let width = (1.0 - from) / f64::from(steps);
                let at = |i: i32| from + (f64::from(i) + 0.5) * width;
                (0..steps).map(|i| libm::pow(1.0 - at(i) * at(i), power)).sum::<f64>() * width
            };
            let half = sum(0.0);
            for x in [0.01, 0.1, 0.5] {
                let wanted = 0.5 * sum(x) / half;
                let got = above((n as f64 - 1.0) / 2.0, x);
                assert!((got - wanted).abs() < 1e-7, "n {n}, x {x}: {got} and {wanted}");
            }
        }
    }
}
