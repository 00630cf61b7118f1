//! Rows of routed experts on their way between ranks, as one rank sees it.

use tch::{Kind, Tensor};

use super::gather::check_index;
use super::routed::expert_order;
use super::support::{cast, ensure, op_error, watched};
use crate::Result;

/// `x[places.., d]` and `ids[places..]` of `experts` experts in all -> `x`, by way of the ranks that have the
/// experts: rows are packed by expert, as they would go out, and put back.
///
/// One rank alone sends to itself: the rows are copied twice, once into the packed buffer and once out of
/// it, which is what a rank of several writes and reads of its own memory.
///
/// # Errors
/// Shapes that do not fit together, or an id that is not below `experts`.
pub fn exchange(x: &Tensor, ids: &Tensor, experts: i64) -> Result<Tensor> {
    const OP: &str = "exchange";
    let size = x.size();
    let (d, lead) = size.split_last().ok_or_else(|| op_error(OP, "x has no dimensions"))?;
    ensure(*lead == ids.size()[..], OP, || {
        format!("x has shape {size:?}, ids {:?}: a row per id is needed", ids.size())
    })?;
    watched(OP, &[x], || {
        let (order, _) = expert_order(ids, experts)?;
        let (rows, run) = distinct_rows(x, *d)?;
        let from = if run == 1 { order.shallow_clone() } else { floor(&order, run)? };
        let packed = rows.f_index_select(0, &from)?;
        let places = Tensor::f_arange(ids.numel() as i64, (Kind::Int64, x.device()))?;
        let back = places.f_empty_like()?.f_scatter_(0, &order, &places)?;
        Ok(packed.f_index_select(0, &back)?.f_reshape(&size)?)
    })
}

/// The rows of x that differ, `[n, d]`, and how many places in a row read each: rows repeated along the
/// last axis before d, by a view, stay one.
fn distinct_rows(x: &Tensor, d: i64) -> Result<(Tensor, i64)> {
    let (size, stride) = (x.size(), x.stride());
    let last = size.len().saturating_sub(2);
    if size.len() >= 2 && stride.get(last) == Some(&0) && size.get(last).is_some_and(|n| *n > 0) {
        let run = size.get(last).copied().unwrap_or(1);
        return Ok((x.f_select(last as i64, 0)?.f_reshape([-1, d])?, run));
    }
    Ok((x.f_reshape([-1, d])?, 1))
}

fn floor(places: &Tensor, run: i64) -> Result<Tensor> {
    Ok(places.f_divide_scalar_mode(run, "floor")?)
}

/// The number of each expert among those of its rank: `id mod experts`; negative ids stay.
///
/// # Errors
/// The ids are no integers.
pub fn local_expert(ids: &Tensor, experts: i64) -> Result<Tensor> {
    const OP: &str = "local_expert";
    ensure(experts > 0, OP, || format!("{experts} experts"))?;
    check_index(OP, ids, i64::MAX, true)?;
    let ids = cast(ids, Kind::Int64)?;
    Ok(ids.f_remainder(experts)?.f_where_self(&ids.f_ge(0)?, &ids)?)
}
