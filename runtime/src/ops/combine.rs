//! What the experts of a row give, weighed and added up.

use tch::{Kind, Tensor};

use super::routed::{Routing, Term, routed_dot};
use super::support::{cast, ensure, ensure_shape, watched, wide_kind};
use super::tile;
use crate::Result;

/// `weights[batch.., k]` of f32 and terms as of [`routed_dot`], with ids `[batch.., k]` -> `[batch.., n]`: the
/// sum over `k` of each choice's weight times its sum of products.
///
/// Products are rounded to the kind of the rows; their weighed sum is taken in f32 (f64 in an f64 run) and
/// rounded once to that kind.
///
/// # Errors
/// As [`routed_dot`], or weights that are not one number per place.
pub fn routed_combine(
    weights: &Tensor,
    routing: &Routing<'_>,
    terms: &[Term<'_>],
) -> Result<Tensor> {
    const OP: &str = "routed_combine";
    ensure_shape(OP, "weights", weights, &routing.ids.size())?;
    ensure(matches!(weights.kind(), Kind::Float | Kind::Double), OP, || {
        format!("weights are {:?}, f32 needed", weights.kind())
    })?;
    ensure(!routing.ids.size().is_empty(), OP, || "ids have no choices".to_owned())?;
    let each = routed_dot(routing, terms)?;
    watched(OP, &[weights, &each], || {
        if tile::takes_weigh(&each) {
            return tile::weigh(weights, &each);
        }
        weigh_composite(weights, &each)
    })
}

/// The weighed sum composed of libtorch calls.
pub(super) fn weigh_composite(weights: &Tensor, each: &Tensor) -> Result<Tensor> {
    let wide = cast(each, wide_kind(each.kind()))?;
    let weighed = wide.f_mul(&cast(weights, wide.kind())?.f_unsqueeze(-1)?)?;
    cast(&weighed.f_sum_dim_intlist(&[-2i64][..], false, None::<Kind>)?, each.kind())
}
