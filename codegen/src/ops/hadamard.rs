//! Random signs and the Walsh-Hadamard transform: an orthogonal turn that spreads an outlier over
//! its whole row, at a cost of n log n.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, count, elements,
    float, need_axis, number, one, ordered, product, size_of, split_last, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::size::Size;
use lightc_numerics::hadamard::Hadamard as Turn;
use proc_macro2::TokenStream;
use quote::quote;

/// With n the length of axis d (a power of two), H the Sylvester-Hadamard matrix and s the signs
/// of the seed:
///
/// `y[i] = sum over j of H[i, j] s[j] x[j] / sqrt(n)`
///
/// `inverse` is the transpose, which undoes it: `y[i] = s[i] * sum over j of H[i, j] x[j] / sqrt(n)`.
/// Signs and the order of the sums are those of `lightc_numerics::hadamard`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hadamard {
    /// Axis d.
    pub axis: String,
    /// Seed of the signs.
    pub seed: i64,
    /// The transpose.
    pub inverse: bool,
}

impl OpDef for Hadamard {
    fn mnemonic(&self) -> &'static str {
        "hadamard"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("axis", &self.axis)
            .int("seed", self.seed)
            .word("inverse", if self.inverse { "true" } else { "false" })
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("hadamard", args)?;
        float("hadamard", x)?;
        let axis = need_axis("hadamard", x, &self.axis)?;
        if axis.size.as_constant().is_some_and(|n| !n.unsigned_abs().is_power_of_two()) {
            let message = format!(
                "`hadamard`: axis `{}` has size {}, which is not a power of two",
                axis.name, axis.size
            );
            return Err(TypeError::new("E0402", message).with_help("give it a size of 2, 4, 8, .."));
        }
        ordered(self, args)?;
        Ok(vec![x.clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        with_last(args.get(index)?, &[&self.axis])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let x = call.arg(0)?;
        let (_, [n]) = split_last(x)?;
        let turn = Turn::new(self.seed, n)
            .ok_or_else(|| EvalError(format!("the length {n} is not a power of two")))?;
        let mut y = elements(x);
        for row in y.chunks_exact_mut(n) {
            if self.inverse { turn.undo(row) } else { turn.apply(row) }
        }
        Ok(vec![array(x.shape(), y)?])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let turned = Hadamard { inverse: !self.inverse, ..self.clone() };
        Ok(vec![Some(vjp.push(turned, &[dy])?)])
    }

    /// log2(n) additions per element where n is known, else as many as a size of 2^12 takes.
    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let n = size_of(args.first(), &self.axis).as_constant().unwrap_or(1 << 12);
        let steps = Size::constant(i64::from(n.unsigned_abs().max(1).ilog2()) + 2);
        let x = args.first().map(|x| count(x)).unwrap_or_default();
        Cost::streaming(product(&[&x, &steps]), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, seed, inverse) = (call.arg(0), number(self.seed), self.inverse);
        quote!(ops::hadamard(#x, #seed, #inverse)?)
    }
}

impl ParseOp for Hadamard {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "hadamard" {
            return Ok(None);
        }
        let (axis, seed) = (attrs.take_word("axis")?, attrs.take_int("seed")?);
        let inverse = match attrs.take_word("inverse")?.as_str() {
            "true" => true,
            "false" => false,
            other => return Err(format!("attribute `inverse` is true or false, not {other}")),
        };
        Ok(Some(Hadamard { axis, seed, inverse }))
    }
}
