//! Sinkhorn normalisation of square-ish matrices to (nearly) doubly stochastic ones.

use super::pointwise::{no_second_derivative, same_axes};
use super::{
    Array, Attrs, Cost, EvalCall, EvalError, OpDef, ParseOp, TypeError, array, count, elements,
    float, need_axis, number, one, ordered, product, split_last, two, wanted, with_last,
};
use crate::autodiff::Vjp;
use crate::emit::EmitCall;
use crate::ir::{Type, ValueId};
use lightc_dsl::size::Size;
use proc_macro2::TokenStream;
use quote::quote;

/// For every matrix `x[s, j]`, with s the rows and j the columns (n of them):
///
/// - `K[s, j] = exp(x[s, j] - max over j of x[s, j])`, `v[j] = 1/n`
/// - `iterations` times: `u[s] = 1 / (sum_j K[s, j] v[j] + eps)`, then
///   `v[j] = 1 / (sum_s K[s, j] u[s] + eps)`
/// - `y[s, j] = u[s] K[s, j] v[j]`
///
/// Storage order: rows and columns last.
#[derive(Clone, Debug, PartialEq)]
pub struct Sinkhorn {
    /// Axis s.
    pub rows: String,
    /// Axis j.
    pub columns: String,
    /// How often both scalings are renewed.
    pub iterations: i64,
    /// Added to every denominator.
    pub eps: f64,
}

/// The derivative of exactly the iterations of [`Sinkhorn`]: arguments x, dy. The iterations are
/// unrolled, not replaced by the derivative of their limit, which is wrong by tens of percent
/// where they have not converged. The row maximum passes its gradient to the first maximal
/// element of the row.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornGrad {
    /// Axis s.
    pub rows: String,
    /// Axis j.
    pub columns: String,
    /// As in the forward.
    pub iterations: i64,
    /// As in the forward.
    pub eps: f64,
}

fn check(
    what: &str,
    x: &Type,
    rows: &str,
    columns: &str,
    iterations: i64,
) -> Result<(), TypeError> {
    float(what, x)?;
    need_axis(what, x, rows)?;
    need_axis(what, x, columns)?;
    if rows == columns {
        return Err(TypeError::new("E0406", format!("`{what}` names axis `{rows}` twice")));
    }
    if iterations < 1 {
        return Err(TypeError::new(
            "E0405",
            format!("`{what}` takes at least 1 iteration, here are {iterations}"),
        ));
    }
    Ok(())
}

/// One matrix, and all scalings in the order in which they were computed.
struct Scaling {
    n_rows: usize,
    n_columns: usize,
    kernel: Vec<f64>,
    first_max: Vec<usize>,
    u: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

impl Scaling {
    #[allow(clippy::indexing_slicing, clippy::cast_precision_loss)]
    fn new(x: &[f64], n_rows: usize, n_columns: usize, iterations: i64, eps: f64) -> Self {
        let mut kernel = vec![0.0; x.len()];
        let mut first_max = vec![0; n_rows];
        for s in 0..n_rows {
            let row = &x[s * n_columns..(s + 1) * n_columns];
            for j in 1..n_columns {
                if row[j] > row[first_max[s]] {
                    first_max[s] = j;
                }
            }
            for j in 0..n_columns {
                kernel[s * n_columns + j] = (row[j] - row[first_max[s]]).exp();
            }
        }
        let mut scaling = Scaling {
            n_rows,
            n_columns,
            kernel,
            first_max,
            u: Vec::new(),
            v: vec![vec![1.0 / n_columns as f64; n_columns]],
        };
        for iteration in 0..usize::try_from(iterations).unwrap_or(0) {
            let v = &scaling.v[iteration];
            let u: Vec<f64> = (0..n_rows)
                .map(|s| 1.0 / ((0..n_columns).map(|j| scaling.k(s, j) * v[j]).sum::<f64>() + eps))
                .collect();
            let v: Vec<f64> = (0..n_columns)
                .map(|j| 1.0 / ((0..n_rows).map(|s| scaling.k(s, j) * u[s]).sum::<f64>() + eps))
                .collect();
            scaling.u.push(u);
            scaling.v.push(v);
        }
        scaling
    }

    #[allow(clippy::indexing_slicing)]
    fn k(&self, s: usize, j: usize) -> f64 {
        self.kernel[s * self.n_columns + j]
    }

    #[allow(clippy::indexing_slicing)]
    fn result(&self) -> Vec<f64> {
        let (u, v) = (&self.u[self.u.len() - 1], &self.v[self.v.len() - 1]);
        let mut y = self.kernel.clone();
        for (row, u) in y.chunks_exact_mut(self.n_columns).zip(u) {
            for (y, v) in row.iter_mut().zip(v) {
                *y *= u * v;
            }
        }
        y
    }

    #[allow(clippy::indexing_slicing)]
    fn grad(&self, dy: &[f64]) -> Vec<f64> {
        let (n_rows, n_columns) = (self.n_rows, self.n_columns);
        let at = |s: usize, j: usize| s * n_columns + j;
        let (u, v) = (&self.u[self.u.len() - 1], &self.v[self.v.len() - 1]);
        let mut dk = vec![0.0; self.kernel.len()];
        let (mut du, mut dv) = (vec![0.0; n_rows], vec![0.0; n_columns]);
        for s in 0..n_rows {
            for j in 0..n_columns {
                dk[at(s, j)] = dy[at(s, j)] * u[s] * v[j];
                du[s] += dy[at(s, j)] * self.k(s, j) * v[j];
                dv[j] += dy[at(s, j)] * self.k(s, j) * u[s];
            }
        }
        for iteration in (0..self.u.len()).rev() {
            let (u, v) = (&self.u[iteration], &self.v[iteration + 1]);
            let v_before = &self.v[iteration];
            for j in 0..n_columns {
                let d = -dv[j] * v[j] * v[j];
                for s in 0..n_rows {
                    dk[at(s, j)] += d * u[s];
                    du[s] += d * self.k(s, j);
                }
            }
            dv.fill(0.0);
            for s in 0..n_rows {
                let d = -du[s] * u[s] * u[s];
                for j in 0..n_columns {
                    dk[at(s, j)] += d * v_before[j];
                    dv[j] += d * self.k(s, j);
                }
            }
            du.fill(0.0);
        }
        let mut dx: Vec<f64> = dk.iter().zip(&self.kernel).map(|(d, k)| d * k).collect();
        for s in 0..n_rows {
            let row: f64 = dx[at(s, 0)..at(s, n_columns)].iter().sum();
            dx[at(s, self.first_max[s])] -= row;
        }
        dx
    }
}

/// Applies `f` to each matrix of the arguments, which are equally long.
fn by_matrix(
    call: &EvalCall<'_>,
    iterations: i64,
    eps: f64,
    f: impl Fn(&Scaling, Option<&[f64]>) -> Vec<f64>,
) -> Result<Vec<Array>, EvalError> {
    let x = call.arg(0)?;
    let (_, [n_rows, n_columns]) = split_last::<2>(x)?;
    let xs = elements(x);
    let dys = call.args.get(1).map(|dy| elements(dy));
    let length = n_rows * n_columns;
    let mut y = Vec::with_capacity(xs.len());
    if length > 0 {
        for (index, x) in xs.chunks_exact(length).enumerate() {
            let scaling = Scaling::new(x, n_rows, n_columns, iterations, eps);
            let dy = dys.as_ref().and_then(|dys| dys.get(index * length..(index + 1) * length));
            y.extend(f(&scaling, dy));
        }
    }
    Ok(vec![array(x.shape(), y)?])
}

fn work(args: &[&Type], iterations: i64, per_iteration: i64) -> Size {
    let n = args.first().map(|x| count(x)).unwrap_or_default();
    let per_element = iterations.saturating_mul(per_iteration).saturating_add(6);
    product(&[&n, &Size::constant(per_element)])
}

impl OpDef for Sinkhorn {
    fn mnemonic(&self) -> &'static str {
        "sinkhorn"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("rows", &self.rows)
            .word("columns", &self.columns)
            .int("iterations", self.iterations)
            .float("eps", self.eps)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let x = one("sinkhorn", args)?;
        check("sinkhorn", x, &self.rows, &self.columns, self.iterations)?;
        ordered(self, args)?;
        Ok(vec![x.clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        with_last(args.get(index)?, &[&self.rows, &self.columns])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        by_matrix(call, self.iterations, self.eps, |scaling, _| scaling.result())
    }

    fn vjp(&self, vjp: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        let (x, dy) = (vjp.arg(0)?, vjp.dy()?);
        let grad = SinkhornGrad {
            rows: self.rows.clone(),
            columns: self.columns.clone(),
            iterations: self.iterations,
            eps: self.eps,
        };
        let dx = vjp.push(grad, &[x, dy])?;
        Ok(wanted(vjp, vec![dx]))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(work(args, self.iterations, 4), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, iterations, eps) = (call.arg(0), number(self.iterations), self.eps);
        quote!(ops::sinkhorn(#x, #iterations, #eps)?)
    }
}

impl ParseOp for Sinkhorn {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "sinkhorn" {
            return Ok(None);
        }
        Ok(Some(Sinkhorn {
            rows: attrs.take_word("rows")?,
            columns: attrs.take_word("columns")?,
            iterations: attrs.take_int("iterations")?,
            eps: attrs.take_float("eps")?,
        }))
    }
}

impl OpDef for SinkhornGrad {
    fn mnemonic(&self) -> &'static str {
        "sinkhorn_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .word("rows", &self.rows)
            .word("columns", &self.columns)
            .int("iterations", self.iterations)
            .float("eps", self.eps)
    }

    fn infer(&self, args: &[&Type]) -> Result<Vec<Type>, TypeError> {
        let (x, dy) = two("sinkhorn_grad", args)?;
        check("sinkhorn_grad", x, &self.rows, &self.columns, self.iterations)?;
        float("sinkhorn_grad", dy)?;
        ordered(self, args)?;
        same_axes("sinkhorn_grad", x, dy)?;
        Ok(vec![x.clone()])
    }

    fn arg_order(&self, index: usize, args: &[&Type]) -> Option<Vec<String>> {
        with_last(args.get(index)?, &[&self.rows, &self.columns])
    }

    fn eval(&self, call: &EvalCall<'_>) -> Result<Vec<Array>, EvalError> {
        call.arg(1)?;
        by_matrix(call, self.iterations, self.eps, |scaling, dy| scaling.grad(dy.unwrap_or(&[])))
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> Result<Vec<Option<ValueId>>, TypeError> {
        Err(no_second_derivative("sinkhorn_grad"))
    }

    fn cost(&self, args: &[&Type], results: &[&Type]) -> Cost {
        Cost::streaming(work(args, self.iterations, 12), args, results)
    }

    fn emit_cpu(&self, call: &EmitCall<'_>) -> TokenStream {
        let (x, dy) = (call.arg(0), call.arg(1));
        let (iterations, eps) = (number(self.iterations), self.eps);
        quote!(ops::sinkhorn_grad(#x, #dy, #iterations, #eps)?)
    }
}

impl ParseOp for SinkhornGrad {
    fn parse(mnemonic: &str, attrs: &mut Attrs) -> Result<Option<Self>, String> {
        if mnemonic != "sinkhorn_grad" {
            return Ok(None);
        }
        Ok(Some(SinkhornGrad {
            rows: attrs.take_word("rows")?,
            columns: attrs.take_word("columns")?,
            iterations: attrs.take_int("iterations")?,
            eps: attrs.take_float("eps")?,
        }))
    }
}
