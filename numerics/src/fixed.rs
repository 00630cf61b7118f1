//! States of a reversible stack: whole numbers of 32 bits with a fixed point, and steps between
//! them that have an exact inverse.
//!
//! A step with `a = m / 2^k` takes the states `before` and `now` and the scaled force, and forms
//!
//! `S = m before + (2^k - m) now + round(scale force)`,   `next = S >> k`,   `kept = S mod 2^k`
//!
//! Rounding is to the nearest whole number, ties to even; a force that is not a number counts as 0
//! and is reported. Sums are of 64 bits and states wrap at 32: with `S` known modulo `2^(32+k)`,
//!
//! `before = m^-1 (2^k next + kept - (2^k - m) now - round(scale force))   mod 2^32`
//!
//! since `m` is odd. So the inverse is exact for all values, also where a state has wrapped; whether
//! one has, the range says. `m = 0, k = 0` is the first step, `next = now + round(scale force)`.

/// The largest magnitude that counts as in range: half of what 32 bits hold.
pub const HALF_RANGE: i64 = 1 << 30;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// `m`, odd or 0.
    pub numerator: i64,
    /// `k`, at most 8.
    pub bits: u32,
    /// `2^k w 2^s`: with `w` the weight of the force and `s` the fraction bits of a state.
    pub scale: f64,
}

/// What a step gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The next state.
    pub next: i32,
    /// The low bits that are shifted out.
    pub kept: u8,
    /// Whether the next state, before it wraps, is within half of the range, and the force is a
    /// number.
    pub in_range: bool,
}

impl Step {
    /// The step of `a = numerator / 2^bits` for forces of that weight.
    pub fn new(numerator: i64, bits: u32, weight: f64, fraction_bits: u32) -> Step {
        Step { numerator, bits, scale: weight * two_to(bits) * two_to(fraction_bits) }
    }

    /// The step from the first state, which has none before it.
    pub fn first(weight: f64, fraction_bits: u32) -> Step {
        Step::new(0, 0, weight, fraction_bits)
    }

    /// `a`.
    pub fn a(&self) -> f64 {
        self.numerator as f64 / two_to(self.bits)
    }

    /// The next state. `force` is the gate times the difference that the layer makes.
    #[inline(always)]
    pub fn forward(&self, before: i32, now: i32, force: f64) -> Stepped {
        let push = (self.scale * force).round_ties_even();
        // Saturates; a force that is not a number is 0.
        let rounded = push as i64;
        let rest = (1_i64 << self.bits) - self.numerator;
        let sum =
            (self.numerator * i64::from(before) + rest * i64::from(now)).wrapping_add(rounded);
        let next = sum >> self.bits;
        let small = push.abs() < 9e15;
        Stepped {
            next: next as i32,
            kept: (sum & ((1 << self.bits) - 1)) as u8,
            in_range: small && next.unsigned_abs() <= HALF_RANGE.unsigned_abs(),
        }
    }

    /// The state before `now`, given what the step made of both.
    #[inline(always)]
    pub fn inverse(&self, next: i32, kept: u8, now: i32, force: f64) -> i32 {
        let rounded = (self.scale * force).round_ties_even() as i64;
        let rest = (1_i64 << self.bits) - self.numerator;
        let sum = (i64::from(next) << self.bits) | i64::from(kept);
        let share = sum.wrapping_sub(rest * i64::from(now)).wrapping_sub(rounded);
        share.wrapping_mul(self.inverse_numerator()) as i32
    }

    /// `m^-1` modulo `2^64`, by Newton's iteration: each doubles the bits that are right.
    #[inline(always)]
    pub fn inverse_numerator(&self) -> i64 {
        let m = self.numerator;
        let mut inverse = m;
        for _ in 0..5 {
            inverse = inverse.wrapping_mul(2_i64.wrapping_sub(m.wrapping_mul(inverse)));
        }
        inverse
    }
}

/// The state nearest to a number, ties to even, and whether it is within half of the range.
#[inline(always)]
pub fn quantize(x: f64, fraction_bits: u32) -> (i32, bool) {
    let scaled = (x * two_to(fraction_bits)).round_ties_even();
    (scaled as i64 as i32, scaled.abs() <= HALF_RANGE as f64)
}

/// The number that a state stands for.
#[inline(always)]
pub fn value(state: i32, fraction_bits: u32) -> f64 {
    f64::from(state) / two_to(fraction_bits)
}

#[inline(always)]
fn two_to(bits: u32) -> f64 {
    (1_u64 << bits) as f64
}

/// Bits per element in the packed form of kept bits: `k` rounded up to a power of two, so that no
/// element lies across two bytes.
pub fn packed_width(bits: u32) -> u32 {
    if bits == 0 { 0 } else { bits.next_power_of_two() }
}

/// Bytes that the kept bits of `n` elements take when packed.
pub fn packed_len(n: usize, bits: u32) -> usize {
    (n * packed_width(bits) as usize).div_ceil(8)
}

/// Element `index` of a packed form, whose first byte holds the first elements in its low bits.
#[inline(always)]
pub fn unpack(packed: &[u8], index: usize, bits: u32) -> u8 {
    let width = packed_width(bits) as usize;
    if width == 0 {
        return 0;
    }
    let per_byte = 8 / width;
    let byte = packed.get(index / per_byte).copied().unwrap_or(0);
    (byte >> (index % per_byte * width)) & ((1_u32 << bits) - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn every_step_has_its_inverse_whatever_the_values() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let forces = [0.0, 1.5, -3e4, 1e30, -1e300, f64::INFINITY, f64::NAN];
        for bits in 0..=8_u32 {
            for numerator in (1..=1_i64 << bits).step_by(2) {
                let step = Step::new(numerator, bits, 0.5, 20);
                for index in 0..200 {
                    let (before, now) = (random.next_u32() as i32, random.next_u32() as i32);
                    let force = forces[index % forces.len()] * (index as f64 + 0.1);
                    let stepped = step.forward(before, now, force);
                    assert!(u32::from(stepped.kept) < 1 << bits);
                    assert_eq!(step.inverse(stepped.next, stepped.kept, now, force), before);
                    if bits > 0 {
                        let other = step.inverse(stepped.next, stepped.kept ^ 1, now, force);
                        assert_ne!(other, before);
                    }
                }
            }
        }
    }

    #[test]
    fn a_step_is_the_recurrence_but_for_the_rounding() {
        let (s, unit) = (20, 2f64.powi(-20));
        for (numerator, bits) in [(1, 0), (1, 1), (3, 2), (1, 2)] {
            let step = Step::new(numerator, bits, 0.5, s);
            for (before, now, force) in [(0.3, -1.2, 0.7), (5.0, 4.0, -8.5), (-0.1, 0.1, 1e-7)] {
                let (p, q) = (quantize(before, s).0, quantize(now, s).0);
                let wanted = step.a() * value(p, s) + (1.0 - step.a()) * value(q, s) + 0.5 * force;
                let stepped = step.forward(p, q, force);
                assert!(stepped.in_range);
                let low = f64::from(stepped.kept) * unit / 2f64.powi(bits as i32);
                assert!((value(stepped.next, s) + low - wanted).abs() <= 0.5 * unit, "{step:?}");
            }
        }
        let first = Step::first(0.125, s);
        assert_eq!(first.forward(77, quantize(2.0, s).0, 8.0).next, quantize(3.0, s).0);
    }

    #[test]
    fn what_leaves_half_of_the_range_is_reported() {
        let step = Step::new(1, 0, 1.0, 20);
        let near = (HALF_RANGE - 5) as i32;
        assert!(step.forward(near, 0, 0.0).in_range);
        assert!(!step.forward(near, 0, 1.0).in_range);
        // 2000 + 2000 wraps to a small number.
        let wrapped = Step::new(1, 0, 2.0, 20).forward(quantize(2000.0, 20).0, 0, 1000.0);
        assert!(wrapped.next.unsigned_abs() < 1 << 29 && !wrapped.in_range);
        for force in [f64::NAN, f64::INFINITY, -1e200] {
            assert!(!step.forward(0, 0, force).in_range);
        }
        assert_eq!(quantize(1.0, 30), (1 << 30, true));
        assert!(!quantize(1.01, 30).1 && !quantize(f64::NAN, 4).1 && !quantize(1e300, 4).1);
    }

    #[test]
    fn rounding_is_to_even() {
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| quantize(x, 0).0), [0, 2, 2, 0, -2]);
    }

    #[test]
    fn packed_elements_come_back() {
        assert_eq!([0, 1, 2, 3, 4, 5, 8].map(packed_width), [0, 1, 2, 4, 4, 8, 8]);
        assert_eq!([1, 8, 9].map(|n| packed_len(n, 1)), [1, 1, 2]);
        assert_eq!(packed_len(5, 2), 2);
        let packed = [0b1110_0100, 0b10];
        assert_eq!([0, 1, 2, 3, 4].map(|i| unpack(&packed, i, 2)), [0, 1, 2, 3, 2]);
        assert_eq!([0, 2, 5, 9].map(|i| unpack(&packed, i, 1)), [0, 1, 1, 1]);
        assert_eq!(unpack(&packed, 3, 0), 0);
    }
}
