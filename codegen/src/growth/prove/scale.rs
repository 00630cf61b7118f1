//! Constant factors that may depend on symbolic sizes: `number * product of size^(n/2)`.

use super::super::Factor;
use lightc_dsl::size::Size;
use std::collections::BTreeMap;
use std::fmt;

/// A factor in canonical form: sizes are taken apart into names, primes and polynomials that have
/// neither a common factor nor a common name, so that equal factors have one form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scale {
    /// The plain part's bits: an odd whole number with its sign, or what a number leaves that
    /// has no small prime factors; 0 makes the whole 0.
    number: u64,
    /// Twice the power of each atom, none 0.
    atoms: BTreeMap<Size, i32>,
}

/// Whole numbers up to this are taken apart into primes.
const LARGEST: u64 = 1 << 24;

/// The whole number that a value is 1 over, to the last bit.
fn reciprocal(value: f64) -> Option<u64> {
    let whole = value.recip().round();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let fits = (2.0..=LARGEST as f64).contains(&whole) && whole.recip() == value;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in that range")]
    fits.then_some(whole as u64)
}

impl Scale {
    /// A plain number; `None` if it is not finite, or too small for all its digits. The reciprocal of
    /// a whole number, as `x / 6` leaves it, stands for itself and not for its rounding.
    pub(crate) fn number(value: f64) -> Option<Scale> {
        if value == 0.0 {
            return Some(Scale::zero());
        }
        if !value.is_normal() {
            return None;
        }
        if let Some(whole) = reciprocal(value.abs()) {
            let mut scale =
                Scale { number: 1.0_f64.copysign(value).to_bits(), atoms: BTreeMap::new() };
            let left = scale.primes(whole, -2);
            return (left == 1).then_some(scale);
        }
        let (mantissa, exponent) = odd_mantissa(value.abs());
        let mut scale = Scale { number: 1.0_f64.to_bits(), atoms: BTreeMap::new() };
        scale.raise(&Size::constant(2), 2 * exponent);
        let left = if mantissa <= LARGEST { scale.primes(mantissa, 2) } else { mantissa };
        #[allow(clippy::cast_precision_loss, reason = "a mantissa has 53 bits")]
        let number = (left as f64).copysign(value);
        scale.number = number.to_bits();
        Some(scale)
    }

    /// 1.
    pub(crate) fn one() -> Scale {
        Scale { number: 1.0_f64.to_bits(), atoms: BTreeMap::new() }
    }

    /// 0.
    pub(crate) fn zero() -> Scale {
        Scale { number: 0, atoms: BTreeMap::new() }
    }

    /// `size^(half_powers / 2)`. Sizes are 1 or more; `None` for one that cannot be.
    pub(crate) fn size(size: &Size, half_powers: i32) -> Option<Scale> {
        let mut scale = Scale::one();
        let content = size.terms().fold(0, |gcd, (_, c)| greatest_divisor(gcd, c.unsigned_abs()));
        if content == 0 {
            return None;
        }
        let mut rest = size.exact_div(&Size::constant(i64::try_from(content).ok()?))?;
        let names: Vec<String> = rest.symbols().map(str::to_owned).collect();
        for name in names {
            let name = Size::symbol(name);
            while let Some(quotient) = rest.exact_div(&name) {
                scale.raise(&name, half_powers);
                rest = quotient;
            }
        }
        match rest.as_constant() {
            Some(1) => {}
            Some(_) => return None,
            None => scale.raise(&rest, half_powers),
        }
        let left = scale.primes(content, half_powers);
        (left == 1).then_some(scale)
    }

    /// What a rule's factor says.
    pub(crate) fn factor(factor: &Factor) -> Option<Scale> {
        let start = Scale::number(factor.number)?;
        factor
            .sizes
            .iter()
            .try_fold(start, |total, (size, half)| Some(total.times(&Scale::size(size, *half)?)))
    }

    fn raise(&mut self, atom: &Size, half_powers: i32) {
        let power = self.atoms.entry(atom.clone()).or_insert(0);
        *power += half_powers;
        if *power == 0 {
            self.atoms.remove(atom);
        }
    }

    /// Takes the primes out of a whole number; gives what is left.
    fn primes(&mut self, mut n: u64, half_powers: i32) -> u64 {
        let mut prime = 2;
        while prime * prime <= n && prime <= LARGEST {
            while n.is_multiple_of(prime) {
                self.raise(&Size::constant(prime as i64), half_powers);
                n /= prime;
            }
            prime += 1;
        }
        if n > 1 && i64::try_from(n).is_ok() {
            self.raise(&Size::constant(n as i64), half_powers);
            n = 1;
        }
        n
    }

    fn plain(&self) -> f64 {
        f64::from_bits(self.number)
    }

    /// Whether it is 0.
    pub(crate) fn is_zero(&self) -> bool {
        self.number == 0
    }

    /// Whether it is 1.
    pub(crate) fn is_one(&self) -> bool {
        *self == Scale::one()
    }

    /// Whether it is above 0, as sizes are.
    pub(crate) fn is_positive(&self) -> bool {
        self.plain() > 0.0
    }

    /// The product.
    pub(crate) fn times(&self, other: &Scale) -> Scale {
        if self.is_zero() || other.is_zero() {
            return Scale::zero();
        }
        let mut product = self.clone();
        product.number = (self.plain() * other.plain()).to_bits();
        for (atom, power) in &other.atoms {
            product.raise(atom, *power);
        }
        product
    }

    /// The power `half_powers / 2`; `None` for a root of what is not above 0, or 1 / 0.
    pub(crate) fn power(&self, half_powers: i32) -> Option<Scale> {
        if half_powers % 2 != 0 && !self.is_positive() || self.is_zero() {
            return None;
        }
        let number = match half_powers {
            1 => self.plain().sqrt(),
            -1 => 1.0 / self.plain().sqrt(),
            n if n % 2 == 0 => self.plain().powi(n / 2),
            n => self.plain().powf(f64::from(n) / 2.0),
        };
        let mut scale = Scale { number: number.to_bits(), atoms: BTreeMap::new() };
        for (atom, power) in &self.atoms {
            // An odd power of a root is a quarter power: there is no such thing here.
            let doubled = power.checked_mul(half_powers)?;
            if doubled % 2 != 0 {
                return None;
            }
            scale.raise(atom, doubled / 2);
        }
        Some(scale)
    }

    /// The sum, where both are the same product of sizes, or plain numbers.
    pub(crate) fn plus(&self, other: &Scale) -> Option<Scale> {
        if self.is_zero() {
            return Some(other.clone());
        }
        if other.is_zero() {
            return Some(self.clone());
        }
        let (a, b) = (self.as_number()?, other.as_number()?);
        Scale::number(a + b)
    }

    /// The number, where no size is in it.
    pub(crate) fn as_number(&self) -> Option<f64> {
        self.value(&BTreeMap::new())
    }

    /// The size names in it.
    #[cfg(test)]
    pub(crate) fn symbols(&self) -> Vec<String> {
        self.atoms.keys().flat_map(|size| size.symbols()).map(str::to_owned).collect()
    }

    /// The number under a binding of sizes.
    #[allow(clippy::cast_precision_loss, reason = "sizes are small whole numbers")]
    pub(crate) fn value(&self, sizes: &BTreeMap<String, i64>) -> Option<f64> {
        self.atoms.iter().try_fold(self.plain(), |total, (atom, half)| {
            let base = atom.evaluate(sizes)? as f64;
            // In two halves: a power of 2 can lie beyond what a number holds, and the product not.
            let (whole, root) = (half / 2, half % 2);
            let product = total * base.powi(whole / 2) * base.powi(whole - whole / 2);
            Some(if root == 0 { product } else { product * base.sqrt().powi(root) })
        })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(number) = self.as_number() {
            return write!(f, "{number}");
        }
        write!(f, "{}", self.plain())?;
        for (atom, half) in &self.atoms {
            match half % 2 {
                0 => write!(f, " ({atom})^{}", half / 2)?,
                _ => write!(f, " ({atom})^({half}/2)")?,
            }
        }
        Ok(())
    }
}

/// The odd whole number and the power of two whose product a normal number is.
fn odd_mantissa(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let biased = ((bits >> 52) & 0x7ff) as i32;
    let mantissa = bits & ((1 << 52) - 1) | 1 << 52;
    let exponent = biased - 1075;
    let zeros = mantissa.trailing_zeros();
    (mantissa >> zeros, exponent + zeros as i32)
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_factors_have_one_form() {
        let d = Size::symbol("d");
        let wide = d.checked_add(&Size::symbol("g")).unwrap();
        let product = d.checked_mul(&wide).unwrap();
        let a = Scale::size(&product, 1).unwrap();
        let b = Scale::size(&d, 1).unwrap().times(&Scale::size(&wide, 1).unwrap());
        assert_eq!(a, b);
        assert!(a.times(&b.power(-2).unwrap()).is_one());
        assert_eq!(Scale::number(0.5).unwrap(), Scale::size(&Size::constant(2), -2).unwrap());
        assert_eq!(Scale::number(6.0).unwrap(), Scale::size(&Size::constant(36), 1).unwrap());
        for value in [0.0, -3.0, 0.1, 1e-6, 1.0 / 3.0, 1e300, -2.5e-300] {
            assert_eq!(Scale::number(value).unwrap().as_number(), Some(value), "{value}");
        }
    }
}
