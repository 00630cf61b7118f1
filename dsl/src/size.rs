//! Sizes of axes: integer polynomials over size names, in one canonical form.
//!
//! `4096`, `b`, `u - 2`, `n*d`. Two sizes are equal exactly when their canonical forms are,
//! so a check on symbolic sizes is as strict as one on numbers.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// A product of size names with powers, in name order. Empty means 1.
pub type Monomial = BTreeMap<String, u32>;

/// An integer polynomial over size names: monomial to non-zero coefficient.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size {
    terms: BTreeMap<Monomial, i64>,
}

impl Size {
    /// A known size.
    pub fn constant(value: i64) -> Self {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Monomial::new(), value);
        }
        Size { terms }
    }

    /// A size that is bound later, by its name.
    pub fn symbol(name: impl Into<String>) -> Self {
        Size { terms: BTreeMap::from([(Monomial::from([(name.into(), 1)]), 1)]) }
    }

    /// The number, where no name is left.
    pub fn as_constant(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Monomial::new()).copied(),
            _ => None,
        }
    }

    /// `self + other`; `None` on overflow of a coefficient.
    pub fn checked_add(&self, other: &Size) -> Option<Size> {
        let mut terms = self.terms.clone();
        for (monomial, &coefficient) in &other.terms {
            let sum = terms.get(monomial).copied().unwrap_or(0).checked_add(coefficient)?;
            if sum == 0 {
                terms.remove(monomial);
            } else {
                terms.insert(monomial.clone(), sum);
            }
        }
        Some(Size { terms })
    }

    /// `self - other`; `None` on overflow of a coefficient.
    pub fn checked_sub(&self, other: &Size) -> Option<Size> {
        self.checked_add(&other.checked_mul(&Size::constant(-1))?)
    }

    /// `self * other`; `None` on overflow of a coefficient or power.
    pub fn checked_mul(&self, other: &Size) -> Option<Size> {
        let mut result = Size::default();
        for (left, &a) in &self.terms {
            for (right, &b) in &other.terms {
                let mut monomial = left.clone();
                for (name, &power) in right {
                    let total = monomial.get(name).copied().unwrap_or(0).checked_add(power)?;
                    monomial.insert(name.clone(), total);
                }
                let term = Size { terms: BTreeMap::from([(monomial, a.checked_mul(b)?)]) };
                result = result.checked_add(&term)?;
            }
        }
        Some(result)
    }

    /// `self / divisor` where every coefficient divides exactly and the divisor is a number or
    /// a single product of names; `None` otherwise.
    pub fn exact_div(&self, divisor: &Size) -> Option<Size> {
        let (divisor_monomial, &d) = divisor.terms.iter().next()?;
        if divisor.terms.len() != 1 || d == 0 {
            return None;
        }
        let mut terms = BTreeMap::new();
        for (monomial, &coefficient) in &self.terms {
            if coefficient.checked_rem(d)? != 0 {
                return None;
            }
            let mut quotient = monomial.clone();
            for (name, &power) in divisor_monomial {
                let left = quotient.get(name).copied().unwrap_or(0).checked_sub(power)?;
                if left == 0 {
                    quotient.remove(name);
                } else {
                    quotient.insert(name.clone(), left);
                }
            }
            terms.insert(quotient, coefficient.checked_div(d)?);
        }
        Some(Size { terms })
    }

    /// The value under a binding of every name; `None` where a name is missing or it overflows.
    pub fn evaluate(&self, bindings: &BTreeMap<String, i64>) -> Option<i64> {
        let mut total: i64 = 0;
        for (monomial, &coefficient) in &self.terms {
            let mut product = coefficient;
            for (name, &power) in monomial {
                product = product.checked_mul(bindings.get(name)?.checked_pow(power)?)?;
            }
            total = total.checked_add(product)?;
        }
        Some(total)
    }

    /// Every name that `bindings` has replaced by its size there. A product that overflows
    /// keeps its name.
    #[must_use]
    pub fn substitute(&self, bindings: &BTreeMap<String, Size>) -> Size {
        self.try_substitute(bindings).unwrap_or_else(|| self.clone())
    }

    fn try_substitute(&self, bindings: &BTreeMap<String, Size>) -> Option<Size> {
        let mut total = Size::default();
        for (monomial, &coefficient) in &self.terms {
            let mut product = Size::constant(coefficient);
            for (name, &power) in monomial {
                let symbol = Size::symbol(name);
                let factor = bindings.get(name).unwrap_or(&symbol);
                for _ in 0..power {
                    product = product.checked_mul(factor)?;
                }
            }
            total = total.checked_add(&product)?;
        }
        Some(total)
    }

    /// The terms in canonical order, as pairs of monomial and coefficient.
    pub fn terms(&self) -> impl Iterator<Item = (&Monomial, i64)> {
        self.terms.iter().map(|(monomial, &coefficient)| (monomial, coefficient))
    }

    /// Small enough to work with: products of sums grow without bound, and no real size has
    /// more than a few terms.
    pub fn is_small(&self) -> bool {
        let degree = |m: &Monomial| m.values().fold(0_u32, |sum, &p| sum.saturating_add(p));
        self.terms.len() <= 64 && self.terms.keys().all(|m| degree(m) <= 16)
    }

    /// The names in it, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &str> {
        let names: std::collections::BTreeSet<&str> =
            self.terms.keys().flat_map(|m| m.keys().map(String::as_str)).collect();
        names.into_iter()
    }
}

impl From<i64> for Size {
    fn from(value: i64) -> Self {
        Size::constant(value)
    }
}

/// Prints `0`, `4096`, `u-2`, `n*d+1`: terms with names first, the constant last, no spaces.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        let named = self.terms.iter().filter(|(m, _)| !m.is_empty());
        let plain = self.terms.iter().filter(|(m, _)| m.is_empty());
        for (position, (monomial, &coefficient)) in named.chain(plain).enumerate() {
            if coefficient < 0 {
                f.write_str("-")?;
            } else if position > 0 {
                f.write_str("+")?;
            }
            let magnitude = coefficient.unsigned_abs();
            let mut separator = "";
            if magnitude != 1 || monomial.is_empty() {
                write!(f, "{magnitude}")?;
                separator = "*";
            }
            for (name, &power) in monomial {
                for _ in 0..power {
                    write!(f, "{separator}{name}")?;
                    separator = "*";
                }
            }
        }
        Ok(())
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
