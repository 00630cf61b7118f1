//! Wide products of routed rows on `expert_products.cu` and `expert_weight_grad.cu`.
//!
//! **Rule.** A term is *wide* where its rows are bf16, its weight is bf16 or int8 with f32 scales, and both
//! of its widths are multiples of 64. It is *low* where its weight is bf16 and sums over 16 columns of
//! rows of bf16, one for each place. A sum takes a kernel where its terms are one wide and at most one
//! low, or, turned, two wide of one storage, one width and one form of rows, and two low or none; all
//! terms plain or all turned. [`super::super::routed_swiglu`] takes one where gate and up are such sums of one
//! wide term, plain, of one storage and of the same rows, and either both have a low term or none.

use super::quantize::{split, split_scaled, unpacked};
use super::{aligned, at, int, take};
use crate::cuda::{self, Arg, Kernel, Module, TensorMap};
use crate::error::Result;
use crate::ops::Term;
use crate::ops::routed::{Routing, grad_of, sum_of, swiglu_of};
use crate::ops::support::cast;
use crate::{Kind, Tensor};

static PRODUCTS: Module =
    Module { name: "expert_products.cu", source: lightc_kernels::EXPERT_PRODUCTS };
static WEIGHT_GRAD: Module =
    Module { name: "expert_weight_grad.cu", source: lightc_kernels::EXPERT_WEIGHT_GRAD };

/// What the files call `EXPERTS_SMEM`, `EXPERTS_INT8_SMEM` and `EXPERTS_GRAD_SMEM`.
const BF16_SHARED: u32 = 231_504;
const INT8_SHARED: u32 = 215_632;
const GRAD_SHARED: u32 = 229_440;

const fn kernel(entry: &'static str, shared_bytes: u32) -> Kernel {
    let origin = "routed_dot, kernels/expert_products.cu";
    Kernel { module: &PRODUCTS, entry, origin, threads: 384, shared_bytes }
}

static DOT: [Kernel; 2] =
    [kernel("experts_dot", BF16_SHARED), kernel("experts_dot_int8", INT8_SHARED)];
static DOT_TURNED: [Kernel; 2] =
    [kernel("experts_dot_turned", BF16_SHARED), kernel("experts_dot_turned_int8", INT8_SHARED)];
static SWIGLU: [Kernel; 2] =
    [kernel("experts_swiglu", BF16_SHARED), kernel("experts_swiglu_int8", INT8_SHARED)];
static GRAD: Kernel = Kernel {
    module: &WEIGHT_GRAD,
    entry: "experts_weight_grad",
    origin: "routed_weight_grad, kernels/expert_weight_grad.cu",
    threads: 384,
    shared_bytes: GRAD_SHARED,
};

/// Columns of an adapter.
const RANK: i64 = 16;

/// Columns that a product with plain codes sums, at most: products of bytes are counted in 32 bits.
const MOST_SUMMED: i64 = 1 << 16;

/// Columns that rows times scales have together, at most: what a block of `split_scaled` holds.
const MOST_SCALED: i64 = 4096;

/// Whether turned codes are made bf16 for terms of `k` columns and `n` results, and the kernel of bf16 weights reads those.
/// Their scales go along the contraction, so rows in bytes are rows times scales, one for each place and not
/// for each row: two bytes read and two written an element, where a code takes one and two.
fn unpacks(layout: Layout, routing: &Routing<'_>, (k, n): (i64, i64)) -> bool {
    let (experts, places) = (routing.bounds.numel() as i64 - 1, routing.ids.numel() as i64);
    let wide = k * layout.n_wide as i64 > MOST_SCALED;
    layout.int8 && layout.turned && (wide || 4 * places > 3 * experts * n)
}

/// What a sum is made of, as far as it decides on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    int8: bool,
    turned: bool,
    n_wide: usize,
    n_low: usize,
}

/// The wide terms of a sum, then the low ones.
type Terms<'a> = Vec<Term<'a>>;

/// The axis that a term sums over, and the one that it gives.
fn widths(term: &Term<'_>) -> Option<(i64, i64)> {
    let size = term.w.size();
    let [_, rows, columns] = size.as_slice() else { return None };
    Some(if term.turned { (*rows, *columns) } else { (*columns, *rows) })
}

/// How many places read a row.
fn run_of(x: &Tensor, places: i64) -> i64 {
    let rows = x.numel() as i64 / x.size().last().copied().unwrap_or(1).max(1);
    places / rows.max(1)
}

fn is_low(term: &Term<'_>, places: i64) -> bool {
    let width = widths(term).map(|(summed, _)| summed);
    [term.x, term.w].iter().all(|x| x.kind() == Kind::BFloat16)
        && width == Some(RANK)
        && term.scale.is_none()
        && run_of(term.x, places) == 1
}

fn is_wide(term: &Term<'_>) -> bool {
    let stored = match (term.w.kind(), term.scale) {
        (Kind::BFloat16, None) => true,
        (Kind::Int8, Some(scale)) => scale.kind() == Kind::Float,
        _ => false,
    };
    let fits = |width: i64| width > 0 && width % 64 == 0 && width < 1 << 31;
    let most = if term.scale.is_some() && !term.turned { MOST_SUMMED } else { i64::MAX };
    stored
        && term.x.kind() == Kind::BFloat16
        && widths(term).is_some_and(|(summed, given)| fits(summed) && fits(given) && summed <= most)
}

/// The terms in the order of a kernel, where one has such a sum; the device is not looked at.
fn layout<'a>(terms: &[Term<'a>], places: i64) -> Option<(Layout, Terms<'a>)> {
    let low = |term: &&Term<'a>| is_low(term, places);
    let wide: Terms<'a> = terms.iter().filter(|term| !low(term)).copied().collect();
    let lows: Terms<'a> = terms.iter().filter(low).copied().collect();
    let first = wide.first()?;
    let layout = Layout {
        int8: first.w.kind() == Kind::Int8,
        turned: first.turned,
        n_wide: wide.len(),
        n_low: lows.len(),
    };
    let alike = |term: &Term<'a>| {
        is_wide(term)
            && term.w.kind() == first.w.kind()
            && widths(term) == widths(first)
            && run_of(term.x, places) == run_of(first.x, places)
    };
    let counts = match (wide.len(), lows.len()) {
        (1, 0 | 1) => true,
        (2, 0 | 2) => layout.turned,
        _ => false,
    };
    let one_way = terms.iter().all(|term| term.turned == layout.turned);
    (counts && one_way && wide.iter().all(alike)).then(|| (layout, [wide, lows].concat()))
}

/// On a GPU, with something to do, and as many experts as a kernel has room for.
fn on_gpu(routing: &Routing<'_>, tensors: &[&Tensor]) -> bool {
    let device = routing.ids.device();
    cuda::runs_on(device)
        && (1..1 << 31).contains(&(routing.ids.numel() as i64))
        && (2..=513).contains(&routing.bounds.numel())
        && tensors.iter().all(|x| x.device() == device)
}

fn flat<'a>(terms: &[Term<'a>]) -> Vec<&'a Tensor> {
    terms.iter().flat_map(|term| [Some(term.x), Some(term.w), term.scale]).flatten().collect()
}

/// The terms that [`flat`] took apart, from the arguments of a way at `*position`.
fn terms_at<'a>(args: &[&'a Tensor], position: &mut usize, layout: Layout) -> Result<Terms<'a>> {
    let mut next = || {
        *position += 1;
        at(args, *position - 1)
    };
    (0..layout.n_wide + layout.n_low)
        .map(|index| {
            let (x, w) = (next()?, next()?);
            let scaled = layout.int8 && index < layout.n_wide;
            let scale = if scaled { Some(next()?) } else { None };
            Ok(Term { x, w, scale, turned: layout.turned })
        })
        .collect()
}

/// What a launch reads, kept alive until it is made.
#[derive(Default)]
struct Held {
    /// Rows. Of wide ones with codes the planes are read.
    x: Vec<Tensor>,
    /// Planes of the wide rows, and their units.
    planes: Vec<Tensor>,
    scale: Vec<Tensor>,
    /// Weights are read through their maps; these keep the addresses.
    weights: Vec<Tensor>,
    maps: Vec<TensorMap>,
}

impl Held {
    /// With `unpack` codes are given as bf16.
    fn of(terms: &[Term<'_>], [order, bounds]: [&Tensor; 2], unpack: bool) -> Result<Held> {
        let mut held = Held::beside(terms, unpack)?;
        let wide = terms.iter().filter_map(|term| Some((term.x, term.scale?)));
        let wide: Vec<_> = wide.filter(|_| !unpack).collect();
        held.planes = match (terms.first(), wide.as_slice()) {
            (_, []) => vec![],
            (Some(Term { turned: true, .. }), wide) => {
                split_scaled("routed_dot", order, bounds, wide)?.into()
            }
            (_, [(x, _), ..]) => split("routed_dot", x)?.into(),
        };
        Ok(held)
    }

    /// The same without planes: those of another sum serve.
    fn beside(terms: &[Term<'_>], unpack: bool) -> Result<Held> {
        let mut held = Held::default();
        let codes = !unpack && terms.iter().any(|term| term.scale.is_some());
        for term in terms {
            let w = match term.scale {
                Some(scale) if unpack => unpacked("routed_dot", term.w, scale)?,
                Some(scale) => {
                    held.scale.push(aligned(scale)?);
                    aligned(term.w)?
                }
                None => aligned(term.w)?,
            };
            let in_planes = codes && term.scale.is_some();
            held.x.push(if in_planes { term.x.shallow_clone() } else { aligned(term.x)? });
            held.maps.push(map(&w, term, codes)?);
            held.weights.push(w);
        }
        Ok(held)
    }

    fn map(&self, index: usize) -> Result<Arg<'_>> {
        // Where there is no such term the kernel does not read it.
        let map = self.maps.get(index).or(self.maps.first());
        map.map(Arg::Map)
            .ok_or_else(|| crate::Error::Op { op: "routed_dot", detail: "no terms".to_owned() })
    }

    fn x(&self, index: usize) -> Arg<'_> {
        self.x.get(index).map_or(Arg::I64(0), Arg::Tensor)
    }

    /// Rows as a kernel of codes takes them.
    fn split_rows(&self) -> Vec<Arg<'_>> {
        self.planes.iter().map(Arg::Tensor).collect()
    }

    fn scale(&self, index: usize) -> Arg<'_> {
        self.scale.get(index).map_or(Arg::I64(0), Arg::Tensor)
    }
}

/// Tiles of a weight, of rows of 128 bytes: 128 rows, or turned 64; turned beside codes an adapter's 16.
fn map(w: &Tensor, term: &Term<'_>, codes: bool) -> Result<TensorMap> {
    let columns = if w.kind() == Kind::Int8 { 128 } else { 64 };
    let rows = match (term.turned, codes && term.scale.is_none()) {
        (true, true) => RANK as u32,
        (true, false) => 64,
        (false, _) => 128,
    };
    cuda::weight_map(w, [columns, rows])
}

/// Blocks of a kernel whose blocks stay: one for each multiprocessor, in pairs.
fn pairs_of_blocks(x: &Tensor) -> Result<[u32; 3]> {
    Ok([(cuda::multiprocessors(x)? / 2 * 2).max(2), 1, 1])
}

/// Places, experts and widths, as all kernels take them last.
fn sizes(op: &'static str, numbers: [i64; 5]) -> Result<Vec<Arg<'static>>> {
    numbers.into_iter().map(|number| Ok(Arg::I32(int(op, number)?))).collect()
}

/// `routed_dot` by a kernel, where the rule of this module has one for these terms.
pub(crate) fn dot(routing: &Routing<'_>, terms: &[Term<'_>]) -> Option<Result<Tensor>> {
    let (layout, terms) = layout(terms, routing.ids.numel() as i64)?;
    on_gpu(routing, &flat(&terms)).then(|| dot_by(routing, layout, &terms))
}

fn dot_by(routing: &Routing<'_>, layout: Layout, terms: &[Term<'_>]) -> Result<Tensor> {
    const OP: &str = "routed_dot";
    let [bf16, int8] = if layout.turned { &DOT_TURNED } else { &DOT };
    let unpack = unpacks(layout, routing, terms.first().and_then(widths).unwrap_or((0, 0)));
    let codes = layout.int8 && !unpack;
    let kernel = if codes { int8 } else { bf16 };
    let fused: cuda::Way<'_> = &|args, _| {
        let terms = terms_at(args, &mut 3, layout)?;
        let (ids, order, bounds) = (at(args, 0)?, aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
        let held = Held::of(&terms, [&order, &bounds], unpack)?;
        let (places, experts) = (order.numel() as i64, bounds.numel() as i64 - 1);
        let (k, n) = terms.first().and_then(widths).unwrap_or((0, 0));
        let run = terms.first().map_or(1, |term| run_of(term.x, places));
        let y = cuda::empty(&[ids.size(), vec![n]].concat(), Kind::BFloat16, &order)?;
        let n_wide = layout.n_wide;
        let low =
            |index: usize| if index < layout.n_low { held.x(n_wide + index) } else { Arg::I64(0) };
        let mut all = Vec::new();
        if layout.turned {
            let second = n_wide - 1;
            all.extend([held.map(0)?, held.map(second)?, held.map(n_wide)?]);
            all.push(held.map(n_wide + second)?);
        } else {
            all.extend([held.map(0)?, held.map(1)?]);
        }
        if codes {
            all.extend(held.split_rows());
        } else {
            all.push(held.x(0));
        }
        match (layout.turned, codes) {
            (true, true) => all.extend([low(0), low(1)]),
            (true, false) => {
                all.push(if n_wide == 2 { held.x(1) } else { Arg::I64(0) });
                all.extend([low(0), low(1)]);
            }
            (false, true) => all.extend([low(0), held.scale(0)]),
            (false, false) => all.push(low(0)),
        }
        all.extend([&order, &bounds, &y].map(Arg::Tensor));
        // Of turned codes there is a row for each place; their kernel takes how many terms it has.
        let runs = if layout.turned && codes { n_wide as i64 } else { run };
        all.extend(sizes(OP, [runs, places, experts, k, n])?);
        cuda::launch(kernel, pairs_of_blocks(&y)?, &all)?;
        Ok(vec![y])
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let routing = Routing { ids: at(args, 0)?, order: at(args, 1)?, bounds: at(args, 2)? };
        let sum = sum_of(&routing, &terms_at(args, &mut 3, layout)?)?;
        Ok(vec![cast(&sum, like.kind())?])
    };
    let inputs = [vec![routing.ids, routing.order, routing.bounds], flat(terms)].concat();
    let like = terms.first().map_or(routing.ids, |term| term.x);
    let [y] = take(OP, cuda::either(kernel, &inputs, like, fused, reference)?)?;
    Ok(y)
}

/// `gated` and `lifted` where they are wanted, and `hidden`.
pub(crate) type Swiglu = (Option<(Tensor, Tensor)>, Tensor);

/// `routed_swiglu` by a kernel, where the rule of this module has one for these terms. With `all`
/// not only `hidden` is given.
pub(crate) fn swiglu(
    routing: &Routing<'_>,
    gate: &[Term<'_>],
    up: &[Term<'_>],
    all: bool,
) -> Option<Result<Swiglu>> {
    let (layout, gate, up) = swiglu_layout(gate, up, routing.ids.numel() as i64)?;
    let tensors = [flat(&gate), flat(&up)].concat();
    on_gpu(routing, &tensors).then(|| swiglu_by(routing, layout, &gate, &up, all))
}

fn swiglu_layout<'a>(
    gate: &[Term<'a>],
    up: &[Term<'a>],
    places: i64,
) -> Option<(Layout, Terms<'a>, Terms<'a>)> {
    let ((first, gate), (second, up)) = (layout(gate, places)?, layout(up, places)?);
    let same_rows = |x: &Tensor, y: &Tensor| {
        x.data_ptr() == y.data_ptr() && x.size() == y.size() && x.stride() == y.stride()
    };
    let (a, b) = (gate.first()?, up.first()?);
    let fits = first == second
        && !first.turned
        && first.n_wide == 1
        && widths(a) == widths(b)
        && same_rows(a.x, b.x);
    fits.then_some((first, gate, up))
}

fn swiglu_by(
    routing: &Routing<'_>,
    layout: Layout,
    gate: &[Term<'_>],
    up: &[Term<'_>],
    all_wanted: bool,
) -> Result<Swiglu> {
    const OP: &str = "routed_swiglu";
    let [bf16, int8] = &SWIGLU;
    let kernel = if layout.int8 { int8 } else { bf16 };
    let fused: cuda::Way<'_> = &|args, _| {
        let position = &mut 3;
        let gate = terms_at(args, position, layout)?;
        let up = terms_at(args, position, layout)?;
        let (ids, order, bounds) = (at(args, 0)?, aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
        let (a, b) = (Held::of(&gate, [&order, &bounds], false)?, Held::beside(&up, false)?);
        let (places, experts) = (order.numel() as i64, bounds.numel() as i64 - 1);
        let (k, n) = gate.first().and_then(widths).unwrap_or((0, 0));
        let run = gate.first().map_or(1, |term| run_of(term.x, places));
        let shape = [ids.size(), vec![n]].concat();
        let result = || cuda::empty(&shape, Kind::BFloat16, &order);
        let hidden = result()?;
        let others = if all_wanted { Some((result()?, result()?)) } else { None };
        let mut all = vec![a.map(0)?, b.map(0)?, a.map(1)?, b.map(1)?];
        if layout.int8 {
            all.extend(a.split_rows());
        } else {
            all.push(a.x(0));
        }
        all.extend([a.x(1), b.x(1)]);
        if layout.int8 {
            all.extend([a.scale(0), b.scale(0)]);
        }
        all.extend([&order, &bounds, &hidden].map(Arg::Tensor));
        match &others {
            Some((gated, lifted)) => all.extend([gated, lifted].map(Arg::Tensor)),
            None => all.extend([Arg::I64(0), Arg::I64(0)]),
        }
        all.extend(sizes(OP, [run, places, experts, k, n])?);
        cuda::launch(kernel, pairs_of_blocks(&hidden)?, &all)?;
        drop(all);
        Ok(match others {
            Some((gated, lifted)) => vec![hidden, gated, lifted],
            None => vec![hidden],
        })
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let routing = Routing { ids: at(args, 0)?, order: at(args, 1)?, bounds: at(args, 2)? };
        let position = &mut 3;
        let gate = terms_at(args, position, layout)?;
        let up = terms_at(args, position, layout)?;
        let (gated, lifted, hidden) = swiglu_of(&routing, &gate, &up)?;
        let all = if all_wanted { vec![hidden, gated, lifted] } else { vec![hidden] };
        all.iter().map(|value| cast(value, like.kind())).collect()
    };
    let inputs = [vec![routing.ids, routing.order, routing.bounds], flat(gate), flat(up)].concat();
    let like = gate.first().map_or(routing.ids, |term| term.x);
    let results = cuda::either(kernel, &inputs, like, fused, reference)?;
    if all_wanted {
        let [hidden, gated, lifted] = take(OP, results)?;
        return Ok((Some((gated, lifted)), hidden));
    }
    let [hidden] = take(OP, results)?;
    Ok((None, hidden))
}

/// bf16 rows of two widths that 64 divides, on a GPU.
pub(crate) fn takes_weight_grad(routing: &Routing<'_>, x: &Tensor, dy: &Tensor) -> bool {
    let fits = |x: &Tensor| {
        let width = x.size().last().copied().unwrap_or(0);
        x.kind() == Kind::BFloat16 && x.numel() > 0 && width % 64 == 0 && width < 1 << 31
    };
    on_gpu(routing, &[x, dy]) && fits(x) && fits(dy)
}

/// `routed_weight_grad` where [`takes_weight_grad`].
pub(crate) fn weight_grad(routing: &Routing<'_>, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "routed_weight_grad";
    let experts = routing.bounds.numel() as i64 - 1;
    let fused: cuda::Way<'_> = &|args, _| {
        let (order, bounds) = (aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
        let (x, dy) = (aligned(at(args, 3)?)?, aligned(at(args, 4)?)?);
        let width = |x: &Tensor| x.size().last().copied().unwrap_or(0);
        let (places, d, f) = (order.numel() as i64, width(&x), width(&dy));
        let dw = cuda::empty(&[experts, f, d], Kind::BFloat16, &x)?;
        let mut all: Vec<Arg<'_>> = [&x, &dy, &order, &bounds, &dw].map(Arg::Tensor).into();
        let runs = [run_of(&x, places), run_of(&dy, places)];
        for number in [runs[0], runs[1], places, experts, d, f] {
            all.push(Arg::I32(int(OP, number)?));
        }
        cuda::launch(&GRAD, [cuda::multiprocessors(&x)?, 1, 1], &all)?;
        Ok(vec![dw])
    };
    let reference: cuda::Way<'_> =
        &|args, _| Ok(vec![grad_of(at(args, 3)?, at(args, 4)?, at(args, 0)?, experts)?]);
    let inputs = [routing.ids, routing.order, routing.bounds, x, dy];
    let [dw] = take(OP, cuda::either(&GRAD, &inputs, x, fused, reference)?)?;
    Ok(dw)
}

#[cfg(test)]
mod tests;
