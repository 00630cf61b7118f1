//! Sinkhorn normalization of small matrices, and its exact derivative.
//!
//! `L = x - max_j x` (per row), `K = exp(L)`, `v_j = 1 / columns`, then
//! `iterations` times `u_s = 1 / (sum_j K_sj v_j + eps)`,
//! `v_j = 1 / (sum_s K_sj u_s + eps)`; the result is `u_s K_sj v_j`. The
//! gradient is that of exactly these steps, unrolled, not of a fixed point
//! that they may not have reached.
//!
//! The matrices are tiny, so on the CPU [`LANES`] of them are worked on side
//! by side, each in one lane of the vector unit.

use tch::{Kind, Tensor};

use super::native::{Host, Kernel, Output, Real, by_kind, parallel_fill, runs_native, vectorized};
use super::support::{ensure, ensure_same_kind, ensure_shape, watched};
use crate::Result;

/// Matrices side by side in one native task.
const LANES: usize = 16;

/// `x[.., s, j]` -> the same shape, nearly doubly stochastic. See the module.
pub fn sinkhorn(x: &Tensor, iterations: i64, eps: f64) -> Result<Tensor> {
    watched("sinkhorn", &[x], || {
        let sizes = sizes("sinkhorn", x, iterations)?;
        if runs_native(&[x]) {
            return by_kind!(x.kind(), sinkhorn_native(x, None, sizes, eps));
        }
        sinkhorn_composite(x, iterations, eps)
    })
}

/// The gradient of [`sinkhorn`] for `x`; `dy` has its shape. The row maximum
/// passes its share to the first maximal element of its row.
pub fn sinkhorn_grad(x: &Tensor, dy: &Tensor, iterations: i64, eps: f64) -> Result<Tensor> {
    watched("sinkhorn_grad", &[x, dy], || {
        const OP: &str = "sinkhorn_grad";
        let sizes = sizes(OP, x, iterations)?;
        let _ = ensure_same_kind(OP, &[x, dy])?;
        ensure_shape(OP, "dy", dy, &x.size())?;
        if runs_native(&[x, dy]) {
            return by_kind!(x.kind(), sinkhorn_native(x, Some(dy), sizes, eps));
        }
        sinkhorn_grad_composite(x, dy, iterations, eps)
    })
}

/// Rows, columns and iterations.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    columns: usize,
    iterations: usize,
}

fn sizes(op: &'static str, x: &Tensor, iterations: i64) -> Result<Sizes> {
    let _ = ensure_same_kind(op, &[x])?;
    let size = x.size();
    ensure(size.len() >= 2 && size.iter().rev().take(2).all(|&n| n > 0), op, || {
        format!("x has shape {size:?}, rows and columns needed")
    })?;
    ensure(iterations >= 0, op, || format!("{iterations} iterations"))?;
    Ok(Sizes {
        rows: size[size.len() - 2] as usize,
        columns: size[size.len() - 1] as usize,
        iterations: iterations as usize,
    })
}

/// [`sinkhorn`] composed of libtorch calls.
pub fn sinkhorn_composite(x: &Tensor, iterations: i64, eps: f64) -> Result<Tensor> {
    let sizes = sizes("sinkhorn", x, iterations)?;
    let (kernel, _) = shifted_exp(x)?;
    let (u, v) = iterate(&kernel, sizes, eps)?;
    match (u.last(), v.last()) {
        (Some(u), Some(v)) => Ok(kernel.f_mul(u)?.f_mul(v)?),
        // No iteration: u is 1.
        _ => Ok(kernel.f_div_scalar(sizes.columns as f64)?),
    }
}

/// `exp(x - max)` and the place of each row's maximum.
fn shifted_exp(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (max, place) = x.f_max_dim(-1, true)?;
    Ok((x.f_sub(&max)?.f_exp()?, place))
}

/// Every `u[.., s, 1]` and every `v[.., 1, j]`.
fn iterate(kernel: &Tensor, sizes: Sizes, eps: f64) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let (mut us, mut vs) = (Vec::new(), Vec::<Tensor>::new());
    for _ in 0..sizes.iterations {
        let row = match vs.last() {
            Some(v) => total(&kernel.f_mul(v)?, -1)?,
            None => total(kernel, -1)?.f_div_scalar(sizes.columns as f64)?,
        };
        let u = row.f_add_scalar(eps)?.f_reciprocal()?;
        let column = total(&kernel.f_mul(&u)?, -2)?;
        us.push(u);
        vs.push(column.f_add_scalar(eps)?.f_reciprocal()?);
    }
    Ok((us, vs))
}

fn total(x: &Tensor, dim: i64) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist(&[dim][..], true, None::<Kind>)?)
}

/// [`sinkhorn_grad`] composed of libtorch calls.
pub fn sinkhorn_grad_composite(
    x: &Tensor,
    dy: &Tensor,
    iterations: i64,
    eps: f64,
) -> Result<Tensor> {
    let sizes = sizes("sinkhorn_grad", x, iterations)?;
    let (kernel, place) = shifted_exp(x)?;
    let (us, vs) = iterate(&kernel, sizes, eps)?;
    let start = kernel.f_narrow(-2, 0, 1)?.f_full_like(1.0 / sizes.columns as f64)?;
    let (last_u, last_v) = (us.last(), vs.last().unwrap_or(&start));
    let dyk = dy.f_mul(&kernel)?;
    let mut dv = match last_u {
        Some(u) => total(&dyk.f_mul(u)?, -2)?,
        None => total(&dyk, -2)?,
    };
    let mut du = total(&dyk.f_mul(last_v)?, -1)?;
    let mut dkernel = dy.f_mul(last_v)?;
    if let Some(u) = last_u {
        dkernel = dkernel.f_mul(u)?;
    }
    for step in (0..us.len()).rev() {
        let (u, v) = (&us[step], &vs[step]);
        let before = if step == 0 { &start } else { &vs[step - 1] };
        let dcolumn = dv.f_mul(&v.f_square()?)?.f_neg()?;
        dkernel = dkernel.f_addcmul(&dcolumn, u)?;
        du = du.f_add(&total(&kernel.f_mul(&dcolumn)?, -1)?)?;
        let drow = du.f_mul(&u.f_square()?)?.f_neg()?;
        dkernel = dkernel.f_addcmul(&drow, before)?;
        dv = total(&kernel.f_mul(&drow)?, -2)?;
        du = du.f_zeros_like()?;
    }
    let dl = dkernel.f_mul(&kernel)?;
    Ok(dl.f_scatter_add(-1, &place, &total(&dl, -1)?.f_neg()?)?)
}

/// The result, or with `dy` the gradient.
fn sinkhorn_native<T: Real>(
    x: &Tensor,
    dy: Option<&Tensor>,
    sizes: Sizes,
    eps: f64,
) -> Result<Tensor> {
    let mut out = Output::zeros::<T>(&x.size())?;
    let dy = dy.map(Host::of).transpose()?;
    let x = Host::of(x)?;
    let (x, dy) = (x.slice::<T>(), dy.as_ref().map(Host::slice::<T>));
    let size = sizes.rows * sizes.columns;
    let passes = if dy.is_some() { 12 } else { 4 };
    let group = LANES * size;
    let work = x.len() * sizes.iterations * passes;
    parallel_fill(out.slice::<T>(), group, work, |index, out| {
        let range = index * group..index * group + out.len();
        let (x, dy) = (&x[range.clone()], dy.map(|dy| &dy[range]));
        vectorized(Group { x, dy, out, sizes, eps: T::of(eps) });
    });
    Ok(out.into_tensor())
}

/// One value of each matrix of a group.
type Lanes<T> = [T; LANES];

#[inline(always)]
fn lanes<T: Real>(f: impl Fn(usize) -> T) -> Lanes<T> {
    std::array::from_fn(f)
}

/// Up to [`LANES`] matrices, one after the other in memory.
struct Group<'a, T> {
    x: &'a [T],
    dy: Option<&'a [T]>,
    out: &'a mut [T],
    sizes: Sizes,
    eps: T,
}

impl<T: Real> Kernel for Group<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run(mut self) {
        let Sizes { rows, columns, iterations } = self.sizes;
        let size = rows * columns;
        let kernel = self.shifted_exp();
        // us[i * rows + s] and vs[i * columns + j] after iteration i; vs
        // begins with the start.
        let mut us = Vec::with_capacity(rows * iterations.max(1));
        let mut vs = vec![[T::of(1.0 / columns as f64); LANES]; columns];
        for step in 0..iterations {
            for s in 0..rows {
                let v = &vs[step * columns..][..columns];
                let den = dot(kernel[s * columns..].iter().zip(v));
                us.push(lanes(|l| T::ONE / (den[l] + self.eps)));
            }
            for j in 0..columns {
                let u = &us[step * rows..][..rows];
                let den = dot(kernel[j..].iter().step_by(columns).zip(u));
                vs.push(lanes(|l| T::ONE / (den[l] + self.eps)));
            }
        }
        if iterations == 0 {
            us.resize(rows, [T::ONE; LANES]);
        }
        let (u, v) = (&us[us.len() - rows..], &vs[vs.len() - columns..]);
        let Some(dy) = self.dy else {
            for (at, k) in kernel.iter().enumerate() {
                let (u, v) = (&u[at / columns], &v[at % columns]);
                unload(self.out, at, size, lanes(|l| u[l] * k[l] * v[l]));
            }
            return;
        };
        let dl = unrolled(&kernel, &us, &vs, &load(dy, size), self.sizes);
        for s in 0..rows {
            self.row_gradient(&dl, s);
        }
    }
}

impl<T: Real> Group<'_, T> {
    #[inline(always)]
    fn shifted_exp(&self) -> Vec<Lanes<T>> {
        let Sizes { rows, columns, .. } = self.sizes;
        let mut kernel = load(self.x, rows * columns);
        for row in kernel.chunks_mut(columns) {
            let mut max = row[0];
            for x in row.iter() {
                max = lanes(|l| if x[l] > max[l] { x[l] } else { max[l] });
            }
            for x in row {
                *x = lanes(|l| (x[l] - max[l]).exp());
            }
        }
        kernel
    }

    /// Takes the row's sum from its first maximal element.
    #[inline(always)]
    fn row_gradient(&mut self, dl: &[Lanes<T>], s: usize) {
        let Sizes { rows, columns, .. } = self.sizes;
        let size = rows * columns;
        let row = &dl[s * columns..][..columns];
        let mut sum = [T::ZERO; LANES];
        for d in row {
            sum = lanes(|l| sum[l] + d[l]);
        }
        for (j, d) in row.iter().enumerate() {
            unload(self.out, s * columns + j, size, *d);
        }
        for (l, matrix) in self.out.chunks_mut(size).enumerate() {
            let x = &self.x[l * size + s * columns..][..columns];
            let first = (1..columns).fold(0, |best, j| if x[j] > x[best] { j } else { best });
            matrix[s * columns + first] += -sum[l];
        }
    }
}

/// Gradient of `L`, by the steps in reverse.
#[inline(always)]
fn unrolled<T: Real>(
    kernel: &[Lanes<T>],
    us: &[Lanes<T>],
    vs: &[Lanes<T>],
    dy: &[Lanes<T>],
    Sizes { rows, columns, iterations }: Sizes,
) -> Vec<Lanes<T>> {
    let (u, v) = (&us[us.len() - rows..], &vs[vs.len() - columns..]);
    let mut du = vec![[T::ZERO; LANES]; rows];
    let mut dv = vec![[T::ZERO; LANES]; columns];
    let mut dkernel = vec![[T::ZERO; LANES]; rows * columns];
    for s in 0..rows {
        for j in 0..columns {
            let at = s * columns + j;
            let (k, g, u, v) = (&kernel[at], &dy[at], &u[s], &v[j]);
            dkernel[at] = lanes(|l| g[l] * u[l] * v[l]);
            du[s] = lanes(|l| du[s][l] + g[l] * k[l] * v[l]);
            dv[j] = lanes(|l| dv[j][l] + g[l] * k[l] * u[l]);
        }
    }
    for step in (0..iterations).rev() {
        let (u, v) = (&us[step * rows..][..rows], &vs[(step + 1) * columns..][..columns]);
        let before = &vs[step * columns..][..columns];
        for j in 0..columns {
            let d = lanes(|l| -(dv[j][l] * v[j][l] * v[j][l]));
            for s in 0..rows {
                let (at, k) = (s * columns + j, &kernel[s * columns + j]);
                dkernel[at] = lanes(|l| dkernel[at][l] + d[l] * u[s][l]);
                du[s] = lanes(|l| du[s][l] + k[l] * d[l]);
            }
            dv[j] = [T::ZERO; LANES];
        }
        for s in 0..rows {
            let d = lanes(|l| -(du[s][l] * u[s][l] * u[s][l]));
            for j in 0..columns {
                let (at, k) = (s * columns + j, &kernel[s * columns + j]);
                dkernel[at] = lanes(|l| dkernel[at][l] + d[l] * before[j][l]);
                dv[j] = lanes(|l| dv[j][l] + k[l] * d[l]);
            }
            du[s] = [T::ZERO; LANES];
        }
    }
    for (d, k) in dkernel.iter_mut().zip(kernel) {
        *d = lanes(|l| d[l] * k[l]);
    }
    dkernel
}

#[inline(always)]
fn dot<'a, T: Real>(pairs: impl Iterator<Item = (&'a Lanes<T>, &'a Lanes<T>)>) -> Lanes<T> {
    let mut sum = [T::ZERO; LANES];
    for (a, b) in pairs {
        sum = lanes(|l| sum[l] + a[l] * b[l]);
    }
    sum
}

/// Matrices of `size` elements, side by side; missing ones are zero.
#[inline(always)]
fn load<T: Real>(x: &[T], size: usize) -> Vec<Lanes<T>> {
    let mut all = vec![[T::ZERO; LANES]; size];
    for (l, matrix) in x.chunks(size).enumerate() {
        for (to, from) in all.iter_mut().zip(matrix) {
            to[l] = *from;
        }
    }
    all
}

/// Writes element `at` of every matrix that there is.
#[inline(always)]
fn unload<T: Real>(out: &mut [T], at: usize, size: usize, values: Lanes<T>) {
    for (matrix, value) in out.chunks_mut(size).zip(values) {
        matrix[at] = value;
    }
}
