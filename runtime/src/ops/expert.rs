//! Products with a weight that an index chooses.
//!
//! Rows are sorted by expert, stably, and each expert that is present takes one matrix product
//! with its rows. What goes where is a function of the index alone, every result row is written
//! once, and a weight's gradient is one product, so the bits do not depend on scheduling. The
//! numbers of rows are read by the host, which on a GPU waits for the device once per call.

use tch::{Kind, Tensor};

use super::select::{counted, to_host};
use super::support::{Named, cast, ensure, ensure_same_kind, is_float, op_error, shape_of};
use crate::Result;

/// The places of `ids` sorted by expert, none left out, and the run of each expert present.
struct Sorted {
    places: Tensor,
    /// Expert, first place in `places`, number of places.
    runs: Vec<(i64, i64, i64)>,
}

fn sorted(op: &'static str, ids: &Tensor, experts: i64) -> Result<Sorted> {
    ensure(!is_float(ids.kind()) && ids.kind() != Kind::Bool, op, || {
        format!("the ids are {:?}, an integer kind is needed", ids.kind())
    })?;
    let flat = cast(ids, Kind::Int64)?.f_reshape([-1i64])?;
    let counts = to_host(&counted(op, &flat, experts)?)?;
    let (_, order) = flat.f_sort_stable(true, 0, false)?;
    let (none, counts) = counts.split_first().unwrap_or((&0, &[]));
    let mut runs = Vec::new();
    let mut start = 0;
    for (expert, &length) in (0..).zip(counts) {
        if length > 0 {
            runs.push((expert, start, length));
        }
        start += length;
    }
    Ok(Sorted { places: order.f_narrow(0, *none, start)?, runs })
}

/// The rows of `x` that the places of `ids` read: `x` has the first axes of `ids` and d.
fn rows_of(op: &'static str, x: &Tensor, ids: &Tensor, sorted: &Sorted) -> Result<Tensor> {
    let (size, ids_size) = (x.size(), ids.size());
    let split = size.split_last();
    let (d, lead) = split.ok_or_else(|| op_error(op, "x has no axis to sum over"))?;
    ensure(ids_size.starts_with(lead), op, || {
        format!("ids have shape {ids_size:?}, which does not begin with {lead:?} as x has")
    })?;
    let run: i64 = ids_size[lead.len()..].iter().product();
    let flat = x.f_reshape([lead.iter().product(), *d])?;
    let rows = match run {
        1 => sorted.places.shallow_clone(),
        _ => sorted.places.f_divide_scalar_mode(run, "floor")?,
    };
    Ok(flat.f_index_select(0, &rows)?)
}

/// `x[batch.., d]`, `w[e, f, d]`, `ids[batch.., free..]` -> `[batch.., free.., f]`: each row of `x`
/// times the weight at its index, 0 for none.
pub fn expert_dot(x: &Tensor, w: &Tensor, ids: &Tensor) -> Result<Tensor> {
    const OP: &str = "expert_dot";
    let kind = ensure_same_kind(OP, &[x, w])?;
    let [experts, f, d] = shape_of(OP, "w", w)?;
    ensure(x.size().last() == Some(&d), OP, || {
        format!("x has shape {:?}, its last axis must have the {d} of w", x.size())
    })?;
    let sorted = sorted(OP, ids, experts)?;
    let rows = rows_of(OP, x, ids, &sorted)?;
    let mut parts = Vec::new();
    for &(expert, start, length) in &sorted.runs {
        let weight = w.f_select(0, expert)?.f_transpose(0, 1)?;
        parts.push(rows.f_narrow(0, start, length)?.f_mm(&weight).named(OP, &[x, w])?);
    }
    let n = ids.numel() as i64;
    let mut y = Tensor::f_zeros([n, f], (kind, x.device()))?;
    if !parts.is_empty() {
        y = y.f_index_copy_(0, &sorted.places, &Tensor::f_cat(&parts, 0)?)?;
    }
    Ok(y.f_reshape([ids.size(), vec![f]].concat())?)
}

/// The gradient of [`expert_dot`] for a weight of `experts` experts: `x[batch.., d]`,
/// `dy[batch.., free.., f]`, `ids[batch.., free..]` -> `[experts, f, d]`.
pub fn expert_dot_weight_grad(
    x: &Tensor,
    dy: &Tensor,
    ids: &Tensor,
    experts: i64,
) -> Result<Tensor> {
    const OP: &str = "expert_dot_weight_grad";
    let kind = ensure_same_kind(OP, &[x, dy])?;
    let (ids_size, dy_size) = (ids.size(), dy.size());
    ensure(dy_size.len() == ids_size.len() + 1 && dy_size.starts_with(&ids_size), OP, || {
        format!("dy has shape {dy_size:?}, that of ids {ids_size:?} and one axis are needed")
    })?;
    let sorted = sorted(OP, ids, experts)?;
    let rows = rows_of(OP, x, ids, &sorted)?;
    let (f, d) = (dy_size[ids_size.len()], rows.size()[1]);
    let flat = dy.f_reshape([ids.numel() as i64, f])?;
    let dys = flat.f_index_select(0, &sorted.places)?;
    let dw = Tensor::f_zeros([experts, f, d], (kind, x.device()))?;
    for &(expert, start, length) in &sorted.runs {
        let (dy, x) = (dys.f_narrow(0, start, length)?, rows.f_narrow(0, start, length)?);
        let part = dy.f_transpose(0, 1)?.f_mm(&x).named(OP, &[&dy, &x])?;
        dw.f_select(0, expert)?.f_copy_(&part)?;
    }
    Ok(dw)
}
