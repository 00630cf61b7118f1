//! Sums of gathered rows, as an embedding by bytes makes them.

use lightc_runtime::ops;
use lightc_runtime::{Kind, Result, Tensor};

use super::chosen;
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

pub(super) struct Gather;

/// Positions, slots, rows, columns: one of each, odd ones, and a real one.
const SIZES: [(i64, i64, i64, i64); 4] =
    [(1, 1, 1, 4), (67, 5, 13, 1028), (130, 3, 700, 64), (4095, 32, 8192, 4096)];

/// Rows of the table, and an index that names the first row often and about a third of its slots none.
fn inputs(gpu: &Gpu, n: i64, slots: i64, rows: i64, d: i64) -> Result<(Tensor, Tensor)> {
    let on = (Kind::Int64, gpu.device());
    let index = Tensor::f_randint(rows, [n, slots], on)?;
    let which = gpu.uniform(&[n, slots])?;
    let index = index.f_zeros_like()?.f_where_self(&which.f_lt(0.1)?, &index)?;
    let index = index.f_full_like(-1)?.f_where_self(&which.f_gt(0.7)?, &index)?;
    Ok((gpu.normal(&[rows, d])?, index))
}

impl Case for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for (n, slots, rows, d) in chosen(gpu.small, &SIZES, |size| size.0) {
            let (w, index) = inputs(gpu, n, slots, rows, d)?;
            let dy = gpu.normal(&[n, d])?;
            let label = format!("gather_sum N={n} slots={slots} rows={rows} d={d}");
            let work = &mut || {
                let _ = ops::gather_sum(&w, &index)?;
                ops::gather_sum_grad(&index, &dy, rows).map(|_| ())
            };
            verdicts.extend(compared(&label, 1.0, work)?);
            // Nothing is named: nothing but zeros.
            let none = index.f_full_like(-1)?;
            let size = |x: &Tensor| x.f_abs().and_then(|x| x.f_max()?.f_double_value(&[]));
            let empty = size(&ops::gather_sum(&w, &none)?)?
                + size(&ops::gather_sum_grad(&none, &dy, rows)?)?;
            verdicts.push(within(format!("{label}, no row named"), "largest", empty, 0.0));
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (n, slots, rows, d) = (8192, 32, 8192, 4096);
        let (w, index) = inputs(gpu, n, slots, rows, d)?;
        let dy = gpu.normal(&[n, d])?;
        let row = |name: &str, spread| Measured {
            name: name.to_owned(),
            shape: format!("N={n}, {slots} slots, {rows} rows of {d}"),
            spread,
            flops: 0.0,
            bytes: ((n + rows) * d * 4) as f64,
            peers: &["Kronecker embedding"],
        };
        let forward = &mut || ops::gather_sum(&w, &index).map(|_| ());
        let backward = &mut || ops::gather_sum_grad(&index, &dy, rows).map(|_| ());
        Ok(vec![
            row("gather_sum", time(gpu, 11, forward)?),
            Measured { peers: &[], ..row("gather_sum gradient", time(gpu, 11, backward)?) },
        ])
    }
}
