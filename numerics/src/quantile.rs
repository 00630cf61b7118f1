//! The format `quantile8`: a row is its length times a direction, and each coordinate of the
//! direction the nearest of 256 levels.
//!
//! The levels are the quantiles `F^-1((i + 1/2) / 256)` of one coordinate of a uniform direction in
//! `n` dimensions, whose density is proportional to `(1 - x^2)^((n - 3) / 2)`. With `x = sin(a)`
//! that is `cos(a)^(n - 2)`, which is integrated by Simpson's rule. Codes are kept as
//! `level - 128`, so that they are `i8`.

/// Number of levels.
pub const LEVELS: usize = 256;
/// Intervals of the integration of one half; even.
const STEPS: usize = 8192;

/// The levels for rows of `n` elements, rising and symmetric. A row of one element has a direction
/// of one sign.
pub fn levels(n: usize) -> [f32; LEVELS] {
    let mut levels = [0.0; LEVELS];
    let half = upper_half(n);
    for (i, level) in half.iter().enumerate() {
        levels[LEVELS / 2 + i] = *level as f32;
        levels[LEVELS / 2 - 1 - i] = -*level as f32;
    }
    levels
}

/// The levels above 0.
fn upper_half(n: usize) -> [f64; LEVELS / 2] {
    if n < 2 {
        return [1.0; LEVELS / 2];
    }
    let power = (n - 2) as f64;
    // Beyond this angle the density is below 1e-30 of its peak.
    let last = std::f64::consts::FRAC_PI_2.min(12.0 / libm::sqrt(n as f64));
    let step = last / STEPS as f64;
    let density = |angle: f64| {
        let cosine = libm::cos(angle);
        if cosine > 0.0 { libm::exp(power * libm::log(cosine)) } else { 0.0f64.powf(power) }
    };
    // Mass up to each even point.
    let mut mass = vec![0.0];
    for i in (0..STEPS).step_by(2) {
        let at = |k: usize| density((i + k) as f64 * step);
        let part = (at(0) + 4.0 * at(1) + at(2)) * step / 3.0;
        mass.push(mass[mass.len() - 1] + part);
    }
    let total = mass[mass.len() - 1];
    let mut half = [0.0; LEVELS / 2];
    let mut cell = 0;
    for (i, level) in half.iter_mut().enumerate() {
        let wanted = total * (2 * i + 1) as f64 / LEVELS as f64;
        while cell + 2 < mass.len() && mass[cell + 1] < wanted {
            cell += 1;
        }
        let share = (wanted - mass[cell]) / (mass[cell + 1] - mass[cell]);
        *level = libm::sin((cell as f64 + share) * 2.0 * step);
    }
    half
}

/// Codes and one scale per row of `n` elements. The nearest level is taken, of two equally near the
/// lower; a row of zeros has scale 0.
pub fn quantize(values: &[f64], n: usize) -> (Vec<i8>, Vec<f32>) {
    let levels = levels(n);
    let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
    for row in values.chunks(n.max(1)) {
        let scale = libm::sqrt(row.iter().map(|x| x * x).sum()) as f32;
        let unit = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
        codes.extend(row.iter().map(|x| nearest(&levels, x * unit)));
        scales.push(scale);
    }
    (codes, scales)
}

fn nearest(levels: &[f32; LEVELS], value: f64) -> i8 {
    let above = levels.partition_point(|level| f64::from(*level) < value).min(LEVELS - 1);
    let below = above.saturating_sub(1);
    let far = |i: usize| (f64::from(levels[i]) - value).abs();
    let index = if far(below) <= far(above) { below } else { above };
    (index as i32 - 128) as i8
}

/// The element of a code: `level * scale`, in 32 bits.
pub fn value(levels: &[f32; LEVELS], code: i8, scale: f32) -> f32 {
    levels[(i32::from(code) + 128) as usize] * scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Law, Stream};

    #[test]
    fn levels_rise_and_are_symmetric() {
        for n in [2, 3, 64, 1024, 4096] {
            let levels = levels(n);
            assert!(levels.windows(2).all(|pair| pair[0] < pair[1]), "{n}");
            for i in 0..LEVELS {
                assert_eq!(levels[i], -levels[LEVELS - 1 - i]);
            }
        }
    }

    /// In two dimensions the angle is uniform; in three the coordinate is.
    #[test]
    fn levels_of_small_spheres_are_known() {
        let (two, three) = (levels(2), levels(3));
        for i in 0..LEVELS {
            let p = (i as f64 + 0.5) / LEVELS as f64;
            let angle = (std::f64::consts::PI * (p - 0.5)).sin();
            assert!((f64::from(two[i]) - angle).abs() < 1e-6, "{i}");
            assert!((f64::from(three[i]) - (2.0 * p - 1.0)).abs() < 1e-6, "{i}");
        }
    }

    /// The specification measured 31.0 dB on Gaussian rows, and the top level at 2.885 sigma.
    #[test]
    fn signal_to_noise_is_that_of_the_specification() {
        let n = 4096;
        let top = f64::from(levels(n)[255]) * (n as f64).sqrt();
        assert!((top - 2.885).abs() < 2e-3, "{top}");
        let values = Stream::new(5, "rows").fill(Law::Normal { std: 1.0 }, 64 * n);
        let (codes, scales) = quantize(&values, n);
        let levels = levels(n);
        let (mut signal, mut noise) = (0.0, 0.0);
        for (i, x) in values.iter().enumerate() {
            let y = f64::from(value(&levels, codes[i], scales[i / n]));
            signal += x * x;
            noise += (x - y) * (x - y);
        }
        let ratio = 10.0 * (signal / noise).log10();
        assert!((ratio - 31.0).abs() < 0.3, "{ratio} dB");
    }
}
