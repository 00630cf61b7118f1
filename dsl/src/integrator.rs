//! How the layers of a stack are joined, with everything bound, and its text form.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Most low bits that a step keeps.
pub const MAX_BITS: u32 = 8;
/// Fraction bits of a state where the source states none.
pub const FRACTION_BITS: u32 = 20;
/// Most fraction bits: a state of magnitude 1 still fits in half of the range.
pub const MAX_FRACTION_BITS: u32 = 30;

/// How the layers of a stack are joined.
///
/// Its text form is that of the source, with runs of equal numbers as `[1/2] * 8 + [1] * 12`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Integrator {
    /// Each layer reads what the one before gives: `p(l+1) = layer_l(p(l))`.
    #[default]
    Plain,
    /// See [`Midpoint`].
    Midpoint(Midpoint),
}

/// `p(l+1) = a p(l-1) + (1 - a) p(l) + 2h gate_l (layer_l(p(l)) - p(l))` over states of 32-bit
/// fixed point, with a first step of its own.
///
/// With `a = m / 2^k` the sum `m P(l-1) + (2^k - m) P(l) + round(2^k 2h gate f 2^s)` is whole;
/// its low `k` bits are kept, the others are `P(l+1)`. Nothing is lost, so the step has an exact
/// inverse.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Midpoint {
    /// Half of the weight of a force.
    pub h: f64,
    /// The first step.
    pub bootstrap: Bootstrap,
    /// Bits of a state after the point.
    pub fraction_bits: u32,
    /// One per layer; the `a` of layer 0, whose step is the bootstrap, has no effect.
    pub steps: Vec<Step>,
}

/// The step from `p(0)` to `p(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bootstrap {
    /// `p(1) = p(0) + h/2 f_0(p(0))`
    HalfEuler,
    /// `p(1) = p(0) + 2h f_0(p(0))`
    Full,
}

/// What is particular to one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// `m` of `a = m / 2^k`: odd, from 1 to 2^k.
    pub numerator: u32,
    /// `k`: low bits that are kept per element.
    pub bits: u32,
    /// Where the layer has a trained scalar on its force: what it starts at.
    pub gate: Option<f64>,
}

impl Step {
    /// The step of a factor, without a gate; `None` unless it is `m / 2^k` with odd `m`,
    /// `0 < m <= 2^k` and `k` at most [`MAX_BITS`].
    pub fn of(a: f64) -> Option<Step> {
        (0..=MAX_BITS).find_map(|bits| {
            let m = a * f64::from(1_u32 << bits);
            let fits = m.fract() == 0.0 && m >= 1.0 && m <= f64::from(1_u32 << bits);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            fits.then_some(Step { numerator: m as u32, bits, gate: None })
        })
    }

    /// `m / 2^k`.
    pub fn a(&self) -> f64 {
        f64::from(self.numerator) / f64::from(1_u32 << self.bits)
    }
}

impl Midpoint {
    /// What the force of a layer is multiplied by, its gate aside.
    pub fn weight(&self, layer: usize) -> f64 {
        match (layer, self.bootstrap) {
            (0, Bootstrap::HalfEuler) => self.h / 2.0,
            _ => 2.0 * self.h,
        }
    }

    /// Layers with a gate, in order.
    pub fn gated(&self) -> impl Iterator<Item = usize> {
        let layers = self.steps.iter().enumerate();
        layers.filter(|(_, step)| step.gate.is_some()).map(|(layer, _)| layer)
    }
}

impl Integrator {
    /// Layers with a gate, in order.
    pub fn gated(&self) -> Vec<usize> {
        match self {
            Integrator::Plain => Vec::new(),
            Integrator::Midpoint(midpoint) => midpoint.gated().collect(),
        }
    }
}

/// The last segment of the path of a layer's gate.
pub fn gate_name(stack: &str, layer: usize) -> String {
    format!("{stack}.{layer}.gate")
}

impl fmt::Display for Integrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Integrator::Midpoint(midpoint) = self else { return f.write_str("plain()") };
        let a = |step: &Step| match step.bits {
            0 => step.numerator.to_string(),
            bits => format!("{}/{}", step.numerator, 1_u32 << bits),
        };
        let gate = |step: &Step| step.gate.map_or("none".to_owned(), |start| format!("{start:?}"));
        write!(f, "midpoint(h: {:?}, a: {}", midpoint.h, runs(&midpoint.steps, a))?;
        if midpoint.gated().next().is_some() {
            write!(f, ", gates: {}", runs(&midpoint.steps, gate))?;
        }
        let bootstrap = match midpoint.bootstrap {
            Bootstrap::HalfEuler => "half_euler",
            Bootstrap::Full => "full",
        };
        write!(f, ", bootstrap: {bootstrap}, fraction_bits: {})", midpoint.fraction_bits)
    }
}

/// `[1/2] * 8 + [1] * 12`
fn runs(steps: &[Step], text: impl Fn(&Step) -> String) -> String {
    let mut runs: Vec<(String, usize)> = Vec::new();
    for item in steps.iter().map(text) {
        match runs.last_mut() {
            Some((last, n)) if *last == item => *n += 1,
            _ => runs.push((item, 1)),
        }
    }
    let each = |(item, n): &(String, usize)| format!("[{item}] * {n}");
    let texts: Vec<String> = runs.iter().map(each).collect();
    if texts.is_empty() { "[]".to_owned() } else { texts.join(" + ") }
}

impl FromStr for Integrator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "plain()" {
            return Ok(Integrator::Plain);
        }
        let inner = text.strip_prefix("midpoint(").and_then(|rest| rest.strip_suffix(')'));
        let inner = inner.ok_or_else(|| format!("`{text}` is not an integrator"))?;
        let field = |name: &str| {
            let found =
                inner.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(": "));
            found.ok_or_else(|| format!("`{name}` is missing"))
        };
        let number = |text: &str| text.parse::<f64>().map_err(|e| format!("`{text}`: {e}"));
        let mut steps = Vec::new();
        for item in unrolled(field("a")?)? {
            let a = match item.split_once('/') {
                Some((m, n)) => number(m)? / number(n)?,
                None => number(&item)?,
            };
            steps.push(Step::of(a).ok_or_else(|| format!("{item} is not a dyadic factor"))?);
        }
        if let Ok(gates) = field("gates") {
            let gates = unrolled(gates)?;
            if gates.len() != steps.len() {
                return Err(format!("{} gates for {} layers", gates.len(), steps.len()));
            }
            for (step, gate) in steps.iter_mut().zip(gates) {
                step.gate = if gate == "none" { None } else { Some(number(&gate)?) };
            }
        }
        let bootstrap = match field("bootstrap")? {
            "half_euler" => Bootstrap::HalfEuler,
            "full" => Bootstrap::Full,
            other => return Err(format!("`{other}` is not a bootstrap")),
        };
        let bits = field("fraction_bits")?;
        let fraction_bits: u32 = bits.parse().map_err(|e| format!("`{bits}`: {e}"))?;
        if !(1..=MAX_FRACTION_BITS).contains(&fraction_bits) {
            return Err(format!("{fraction_bits} fraction bits are not 1 to {MAX_FRACTION_BITS}"));
        }
        Ok(Integrator::Midpoint(Midpoint {
            h: number(field("h")?)?,
            bootstrap,
            fraction_bits,
            steps,
        }))
    }
}

/// The items of `[a] * 2 + [b] * 1`.
fn unrolled(text: &str) -> Result<Vec<String>, String> {
    let mut items = Vec::new();
    if text == "[]" {
        return Ok(items);
    }
    for run in text.split(" + ") {
        let (item, n) = run.split_once("] * ").ok_or_else(|| format!("`{run}` is not a run"))?;
        let item = item.strip_prefix('[').ok_or_else(|| format!("`{run}` is not a run"))?;
        let n: usize = n.parse().map_err(|e| format!("`{n}`: {e}"))?;
        if n > 1 << 20 {
            return Err(format!("{n} layers are too many"));
        }
        items.extend(std::iter::repeat_n(item.to_owned(), n));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dyadic_factors_above_0_up_to_1_make_a_step() {
        let step = |numerator, bits| Some(Step { numerator, bits, gate: None });
        for (a, wanted) in [
            (1.0, step(1, 0)),
            (0.5, step(1, 1)),
            (0.25, step(1, 2)),
            (0.75, step(3, 2)),
            (255.0 / 256.0, step(255, 8)),
            (1.0 / 512.0, None),
            (1.0 / 3.0, None),
            (0.1, None),
            (0.0, None),
            (-0.5, None),
            (1.5, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(Step::of(a), wanted, "{a}");
            assert!(wanted.is_none_or(|step| step.a() == a));
        }
    }

    #[test]
    fn the_text_form_reads_back() {
        let mut steps = vec![Step { numerator: 1, bits: 1, gate: None }; 3];
        steps.push(Step { numerator: 3, bits: 2, gate: Some(0.0) });
        steps.push(Step { numerator: 1, bits: 0, gate: Some(-1.5) });
        let midpoint =
            Midpoint { h: 0.25, bootstrap: Bootstrap::HalfEuler, fraction_bits: 20, steps };
        let text = "midpoint(h: 0.25, a: [1/2] * 3 + [3/4] * 1 + [1] * 1, gates: [none] * 3 + [0.0] \
                    * 1 + [-1.5] * 1, bootstrap: half_euler, fraction_bits: 20)";
        let empty = Midpoint { steps: vec![], bootstrap: Bootstrap::Full, ..midpoint.clone() };
        let midpoint = Integrator::Midpoint(midpoint);
        assert_eq!(midpoint.to_string(), text);
        for integrator in [Integrator::Plain, midpoint, Integrator::Midpoint(empty)] {
            assert_eq!(integrator.to_string().parse(), Ok(integrator));
        }
        for bad in
            ["", "midpoint()", "euler()", &text.replace("3/4", "2/3"), &text.replace("20", "40")]
        {
            assert!(bad.parse::<Integrator>().is_err(), "{bad}");
        }
    }
}
