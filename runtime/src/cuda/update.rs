//! AdamW and sums of squares over all parameters, a launch for each.

use super::{Arg, Kernel, Module, empty, launch};
use crate::error::Result;
use crate::optimizer::AdamW;
use crate::{Device, Error, Kind, Tensor};

static MODULE: Module = Module { name: "optimizer.cu", source: lightc_kernels::OPTIMIZER };

const fn kernel(entry: &'static str) -> Kernel {
    let origin = "the optimizer, kernels/optimizer.cu";
    Kernel { module: &MODULE, entry, origin, threads: 256, shared_bytes: 0 }
}

static ADAMW: Kernel = kernel("adamw");
static SQUARE_BLOCKS: Kernel = kernel("square_blocks");
static SQUARE_TOTALS: Kernel = kernel("square_totals");

/// Elements of a block, as in the source.
const BLOCK_ELEMENTS: usize = 256 * 4 * 8;
/// Words of 8 bytes of one row of the table.
const ROW_WORDS: i64 = 8;

/// A parameter to update.
#[derive(Debug)]
pub struct Update<'a> {
    /// The f32 master weight, updated in place.
    pub master: &'a Tensor,
    /// The first moment, f32, updated in place.
    pub moment_m: &'a Tensor,
    /// The second moment, f32, updated in place.
    pub moment_v: &'a Tensor,
    /// The gradient, bf16 or f32.
    pub gradient: &'a Tensor,
    /// The bf16 copy that the forward reads, written in place.
    pub act: Option<&'a Tensor>,
    /// The group's learning rate.
    pub lr: f64,
    /// The group's decoupled weight decay.
    pub weight_decay: f64,
}

/// Updates all parameters as [`AdamW::update`] does each, with every gradient times `clip`, to the rounding
/// of f32. `n_updates` counts this update, from 1.
///
/// # Errors
/// A tensor that is not contiguous, not on the same GPU, of another kind or size.
pub fn adamw(updates: &[Update<'_>], adamw: &AdamW, clip: f64, n_updates: u64) -> Result<()> {
    let mut rows = Vec::new();
    for update in updates {
        let n = update.master.numel();
        let state = [update.master, update.moment_m, update.moment_v];
        for tensor in state {
            check(tensor, Kind::Float, n)?;
        }
        check(update.gradient, gradient_kind(update.gradient)?, n)?;
        if let Some(act) = update.act {
            check(act, Kind::BFloat16, n)?;
        }
        rows.push(Row {
            master: state.map(address),
            gradient: address(update.gradient),
            act: update.act.map_or(0, address),
            n,
            wide: update.gradient.kind() == Kind::Float,
            rate: update.lr as f32,
            keep: (1.0 - update.lr * update.weight_decay) as f32,
        });
    }
    let Some(first) = updates.first() else { return Ok(()) };
    let table = Table::new(&rows, first.master.device())?;
    let correction = |beta: f64| (1.0 - libm::pow(beta, n_updates as f64)) as f32;
    launch(
        &ADAMW,
        [table.n_blocks, 1, 1],
        &[
            Arg::Tensor(&table.rows),
            Arg::I32(table.n_rows),
            Arg::F32(adamw.beta1 as f32),
            Arg::F32((1.0 - adamw.beta1) as f32),
            Arg::F32(adamw.beta2 as f32),
            Arg::F32((1.0 - adamw.beta2) as f32),
            Arg::F32(correction(adamw.beta1)),
            Arg::F32(correction(adamw.beta2)),
            Arg::F32(adamw.eps as f32),
            Arg::F32(clip as f32),
        ],
    )
}

/// The sum of squares of each tensor, in f64, f64 `[n]` on their GPU. An order of the sums that depends on
/// the sizes alone; a sum is not finite exactly when an element is not.
///
/// # Errors
/// A tensor that is not contiguous, not on the same GPU, or neither bf16 nor f32.
pub fn square_sums(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        return Err(Error::Op { op: "square_sums", detail: "no tensors".to_owned() });
    };
    let mut rows = Vec::new();
    for tensor in tensors {
        check(tensor, gradient_kind(tensor)?, tensor.numel())?;
        rows.push(Row {
            master: [0; 3],
            gradient: address(tensor),
            act: 0,
            n: tensor.numel(),
            wide: tensor.kind() == Kind::Float,
            rate: 0.0,
            keep: 0.0,
        });
    }
    let table = Table::new(&rows, first.device())?;
    let partial = empty(&[i64::from(table.n_blocks)], Kind::Double, first)?;
    let sums = empty(&[i64::from(table.n_rows)], Kind::Double, first)?;
    let (rows, n_rows) = (Arg::Tensor(&table.rows), Arg::I32(table.n_rows));
    launch(&SQUARE_BLOCKS, [table.n_blocks, 1, 1], &[rows, n_rows, Arg::Tensor(&partial)])?;
    let grid = [table.n_rows.unsigned_abs(), 1, 1];
    launch(&SQUARE_TOTALS, grid, &[rows, n_rows, Arg::Tensor(&partial), Arg::Tensor(&sums)])?;
    Ok(sums)
}

fn wrong(detail: String) -> Error {
    Error::Op { op: "optimizer", detail }
}

fn gradient_kind(gradient: &Tensor) -> Result<Kind> {
    match gradient.kind() {
        kind @ (Kind::Float | Kind::BFloat16) => Ok(kind),
        kind => Err(wrong(format!("a gradient is {kind:?}, bf16 or f32 is needed"))),
    }
}

fn check(tensor: &Tensor, kind: Kind, n: usize) -> Result<()> {
    let (found, size) = (tensor.kind(), tensor.numel());
    if found != kind || size != n {
        return Err(wrong(format!("{size} elements of {found:?}, {n} of {kind:?} are needed")));
    }
    if !tensor.is_contiguous() || !super::runs_on(tensor.device()) {
        let device = tensor.device();
        return Err(wrong(format!(
            "a contiguous tensor on a GPU is needed, not one on {device:?} of strides {:?}",
            tensor.stride()
        )));
    }
    Ok(())
}

fn address(tensor: &Tensor) -> i64 {
    (tensor.data_ptr() as u64).cast_signed()
}

/// A `Parameter` of the source.
struct Row {
    /// Master weight and both moments.
    master: [i64; 3],
    gradient: i64,
    act: i64,
    n: usize,
    wide: bool,
    rate: f32,
    keep: f32,
}

struct Table {
    rows: Tensor,
    n_rows: i32,
    n_blocks: u32,
}

impl Table {
    fn new(rows: &[Row], device: Device) -> Result<Table> {
        let (words, n_blocks) = words(rows)?;
        let n_rows = i32::try_from(rows.len()).map_err(|_| wrong("too many parameters".into()))?;
        let host = Tensor::f_from_slice(&words)?;
        let rows = host.f_reshape([-1, ROW_WORDS])?.f_to_device(device)?;
        Ok(Table { rows, n_rows, n_blocks })
    }
}

/// The rows as the kernels read them, and the number of blocks.
fn words(rows: &[Row]) -> Result<(Vec<i64>, u32)> {
    let pair = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).cast_signed();
    let mut words = Vec::new();
    let mut n_blocks = 0u32;
    for row in rows {
        let n = i64::try_from(row.n).map_err(|_| wrong("too many elements".into()))?;
        words.extend(row.master);
        words.extend([row.gradient, row.act, n]);
        words.push(pair(n_blocks, u32::from(row.wide)));
        words.push(pair(row.rate.to_bits(), row.keep.to_bits()));
        let blocks = u32::try_from(row.n.div_ceil(BLOCK_ELEMENTS)).ok();
        n_blocks = blocks
            .and_then(|blocks| n_blocks.checked_add(blocks))
            .filter(|blocks| *blocks <= i32::MAX.unsigned_abs())
            .ok_or_else(|| wrong("too many elements".into()))?;
    }
    Ok((words, n_blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize, wide: bool) -> Row {
        Row { master: [1, 2, 3], gradient: 4, act: 5, n, wide, rate: 1.0, keep: 0.5 }
    }

    #[test]
    fn rows_count_the_blocks_before_them() {
        let (words, n_blocks) =
            words(&[row(1, false), row(0, true), row(BLOCK_ELEMENTS + 1, true)]).expect("lays out");
        assert_eq!(n_blocks, 3);
        let row = |at: usize| &words[8 * at..8 * at + 8];
        let numbers = 0x3f00_0000_3f80_0000;
        assert_eq!(row(0), [1, 2, 3, 4, 5, 1, 0, numbers]);
        assert_eq!(row(1), [1, 2, 3, 4, 5, 0, 1 << 32 | 1, numbers]);
        assert_eq!(row(2), [1, 2, 3, 4, 5, BLOCK_ELEMENTS as i64 + 1, 1 << 32 | 1, numbers]);
    }

    #[test]
    fn tensors_of_another_kind_size_or_place_are_refused() {
        let cpu = |kind| Tensor::f_zeros([4], (kind, Device::Cpu)).expect("zeros");
        let text = |result: Result<()>| result.expect_err("refused").to_string();
        assert!(text(check(&cpu(Kind::Half), Kind::Float, 4)).contains("4 elements of Half"));
        assert!(text(check(&cpu(Kind::Float), Kind::Float, 5)).contains("5 of Float are needed"));
        assert!(text(check(&cpu(Kind::Float), Kind::Float, 4)).contains("on Cpu"));
        assert!(gradient_kind(&cpu(Kind::Double)).is_err());
    }
}
