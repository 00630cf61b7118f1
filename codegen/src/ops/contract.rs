//! Contraction of two tensors over named axes.

use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, count, distinct,
    emit_joined, join_floats, need_axis, product, same_size, size_of, two,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::size::Size;
use ndarray::{ArrayD, Axis as Dim, Ix2};
use proc_macro2::TokenStream;
use quote::quote;

/// `y[batch, left, right] = sum over the named axes of a[batch, left, over] * b[batch, right, over]`
///
/// Axes that both have and that are not summed are batch axes; axes that only one has are kept.
/// The result has the axes of `a` without the summed ones, in the order of `a`, then those of `b`
/// that are neither in `a` nor summed, in the order of `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    /// Axes that are summed; both operands have them. Can be empty.
    pub over: Vec<String>,
}

impl Contract {
    fn summed(&self, name: &str) -> bool {
        self.over.iter().any(|over| over == name)
    }
}

impl OpDef for Contract {
    fn mnemonic(&self) -> &'static str {
        "contract"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().words("over", &self.over)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (a, b) = two("contract", args)?;
        let dtype = join_floats("contract", args)?;
        for (position, name) in self.over.iter().enumerate() {
            need_axis("contract", a, name)?;
            need_axis("contract", b, name)?;
            if self.over.iter().take(position).any(|earlier| earlier == name) {
                return Err(TypeError::new(
                    "E0406",
                    format!("`contract` names axis `{name}` twice"),
                ));
            }
        }
        for axis in &a.axes {
            if let Some(other) = b.axis(&axis.name) {
                same_size("contract", axis, other)?;
            }
        }
        let left = a.axes.iter().filter(|axis| !self.summed(&axis.name));
        let right = b.axes.iter().filter(|axis| !a.has(&axis.name));
        let axes: Vec<_> = left.chain(right).cloned().collect();
        distinct("contract", &axes)?;
        Ok(vec![Type::new(dtype, axes)])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        let (a_ty, b_ty) = (call.arg_type(0)?, call.arg_type(1)?);
        let select = |ty: &Type, keep: &dyn Fn(&str) -> bool| -> Vec<String> {
            ty.names().into_iter().filter(|name| keep(name)).collect()
        };
        let batch = select(a_ty, &|name| b_ty.has(name) && !self.summed(name));
        let left = select(a_ty, &|name| !b_ty.has(name));
        let right = select(b_ty, &|name| !a_ty.has(name));

        let (a, [n_batch, n_left, n_over]) =
            grouped(call.arg(0)?, a_ty, [&batch, &left, &self.over])?;
        let (b, [_, _, n_right]) = grouped(call.arg(1)?, b_ty, [&batch, &self.over, &right])?;
        let a = a.into_shape_with_order((n_batch, n_left, n_over))?;
        let b = b.into_shape_with_order((n_batch, n_over, n_right))?;
        let mut y = Vec::with_capacity(n_batch * n_left * n_right);
        for (a, b) in a.axis_iter(Dim(0)).zip(b.axis_iter(Dim(0))) {
            let product = a.into_dimensionality::<Ix2>()?.dot(&b.into_dimensionality::<Ix2>()?);
            y.extend(product.iter());
        }

        // What was computed lies as [batch, left, right]; the result has another order.
        let computed: Vec<String> = [batch, left, right].concat();
        let result = call.result_types.first().ok_or_else(|| EvalError("no result".into()))?;
        let target_shape = call.result_shape(0)?;
        let length =
            |name: &String| result.position(name).and_then(|p| target_shape.get(p)).copied();
        let shape: Vec<usize> = computed.iter().filter_map(length).collect();
        let order: Vec<usize> = result
            .axes
            .iter()
            .filter_map(|axis| computed.iter().position(|name| *name == axis.name))
            .collect();
        let y = ArrayD::from_shape_vec(shape, y)?;
        Ok(vec![y.permuted_axes(order).as_standard_layout().into_owned()])
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let dy = vjp.dy()?;
        let mut side = |wanted: usize, other: usize| -> Result<Option<ValueId>, TypeError> {
            if !vjp.wants(wanted) {
                return Ok(None);
            }
            let (wanted_ty, other_ty) = (vjp.arg_type(wanted)?, vjp.arg_type(other)?);
            // What the other operand alone brought in is summed away again.
            let over = other_ty.names().into_iter().filter(|name| !wanted_ty.has(name)).collect();
            let other = vjp.arg(other)?;
            let d = vjp.push(Contract { over }, &[dy, other])?;
            vjp.conform(d, &wanted_ty).map(Some)
        };
        Ok(vec![side(0, 1)?, side(1, 0)?])
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        let mut flops = results.first().map(|y| count(y)).unwrap_or_default();
        for name in &self.over {
            flops = product(&[&flops, &size_of(args.first(), name)]);
        }
        Cost::streaming(product(&[&flops, &Size::constant(2)]), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let equation = equation(call.arg_types, call.result_types);
        emit_joined(call, "contract", &[0, 1], quote!(#equation))
    }
}

impl ParseOp for Contract {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "contract" {
            return Ok(None);
        }
        Ok(Some(Contract { over: attrs.take_words("over")? }))
    }
}

/// An array with its axes brought together in three groups, row-major, and the groups' lengths.
fn grouped(
    array: &Array,
    ty: &Type,
    groups: [&Vec<String>; 3],
) -> Result<(Array, [usize; 3]), EvalError> {
    let order: Vec<usize> =
        groups.into_iter().flatten().filter_map(|name| ty.position(name)).collect();
    let sizes = groups.map(|names| {
        let lengths = names.iter().filter_map(|name| array.shape().get(ty.position(name)?));
        lengths.product::<usize>()
    });
    if order.len() != array.ndim() {
        return Err(EvalError(format!("`contract` does not cover the axes of {ty}")));
    }
    Ok((array.view().permuted_axes(order).as_standard_layout().into_owned(), sizes))
}

/// The equation in letters, such as `btd,fd->btf`: an axis has its own first letter if that is
/// still free, else the first letter of the alphabet that is.
fn equation(args: &[&Type], results: &[&Type]) -> String {
    let mut known: Vec<(String, char)> = Vec::new();
    let mut terms: Vec<String> = Vec::new();
    for ty in args.iter().chain(results) {
        let mut term = String::new();
        for name in ty.names() {
            let letter = known.iter().find(|(axis, _)| *axis == name).map(|(_, letter)| *letter);
            let letter = letter.unwrap_or_else(|| {
                let own = name.chars().next().filter(char::is_ascii_alphabetic);
                let mut choices = own.into_iter().chain('a'..='z').chain('A'..='Z');
                let free = choices.find(|c| known.iter().all(|(_, taken)| taken != c));
                let letter = free.unwrap_or('?');
                known.push((name.clone(), letter));
                letter
            });
            term.push(letter);
        }
        terms.push(term);
    }
    let result = terms.pop().unwrap_or_default();
    format!("{}->{result}", terms.join(","))
}

#[cfg(test)]
mod tests {
    use super::equation;
    use crate::ir::Type;
    use lightc_dsl::ast::DType;
    use lightc_dsl::model::Axis;
    use lightc_dsl::size::Size;

    #[test]
    fn equations_use_first_letters_where_free() {
        let ty = |names: &[&str]| {
            let axis = |n: &&str| Axis { name: (*n).to_owned(), size: Size::symbol(*n) };
            Type::new(DType::Act, names.iter().map(axis).collect())
        };
        let (x, w, y) = (ty(&["b", "t", "d"]), ty(&["f", "d"]), ty(&["b", "t", "f"]));
        assert_eq!(equation(&[&x, &w], &[&y]), "btd,fd->btf");
        let (x, w, y) = (ty(&["tokens", "d"]), ty(&["tasks", "d"]), ty(&["tokens", "tasks"]));
        assert_eq!(equation(&[&x, &w], &[&y]), "td,ad->ta");
    }
}
