//! Narrow products of routed rows on `expert_low.cu`.

use super::routing::MOST_PLACES;
use super::{aligned, at, ceil, int, take};
use crate::cuda::{self, Arg, Kernel, Module};
use crate::error::Result;
use crate::ops::Term;
use crate::ops::routed::{Routing, grad_of, sum_of};
use crate::ops::support::cast;
use crate::{Kind, Tensor};

static MODULE: Module = Module { name: "expert_low.cu", source: lightc_kernels::EXPERT_LOW };

const fn kernel(entry: &'static str, origin: &'static str, shared_bytes: u32) -> Kernel {
    Kernel { module: &MODULE, entry, origin, threads: 128, shared_bytes }
}
const DOT: &str = "routed_dot, kernels/expert_low.cu";
const WEIGHT_GRAD: &str = "routed_weight_grad, kernels/expert_low.cu";
const LOW_BACK: &str = "routed_low_back, kernels/expert_low.cu";

/// What the file calls `GRAD_SMEM` and `GRAD_PAIR_SMEM`.
const GRAD_SHARED: [u32; 2] = [63488, 69632];
/// What it calls `BACK_SMEM`.
const BACK_SHARED: u32 = 218112;

static LOW: [Kernel; 2] = [kernel("expert_low", DOT, 0), kernel("expert_low_pair", DOT, 0)];
static GRAD: [Kernel; 2] = [
    kernel("expert_low_grad", WEIGHT_GRAD, GRAD_SHARED[0]),
    kernel("expert_low_grad_pair", WEIGHT_GRAD, GRAD_SHARED[1]),
];
static GRAD_SUM: Kernel = kernel("expert_low_grad_sum", WEIGHT_GRAD, 0);
static BACK: Kernel = Kernel { threads: 256, ..kernel("expert_low_back", LOW_BACK, BACK_SHARED) };

/// Columns of an adapter.
const RANK: i64 = 16;
/// Places of a block.
const ROWS: i64 = 64;
/// Places that a block of a gradient adds up, at most. The pieces of an expert are added in a second step;
/// of narrow gradients there would be few blocks beside those that run at one time: 0.086 ms in place of 0.092 with 1024, of
/// 98,304 places of 1024 columns on an H200.
const fn piece(columns: i64) -> i64 {
    if columns <= 2048 { 512 } else { 2048 }
}
/// Columns of a block of a gradient.
const COLUMNS: i64 = 128;
/// Places of a block that has a product and a gradient, one of which fits on a multiprocessor. With 58 experts of about 1695 places
/// each there are two long blocks for nearly each of 132 multiprocessors, and short ones for the rest.
const BACK_PIECE: i64 = 416;

/// How many places read a row of `x`, and what the kernels divide by it with.
fn run(op: &'static str, x: &Tensor, ids: &Tensor) -> Result<[Arg<'static>; 2]> {
    let run = run_of(x, ids);
    let inverse = ((1i64 << 32) + run - 1) / run.max(1);
    // Of a run of one the kernels do not use it, and it would not fit.
    let inverse = if run == 1 { 0 } else { inverse };
    Ok([Arg::I32(int(op, run)?), Arg::I32(int::<u32>(op, inverse)?.cast_signed())])
}

fn run_of(x: &Tensor, ids: &Tensor) -> i64 {
    let rows = x.numel() as i64 / x.size().last().copied().unwrap_or(1).max(1);
    ids.numel() as i64 / rows.max(1)
}

/// 1 to 2^20 places of rows of bf16 on a GPU, up to 4096 of a row, for 1 to 512 experts.
fn takes_rows(x: &Tensor, routing: &Routing<'_>) -> bool {
    let Routing { ids, order, bounds } = *routing;
    cuda::runs_on(x.device())
        && [ids, order, bounds].iter().all(|index| index.device() == x.device())
        && (2..=513).contains(&bounds.numel())
        && x.kind() == Kind::BFloat16
        && x.numel() > 0
        && (1..=MOST_PLACES).contains(&(ids.numel() as i64))
        && run_of(x, ids) <= 4096
}

/// A width that the kernels have: a multiple of 64 up to 32768.
fn takes_width(width: i64) -> bool {
    width % 64 == 0 && (64..=1 << 15).contains(&width)
}

/// The width of the rows, where a term's weight is bf16 and has 16 columns.
fn low_width(term: &Term<'_>) -> Option<i64> {
    let size = term.w.size();
    let [_, n, k] = size.as_slice() else { return None };
    let (n, k) = if term.turned { (*k, *n) } else { (*n, *k) };
    (n == RANK && term.w.kind() == Kind::BFloat16 && term.scale.is_none()).then_some(k)
}

/// One term, or two of the same rows, with bf16 weights of 16 columns.
pub(crate) fn takes_low(routing: &Routing<'_>, terms: &[Term<'_>]) -> bool {
    let [first, ..] = terms else { return false };
    terms.len() <= 2
        && takes_rows(first.x, routing)
        && low_width(first).is_some_and(takes_width)
        && terms.iter().all(|term| low_width(term) == low_width(first))
}

/// For each term its product, where [`takes_low`]; the rows of all are those of the first.
pub(crate) fn low(routing: &Routing<'_>, terms: &[Term<'_>]) -> Result<Vec<Tensor>> {
    const OP: &str = "routed_dot";
    let [first, ..] = terms else { return Ok(Vec::new()) };
    let kernel = if terms.len() == 1 { &LOW[0] } else { &LOW[1] };
    let fused: cuda::Way<'_> = &|args, _| {
        let (order, bounds) = (aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
        let x = aligned(at(args, 3)?)?;
        let places = order.numel() as i64;
        let experts = bounds.numel() as i64 - 1;
        let k = x.size().last().copied().unwrap_or(0);
        let shape = [at(args, 0)?.size(), vec![RANK]].concat();
        let (mut weights, mut results) = (Vec::new(), Vec::new());
        for (position, term) in terms.iter().enumerate() {
            let w = at(args, 4 + position)?;
            // The kernel wants the contraction innermost; a turned adapter is small.
            weights.push(aligned(&if term.turned {
                w.f_transpose(1, 2)?
            } else {
                w.shallow_clone()
            })?);
            results.push(cuda::empty(&shape, Kind::BFloat16, &x)?);
        }
        let all: Vec<Arg<'_>> = [&x]
            .into_iter()
            .chain(&weights)
            .chain([&order, &bounds])
            .chain(&results)
            .map(Arg::Tensor)
            .chain([Arg::I32(int(OP, places)?), Arg::I32(int(OP, experts)?), Arg::I32(int(OP, k)?)])
            .chain(run(OP, &x, at(args, 0)?)?)
            .collect();
        let grid = int(OP, ceil(places, ROWS) + experts + 1)?;
        cuda::launch(kernel, [grid, 1, 1], &all)?;
        drop(all);
        Ok(results)
    };
    let reference: cuda::Way<'_> = &|args, like| {
        let routing = Routing { ids: at(args, 0)?, order: at(args, 1)?, bounds: at(args, 2)? };
        let x = at(args, 3)?;
        let product = |(position, term): (usize, &Term<'_>)| {
            let term = Term { x, w: at(args, 4 + position)?, ..*term };
            cast(&sum_of(&routing, &[term])?, like.kind())
        };
        terms.iter().enumerate().map(product).collect()
    };
    let inputs: Vec<&Tensor> = [routing.ids, routing.order, routing.bounds, first.x]
        .into_iter()
        .chain(terms.iter().map(|term| term.w))
        .collect();
    cuda::either(kernel, &inputs, first.x, fused, reference)
}

/// A gradient with 16 columns on one side, of bf16; the other is as wide as [`takes_low`] says.
pub(crate) fn takes_low_grad(routing: &Routing<'_>, x: &Tensor, dy: &[&Tensor]) -> bool {
    let width = |x: &Tensor| x.size().last().copied().unwrap_or(0);
    let fits = |wide: &Tensor, small: &Tensor| {
        takes_rows(wide, routing)
            && takes_rows(small, routing)
            && takes_width(width(wide))
            && width(small) == RANK
    };
    match dy {
        [dy] => fits(x, dy) || fits(dy, x),
        [first, second] => {
            fits(x, first)
                && fits(x, second)
                && run_of(first, routing.ids) == run_of(second, routing.ids)
        }
        _ => false,
    }
}

/// `routed_weight_grad` of `x` with each of `dy`, where [`takes_low_grad`].
pub(crate) fn low_grad(routing: &Routing<'_>, x: &Tensor, dy: &[&Tensor]) -> Result<Vec<Tensor>> {
    const OP: &str = "routed_weight_grad";
    let experts = routing.bounds.numel() as i64 - 1;
    let kernel = if dy.len() == 1 { &GRAD[0] } else { &GRAD[1] };
    let fused: cuda::Way<'_> = &|args, _| grad_run(kernel, args);
    let reference: cuda::Way<'_> = &|args, _| {
        let x = at(args, 3)?;
        let each = |dy: &&Tensor| grad_of(x, dy, at(args, 0)?, experts);
        args.get(4..).unwrap_or_default().iter().map(each).collect()
    };
    let inputs: Vec<&Tensor> = [routing.ids, routing.order, routing.bounds, x]
        .into_iter()
        .chain(dy.iter().copied())
        .collect();
    let results = cuda::either(kernel, &inputs, x, fused, reference)?;
    let found = results.len();
    if found == dy.len() { Ok(results) } else { take::<1>(OP, results).map(Vec::from) }
}

fn grad_run(kernel: &'static Kernel, args: &[&Tensor]) -> Result<Vec<Tensor>> {
    const OP: &str = "routed_weight_grad";
    let (ids, order, bounds) = (at(args, 0)?, aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
    let x = at(args, 3)?;
    let dys = args.get(4..).unwrap_or_default();
    // The narrow side of a single gradient may be x: then it has a row of 16 for each wide column.
    let tall = x.size().last() == Some(&RANK) && dys.len() == 1;
    let (wide, small) = if tall { (at(args, 4)?, vec![x]) } else { (x, dys.to_vec()) };
    let wide = aligned(wide)?;
    let small = small.into_iter().map(aligned).collect::<Result<Vec<_>>>()?;
    let columns = wide.size().last().copied().unwrap_or(0);
    let (places, experts) = (order.numel() as i64, bounds.numel() as i64 - 1);
    let shape = if tall { [experts, columns, RANK] } else { [experts, RANK, columns] };
    let sets = small.len() as i64;
    let grads = small
        .iter()
        .map(|_| cuda::empty(&shape, Kind::BFloat16, &wide))
        .collect::<Result<Vec<_>>>()?;
    let piece = piece(columns);
    let pieces = ceil(places, piece) + experts;
    let partial = cuda::empty(&[pieces * sets * RANK * columns], Kind::Float, &wide)?;
    let first = small.first().map_or(Ok([Arg::I32(1), Arg::I32(0)]), |x| run(OP, x, ids))?;
    let sizes = [places, experts, piece, columns]
        .into_iter()
        .map(|size| Ok(Arg::I32(int(OP, size)?)))
        .collect::<Result<Vec<_>>>()?;
    let tall = Arg::I32(i32::from(tall));
    let all: Vec<Arg<'_>> = [&wide]
        .into_iter()
        .chain(&small)
        .chain([&order, &bounds])
        .chain(&grads)
        .chain([&partial])
        .map(Arg::Tensor)
        .chain(sizes.iter().copied())
        .chain(run(OP, &wide, ids)?)
        .chain(first)
        .chain([tall])
        .collect();
    let across = int(OP, ceil(columns, COLUMNS))?;
    cuda::launch(kernel, [across, int(OP, pieces)?, 1], &all)?;
    let last = grads.last().unwrap_or(&partial);
    let tensors = [&bounds, &partial, grads.first().unwrap_or(&partial), last].map(Arg::Tensor);
    let all = [&tensors[..], &sizes, &[Arg::I32(int(OP, sets)?), tall]].concat();
    cuda::launch(&GRAD_SUM, [across, int(OP, experts)?, 1], &all)?;
    Ok(grads)
}

/// One row of a place on both sides, the wide ones of a multiple of 128 columns up to 1024, and a bf16 weight of 16 columns.
pub(crate) fn takes_low_back(
    routing: &Routing<'_>,
    x: &Tensor,
    small: &Tensor,
    w: &Tensor,
) -> bool {
    let own = |rows: &Tensor| takes_rows(rows, routing) && run_of(rows, routing.ids) == 1;
    own(x) && own(small) && small.size().last() == Some(&RANK) && takes_tall(w)
}

/// A weight that stands as the kernel of a product and a gradient reads it.
fn takes_tall(w: &Tensor) -> bool {
    let size = w.size();
    let [_, columns, rank] = size.as_slice() else { return false };
    w.kind() == Kind::BFloat16
        && *rank == RANK
        && columns % COLUMNS == 0
        && (COLUMNS..=1024).contains(columns)
}

/// `routed_dot` of `x` with `w[experts, columns, 16]` and `routed_weight_grad` of `small` with `x`, where
/// [`takes_low_back`].
pub(crate) fn low_back(
    routing: &Routing<'_>,
    x: &Tensor,
    small: &Tensor,
    w: &Tensor,
) -> Result<Vec<Tensor>> {
    let fused: cuda::Way<'_> = &|args, _| back_run(args);
    let reference: cuda::Way<'_> = &|args, like| {
        let routing = Routing { ids: at(args, 0)?, order: at(args, 1)?, bounds: at(args, 2)? };
        let (x, experts) = (at(args, 3)?, routing.bounds.numel() as i64 - 1);
        let product = sum_of(&routing, &[Term::turned(x, at(args, 5)?)])?;
        let product = cast(&product, like.kind())?;
        Ok(vec![product, grad_of(at(args, 4)?, x, routing.ids, experts)?])
    };
    let inputs = [routing.ids, routing.order, routing.bounds, x, small, w];
    cuda::either(&BACK, &inputs, x, fused, reference)
}

fn back_run(args: &[&Tensor]) -> Result<Vec<Tensor>> {
    const OP: &str = "routed_low_back";
    let (order, bounds) = (aligned(at(args, 1)?)?, aligned(at(args, 2)?)?);
    let [x, small, w] = [aligned(at(args, 3)?)?, aligned(at(args, 4)?)?, aligned(at(args, 5)?)?];
    let columns = x.size().last().copied().unwrap_or(0);
    let (places, experts) = (order.numel() as i64, bounds.numel() as i64 - 1);
    let shape = [at(args, 0)?.size(), vec![RANK]].concat();
    let y = cuda::empty(&shape, Kind::BFloat16, &x)?;
    let grad = cuda::empty(&[experts, columns, RANK], Kind::BFloat16, &x)?;
    let pieces = ceil(places, BACK_PIECE) + experts + 1;
    let partial = cuda::empty(&[pieces * RANK * columns], Kind::Float, &x)?;
    let sizes = [places, experts, BACK_PIECE, columns]
        .into_iter()
        .map(|size| Ok(Arg::I32(int(OP, size)?)))
        .collect::<Result<Vec<_>>>()?;
    let tensors = [&x, &small, &w, &order, &bounds, &y, &grad, &partial].map(Arg::Tensor);
    cuda::launch(&BACK, [int(OP, pieces)?, 1, 1], &[&tensors[..], &sizes].concat())?;
    let tensors = [&bounds, &partial, &grad, &grad].map(Arg::Tensor);
    // One set, tall.
    let all = [&tensors[..], &sizes, &[Arg::I32(1), Arg::I32(1)]].concat();
    let across = int(OP, ceil(columns, COLUMNS))?;
    cuda::launch(&GRAD_SUM, [across, int(OP, experts)?, 1], &all)?;
    Ok(vec![y, grad])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn shared_memory_is_what_the_file_states() {
        let [one, two] = GRAD_SHARED;
        let stated = format!("static_assert(GRAD_SMEM == {one} && GRAD_PAIR_SMEM == {two},");
        assert!(MODULE.source.contains(&stated), "{stated}");
        let stated = format!("static_assert(BACK_SMEM == {BACK_SHARED},");
        assert!(MODULE.source.contains(&stated), "{stated}");
        let most =
            MODULE.source.split("BACK_MOST = ").nth(1).and_then(|rest| rest.split(',').next());
        let most = most.and_then(|most| most.parse::<i64>().ok());
        assert!(most.is_some_and(|most| BACK_PIECE <= most), "a table of {most:?} places");
    }

    #[test]
    fn weights_of_other_widths_have_no_product_with_a_gradient() {
        let takes =
            |shape: &[i64]| takes_tall(&Tensor::zeros(shape, (Kind::BFloat16, Device::Cpu)));
        assert!(takes(&[3, 128, 16]) && takes(&[3, 384, 16]) && takes(&[3, 1024, 16]));
        assert!(!takes(&[3, 64, 16]) && !takes(&[3, 1152, 16]) && !takes(&[3, 128, 8]));
    }

    /// 2^32 / run rounded up divides every place that the rule lets through.
    #[test]
    fn places_divide_by_multiplication() {
        for run in (1..=4096u64).chain([12, 2]) {
            let inverse = if run == 1 { 0 } else { (1u64 << 32).div_ceil(run) };
            let last = MOST_PLACES as u64 - 1;
            for place in [0, 1, run - 1, run, last / 2, last / run * run, last - 1, last] {
                let found = if run == 1 { place } else { (place * inverse) >> 32 };
                assert_eq!(found, place / run, "{place} / {run}");
            }
        }
    }

    #[test]
    fn adapters_of_other_ranks_and_widths_have_no_kernel() {
        let of = |shape: &[i64]| Tensor::zeros(shape, (Kind::BFloat16, Device::Cpu));
        let width = |shape: &[i64], turned: bool| {
            let (x, w) = (of(&[1, 1]), of(shape));
            low_width(&Term { x: &x, w: &w, scale: None, turned })
        };
        assert_eq!(width(&[3, 16, 64], false), Some(64));
        assert_eq!(width(&[3, 64, 16], true), Some(64));
        assert_eq!(width(&[3, 8, 64], false), None);
        assert_eq!(width(&[3, 64, 16], false), None);
        assert_eq!(
            [32, 64, 96, 1 << 15, 1 << 16].map(takes_width),
            [false, true, false, true, false]
        );
    }
}
