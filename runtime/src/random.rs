//! Start values of parameters.

use crate::error::{Error, Result};
use crate::stage::{Format, ParamSpec, Storage};
use crate::{Kind, Tensor};
use lightc_numerics::draw::Stream;
use lightc_numerics::quantile;

/// The start values of all parameters of a stage, in their order. A quantized one is the draw of
/// its path, then quantized.
pub fn init_params(specs: &[ParamSpec], seed: u64, kind: Kind) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::with_capacity(specs.len());
    let mut scale: Option<Tensor> = None;
    for spec in specs {
        tensors.push(match spec.storage {
            Storage::Codes(format) => {
                let (codes, its_scale) = init_quantized(spec, format, seed, kind)?;
                scale = Some(its_scale);
                codes
            }
            Storage::Scale => scale.take().ok_or_else(|| Error::Op {
                op: "init",
                detail: format!("`{}` does not stand behind its codes", spec.path),
            })?,
            _ => init_param(spec, seed, kind)?,
        });
    }
    Ok(tensors)
}

/// The start value of one parameter, drawn in f64 and rounded to `kind`.
pub fn init_param(spec: &ParamSpec, seed: u64, kind: Kind) -> Result<Tensor> {
    let values = draw(spec, spec.path, seed);
    Ok(Tensor::f_from_slice(&values)?.f_reshape(spec.shape)?.f_to_kind(kind)?)
}

fn draw(spec: &ParamSpec, path: &str, seed: u64) -> Vec<f64> {
    let n_elements: i64 = spec.shape.iter().product();
    Stream::new(seed, path).fill(spec.init, n_elements as usize)
}

/// Codes and scales of a quantized parameter.
fn init_quantized(
    spec: &ParamSpec,
    format: Format,
    seed: u64,
    kind: Kind,
) -> Result<(Tensor, Tensor)> {
    let path = spec.path.strip_suffix(".codes").unwrap_or(spec.path);
    let values = draw(spec, path, seed);
    let (row, rows) = spec.shape.split_last().map_or((1, spec.shape), |(n, rows)| (*n, rows));
    let (codes, scales) = match format {
        Format::Int8 => int8::quantize(&values, row as usize),
        Format::Quantile8 => quantile::quantize(&values, row as usize),
    };
    let codes = Tensor::f_from_slice(&codes)?.f_reshape(spec.shape)?;
    let scales = Tensor::f_from_slice(&scales)?.f_reshape(rows)?.f_to_kind(kind)?;
    Ok((codes, scales))
}
