//! What generated row kernels need around their launch.

use super::{Arg, Kernel, launch};
use crate::Tensor;
use crate::error::{Error, Result};

/// Bytes that the address of an input is a multiple of: what a thread reads at once.
const ALIGNED: usize = 16;

/// How the rows of a kernel are spread over blocks. It depends on the number of rows alone, not on
/// the device, so sums over rows have the same bits on every GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Rows in all.
    pub rows: i64,
    /// Rows of a block, one after the other.
    pub span: i64,
    /// Blocks along the rows: at least one.
    pub blocks: i64,
}

impl Spread {
    /// About `blocks` blocks, each with a multiple of `groups` rows.
    pub fn of(rows: i64, groups: i64, blocks: i64) -> Spread {
        let up = |n: i64, by: i64| (n + by - 1) / by.max(1);
        let span = groups * up(rows, groups * blocks.max(1)).max(1);
        Spread { rows, span, blocks: up(rows, span).max(1) }
    }

    /// The grid of a kernel with `tiles` blocks beside each other.
    ///
    /// # Errors
    /// More blocks than a grid can have.
    pub fn grid(&self, tiles: u32) -> Result<[u32; 3]> {
        Ok([number(self.blocks)?, tiles, 1])
    }
}

fn number<N: TryFrom<i64>>(value: i64) -> Result<N> {
    let detail = || format!("{value} rows or blocks are more than a kernel can count");
    N::try_from(value).map_err(|_| Error::Op { op: "row kernel", detail: detail() })
}

/// A whole number as an argument of a row kernel.
///
/// # Errors
/// It has more than 31 bits.
pub fn count(value: i64) -> Result<Arg<'static>> {
    Ok(Arg::I32(number(value)?))
}

/// Inputs as a kernel reads them: without gaps, and at addresses that vectors can be read from.
///
/// # Errors
/// libtorch's.
pub fn dense(inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let dense = |x: &&Tensor| -> Result<Tensor> {
        let x = x.f_contiguous()?;
        if (x.data_ptr() as usize).is_multiple_of(ALIGNED) { Ok(x) } else { Ok(x.f_clone(&x)?) }
    };
    inputs.iter().map(dense).collect()
}

/// Adds partial sums `[lines, columns]` in order, times `scale`.
///
/// # Errors
/// The driver's.
pub fn finish(kernel: &'static Kernel, partial: &Tensor, to: &Tensor, scale: f64) -> Result<()> {
    let (lines, columns) = partial.size2()?;
    #[allow(clippy::cast_possible_truncation)] // the kernel sums in f32
    let scale = Arg::F32(scale as f32);
    let grid = [number((columns + 31) / 32)?, 1, 1];
    let args = [Arg::Tensor(partial), Arg::Tensor(to), count(lines)?, count(columns)?, scale];
    launch(kernel, grid, &args)
}

/// The results of a kernel, which are as many as the caller says.
///
/// # Errors
/// They are not: a fault of the compiler.
pub fn results<const N: usize>(all: Vec<Tensor>) -> Result<[Tensor; N]> {
    let n = all.len();
    <[Tensor; N]>::try_from(all)
        .map_err(|_| Error::Op { op: "row kernel", detail: format!("{n} results, not {N}") })
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn every_row_has_one_block() {
        for rows in [0, 1, 63, 8190, 8192, 1 << 20] {
            for groups in [1, 8, 256] {
                for blocks in [1, 132, 1056] {
                    let spread = Spread::of(rows, groups, blocks);
                    assert!(spread.blocks >= 1 && spread.blocks <= blocks.max(1), "{spread:?}");
                    assert!(spread.blocks * spread.span >= rows, "{spread:?}");
                    assert!((spread.blocks - 1) * spread.span < rows.max(1), "{spread:?}");
                    assert_eq!(spread.span % groups, 0);
                }
            }
        }
    }
}
