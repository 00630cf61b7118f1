//! Cross entropy fused with its linear map.
//!
//! Rows are taken in chunks whose size depends on the shapes alone, so the
//! logits of all rows never live at once and the sums have one order.

use tch::{Kind, Tensor};

use super::gather::check_targets;
use super::support::{
    cast, ensure, ensure_same_kind, ensure_shape, op_error, scalar, shape_of, watched, wide_kind,
};
use super::tile;
use crate::{Result, cuda};

/// Targets with this value do not count.
pub const IGNORE_INDEX: i64 = -100;

/// Logits held at once, in elements: within the caches of a CPU, and on other
/// devices enough rows to fill them.
const CHUNK_CPU: i64 = 1 << 19;
const CHUNK_DEVICE: i64 = 1 << 28;

/// Rows below which a chunk is not cut, so that the products stay efficient.
const MIN_ROWS: i64 = 64;

/// `h[.., d]`, `w[v, d]`, `targets[..]` -> `[]`: the mean over targets other
/// than [`IGNORE_INDEX`] of `logsumexp(z) - z_target`, where `z = w h`, and
/// `z = c tanh(z / c)` for a softcap c above 0. It is 0 where no target counts.
pub fn linear_cross_entropy(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    softcap: f64,
) -> Result<Tensor> {
    watched("linear_cross_entropy", &[h, w], || {
        let rows = Rows::new("linear_cross_entropy", h, w, targets)?;
        if tile::takes_cross_entropy(h, w) {
            let reference: cuda::Way<'_> = &|args, _| {
                let [h, w, targets] = three(args)?;
                Ok(vec![linear_cross_entropy_composite(h, w, targets, softcap)?])
            };
            let inputs = [&rows.h, w, &rows.targets];
            let results = tile::cross_entropy(&inputs, tile::Loss::Value, softcap, reference)?;
            let [loss] = exactly(results)?;
            return Ok(loss);
        }
        linear_cross_entropy_composite(h, w, targets, softcap)
    })
}

/// [`linear_cross_entropy`] composed of libtorch calls.
pub fn linear_cross_entropy_composite(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    softcap: f64,
) -> Result<Tensor> {
    let rows = Rows::new("linear_cross_entropy", h, w, targets)?;
    let mut total = Tensor::f_zeros([0i64; 0], (wide_kind(h.kind()), h.device()))?;
    for (start, n) in rows.chunks() {
        let z = capped(&rows.logits(start, n)?, softcap)?;
        let (class, counts) = rows.targets(start, n)?;
        let at_target = z.f_gather(1, &class.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
        let loss = z.f_logsumexp([1i64], false)?.f_sub(&at_target)?;
        let held = loss.f_where_self(&counts, &scalar(0.0, &loss)?)?;
        total = total.f_add(&held.f_sum(None::<Kind>)?)?;
    }
    Ok(total.f_div(&rows.n_counted(total.kind())?)?)
}

/// The gradients of [`linear_cross_entropy`] for `h` and `w`, times `dloss[]`.
pub fn linear_cross_entropy_grad(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    dloss: &Tensor,
    softcap: f64,
) -> Result<(Tensor, Tensor)> {
    let rows = Rows::new("linear_cross_entropy_grad", h, w, targets)?;
    ensure_shape("linear_cross_entropy_grad", "dloss", dloss, &[])?;
    if tile::takes_cross_entropy(h, w) {
        let reference: cuda::Way<'_> = &|args, _| {
            let [h, w, targets] = three(args)?;
            let dloss = args.get(3).copied().unwrap_or(dloss);
            let (dh, dw) = linear_cross_entropy_grad_composite(h, w, targets, dloss, softcap)?;
            Ok(vec![dh, dw])
        };
        let inputs = [&rows.h, w, &rows.targets, dloss];
        let results = tile::cross_entropy(&inputs, tile::Loss::Gradients, softcap, reference)?;
        let [dh, dw] = exactly(results)?;
        return Ok((dh.f_reshape(h.size())?, dw));
    }
    linear_cross_entropy_grad_composite(h, w, targets, dloss, softcap)
}

/// [`linear_cross_entropy`] and its gradients `dh` and `dw` for a `dloss` of 1 in one pass: three products, where the
/// two functions by themselves take four. On a GPU in bf16 no more than one chunk of logits lives, in bf16.
pub fn linear_cross_entropy_step(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    softcap: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let both = |h: &Tensor, w: &Tensor, targets: &Tensor| -> Result<Vec<Tensor>> {
        let loss = linear_cross_entropy_composite(h, w, targets, softcap)?;
        let one = scalar(1.0, &loss)?;
        let (dh, dw) = linear_cross_entropy_grad_composite(h, w, targets, &one, softcap)?;
        Ok(vec![loss, dh, dw])
    };
    if tile::takes_cross_entropy(h, w) {
        let rows = Rows::new("linear_cross_entropy_step", h, w, targets)?;
        let reference: cuda::Way<'_> = &|args, _| {
            let [h, w, targets] = three(args)?;
            both(h, w, targets)
        };
        let inputs = [&rows.h, w, &rows.targets];
        let results = tile::cross_entropy(&inputs, tile::Loss::Both, softcap, reference)?;
        let [loss, dh, dw] = exactly(results)?;
        return Ok((loss, dh.f_reshape(h.size())?, dw));
    }
    let [loss, dh, dw] = exactly(both(h, w, targets)?)?;
    Ok((loss, dh, dw))
}

fn three<'a>(args: &[&'a Tensor]) -> Result<[&'a Tensor; 3]> {
    let first = args.get(..3).and_then(|args| <[&Tensor; 3]>::try_from(args).ok());
    first.ok_or_else(|| op_error("linear_cross_entropy", "fewer than three arguments"))
}

fn exactly<const N: usize>(results: Vec<Tensor>) -> Result<[Tensor; N]> {
    results.try_into().map_err(|_| op_error("linear_cross_entropy", "another number of results"))
}

/// [`linear_cross_entropy_grad`] composed of libtorch calls.
pub fn linear_cross_entropy_grad_composite(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    dloss: &Tensor,
    softcap: f64,
) -> Result<(Tensor, Tensor)> {
    let rows = Rows::new("linear_cross_entropy_grad", h, w, targets)?;
    ensure_shape("linear_cross_entropy_grad", "dloss", dloss, &[])?;
    let weight = cast(dloss, wide_kind(h.kind()))?;
    let weight = weight.f_div(&rows.n_counted(weight.kind())?)?;
    let mut dh = Vec::new();
    let mut dw = Tensor::f_zeros(w.size(), (wide_kind(w.kind()), w.device()))?;
    for (start, n) in rows.chunks() {
        let dz = cast(&rows.logit_gradient(start, n, &weight, softcap)?, h.kind())?;
        dh.push(class_sum(&dz, w)?);
        let part = dz.f_transpose(0, 1)?.f_mm(&rows.h.f_narrow(0, start, n)?)?;
        dw = dw.f_add(&cast(&part, dw.kind())?)?;
    }
    let dh = if dh.is_empty() { h.f_zeros_like()? } else { Tensor::f_cat(&dh, 0)? };
    Ok((dh.f_reshape(h.size())?, cast(&dw, w.kind())?))
}

/// `dz[n, v] w[v, d]`. The product of a lone row is a matrix-vector product,
/// in which libtorch's CPU library adds all classes one after the other: in f32
/// that was off by 4e-5 at 150 thousand classes, a reduction by 1e-7.
fn class_sum(dz: &Tensor, w: &Tensor) -> Result<Tensor> {
    if dz.size().first() == Some(&1) {
        let terms = dz.f_transpose(0, 1)?.f_mul(w)?;
        return Ok(terms.f_sum_dim_intlist(&[0i64][..], true, None::<Kind>)?);
    }
    Ok(dz.f_mm(w)?)
}

fn capped(z: &Tensor, softcap: f64) -> Result<Tensor> {
    if softcap > 0.0 {
        Ok(z.f_div_scalar(softcap)?.f_tanh()?.f_mul_scalar(softcap)?)
    } else {
        Ok(z.shallow_clone())
    }
}

/// The checked inputs, with the leading dimensions of `h` made into rows.
struct Rows<'a> {
    h: Tensor,
    w: &'a Tensor,
    targets: Tensor,
    n_rows: i64,
    n_chunks: i64,
}

impl<'a> Rows<'a> {
    fn new(op: &'static str, h: &Tensor, w: &'a Tensor, targets: &Tensor) -> Result<Rows<'a>> {
        let _ = ensure_same_kind(op, &[h, w])?;
        let [classes, d] = shape_of(op, "w", w)?;
        let h_size = h.size();
        let Some((&last, lead)) = h_size.split_last() else {
            return Err(op_error(op, "h has no dimensions"));
        };
        ensure(last == d, op, || format!("h {h_size:?} and w {:?} differ in the last", w.size()))?;
        ensure_shape(op, "targets", targets, lead)?;
        check_targets(op, targets, classes, IGNORE_INDEX)?;
        let n_rows: i64 = lead.iter().product();
        let held = if h.device().is_cuda() { CHUNK_DEVICE } else { CHUNK_CPU };
        let chunk = (held / classes.max(1)).max(MIN_ROWS);
        Ok(Rows {
            h: h.f_reshape([n_rows, d])?,
            w,
            targets: targets.f_reshape([n_rows])?,
            n_rows,
            n_chunks: (n_rows + chunk - 1) / chunk,
        })
    }

    /// Start and length of each chunk. Lengths differ by 1 at most, so that no
    /// chunk has a lone row unless all there is is one row.
    fn chunks(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        let (n_rows, n_chunks) = (self.n_rows, self.n_chunks);
        let start = move |i: i64| n_rows * i / n_chunks;
        (0..n_chunks).map(move |i| (start(i), start(i + 1) - start(i)))
    }

    /// Logits of a chunk before the cap, at least f32.
    fn logits(&self, start: i64, n: i64) -> Result<Tensor> {
        let z = self.h.f_narrow(0, start, n)?.f_mm(&self.w.f_transpose(0, 1)?)?;
        cast(&z, wide_kind(z.kind()))
    }

    /// Class of each row of a chunk (0 where ignored), and whether it counts.
    fn targets(&self, start: i64, n: i64) -> Result<(Tensor, Tensor)> {
        let targets = self.targets.f_narrow(0, start, n)?;
        Ok((targets.f_clamp_min(0)?, targets.f_ne(IGNORE_INDEX)?))
    }

    /// How many targets count, at least 1.
    fn n_counted(&self, kind: Kind) -> Result<Tensor> {
        let n = self.targets.f_ne(IGNORE_INDEX)?.f_sum(Kind::Int64)?;
        Ok(n.f_clamp_min(1)?.f_to_kind(kind)?)
    }

    /// Gradient of the logits before the cap: `weight (softmax - onehot)`
    /// through the cap, 0 in ignored rows.
    fn logit_gradient(&self, start: i64, n: i64, weight: &Tensor, softcap: f64) -> Result<Tensor> {
        let z = capped(&self.logits(start, n)?, softcap)?;
        let (class, counts) = self.targets(start, n)?;
        let row_weight = weight.f_where_self(&counts, &scalar(0.0, weight)?)?.f_unsqueeze(1)?;
        let minus = Tensor::f_full([n, 1], -1.0, (z.kind(), z.device()))?;
        let mut dz = z.f_softmax(1, None::<Kind>)?;
        // Each row has one target, so the order of this sum does not matter.
        let _ = dz.f_scatter_add_(1, &class.f_unsqueeze(1)?, &minus)?;
        let dz = dz.f_mul(&row_weight)?;
        if softcap > 0.0 {
            let tanh = z.f_div_scalar(softcap)?;
            return Ok(Tensor::f_tanh_backward(&dz, &tanh)?);
        }
        Ok(dz)
    }
}
