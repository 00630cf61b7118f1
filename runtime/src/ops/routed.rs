//! Products of routed rows: each row goes to the experts that its places name.
//!
//! A **place** is one element of `ids[batch.., k]`: one choice of one row, or none where it is negative.
//! All tensors stand in the order of places; what is sorted by expert is only the list of places
//! ([`expert_order`]), which kernels walk to gather rows as they load them. So a routed product needs no
//! sorted copy of its rows, no count on the host and no scatter of its results.
//!
//! An op takes its kernel by the rule of [`super::tile`]; everything else is composed of
//! [`super::expert_dot`] and its gradient, which read the counts on the host.

use tch::{Kind, Tensor};

use super::expert::{expert_dot, expert_dot_weight_grad};
use super::gather::check_index;
use super::select::counted;
use super::support::{
    cast, ensure, ensure_kind, ensure_same_kind, ensure_shape, op_error, shape_of, watched,
    wide_kind,
};
use super::tile;
use crate::Result;

/// Which expert each place goes to, and the places by expert.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// `[batch.., k]` of i64: the expert of each place, negative for none.
    pub ids: &'a Tensor,
    /// `[places]` of i64: the places sorted by expert, as [`expert_order`] gives them.
    pub order: &'a Tensor,
    /// `[experts + 1]` of i64: where each expert begins in `order`, and where the last one ends.
    pub bounds: &'a Tensor,
}

/// One product of a sum.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// `[batch.., k]` and the axis that is summed over, or without the last axes of the ids: then all
    /// places of a row read it.
    pub x: &'a Tensor,
    /// `[e, n, k]`, turned `[e, k, n]`, of the kind of `x`, or of int8 codes.
    pub w: &'a Tensor,
    /// Of codes: `[e, n]`, turned `[e, k]`, of f32: what a code of that row is multiplied with.
    pub scale: Option<&'a Tensor>,
    /// Whether the sum runs over the first axis of an expert's weight.
    pub turned: bool,
}

impl<'a> Term<'a> {
    /// `x w^T`, as a forward pass takes it: `w[e, n, k]`.
    pub fn plain(x: &'a Tensor, w: &'a Tensor) -> Term<'a> {
        Term { x, w, scale: None, turned: false }
    }

    /// `x w`, as the gradient for an input takes it: `w[e, k, n]`.
    pub fn turned(x: &'a Tensor, w: &'a Tensor) -> Term<'a> {
        Term { x, w, scale: None, turned: true }
    }

    /// The same with a weight of codes and the scales of its rows.
    pub fn scaled(self, scale: &'a Tensor) -> Term<'a> {
        Term { scale: Some(scale), ..self }
    }
}

/// `ids[..]` -> `order[places]`, `bounds[experts + 1]`: the places by expert, those of one expert as they
/// stand; places of no expert come last, after `bounds[experts]`.
///
/// # Errors
/// The ids are no integers, or one is not below `experts`. On a GPU the kernel stops at such a one, which
/// is reported where its results are waited for.
pub fn expert_order(ids: &Tensor, experts: i64) -> Result<(Tensor, Tensor)> {
    const OP: &str = "expert_order";
    ensure(experts >= 0, OP, || format!("{experts} experts"))?;
    check_index(OP, ids, experts, true)?;
    let ids = cast(ids, Kind::Int64)?;
    if tile::takes_order(&ids, experts) {
        return tile::order(&ids, experts);
    }
    expert_order_composite(&ids, experts)
}

/// [`expert_order`] composed of libtorch calls, which on a GPU wait for the device.
pub(super) fn expert_order_composite(ids: &Tensor, experts: i64) -> Result<(Tensor, Tensor)> {
    const OP: &str = "expert_order";
    let flat = ids.f_reshape([-1i64])?;
    let counts = counted(OP, &flat, experts)?.f_narrow(0, 1, experts)?;
    let zero = Tensor::f_zeros([1], (Kind::Int64, ids.device()))?;
    let bounds = Tensor::f_cat(&[zero, counts.f_cumsum(0, Kind::Int64)?], 0)?;
    let named = flat.f_where_self(&flat.f_ge(0)?, &flat.f_full_like(experts)?)?;
    let (_, order) = named.f_sort_stable(true, 0, false)?;
    Ok((order, bounds))
}

/// `[ids.., n]`: the sum over terms of each place's row times the weight of its expert; 0 for no expert.
///
/// Summed in f32 (f64 in an f64 run) and rounded once to the kind of `x`. Composed of libtorch calls,
/// each product is rounded too.
///
/// # Errors
/// No terms, or shapes, kinds or devices that do not fit together.
pub fn routed_dot(routing: &Routing<'_>, terms: &[Term<'_>]) -> Result<Tensor> {
    const OP: &str = "routed_dot";
    let (_, kind) = fitting(OP, routing, terms)?;
    if let [_] = terms
        && tile::takes_low(routing, terms)
    {
        return first_of(OP, tile::low(routing, terms)?);
    }
    match tile::routed_dot(routing, terms) {
        Some(result) => result,
        None => watched(OP, &shown(terms), || cast(&sum_of(routing, terms)?, kind)),
    }
}

/// [`routed_dot`] of each of two terms by itself. Where both are adapters of 16 columns on the same rows, these
/// are read once.
///
/// # Errors
/// As [`routed_dot`].
pub fn routed_dot_pair(
    routing: &Routing<'_>,
    first: Term<'_>,
    second: Term<'_>,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "routed_dot";
    let terms = [first, second];
    let same_rows = first.x.data_ptr() == second.x.data_ptr()
        && first.x.size() == second.x.size()
        && first.x.stride() == second.x.stride();
    if same_rows && tile::takes_low(routing, &terms) {
        let _ = (fitting(OP, routing, &terms[..1])?, fitting(OP, routing, &terms[1..])?);
        return two_of(OP, tile::low(routing, &terms)?);
    }
    Ok((routed_dot(routing, &terms[..1])?, routed_dot(routing, &terms[1..])?))
}

/// `gated` and `lifted`, which are [`routed_dot`] of `gate` and of `up`, and `hidden = silu(gated) * lifted`
/// computed from their sums before these are rounded. All `[ids.., f]`.
///
/// # Errors
/// As [`routed_dot`], or `gate` and `up` of different widths.
pub fn routed_swiglu(
    routing: &Routing<'_>,
    gate: &[Term<'_>],
    up: &[Term<'_>],
) -> Result<(Tensor, Tensor, Tensor)> {
    const OP: &str = "routed_swiglu";
    let kind = fitting_pair(OP, routing, gate, up)?;
    if let Some(result) = tile::routed_swiglu(routing, gate, up, true) {
        let (others, hidden) = result?;
        let (gated, lifted) = others.ok_or_else(|| op_error(OP, "a kernel gave too little"))?;
        return Ok((gated, lifted, hidden));
    }
    let (gated, lifted, hidden) = swiglu_of(routing, gate, up)?;
    let result = |x: &Tensor| watched(OP, &shown(gate), || cast(x, kind));
    Ok((result(&gated)?, result(&lifted)?, result(&hidden)?))
}

/// The last of what [`routed_swiglu`] gives, alone.
///
/// # Errors
/// As [`routed_swiglu`].
pub fn routed_swiglu_hidden(
    routing: &Routing<'_>,
    gate: &[Term<'_>],
    up: &[Term<'_>],
) -> Result<Tensor> {
    const OP: &str = "routed_swiglu_hidden";
    let kind = fitting_pair(OP, routing, gate, up)?;
    if let Some(result) = tile::routed_swiglu(routing, gate, up, false) {
        return result.map(|(_, hidden)| hidden);
    }
    let (_, _, hidden) = swiglu_of(routing, gate, up)?;
    watched(OP, &shown(gate), || cast(&hidden, kind))
}

/// The gradient of a plain product for its weight: `x[ids.., d]`, `dy[ids.., f]` -> `[experts, f, d]`, the
/// sum over the places of each expert, zeros where it has none. `x` and `dy` may lack the last axes of
/// the ids, as in [`Term`].
///
/// # Errors
/// Shapes, kinds or devices that do not fit together.
pub fn routed_weight_grad(
    routing: &Routing<'_>,
    x: &Tensor,
    dy: &Tensor,
    experts: i64,
) -> Result<Tensor> {
    const OP: &str = "routed_weight_grad";
    fitting_grad(OP, routing, x, &[dy], experts)?;
    if tile::takes_low_grad(routing, x, &[dy]) {
        return first_of(OP, tile::low_grad(routing, x, &[dy])?);
    }
    if tile::takes_weight_grad(routing, x, dy) {
        return tile::weight_grad(routing, x, dy);
    }
    watched(OP, &[x, dy], || grad_of(x, dy, routing.ids, experts))
}

/// [`routed_weight_grad`] of `x` with each of two `dy`. Where these have 16 columns, the rows of `x` are read once.
///
/// # Errors
/// As [`routed_weight_grad`].
pub fn routed_weight_grad_pair(
    routing: &Routing<'_>,
    x: &Tensor,
    dy: [&Tensor; 2],
    experts: i64,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "routed_weight_grad";
    fitting_grad(OP, routing, x, &dy, experts)?;
    if tile::takes_low_grad(routing, x, &dy) {
        return two_of(OP, tile::low_grad(routing, x, &dy)?);
    }
    let [first, second] = dy;
    Ok((
        routed_weight_grad(routing, x, first, experts)?,
        routed_weight_grad(routing, x, second, experts)?,
    ))
}

/// [`routed_dot`] of `x[ids.., f]` with a turned `w[experts, f, 16]`, and [`routed_weight_grad`] of `small` with
/// `x`: the product with an adapter's weight and the gradient of that. Where `x` has a row for each place, it is read once.
///
/// # Errors
/// As [`routed_dot`] and [`routed_weight_grad`].
pub fn routed_low_back(
    routing: &Routing<'_>,
    x: &Tensor,
    small: &Tensor,
    w: &Tensor,
    experts: i64,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "routed_low_back";
    let term = Term::turned(x, w);
    if tile::takes_low_back(routing, x, small, w) {
        let _ = fitting(OP, routing, &[term])?;
        fitting_grad(OP, routing, small, &[x], experts)?;
        return two_of(OP, tile::low_back(routing, x, small, w)?);
    }
    Ok((routed_dot(routing, &[term])?, routed_weight_grad(routing, small, x, experts)?))
}

fn first_of(op: &'static str, results: Vec<Tensor>) -> Result<Tensor> {
    results.into_iter().next().ok_or_else(|| op_error(op, "a kernel gave too little"))
}

fn two_of(op: &'static str, results: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    let mut results = results.into_iter();
    match (results.next(), results.next()) {
        (Some(first), Some(second)) => Ok((first, second)),
        _ => Err(op_error(op, "a kernel gave too little")),
    }
}

// ------------------------------------------------------------------------------------------------
// What fits together
// ------------------------------------------------------------------------------------------------

/// The tensors of terms that hold activations, for who watches the step.
fn shown<'a>(terms: &[Term<'a>]) -> Vec<&'a Tensor> {
    terms.iter().map(|term| term.x).collect()
}

fn ensure_routing(op: &'static str, routing: &Routing<'_>, experts: i64) -> Result<()> {
    let Routing { ids, order, bounds } = *routing;
    for (name, x) in [("ids", ids), ("order", order), ("bounds", bounds)] {
        ensure_kind(op, name, x, Kind::Int64)?;
    }
    ensure_shape(op, "order", order, &[ids.numel() as i64])?;
    ensure_shape(op, "bounds", bounds, &[experts + 1])
}

/// The length of the rows of `x`, which has the first axes of `ids`, or all.
fn width(op: &'static str, name: &str, x: &Tensor, ids: &Tensor) -> Result<i64> {
    let (size, ids_size) = (x.size(), ids.size());
    let split = size.split_last();
    let (d, lead) = split.ok_or_else(|| op_error(op, format!("{name} has no dimensions")))?;
    ensure(ids_size.starts_with(lead), op, || {
        format!("ids have shape {ids_size:?}, which does not begin with {lead:?} as {name} has")
    })?;
    Ok(*d)
}

fn fitting_grad(
    op: &'static str,
    routing: &Routing<'_>,
    x: &Tensor,
    dy: &[&Tensor],
    experts: i64,
) -> Result<()> {
    ensure_routing(op, routing, experts)?;
    let _ = width(op, "x", x, routing.ids)?;
    for dy in dy {
        let _ = ensure_same_kind(op, &[x, dy])?;
        let _ = width(op, "dy", dy, routing.ids)?;
    }
    Ok(())
}

/// The width of the sum of terms, and the kind of its first row.
fn fitting(op: &'static str, routing: &Routing<'_>, terms: &[Term<'_>]) -> Result<(i64, Kind)> {
    let first = terms.first().ok_or_else(|| op_error(op, "no terms"))?;
    let [experts, ..] = shape_of::<3>(op, "w", first.w)?;
    ensure_routing(op, routing, experts)?;
    let floats = terms.iter().flat_map(|term| {
        [Some(term.x), (term.w.kind() != Kind::Int8).then_some(term.w)].into_iter().flatten()
    });
    let kind = ensure_same_kind(op, &floats.collect::<Vec<_>>())?;
    let mut n = None;
    for term in terms {
        let found = term_width(op, routing, term, experts)?;
        let first = *n.get_or_insert(found);
        ensure(found == first, op, || format!("terms have {first} and {found} columns"))?;
    }
    Ok((n.unwrap_or(0), kind))
}

fn term_width(
    op: &'static str,
    routing: &Routing<'_>,
    term: &Term<'_>,
    experts: i64,
) -> Result<i64> {
    let k = width(op, "x", term.x, routing.ids)?;
    let [e, rows, columns] = shape_of(op, "w", term.w)?;
    let (n, summed) = if term.turned { (columns, rows) } else { (rows, columns) };
    ensure(e == experts && summed == k, op, || {
        let (w, x, turned) = (term.w.size(), term.x.size(), term.turned);
        format!("x has shape {x:?} and w {w:?} (turned: {turned}), {experts} experts")
    })?;
    match (term.w.kind(), term.scale) {
        (Kind::Int8, Some(scale)) => {
            ensure(matches!(scale.kind(), Kind::Float | Kind::Double), op, || {
                format!("scale is {:?}, f32 needed", scale.kind())
            })?;
            ensure_shape(op, "scale", scale, &[e, rows])?;
        }
        (Kind::Int8, None) => return Err(op_error(op, "w is of codes, and has no scale")),
        (kind, Some(_)) => return Err(op_error(op, format!("w is {kind:?}, and has a scale"))),
        (_, None) => {}
    }
    Ok(n)
}

fn fitting_pair(
    op: &'static str,
    routing: &Routing<'_>,
    gate: &[Term<'_>],
    up: &[Term<'_>],
) -> Result<Kind> {
    let ((f, kind), (other, up_kind)) = (fitting(op, routing, gate)?, fitting(op, routing, up)?);
    ensure(f == other && kind == up_kind, op, || {
        format!("gate has {f} columns of {kind:?}, up has {other} of {up_kind:?}")
    })?;
    Ok(kind)
}

// ------------------------------------------------------------------------------------------------
// Composed
// ------------------------------------------------------------------------------------------------

/// The sum of terms, in f32 or f64.
pub(super) fn sum_of(routing: &Routing<'_>, terms: &[Term<'_>]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for term in terms {
        let weight = weight_of(term)?;
        let weight = if term.turned { weight.f_transpose(1, 2)? } else { weight };
        let part = expert_dot(term.x, &weight, routing.ids)?;
        let part = cast(&part, wide_kind(part.kind()))?;
        sum = Some(match sum {
            None => part,
            Some(sum) => sum.f_add(&part)?,
        });
    }
    sum.ok_or_else(|| op_error("routed_dot", "no terms"))
}

/// The weight of a term in the kind of its rows.
fn weight_of(term: &Term<'_>) -> Result<Tensor> {
    let Some(scale) = term.scale else { return Ok(term.w.shallow_clone()) };
    let wide = wide_kind(term.x.kind());
    let scale = cast(scale, wide)?.f_unsqueeze(-1)?;
    cast(&cast(term.w, wide)?.f_mul(&scale)?, term.x.kind())
}

/// The sums of gate and up, and what is made of them, in f32 or f64.
pub(super) fn swiglu_of(
    routing: &Routing<'_>,
    gate: &[Term<'_>],
    up: &[Term<'_>],
) -> Result<(Tensor, Tensor, Tensor)> {
    let (gated, lifted) = (sum_of(routing, gate)?, sum_of(routing, up)?);
    let hidden = gated.f_silu()?.f_mul(&lifted)?;
    Ok((gated, lifted, hidden))
}

/// [`routed_weight_grad`] composed of libtorch calls.
pub(super) fn grad_of(x: &Tensor, dy: &Tensor, ids: &Tensor, experts: i64) -> Result<Tensor> {
    expert_dot_weight_grad(x, &at_places(dy, ids)?, ids, experts)
}

/// Rows with all axes of the ids.
fn at_places(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (mut size, ids_size) = (x.size(), ids.size());
    let Some(d) = size.pop() else { return Ok(x.shallow_clone()) };
    let mut open = x.shallow_clone();
    for axis in size.len()..ids_size.len() {
        open = open.f_unsqueeze(axis as i64)?;
    }
    Ok(open.f_expand([ids_size, vec![d]].concat(), false)?)
}
