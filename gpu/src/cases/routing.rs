//! Routing, the Walsh-Hadamard transform, and weights in 8 bits.

use lightc_runtime::{Device, Format, Kind, Result, Tensor, ops};

use super::chosen;
use crate::bench::time;
use crate::check::{compared, within};
use crate::{Case, Gpu, Measured, Verdict};

/// Ways to spread places over experts.
pub(super) const SPREADS: [&str; 6] =
    ["even", "skewed", "every second", "one expert", "none", "some none"];

/// Ids of `shape` for `experts`, spread as one of [`SPREADS`] says.
pub(super) fn spread_ids(gpu: &Gpu, shape: &[i64], experts: i64, spread: &str) -> Result<Tensor> {
    let on = (Kind::Int64, gpu.device());
    let even = Tensor::f_randint(experts, shape, on)?;
    Ok(match spread {
        "skewed" => {
            let drawn =
                gpu.uniform(shape)?.f_pow_tensor_scalar(4.0)?.f_mul_scalar(experts as f64)?;
            drawn.f_floor()?.f_to_kind(Kind::Int64)?.f_clamp_max(experts - 1)?
        }
        "every second" => even.f_div_scalar_mode(2, "floor")?.f_mul_scalar(2)?,
        "one expert" => Tensor::f_full(shape, experts - 1, on)?,
        "none" => Tensor::f_full(shape, -1, on)?,
        "some none" => {
            even.f_full_like(-1)?.f_where_self(&gpu.uniform(shape)?.f_lt(0.3)?, &even)?
        }
        _ => even,
    })
}

/// How many elements differ.
fn n_other(x: &Tensor, y: &Tensor) -> Result<f64> {
    Ok(x.f_ne_tensor(y)?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

pub(super) struct Routing;

/// Places, experts.
const ORDERS: [(i64, i64); 8] = [
    (1, 1),
    (63, 20),
    (1024, 512),
    (1025, 1),
    (5000, 58),
    (2 * 8190, 20),
    (12 * 8192, 58),
    (1 << 20, 512),
];

/// Rows, scores, positions.
const TOPS: [(i64, i64, i64); 6] =
    [(1, 1, 1), (7, 33, 5), (100, 20, 2), (65, 512, 16), (333, 460, 12), (8192, 460, 12)];

/// Scores with ties, NaN and infinities, against the processor, which follows the definition.
fn wild_scores(gpu: &Gpu) -> Result<Verdict> {
    let which = Tensor::f_randint(30, [200, 460], (Kind::Int64, gpu.device()))?;
    let mut score = Tensor::f_randint(9, [200, 460], (Kind::Float, gpu.device()))?;
    for (at, value) in
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0].into_iter().enumerate()
    {
        let special = Tensor::f_full([0i64; 0], value, (Kind::Float, gpu.device()))?;
        score = special.f_where_self(&which.f_eq(at as i64)?, &score)?;
    }
    let found = ops::top(&score, 16)?.f_to_device(Device::Cpu)?;
    let wanted = ops::top(&score.f_to_device(Device::Cpu)?, 16)?;
    Ok(within("top, NaN, infinities and ties", "other positions", n_other(&found, &wanted)?, 0.0))
}

impl Case for Routing {
    fn name(&self) -> &'static str {
        "routing"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for (places, experts) in chosen(gpu.small, &ORDERS, |size| size.0) {
            for spread in SPREADS {
                let ids = spread_ids(gpu, &[places], experts, spread)?;
                let like = gpu.normal(&[1])?;
                let label = format!("P={places} E={experts} {spread}");
                verdicts.extend(compared(&label, 1.0, &mut || {
                    let _ = ops::expert_order(&ids, experts)?;
                    ops::count(&ids, experts, &like).map(|_| ())
                })?);
            }
        }
        for (rows, e, slots) in chosen(gpu.small, &TOPS, |size| size.0) {
            let score = gpu.normal(&[rows, e])?;
            let tied = Tensor::f_randint(5, [rows, e], (Kind::Float, gpu.device()))?;
            let ids = spread_ids(gpu, &[rows, slots], e, "some none")?;
            let (dy, wide) = (gpu.normal(&[rows, slots])?, gpu.normal(&[rows, e, 3])?);
            let label = format!("rows={rows} e={e} slots={slots}");
            verdicts.extend(compared(&label, 1.0, &mut || {
                let _ = ops::top(&score, slots)?;
                let _ = ops::top(&tied, slots)?;
                let _ = ops::take(&score, &ids, 1)?;
                let _ = ops::take(&wide, &ids, 1)?;
                ops::take_grad(&ids, &dy, 1, e).map(|_| ())
            })?);
        }
        verdicts.push(wild_scores(gpu)?);
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (places, experts) = (12 * 8192, 58);
        let ids = spread_ids(gpu, &[places], experts, "even")?;
        let score = gpu.normal(&[8192, 460])?;
        let picks = ops::top(&score, 12)?;
        let dy = gpu.normal(&[8192, 12])?;
        let row = |name: &str, shape: &str, bytes: i64, spread| Measured {
            name: name.to_owned(),
            shape: shape.to_owned(),
            spread,
            flops: 0.0,
            bytes: bytes as f64,
            peers: &[],
        };
        let (order, scores) = ("P=98304, 58 experts", "8192 x 460, 12 slots");
        let all = 8192 * 460 * 4;
        Ok(vec![
            row("expert_order", order, places * 24, {
                time(gpu, 21, &mut || ops::expert_order(&ids, experts).map(|_| ()))?
            }),
            row("count", order, places * 8, {
                time(gpu, 21, &mut || ops::count(&ids, experts, &score).map(|_| ()))?
            }),
            row("top", scores, all + places * 8, {
                time(gpu, 21, &mut || ops::top(&score, 12).map(|_| ()))?
            }),
            row("take", scores, places * 16, {
                time(gpu, 21, &mut || ops::take(&score, &picks, 1).map(|_| ()))?
            }),
            row("take_grad", scores, all + places * 12, {
                time(gpu, 21, &mut || ops::take_grad(&picks, &dy, 1, 460).map(|_| ()))?
            }),
        ])
    }
}

pub(super) struct Hadamard;

impl Case for Hadamard {
    fn name(&self) -> &'static str {
        "hadamard"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for n in (6..14).map(|log| 1i64 << log) {
            let rows = if gpu.small { 3 } else { 1 + 100_000 / n };
            let x = gpu.normal_bf16(&[rows, n])?;
            // One row alone; rows that begin in the middle of 16 bytes.
            let (one, odd) = (x.f_narrow(0, 0, 1)?, gpu.normal_bf16(&[rows * n + 1])?);
            let odd = odd.f_narrow(0, 1, rows * n)?.f_reshape([rows, n])?;
            verdicts.extend(compared(&format!("hadamard {rows} x {n}"), 1.0, &mut || {
                for inverse in [false, true] {
                    let _ = ops::hadamard(&x, 42, inverse)?;
                    let _ = ops::hadamard(&one, 42, inverse)?;
                    let _ = ops::hadamard(&odd, 242, inverse)?;
                }
                Ok(())
            })?);
            // Bit for bit what the processor gives, whose order of additions it has.
            for inverse in [false, true] {
                let found = ops::hadamard(&x, 42, inverse)?.f_to_device(Device::Cpu)?;
                let wanted = ops::hadamard(&x.f_to_device(Device::Cpu)?, 42, inverse)?;
                let label = format!("hadamard {rows} x {n}, inverse {inverse}");
                verdicts.push(within(label, "other bits", n_other(&found, &wanted)?, 0.0));
            }
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let mut rows = Vec::new();
        for (n_rows, n) in [(8192, 4096), (12 * 8192, 1024), (12 * 8192, 4096)] {
            let x = gpu.normal_bf16(&[n_rows, n])?;
            for inverse in [false, true] {
                rows.push(Measured {
                    name: format!("hadamard{}", if inverse { " inverse" } else { "" }),
                    shape: format!("{n_rows} x {n}"),
                    spread: time(gpu, 11, &mut || ops::hadamard(&x, 42, inverse).map(|_| ()))?,
                    flops: 0.0,
                    bytes: (n_rows * n * 4) as f64,
                    peers: &[],
                });
            }
        }
        Ok(rows)
    }
}

pub(super) struct Quantize;

impl Quantize {
    /// What is refused, and in which words.
    fn refusals(gpu: &Gpu) -> Result<Vec<Verdict>> {
        let x = gpu.normal(&[5, 300])?;
        let nan = Tensor::f_full([0i64; 0], f64::NAN, (Kind::Float, gpu.device()))?;
        let mut part = x.f_narrow(0, 3, 1)?.f_narrow(1, 7, 2)?;
        part.f_copy_(&nan.f_expand([1, 2], false)?)?;
        let text = |result: Result<(Tensor, Tensor)>| match result {
            Ok(_) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        let found = text(ops::quantize(&x, Format::Int8));
        let wanted = text(ops::quantize(&x.f_to_device(Device::Cpu)?, Format::Int8));
        let holds = found == wanted && found.contains("element 907 is NaN");
        let label = format!("quantize refuses: {found}");
        Ok(vec![within(label, "faults", if holds { 0.0 } else { 1.0 }, 0.0)])
    }
}

impl Case for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Verdict>> {
        let mut verdicts = Self::refusals(gpu)?;
        for (rows, n) in
            chosen(gpu.small, &[(1, 1), (3, 77), (16, 4096), (5000, 1024)], |size| size.0)
        {
            // Every third row is zeros, and some are whole numbers and halves.
            let x = gpu.normal(&[rows, n])?;
            let keep = Tensor::f_arange(rows, (Kind::Int64, gpu.device()))?.f_remainder(3)?;
            let x = x.f_mul(&keep.f_ne(0)?.f_unsqueeze(-1)?)?;
            let halves = Tensor::f_randint(255, [rows, n], (Kind::Float, gpu.device()))?
                .f_mul_scalar(0.5)?;
            let half = x.f_to_kind(Kind::BFloat16)?;
            verdicts.extend(compared(&format!("quantize {rows} x {n}"), 1.0, &mut || {
                for x in [&x, &halves, &half] {
                    let _ = ops::quantize(x, Format::Int8)?;
                }
                Ok(())
            })?);
            let (codes, scale) = ops::quantize(&x, Format::Int8)?;
            if n % 8 == 0 {
                // Of all codes, also the one that the quantizer does not give.
                let mut all = codes.f_narrow(1, 0, 1)?;
                let _ = all.f_fill_(-128)?;
                verdicts.extend(compared(&format!("dequantize {rows} x {n}"), 1.0, &mut || {
                    ops::dequantize(&codes, &scale, &half).map(|_| ())
                })?);
            }
            let (_, wanted) = ops::quantize(&x.f_to_device(Device::Cpu)?, Format::Int8)?;
            let n_other = n_other(&scale.f_to_device(Device::Cpu)?, &wanted)?;
            verdicts.push(within(format!("scales {rows} x {n}"), "other bits", n_other, 0.0));
        }
        for (e, n, k) in chosen(gpu.small, &[(1, 1, 1), (3, 5, 77), (2, 64, 4096)], |size| size.1) {
            for kind in [Kind::Float, Kind::BFloat16] {
                let (codes, scale) = ops::quantize(&gpu.normal(&[e, n, k])?, Format::Int8)?;
                let left = gpu.normal(&[e, n, 16])?.f_mul_scalar(0.1)?.f_to_kind(kind)?;
                let right = gpu.normal(&[e, 16, k])?.f_mul_scalar(0.25)?.f_to_kind(kind)?;
                let label = format!("merge_adapter {e} x {n} x {k}");
                verdicts.extend(compared(&label, 1.0, &mut || {
                    ops::merge_adapter(&codes, &scale, &left, &right).map(|_| ())
                })?);
            }
        }
        Ok(verdicts)
    }

    fn bench(&self, gpu: &Gpu) -> Result<Vec<Measured>> {
        let (e, n, k) = (58, 1024, 4096);
        let x = gpu.normal_bf16(&[e, n, k])?;
        let (codes, scale) = ops::quantize(&x, Format::Int8)?;
        let left = gpu.normal_bf16(&[e, n, 16])?;
        let right = gpu.normal_bf16(&[e, 16, k])?;
        let row = |name: &str, bytes: i64, spread| Measured {
            name: name.to_owned(),
            shape: format!("{e} x {n} x {k}"),
            spread,
            flops: 0.0,
            bytes: (bytes * e * n * k) as f64,
            peers: &[],
        };
        Ok(vec![
            row("quantize bf16 to int8", 3, {
                time(gpu, 5, &mut || ops::quantize(&x, Format::Int8).map(|_| ()))?
            }),
            row("dequantize int8 to bf16", 3, {
                time(gpu, 11, &mut || ops::dequantize(&codes, &scale, &x).map(|_| ()))?
            }),
            row("merge_adapter", 2, {
                time(gpu, 5, &mut || ops::merge_adapter(&codes, &scale, &left, &right).map(|_| ()))?
            }),
        ])
    }
}
