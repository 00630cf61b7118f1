//! Weights in 8 bits: a code per element and one f32 scale per row.
//!
//! | format | code q | stands for |
//! |---|---|---|
//! | [`Format::Int8`] | -127 ..= 127 | `scale * q`; the scale is the largest magnitude / 127 |
//! | [`Format::Quantile8`] | -128 ..= 127 | `scale * level[q + 128]`; the scale is the row's length |
//!
//! The product is exact in f64 and is rounded once, to the precision it is wanted in. A row of
//! zeros has scale 0; what is not finite has no code.

use crate::sphere::upper_quantile;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How a row is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Evenly spaced, symmetric: codes -127 ..= 127.
    Int8,
    /// 256 levels, each as likely as the others for a coordinate of a uniform point on the unit
    /// sphere in as many dimensions as the row has elements.
    Quantile8,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 2] = [Format::Int8, Format::Quantile8];

    /// Its name in the language.
    pub fn name(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::Quantile8 => "quantile8",
        }
    }

    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// Rows of one length in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// A code per element.
    pub codes: Vec<i8>,
    /// A scale per row.
    pub scales: Vec<f32>,
}

/// An element that no code stands for, or a row whose scale no f32 holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// Where the element or the row begins.
    pub index: usize,
    /// The element, or the length of the row.
    pub value: f64,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "element {} is {}, which 8 bits cannot hold", self.index, self.value)
    }
}

impl std::error::Error for NotFinite {}

/// Puts rows of `n` elements into a format. A last row that is shorter is a row too.
///
/// # Errors
/// The first element that is not finite.
pub fn quantize(format: Format, values: &[f32], n: usize) -> Result<Quantized, NotFinite> {
    let n = n.max(1);
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(NotFinite {
            index,
            value: values.get(index).copied().unwrap_or(f32::NAN).into(),
        });
    }
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len().div_ceil(n));
    let levels = levels(format, n);
    for (row, values) in values.chunks(n).enumerate() {
        let scale = match format {
            Format::Int8 => spacing(values),
            Format::Quantile8 => length(values),
        };
        if !scale.is_finite() {
            return Err(NotFinite { index: row * n, value: f64::from(scale) });
        }
        codes.extend(values.iter().map(|x| code(*x, scale, levels.as_deref())));
        scales.push(scale);
    }
    Ok(Quantized { codes, scales })
}

/// What one code of a row with this scale stands for, exactly. `levels` are those of
/// [`Format::Quantile8`] for the row's length, `None` stands for [`Format::Int8`].
pub fn value(code: i8, scale: f32, levels: Option<&Levels>) -> f64 {
    let unit = match levels {
        None => f64::from(code),
        Some(levels) => f64::from(levels.of(code)),
    };
    unit * f64::from(scale)
}

/// What the codes of rows of `n` elements stand for.
pub fn dequantize(format: Format, quantized: &Quantized, n: usize) -> Vec<f64> {
    let n = n.max(1);
    let levels = levels(format, n);
    let rows = quantized.codes.chunks(n).zip(&quantized.scales);
    rows.flat_map(|(codes, scale)| codes.iter().map(|code| value(*code, *scale, levels.as_deref())))
        .collect()
}

/// The values that come back when these are put into a format and read again.
///
/// # Errors
/// As [`quantize`].
pub fn rounded(format: Format, values: &[f32], n: usize) -> Result<Vec<f64>, NotFinite> {
    Ok(dequantize(format, &quantize(format, values, n)?, n))
}

fn levels(format: Format, n: usize) -> Option<Arc<Levels>> {
    (format == Format::Quantile8).then(|| Levels::of_length(n))
}

fn spacing(row: &[f32]) -> f32 {
    row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0
}

/// The root of the sum of squares, in f64 and in the order of the row.
fn length(row: &[f32]) -> f32 {
    libm::sqrt(row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()) as f32
}

fn code(x: f32, scale: f32, levels: Option<&Levels>) -> i8 {
    let unit = if scale == 0.0 { 0.0 } else { f64::from(x) / f64::from(scale) };
    match levels {
        None => libm::rint(unit).clamp(-127.0, 127.0) as i8,
        Some(levels) => levels.nearest(unit),
    }
}

/// The 256 levels for rows of one length: the quantiles (i + 1/2) / 256 of the law of a coordinate
/// on the unit sphere, in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    levels: Vec<f32>,
    /// Halfway between each level and the next.
    bounds: Vec<f64>,
}

/// The levels that were asked for, by length: a few per stage.
static KNOWN: Mutex<BTreeMap<usize, Arc<Levels>>> = Mutex::new(BTreeMap::new());

impl Levels {
    /// The levels for rows of `n` elements; computed once per length.
    pub fn of_length(n: usize) -> Arc<Levels> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(n).or_insert_with(|| Arc::new(Levels::new(n.max(1)))))
    }

    fn new(n: usize) -> Levels {
        let upper = (0..128).rev().map(|i| upper_quantile(n, (f64::from(i) + 0.5) / 256.0) as f32);
        let upper: Vec<f32> = upper.collect();
        let levels: Vec<f32> =
            upper.iter().rev().map(|level| -level).chain(upper.iter().copied()).collect();
        let bounds = levels
            .windows(2)
            .filter_map(|pair| match pair {
                [a, b] => Some((f64::from(*a) + f64::from(*b)) / 2.0),
                _ => None,
            })
            .collect();
        Levels { levels, bounds }
    }

    /// The levels, rising.
    pub fn all(&self) -> &[f32] {
        &self.levels
    }

    fn of(&self, code: i8) -> f32 {
        let index = (i16::from(code) + 128) as usize;
        self.levels.get(index).copied().unwrap_or_default()
    }

    /// The code of the nearest level; of two as near, of the lower.
    fn nearest(&self, unit: f64) -> i8 {
        let index = self.bounds.partition_point(|bound| *bound < unit);
        (index as i16 - 128) as i8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Law, Stream};

    fn normal(seed: u64, n: usize) -> Vec<f32> {
        let draws = Stream::new(seed, "weights").fill(Law::Normal { std: 0.02 }, n);
        draws.into_iter().map(|x| x as f32).collect()
    }

    /// Signal over error in decibels.
    fn decibels(format: Format, values: &[f32], n: usize) -> f64 {
        let back = rounded(format, values, n).unwrap();
        let signal: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        let error: f64 = values.iter().zip(&back).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum();
        10.0 * (signal / error).log10()
    }

    #[test]
    fn normal_rows_lose_little() {
        let values = normal(1, 64 * 4096);
        let (even, quantiles) =
            (decibels(Format::Int8, &values, 4096), decibels(Format::Quantile8, &values, 4096));
        println!("int8 {even:.2} dB, quantile8 {quantiles:.2} dB");
        assert!((41.0..43.0).contains(&even), "{even}");
        assert!((30.0..32.5).contains(&quantiles), "{quantiles}");
    }

    #[test]
    fn codes_by_hand() {
        let row = [1.27f32, -1.27, 0.0, 0.005, -0.005, 0.015, 0.64];
        let q = quantize(Format::Int8, &row, 7).unwrap();
        assert_eq!(q.scales, [1.27f32 / 127.0]);
        assert_eq!(q.codes[..3], [127, -127, 0]);
        assert_eq!(q.codes[6], 64);
        // Halves go to the even code: a scale of exactly 1.
        let row = [127.0f32, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5];
        let q = quantize(Format::Int8, &row, 7).unwrap();
        assert_eq!(q.codes, [127, 0, 2, 2, 0, -2, -2]);
        assert_eq!(dequantize(Format::Int8, &q, 7), [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0]);
    }

    #[test]
    fn what_is_stored_comes_back_again() {
        // Rounding what was rounded changes nothing: codes and scale are kept.
        for n in [1, 3, 64, 1000] {
            let values = normal(n as u64, 5 * n);
            let q = quantize(Format::Int8, &values, n).unwrap();
            let back: Vec<f32> =
                dequantize(Format::Int8, &q, n).into_iter().map(|x| x as f32).collect();
            let again = quantize(Format::Int8, &back, n).unwrap();
            assert_eq!(again.codes, q.codes);
            for (values, q) in
                values.chunks(n).zip(rounded(Format::Int8, &values, n).unwrap().chunks(n))
            {
                let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let near = |(x, y): (&f32, &f64)| {
                    (f64::from(*x) - y).abs() <= f64::from(largest) / 254.0 * (1.0 + 1e-5)
                };
                assert!(values.iter().zip(q).all(near));
            }
        }
    }

    #[test]
    fn zeros_extremes_and_what_is_not_finite() {
        for format in Format::ALL {
            let q = quantize(format, &[0.0, -0.0, 0.0, 1.0, -1.0, 1.0], 3).unwrap();
            assert_eq!(q.scales[0], 0.0);
            assert_eq!(dequantize(format, &q, 3)[..3], [0.0; 3]);
            assert!(quantize(format, &[], 4).unwrap().codes.is_empty());
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = quantize(format, &[0.0, 1.0, bad], 3).unwrap_err();
                assert_eq!(error.index, 2);
                assert!(error.to_string().contains("element 2 is"));
            }
            // So small that the scale is 0, or not a normal number: nothing but finite values.
            for tiny in [1e-45f32, 3e-44, 2e-40] {
                let back = rounded(format, &[tiny, -tiny, 0.0], 3).unwrap();
                assert!(back.iter().all(|x| x.abs() < 4.0 * f64::from(tiny)), "{back:?}");
            }
        }
        assert_eq!(rounded(Format::Int8, &[f32::MAX], 1).unwrap().len(), 1);
        // The length of this row is over what f32 holds.
        assert_eq!(quantize(Format::Quantile8, &[f32::MAX; 4], 2).unwrap_err().index, 0);
    }

    #[test]
    fn levels_rise_are_symmetric_and_pinned() {
        for n in [2, 3, 64, 1024, 4096] {
            let levels = Levels::of_length(n);
            let all = levels.all();
            assert_eq!(all.len(), 256);
            assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
            assert!((0..128).all(|i| all[i] == -all[255 - i]));
            assert!(all[255] < 1.0);
        }
        assert_eq!(Levels::of_length(3).all()[0], -(1.0 - 1.0 / 256.0));
        let levels = Levels::of_length(4096);
        let bits: Vec<String> =
            [0, 1, 64, 127].map(|i| format!("{:08x}", levels.all()[i].to_bits())).to_vec();
        insta::assert_snapshot!("pinned_levels", bits.join(" "));
    }

    #[test]
    fn the_nearest_level_is_taken_and_the_lower_at_a_tie() {
        let levels = Levels::of_length(4096);
        for (i, level) in levels.all().iter().enumerate() {
            let code = (i as i16 - 128) as i8;
            assert_eq!(levels.nearest(f64::from(*level)), code);
            assert_eq!(levels.of(code), *level);
        }
        // Zero lies halfway between the two smallest.
        assert_eq!(levels.nearest(0.0), -1);
        for (i, bound) in levels.bounds.iter().enumerate() {
            assert_eq!(levels.nearest(*bound), (i as i16 - 128) as i8);
            assert_eq!(levels.nearest(bound.next_up()), (i as i16 - 127) as i8);
        }
        assert_eq!(levels.nearest(-2.0), -128);
        assert_eq!(levels.nearest(2.0), 127);
    }

    #[test]
    fn names() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
        }
        assert_eq!(Format::from_name("int4"), None);
    }
}
